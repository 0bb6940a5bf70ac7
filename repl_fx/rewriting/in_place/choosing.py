"""Surrogates that have a place in the model's own tree, where a block has several to choose from.

`auto` prefers `reuse` for `blocks.3`, which mixes by the attention map of `blocks.2.attn`; a module that keeps its
map to itself leaves `reuse` without a place, and the next choice, such as `bottleneck`, is taken with that reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from repl_fx.plan import Plan, Refusal, Replacement
from repl_fx.rewriting.in_place.assembling import InPlace

Choices = Callable[[Replacement], Iterator[Replacement]]


def settle_places(
    plan: Plan,
    choices: Choices,
    settle: Callable[[Plan, Choices], Plan],
    put: Callable[[Plan], InPlace],
    *,
    required: bool,
) -> Plan:
    """A plan whose surrogates have places, where another choice has one.

    Args:
        plan: a plan whose replacements train.
        choices: the other surrogates that may stand in for a block, most preferred first.
        settle: makes of a plan one whose replacements train, by such choices.
        put: puts the surrogates of a plan in place.
        required: whether a block stays where none of its choices has a place. Else the graph is the way for all of the
            model, and the plan is as it was.
    """
    preferred, unfit = plan, dict[tuple[str, str], str]()

    def others(replaced: Replacement) -> Iterator[Replacement]:
        left = (other for other in choices(replaced) if (other.block, other.surrogate) not in unfit)
        reasons = [reason for (block, _), reason in unfit.items() if block == replaced.block]
        return (replace(other, why=reasons[0]) for other in left) if reasons else left

    while plan.replacements and (refusals := (placed := put(plan)).refusals):
        refused = {refusal.block: refusal for refusal in refusals}
        kept, stay = list[Replacement](), list[Refusal]()
        for replacement in plan.replacements:
            refusal = refused.get(replacement.block)
            if refusal is None:
                kept.append(replacement)
                continue
            unfit[replacement.block, replacement.surrogate] = f"{replacement.surrogate} has no place: {refusal.reason}"
            other = next(others(replacement), None) if replacement.block in placed.open else None
            if other is not None:
                kept.append(other)
            elif required:
                stay.append(
                    replace(refusal, reason=f"its surrogate has no place in the model's tree: {refusal.reason}")
                )
            else:
                return preferred
        plan = settle(replace(plan, replacements=tuple(kept), refusals=(*plan.refusals, *stay)), others)
        if not required and len(plan.replacements) < len(preferred.replacements):
            # No other choice trains.
            return preferred
    return plan
