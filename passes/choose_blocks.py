"""Choose the blocks to replace: every k-th of each repeat, or named ones; the ends of a repeat stay.

    every=2    1 2 3 4 5 6      blocks 2 and 4 go: a replaced block has a kept block on both sides
                 x   x
Never touches: the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from repl_fx.blocks import Block, Repeat
from repl_fx.errors import BadInput, UnknownBlock
from repl_fx.plan import Refusal


@dataclass(frozen=True)
class Chosen:
    """A block to replace, with the nearest kept blocks around it."""

    repeat: Repeat
    block: Block
    before: Block
    after: Block


@dataclass(frozen=True)
class Choice:
    """The blocks to replace, and those that were asked for and must stay."""

    chosen: tuple[Chosen, ...]
    refusals: tuple[Refusal, ...]


def choose_blocks(
    repeats: Sequence[Repeat],
    *,
    every: int = 2,
    blocks: Sequence[str | int] | None = None,
    ignore: Sequence[str] = (),
) -> Choice:
    """Choose blocks.

    Args:
        repeats: from `find_repeats`.
        every: replace the k-th, 2k-th, … block of each repeat; 2 or more.
        blocks: names of blocks, or their numbers in the order of all repeats from 1; overrides `every`.
        ignore: globs; a block whose name, module path or any parameter matches one stays.

    Returns:
        The choice; neighbours are the nearest blocks that stay.

    Raises:
        BadInput: `every` below 2.
        UnknownBlock: a name or number that no block has.
    """
    if every < 2:
        raise BadInput(f"every is {every}; it must be 2 or more, because a replaced block needs kept blocks around it")
    wanted = None if blocks is None else _named(repeats, blocks)
    chosen: list[Chosen] = []
    refusals: list[Refusal] = []
    for repeat in repeats:
        asked = [
            i for i, b in enumerate(repeat.blocks) if (b.name in wanted if wanted is not None else (i + 1) % every == 0)
        ]
        if wanted is None and not any(0 < i < len(repeat) - 1 for i in asked):
            asked = []
            refusals.append(Refusal(repeat.name, repeat.name, _too_short(repeat, every)))
        kept_out: dict[int, str] = {}
        for i in asked:
            reason = _reason(repeat, i, ignore)
            # With every=k the last block is skipped as a matter of course; asked for by name, it is refused.
            if reason is not None:
                kept_out[i] = reason
        going = [i for i in asked if i not in kept_out]
        refusals += [
            Refusal(repeat.blocks[i].name, repeat.name, reason)
            for i, reason in kept_out.items()
            if wanted is not None or 0 < i < len(repeat) - 1
        ]
        for i in going:
            before = max(j for j in range(i) if j not in going)
            after = min(j for j in range(i + 1, len(repeat)) if j not in going)
            chosen.append(Chosen(repeat, repeat.blocks[i], repeat.blocks[before], repeat.blocks[after]))
    return Choice(tuple(chosen), tuple(refusals))


def _named(repeats: Sequence[Repeat], blocks: Sequence[str | int]) -> set[str]:
    every = [block.name for repeat in repeats for block in repeat.blocks]
    found = set()
    for block in blocks:
        number = int(block) if isinstance(block, int) or block.isdecimal() else None
        if isinstance(block, str) and block in every:
            found.add(block)
        elif number is not None and 1 <= number <= len(every):
            found.add(every[number - 1])
        else:
            raise UnknownBlock(str(block), every)
    return found


def _too_short(repeat: Repeat, every: int) -> str:
    if len(repeat) < 3:
        return f"it has {len(repeat)} blocks, and a replaced block needs a kept one on both sides"
    return f"with every={every} no block of its {len(repeat)} has a kept block on both sides"


def _reason(repeat: Repeat, i: int, ignore: Sequence[str]) -> str | None:
    block = repeat.blocks[i]
    if repeat.shared:
        return "all copies use the same parameters, so there is nothing to save"
    if i == 0:
        return "it is the first of its repeat, and has no block before it to be made from"
    if i == len(repeat) - 1:
        return "it is the last of its repeat, and has no block after it to be made from"
    for glob in ignore:
        if any(fnmatchcase(name, glob) for name in (block.name, *block.parameters)):
            return f"it matches --ignore {glob}"
    return None
