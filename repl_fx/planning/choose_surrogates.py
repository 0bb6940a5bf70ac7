"""Choose what stands in for each block that goes: the first surrogate that fits, where nothing of the block forbids it.

Never touches: the graph.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

from repl_fx.finding.side_outputs import only_returned
from repl_fx.graph.assigned_buffers import assigned_by
from repl_fx.graph.kinds import dtype_name
from repl_fx.plan import Plan, Refusal, Replacement
from repl_fx.planning.choose_blocks import NONE_KEPT, Chosen, with_neighbours
from repl_fx.planning.policies import Policy, policy_of
from repl_fx.surrogates import Match, Site, Surrogate, make_surrogate
from repl_fx.tracing.hooks import hooks_within
from repl_fx.tracing.parts.part_repeats import ModelRepeats, PartRepeats


def choose_surrogates(
    found: ModelRepeats, chosen: Sequence[Chosen], policy: Policy
) -> tuple[tuple[Replacement, ...], tuple[Refusal, ...]]:
    """Choose what stands in for each block, by the policy that was asked for; where nothing can, the block stays."""
    lone = {pick.block.name for pick in chosen if _stands_alone(found, pick.block.name, policy)}
    if lone:
        # Blocks that stay in part are neighbours of others.
        picked = [(pick.repeat, pick.repeat.blocks.index(pick.block)) for pick in chosen]
        chosen = with_neighbours(picked, lone, one_sided=True).chosen
    replacements: list[Replacement] = []
    refusals: list[Refusal] = []
    for pick in chosen:
        block, repeat = pick.block.name, pick.repeat.name
        before, after = pick.around
        part, site = _site(found, block, before, after)
        choice = _first(part, site, policy) or policy.choices(site)[-1]
        if (before and after) or choice.traits.source == "block":
            refusal = _refusal(part, site, choice)
        else:
            refusal = Refusal(block, repeat, NONE_KEPT)
        if refusal is None:
            replacements.append(Replacement(block, repeat, before, after, choice.key, choice.settings()))
        else:
            refusals.append(replace(refusal, block=block, repeat=repeat))
    if policy.traits.source == "stream":
        replacements = by_stretch(found, chosen, replacements, {replacement.block for replacement in replacements})
    return tuple(replacements), tuple(refusals)


def _first(part: PartRepeats, site: Site, policy: Policy) -> Surrogate[Any, Any] | None:
    """The first surrogate that fits."""
    return next((one for one in policy.choices(site) if isinstance(part.matches.of(one, site), Match)), None)


def _stands_alone(found: ModelRepeats, block: str, policy: Policy) -> bool:
    """Tell whether the first surrogate that can stand in for a block is made from the block alone."""
    if policy.traits.source != "block":
        return False
    first = _first(*_site(found, block, "", ""), policy)
    return first is not None and first.traits.source == "block"


def by_stretch(
    found: ModelRepeats,
    chosen: Sequence[Chosen],
    replacements: Sequence[Replacement],
    in_stretches: Collection[str],
) -> list[Replacement]:
    """Let the last of several blocks in a row stand for all of them: the others are taken out where that fits.

    Args:
        in_stretches: the blocks whose surrogates span stretches.
    """
    identity, opening = make_surrogate("identity"), make_surrogate("identity", {"in_stretch": True})
    # Blocks that hand their stream to one that goes too.
    going = [pick for pick in chosen if pick.block.name in in_stretches]
    inner = {pick.block.name: last for pick in going if (last := _behind(pick)) in in_stretches}
    stretched = []
    for one in replacements:
        if one.block in inner:
            part, site = _site(found, one.block, one.before, one.after)
            # A map between sizes can take what a block took that changes them.
            between = make_surrogate(one.surrogate, one.settings).traits.changes_sizes
            ways = [identity, opening] if between else [identity]
            way = next((way for way in ways if _refusal(part, site, way) is None), None)
            if way is not None:
                why = f"{inner[one.block]} stands for it too"
                one = replace(one, surrogate=way.key, settings=way.settings(), why=why)
        stretched.append(one)
    return stretched


def _behind(pick: Chosen) -> str | None:
    """The block of the repeat that takes all that a block streams, as it is."""
    blocks = pick.repeat.blocks
    place = blocks.index(pick.block) + 1
    follows = place < len(blocks) and blocks[place].inputs == pick.block.outputs
    return blocks[place].name if follows else None


def next_choices(found: ModelRepeats, policy: Policy, replaced: Replacement) -> Iterator[Replacement]:
    """Other surrogates that may stand in for a block in place of the one that does not train, most preferred first."""
    part, site = _site(found, replaced.block, replaced.before, replaced.after)
    for choice in policy.choices(site):
        if choice.traits.source != "block" and not (replaced.before and replaced.after):
            continue
        if choice.key != replaced.surrogate and _refusal(part, site, choice) is None:
            yield replace(replaced, surrogate=choice.key, settings=choice.settings())


def without_policies(found: ModelRepeats, plan: Plan) -> Plan:
    """A plan with what policies such as `auto` choose in the place of those that it names."""

    def chosen(one: Replacement) -> Replacement:
        policy = policy_of(one.surrogate, one.settings)
        if len(policy.candidates) == 1:
            return one
        choice = _first(*_site(found, one.block, one.before, one.after), policy) or policy.candidates[-1]
        return replace(one, surrogate=choice.key, settings=choice.settings())

    return replace(plan, replacements=tuple(map(chosen, plan.replacements)))


def _site(found: ModelRepeats, block: str, before: str, after: str) -> tuple[PartRepeats, Site]:
    """The part that a block is in, and its site there, from the names that they have in the model."""
    part = found.part_of(block)
    return part, part.matches.site(block, before, after)


def _refusal(part: PartRepeats, site: Site, surrogate: Surrogate[Any, Any]) -> Refusal | None:
    """Why a surrogate cannot stand in for a block; None where it can."""
    found = part.matches.of(surrogate, site)
    return (
        _inner_value_used(site, surrogate)
        or _hook_dropped(site)
        or _update_lost(site, surrogate)
        or _integer_weight(site, surrogate)
        or (found if isinstance(found, Refusal) else None)
    )


def _inner_value_used(site: Site, surrogate: Surrogate[Any, Any]) -> Refusal | None:
    if surrogate.traits.keeps_nodes:
        return None
    block = site.block
    used = next((value for value in block.side_outputs if not only_returned(value, block)), None)
    return None if used is None else site.refusal(f"its inner value {used.name} is used outside the block", used)


def _hook_dropped(site: Site) -> Refusal | None:
    layers = [str(node.target) for node in site.block.nodes if node.op == "call_module"]
    hook = hooks_within(site.graph_module, layers)
    return None if hook is None else site.refusal(hook)


def _update_lost(site: Site, surrogate: Surrogate[Any, Any]) -> Refusal | None:
    """Why a surrogate cannot stand in for a block that updates a buffer."""
    update = next((node for node in site.block.nodes if assigned_by(node)), None)
    if update is None or surrogate.traits.source == "nothing":
        return None
    buffer = assigned_by(update)
    nodes = site.graph_module.graph.nodes
    if surrogate.traits.fills_buffers and not any(n.op == "get_attr" and n.target == buffer for n in nodes):
        return None
    return site.refusal(f"its forward updates buffer {buffer}, which {surrogate.key} would leave as it is", update)


def _integer_weight(site: Site, surrogate: Surrogate[Any, Any]) -> Refusal | None:
    """Why no weights can be made from those of the neighbours."""
    if surrogate.traits.source == "nothing":
        return None
    names = [*site.block.parameters, *(name for block in site.neighbours for name in block.parameters)]
    for name in names:
        dtype = site.tensor(name).dtype
        if not (dtype.is_floating_point or dtype.is_complex) or dtype.itemsize == 1:
            return site.refusal(
                f"{name} is {dtype_name(dtype)}, and weights can be made from floating point ones alone"
            )
    return None
