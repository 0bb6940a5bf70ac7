"""The report: what became of each block, and the table of that."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import fx

from repl_fx.display.columns import Table, numbers, words
from repl_fx.display.numbers import count
from repl_fx.finding.blocks import Block
from repl_fx.plan import Plan
from repl_fx.surrogates import Match, make_surrogate
from repl_fx.surrogates.shared.site import surrogate_path
from repl_fx.tracing.parts.part_repeats import PartRepeats

Status = Literal["kept", "replaced", "refused"]


@dataclass(frozen=True)
class BlockReport:
    """The fate of one block.

    Attributes:
        block, repeat: names.
        status: `replaced`, `kept` (nobody asked for it) or `refused`.
        surrogate: key of what stands in for it; None where it stays.
        reason: why it was refused; of a replaced block, why another surrogate does not stand in for it.
        parameters_before, parameters_after: elements of its own parameters.
        made_from: of a replaced block, the blocks that weights or values of its surrogate come from.
        left: what is left of a block that stands in for itself in a smaller size; empty for any other.
        layers: of a block that has the name of a module and is a part of that, the children of it that the block has.
    """

    block: str
    repeat: str
    status: Status
    surrogate: str | None
    reason: str | None
    parameters_before: int
    parameters_after: int
    made_from: tuple[str, ...] | None = None
    left: str = ""
    layers: tuple[str, ...] = ()

    @property
    def named(self) -> str:
        """The block's name, with its layers where the module of that name has others."""
        return f"{self.block} ({', '.join(self.layers)})" if self.layers else self.block

    @property
    def how(self) -> str:
        """The surrogate of a block, what it is made of and why not another, or the reason why the block stays."""
        made = f", from {' and '.join(self.made_from)}" if self.made_from else ""
        left = f", {self.left}" if self.left else ""
        return "; ".join(filter(None, (self.surrogate and f"{self.surrogate}{made}{left}", self.reason)))


def reports_of(part: PartRepeats, rewritten: fx.GraphModule, plan: Plan) -> list[BlockReport]:
    """The fates of the blocks of one part.

    `rewritten` is its graph behind the plan; the graph of the part where no block of it was replaced.
    """
    replaced = {replacement.block: replacement for replacement in plan.replacements}
    refused = {refusal.block: refusal for refusal in plan.refusals}
    sizes, rest = (
        {name: parameter.numel() for name, parameter in gm.named_parameters()} for gm in (part.graph_module, rewritten)
    )
    rows = []
    for repeat in part.repeats:
        for name in (block.name for block in repeat.blocks):
            block = part.blocks[name]
            own = set(block.parameters)
            before = after = sum(sizes.get(path, 0) for path in own)
            status: Status = "kept"
            key, reason, made_from, left = None, None, None, ""
            if name in replaced:
                one = replaced[name]
                status, key, reason = "replaced", one.surrogate, one.why or None
                surrogate = make_surrogate(key, one.settings)
                made_from = surrogate.made_from(one.before, one.after)
                match = part.matches.of(surrogate, part.matches.site(name, one.before, one.after))
                left = match.left if isinstance(match, Match) else ""
                place = f"{surrogate_path(block.name)}."
                after = sum(size for path, size in rest.items() if path in own or path.startswith(place))
            elif refusal := refused.get(name, refused.get(repeat.name)):
                status, reason = "refused", refusal.reason
            layers = _layers_within(block, sizes)
            rows.append(BlockReport(name, repeat.name, status, key, reason, before, after, made_from, left, layers))
    return rows


def _layers_within(block: Block, every: Iterable[str]) -> tuple[str, ...]:
    """The children of the module with the name of a block that are in the block; none where it has all of them."""
    prefix = f"{block.name.partition('#')[0]}."
    if block.module_path or not all(path.startswith(prefix) for path in block.parameters):
        return ()
    own, there = (
        dict.fromkeys(path.removeprefix(prefix).split(".")[0] for path in paths if path.startswith(prefix))
        for paths in (block.parameters, every)
    )
    return tuple(own) if own.keys() < there.keys() else ()


def blocks_table(report: Sequence[BlockReport]) -> Table:
    """The fate of each block, numbered as `--blocks` takes them, and the reason."""
    sizes = numbers("parameters\nbefore", "parameters\nafter")
    rows = [
        (str(number), row.named, row.status, count(row.parameters_before), count(row.parameters_after), row.how)
        for number, row in enumerate(report, start=1)
    ]
    return Table("Blocks", (*numbers("#"), *words("block", "status"), *sizes, *words("how, or why not")), rows)
