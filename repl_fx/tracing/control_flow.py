"""Join traces with different answers to random decisions into one graph that decides when it runs.

    before   all layers run:    rand -> lt -> decision 0; layer 0: x -> a; rand -> lt -> decision 1; layer 1: a -> b
             layer 0 skipped:   rand -> lt -> decision 0;                  rand -> lt -> decision 1; layer 1: x -> b
             layer 1 skipped:   …
    after    skip_layer_0; layer 0: x -> a; choose(skip_layer_0, x, a) -> c; skip_layer_1; layer 1: c -> b; choose(…)

Needs: each decision alone says whether the stretch behind it runs. One that depends on random draws alone is drawn
when the graph runs; another is computed by the graph (`Condition`).
Three traces tell of any number of decisions: with all layers, with every other one skipped, and with the others
skipped. A layer that is skipped has neighbours that run, and these show what takes the place of its values.
Where decisions do more than that, those that inputs settle (is a mask of this kind, or of that?) are answered as the
example inputs answer them, and the graph refuses other inputs:

    before   trace with yes: any(mask) -> decision 0; a, b      trace with no: any(mask) -> decision 0; c
    after    any(mask) -> check_condition(any, False, …); c

Never touches: the traces it is given, but for the last with all layers, which becomes the result.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from repl_fx._torch import has_no_value, module_stack, pytree
from repl_fx.errors import BrokenGraph, ForeignError, Untraceable
from repl_fx.graph.captured import (
    PlainGraphModule,
    drop_dead,
    erase_dead,
    has_effect,
    is_tensor,
    memory_of,
    writes_in_place,
)
from repl_fx.graph.decisions import (
    Comparison,
    Condition,
    Decision,
    choose,
    is_choice,
    is_random,
    settle_decisions_,
    skippable,
)
from repl_fx.graph.extracting import Extract
from repl_fx.graph.runtime import check_condition
from repl_fx.graph.signature import PackOutput, leaf_paths
from repl_fx.passes.merge_modes import equal_literals, matching_blocks, node_key
from repl_fx.tracing.data_dependent import DECISION
from repl_fx.tracing.sizes_first import sizes_first_

_OUTSIDE = ("placeholder", "get_attr")
_OTHERS_FOLLOW = "how often the forward decides depends on what it decided before"
_Asked = Sequence[Comparison | None]
Trace = Callable[[Sequence[bool]], tuple[fx.Graph, _Asked]]


def join_branches(
    trace: Trace,
    example: Callable[[fx.Node], bool | None] = lambda condition: None,
    settled: dict[int, bool] | None = None,
) -> fx.Graph:
    """The graph of a forward that may decide at random to skip parts of itself.

    Args:
        trace: traces with given answers to the decisions, the last of them for all that follow; returns the graph, with
            markers, and what was asked.
        example: the truth of a condition for the example inputs; None where more than the inputs settles it, so that
            the next inputs may well have the other.
        settled: the answers, by number, to decisions at whose other answer the model stops, as far as traces have shown
            them; others are added.

    Returns:
        A graph with a `Decision` and choices where there were markers, or with a check of the inputs.

    Raises:
        Untraceable: a decision does more than skip what is behind it.
    """
    base, asked = trace([])
    if not _markers(base):
        return base
    joiner, settled = None, {} if settled is None else settled
    try:
        joiner = _learned(trace, base, asked, settled)
        joiner.join()
    except (Untraceable, ForeignError):
        # The base may be half of a result by now.
        base, asked = (base, asked) if joiner is None else trace([])
        base, asked = _settle(trace, base, asked, example, settled)
        if not settled:
            raise
        joiner = _learned(trace, base, asked, settled)
        joiner.join()
    return joiner.base


def _settle(
    trace: Trace,
    base: fx.Graph,
    asked: _Asked,
    example: Callable[[fx.Node], bool | None],
    settled: dict[int, bool],
) -> tuple[fx.Graph, _Asked]:
    """A trace in which the decisions that inputs settle are answered for the example inputs; adds these answers."""
    number = 0
    while number < len(_markers(base)):
        condition: Any = _markers(base)[number].args[0]
        answer = example(condition[0]) if condition and number not in settled else None
        if answer is not None:
            settled[number] = answer
        if answer:
            base, asked = trace([settled.get(i, False) for i in range(number + 1)])
        number += 1
    return base, asked


def _learned(trace: Trace, base: fx.Graph, asked: _Asked, settled: Mapping[int, bool]) -> _Joiner:
    """The findings of traces with yes and with no to all decisions that are not settled."""
    count, known = len(_markers(base)), -1

    def traced(answers: Iterable[bool]) -> tuple[fx.Graph, _Asked]:
        return trace([settled.get(i, answer) for i, answer in enumerate(answers)])

    # A trace may show that the model stops at an answer.
    while known < len(settled):
        known = len(settled)
        free = [i for i in range(count) if i not in settled]
        # All yes to every other question, then to those between.
        halves = [set(free[parity::2]) for parity in (0, 1) if free[parity::2]]
        others = [traced(i in half for i in range(count))[0] for half in halves]
    runs = _answers_that_run(base, halves, others)
    if any(runs):
        base, asked = traced(runs)
        others = [traced(run is not (i in half) for i, run in enumerate(runs))[0] for half in halves]
    # A size is computed by the first layer that needs it, which may be a skipped one.
    for graph in (base, *others):
        sizes_first_(graph)
    joiner = _Joiner(base, asked, [not answer for answer in runs], settled)
    for half, other in zip(halves, others, strict=True):
        joiner.add(other, half)
    return joiner


def _answers_that_run(base: fx.Graph, halves: Sequence[set[int]], others: Sequence[fx.Graph]) -> list[bool]:
    """For each decision the answer that leads to more nodes, given the traces with no and with yes."""
    sizes = [len(segment) for segment in _segments(base)]
    runs = [False] * (len(sizes) - 1)
    for half, other in zip(halves, others, strict=True):
        theirs = _segments(other)
        if len(theirs) != len(sizes):
            raise Untraceable(_OTHERS_FOLLOW)
        for i in half:
            runs[i] = len(theirs[i + 1]) > sizes[i + 1]
    return runs


class _Joiner:
    """Learns from the other traces what a skipped layer leaves out, and what takes the place of its values.

    Args:
        base: the trace with all layers, which becomes the result.
        skips_when: for each decision, the answer that skips.
    """

    def __init__(self, base: fx.Graph, asked: _Asked, skips_when: Sequence[bool], settled: Mapping[int, bool]) -> None:
        self.base = base
        self.asked = asked
        self.skips_when = skips_when
        self.settled = settled
        self.outside = {(n.op, str(n.target)): n for n in base.nodes if n.op in _OUTSIDE}
        self.layers: dict[int, list[fx.Node]] = {}
        self.layer_of: dict[fx.Node, int] = {}
        self.places: dict[fx.Node, Any] = {}

    def add(self, other: fx.Graph, skipped: set[int]) -> None:
        """Learn from a trace in which some layers were skipped."""
        image: dict[fx.Node, fx.Node] = {}
        for node in (node for node in other.nodes if node.op in _OUTSIDE):
            if (node.op, str(node.target)) not in self.outside:
                raise Untraceable(f"{node.target} is used only when a layer is skipped")
            image[node] = self.outside[node.op, str(node.target)]
        pairs, sizes = self.pair(other, skipped)
        image.update((b, a) for a, b in pairs)
        for node in sizes:
            image[node] = self.same_size(node, image)
        for a, b in pairs:
            if isinstance(a.target, PackOutput) and isinstance(b.target, PackOutput):
                self.compare(*self.returned(a, b, skipped), image, skipped)
            else:
                self.compare((a.args, a.kwargs), (b.args, b.kwargs), image, skipped)

    def pair(self, other: fx.Graph, skipped: set[int]) -> tuple[list[tuple[fx.Node, fx.Node]], list[fx.Node]]:
        """The nodes that both traces have, and the sizes the other computes elsewhere; notes what is skipped."""
        ours, theirs = _segments(self.base), _segments(other)
        if len(ours) != len(theirs):
            raise Untraceable(_OTHERS_FOLLOW)
        pairs: list[tuple[fx.Node, fx.Node]] = []
        sizes: list[fx.Node] = []
        for number, (long, short) in enumerate(zip(ours, theirs, strict=True)):
            common: set[fx.Node] = set()
            for i, j, size in matching_blocks(list(map(_key, long)), list(map(_key, short))):
                pairs += zip(long[i : i + size], short[j : j + size], strict=True)
                common.update([*long[i : i + size], *short[j : j + size]])
            layer = [n for n in long if n not in common]
            added = [n for n in short if n not in common]
            sizes += added
            alone = number - 1 not in skipped
            # A value that only skipped layers read is dead in the other trace, wherever it was computed.
            if any(has_effect(n) or is_tensor(n) for n in added) or (alone and any(has_effect(n) for n in layer)):
                raise Untraceable("a decision does more than skip a layer")
            if layer and not alone:
                self.layers[number - 1] = layer
                self.layer_of.update(dict.fromkeys(layer, number - 1))
        return pairs, sizes

    def same_size(self, theirs: fx.Node, image: dict[fx.Node, fx.Node]) -> fx.Node:
        """The number of the base that is computed likewise.

        A size is computed by the first layer that needs it: by another one, where that is skipped.
        """
        wanted = fx.node.map_arg((theirs.args, theirs.kwargs), lambda n: image.get(n, n))
        node: fx.Node
        for node in self.base.nodes:
            if node.target == theirs.target and not is_tensor(node) and (node.args, node.kwargs) == wanted:
                return node
        raise Untraceable("a decision changes what is computed behind the layer it skips")

    def returned(self, ours: fx.Node, theirs: fx.Node, skipped: set[int]) -> tuple[list[Any], list[Any]]:
        """The values that both traces return; those of a layer alone, such as its part of a cache, are left out."""
        packers: list[Any] = [ours.target, theirs.target]
        given = (ours.args, theirs.args)
        long, short = (dict(zip(leaf_paths(p.structure), v, strict=True)) for p, v in zip(packers, given, strict=True))
        for path in long.keys() - short.keys():
            value = long[path]
            if not isinstance(value, fx.Node) or self.layer_of.get(value) not in skipped:
                raise Untraceable("a decision changes what the forward returns")
            self.place(value, None)
        if short.keys() - long.keys():
            raise Untraceable("a decision adds to what the forward returns")
        return [long[path] for path in short], list(short.values())

    def compare(self, ours: Any, theirs: Any, image: dict[fx.Node, fx.Node], skipped: set[int]) -> None:
        """Put one value in the place of the layer's where the traces use different ones."""
        a, b = _flat(ours), _flat(theirs)
        if len(a) != len(b):
            raise Untraceable("a decision changes what the forward returns")
        for value, instead in zip(a, b, strict=True):
            instead = image.get(instead, instead) if isinstance(instead, fx.Node) else instead
            if value is instead or equal_literals(value, instead):
                continue
            if not isinstance(value, fx.Node) or self.layer_of.get(value) not in skipped:
                raise Untraceable("a decision changes more than the layer it skips")
            self.place(value, instead)

    def place(self, value: fx.Node, instead: Any) -> None:
        """Note what takes the place of a value when its layer is skipped."""
        if self.places.setdefault(value, instead) is not instead:
            raise Untraceable("a value of a skipped layer is replaced by more than one other")

    def join(self) -> None:
        """Put decisions and choices into the graph with all layers, and checks where inputs settle a decision."""
        chosen: dict[fx.Node, fx.Node] = {}
        position = {node: i for i, node in enumerate(self.base.nodes)}
        for number, marker in enumerate(_markers(self.base)):
            condition: Any = marker.args[0]
            if number in self.settled:
                given = (condition[0], self.settled[number], words_for(marker))
                with self.base.inserting_before(marker):
                    check = self.base.call_function(check_condition, given)
                check.meta = {**marker.meta, "val": None}
                self.base.erase_node(marker)
                continue
            drawn = self.asked[number]
            needed = _drawn_from(condition[0]) if drawn is None else []
            with self.base.inserting_before(marker):
                if drawn is None and not needed:
                    asks = chosen.get(condition[0], condition[0])
                    skip = self.base.call_function(Condition(self.skips_when[number]), (asks,))
                else:
                    draw: Any = drawn or _closed(condition[0], needed)
                    skip = self.base.call_function(Decision(draw, self.skips_when[number]))
            skip.meta = {**marker.meta, "val": False}
            self.base.erase_node(marker)
            # The draw is in the decision now; here it would advance the generator once more.
            erase_dead(self.base, needed)
            layer = self.layers.get(number, [])
            wanted = [n for n in layer if n in self.places]
            last = max(layer, key=position.__getitem__, default=skip)
            span = {n for n in position if layer and position[marker] < position[n] <= position[last]}
            for value in wanted:
                instead = self.places[value]
                with self.base.inserting_after(last):
                    last = self.base.call_function(choose, (skip, chosen.get(instead, instead), value))
                # Of the layer, so that it stays one module's block.
                last.meta = dict(value.meta)
                _use_instead(value, last, span)
                chosen[value] = last
        drop_dead(self.base)
        try:
            settle_decisions_(self.base, has_effect)
        except BrokenGraph as problem:
            raise Untraceable(str(problem)) from problem


def match_decisions_(train: fx.Graph, evaluation: fx.Graph) -> None:
    """Give the graph of evaluation mode the decisions of training mode; in both they read the mode, and skip in one.

    Raises:
        Untraceable: evaluation mode decides otherwise, or computes a layer that may be skipped in another way.
    """
    there, here = (sum(map(is_random, graph.nodes)) for graph in (evaluation, train))
    if there == here:
        return
    if there:
        raise Untraceable("the forward decides at random in evaluation mode, otherwise than in training")
    sizes_first_(train)
    sizes_first_(evaluation)
    random = {n for n in train.nodes if is_random(n)}
    twin = _twins(train, evaluation, random)
    for skip, layer, choices in skippable(train):
        if skip in random:
            order = [twin[n] for n in layer if n in twin and n.op not in _OUTSIDE]
            if not order or any(not isinstance(c.args[2], fx.Node) or c.args[2] not in twin for c in choices):
                raise Untraceable("a layer that training may skip computes otherwise in evaluation mode")
            _decide_(skip, choices, sorted(order), twin)
    # A decision without a choice skipped nothing that counts.
    for skip in [n for n in random if not n.users]:
        train.erase_node(skip)


def _twins(train: fx.Graph, evaluation: fx.Graph, random: set[fx.Node]) -> dict[fx.Node, fx.Node]:
    """The nodes of evaluation mode for those of training mode that do the same; random decisions have none."""
    added = random | {n for n in train.nodes if is_choice(n) and n.args[0] in random}
    ours = [n for n in train.nodes if n.op not in _OUTSIDE and n not in added]
    theirs = [n for n in evaluation.nodes if n.op not in _OUTSIDE]
    twin: dict[fx.Node, fx.Node] = {}
    for i, j, size in matching_blocks([node_key(n) for n in ours], [node_key(n) for n in theirs]):
        twin.update(zip(ours[i : i + size], theirs[j : j + size], strict=True))
    known = {(n.op, str(n.target)): n for n in evaluation.nodes if n.op in _OUTSIDE}
    twin.update((n, known[n.op, str(n.target)]) for n in train.nodes if (n.op, str(n.target)) in known)
    return twin


def _decide_(skip: fx.Node, choices: Iterable[fx.Node], order: Sequence[fx.Node], twin: dict[fx.Node, fx.Node]) -> None:
    """Let a decision of training mode read the mode, and put the same into evaluation mode.

    Args:
        order: the nodes of the layer in evaluation mode, in program order.
        twin: see `_twins`; choices get theirs.
    """
    evaluation, last = order[0].graph, order[-1]
    path = ".".join([*module_stack(skip)[-1:], "training"])
    skip.args = (_flag(skip.graph, path),)
    with evaluation.inserting_before(order[0]):
        target: Any = skip.target
        decided = evaluation.call_function(target, ())
    decided.args = (_flag(evaluation, path),)
    decided.meta = dict(skip.meta)
    # A node that evaluation alone computes in the layer has no twin.
    nodes = list(evaluation.nodes)
    span = set(nodes[nodes.index(order[0]) : nodes.index(last) + 1])
    for choice in choices:
        before, after = (_counterpart(v, twin) if isinstance(v, fx.Node) else v for v in choice.args[1:])
        if not isinstance(after, fx.Node) or (before is None and choice.args[1] is not None):
            raise Untraceable("a layer that training may skip takes a value that evaluation does not have")
        with evaluation.inserting_after(last):
            last = evaluation.call_function(choose, (decided, before, after))
        last.meta = dict(choice.meta)
        _use_instead(after, last, span)
        twin[choice] = last


def _counterpart(value: fx.Node, twin: Mapping[fx.Node, fx.Node]) -> fx.Node | None:
    """The node of the other graph in the place of a value: its twin, or the operand in its place of a user's twin."""
    if value in twin:
        return twin[value]
    for user in value.users:
        if user in twin:
            operands = (_flat((node.args, node.kwargs)) for node in (user, twin[user]))
            ours, theirs = ([operand for operand in given if isinstance(operand, fx.Node)] for given in operands)
            if len(ours) == len(theirs):
                return theirs[ours.index(value)]
    return None


def _use_instead(value: fx.Node, choice: fx.Node, layer: set[fx.Node]) -> None:
    """Let all behind a layer use a choice."""
    value.replace_all_uses_with(choice, delete_user_cb=lambda user: user is not choice and user not in layer)


def _flag(graph: fx.Graph, path: str) -> fx.Node:
    known = next((n for n in graph.nodes if n.op == "get_attr" and n.target == path), None)
    if known is None:
        with graph.inserting_before(next(n for n in graph.nodes if n.op not in _OUTSIDE)):
            known = graph.create_node("get_attr", path)
        known.meta["val"] = True
    return known


def _markers(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.target is DECISION]


def _segments(graph: fx.Graph) -> list[list[fx.Node]]:
    """The nodes before the first marker, between each two, and behind the last."""
    segments: list[list[fx.Node]] = [[]]
    for node in graph.nodes:
        if node.target is DECISION:
            segments.append([])
        elif node.op not in _OUTSIDE:
            segments[-1].append(node)
    return segments


def _key(node: fx.Node) -> tuple[Any, ...]:
    """The key by which nodes of two traces pair; an output may hold fewer values where layers were skipped."""
    key = node_key(node)
    if isinstance(node.target, PackOutput):
        operation, target, where, _how_many, keywords = key
        return (operation, target, where, keywords)
    return key


def _flat(value: Any) -> list[Any]:
    """The nodes and literals of nested arguments, in order."""
    found: list[Any] = []
    fx.node.map_aggregate(value, found.append)
    return found


def words_for(marker: fx.Node) -> str:
    """The question of a marker, in the words of messages: the line of the source that asks."""
    lines = [line.strip() for line in str(marker.meta.get("stack_trace", "")).splitlines() if line.strip()]
    where = ".".join(module_stack(marker)[-1:]) or "the model"
    return f"a condition of {where}" + (f" ({lines[-1]})" if lines and not lines[-1].startswith("File ") else "")


def truth_for(condition: fx.Node, known: Mapping[str, Any]) -> bool | None:
    """The truth of a condition for example inputs.

    Args:
        known: the arguments of the graph, and the constants that the trace made, by name.

    Returns:
        None where it is not computed from whole numbers and masks among the inputs alone, or they have no values: a
        condition on activations or on weights is another one in the next step of a training.
    """
    needed = _computable(condition, known)
    if condition not in needed:
        return None
    names = [str(node.target) for node in needed if node.op in _OUTSIDE]
    values = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), [known[name] for name in names])
    if any(t.is_meta or has_no_value(t) for t in pytree.tree_leaves(values) if isinstance(t, Tensor)):
        return None
    with torch.no_grad():
        return bool(_closed(condition, needed)(*values))


def _computable(condition: fx.Node, known: Mapping[str, Any]) -> list[fx.Node]:
    """The nodes up to a condition that compute from whole numbers, masks, sizes, constants; none where unclear.

    Nodes that the condition does not read are among it: they may write into what it reads.
    """
    found: dict[fx.Node, None] = {}
    floating: set[fx.Node] = set()
    for node in condition.graph.nodes:
        feeders = node.all_input_nodes
        computed = str(node.target) in known if node.op in _OUTSIDE else _computes(node, found, floating)
        if computed:
            found[node] = None
        elif writes_in_place(node) and any(feeder in found for feeder in feeders) and _may_write(node, found):
            return []
        # Activations that the user hands in have sizes, and are no masks.
        given = node.op == "placeholder" or node.target in (operator.getitem, getattr)
        if given and is_tensor(node) and node.meta["val"].is_floating_point() and not any(map(is_tensor, feeders)):
            floating.add(node)
        if node is condition:
            break
    return list(found)


def _may_write(node: fx.Node, found: Collection[fx.Node]) -> bool:
    """Tell whether an operator in place may change a value among some, through a view or a module that returns it."""
    schema: Any = getattr(node.target, "_schema", None)
    first, *others = ((one.alias_info is not None and one.alias_info.is_write) for one in schema.arguments)
    if not first or any(others) or not isinstance(node.args[0], fx.Node):
        return True
    pending = [node.args[0]]
    while pending:
        made = memory_of(pending.pop())
        if made in found:
            return True
        if made.op == "call_module":
            pending += [given for given in made.all_input_nodes if _alike(given, made)]
    return False


def _alike(given: fx.Node, made: fx.Node) -> bool:
    """Tell whether a module may return what it was given, by the dtypes."""
    values = (node.meta.get("val") for node in (given, made))
    kinds = [value.dtype if isinstance(value, Tensor) else None for value in values]
    return None in kinds or kinds[0] == kinds[1]


def _computes(node: fx.Node, found: Collection[fx.Node], floating: Collection[fx.Node]) -> bool:
    """Tell whether a node computes from nodes that were found alone, without an effect but to write into them.

    Random numbers written into one are drawn anew by the next call, whatever its inputs.
    """
    feeders = node.all_input_nodes
    of_activations = is_tensor(node) and any(feeder in floating for feeder in feeders)
    alone = node.op == "call_function" and all(feeder in found for feeder in feeders) and not of_activations
    draws = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return alone and not draws and (writes_in_place(node) or not has_effect(node))


def _drawn_from(condition: fx.Node) -> list[fx.Node]:
    """All that a condition is computed from, where these are random draws alone; else nothing."""
    needed = [condition]
    for node in needed:
        if node.op != "call_function":
            return []
        needed += [f for f in node.all_input_nodes if f not in needed]
    return needed


def _closed(condition: fx.Node, needed: Sequence[fx.Node]) -> fx.GraphModule:
    """The computation of a condition, as a module of its own; values from outside are its arguments."""
    closed = Extract()
    for node in condition.graph.nodes:
        if node in needed:
            closed.take(node, node.name) if node.op in _OUTSIDE else closed.copy(node)
    closed.graph.output(closed.made[condition])
    return PlainGraphModule(nn.Module(), closed.graph)
