"""The repeats of a model, those of each of its parts, under the names that they have in the model; and its text."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import fx, nn

from repl_fx.display.columns import Table
from repl_fx.display.html import Displayed
from repl_fx.errors import BadInput, PlanMismatch
from repl_fx.finding.blocks import Block, Repeat
from repl_fx.finding.own_repeats import described
from repl_fx.finding.repeats import Repeats
from repl_fx.plan import OwnRepeat, Plan
from repl_fx.surrogates.shared.matching import Matches
from repl_fx.tracing.fingerprint import fingerprint, lines_around, lines_of_code, lines_of_graph
from repl_fx.tracing.parts.capture_parts import CapturedParts, graphs_in, qualified_name
from repl_fx.tracing.parts.finders import Find, by_plan, by_structure

# The word before the shape of a tensor of fractions.
_PRECISION = re.compile(r"\b(?:bfloat|float|complex)\d\w*(?=\[)")
# The rate of a dropout that was built as 0.0, which a trainer may have turned off again as 0.
_NO_RATE = re.compile(r"(?<= p=0)\.0(?!\d)")


@dataclass(frozen=True)
class PartRepeats:
    """The repeats of one part, whose path is "" where it is the whole model.

    Attributes:
        inside: the repeats, under the names that they have in the graph.
        repeats: the same under the names that they have in the model.
    """

    path: str
    graph_module: fx.GraphModule
    inside: tuple[Repeat, ...]
    repeats: tuple[Repeat, ...]

    @classmethod
    def of(cls, path: str, gm: fx.GraphModule, repeats: Sequence[Repeat]) -> PartRepeats:
        return cls(path, gm, tuple(repeats), tuple(_named_from(path, repeat) for repeat in repeats))

    @cached_property
    def blocks(self) -> dict[str, Block]:
        """The blocks as they are in the graph, by the names that they have in the model."""
        return {
            outside.name: inside
            for named, repeat in zip(self.repeats, self.inside, strict=True)
            for outside, inside in zip(named.blocks, repeat.blocks, strict=True)
        }

    @cached_property
    def matches(self) -> Matches:
        return Matches(self.graph_module, self.inside, qualified_name(self.path, ""))

    @cached_property
    def lines(self) -> tuple[str, ...]:
        return tuple(lines_of_graph(self.graph_module))


@dataclass(frozen=True, eq=False, repr=False)
class ModelRepeats(Displayed):
    """The repeats of a captured model, part by part.

    Attributes:
        captured: the model.
        parts: the repeats of each of its parts, or of some.
    """

    captured: CapturedParts
    parts: tuple[PartRepeats, ...]

    def __iter__(self) -> Iterator[PartRepeats]:
        return iter(self.parts)

    @cached_property
    def repeats(self) -> Repeats:
        """The repeats of all parts, under the names that they have in the model."""
        return Repeats(repeat for part in self.parts for repeat in part.repeats)

    def displayed(self) -> Sequence[Table | str]:
        """The table of the repeats."""
        return self.repeats.displayed()

    @property
    def own(self) -> list[Repeat]:
        """The repeats that the user made, under the names that they have in the graphs."""
        return [repeat for part in self.parts for repeat in part.inside if repeat.own]

    @property
    def described(self) -> tuple[OwnRepeat, ...]:
        """The repeats that the user made, as a plan holds them."""
        return tuple(described(repeat, part.path) for part in self.parts for repeat in part.inside if repeat.own)

    def part_of(self, block: str) -> PartRepeats:
        """The part that a block is in, by the name that the block has in the model."""
        return next(part for part in self.parts if block in part.blocks)

    def structure(self, paths: Collection[str] = ()) -> tuple[str, ...]:
        """The text of the parts at some paths, or of all where none is there, and of the model around them.

        It is that of the graph where the whole model is one.
        """
        used = [part for part in self.parts if part.path in paths] or self.parts
        return _text({part.path: part.lines for part in used}, self.captured.source)


def find_in_parts(captured: CapturedParts, find: Find = by_structure) -> ModelRepeats:
    """The repeats of each part, as `find` says (`repl_fx.tracing.parts.finders`)."""
    parts = (PartRepeats.of(part.path, part.graph_module, find(part)) for part in captured.parts)
    return ModelRepeats(captured, tuple(parts))


def find_again(captured: CapturedParts, plan: Plan) -> ModelRepeats:
    """The repeats that a plan is for, of the model that it was made for.

    Raises:
        PlanMismatch: it was made for another model, or a repeat of the user's in it does not hold here.
    """
    try:
        found = find_in_parts(captured, by_plan(plan))
    except BadInput as problem:
        _require_made_for(plan, find_in_parts(captured, lambda part: ()))
        raise PlanMismatch(f"a repeat of the plan does not hold: {problem}; make a new plan") from problem
    _require_made_for(plan, found)
    return found


def _require_made_for(plan: Plan, found: ModelRepeats) -> None:
    if plan.fingerprint:
        structure = found.structure(plan.parts)
        if plan.fingerprint != fingerprint(structure):
            name = type(found.captured.source).__name__
            raise PlanMismatch(f"the plan was made for another model than this {name}; make a new plan", structure)


def _named_from(path: str, repeat: Repeat) -> Repeat:
    if not path:
        return repeat
    blocks = tuple(
        replace(
            block,
            name=qualified_name(path, block.name),
            parameters=tuple(qualified_name(path, name) for name in block.parameters),
            module_path=None if block.module_path is None else qualified_name(path, block.module_path),
        )
        for block in repeat.blocks
    )
    children = tuple(_named_from(path, child) for child in repeat.children)
    return replace(repeat, name=qualified_name(path, repeat.name), blocks=blocks, children=children)


def lines_made(module: nn.Module) -> tuple[str, ...]:
    """The text of the code of a rewritten module: its graphs, what stays Python around them, parameters and buffers.

    Precision, and subclasses that a library makes of a layer's class to wrap it, leave no trace in it. Nor do values of
    buffers: code may make them in its first forward.
    """
    text = _text({path: lines_of_code(gm) for path, gm in graphs_in(module).items()}, module, as_set=True)
    shapes = sorted((name, list(tensor.shape)) for name, tensor in module.named_parameters(remove_duplicate=False))
    parameters = (f"the parameter {name} {shape}" for name, shape in shapes)
    buffers = (
        f"the buffer {qualified_name(path, name)}"
        for path, inner in module.named_modules(remove_duplicate=False)
        for name in sorted(inner._buffers.keys() - inner._non_persistent_buffers_set)
    )
    return *(_NO_RATE.sub("", _PRECISION.sub("", line)) for line in text), *parameters, *buffers


def _text(graphs: Mapping[str, Iterable[str]], model: nn.Module, *, as_set: bool = False) -> tuple[str, ...]:
    """The lines of graphs, by path, and of the model around them; those of the graph where the whole model is one."""
    if "" in graphs:
        return tuple(graphs[""])
    inside = (f"{path}: {line}" for path in sorted(graphs) for line in graphs[path])
    return *inside, *lines_around(model, graphs, as_set=as_set)
