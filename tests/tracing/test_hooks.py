"""Hooks are followed, or refused by name; none is dropped."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential

import repl_fx
from repl_fx.errors import CaptureError
from repl_fx.graph.runtime import enter_grad_mode
from repl_fx.tracing.capture import capture, check_capture


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act = nn.Linear(8, 8), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.act(self.fc(x))  # type: ignore[no-any-return]


def network(blocks: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), *(Block() for _ in range(blocks)))


LEDGER = Counter({"calls": 0})

X = torch.linspace(-1, 1, 24).view(3, 8)


def triple(module: nn.Module, given: Any, taken: Any) -> Any:
    return (given[0] * 3,)


def twice(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * 2


def test_hooks_that_change_a_value_are_followed() -> None:
    model = network()
    model[1].register_forward_hook(twice)
    model[2].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    model.register_forward_hook(twice)
    gm = capture(model, (X,))
    assert check_capture(model, gm, (X,))
    plain = network()
    assert not torch.equal(gm.eval()(X), plain.eval()(X))
    assert model[1]._forward_hooks and list(model[1]._forward_hooks.values()) == [twice]


def test_hooks_on_leaves_are_kept() -> None:
    model = network()
    seen: list[tuple[int, ...]] = []
    fc = model.get_submodule("1.fc")
    fc.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape)))
    fc.register_full_backward_hook(triple)
    gm = capture(model, (X,))
    assert seen == [], "a trace leaves nothing in what a hook collects"
    assert check_capture(model, gm, (X,))
    seen.clear()
    gm(X).sum().backward()
    model_grad = copy.deepcopy(gm.get_parameter("0.weight").grad)
    assert seen == [(3, 8)]
    model.zero_grad()
    model(X).sum().backward()
    grad = model.get_parameter("0.weight").grad
    assert grad is not None and model_grad is not None and torch.equal(grad, model_grad)


def looks(model: nn.Sequential) -> None:
    model[1].register_forward_hook(lambda module, args, output: None)


def counts(model: nn.Sequential) -> None:
    found = {"calls": 0}

    def count(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        found["calls"] += 1
        return output * 2

    model[1].register_forward_hook(count)


def collects(model: nn.Sequential) -> None:
    kept: list[Tensor] = []

    def collect(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        kept.append(output)
        return output * 2

    model.register_forward_hook(collect)


def by_object(model: nn.Sequential) -> None:
    class Keeps:
        def __init__(self) -> None:
            self.last: Any = None

        def hook(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
            self.last = output
            return output * 2

    model[2].register_forward_hook(Keeps().hook)


def in_the_file(model: nn.Sequential) -> None:
    class Counts:
        def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return noted(output)

    model.register_forward_hook(Counts())


def noted(output: Tensor) -> Tensor:
    LEDGER["calls"] += 1
    return output * 2


def before(model: nn.Sequential) -> None:
    model.register_forward_pre_hook(lambda module, args: None)


def backward(model: nn.Sequential) -> None:
    model[1].register_full_backward_hook(triple)


def backward_before(model: nn.Sequential) -> None:
    model.register_full_backward_pre_hook(lambda module, given: given)


REFUSED = {
    looks: "1 has a forward hook .* that changes no value",
    counts: r"1 has a forward hook \(counts.<locals>.count\) that keeps",
    collects: "the model has a forward hook .* that keeps",
    by_object: "2 has a forward hook .* that keeps",
    in_the_file: "the model has a forward hook .* that keeps .*LEDGER",
    before: "the model has a forward pre-hook .* that changes no value",
    backward: "1 has a backward hook",
    backward_before: "the model has a backward pre-hook",
}


@pytest.mark.parametrize("add", REFUSED, ids=lambda add: add.__name__)
def test_hooks_that_a_graph_would_drop_are_refused(add: Any) -> None:
    model = network()
    add(model)
    hooks = [copy.copy(vars(module)) for module in model.modules()]
    with pytest.raises(CaptureError, match=REFUSED[add]):
        capture(model, (X,))
    assert [vars(module) for module in model.modules()] == hooks


def test_a_hook_on_all_modules_is_refused() -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: None)
    try:
        with pytest.raises(CaptureError, match="a hook on all modules"):
            capture(network(), (X,))
    finally:
        handle.remove()


class OnTensors(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.fc = kind, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        if self.kind == "register_hook":
            x.register_hook(lambda grad: grad * 2)  # type: ignore[no-untyped-call]
        elif self.kind == "retain_grad":
            x.retain_grad()
        elif self.kind == "requires a gradient":
            x = x * 2 if x.requires_grad else x
        elif self.kind == "inference_mode":
            with torch.inference_mode():
                y = x * 2
            return x + y
        elif self.kind == "initial_seed":
            return x * (torch.initial_seed() % 7)
        elif self.kind == "set_default_dtype":
            torch.set_default_dtype(torch.float64)
            x = x * torch.ones(8)
            torch.set_default_dtype(torch.float32)
        elif self.kind == "is a leaf":
            return x * 2 if x.is_leaf else x
        elif self.kind == "is an inference tensor":
            return x * 2 if x.is_inference() else x
        elif self.kind == "asks torch":
            return x * 2 if torch.is_inference(x) else x
        elif self.kind == "its memory":
            x = x * int(x.untyped_storage().nbytes())
        elif self.kind == "its place":
            x = x * int(x.storage_offset())
        elif self.kind == "save_on_cpu":
            with torch.autograd.graph.save_on_cpu():
                return x * x
        return x


@pytest.mark.parametrize(
    "kind", ["register_hook", "retain_grad", "save_on_cpu", "inference_mode", "initial_seed", "set_default_dtype"]
)
def test_hooks_on_tensors_of_a_forward_are_refused(kind: str) -> None:
    own = Tensor.register_hook, Tensor.retain_grad
    with pytest.raises(CaptureError, match=f"the forward calls {kind}, which a graph would drop"):
        capture(OnTensors(kind), (X,))
    assert own == (Tensor.register_hook, Tensor.retain_grad)


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        ("requires a gradient", "whether a tensor requires a gradient"),
        ("is a leaf", "whether a tensor requires a gradient"),
        ("is an inference tensor", "whether a tensor is one of torch.inference_mode"),
        ("asks torch", "whether a tensor is one of torch.inference_mode"),
        ("its memory", "for the memory of a tensor"),
        ("its place", "for the memory of a tensor"),
    ],
)
def test_a_question_that_the_input_decides_is_refused(kind: str, asked: str) -> None:
    with pytest.raises(CaptureError, match=f"asks {asked}, which its input decides"):
        capture(OnTensors(kind), (X,))


class Scaled(nn.Module):
    """A layer whose input is scaled by what is asked of it."""

    def __init__(self, asks: Callable[[Any], int]) -> None:
        super().__init__()
        self.asks, self.fc = asks, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x * self.asks(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("asks", "asked"),
    [
        (lambda x: x.storage().size(), "for the memory of a tensor"),
        (lambda x: 2 if x.is_shared() else 3, "for the memory of a tensor"),
        (lambda x: x.dim_order()[0] + 2, "for the memory of a tensor"),
        (lambda x: 2 if x._is_view() else 3, "whether a tensor is a view"),
        (lambda x: 2 if x._base is None else 3, "whether a tensor is a view"),
        (lambda x: 2 + x._version, "how often a tensor was written to"),
    ],
)
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_what_the_memory_of_an_input_tells_is_refused(asks: Callable[[Any], int], asked: str) -> None:
    with pytest.raises(CaptureError, match=f"asks {asked}, which its input decides"):
        capture(Scaled(asks), (X,))


def test_a_part_leaves_a_module_with_a_backward_hook_eager() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(network(), network())
    calls: list[int] = []
    model.register_full_backward_hook(lambda module, given, taken: calls.append(1))
    captured = repl_fx.capture_parts(model, (X,))
    assert [part.path for part in captured.parts] == ["0", "1"]
    calls.clear()
    captured.module(X.clone().requires_grad_()).sum().backward()
    assert calls == [1]


def test_a_block_whose_layer_has_a_hook_stays() -> None:
    model = network(5)
    model.get_submodule("2.fc").register_forward_hook(lambda module, args, output: None)
    result = repl_fx.transform(model, (X,), surrogate="identity")
    refused = {r.block: r.reason for r in result.plan.refusals}
    assert "layer 2.fc has a forward hook" in refused["2"]
    assert [r.block for r in result.plan.replacements] == ["4"]


def test_a_layer_whose_output_transformers_captures_where_it_is_asked_for_goes_with_its_block() -> None:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        pass

    hook.__module__ = "transformers.utils.output_capturing"
    model = network(5)
    model.get_submodule("2.fc").register_forward_hook(hook)
    result = repl_fx.transform(model, (X,), surrogate="identity")
    assert [r.block for r in result.plan.replacements] == ["2", "4"]


def test_a_forward_put_into_one_module_is_traced_into() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
    own = model[1].forward
    model[1].forward = lambda x: own(x) * 3
    gm = capture(model, (X,))
    assert check_capture(model, gm, (X,))


class Checkpointed(nn.Sequential):
    """Keeps what goes into each half alone for the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint_sequential(list(self), 2, x, use_reentrant=False)  # type: ignore[no-untyped-call,no-any-return]


def test_checkpoints_within_a_checkpoint() -> None:
    torch.manual_seed(0)
    model = Checkpointed(*(Checkpointed(Block(), Block()) for _ in range(3)))
    gm = capture(model, (X,))
    assert gm.meta["capture"].switches == 0
    assert not any(node.target is enter_grad_mode for node in gm.graph.nodes)
    expected = torch.autograd.grad(model(X).sum(), list(model.parameters()))
    assert all(map(torch.equal, torch.autograd.grad(gm(X).sum(), list(gm.parameters())), expected))
