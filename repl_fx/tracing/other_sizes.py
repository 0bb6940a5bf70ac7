"""Tell whether a captured graph is right at other sizes than those it was traced with.

torch.export keeps a dimension dynamic when code asks whether it is even, and takes the answer for granted. Inside a
model that is captured in parts, where sizes come from eager code, the next call may well be odd.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from repl_fx._torch import fixed_size, pytree, size_with
from repl_fx.graph.axes import size_checks
from repl_fx.graph.captured import CapturedModule, copy_graph
from repl_fx.graph.runtime import SizeCheck, check_shape
from repl_fx.graph.signature import bind_arguments, words_for
from repl_fx.graph.size_limits import Limit
from repl_fx.passes.driver import Result, run_passes
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.untouched import device_of, outcome_of
from repl_fx.tracing.side_by_side import SideBySide, are_close
from repl_fx.tracing.size_questions import CUT, drop_checks_

# Other sizes are tried on inputs no larger than this along a dimension.
_TRIAL_SIZE = 193
# Each trial runs the model twice in each mode. Where the graph is right at a refused size, as many others are tried.
_MOST_TRIALS, _SPREAD = 2, 6
# Sizes that are to be equal are tried up to this many; those of the caches of a decoder are hundreds.
_MOST_EQUAL = 8
# Tensors, each with the sizes that it has in a trace; some of these are symbols.
_Traced = Sequence[tuple[Tensor, Sequence[Any]]]


def holds_at_other_sizes(module: nn.Module, gm: CapturedModule, inputs: ExampleInputs) -> bool:
    """Tell whether a graph computes what its source does at other sizes of the dimensions that stayed dynamic in it.

    Returns:
        False where it differs or fails; also where nothing can be said, because a size depends on others.
    """
    traced = _traced_shapes(gm, module, inputs)
    if all(fixed_size(size) is not None for _, shape in traced for size in shape):
        return True
    resized = other_sizes_of(gm, module, inputs)
    if resized is None:
        return False
    # Where the source does not take these sizes, there is nothing to be wrong about.
    return are_close(outcome_of(module, resized, training=False), outcome_of(gm, resized, training=False))


def try_checks_(gm: fx.GraphModule, model: nn.Module, inputs: ExampleInputs) -> Result:
    """Try the checks of sizes in a graph where they fail, in both modes, and keep those that are needed.

    A check goes where the model computes at refused sizes what the graph does: `is_causal = length > 1` is such a
    question, as whether one token is masked makes no difference; how long a slice is matters only to code that goes on
    by it; and a trace may ask of sizes more than operators do.
    A limit of the model at which the model does not stop is one of the graph.

    Args:
        gm: the graph captured from the model, changed in place.
        model: it runs on the example inputs with another size, and is not changed.

    Returns:
        The graph, with the names of the checks that are gone.
    """
    checks = size_checks(gm.graph)
    tried = [(node, check) for node, check in checks if check.limit or check.fails_at_one or node.meta.get(CUT)]
    if not tried or device_of(model, inputs).type == "meta":
        return Result(gm)
    trials = _CheckTrials(gm, model, inputs)
    gone = _unneeded_equalities(trials, gm)
    tried = [(node, check) for node, check in tried if not check.alike]
    for node, check in tried:
        others = [other for one, other in checks if one is not node and one.name not in gone and not other.alike]
        open_ones = [(one.name, asked) for one, asked in tried if one.name not in gone]
        found = trials.of(check, others, open_ones, gone)
        needed = any(each.runs and not each.alike and each.failing == {node.name} for each in found)
        if not needed and any(each.alike for each in found):
            gone.append(node.name)
        elif needed and check.limit:
            node.target = replace(check, limit=False)
    return drop_checks_(gm, gone)


class _Trial(NamedTuple):
    """A model and its graph at sizes for which checks fail: whether the model runs, and the graph does the same."""

    runs: bool
    alike: bool
    failing: Collection[str]


class _CheckTrials:
    """Runs a graph without some of its checks beside its model.

    One copy without any check serves all trials: whether another check stops the graph is known from the sizes.
    """

    def __init__(self, gm: fx.GraphModule, model: nn.Module, inputs: ExampleInputs) -> None:
        self._gm, self._model, self.inputs = gm, model, inputs
        self._side_by_side = SideBySide(model, gm)
        self._checks = size_checks(gm.graph)
        self._traced = _traced_shapes(gm, model, inputs)
        drop = partial(drop_checks_, names=[node.name for node, _ in self._checks])
        self._bare = run_passes(copy_graph(gm, compiled=False), drop).graph_module

    def of(
        self,
        check: SizeCheck,
        others: Sequence[SizeCheck],
        tried: Sequence[tuple[str, SizeCheck]],
        gone: Collection[str],
    ) -> list[_Trial]:
        """Try sizes for which a check fails, without it and those of the ones to be tried that fail with it."""
        found: list[_Trial] = []
        for group in islice(_failing(check, others, self._traced), _MOST_TRIALS):
            for sizes in group:
                # Several questions may be about one size.
                failing = {name for name, asked in tried if not _holds(asked, sizes)}
                outcome = self.without([*gone, *failing], _with_sizes(self.inputs, self._traced, sizes))
                found.append(_Trial(*outcome, failing))
                if outcome != (True, True):
                    break
        return found

    def tensors(self, inputs: ExampleInputs) -> dict[fx.Node, Any]:
        """The tensors among inputs by the nodes that they are in the graph."""
        return _checked_tensors(self._gm, self._model, inputs)

    def without(self, names: Collection[str], inputs: ExampleInputs) -> tuple[bool, bool]:
        """Tell whether the model runs on inputs, and whether the graph without some checks then computes the same."""
        tensors = self.tensors(inputs)
        stops = any(
            not (
                tensors.keys() >= set(node.all_input_nodes) and check.holds(*(tensors[n] for n in node.all_input_nodes))
            )
            for node, check in self._checks
            if node.name not in names
        )
        return self._side_by_side.compare(None if stops else self._bare, inputs)


def _unneeded_equalities(trials: _CheckTrials, gm: fx.GraphModule) -> list[str]:
    """The names of checks that two sizes are equal where a graph is right with either of them being 1: a broadcast."""
    given = trials.tensors(trials.inputs)
    unneeded: list[str] = []
    equal = ((node, check) for node, check in size_checks(gm.graph) if check.alike)
    for node, check in islice(equal, _MOST_EQUAL):
        outcomes = []
        for _, number, dim in check.sizes:
            one = given.get(node.all_input_nodes[number])
            if one is not None:
                outcomes.append(trials.without([*unneeded, node.name], _broadcast(trials.inputs, one, dim)))
        if any(alike for _, alike in outcomes) and not any(runs and not alike for runs, alike in outcomes):
            unneeded.append(node.name)
        elif any(runs for runs, _ in outcomes):
            node.target = replace(check, limit=False)
    return unneeded


def _broadcast(inputs: ExampleInputs, tensor: Tensor, dim: int) -> ExampleInputs:
    """The inputs with the first alone of what one of their tensors has along a dimension."""
    return inputs.map(lambda given: given.narrow(dim, 0, 1) if given is tensor else given)


def _failing(check: SizeCheck, others: Sequence[SizeCheck], traced: _Traced) -> Iterator[list[dict[str, int]]]:
    """Sizes, near those of the example first, for which a check fails and, as far as can be, no other does.

    Another size follows where the other checks ask for it: a mask is as long as the text that it is for.
    """
    free = _free_sizes(traced)
    # Sizes of masks are the likeliest to follow.
    whole = {str(size) for tensor, shape in traced if not tensor.is_floating_point() for size in shape}
    others = [other for other in others if not other.fails_at_one]
    for name in (name for name, _, _ in check.sizes if name in free):
        now = free[name]
        end = max(now, 2 * min(Limit(check.condition, (), "").largest, _TRIAL_SIZE)) + 2
        near = (1,) if check.fails_at_one else chain.from_iterable((now + by, now - by) for by in range(1, end))
        failing = [size for size in near if size > 0 and not _holds(check, {**free, name: size})]
        # At the nearest alone both ways may come to the same, as they do for 4 where code asks whether a size is below.
        spread = failing[2 :: max(len(failing) // _SPREAD, 1)]
        changed = [{**free, name: size} for size in dict.fromkeys([*failing[:2], *spread, *failing[-1:]])]
        if not changed:
            continue
        if all(_holds(other, changed[0]) for other in others):
            yield changed
            continue
        followers = sorted((other for other in free if other != name), key=lambda other: other not in whole)
        found = (_followed(changed, follower, others, 2 * max(free.values()) + 2) for follower in followers)
        ways = filter(None, found)
        yield next(ways, changed)
        yield from ways


def _followed(
    changed: Iterable[Mapping[str, int]], follower: str, checks: Sequence[SizeCheck], end: int
) -> list[dict[str, int]]:
    """Those of some sizes for which all checks hold with another one changed too: to the least, below an end."""
    tried = (({**sizes, follower: value} for value in range(1, end)) for sizes in changed)
    least = (next((sizes for sizes in one if all(_holds(check, sizes) for check in checks)), None) for one in tried)
    return [sizes for sizes in least if sizes is not None]


def _free_sizes(traced: _Traced) -> dict[str, int]:
    """The sizes of the inputs that have a symbol of their own in a trace, by its name."""
    sizes = ((size, now) for t, shape in traced for size, now in zip(shape, t.shape, strict=True))
    return {str(size): now for size, now in sizes if fixed_size(size) is None and str(size).isidentifier()}


def _checks(gm: fx.GraphModule) -> list[SizeCheck]:
    """The checks of sizes in a graph; those of one symbol are equal in all inputs that are made here."""
    return [check for _, check in size_checks(gm.graph) if not check.alike]


def _holds(check: SizeCheck, sizes: Mapping[str, int]) -> bool:
    return check.holds_for(*(sizes[name] for name, _, _ in check.sizes))


def other_sizes_of(
    gm: fx.GraphModule, module: nn.Module, inputs: ExampleInputs, *, smallest: bool = False
) -> ExampleInputs | None:
    """Inputs of other sizes where those of a graph are dynamic, with the same values: a part of them, or repeated.

    Args:
        smallest: they are the least, from 2.

    Returns:
        None where no size is dynamic, or a size depends on others.
    """
    traced = _traced_shapes(gm, module, inputs)
    sizes = _other_free_sizes(gm, traced, _smallest_first if smallest else _odd_first)
    return None if sizes is None else _with_sizes(inputs, traced, sizes)


def _odd_first(now: int) -> Iterable[int]:
    # What code asks of sizes most is whether they are even.
    half = min(max(now // 2, 2), _TRIAL_SIZE) | 1
    return chain([half], range(half + 1, 2 * now + 1), range(half - 1, 1, -1))


def _smallest_first(now: int) -> Iterable[int]:
    return range(2, 2 * now + 1)


def _other_free_sizes(
    gm: fx.GraphModule, traced: _Traced, candidates: Callable[[int], Iterable[int]] = _odd_first
) -> dict[str, int] | None:
    free, checks = _free_sizes(traced), _checks(gm)
    sizes = chosen_sizes(free, list(free), candidates, lambda sizes: all(_holds(check, sizes) for check in checks))
    return None if sizes == free else sizes


def _traced_shapes(gm: fx.GraphModule, module: nn.Module, inputs: ExampleInputs) -> _Traced:
    """The tensors among the inputs of a module, with the sizes that they have in a graph of it."""
    return [(leaf, node.meta["val"].shape) for node, leaf in _checked_tensors(gm, module, inputs).items()]


def _checked_tensors(gm: fx.GraphModule, module: nn.Module, inputs: ExampleInputs) -> dict[fx.Node, Any]:
    """The tensors among the inputs of a module by the nodes that they are in a graph of it."""
    checks: list[Any] = [node.args for node in gm.graph.nodes if node.target is check_shape]
    nodes = {words: given for given, _, words in checks}
    return {
        nodes[words]: leaf
        for name, given in bind_arguments(module, inputs).arguments.items()
        for path, leaf in pytree.tree_flatten_with_path(given)[0]
        if (words := words_for(name, path)) in nodes
    }


def takes_sizes(gm: fx.GraphModule, module: nn.Module, inputs: ExampleInputs) -> bool:
    """Tell whether a graph takes inputs by their sizes; its module may stop at them."""
    tensors = _checked_tensors(gm, module, inputs)
    sizes = {node.args[0]: node.args[1] for node in gm.graph.nodes if node.target is check_shape}
    known = [(tensor.shape, wanted) for node, tensor in tensors.items() if (wanted := sizes[node])]
    fits = all(
        len(shape) == len(wanted) and all(size in (None, found) for found, size in zip(shape, wanted, strict=True))
        for shape, wanted in known
    )
    asked = ((node.all_input_nodes, check) for node, check in size_checks(gm.graph) if not check.limit)
    return fits and all(check.holds(*(tensors[one] for one in of)) for of, check in asked if tensors.keys() >= set(of))


def chosen_sizes(
    own: Mapping[str, int],
    varied: Sequence[str],
    candidates: Callable[[int], Iterable[int]],
    taken: Callable[[Mapping[str, int]], bool],
    *,
    distinct: bool = False,
) -> dict[str, int]:
    """Other sizes than those of an example, one after the other: the first that is taken.

    Args:
        own: those of the example, by symbol.
        varied: the symbols that get another size, where one is taken.
        candidates: the sizes to try in the place of one, in order.
        distinct: whether two that are alike in the example get different ones, where these are taken.
    """
    sizes = dict(own)
    for symbol in varied:
        others = (size for size in candidates(own[symbol]) if size != own[symbol])
        possible = (size for size in others if taken({**sizes, symbol: size}))
        first = next(possible, own[symbol])
        used = {sizes[other] for other in varied if other != symbol and own[other] == own[symbol]}
        sizes[symbol] = next(possible, first) if distinct and first in used else first
    return sizes


def _with_sizes(inputs: ExampleInputs, traced: _Traced, sizes: Mapping[str, int]) -> ExampleInputs:
    """The inputs with other sizes for the symbols of a trace: a part of them, or more of the same."""

    def with_sizes(tensor: Tensor) -> Tensor:
        shape = next((shape for given, shape in traced if given is tensor), ())
        for dim, size in enumerate(shape):
            wanted = size_with(size, sizes)
            if wanted != tensor.shape[dim] and wanted > 0:
                kept = torch.arange(wanted, device=tensor.device) % tensor.shape[dim]
                tensor = tensor.index_select(dim, kept)
        return tensor

    return inputs.map(with_sizes)
