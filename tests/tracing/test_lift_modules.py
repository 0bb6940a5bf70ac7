"""An exported program becomes a graph over the model's own modules and state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import repl_fx
from repl_fx.errors import CaptureError, Untraceable
from repl_fx.graph.captured import attribute
from repl_fx.graph.runtime import check_shape, enter_grad_mode, leaf_call_operator, restore_grad_mode
from repl_fx.graph.signature import bind_arguments
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.tracing.attempt import Attempt, Learned
from repl_fx.tracing.lift_modules import lift_modules
from tests.nets import MlpBlock


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.gain = nn.Parameter(torch.ones(8))
        self.register_buffer("shift", torch.ones(8))

    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            scale = self.fc(x).max()
        y = self.norm(self.fc(x)) * self.gain + self.get_buffer("shift") * torch.tensor([2.0] * 8)
        return {"y": y, "scale": [scale]}


def lifted(model: nn.Module, x: Tensor) -> tuple[fx.Graph, Learned, str]:
    attempt = Attempt(model, [], Learned())
    with attempt.watched({}):
        program = torch.export.export(model, (x,), strict=False)
    before = str(program.graph)
    graph = lift_modules(program, attempt, bind_arguments(model, ExampleInputs((x,))))
    assert str(program.graph) == before
    return graph, attempt.learned, before


def test_calls_state_and_regions_come_back() -> None:
    model = Model()
    graph, learned, _ = lifted(model, torch.randn(3, 8))
    targets = [n.target for n in graph.nodes]
    assert [str(n.target) for n in graph.nodes if n.op == "call_module"] == ["fc", "fc", "norm"]
    assert [n.target for n in graph.nodes if n.op == "get_attr"] == ["gain", "traced_constant_0", "shift"]
    assert len(learned.tensors) == 1 and torch.equal(learned.tensors[0], torch.full((8,), 2.0))
    begin, end = targets.index(enter_grad_mode), targets.index(restore_grad_mode)
    assert begin < targets.index("fc") < end < targets.index("norm")
    assert targets.count(check_shape) == 1
    # The running statistics are the business of the norm itself.
    assert not {leaf_call_operator(), torch.ops.aten.add_.Tensor} & set(targets)
    output = next(n for n in graph.nodes if n.op == "output")
    assert list(output.args[0]) == ["y", "scale"] and isinstance(output.args[0]["scale"], list)
    for node in graph.nodes:
        assert node.op == "output" or "val" in node.meta
        if node.op in ("get_attr", "call_module") and not str(node.target).startswith("traced"):
            assert attribute(model, str(node.target)) is not None


def test_a_second_lift_gives_the_same_graph() -> None:
    model, x = Model(), torch.randn(3, 8)
    assert str(lifted(model, x)[0]) == str(lifted(model, x)[0])


def test_constants_are_shared_when_equal() -> None:
    learned = Learned()
    first = learned.name(torch.ones(2))
    assert learned.name(torch.ones(2)) == first
    assert learned.name(torch.ones(2, dtype=torch.float64)) != first
    assert learned.name(torch.ones(1, 2)) != first
    assert learned.name(torch.zeros(2)) != first
    assert len(learned.tensors) == 4


class Caches(nn.Module):
    """Writes into tensors that are no buffers: one of zeros, and, as told, another of zeros or a view of it."""

    def __init__(self, second: str) -> None:
        super().__init__()
        self.first, self.second = torch.zeros(2, 3), second
        if second == "equal":
            self.other = torch.zeros(2, 3)
        elif second == "view":
            self.other = self.first[:1]
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.first.copy_(x.detach())
        if self.second == "equal":
            self.other.copy_(x.detach() + 1)
        return self.layer(x) * self.first + (self.other if self.second else 0)  # type: ignore[no-any-return]


@pytest.mark.parametrize("second", ["equal", "view"])
def test_a_constant_that_is_written_is_refused_beside_one_that_is_equal_or_shares_its_memory(second: str) -> None:
    with pytest.raises(CaptureError, match=r"writes into a tensor \[2, 3\] that is no buffer"):
        repl_fx.capture(Caches(second), (torch.randn(2, 3),))


def test_a_constant_that_is_written_alone_is_the_graphs_own() -> None:
    model, x = Caches(""), torch.randn(2, 3)
    gm = repl_fx.capture(model, (x,))
    for given in (x, -x):
        assert torch.equal(gm(given), model(given))


def test_a_constant_that_is_written_in_one_mode_is_refused_where_the_other_has_one_for_two() -> None:
    learned, first, second = Learned(), torch.zeros(2), torch.zeros(2)
    graph = fx.Graph()
    read = graph.get_attr(learned.name(first))
    assert learned.name(second) == read.target
    learned.require_written_alone(graph)
    graph.call_function(torch.ops.aten.copy_.default, (read, read))
    with pytest.raises(Untraceable, match="no buffer"):
        learned.require_written_alone(graph)


class ByName(nn.Module):
    """Layers that are called by the names of their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.scale, self.norm = nn.Linear(8, 8), nn.Bilinear(8, 8, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Any:
        return self.scale(input2=self.norm(input=x), input1=self.fc(input=x))


def test_arguments_of_layers_are_by_position() -> None:
    model, x = ByName(), torch.randn(3, 8)
    graph, _, _ = lifted(model, x)
    fc, norm, scale = (next(n for n in graph.nodes if n.target == name) for name in ("fc", "norm", "scale"))
    assert not (fc.kwargs or norm.kwargs or scale.kwargs) and scale.args == (fc, norm)
    assert torch.equal(fx.GraphModule(model, graph)(x), model(x))


def test_a_hook_sees_the_arguments_as_they_were_given() -> None:
    model, x = ByName(), torch.randn(3, 8)
    model.norm.register_forward_pre_hook(lambda module, args, kwargs: None, with_kwargs=True)
    graph, _, _ = lifted(model, x)
    norm = next(n for n in graph.nodes if n.target == "norm")
    assert not norm.args and list(norm.kwargs) == ["input"]


class _Sliced(nn.Module):
    """A model with a second name for its blocks, which it calls in slices."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MlpBlock(8) for _ in range(5))
        self.same = self.blocks

    def forward(self, x: Tensor) -> Tensor:
        for block in (*self.blocks[:2], *self.same[2:][::-1]):
            x = block(x)
        return x


def test_modules_out_of_slices_have_their_own_paths_where_two_names_are_of_one() -> None:
    result = repl_fx.transform(_Sliced(), (torch.randn(2, 8),), surrogate="identity")
    (repeat,) = result.repeats
    assert [block.name for block in repeat.blocks] == [f"blocks.{number}" for number in (0, 1, 4, 3, 2)]
    assert result.in_place.model is not None


class RegionsInside(nn.Module):
    """A region without gradients inside of one of autocast, or around it, with the same weights in both."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.fc, self.kind = nn.Linear(8, 8), kind

    def forward(self, x: Tensor) -> Any:
        if self.kind == "around":
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                y = self.fc(x)
                with torch.enable_grad():
                    z = self.fc(y)
            return y + z
        if self.kind == "for good":
            y = self.fc(x)
            torch.set_grad_enabled(False)
            return y * self.fc(y)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                y = self.fc(x)
            if self.kind == "alone":
                return x + y
            return self.fc(x) + y


@pytest.mark.parametrize("kind", ["alone", "beside", "around", "for good"])
def test_regions_inside_of_others_are_theirs(kind: str) -> None:
    model, x = RegionsInside(kind), torch.randn(3, 8)
    gm = repl_fx.capture(model, (x,), copy=True)
    made: list[tuple[Tensor, Tensor | None]] = []
    for module in (model, gm):
        given = x.clone().requires_grad_()
        with torch.enable_grad():
            y = module(given)
        if y.requires_grad:
            y.float().sum().backward()
        made.append((y, module.get_parameter("fc.weight").grad))
    (ours, one), (theirs, other) = made
    assert torch.equal(ours, theirs) and ours.requires_grad is theirs.requires_grad
    assert one is other is None or (one is not None and other is not None and torch.equal(one, other))
