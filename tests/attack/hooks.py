"""Hooks of every kind on random networks, and the ledger that counts their runs."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

# How often each hook ran, by "kind@path"; whoever compares two models clears it before each.
LEDGER: Counter[str] = Counter()

_SCALE = 1.25


def _changed(value: Any) -> Any:
    """A tensor times a number, in whatever holds it; the rest as it is."""
    if isinstance(value, Tensor):
        return value * _SCALE if value.is_floating_point() else value
    if type(value) in (tuple, list):
        return type(value)(_changed(item) for item in value)
    return value


class Counted:
    """A hook that counts its runs and changes what it may change, or only looks.

    Args:
        label: under what it counts.
        change: given the arguments of the hook, what it returns; None to only look.
        count: whether it counts, which is Python state that a graph cannot have.
    """

    def __init__(self, label: str, change: Callable[..., Any] | None, count: bool) -> None:
        self.label, self.change, self.count = label, change, count

    def __call__(self, *args: Any) -> Any:
        if self.count:
            LEDGER[self.label] += 1
        return None if self.change is None else self.change(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Counted:
        return self


class TensorHook(nn.Module):
    """Registers a hook on the stream in each forward."""

    def __init__(self, change: bool, count: bool) -> None:
        super().__init__()
        self.hook = Counted("tensor", _changed if change else None, count)

    def forward(self, x: Tensor) -> Tensor:
        y = x * 1.0
        if y.requires_grad:
            y.register_hook(self.hook)  # type: ignore[no-untyped-call]
        return y


# Of the file, so that they can be pickled.
def _changed_output(module: nn.Module, args: Any, out: Any) -> Any:
    return _changed(out)


def _changed_output_of_kwargs(module: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
    return _changed(out)


def _changed_args(module: nn.Module, args: Any) -> Any:
    return _changed(args)


def _changed_args_of_kwargs(module: nn.Module, args: Any, kwargs: Any) -> Any:
    return _changed(args), kwargs


def _changed_inputs(module: nn.Module, inputs: Any, outputs: Any) -> Any:
    return _changed(inputs)


def _changed_outputs(module: nn.Module, outputs: Any) -> Any:
    return _changed(outputs)


def _halved(parameter: Tensor) -> None:
    if parameter.grad is not None:
        parameter.grad.mul_(0.5)


def _on_forward(module: nn.Module, path: str, change: bool, count: bool) -> None:
    module.register_forward_hook(Counted(f"forward@{path}", _changed_output if change else None, count))


def _on_forward_kwargs(module: nn.Module, path: str, change: bool, count: bool) -> None:
    hook = Counted(f"forward_kwargs@{path}", _changed_output_of_kwargs if change else None, count)
    module.register_forward_hook(hook, with_kwargs=True)


def _on_pre(module: nn.Module, path: str, change: bool, count: bool) -> None:
    module.register_forward_pre_hook(Counted(f"pre@{path}", _changed_args if change else None, count))


def _on_pre_kwargs(module: nn.Module, path: str, change: bool, count: bool) -> None:
    hook = Counted(f"pre_kwargs@{path}", _changed_args_of_kwargs if change else None, count)
    module.register_forward_pre_hook(hook, with_kwargs=True)


def _on_backward(module: nn.Module, path: str, change: bool, count: bool) -> None:
    module.register_full_backward_hook(Counted(f"backward@{path}", _changed_inputs if change else None, count))


def _on_backward_pre(module: nn.Module, path: str, change: bool, count: bool) -> None:
    module.register_full_backward_pre_hook(Counted(f"backward_pre@{path}", _changed_outputs if change else None, count))


def _on_parameter(module: nn.Module, path: str, change: bool, count: bool) -> None:
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            hook = Counted(f"parameter@{path}.{name}", _changed if change else None, count)
            parameter.register_hook(hook)  # type: ignore[no-untyped-call]
            return


def _on_accumulated(module: nn.Module, path: str, change: bool, count: bool) -> None:
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            hook = Counted(f"accumulated@{path}.{name}", _halved if change else None, count)
            parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
            return


KINDS: dict[str, Callable[[nn.Module, str, bool, bool], None]] = {
    "forward": _on_forward,
    "forward_kwargs": _on_forward_kwargs,
    "pre": _on_pre,
    "pre_kwargs": _on_pre_kwargs,
    "backward": _on_backward,
    "backward_pre": _on_backward_pre,
    "parameter": _on_parameter,
    "accumulated": _on_accumulated,
}


def attach(model: nn.Module, kind: str, rng: random.Random) -> str:
    """Put a hook on the model, on a module with children, or on a layer; or the same on all modules of one name.

    Returns:
        What was done, in words.
    """
    modules = dict(model.named_modules())
    leaves = [path for path, module in modules.items() if path and not list(module.children())]
    inner = [path for path, module in modules.items() if path and list(module.children())]
    where = rng.choice(["leaf", "block", "model", "every"])
    change, count = rng.random() < 0.5, rng.random() < 0.5
    if where == "every":
        last = rng.choice([path.rpartition(".")[2] for path in leaves])
        paths = [path for path in leaves if path.rpartition(".")[2] == last]
    else:
        paths = [{"leaf": rng.choice(leaves), "block": rng.choice(inner or leaves), "model": ""}[where]]
    for path in paths:
        KINDS[kind](modules[path], path, change, count)
    return f"{kind} hook on {', '.join(paths) or 'the model'}{', changes' * change}{', counts' * count}"
