"""Tests for repl_fx.graph.code: regions in the code of a flat graph, which errors leave."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import repl_fx
from repl_fx.costs.counted import Interpreter
from tests.releases import fails_on_old_torch

GOOD, BAD = torch.tensor([[0, 1], [1, 2]]), torch.tensor([[0, 3], [1, 2]])


class _Regions(nn.Module):
    """One region in another; an index of 3 fails in the inner one alone."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            rows = self.table(x)
            with torch.autocast("cpu"):
                low = self.head(rows)
                more = self.table(x + 1)
        return rows.sum() + low.sum() + more.sum() + self.head.weight.sum()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def captured() -> fx.GraphModule:
    torch.manual_seed(0)
    return repl_fx.capture(_Regions(), (GOOD,))


FORMS: dict[str, Callable[[fx.GraphModule], Any]] = {
    "graph": lambda gm: gm,
    "deep copy": copy.deepcopy,
    "pickle": lambda gm: pickle.loads(pickle.dumps(gm)),
    "interpreter": lambda gm: Interpreter(gm).run,
}


@pytest.mark.parametrize("form", FORMS)
def test_an_error_ends_the_regions_that_a_graph_has_begun(captured: fx.GraphModule, form: str) -> None:
    called = FORMS[form](captured)
    assert torch.equal(called(GOOD), captured(GOOD))
    with pytest.raises(IndexError):
        called(BAD)
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")
    # Casts of weights that autocast has kept are forgotten with the outermost region.
    before = captured(GOOD)
    with torch.no_grad():
        captured.get_parameter("head.weight").mul_(2)
    after = captured(GOOD)
    with torch.no_grad():
        captured.get_parameter("head.weight").div_(2)
    assert not torch.equal(after, before)


def test_an_error_leaves_the_users_own_regions_as_they_are(captured: fx.GraphModule) -> None:
    with torch.autocast("cpu", torch.float16), torch.no_grad():
        with pytest.raises(IndexError):
            captured(BAD)
        assert not torch.is_grad_enabled()
        assert torch.get_autocast_dtype("cpu") == torch.float16
    assert torch.is_grad_enabled()


@fails_on_old_torch("torch.compile takes no graph that enters autocast")
def test_a_graph_with_regions_compiles_whole(captured: fx.GraphModule) -> None:
    compiled = torch.compile(captured, fullgraph=True, backend="eager")
    assert torch.equal(compiled(GOOD), captured(GOOD))


class _CastsBack(nn.Module):
    """Casts what a region makes to the precision of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = self.head(x)
        return y.to(x.dtype)  # type: ignore[no-any-return]


def test_torch_traces_what_a_region_computes_in_its_precision() -> None:
    model, x = _CastsBack(), torch.randn(2, 4)
    program = torch.export.export(repl_fx.capture(model, (x,)), (x,)).run_decompositions()
    assert torch.equal(program.module()(x), model(x))
    assert not torch.is_autocast_enabled("cpu")


class _Counts(nn.Module):
    """Counts up, and looks the count up under autocast: the second block fails where the first does not."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(6, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu"):
            y = self.table(self.linear(x).new_zeros(2, dtype=torch.int64) + x[:, 0].long())
        return x + 1 + 0 * y.float()  # type: ignore[no-any-return]


@pytest.mark.parametrize("as_graph", [True, False])
def test_an_error_in_a_surrogate_ends_its_regions(as_graph: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(_Counts() for _ in range(4)))
    result = repl_fx.transform(model, (torch.zeros(2, 8),), surrogate="blend", every=2)
    variant = result.graph_module if as_graph else result.model
    assert torch.equal(variant(torch.full((2, 8), 2.0)), torch.full((2, 8), 6.0))
    with pytest.raises(IndexError):
        variant(torch.full((2, 8), 5.0))
    assert not torch.is_autocast_enabled("cpu")


class _Skips(nn.Module):
    """Skips a layer at random while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.rand([]) < 0.5:
            return x
        return self.layer(x)  # type: ignore[no-any-return]


def test_code_is_printed_with_types(captured: fx.GraphModule) -> None:
    assert captured.print_readable(print_output=False).count("except BaseException:") == 2
    printed = repl_fx.capture(_Skips(), (torch.ones(2, 4),)).print_readable(print_output=False)
    assert "if skip_layer:" in printed and "choose: " in printed
