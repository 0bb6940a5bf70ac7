"""Replace blocks by their surrogates.

    before   x -> [block 2] -> [block 3] -> [block 4] -> y
    after    x -> [block 2] -> surrogate of 3, made from 2 and 4 -> [block 4] -> y

Needs: a graph in normal form, its repeats, and a plan made for them.
Parameters, buffers and modules that only the replaced blocks used are removed with them.
Never touches: the graph it is given; blocks that are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import fx

from repl_fx.arguments import require_kind
from repl_fx.errors import PlanMismatch, foreign_code
from repl_fx.finding.blocks import Block, Repeat
from repl_fx.finding.side_outputs import return_none_
from repl_fx.graph.bridge import digraph_with_writes, leading_to
from repl_fx.graph.captured import drop_dead, erase_dead, parameters_read
from repl_fx.graph.grouping import grouped
from repl_fx.graph.notes import BLOCK, COUNTERPART, REPLACES
from repl_fx.graph.state import SOURCE_STATE, prune_state_, state_shapes, used_by
from repl_fx.passes.check_graph import check_surrogates
from repl_fx.passes.driver import Result
from repl_fx.plan import Plan, Refusal, Replacement
from repl_fx.surrogates import make_surrogate
from repl_fx.surrogates.shared.builder import Builder, Rewriting
from repl_fx.surrogates.shared.matching import Matches


class CutStretch(PlanMismatch):
    """A plan takes a block out that changes sizes, and has no map behind it that stands for it too."""


def replace_blocks(gm: fx.GraphModule, repeats: Sequence[Repeat], plan: Plan, matches: Matches | None = None) -> Result:
    """Apply a plan.

    Args:
        gm: the graph the repeats were found in.
        repeats: from `find_repeats`.
        plan: from `repl_fx.make_plan`.
        matches: of surrogates and blocks, from making the plan; None where they are not known.

    Returns:
        A new graph module, whose code is not written yet, that shares the tensors of what is kept, with the names of
        the blocks that are gone.

    Raises:
        PlanMismatch: the plan names a block the graph does not have, replaces one twice, or makes a surrogate from a
            block that goes or lies elsewhere; or its surrogate refuses it.
        CutStretch: the stretch of a block that changes sizes ends in no map.
        ForeignError: a surrogate that is not repl-fx's fails.
        BrokenGraph: a surrogate leaves in place what it says it replaces, or makes what nothing reads.
    """
    matches = matches or Matches(gm, repeats)
    _require_kept_neighbours(plan, matches)
    _require_whole_stretches(plan, matches)
    rewriting = Rewriting(gm)
    result = rewriting.graph_module
    used = used_by(gm)
    readers = grouped((path, node) for node in gm.graph.nodes for path in parameters_read(gm, node))
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed the GPUs too, and leave them so.
        torch.default_generator.manual_seed(plan.seed)
        gone = {r.block: _replace(rewriting, r, matches, readers) for r in plan.replacements}
    drop_dead(result.graph)
    replaced = [matches.block(r.block)[0] for r in plan.replacements]
    # Repeats may share nodes; those of a replaced block are its own.
    for block in (*replaced, *(block for repeat in repeats for block in repeat.blocks)):
        for node in rewriting.left_of(block):
            BLOCK.put(node, BLOCK.of(node) or block.name)
    check_surrogates(result, {r.block: r.surrogate for r in plan.replacements}, gone)
    prune_state_(result, used)
    result.meta[SOURCE_STATE] = state_shapes(gm)
    return Result(result, tuple(gone))


def block_of(node: fx.Node) -> str | None:
    """The name of the block that a node of a rewritten graph belongs to, or whose surrogate it is part of."""
    replaced = REPLACES.of(node)
    return replaced[0] if replaced else BLOCK.of(node)


def _require_kept_neighbours(plan: Plan, matches: Matches) -> None:
    """Refuse a plan, such as one edited by hand, that replaces a node twice or makes a surrogate from no neighbour."""
    gone, whole = set[fx.Node](), set[fx.Node]()
    surrogates = [make_surrogate(r.surrogate, r.settings) for r in plan.replacements]
    for replacement, surrogate in zip(plan.replacements, surrogates, strict=True):
        nodes = matches.block(replacement.block)[0].nodes
        if not gone.isdisjoint(nodes):
            raise PlanMismatch(f"the plan replaces {replacement.block} twice, or a part of it; make a new plan")
        gone.update(nodes)
        # What a block is made smaller to is a neighbour of others.
        whole.update(nodes if surrogate.traits.source != "block" else ())
    for replacement, surrogate in zip(plan.replacements, surrogates, strict=True):
        block, repeat = matches.block(replacement.block)
        place, (before, after) = repeat.blocks.index(block), (replacement.before, replacement.after)
        for name, side in ((before, repeat.blocks[:place]), (after, repeat.blocks[place + 1 :])):
            if name not in surrogate.made_from(before, after):
                continue
            neighbour, _ = matches.block(name)
            if neighbour not in side or not whole.isdisjoint(neighbour.nodes):
                raise PlanMismatch(
                    f"the plan makes {surrogate.key} of {replacement.block} from {name}, which is no block that is "
                    "kept on that side of it; make a new plan"
                )


def _require_whole_stretches(plan: Plan, matches: Matches) -> None:
    """Refuse a plan in which nothing takes what a block took that is taken out with its change of sizes."""
    taking = {matches.block(r.block)[0].inputs: r for r in plan.replacements}
    for replacement in plan.replacements:
        behind: Replacement | None = replacement
        source = "nothing" if replacement.opens_stretch else "stream"
        while source == "nothing" and behind is not None:
            behind = taking.get(matches.block(behind.block)[0].outputs)
            source = make_surrogate(behind.surrogate, behind.settings).traits.source if behind else ""
        if source != "stream":
            raise CutStretch(
                f"the plan takes {replacement.block} out, which changes sizes, and has no map behind it that takes "
                "what it took; make a new plan"
            )


def _replace(
    rewriting: Rewriting, replacement: Replacement, matches: Matches, readers: Mapping[str, Sequence[fx.Node]]
) -> tuple[str, ...]:
    """Replace one block; returns the paths of the parameters that its surrogate takes the place of."""
    site = matches.site(replacement.block, replacement.before, replacement.after)
    surrogate, block = make_surrogate(replacement.surrogate, replacement.settings), site.block
    if len(replacement.neighbours) < 2 and surrogate.traits.source not in ("block", "nothing"):
        raise PlanMismatch(
            f"the plan names no blocks around {replacement.block} for {replacement.surrogate}; make a new plan"
        )
    match = matches.of(surrogate, site)
    if isinstance(match, Refusal):
        raise PlanMismatch(f"{replacement.surrogate} cannot stand in for {block.name}: {match.reason}")
    # Others may read a parameter of the block too, and go on with it.
    own = block.node_set | site.weight_nodes
    kept = site.unmixed_parameters if match.kept_parameters is None else match.kept_parameters
    stays = {*kept, *(path for path, nodes in readers.items() if not own.issuperset(nodes))}
    gone = tuple(path for path in dict.fromkeys(block.parameters) if path not in stays)
    with nullcontext() if surrogate.builds_by_ours else foreign_code():
        made = surrogate.build(Builder(rewriting, site, replacement.surrogate), match)
    require_kind(made, Sequence, f"build of {replacement.surrogate} returns a tuple of nodes, one for each output")
    if len(made) != len(block.outputs):
        raise PlanMismatch(
            f"{replacement.surrogate} made {len(made)} values for {block.name}, which has {len(block.outputs)}; "
            "let its match() refuse such blocks"
        )
    for output, value in zip(block.outputs, made, strict=True):
        rewriting.replace(output, value)
    _note_counterparts(rewriting, block)
    graph = rewriting.graph_module.graph
    inside = [rewriting.copy_of(node) for node in block.nodes]
    if not surrogate.traits.keeps_nodes:
        for side_output in block.side_outputs:
            return_none_(rewriting.copy_of(side_output), set(inside))
    # Calls of modules count as effects; those of a block that is gone are gone with it.
    nodes = rewriting.left_of(block)
    # What something behind the block reads stays, with the nodes that write into what it reads; and of a block whose
    # nodes stay what nothing reads, which is there for the state that it changes.
    alive = set(nodes)
    # A call on other values that is made in a node's place has its effects.
    unused = (node for node in block.nodes if surrogate.traits.keeps_nodes and not node.users)
    writes = {copied for node in unused if (copied := rewriting.copy_of(node)) is rewriting.now(node)}
    read = [node for node in nodes if not node.users.keys() <= alive or node in writes]
    left = leading_to(digraph_with_writes(nodes), read)
    erase_dead(graph, [node for node in nodes if node not in left])
    return gone


def _note_counterparts(rewriting: Rewriting, block: Block) -> None:
    """Note on what stays of a block, and on what took the place of its values, which of its nodes each stands for."""
    left = {rewriting.copy_of(node) for node in block.nodes}
    for node in block.nodes:
        now = rewriting.now(node)
        if now not in left and (REPLACES.of(now) or ("",))[0] != block.name:
            continue
        if now is rewriting.copy_of(node) or node in block.outputs or not COUNTERPART.of(now):
            COUNTERPART.put(now, node.name)
