"""The plan: which blocks go and what stands in for each. Frozen, printable, and replayable on a fresh model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any, TypeVar

import msgspec

from repl_fx.display.html import Displayed
from repl_fx.errors import PlanMismatch, ReplFxError, one_line

_T = TypeVar("_T")

SCHEMA = 1


def of_schema(
    text: str, kind: type[_T], schema: int, words: tuple[str, str], refusal: type[ReplFxError]
) -> tuple[_T, dict[str, Any]]:
    """A dataclass from JSON that says its schema, and the data that it was made from.

    Args:
        words: "a plan" and "the plan has", say, for the refusal of another text, or of another schema.
    """
    try:
        data = json.loads(text)
        found = data.pop("schema")
        if found == schema:
            return msgspec.convert(data, kind), data
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, msgspec.ValidationError) as problem:
        raise refusal(f"not {words[0]}: {one_line(problem)}") from problem
    raise refusal(f"{words[1]} schema {found!r}; this version reads {schema}; install a matching repl-fx")


@dataclass(frozen=True)
class Replacement:
    """One block that goes.

    Attributes:
        block: name of the block.
        repeat: name of its repeat.
        before, after: the kept blocks around it, which most surrogates are made from; empty where it is one that stands
            alone.
        surrogate: key of the surrogate.
        settings: the surrogate's settings.
        why: the reason why it is not one that comes first in the choice; empty where it is the first that fits.
    """

    block: str
    repeat: str
    before: str
    after: str
    surrogate: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""

    def __str__(self) -> str:
        around = f" between {' and '.join(self.neighbours)}" if self.neighbours else ""
        return f"{self.block} -> {self.surrogate}{around}"

    @property
    def opens_stretch(self) -> bool:
        """Tell whether the block is taken out though it changes sizes: the map of its stretch takes what it took."""
        return bool(self.settings.get("in_stretch", False))

    @property
    def neighbours(self) -> tuple[str, ...]:
        """The kept blocks around it, before and after; none for a surrogate that is made from its block alone."""
        return tuple(filter(None, (self.before, self.after)))


@dataclass(frozen=True)
class Refusal:
    """One block that was asked for and stays.

    Attributes:
        block: name of the block.
        repeat: name of its repeat.
        reason: in words.
        node: name of the node of the graph that is the reason; None where it is no single one.
    """

    block: str
    repeat: str
    reason: str
    node: str | None = None

    def __str__(self) -> str:
        return f"{self.block} stays: {self.reason}"


@dataclass(frozen=True)
class OwnRepeat:
    """A repeat that the user made, in place of those that are found; see `repl_fx.repeat_of`.

    Attributes:
        name: of the repeat, in its graph.
        blocks: each the path of a module, or the names of its nodes in the graph.
        part: path of the module that was captured and has the blocks; "" is the whole model.
    """

    name: str
    blocks: tuple[str | tuple[str, ...], ...]
    part: str = ""


@dataclass(frozen=True, repr=False)
class Plan(Displayed):
    """The decision which blocks of a model go, and which surrogate stands in for each.

    Attributes:
        replacements: the blocks that go, in program order.
        refusals: the blocks that were asked for and stay.
        fingerprint: hash of the captured graph the plan was made for; empty to apply it to any graph with its blocks.
        seed: seed of the surrogates' initial values.
        parts: paths of the modules that were captured and hold what is replaced; "" is the whole model. Names of blocks
            and repeats begin with the path of their part.
        expected: of a plan made for a budget, what is left of each cost, as a share of the original: `params`, `flops`,
            `memory` (kept for the backward pass) where they are known, and `latency` where it was asked for.
        timed_on: the device on which the latency was measured; empty where it was not.
        repeats: those that the user made, in place of those that are found.
    """

    replacements: tuple[Replacement, ...]
    refusals: tuple[Refusal, ...]
    fingerprint: str
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] = 0
    parts: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ("",)
    expected: Mapping[str, float] = field(default_factory=dict)
    timed_on: str = ""
    repeats: tuple[OwnRepeat, ...] = ()

    def __str__(self) -> str:
        lines = [str(line) for line in (*self.replacements, *self.refusals)]
        if self.expected:
            shares = ", ".join(f"{name} {number:.4g}" for name, number in self.expected.items())
            timed = f"; latency was measured on {self.timed_on}" if self.timed_on else ""
            lines.append(f"expected, of the original: {shares}{timed}")
        return "\n".join(lines) or "nothing to do"

    def without_surrogates(self) -> Plan:
        """The plan that takes the same blocks out and puts nothing in their places: depth pruning."""
        gone = tuple(replace(one, surrogate="identity", settings={}, why="") for one in self.replacements)
        # It costs less than what was expected with surrogates.
        return replace(self, replacements=gone, expected={}, timed_on="")

    def to_json(self) -> str:
        """The plan as JSON text."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """A plan from its JSON text.

        Raises:
            PlanMismatch: the text is no plan, and says where, or was written by a newer version.
        """
        plan, data = of_schema(text, cls, SCHEMA, ("a plan", "the plan has"), PlanMismatch)
        unknown = [name for name in data if name not in {f.name for f in fields(cls)}]
        for kind, name in ((Replacement, "replacements"), (Refusal, "refusals"), (OwnRepeat, "repeats")):
            known = {f.name for f in fields(kind)}
            items = enumerate(data.get(name, ()))
            unknown += [f"{name}[{i}].{key}" for i, item in items for key in item if key not in known]
        if unknown:
            raise PlanMismatch(f"not a plan: it has an unknown field {unknown[0]}")
        return plan
