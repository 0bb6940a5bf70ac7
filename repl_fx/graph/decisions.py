"""Layers that a forward skips at random or by what it computed: decision, choice, and code that jumps over a layer.

In a graph, a layer that may be skipped stands between two nodes of this module:

    skip_layer = decision(training)             draws as the source draws, and says whether to skip
    …                                           the layer
    choose = choose(skip_layer, before, after)  the value before the layer, or the one it computed

The graph stays flat, so that passes see the layer like any other. `jump_over` makes Python jump over what lies
between, so that a skipped layer draws no random numbers, changes no statistics and gets no gradient, as in the source.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx

from repl_fx.errors import BrokenGraph
from repl_fx.graph.pickling import function_as_data


class Decision:
    """Tell whether to skip a layer this time; drawn anew at each call, and never true in evaluation mode.

    Attributes:
        draw: draws from the generator that the source draws from, and returns what the source asks.
        skips_when: the answer that skips.
    """

    def __init__(self, draw: Callable[[], Any], skips_when: bool) -> None:
        self.draw = draw
        self.skips_when = skips_when
        self.__name__ = "skip_layer"

    def __call__(self, training: bool = True) -> bool:
        """Draw, in training; evaluation runs every layer."""
        return training and bool(self.draw()) is self.skips_when


@dataclass(frozen=True)
class Comparison:
    """A number of Python's or numpy's generator, compared with one that is known.

    Attributes:
        function, args: the call that draws the number.
        compare: the operator.
        other: the right operand.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    compare: Callable[[Any, Any], Any]
    other: Any

    def __call__(self) -> bool:
        """Draw and compare."""
        return bool(self.compare(self.function(*self.args), self.other))

    def __reduce__(self) -> tuple[Any, ...]:
        return Comparison, (function_as_data(self.function), self.args, self.compare, self.other)


class Condition:
    """Tell whether to skip a stretch of the forward, by a number computed before it.

    Attributes:
        skips_when: the truth that skips.
    """

    def __init__(self, skips_when: bool) -> None:
        self.skips_when = skips_when
        self.__name__ = f"skip_{'if' if skips_when else 'unless'}"

    def __call__(self, value: Any) -> bool:
        """Ask."""
        return bool(value) is self.skips_when


def choose(skip: bool, before: Any, after: Any) -> Any:
    """The value behind a layer that may be skipped; `before` is None for a value that only the layer has."""
    return before if skip else after


def pick(skip: bool, before: Any, after: Any) -> Any:
    """As `choose`, behind a layer that is computed whether it is skipped or not."""
    return choose(skip, before, after)


def is_decision(node: fx.Node) -> bool:
    """Tell whether a node decides that a layer is skipped."""
    return isinstance(node.target, (Decision, Condition))


def is_random(node: fx.Node) -> bool:
    """Tell whether a node decides by a draw of its own."""
    return isinstance(node.target, Decision)


def is_choice(node: fx.Node) -> bool:
    """Tell whether a node takes the value before a layer that Python jumps over, or the one behind it."""
    return node.target is choose


def skippable(graph: fx.Graph) -> list[tuple[fx.Node, list[fx.Node], list[fx.Node]]]:
    """Each decision with the nodes it skips, and the choices behind them."""
    order = list(graph.nodes)
    position = {node: i for i, node in enumerate(order)}
    found = []
    for node in order:
        choices = sorted((u for u in node.users if is_choice(u)), key=position.__getitem__) if is_decision(node) else []
        if choices:
            found.append((node, order[position[node] + 1 : position[choices[0]]], choices))
    return found


def settle_decisions_(graph: fx.Graph, has_effect: Callable[[fx.Node], bool]) -> None:
    """Move what is computed whether a layer is skipped or not, such as a size or a weight, in front of the decision.

    What has an effect cannot move.

    Raises:
        BrokenGraph: a value with an effect is needed whether the layer is skipped or not.
    """
    for decision, layer, _ in skippable(graph):
        inside = set(layer)
        needed = {n for n in layer if any(u not in inside and not _chosen(u, n, decision) for u in n.users)}
        for node in reversed(layer):
            if node in needed:
                needed.update(f for f in node.all_input_nodes if f in inside)
        for node in layer:
            if node not in needed:
                continue
            if has_effect(node):
                raise BrokenGraph(f"{node.name} has an effect, and is needed whether {decision.name} skips or not")
            decision.prepend(node)


def _chosen(user: fx.Node, value: fx.Node, decision: fx.Node) -> bool:
    """Tell whether a value is taken where its layer is not skipped, and then alone."""
    return is_choice(user) and user.args[0] is decision and user.args[1] is not value


def compute_all_(graph: fx.Graph) -> None:
    """Let evaluation compute every layer, so that each value of each layer can be read; changes the graph in place.

    Evaluation skips no layer by a draw; what goes on behind a layer that a computed number skips is picked afterwards.
    """
    for decision, _, choices in skippable(graph):
        for choice in choices:
            choice.target = pick
            if is_random(decision):
                choice.args = (False, *choice.args[1:])


def jump_over(graph: fx.Graph) -> Callable[[list[str]], list[str]] | None:
    """The function that makes the lines of a graph's code jump over what a decision skips; None where none skips."""
    skips = [
        (decision.name, choices[0].name, [str(choice.args[2]) for choice in choices])
        for decision, _, choices in skippable(graph)
    ]

    def jumping(lines: list[str]) -> list[str]:
        for decision, choice, values in skips:
            begin, end = line_of(lines, decision), line_of(lines, choice)
            while lines[end - 1].startswith("#") or not lines[end - 1].strip():
                end -= 1
            layer = indented(lines[begin + 1 : end])
            if not layer:
                continue
            blank = " = ".join(values)
            skipped = f"    {blank} = None\n" if values else "    pass\n"
            lines[begin + 1 : end] = [f"if {decision}:\n", skipped, "else:\n", *layer]
        return lines

    return jumping if skips else None


def line_of(lines: list[str], name: str) -> int:
    """The place of the line of code that gives a node of this name its value."""
    # `print_readable` writes types behind names.
    given = re.compile(rf"\s*{name}(: [^=]*)? = ")
    return next(place for place, line in enumerate(lines) if given.match(line))


def indented(lines: list[str]) -> list[str]:
    """Lines of Python as the body of a statement; none where they hold no statement."""
    statements = any(line.strip() and not line.strip().startswith("#") for line in lines)
    return [f"    {line}" if line.strip() else line for line in lines] if statements else []
