"""Record the calls of leaf modules while a model is traced.

torch.export inlines every module. To get the calls of leaf modules back whole, each leaf stands aside during the trace:
its call becomes one opaque operator in the graph, and what was called with which arguments goes to a table here.
`repl_fx.tracing.lift_modules` turns the operators into `call_module` nodes.

Grouping the inlined nodes by `nn_module_stack` afterwards, the other way to do it, has to guess the call's arguments,
loses calls that leave no node (DropPath in eval mode), and leaves mutations and random draws behind. The opaque
operator has none of that, and makes the two modes of a model line up node for node. It costs torch.export little: about
the same time for language models, up to half as much again for small vision models (`benchmarks/compile_time.py`).

A leaf is run on fake tensors for the shapes of its results, so hooks on it see fake tensors during a capture. The
forward of a `torch.autograd.Function` stands aside likewise: traced into, it would lose its backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar
from unittest.mock import patch

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from repl_fx._torch import OperatorsRun, any_lengths, autograd_calls, calls_replaced, define_operator, pytree, tidy_size
from repl_fx.errors import Untraceable
from repl_fx.graph.known_shapes import known_result, like, metadata
from repl_fx.running.alone import is_bystander
from repl_fx.running.meanwhile import attributes_set
from repl_fx.running.untouched import untouched
from repl_fx.tracing.hooks import users_hooks
from repl_fx.tracing.leaves import is_leaf

# Modules that may stand aside.
Callee = nn.Module | type[torch.autograd.Function]

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_CONSTANTS = (bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format, slice)


@dataclass
class LeafCall:
    """One call of a leaf module, as the tracer saw it.

    Attributes:
        run: makes the call itself, past the stand-in.
        leaves: the flattened arguments; tensors and SymInts as placeholders, constants as they were.
        arguments: structure of (args, kwargs).
        result: structure of the result; None until the call has run.
        constants: the non-tensor leaves of the result by position.
        autocast: the kinds of devices that it runs under autocast on, with the dtype of each.
        passes_through: the call returned its only tensor argument untouched, as Identity and Dropout do in evaluation.
        has_effect: that of an autograd function ran an operator that changes what it is given, or draws random numbers.
    """

    callee: Callee
    run: Callable[..., Any]
    training: bool
    leaves: list[Any]
    arguments: pytree.TreeSpec
    autocast: tuple[tuple[str, torch.dtype], ...] = ()
    result: pytree.TreeSpec | None = None
    constants: dict[int, Any] = field(default_factory=dict)
    passes_through: bool = False
    has_effect: bool = False

    def noted(self, operator: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator of the call, and note whether it does more than to return."""
        self.has_effect |= operator._schema.is_mutable or torch.Tag.nondeterministic_seeded in operator.tags
        return operator(*args, **kwargs)

    def given(self, tensors: Iterable[Any], symbols: Iterable[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with other tensors and symbols in the place of its own."""
        tensors, symbols = iter(tensors), iter(symbols)
        leaves = [
            next(tensors) if isinstance(leaf, Tensor) else next(symbols) if isinstance(leaf, torch.SymInt) else leaf
            for leaf in self.leaves
        ]
        args, kwargs = pytree.tree_unflatten(leaves, self.arguments)
        return tuple(args), kwargs

    def returned(self, tensors: Iterable[Any]) -> Any:
        """The result with these tensors in it; the call has run."""
        assert self.result is not None
        tensors = iter(tensors)
        leaves = [self.constants[i] if i in self.constants else next(tensors) for i in range(self.result.num_leaves)]
        return pytree.tree_unflatten(leaves, self.result)


class LeafCalls:
    """The table of calls made during one trace, and the leaves that cannot stand aside.

    Attributes:
        by_mode: a leaf returns other sizes or types in the other mode.
        current: the table of the trace that goes on.
    """

    current: ClassVar[LeafCalls]

    def __init__(self, inlined: Iterable[Callee] = ()) -> None:
        self.calls: list[LeafCall] = []
        self.inlined = set(inlined)
        self.running = False
        self.by_mode = False
        self._kernels = attention_kernels()
        self._own: dict[nn.Module, dict[str, Tensor | None]] = {}

    def stands_aside(self, module: nn.Module) -> bool:
        """Tell whether calls of a module stay calls."""
        return is_leaf(module) and module not in self.inlined

    def is_running(self) -> bool:
        """Tell whether a leaf is being called for its shapes: what it does itself is part of it."""
        return self.running

    def require_kernels(self) -> None:
        """Refuse attention, or a leaf that may attend, in a region where the forward chooses the kernels itself."""
        if attention_kernels() != self._kernels:
            raise Untraceable("the forward chooses kernels of attention (sdpa_kernel), which a graph would drop")

    def begin(self, model: nn.Module) -> None:
        """Note what state the leaves have as the forward begins: torch.export puts other tensors in for its trace."""
        self._own = {module: held_by(module) for module in model.modules()}

    def has_others(self, callee: Callee) -> bool:
        """Tell whether a leaf is called with other tensors than its own, as `torch.func.functional_call` does."""
        if not isinstance(callee, nn.Module) or callee not in self._own:
            return False
        now = held_by(callee)
        return any(now.get(name) is not tensor for name, tensor in self._own[callee].items())

    def toggled(self) -> set[Callee]:
        """Leaves that the forward called in another mode than it left them in, so that their calls would be others."""
        return {call.callee for call in self.calls if is_training(call.callee) is not call.training}

    def run(self, index: int, tensors: list[Tensor], symbols: list[Any]) -> list[Tensor]:
        """Run call `index` for its shapes (on fake tensors, under no tracer)."""
        call = self.calls[index]
        args, kwargs = call.given(tensors, symbols)
        # A module that a leaf calls itself is part of the leaf.
        with attributes_set([self], "running", True):
            results, call.result = self._results(call, args, kwargs)
            if not self.by_mode and not is_torchs(call.callee) and isinstance(call.callee, nn.Module):
                others, structure = self._results(call, args, kwargs, training=not call.training)
                self.by_mode = structure != call.result or not all(map(_alike, results, others))
        call.constants = {i: value for i, value in enumerate(results) if not isinstance(value, Tensor)}
        if not all(value is None or isinstance(value, _CONSTANTS) for value in call.constants.values()):
            self.inlined.add(call.callee)
            raise LeafNotOpaque(f"{call.callee} returns something that is no tensor")
        # An operator may not return one of its inputs; Identity and Dropout in eval mode do.
        own = {id(tensor) for tensor in tensors}
        same = len(tensors) == 1 and [*map(id, results)] == [*map(id, tensors)] and not call.has_effect
        # Functional dropout hands out a new object under the tracer, even where it does nothing.
        call.passes_through = same or (isinstance(call.callee, _DROPOUTS) and not call.callee.training)
        tensors = [value for value in results if isinstance(value, Tensor)]
        # One that requires a gradient here would be a leaf of autograd, and nothing could be written into its views.
        return [like(v) if id(v) in own or v.requires_grad or not _is_tidy(v) else v for v in tensors]

    def _results(
        self, call: LeafCall, args: Any, kwargs: Any, training: bool | None = None
    ) -> tuple[list[Any], pytree.TreeSpec]:
        alone = is_torchs(call.callee) and not isinstance(call.callee, nn.RNNBase)
        if alone and not call.autocast and (known := known_result(call.callee, args, kwargs)) is not None:
            return [known], pytree.tree_structure(known)
        with ExitStack() as around:
            if not alone and isinstance(call.callee, nn.Module):
                # What a call on fake tensors leaves in it, and what hooks on it count, is undone.
                around.enter_context(untouched(call.callee))
                around.enter_context(any_lengths() if isinstance(call.callee, nn.RNNBase) else nullcontext())
                if training is not None:
                    call.callee.train(training)
            elif not alone:
                around.enter_context(OperatorsRun(call.noted))
            # Below an operator autocast is off, and what a leaf returns would be said to be of another dtype.
            for kind, dtype in call.autocast:
                around.enter_context(torch.autocast(kind, dtype))
            return pytree.tree_flatten(call.run(*args, **kwargs))


def is_torchs(module: Any) -> bool:
    """Tell whether a layer is one of torch's own without hooks.

    Its results have the same sizes in both modes, and a call changes nothing of it but buffers.
    """
    own: bool = type(module).__module__.startswith("torch.nn.modules.")
    return own and not module._forward_hooks and not module._forward_pre_hooks


def _is_tidy(tensor: Tensor) -> bool:
    return tensor.layout is not torch.strided or all(tidy_size(step) is step for step in tensor.stride())


def _alike(one: Any, other: Any) -> bool:
    """Tell whether results of a leaf are of the same kind."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other) and not isinstance(one, Tensor) and bool(one == other)
    return metadata(one) == metadata(other)


def attention_kernels() -> tuple[bool, ...]:
    """The kinds of kernels that attention may take now, on any device."""
    kinds: Any = torch.backends.cuda
    return tuple(getattr(kinds, f"{name}_sdp_enabled")() for name in ("flash", "mem_efficient", "math", "cudnn"))


def is_training(callee: Callee) -> bool:
    """The mode of a module; an autograd function has none."""
    return isinstance(callee, nn.Module) and callee.training


def held_by(module: nn.Module) -> dict[str, Tensor | None]:
    """The parameters and buffers of a module itself, by name."""
    return {**module._parameters, **module._buffers}


class LeafNotOpaque(RuntimeError):
    """A leaf returned something that is no tensor or constant; the trace is repeated with that leaf inlined."""


_LEAF_CALL = define_operator(
    "leaf_call(Tensor[] tensors, SymInt[] symbols, int index) -> Tensor[]",
    lambda tensors, symbols, index: LeafCalls.current.run(index, tensors, symbols),
)


@contextmanager
def record_leaf_calls(model: nn.Module, calls: LeafCalls) -> Iterator[None]:
    """Let every leaf of `model` but `calls.inlined`, and every `torch.autograd.Function`, stand aside for a trace.

    Raises:
        Untraceable: one of these has hooks.
    """
    for callee in calls.inlined:
        if isinstance(callee, nn.Module):
            _require_no_hooks(callee)
    leaves = [m for m in model.modules() if calls.stands_aside(m) and m is not model]
    stand_in = partial(_stand_in, calls)
    current = patch.object(LeafCalls, "current", calls, create=True)
    with current, calls_replaced(leaves, stand_in), autograd_calls(stand_in):
        yield


def _stand_in(calls: LeafCalls, callee: Callee, run: Callable[..., Any]) -> Callable[..., Any]:
    recorded = torch.is_grad_enabled()  # of a call of a function; while its forward runs, nothing is

    def call(*args: Any, **kwargs: Any) -> Any:
        leaves, arguments = pytree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        others = [leaf for leaf in leaves if not isinstance(leaf, (Tensor, torch.SymInt))]
        # A call without tensors makes a constant, and an argument that may hide tensors (a cache) must be seen.
        opaque = tensors and all(leaf is None or isinstance(leaf, _CONSTANTS) for leaf in others)
        if calls.running or is_bystander():
            return run(*args, **kwargs)
        if callee in calls.inlined or not opaque or calls.has_others(callee):
            if not isinstance(callee, nn.Module):
                if recorded:
                    raise Untraceable(_lost_backward(callee))
            elif tensors:
                _require_no_hooks(callee)
            return run(*args, **kwargs)
        calls.require_kernels()
        index = len(calls.calls)
        kinds = dict.fromkeys(tensor.device.type for tensor in tensors)
        autocast = tuple(
            (k, torch.get_autocast_dtype(k)) for k in kinds if k != "meta" and torch.is_autocast_enabled(k)
        )
        calls.calls.append(LeafCall(callee, run, is_training(callee), leaves, arguments, autocast))
        results = _LEAF_CALL(tensors, [leaf for leaf in leaves if isinstance(leaf, torch.SymInt)], index)
        return calls.calls[index].returned(results)

    return call


def _require_no_hooks(module: nn.Module) -> None:
    # Hooks of torch's own that make a weight are traced like the forward.
    if any(users_hooks(module)):
        raise Untraceable(f"a graph would drop the hooks of {module}, which it cannot call as a whole")


def _lost_backward(function: type[torch.autograd.Function]) -> str:
    if function is torch.utils.checkpoint.CheckpointFunction:
        return "a graph would drop the gradients of a checkpoint with use_reentrant=True; give use_reentrant=False"
    return (
        f"a graph would drop the backward of the autograd function {function.__name__}, which takes or returns "
        "something that is neither a tensor nor a constant"
    )
