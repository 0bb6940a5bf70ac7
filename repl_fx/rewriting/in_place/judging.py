"""Tell whether a model in place computes what its graph does, and where a block's own code would compute otherwise.

    block   x + self.out(h) / math.sqrt(h.shape[-1])        h had 32 units in the trace, and has 16 with `narrow`
    graph   x + out(h) / 5.66

A surrogate that swaps parameters runs the block's own code. Where that computes with the number of its hidden units,
on fewer of them it is another function than the graph, which keeps the number of the trace.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from repl_fx._torch import FakeTensorMode, OperatorsRun, fixed_size, forget_tensors, pytree, quiet_tracing
from repl_fx.errors import ForeignError, first_line, foreign_code
from repl_fx.graph.boundaries import places
from repl_fx.graph.captured import tensors_in
from repl_fx.graph.roles import RESHAPES
from repl_fx.plan import Replacement
from repl_fx.rewriting.in_place.surrogate_block import SurrogateBlock
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.opaque_outputs import PLAIN, equal_inside
from repl_fx.running.untouched import in_mode, outcome_of, seeded, untouched
from repl_fx.tracing.parts.capture_parts import assemble
from repl_fx.tracing.side_by_side import SideBySide

# Operators that are told the sizes of values, or the groups of a depthwise convolution: with fewer units, other ones.
_TOLD_SIZES = RESHAPES | {torch.ops.aten.convolution.default}


@dataclass(frozen=True)
class OwnCode:
    """A surrogate that runs the code of its block on parameters of other sizes.

    Attributes:
        block: the surrogate.
        most: the largest size of a parameter of the block.
        shapes: the sizes in the trace of the tensors that the block is handed, by place.
        replacements: those that make the surrogate.
    """

    block: SurrogateBlock
    most: int
    shapes: Mapping[tuple[Any, ...], Sequence[Any]]
    replacements: tuple[Replacement, ...]


class Judged:
    """The surrogates that compute otherwise by the code of their blocks, of one model with one seed and inputs.

    What was found of a replacement serves in other plans: the model is run once more for those that are new alone.

    Args:
        by_graph: the paths of all of them, where they are known from before.
    """

    def __init__(self, by_graph: Collection[str] | None = None) -> None:
        self._known = by_graph
        self._found: dict[tuple[str, str], bool] = {}

    def of(self, source: nn.Module, model: nn.Module, own: Mapping[str, OwnCode], inputs: ExampleInputs) -> set[str]:
        """See `compute_with_sizes`."""
        if self._known is not None:
            return set(self._known)
        keys = {path: (path, repr(one.replacements)) for path, one in own.items()}
        new = {path: one for path, one in own.items() if keys[path] not in self._found}
        by_graph = compute_with_sizes(source, model, new, inputs)
        self._found.update({keys[path]: path in by_graph for path in new})
        return {path for path, key in keys.items() if self._found[key]}


def compute_with_sizes(
    source: nn.Module, model: nn.Module, own: Mapping[str, OwnCode], inputs: ExampleInputs
) -> set[str]:
    """The paths of the blocks whose code computes otherwise with smaller parameters than by their sizes alone.

    The source runs once; each block is run without values, whole and smaller, on what it is handed there, and on more.

    Args:
        source, model: the model before, and the one in place; they are not changed.
        own: the surrogates in question, by the paths of their blocks.
    """
    if not own:
        return set()
    mode, given = FakeTensorMode(allow_non_fake_inputs=True), dict[str, tuple[Any, Any]]()
    watched = assemble(source, {})

    def note(path: str, module: nn.Module, *handed: Any) -> None:
        with mode:
            given[path] = pytree.tree_map(_without_values, handed)

    for path in own:
        watched.get_submodule(path).register_forward_pre_hook(partial(note, path), with_kwargs=True)
    outcome_of(watched, inputs, training=False)
    try:
        with untouched(source, buffers=True), untouched(model, buffers=True), seeded(torch.device("cpu"), 0), mode:
            return {p for p, handed in given.items() if not _same_code(source.get_submodule(p), own[p], *handed)}
    finally:
        forget_tensors(mode)


def _without_values(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return torch.empty(tuple(leaf.shape), dtype=leaf.dtype, device=leaf.device)
    # A cache that the block fills.
    return copy.deepcopy(leaf)


def _same_code(module: nn.Module, own: OwnCode, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell whether a block calls the same operators with smaller parameters, with the same numbers."""
    larger = _larger(own, args, kwargs)
    for training, sizes in ((False, {}), (True, larger), (True, {})):
        whole, smaller = (_operators(one, args, kwargs, training, sizes) for one in (module, own.block))
        if whole is None:
            # Such as a block that takes no other sizes.
            continue
        # Tables that the code keeps (`lru_cache`) are made in the first run alone.
        if not (_same_calls(whole, smaller) or _same_calls(_operators(module, args, kwargs, training, sizes), smaller)):
            return False
        if training:
            break
    return True


def _same_calls(one: list[Any] | None, other: list[Any] | None) -> bool:
    return one is not None and other is not None and len(one) == len(other) and all(map(_same_call, one, other))


def _same_call(one: tuple[Any, list[Any]], other: tuple[Any, list[Any]]) -> bool:
    if one[0] is not other[0] or len(one[1]) != len(other[1]):
        return False
    pairs = zip(one[1], other[1], strict=True)
    return all(a == b or (one[0] in _TOLD_SIZES and type(a) is type(b) is int) for a, b in pairs)


def _operators(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    training: bool,
    sizes: Mapping[int, Sequence[int]],
) -> list[tuple[Any, list[Any]]] | None:
    """The operators that a block calls, with the plain values among their arguments; None where it fails."""
    seen: list[tuple[Any, list[Any]]] = []

    def run(operator: Any, args: Any, kwargs: Any) -> Any:
        seen.append((operator, [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, PLAIN)]))
        return operator(*args, **kwargs)

    def fresh(leaf: Any) -> Any:
        sized = isinstance(leaf, Tensor) and id(leaf) in sizes
        return _without_values(leaf.new_empty(tuple(sizes[id(leaf)])) if sized else leaf)

    fakes = pytree.tree_map(fresh, (args, kwargs))
    try:
        with foreign_code(), in_mode(module, training), quiet_tracing(), OperatorsRun(run):
            module.forward(*fakes[0], **fakes[1])
    except ForeignError:
        return None
    return seen


def _larger(own: OwnCode, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[int, Sequence[int]]:
    """Sizes above all of the block's own for the dimensions that may vary, by the ids of the tensors."""
    numbers: dict[str, int] = {}
    found: dict[int, Sequence[int]] = {}
    for place, leaf in places(type(own.block)._bind(*args, **kwargs)):
        shape = own.shapes.get(place)
        if not isinstance(leaf, Tensor) or shape is None:
            continue
        if any(fixed_size(size) is None and not str(size).isidentifier() for size in shape):
            return {}
        for size in shape:
            if fixed_size(size) is None:
                numbers.setdefault(str(size), own.most + 1 + len(numbers))
        found[id(leaf)] = [numbers.get(str(size), now) for size, now in zip(shape, leaf.shape, strict=True)]
    return found


def parting(
    model: nn.Module,
    module: nn.Module,
    *trials: tuple[Sequence[ExampleInputs], bool],
    source: nn.Module | None = None,
) -> str:
    """Say how a model in place differs from its rewritten module; empty where it does not, to the bit.

    Args:
        model, module: they are not changed.
        trials: inputs, of which the first serve that both take, and whether to run in training. One of a single choice
            with an integer tensor of one number, such as a mask that hides nothing, is run on values in any case: code
            may look at them, and leave it out, but in a trace.
        source: the model in place need not take what this does not: its own code may look at values, as no graph does.
    """
    state = (*module.parameters(), *module.buffers())
    sides = SideBySide(model, module) if isinstance(module, fx.GraphModule) else None
    for choices, training in trials:
        known = [given for given in choices if not any(tensor.is_meta for tensor in (*given.tensors, *state))]
        looked_at = len(choices) == 1 and any(map(is_one_number, choices[0].tensors))
        if sides is not None and not looked_at and _returned(sides, module, known, training):
            continue
        mode = "training" if training else "evaluation"
        for inputs in known:
            run: Callable[[nn.Module], Any] = partial(outcome_of, inputs=inputs, training=training)
            theirs = run(module)
            if theirs.problem is not None:
                continue
            ours = run(model)
            if ours.problem is not None:
                if source is not None and run(source).problem is not None:
                    continue
                return f"in {mode} it fails where the graph does not: {first_line(ours.problem)}"
            # A module that is not the same twice says nothing.
            if not _same(ours.outputs, theirs.outputs) and _same(run(module).outputs, theirs.outputs):
                return f"in {mode} it computes otherwise there than in the graph"
            break
    return ""


def is_one_number(tensor: Tensor) -> bool:
    """Tell whether a tensor of integers or truth values holds one number many times."""
    plain = not (tensor.is_meta or tensor.is_floating_point() or tensor.is_complex()) and tensor.numel() > 1
    return plain and bool((tensor == tensor.flatten()[0]).all())


def _returned(sides: SideBySide, module: nn.Module, known: Sequence[ExampleInputs], training: bool) -> bool:
    """Tell whether it is sure without values that both return the same on the first inputs that stop neither."""
    told = (sides.returned(module, given, training) for given in known)
    return next((returned for returned in told if returned is not False), None) is True


def _same(ours: Any, theirs: Any) -> bool:
    """Tell whether both returned the same tensors; in place alone, a cache may hold values of a surrogate."""
    return equal_inside(*(list(tensors_in(made)) for made in (ours, theirs)))
