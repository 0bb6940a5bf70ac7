"""How a model in place is compared with its graph."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import repl_fx
from repl_fx.rewriting.in_place import judging
from repl_fx.rewriting.in_place.judging import compute_with_sizes, parting
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.untouched import outcome_of
from repl_fx.tracing import side_by_side
from tests.nets import MixedHalves, MlpBlock

INPUTS = ExampleInputs((torch.randn(2, 4),))


class _Scaled(nn.Module):
    def __init__(self, factor: float, training: float = 1.0) -> None:
        super().__init__()
        self.factor, self.in_training = factor, training

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.in_training if self.training else self.factor)


class _Raising(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("no such size")


class _Short(_Scaled):
    """Takes two rows at most."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 2:
            raise ValueError("too many")
        return super().forward(x)


class _Random(nn.Module):
    """Another value at each call, whatever the seed."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(x.shape, generator=torch.Generator().manual_seed(int(torch.Generator().seed() % 2**31)))


def test_equal_modules_do_not_part() -> None:
    assert parting(_Scaled(2.0), _Scaled(2.0), ([INPUTS], False), ([INPUTS], True)) == ""


def test_a_difference_of_one_mode_is_found_in_it() -> None:
    other = _Scaled(2.0, training=3.0)
    assert parting(_Scaled(2.0), other, ([INPUTS], False)) == ""
    assert parting(_Scaled(2.0), other, ([INPUTS], True)) == "in training it computes otherwise there than in the graph"


def test_what_fails_where_the_graph_does_not_parts_from_it() -> None:
    found = parting(_Raising(), _Scaled(2.0), ([INPUTS], False))
    assert found == "in evaluation it fails where the graph does not: no such size"
    # What the graph does not take says nothing.
    assert parting(_Scaled(2.0), _Raising(), ([INPUTS], False)) == ""


def test_inputs_that_the_graph_takes_serve_where_it_takes_no_others() -> None:
    longer = ExampleInputs((torch.randn(3, 4),))
    assert parting(_Scaled(2.0), _Short(3.0), ([longer], False)) == ""
    assert "computes otherwise" in parting(_Scaled(2.0), _Short(3.0), ([longer, INPUTS], False))


def test_inputs_that_the_source_refuses_by_their_values_say_nothing() -> None:
    class Checking(_Scaled):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[0] == 5:
                raise ValueError("no picture in the text")
            return super().forward(x)

    longer = ExampleInputs.of((torch.randn(5, 3),))
    given = ([longer, INPUTS], False)
    assert parting(Checking(2.0), _Scaled(2.0), given, source=Checking(1.0)) == ""
    assert "computes otherwise" in parting(Checking(3.0), _Scaled(2.0), given, source=Checking(1.0))
    assert "fails where the graph does not" in parting(Checking(2.0), _Scaled(2.0), given, source=_Scaled(1.0))


def test_modules_that_are_not_the_same_twice_and_those_without_values_say_nothing() -> None:
    assert parting(_Random(), _Random(), ([INPUTS], False)) == ""
    without = INPUTS.map(lambda tensor: tensor.to("meta"))
    assert parting(_Scaled(1.0), _Scaled(2.0), ([without], False)) == ""


def test_large_models_are_compared_on_shapes_where_these_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "_PER_NODE", -1)
    result = repl_fx.transform(nn.Sequential(*(MlpBlock(4) for _ in range(4))), (INPUTS.args[0],), surrogate="blend")
    model, graph, computed = result.model, result.module, list[str]()

    def run(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        computed.append(type(module).__name__)
        return outcome_of(module, *args, **kwargs)

    monkeypatch.setattr(judging, "outcome_of", run)
    assert parting(model, graph, ([INPUTS], False)) == "" and not computed
    # Another parameter than the graph's.
    model.get_submodule("3.fc1").weight = nn.Parameter(torch.randn(8, 4))
    assert parting(model, graph, ([INPUTS], False)) == "in evaluation it computes otherwise there than in the graph"
    assert computed


class _Peeking(nn.Module):
    """Asks for values where there are more than two rows, and computes otherwise there."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 3.0 if len(x) > 2 and bool(x.any()) else x * 2.0


def test_inputs_on_which_shapes_do_not_tell_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "_PER_NODE", -1)
    graph = fx.symbolic_trace(_Scaled(2.0).eval())
    longer = ExampleInputs((torch.randn(3, 4),))
    assert parting(_Peeking(), graph, ([INPUTS, longer], False)) == ""
    assert "computes otherwise" in parting(_Peeking(), graph, ([longer, INPUTS], False))


def test_where_no_block_has_other_sizes_nothing_runs() -> None:
    assert compute_with_sizes(_Raising(), _Raising(), {}, INPUTS) == set()


def test_norms_that_count_their_batches_are_left_as_they_were() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.fc1, self.fc2 = nn.BatchNorm1d(8), nn.Linear(8, 32), nn.Linear(32, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.fc2(torch.relu(self.fc1(self.norm(x))))  # type: ignore[no-any-return]

    net = nn.Sequential(*(Block() for _ in range(3)))
    result = repl_fx.transform(net, (torch.randn(4, 8),), surrogate="narrow")
    assert result.in_place.model is not None
    counts = [value for name, value in net.named_buffers() if name.endswith("num_batches_tracked")]
    assert len(counts) == 3 and not any(counts)


def test_blocks_that_take_no_larger_sizes_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Block(nn.Module):
        seen: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(8, 32), nn.Linear(32, 8)
            self.register_buffer("seen", torch.ones(16, 16).tril())

        def forward(self, x: Tensor) -> Tensor:
            length = x.shape[1]
            x = (x @ x.mT).masked_fill(self.seen[:length, :length] == 0, 0.0) @ x
            return x + self.fc2(torch.relu(self.fc1(x)))  # type: ignore[no-any-return]

    result = repl_fx.transform(nn.Sequential(*(Block() for _ in range(3))), (torch.randn(2, 5, 8),), surrogate="narrow")
    assert result.in_place.model is not None
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


class _Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MixedHalves(number) for number in range(4))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        # As transformers does in models with recurrent layers.
        if not torch.compiler.is_compiling() and bool((mask == 1).all()):  # type: ignore[union-attr]
            mask = None
        for block in self.blocks:
            x = block(x, mask)
        return x


@pytest.mark.parametrize("products", [side_by_side._PER_NODE, -1])
def test_a_mask_that_code_leaves_out_but_in_a_trace_is_tried(monkeypatch: pytest.MonkeyPatch, products: int) -> None:
    monkeypatch.setattr(side_by_side, "_PER_NODE", products)
    given = torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.int64)
    result = repl_fx.transform(_Masked(), given, surrogate="identity")
    assert "computes with mask, which was a tensor when the model was captured" in result.in_place.reason
    assert torch.equal(result.model(*given), result.module(*given))
