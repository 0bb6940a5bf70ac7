"""Tests for repl_fx.tracing.sizes_kept: sizes that torch's operators would fix stay free."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import repl_fx
from tests.exporting import Exported


class Places(nn.Module):
    """Adds the places of the pixels, as models with reference points make them, and turns the picture."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        rows = torch.linspace(0.5, h - 0.5, h, device=x.device, **self.settings)
        columns = torch.linspace(start=-1, end=1, steps=w, dtype=torch.float64)
        theta = torch.tensor([[0.6, -0.8, 0.1], [0.8, 0.6, 0.0]]).expand(x.shape[0], 2, 3)
        grid = functional.affine_grid(theta, list(x.size()), align_corners=False)
        turned = functional.grid_sample(self.layer(x), grid, align_corners=False)
        return turned + rows[:, None] / h + columns


def test_evenly_spaced_numbers_and_grids_as_many_as_a_size_says() -> None:
    model = Places()
    gm = repl_fx.capture(model, (torch.randn(2, 3, 8, 6),))
    assert gm.meta["capture"].dynamic == {"x": (0, 2, 3)}
    for height, width in ((8, 6), (5, 9), (1, 17)):
        x = torch.randn(3, 3, height, width)
        assert torch.equal(gm(x), model(x))


def test_evenly_spaced_numbers_that_torch_alone_can_make_fix_the_size() -> None:
    gm = repl_fx.capture(Places(requires_grad=True), (torch.randn(2, 3, 8, 6),))
    assert gm.meta["capture"].dynamic == {"x": (0, 3)}


class Pooled(nn.Module):
    """Pools over all that there is, as code from before adaptive pools does."""

    def __init__(self, pool: Any) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.pool(x)
        return pooled.flatten(1)


WHOLE = {
    "average": lambda x: functional.avg_pool2d(x, x.size()[2:]),
    "average with steps": lambda x: functional.avg_pool2d(x, kernel_size=x.shape[2:], stride=x.shape[2:]),
    "average of a volume": lambda x: functional.avg_pool3d(x[:, :, None], (1, *x.shape[2:])),
    "average of a row": lambda x: functional.avg_pool1d(x.flatten(2), x.shape[2] * x.shape[3]),
    "largest": lambda x: functional.max_pool2d(x, kernel_size=(x.size(2), x.size(3))),
    "largest of a volume": lambda x: functional.max_pool3d(x[:, :, None], (1, *x.shape[2:])),
    "largest of a row": lambda x: functional.max_pool1d(x.flatten(2), x.flatten(2).shape[2]),
}
PARTS = {
    "all but one": lambda x: functional.max_pool2d(x, (x.shape[2] - 1, x.shape[3])),
    "with an edge": lambda x: functional.avg_pool2d(x, (x.shape[2], x.shape[3]), padding=1),
    "by another number": lambda x: functional.avg_pool2d(x, (x.shape[2], x.shape[3]), divisor_override=3),
    "with places": lambda x: functional.max_pool2d(x, (x.shape[2], x.shape[3]), return_indices=True)[1],
}


@pytest.mark.parametrize("pool", WHOLE)
def test_pools_over_all_that_there_is(pool: str) -> None:
    model = Pooled(WHOLE[pool])
    gm = repl_fx.capture(model, (torch.randn(2, 3, 8, 6),))
    assert gm.meta["capture"].dynamic == {"x": (0, 1, 2, 3)}
    loaded = pickle.loads(pickle.dumps(gm))
    for height, width in ((8, 6), (5, 9), (1, 17)):
        x = torch.randn(3, 3, height, width)
        assert torch.equal(gm(x), model(x)) and torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("pool", PARTS)
def test_other_pools_fix_the_sizes(pool: str) -> None:
    model, x = Pooled(PARTS[pool]), torch.randn(2, 3, 8, 6)
    gm = repl_fx.capture(model, (x,))
    assert gm.meta["capture"].dynamic == {"x": (0, 1)}
    assert torch.equal(gm(x), model(x))


class Turned(nn.Module):
    """Puts the last section of a picture before the first, and adds how long the middle one is."""

    def forward(self, x: Tensor) -> Tensor:
        first, middle, last = x.tensor_split(3, dim=2)
        return torch.cat([last, first, middle], 2) + middle.shape[2]


def test_sections_of_any_size_are_cut_in_files_too(tmp_path: Path) -> None:
    model, x = Turned(), torch.randn(2, 4, 6)
    gm = repl_fx.capture(model, (x,))
    for length in range(1, 13):
        assert torch.equal(gm(y := torch.randn(3, 4, length)), model(y))
    exported = Exported(gm, tmp_path / "m.onnx", (x,))
    for length in (7, 11):
        assert exported.verify((torch.randn(2, 4, length),))
