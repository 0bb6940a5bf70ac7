"""The modules in whose places surrogates stand: replaced blocks, or the modules around parts of a block.

    layers.2 is a block                                         a surrogate stands in the place of layers.2
    x + attn(norm(x)) is, which is half of layers.0             a surrogate and the other half do in that of layers.0

What of such a module is no block runs as the graph has it: its layers are called, and its own code is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from repl_fx._torch import module_stack
from repl_fx.finding.blocks import Block
from repl_fx.graph.captured import is_tensor
from repl_fx.plan import Plan, Replacement
from repl_fx.tracing.parts.part_repeats import PartRepeats

# The submodule that holds the surrogates' own modules.
OWN = "surrogate"


@dataclass(frozen=True)
class Place:
    """A module of a part that stands for replaced blocks, and for what of it they do not compute.

    Attributes:
        path: of the module in the part; None for a block that is in no single one.
        replacements: of the blocks.
    """

    path: str | None
    replacements: tuple[Replacement, ...]

    def own(self, block: str) -> str:
        """The path, in the module, of the modules of a block's surrogate."""
        if len(self.replacements) == 1:
            return OWN
        return f"{OWN}.{[replacement.block for replacement in self.replacements].index(block)}"


def places_of(part: PartRepeats, plan: Plan) -> Iterator[Place]:
    """The places of the blocks of a part that a plan replaces, in the order of the plan."""
    paths = {r.block: place_of(part, part.blocks[r.block]) for r in plan.replacements if r.block in part.blocks}
    around = [path for block, path in paths.items() if path and part.blocks[block].module_path is None]
    found: dict[str, Place] = {}
    for replacement in plan.replacements:
        if replacement.block not in paths:
            continue
        path = paths[replacement.block]
        # One within another, where the outer one is a graph and does not call it.
        outer = [place for place in around if path is not None and f"{path}.".startswith(f"{place}.")]
        path = min(outer, key=len, default=path)
        key = replacement.block if path is None else f"{path}."
        before = found[key].replacements if key in found else ()
        found[key] = Place(path, (*before, replacement))
    yield from found.values()


def place_of(part: PartRepeats, block: Block) -> str | None:
    """The module that a block is, or the smallest one around it that has no other block of its repeat in it."""
    if block.module_path is not None:
        return block.module_path
    first, *others = (module_stack(node) for node in block.nodes if is_tensor(node))
    around = [path for path in first if all(path in stack for stack in others)]
    repeat = next(repeat for repeat in part.inside if block in repeat.blocks)
    nodes = (node for other in repeat.blocks if other is not block for node in other.nodes)
    return None if not around or any(around[-1] in module_stack(node) for node in nodes) else around[-1]
