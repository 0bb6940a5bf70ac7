"""Units to shard, and checkpoints that are directories; `test_distributed.py` trains with both."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import repl_fx
from repl_fx.training.safe_checkpoints import FINGERPRINT, before, discard_all, header_of, last_whole, part_of
from repl_fx.training.sharding import _put, units_of
from tests.training.runs import Net


class _Block(nn.Sequential):
    """Two layers and a sum."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner: Any = super().forward
        return x + inner(x)  # type: ignore[no-any-return]


def _blocks() -> nn.Module:
    blocks = (_Block(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(3))
    return nn.Sequential(nn.Linear(16, 8), _Block(nn.Sequential(*blocks)), nn.Linear(8, 3))


def test_the_units_of_a_model_in_place_are_its_blocks() -> None:
    torch.manual_seed(0)
    result = repl_fx.transform(Net(), (torch.randn(2, 1, 4, 4),), surrogate="blend")
    assert units_of(result.model) == ("blocks.0", "blocks.1", "blocks.2")
    called = units_of(result.module)
    assert {"stem", "blocks.0.fc1", "head"} < set(called) and not any("norm" in path for path in called)
    assert any("surrogates" in path for path in called)
    assert units_of(Net()) == ()


def test_what_holds_the_blocks_is_no_unit() -> None:
    torch.manual_seed(0)
    result = repl_fx.transform(_blocks(), (torch.randn(2, 16),), surrogate="blend")
    assert result.in_place.model is not None
    assert units_of(result.model) == ("1.0.0", "1.0.1", "1.0.2")


def _checkpoint(place: Path, step: int) -> Path:
    place.mkdir(parents=True)
    torch.save({"global_step": step, "repl_fx_model": "a"}, place / "meta.pt")
    return place


def test_one_of_two_checkpoints_is_whole_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "last.ckpt"
    assert last_whole(place) is None
    _put(_checkpoint(part_of(place), 1), place)
    assert header_of(place) == {"global_step": 1, FINGERPRINT: "a"}
    # A kill at each renaming.
    own, steps = Path.rename, []
    for kills in (1, 2, 3):
        left = kills

        def rename(self: Path, target: Path) -> Path:
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
            return own(self, target)

        if not part_of(place).exists():
            _checkpoint(part_of(place), 2)
        monkeypatch.setattr(Path, "rename", rename)
        with suppress(KeyboardInterrupt):
            _put(part_of(place), place)
        monkeypatch.undo()
        found = last_whole(place)
        assert found is not None
        steps.append(header_of(found)["global_step"])
    assert steps == [1, 1, 2] and not before(place).exists()
    discard_all(place)
    assert not any(tmp_path.iterdir())


def test_a_damaged_directory_is_a_line(tmp_path: Path) -> None:
    place = _checkpoint(tmp_path / "last.ckpt", 1)
    (place / "meta.pt").write_bytes(b"none")
    with pytest.raises(repl_fx.BadInput, match=r"the checkpoint .*last\.ckpt cannot be read"):
        header_of(place)
