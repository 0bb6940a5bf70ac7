"""Functions that a captured graph calls besides torch's: mode switches, regions, checks of constant inputs.

A check raises `BadInput` where the graph was specialised to other inputs than it is given.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from types import SimpleNamespace
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import has_side_effect

from repl_fx import _torch
from repl_fx.arguments import in_words
from repl_fx.errors import BadInput


def leaf_call_operator() -> Any:
    """The operator that stands for a leaf call while a model is traced; no finished graph has it."""
    return torch.ops.repl_fx.leaf_call.default


def select_mode(training: bool, when_training: Any, when_evaluating: Any) -> Any:
    """The one of two values that belongs to the current mode."""
    return when_training if training else when_evaluating


@has_side_effect
def check_modes(name: str, training: bool, *others: bool) -> None:
    """Refuse a call where modules are in different modes and the graph has what they do in one mode alone."""
    if any(other is not training for other in others):
        modes = ("training", "evaluation") if training else ("evaluation", "training")
        raise BadInput(
            f"a {name} is in {modes[0]} mode and a module that it calls, or that is called before it, in {modes[1]} "
            "mode, where a graph has what they do in the same one; run the model itself, or put them in one mode"
        )


@has_side_effect
def check_constant(value: Any, expected: Any, name: str) -> None:
    """Refuse an argument that differs, in kind or in value, from the one the graph was captured with."""
    if not same_constant(value, expected):
        raise BadInput(
            f"{name} was captured as {_words(expected)}, not {_words(value)}; capture the model again with it"
        )


def same_constant(value: Any, expected: Any) -> bool:
    """Tell whether two plain values are one to every model: of one class (True is not 1, nor 1 is 1.0), and equal.

    NaN is the same as NaN, and -0.0 is not 0.0.
    """
    if type(value) is not type(expected):
        return False
    return bool(repr(value) == repr(expected) if isinstance(value, float) else value == expected)


def _words(value: Any) -> str:
    """A value of an argument in the words of a message, in one line."""
    if value is ...:
        return "left out"
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return repr(value) if isinstance(value, (bool, int, float, str, torch.dtype, torch.device)) else in_words(value)


@has_side_effect
def check_items(value: Any, expected: int, name: str) -> None:
    """Refuse a sequence of another length than the one the graph was captured with."""
    if not isinstance(value, Sequence):
        raise BadInput(f"{name} was captured as a sequence, not {_words(value)}; capture the model again with it")
    if len(value) != expected:
        raise BadInput(
            f"{name} has length {len(value)}, but was captured with {expected}; capture the model again with it"
        )


@has_side_effect
def check_keys(value: Any, expected: Sequence[Any], name: str) -> None:
    """Refuse a mapping with other keys than those the graph was captured with: the source may ask for any of them."""
    if not isinstance(value, Mapping):
        raise BadInput(f"{name} was captured as a mapping, not {_words(value)}; capture the model again with it")
    lacking = [key for key in expected if key not in value]
    added = [key for key in value if key not in expected]
    if lacking or added:
        there = ", ".join(repr(other) for other in value) or "none"
        raise BadInput(
            f"{name} has {'no' if lacking else 'the'} key {(lacking or added)[0]!r}, which the graph was captured "
            f"{'with' if lacking else 'without'}; its keys are {there}"
        )


def require_no_proxy(value: Any) -> None:
    """Refuse what torch.fx hands to code that it traces."""
    if isinstance(value, fx.Proxy):
        # The tracer by which torch.fx unpickles.
        if type(value.tracer).__name__ == "KeepModules":
            raise BadInput(
                "this is the pickle of an fx.GraphModule that was made of a graph of repl-fx, and torch.fx keeps its "
                "code alone; pickle the graph of repl-fx (result.module), and make the other of it again"
            )
        raise BadInput(
            "torch.fx traces Python code, and this is a graph already; work on its own (result.module.graph), or "
            "trace the model in place (result.model)"
        )


@has_side_effect
def check_shape(tensor: Any, expected: tuple[int | None, ...], name: str) -> None:
    """Refuse a tensor whose fixed sizes differ from those the graph was captured with; None stands for any size."""
    if not isinstance(tensor, torch.Tensor):
        require_no_proxy(tensor)
        raise BadInput(f"{name} was captured as a tensor, not {_words(tensor)}; capture the model again with it")
    found = tuple(tensor.shape)
    if len(found) != len(expected) or any(e is not None and f != e for f, e in zip(found, expected, strict=True)):
        sizes = ", ".join("any" if size is None else str(size) for size in expected)
        raise BadInput(
            f"{name} has shape {list(found)}, but was captured as [{sizes}]; capture the model again with it"
        )


class _OnTensors(ast.NodeTransformer):
    """Writes `and`, `or` and `not`, which ask for one truth, as operators that tensors have."""

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        """`a and b` as `a & b`, `a or b` as `a | b`."""
        kind: ast.operator = ast.BitAnd() if isinstance(node.op, ast.And) else ast.BitOr()
        first, *others = map(self.visit, node.values)
        joined: ast.expr = reduce(lambda a, b: ast.BinOp(a, kind, b), others, first)
        return joined

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        """`not a` as `~a`."""
        inside = self.visit(node.operand)
        return ast.UnaryOp(ast.Invert() if isinstance(node.op, ast.Not) else node.op, inside)


def _on_tensors(condition: str, names: Sequence[str]) -> Callable[..., Any]:
    """A function of sizes, given as tensors of no dimensions, that says whether a condition holds."""
    known = {
        "torch": SimpleNamespace(sym_float=torch.Tensor.double, _sym_sqrt=torch.sqrt),
        "math": SimpleNamespace(floor=torch.floor, ceil=torch.ceil, trunc=torch.trunc),
        "max": lambda *sizes: reduce(torch.maximum, map(torch.as_tensor, sizes)),
        "min": lambda *sizes: reduce(torch.minimum, map(torch.as_tensor, sizes)),
    }
    tree = _OnTensors().visit(ast.parse(f"lambda {', '.join(names)}: {condition}", mode="eval"))
    on_tensors: Callable[..., Any] = eval(compile(ast.fix_missing_locations(tree), condition, "eval"), known)
    return on_tensors


def truth_of(condition: str, names: Sequence[str]) -> Callable[..., bool]:
    """A function of sizes, in the order of their names, that says whether a condition on them holds."""
    holds: Callable[..., bool] = eval(f"lambda {', '.join(names)}: {condition}", {"math": math, "torch": torch})

    def truth(*sizes: int) -> bool:
        try:
            return holds(*sizes)
        except ZeroDivisionError:
            # The source divides, too.
            return False

    return truth


@dataclass(frozen=True)
class SizeCheck:
    """Refuses inputs of sizes for which the source takes another way than the one that was traced, or none.

    Attributes:
        condition: holds for the sizes that the graph is right for; an expression of Python's.
        sizes: the names in it, each with the number of the tensor and the dimension that it is the size of.
        words: the condition as people read it: `x.shape[1] <= 6`.
        place: the line of the model that asks, as the end of a phrase; empty where it is not known.
        limit: the source itself stops where the condition does not hold.
        within: the paths of the modules whose code asks.
    """

    condition: str
    sizes: tuple[tuple[str, int, int], ...]
    words: str
    place: str
    limit: bool = False
    within: tuple[str, ...] = ()
    __name__ = "check_sizes"

    def __post_init__(self) -> None:
        # The code is the same for as long as the check lives, and is made once.
        object.__setattr__(self, "_truth", truth_of(self.condition, [name for name, _, _ in self.sizes]))
        # fx drops calls without users of all other functions.
        has_side_effect(self)

    def holds(self, *tensors: torch.Tensor) -> bool:
        """Tell whether the condition holds for these inputs; a symbolic truth where their sizes are symbols."""
        return self.holds_for(*(tensors[number].shape[dim] for _, number, dim in self.sizes))

    def holds_for(self, *sizes: int) -> bool:
        """Tell whether the condition holds for sizes, in the order of `sizes`."""
        holds: bool = vars(self)["_truth"](*sizes)
        return holds

    def truth(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Tell whether the condition holds, as a tensor of no dimensions, for graphs that cannot raise an error."""
        # A trace takes two sizes that are one symbol for the same number.
        count = _counted if self.alike else _size_of
        sizes = (count(tensors[number], dim) for _, number, dim in self.sizes)
        holds: torch.Tensor = _on_tensors(self.condition, tuple(name for name, _, _ in self.sizes))(*sizes)
        return holds

    def at(self, numbers: Mapping[str, int]) -> SizeCheck:
        """The check where some sizes, by name, are these alone."""
        condition = self.condition
        for name, number in numbers.items():
            condition = re.sub(rf"\b{name}\b", str(number), condition)
        return replace(self, condition=condition, sizes=tuple(size for size in self.sizes if size[0] not in numbers))

    @cached_property
    def fails_at_one(self) -> bool:
        """Tell whether the condition is on one size, and fails where that is 1 and at no other size up to 1,000."""
        if len(self.sizes) != 1:
            return False
        first, *others = (self.holds_for(size) for size in range(1, 1001))
        return not first and all(others)

    @cached_property
    def alike(self) -> bool:
        """Tell whether the condition is that two sizes are equal, which have one symbol in the graph."""
        return self.condition == " == ".join(name for name, _, _ in self.sizes)

    def __call__(self, *tensors: torch.Tensor) -> None:
        """Refuse these inputs where the condition does not hold.

        Raises:
            BadInput: the condition, the sizes found, and the line of the model that asks.
        """
        if not self.holds(*tensors):
            found = ", ".join(str(list(tensor.shape)) for tensor in tensors)
            if self.limit:
                raise BadInput(f"inputs of shape {found}: the model takes only {self.words}{self.place}; give others")
            raise BadInput(
                f"inputs of shape {found}: the model goes another way with them than where {self.words}{self.place}, "
                "as it was captured; capture it again with them"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return SizeCheck, (self.condition, self.sizes, self.words, self.place, self.limit, self.within)


def _size_of(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    return torch.scalar_tensor(tensor.shape[dim], dtype=torch.int64)


def _counted(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """A size by the elements that there are, whatever a trace knows of it; other dimensions may be empty."""
    others = [other for other in range(tensor.ndim) if other != dim]
    for other in others:
        tensor = tensor[(slice(None),) * other + (slice(1),)]
    line = tensor.sum(others) if others else tensor
    return torch.logical_or(line == line, line != line).sum()


@has_side_effect
def check_condition(value: Any, expected: bool, name: str) -> None:
    """Refuse inputs, by a condition computed from them, for which the source takes another way."""
    reason = (
        f"{name} was {expected} for the inputs the graph was captured with and is {not expected} for these; "
        "capture the model again with these"
    )
    if torch.compiler.is_compiling() and isinstance(value, torch.Tensor):
        torch._assert_async(value if expected else torch.logical_not(value), reason)
    elif bool(value) is not expected:
        raise BadInput(reason)


# Settings of torch that a forward may ask for, by the names of the functions in torch that tell them.
SETTINGS: Mapping[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        torch.is_grad_enabled,
        torch.is_inference_mode_enabled,
        torch.are_deterministic_algorithms_enabled,
        torch.get_default_dtype,
        torch.get_num_threads,
        torch.get_float32_matmul_precision,
        torch.is_autocast_enabled,
        torch.get_autocast_dtype,
    )
}


@has_side_effect
def check_setting(setting: str, given: tuple[str, ...], expected: Any, place: str) -> None:
    """Refuse a call under another setting of torch than the graph was captured under, which the source asks for.

    Args:
        setting: a name in `SETTINGS`.
        given: the arguments of the question: for autocast, the kind of device.
    """
    found = SETTINGS[setting](*given)
    if found != expected:
        asked = f"torch.{setting}({', '.join(map(repr, given))})"
        raise BadInput(
            f"the model asks for {asked}{place}, which was {expected!r} when it was captured and is "
            f"{found!r} now, where it computes otherwise; run the graph as it was captured, or the model itself"
        )


@has_side_effect
def check_layout(
    tensor: torch.Tensor, layout: torch.memory_format | None, expected: Sequence[int], place: str
) -> torch.Tensor:
    """The tensor itself; one of other strides than in the capture, which the source asks for, is refused.

    Args:
        layout: the source asks whether the tensor is contiguous in this layout, and `expected` is the one answer; None
            where it asks for the strides. Those of dimensions of one element say nothing.
    """
    if layout is None:
        found = [b if size < 2 else a for a, b, size in zip(tensor.stride(), expected, tensor.shape, strict=True)]
    else:
        found = [int(tensor.is_contiguous(memory_format=layout))]
    if found != list(expected):
        raise BadInput(
            f"the model asks for the strides of a tensor{place}, and those of this call may lead it another way than "
            "the capture took; run the model itself, or capture it with inputs of these strides"
        )
    return tensor


@has_side_effect
def enter_grad_mode(enabled: bool) -> bool:
    """Begin a `torch.no_grad` or `torch.enable_grad` region; returns the mode to restore."""
    previous = torch.is_grad_enabled()
    torch._C._set_grad_enabled(enabled)
    return previous


@has_side_effect
def restore_grad_mode(previous: bool) -> None:
    """End the region begun by `enter_grad_mode`."""
    torch._C._set_grad_enabled(previous)


@has_side_effect
def enter_autocast(device_type: str, dtype: torch.dtype | None, enabled: bool, cache: bool | None) -> Any:
    """Begin a `torch.autocast` region that the source model itself opens."""
    return _torch.enter_autocast(device_type, dtype, enabled, cache)


@has_side_effect
def exit_autocast(mode: Any) -> None:
    """End the region begun by `enter_autocast`."""
    _torch.exit_autocast(mode)


# What ends a region, by what begins it; it takes what that returned.
REGIONS: dict[Any, Callable[[Any], None]] = {enter_grad_mode: restore_grad_mode, enter_autocast: exit_autocast}


@has_side_effect
def assign_buffer(owner: nn.Module, name: str, value: torch.Tensor) -> None:
    """Rebind a buffer, as an assignment in the source's forward does."""
    owner._buffers[name] = value


@has_side_effect
def call_module(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call a module that a mode switch got as an argument."""
    return module(*args, **kwargs)


@dataclass(frozen=True)
class AutogradCall:
    """A call of a `torch.autograd.Function`, whose backward an exported graph would lose.

    Attributes:
        function: the class with the `forward` and the `backward`.
        has_effect: the `forward` may change what it is given, or draw random numbers.
    """

    function: type[torch.autograd.Function]
    has_effect: bool = False

    @property
    def __name__(self) -> str:
        return self.function.__name__

    def __call__(self, *args: Any) -> Any:
        """Apply the function."""
        apply: Any = self.function.apply
        return apply(*args)


class ModeSwitch(nn.Module):
    """A stretch of the graph of which training and evaluation have different versions.

    Both versions take the same inputs and return the same number of values.
    """

    # One version may change a buffer in place; fx must not take an unused call for dead code.
    _is_impure = True

    def __init__(self, when_training: fx.GraphModule, when_evaluating: fx.GraphModule) -> None:
        super().__init__()
        self.when_training = when_training
        self.when_evaluating = when_evaluating

    @property
    def versions(self) -> tuple[fx.GraphModule, fx.GraphModule]:
        """Those of training and of evaluation."""
        return self.when_training, self.when_evaluating

    def forward(self, *inputs: Any) -> Any:
        """Run the version of the current mode."""
        return self.when_training(*inputs) if self.training else self.when_evaluating(*inputs)
