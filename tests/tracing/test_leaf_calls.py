"""Leaf modules stand aside during a trace, come back as calls, and are left as they were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from repl_fx.errors import CaptureError
from repl_fx.tracing.capture import capture, check_capture
from repl_fx.tracing.leaf_calls import LeafCalls, record_leaf_calls
from repl_fx.tracing.leaves import is_leaf


class Plain(nn.Module):
    """A module of the user's own without parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class Noise(nn.Module):
    """A module of the user's own that draws random numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Scaled(nn.Module):
    """A module of the user's own that depends on the mode, by a function."""

    def forward(self, x: Tensor) -> Tensor:
        return scaled_in_training(x, self)


def scaled_in_training(x: Tensor, module: nn.Module) -> Tensor:
    return x * 2 if module.training else x


class Scale(nn.Module):
    """A module of the user's own with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class Padded(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


class Doubled(nn.Linear):
    """Does something around its forward."""

    def __call__(self, input: Tensor) -> Tensor:
        return super().__call__(input) * 2  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("module", "leaf"),
    [
        (nn.Linear(2, 2), True),
        (Padded(2, 2), True),
        (Doubled(2, 2), False),
        (nn.Dropout(), True),
        (nn.LSTM(2, 2), True),
        (Plain(), False),
        (Noise(), True),
        (Scaled(), True),
        (Scale(), False),
        (nn.Sequential(nn.ReLU()), False),
        (nn.MultiheadAttention(4, 2), False),
        (nn.ModuleList(), False),
        (nn.ParameterList(), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_leaf_is(module: nn.Module, leaf: bool) -> None:
    assert is_leaf(module) is leaf


def calls(gm: fx.GraphModule) -> list[str]:
    return [str(n.target) for n in gm.graph.nodes if n.op == "call_module"]


def test_leaves_are_calls_and_the_rest_is_operators() -> None:
    model = nn.Sequential(nn.Linear(8, 8), Scale(), Plain(), Padded(8, 8), nn.Sequential(nn.ReLU(), nn.Dropout(0.1)))
    gm = capture(model, (torch.randn(3, 8),))
    assert calls(gm) == ["0", "3", "4.0", "4.1"]
    assert [str(n.target) for n in gm.graph.nodes if n.op == "get_attr"] == ["1.gain"]
    assert torch.ops.aten.mul.Tensor in [n.target for n in gm.graph.nodes]


def test_a_module_that_is_a_leaf_itself() -> None:
    model, x = nn.Linear(8, 8), torch.randn(3, 8)
    gm = capture(model, (x,))
    assert calls(gm) == [] and list(gm.state_dict()) == ["weight", "bias"]
    assert torch.equal(gm(x), model(x))


class Parts(NamedTuple):
    low: Tensor
    high: Tensor


class Splits(nn.Module):
    def forward(self, x: Tensor, *, at: int = 4, more: dict[str, Tensor] | None = None) -> Any:
        extra = 0 if more is None or not self.training else more["bias"]
        return {"parts": Parts(x[:, :at] + extra, x[:, at:]), "none": None, "number": at}


class UsesSplits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.splits, self.fc = Splits(), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        found = self.splits(x, more={"bias": x[:, :4]})
        assert found["none"] is None
        return self.fc(found["parts"].high) * found["number"] + found["parts"].low  # type: ignore[no-any-return]


def test_nested_arguments_and_results_of_a_leaf() -> None:
    model, x = UsesSplits(), torch.randn(3, 8)
    gm = capture(model, (x,))
    assert calls(gm) == ["splits", "fc"]
    assert check_capture(model, gm, (x,))


@dataclass
class Box:
    value: Tensor


class Boxes(nn.Module):
    def forward(self, x: Tensor) -> Box:
        return Box(x * 2)


class UsesBoxes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.boxes, self.last = nn.Linear(8, 8), Boxes(), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.boxes(self.first(x)).value)  # type: ignore[no-any-return]


def test_a_leaf_that_returns_an_object_is_inlined() -> None:
    model, x = UsesBoxes(), torch.randn(3, 8)
    gm = capture(model, (x,))
    assert calls(gm) == ["first", "last"]
    assert check_capture(model, gm, (x,))


def test_what_a_leaf_calls_itself_is_part_of_it() -> None:
    class Hidden(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            # Not a child: a list hides it from the module tree.
            self.inner = [inner]

        def forward(self, x: Tensor) -> Any:
            return self.inner[0](x) * (2 if self.training else 3)

    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(8, 8), relu, Hidden(relu))
    x = torch.randn(3, 8)
    gm = capture(model, (x,))
    assert calls(gm) == ["0", "1", "2"]
    assert check_capture(model, gm, (x,))


def test_what_a_class_does_around_its_forward_is_traced() -> None:
    model, x = nn.Sequential(nn.Linear(8, 8), Doubled(8, 8)), torch.randn(3, 8)
    gm = capture(model, (x,))
    assert torch.equal(gm(x), model(x)) and check_capture(model, gm, (x,))


class Borrowed(nn.Module):
    """Calls a module on the tensors of another."""

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(8, 8), module, nn.BatchNorm1d(8)
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        assert self.norm.running_var is not None
        made = self.first.weight * 2 if self.name.endswith("weight") else self.norm.running_var + 1
        other = {self.name: made}
        return self.second(torch.func.functional_call(self.second, other, (self.norm(self.first(x)),)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.Linear(8, 8), "weight"),
        (nn.Sequential(nn.Linear(8, 8), nn.ReLU()), "0.weight"),
        (nn.BatchNorm1d(8), "running_mean"),
    ],
    ids=["a layer", "a layer inside", "a buffer"],
)
def test_a_layer_that_is_called_on_other_tensors_than_its_own(module: nn.Module, name: str) -> None:
    model, x = Borrowed(module, name), torch.randn(3, 8)
    gm = capture(model, (x,))
    assert check_capture(model, gm, (x,)).differences == ()
    if name == "weight":
        # The call on its own tensors is one as before.
        assert calls(gm).count("second") == 1


class Toggles(nn.Module):
    """Calls layers in other modes than its own for a while, and keeps one in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.drop, self.norm, self.frozen = nn.Linear(8, 8), nn.Dropout(), nn.BatchNorm1d(8), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        self.frozen.eval()
        mode = self.training
        self.eval()
        x = self.norm(self.drop(self.fc(x)))
        self.train(mode)
        self.frozen.eval()
        return self.norm(self.drop(self.frozen(x)))  # type: ignore[no-any-return]


def test_layers_in_other_modes_for_a_while() -> None:
    model, x = nn.Sequential(Toggles(), nn.Linear(8, 8)), torch.randn(3, 8)
    gm = capture(model, (x,))
    assert check_capture(model, gm, (x,)).differences == ()
    assert {"0.frozen", "1"} <= set(calls(gm))
    model[0].drop.register_full_backward_hook(lambda *_: None)  # type: ignore[union-attr]
    with pytest.raises(CaptureError, match=r"drop the hooks of Dropout.*, which it cannot call as a whole"):
        capture(model, (x,))


class Held(torch.autograd.Function):
    """Doubles by a function that it is given, and triples gradients."""

    @staticmethod
    def forward(ctx: Any, function: Any, x: Tensor) -> Tensor:
        return function(x)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0] * 3


held: Any = Held.apply


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.fc, self.reentrant = nn.Linear(8, 8), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return x + checkpoint(lambda y: self.fc(y).relu(), x, use_reentrant=self.reentrant)  # type: ignore[no-any-return]


def test_a_backward_that_a_graph_would_drop_is_refused() -> None:
    class Holds(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Held.apply(torch.relu, x)  # type: ignore[no-any-return]

    class HoldsApply(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return held(torch.relu, x)  # type: ignore[no-any-return]

    x = torch.randn(3, 8)
    for module in (Holds(), HoldsApply()):
        with pytest.raises(CaptureError, match="drop the backward of the autograd function Held, which takes or"):
            capture(nn.Sequential(nn.Linear(8, 8), module), (x,))
    with pytest.raises(CaptureError, match="drop the gradients of a checkpoint with use_reentrant=True"):
        capture(nn.Sequential(nn.Linear(8, 8), Checkpointed(reentrant=True)), (x,))
    model = nn.Sequential(nn.Linear(8, 8), Checkpointed(reentrant=False))
    assert check_capture(model, capture(model, (x,)), (x,))


class Tripled(torch.autograd.Function):
    """Triples its argument in place, and multiplies gradients by five."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(3)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * 5


class Drawn(torch.autograd.Function):
    """Draws a number, and lets gradients through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x + torch.rand(())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class Dropped(nn.Module):
    """Applies a function to a layer's output, and goes on with what it was given."""

    def __init__(self, function: type[torch.autograd.Function], *, view: bool) -> None:
        super().__init__()
        self.fc, self.function, self.view = nn.Linear(4, 4), function, view

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x)
        apply: Any = self.function.apply
        apply(y[:, :2] if self.view else y)
        return y * torch.rand(())


@pytest.mark.parametrize(("function", "view"), [(Tripled, False), (Tripled, True), (Drawn, False)])
def test_functions_that_do_more_than_return_a_value_run_where_nothing_takes_it(
    function: type[torch.autograd.Function], view: bool
) -> None:
    model, x = Dropped(function, view=view), torch.randn(3, 4)
    gm = capture(model, (x,))
    found = []
    for one in (model, gm):
        torch.manual_seed(0)
        given = x.clone().requires_grad_()
        out = one(given)
        out.sum().backward()
        found.append((out, given.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_modules_are_unpatched_however_the_trace_ends() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    apply = torch.autograd.Function.__dict__["apply"]
    with pytest.raises(RuntimeError, match="stop"), record_leaf_calls(model, LeafCalls()):
        assert all("_call_impl" in vars(module) for module in model)
        raise RuntimeError("stop")
    assert not any("_call_impl" in vars(module) for module in model.modules())
    assert torch.autograd.Function.__dict__["apply"] is apply


def test_passing_through_is_noted_for_evaluation() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Identity(), nn.ReLU())
    gm = capture(model, (torch.randn(3, 8),))
    noted = {str(n.target): n.meta["passes_through"] for n in gm.graph.nodes if n.op == "call_module"}
    assert noted == {"0": False, "1": True, "2": True, "3": False}


@torch.library.custom_op("repl_fx_test::doubled", mutates_args=())
def doubled(x: Tensor, times: int) -> Tensor:
    return x * 2.0**times


@doubled.register_fake
def _doubled_fake(x: Tensor, times: int) -> Tensor:
    return torch.empty_like(x)


doubled.register_autograd(
    lambda context, gradient: (gradient * 3.0**context.times, None),
    setup_context=lambda ctx, inputs, output: setattr(ctx, "times", inputs[1]),
)


class Doubling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = doubled(x + self.weight, 2)
        return result


def test_an_operator_of_a_library_keeps_its_backward() -> None:
    model, x = Doubling(), torch.randn(3, 4)
    gm = capture(model, (x,))
    assert torch.ops.repl_fx_test.doubled.default in {node.target for node in gm.graph.nodes}
    assert check_capture(model, gm, (x,))
    gm(x).sum().backward()
    # The backward that was registered for the operator, which is not that of its forward.
    torch.testing.assert_close(model.weight.grad, torch.full((4,), 27.0))


class Shifts(nn.Module):
    """Writes into what a layer makes of a value that takes a gradient, as RWKV shifts its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(4))
        self.shift = nn.ZeroPad2d((0, 0, 1, -1))

    def forward(self, x: Tensor) -> Tensor:
        shifted: Tensor = self.shift(x * self.scale)
        shifted[:, 0] = x[:, -1]
        return shifted


def test_what_a_layer_returns_can_be_written_into() -> None:
    model = Shifts()
    gm = capture(model, (torch.randn(2, 3, 4),))
    x = torch.randn(2, 3, 4)
    assert torch.equal(gm(x), model(x))
    (ours,) = torch.autograd.grad(gm(x).sum(), [*gm.parameters()])
    (theirs,) = torch.autograd.grad(model(x).sum(), [*model.parameters()])
    assert torch.equal(ours, theirs)


class Queries(nn.Module):
    """Calls layers on numbers that it knows, as detectors embed the places of their queries."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Embedding(8, 4)
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        shift = torch.tensor([1.0, 2.0, 3.0, 4.0])
        shifted = self.layer(shift) if shift.is_contiguous() else shift
        return x + self.places(torch.arange(3)).sum(0) + self.places(torch.tensor([5])) + shifted  # type: ignore[no-any-return]


def test_layers_are_called_on_constants() -> None:
    model, x = Queries(), torch.randn(2, 4)
    gm = capture(model, (x,))
    assert len(gm.graph.find_nodes(op="call_module", target="places")) == 2
    assert check_capture(model, gm, (x,))


class CountsLike(nn.Module):
    """Reads, in an autocast region of its own, the dtype that a layer returns there."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            y = self.layer(x)
            # Numbers of bfloat16 have eight bits.
            return y.float() + torch.arange(300, 304, dtype=y.dtype)  # type: ignore[no-any-return]


def test_a_layer_under_autocast_returns_what_it_returns_there() -> None:
    model, x = CountsLike().eval(), torch.randn(2, 4)
    gm = capture(model, (x,))
    assert gm.graph.find_nodes(op="call_module", target="layer")[0].meta["val"].dtype is torch.bfloat16
    assert torch.equal(gm(x), model(x))
    assert check_capture(model, gm, (x,))
