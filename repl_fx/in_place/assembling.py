"""The model in place: a copy of the source's module tree with surrogates at the places of the replaced blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import fx, nn

from repl_fx.in_place.attention_calls import watch
from repl_fx.in_place.checkpointed_blocks import CheckpointedForward
from repl_fx.in_place.cutting import Cut, NotInPlace
from repl_fx.in_place.pretrained import complete_
from repl_fx.in_place.surrogate_block import OWN, SurrogateBlock
from repl_fx.plan import Plan, Refusal
from repl_fx.planning.part_repeats import PartRepeats
from repl_fx.surrogates.shared.site import surrogate_path
from repl_fx.tracing.parts.capture import CapturedParts, assemble, qualified_name


@dataclass(frozen=True)
class InPlace:
    """A model in place.

    Attributes:
        model: a module of the source's class; None where a replaced block has no place in it.
        refusals: the replaced blocks that have none, with the reasons.
        open: the blocks among these for which another surrogate may have a place.
        prefixes: of the names of surrogates' tensors in the rewritten module, and of the same tensors in the model.
    """

    model: nn.Module | None
    refusals: tuple[Refusal, ...] = ()
    prefixes: Mapping[str, str] = field(default_factory=dict)
    open: frozenset[str] = frozenset()

    @property
    def reason(self) -> str:
        """The first refusal in words: the block and the reason."""
        return f"{self.refusals[0].block}: {self.refusals[0].reason}"


def put_in_place(
    captured: CapturedParts,
    parts: Sequence[PartRepeats],
    plan: Plan,
    graphs: Mapping[str, fx.GraphModule],
    *,
    checkpoint_blocks: bool = False,
) -> InPlace:
    """Put surrogates into a copy of the source's module tree.

    Args:
        captured: the model.
        parts: its repeats, by part.
        plan: the plan that was applied.
        graphs: the rewritten graphs with syntheses one by one, by the path of their part; the model in place shares
            their tensors.
        checkpoint_blocks: whether kept blocks are computed again in the backward pass.
    """
    blocks: dict[str, SurrogateBlock] = {}
    prefixes: dict[str, str] = {}
    refusals: list[Refusal] = []
    fits_others: set[str] = set()
    for part in parts:
        for replacement in plan.replacements:
            if replacement.block not in part.blocks:
                continue
            name = part.blocks[replacement.block].name
            try:
                cut = Cut(graphs[part.path], part, replacement, captured.source)
                # The block is one that can have a surrogate in its place.
                fits_others.add(replacement.block)
                made = cut.made()
            except NotInPlace as problem:
                refusals.append(Refusal(replacement.block, replacement.repeat, str(problem)))
            else:
                path = made._stand_in.block
                blocks[path] = made
                prefixes[f"{qualified_name(part.path, surrogate_path(name))}."] = f"{path}.{OWN}."
    if refusals:
        return InPlace(None, tuple(refusals), open=frozenset(fits_others & {refusal.block for refusal in refusals}))
    model = assemble(captured.source, blocks)
    for block in blocks.values():
        stand_in = block._stand_in
        stand_in.around = (model,)
        for layer in stand_in.borrowed:
            watch(model.get_submodule(layer.kept.path), layer.kept)
        if stand_in.neighbour is not None:
            path, _, form = stand_in.neighbour
            model.get_submodule(path).register_forward_hook(form)
    if checkpoint_blocks:
        for path in _kept_modules(parts, plan):
            CheckpointedForward.put_on(model.get_submodule(path))
    complete_(model)
    return InPlace(model, (), prefixes)


def _kept_modules(parts: Sequence[PartRepeats], plan: Plan) -> list[str]:
    """The paths of the modules that are kept blocks of a repeat in which others were replaced."""
    gone = {replacement.block for replacement in plan.replacements}
    found: dict[str, None] = {}
    for part in parts:
        for repeat in part.repeats:
            if gone.isdisjoint(block.name for block in repeat.blocks):
                continue
            found.update({b.module_path: None for b in repeat.blocks if b.module_path and b.name not in gone})
    return list(found)
