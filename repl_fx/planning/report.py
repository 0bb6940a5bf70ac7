"""The report: what became of each block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import fx

from repl_fx.plan import Plan
from repl_fx.planning.part_repeats import PartRepeats
from repl_fx.surrogates.shared.site import surrogate_path

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
    """

    block: str
    repeat: str
    status: Status
    surrogate: str | None
    reason: str | None
    parameters_before: int
    parameters_after: int


def reports_of(part: PartRepeats, rewritten: fx.GraphModule, plan: Plan) -> list[BlockReport]:
    """The fates of the blocks of one part.

    `rewritten` is its graph behind the plan; the graph of the part where no block of it was replaced.
    """
    replaced = {replacement.block: replacement for replacement in plan.replacements}
    refused = {refusal.block: refusal for refusal in plan.refusals}
    sizes, left = (
        {name: parameter.numel() for name, parameter in gm.named_parameters()} for gm in (part.graph_module, rewritten)
    )
    rows = []
    for repeat in part.repeats:
        for name in (block.name for block in repeat.blocks):
            block = part.blocks[name]
            own = set(block.parameters)
            before = after = sum(sizes.get(path, 0) for path in own)
            status: Status = "kept"
            key, reason = None, None
            if name in replaced:
                status, key, reason = "replaced", replaced[name].surrogate, replaced[name].why or None
                place = f"{surrogate_path(block.name)}."
                after = sum(size for path, size in left.items() if path in own or path.startswith(place))
            elif refusal := refused.get(name, refused.get(repeat.name)):
                status, reason = "refused", refusal.reason
            rows.append(BlockReport(name, repeat.name, status, key, reason, before, after))
    return rows
