"""Hooks that a graph would drop: followed, or refused by name, so that the module stays eager.

A leaf module keeps its hooks, because the graph calls it as the source does. A module that is traced into is not called
any more: a forward hook of it that changes a value is traced like the forward, one that looks, counts or keeps is
refused, and so are backward hooks. A hook on a tensor inside the forward belongs to the one tensor of the trace.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from repl_fx._torch import global_module_hooks
from repl_fx.errors import CaptureError, Untraceable
from repl_fx.running.alone import is_bystander
from repl_fx.running.python_state import PythonChange, PythonState
from repl_fx.tracing.asking import is_machinery, module_of
from repl_fx.tracing.leaves import is_leaf

_FORWARD = {"_forward_hooks": "forward hook", "_forward_pre_hooks": "forward pre-hook"}
_BACKWARD = {"_backward_hooks": "backward hook", "_backward_pre_hooks": "backward pre-hook"}
# Hooks that act in a forward that asks for them alone, through values which a trace sees; and those of models in place,
# which compare structures alone.
_FOLLOWED = ("transformers.utils.output_capturing", "repl_fx.rewriting.in_place.surrogate_block")
_GENERATOR = ("seed", "initial_seed", "manual_seed", "get_rng_state", "set_rng_state")
_DROPPED: tuple[tuple[Any, str], ...] = (
    *((Tensor, name) for name in ("register_hook", "register_post_accumulate_grad_hook", "retain_grad")),
    (torch.autograd.graph, "register_multi_grad_hook"),
    *((torch, name) for name in (*_GENERATOR, "set_default_dtype", "set_float32_matmul_precision")),
    *((torch.random, name) for name in (*_GENERATOR, "fork_rng")),
    (torch.autograd.graph.saved_tensors_hooks, "__init__"),
    (torch.autograd.graph.save_on_cpu, "__init__"),
    (torch.inference_mode, "__init__"),
)


@contextmanager
def hooks_followed(model: nn.Module) -> Iterator[None]:
    """Trace through forward hooks that change a value and do nothing else; refuse other hooks that would be dropped.

    Raises:
        CaptureError: names the hook and its module.
    """
    if global_module_hooks():
        raise _refusal(model, "a hook on all modules is registered")
    watched: list[_Watched] = []
    with ExitStack() as undone:
        for path, module in model.named_modules():
            if module is not model and is_leaf(module):
                continue
            for registry, kind in (_BACKWARD | _FORWARD).items():
                hooks = getattr(module, registry, None) or {}
                for key, hook in list(hooks.items()):
                    words = f"{path or 'the model'} has a {kind} ({hook_name(hook)})"
                    if registry in _BACKWARD:
                        raise _refusal(model, words)
                    if not _is_followed(hook):
                        watched.append(_Watched(words, hook, module is model))
                        undone.enter_context(patch.dict(hooks, {key: watched[-1]}))
        yield
        for hook in watched:
            if not hook.called and hook.of_the_model:
                raise _refusal(model, f"{hook.words} that a trace goes past")
            if hook.called and not hook.changed_a_value:
                raise _refusal(model, f"{hook.words} that changes no value")
            if hook.state:
                raise _refusal(model, f"{hook.words} that keeps {hook.state[0].path}")


class _Watched:
    """Runs a hook, and notes whether it gave another value, and what it changed of the state that it can reach."""

    def __init__(self, words: str, own: Callable[..., Any], of_the_model: bool) -> None:
        self.words = words
        self.own = own
        self.of_the_model = of_the_model
        self.called = self.changed_a_value = False
        self.state: list[PythonChange] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        before = PythonState(nn.Module(), values={hook_name(self.own): self.own})
        result = self.own(*args, **kwargs)
        self.called = True
        self.changed_a_value = self.changed_a_value or result is not None
        self.state += before.changes(PythonState(nn.Module(), values={hook_name(self.own): self.own}))
        return result


def _refusal(model: nn.Module, what: str) -> CaptureError:
    return CaptureError(
        type(model).__name__,
        [f"{what}, which a graph would drop; remove it first, or capture the modules inside alone"],
    )


def hooks_within(gm: nn.Module, paths: Iterable[str]) -> str | None:
    """A hook on one of the modules at some paths, in words; None where there is none."""
    for path in paths:
        for kind, hook in users_hooks(gm.get_submodule(path)):
            return f"its layer {path} has a {kind} ({hook_name(hook)}), which would go with it"
    return None


def users_hooks(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The hooks on a module, each with its kind, but for those of libraries.

    Torch's own that make a weight are parts of the layer, and others act where a forward asks for them.
    """
    for registry, kind in (_FORWARD | _BACKWARD).items():
        for hook in (getattr(module, registry, None) or {}).values():
            if not _is_followed(hook) and not type(hook).__module__.startswith("torch.nn.utils."):
                yield kind, hook


def _is_followed(hook: Any) -> bool:
    return getattr(hook, "__module__", None) in _FOLLOWED


def hook_name(hook: Any) -> str:
    """A hook by the name of its function."""
    return str(getattr(hook, "__qualname__", None) or type(hook).__qualname__)


@contextmanager
def no_tensor_hooks(stands_aside: Callable[[], bool]) -> Iterator[None]:
    """Refuse hooks on tensors that a forward registers while it is traced, outside of leaf calls (`stands_aside`).

    Those by which torch's checkpoint keeps what a backward pass needs do nothing: of a trace there is none.
    """

    def refusing(name: str, function: Any) -> Any:
        def refuse(*args: Any, **kwargs: Any) -> Any:
            caller = sys._getframe(1)
            # A region that decorates a function makes itself anew in each call.
            by_torch = is_machinery(caller) and module_of(caller) != "torch.autograd.grad_mode"
            if by_torch or is_bystander() or stands_aside():
                return function(*args, **kwargs)
            raise Untraceable(f"the forward calls {name}, which a graph would drop")

        return refuse

    def skipping(function: Any) -> Any:
        return lambda *args: function(*args) if is_bystander() else None

    kept: Any = torch.autograd.graph.saved_tensors_hooks
    ends = {name: skipping(getattr(kept, name)) for name in ("__enter__", "__exit__")}
    with patch.multiple(kept, **ends), ExitStack() as patches:
        for holder, name in _DROPPED:
            shown = holder.__name__ if name == "__init__" else name
            patches.enter_context(patch.object(holder, name, refusing(shown, getattr(holder, name))))
        yield
