"""The modules in whose places surrogates stand: replaced blocks, or the modules around parts of a block.

    layers.2 is a block                                         a surrogate stands in the place of layers.2
    x + attn(norm(x)) is, which is half of layers.0             a surrogate and the other half do in that of layers.0
    layers.4 and layers.5 are, one behind the other             a surrogate does in that of one; the other hands on
    x + attn(x) is, and the addition stands in a loop           a surrogate's branch does in that of attn
    pool(layers.6(x)) is, and pool stands in a loop             layers.6 runs on parameters that a surrogate makes

Of such a row, layers.4(x, mask) -> y and layers.5(y, mask) -> z, the first hands x on then, and the other computes z
from it. Where the loop adds what each of a row returns to the stream, one returns what the surrogate adds to it, and
the others zeros.
What of a module is no block runs as the graph has it: its layers are called, and its own code is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from repl_fx._torch import module_stack
from repl_fx.finding.blocks import Block
from repl_fx.graph.boundaries import at_boundaries
from repl_fx.graph.bridge import digraph, reached_from
from repl_fx.graph.captured import is_tensor
from repl_fx.graph.notes import STANDS_FOR
from repl_fx.graph.roles import ADDITIONS
from repl_fx.plan import Plan, Replacement
from repl_fx.tracing.parts.part_repeats import PartRepeats

# The submodule that holds the surrogates' own modules.
OWN = "surrogate"


class NotInPlace(Exception):
    """A surrogate that cannot stand in the source's own tree; the message is the reason."""


@dataclass(frozen=True)
class ModulePlace:
    """A module of a part that stands for replaced blocks, and for what of it they do not compute.

    Attributes:
        paths: of the module in the part; of several that are called one behind another; empty for a block that has no
            place.
        replacements: of the blocks.
        is_half: whether the module does more than its replaced blocks, so that the rest is the graph's.
        is_added: whether what each module returns is added to the stream outside of it.
        is_loose: whether the model does more outside of them, so that surrogates can swap parameters of theirs alone.
    """

    paths: tuple[str, ...]
    replacements: tuple[Replacement, ...] = ()
    is_half: bool = False
    is_added: bool = False
    is_loose: bool = False

    @property
    def is_apart(self) -> bool:
        """Tell whether each of the modules stands for its own part of a block."""
        return self.is_added or self.is_loose

    def own(self, block: str) -> str:
        """The path, in the module, of the modules of a block's surrogate."""
        if len(self.replacements) == 1:
            return OWN
        return f"{OWN}.{[replacement.block for replacement in self.replacements].index(block)}"


def places_of(part: PartRepeats, plan: Plan) -> Iterator[ModulePlace]:
    """The places of the blocks of a part that a plan replaces, in the order of the plan."""
    alone = {r.block: _placed(part, part.blocks[r.block]) for r in plan.replacements if r.block in part.blocks}
    single = {block: place.paths[0] for block, place in alone.items() if len(place.paths) == 1 and not place.is_apart}
    halves = [path for block, path in single.items() if part.blocks[block].module_path is None]
    found: dict[tuple[str, ...], ModulePlace] = {}
    for replacement in plan.replacements:
        if (place := alone.get(replacement.block)) is None:
            continue
        # One within another, where the outer one is a graph and does not call it.
        outer = [path for path in halves if place.paths and f"{place.paths[0]}.".startswith(f"{path}.")]
        place = ModulePlace((min(outer, key=len),), is_half=True) if outer else place
        key = place.paths or ("", replacement.block)
        found[key] = replace(place, replacements=(*found.get(key, place).replacements, replacement))
    yield from found.values()


def place_of(part: PartRepeats, block: Block) -> tuple[str, ...]:
    """The module that a block is; or the smallest one around it, without others of its repeat; or a row of modules."""
    return _placed(part, block).paths


def _placed(part: PartRepeats, block: Block) -> ModulePlace:
    """The place of a block, as if it were replaced alone."""
    # A list of modules is called by nobody.
    if block.module_path in module_stack(block.nodes[0]):
        return ModulePlace((str(block.module_path),))
    # A loop may make the same of a mask for each of its blocks, such as `mask == 0`, before it calls them.
    streamed = reached_from(digraph([*block.inputs, *sorted(block.nodes)]), block.inputs)
    stacks = [module_stack(node) for node in sorted(block.nodes) if is_tensor(node) and node in streamed]
    around = tuple(path for path in stacks[0] if all(path in stack for stack in stacks))
    repeat = next(repeat for repeat in part.inside if block in repeat.blocks)
    nodes = (node for other in repeat.blocks if other is not block for node in other.nodes)
    if around and not any(around[-1] in module_stack(node) for node in nodes):
        return ModulePlace(around[-1:])
    return _row(part, block, len(around), stacks)


def _row(part: PartRepeats, block: Block, depth: int, stacks: Sequence[tuple[str, ...]]) -> ModulePlace:
    """The modules, called one after another, that are all of a block but for what the model does outside of them.

    Outside may be the additions of what each returns to the stream, or more. Empty where modules do other work, too.
    """
    paths = tuple(dict.fromkeys(stack[depth] for stack in stacks if len(stack) > depth))
    outside = sum(len(stack) <= depth for stack in stacks)
    sums = sums_of(part.graph_module.graph, block.output, block.input, paths) if outside else {}
    inside = (node for node in part.graph_module.graph.nodes if is_tensor(node) and node.op != "get_attr")
    if any(not {*paths}.isdisjoint(module_stack(n)) and n not in block.node_set for n in inside):
        return ModulePlace(())
    is_row = not outside or (block.keeps_size and outside == len(sums) and {*sums} == {*paths})
    is_loose = bool(paths) and (len(block.inputs) > 1 or not is_row)
    return ModulePlace(paths, is_added=bool(paths) and not is_loose and adds_outside(block, paths), is_loose=is_loose)


def adds_outside(block: Block, paths: Sequence[str]) -> bool:
    """Tell whether what the modules of a block return is added to the stream outside of them."""
    return {*paths}.isdisjoint(module_stack(block.output))


def sums_of(
    graph: fx.Graph, output: fx.Node, stream: fx.Node, paths: Sequence[str]
) -> dict[str, tuple[fx.Node, fx.Node]]:
    """The additions to a stream, each as the sum before and what is added, by the module that returns this, or "".

    Empty where the output is made otherwise.
    """
    made = {node: path for path in paths for node, boundary in at_boundaries(graph, path) if boundary.argument is None}
    found: dict[str, tuple[fx.Node, fx.Node]] = {}
    while output is not stream:
        plain = output.target in ADDITIONS and len(output.all_input_nodes) == 2 and not output.kwargs
        both: Any = (output.args, output.args[::-1]) if plain else ()
        pair = next(((before, added) for before, added in both if before is stream or added in made), None)
        if pair is None:
            return {}
        found[made.get(pair[1], "")] = pair
        output = pair[0]
    return found


@dataclass(frozen=True)
class Way:
    """The way of the stream through a module.

    Attributes:
        place: among the arguments.
        leaf: the number among the results.
    """

    place: tuple[Any, ...]
    leaf: int


def ways_of(graph: fx.Graph, block: Block, paths: Sequence[str]) -> dict[str, Way]:
    """The ways of the stream through the modules of a row, by path.

    Raises:
        NotInPlace: a module hands on several values, or none.
    """
    given = [{n: b.argument for n, b in at_boundaries(graph, path) if b.argument is not None} for path in paths]
    made = [{n: b.leaf for n, b in at_boundaries(graph, path) if b.argument is None} for path in paths]
    sums = sums_of(graph, block.output, block.input, paths) if adds_outside(block, paths) else {}
    ways, stream = {}, block.input
    for path, taken, returned, behind in zip(paths, given, made, [*given[1:], {block.output: ()}], strict=True):
        stream, *added = sums.get(path, (stream,))
        shared = [node for node in returned if node in (added or behind)]
        if len(shared) != 1:
            raise NotInPlace(f"of the results of {path}, {len(shared)} go on to the module behind it, and not one")
        if stream not in taken:
            raise NotInPlace(f"{path} is not handed the stream, to which what it returns goes")
        ways[path] = Way(taken[stream], returned[shared[0]])
        stream = shared[0]
    return ways


def main_of(paths: Sequence[str], inside: set[fx.Node], returning: Sequence[str] = ()) -> str:
    """The module of a row that has all layers for which nodes of a surrogate stand, or which they call.

    Where there are none, the first that returns something of the surrogate.
    """
    stood = [path for node in inside if (path := STANDS_FOR.of(node)) is not None]
    layers = stood or [f"{node.target}." for node in inside if node.op == "call_module"]
    with_layers = [path for path in paths if any(layer.startswith(f"{path}.") for layer in layers)]
    return (*with_layers, *returning, *paths)[0]
