"""Choose the blocks to replace: every k-th of each repeat, or named ones; the ends of a repeat stay.

    every=2    1 2 3 4 5 6      blocks 2 and 4 go: a replaced block has a kept block on both sides
                 x   x

Of a similar repeat those blocks can go that keep the size of their value and are no part of an exact repeat of three
blocks or more, which has neighbours of its own to offer; one that changes sizes goes where it is named, or where its
surrogate can do so too (`linear`) and a budget says which blocks go.
Never touches: the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, fx

from repl_fx.analysis.blocks import Block, Repeat
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
class Candidates:
    """The blocks that may go, each as its repeat and its place there, and those that must stay."""

    places: tuple[tuple[Repeat, int], ...]
    refusals: tuple[Refusal, ...]


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
    settled = _settled(repeats)
    gone: dict[fx.Node, str] = {}
    picked: list[tuple[Repeat, int]] = []
    refusals: list[Refusal] = []
    for repeat in repeats:
        if wanted is not None:
            asked = [i for i, block in enumerate(repeat.blocks) if block.name in wanted]
        elif repeat.similar:
            asked = _spread(_inner(repeat, settled), every)
        else:
            asked = [i for i in _inner(repeat, settled) if (i + 1) % every == 0]
        if wanted is None and not asked:
            short = _too_short(repeat)
            none = f"with every={every} no block of its {len(repeat)} has a kept block on both sides"
            refusals.append(Refusal(repeat.name, repeat.name, short or none))
        going, staying = _sorted_out(repeat, asked, ignore, gone)
        picked += [(repeat, i) for i in going]
        refusals += staying
    between = with_neighbours(picked)
    return Choice(between.chosen, (*refusals, *between.refusals))


def candidates(repeats: Sequence[Repeat], ignore: Sequence[str] = (), *, changes_sizes: bool = False) -> Candidates:
    """The blocks that may go: all but the ends of a repeat, and what must stay.

    A node is part of one candidate alone, that of the first repeat that has it.

    Args:
        repeats, ignore: see `choose_blocks`.
        changes_sizes: whether blocks of a similar repeat may go that change the size of their value.
    """
    settled = _settled(repeats)
    taken: dict[fx.Node, str] = {}
    places: list[tuple[Repeat, int]] = []
    refusals: list[Refusal] = []
    for repeat in repeats:
        inner = _inner(repeat, settled, changes_sizes)
        if not inner and (short := _too_short(repeat)):
            refusals.append(Refusal(repeat.name, repeat.name, short))
        own, staying = _sorted_out(repeat, inner, ignore, taken, "may go")
        places += [(repeat, i) for i in own]
        refusals += staying
    return Candidates(tuple(places), tuple(refusals))


def with_neighbours(picked: Sequence[tuple[Repeat, int]]) -> Choice:
    """The blocks that go, each a repeat and its place there, with the nearest blocks that stay."""
    # A block of one repeat may be the neighbour of a block of another, so all that goes must be known before.
    gone = {node for repeat, i in picked for node in repeat.blocks[i].nodes}
    chosen: list[Chosen] = []
    refusals: list[Refusal] = []
    for repeat, i in picked:
        kept = [j for j, block in enumerate(repeat.blocks) if gone.isdisjoint(block.nodes)]
        before, after = [j for j in kept if j < i], [j for j in kept if j > i]
        if before and after:
            chosen.append(Chosen(repeat, repeat.blocks[i], repeat.blocks[before[-1]], repeat.blocks[after[0]]))
        else:
            refusals.append(Refusal(repeat.blocks[i].name, repeat.name, "no block like it is kept on one side"))
    return Choice(tuple(chosen), tuple(refusals))


def _settled(repeats: Sequence[Repeat]) -> set[fx.Node]:
    """The nodes of exact repeats with blocks to spare."""
    return {n for r in repeats if not r.similar and len(r) > 2 for block in r.blocks for n in block.nodes}


def _inner(repeat: Repeat, settled: set[fx.Node], changes_sizes: bool = False) -> list[int]:
    """The blocks that are no ends; of a similar repeat, those that keep sizes, or may not, and are not settled."""
    inner = range(1, len(repeat) - 1)
    if not repeat.similar:
        return list(inner)
    free = [i for i in inner if settled.isdisjoint(repeat.blocks[i].nodes)]
    return [i for i in free if changes_sizes or keeps_size(repeat.blocks[i])]


def _spread(candidates: Iterable[int], every: int) -> list[int]:
    """As many candidates as there are with every - 1 blocks kept before each."""
    picked: list[int] = []
    for i in candidates:
        if i - (picked[-1] if picked else -1) >= every:
            picked.append(i)
    return picked


def keeps_size(block: Block) -> bool:
    """Whether the streamed values that a block makes have the shapes of those that it takes."""
    for given, made in zip(block.inputs, block.outputs, strict=True):
        ours, theirs = given.meta.get("val"), made.meta.get("val")
        if isinstance(ours, Tensor) and isinstance(theirs, Tensor) and str(ours.shape) != str(theirs.shape):
            return False
    return True


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


def _too_short(repeat: Repeat) -> str | None:
    """Why a repeat has no block that may go; None where it is long enough."""
    if len(repeat) < 3:
        return f"it has {len(repeat)} blocks, and a replaced block needs a kept one on both sides"
    if repeat.similar:
        return "all but the ends of its blocks change the size of their value or belong to an exact repeat"
    return None


def _sorted_out(
    repeat: Repeat, asked: Iterable[int], ignore: Sequence[str], gone: dict[fx.Node, str], fate: str = "goes"
) -> tuple[list[int], list[Refusal]]:
    """Those of some blocks of a repeat that can go, whose nodes are added to `gone`, and the refusals of the others."""
    going, refusals = [], []
    for i in asked:
        reason = _reason(repeat, i, ignore, gone, fate)
        if reason is None:
            going.append(i)
        else:
            refusals.append(Refusal(repeat.blocks[i].name, repeat.name, reason))
    for i in going:
        gone.update(dict.fromkeys(repeat.blocks[i].nodes, repeat.blocks[i].name))
    return going, refusals


def _reason(repeat: Repeat, i: int, ignore: Sequence[str], gone: dict[fx.Node, str], fate: str) -> str | None:
    block = repeat.blocks[i]
    if repeat.shared:
        return "all copies use the same parameters, so there is nothing to save"
    if i == 0:
        return "it is the first of its repeat, and has no block before it to be made from"
    if i == len(repeat) - 1:
        return "it is the last of its repeat, and has no block after it to be made from"
    for node in block.nodes:
        if node in gone:
            return f"it is part of {gone[node]}, which {fate}"
    for glob in ignore:
        if any(fnmatchcase(name, glob) for name in (block.name, *block.parameters)):
            return f"it matches --ignore {glob}"
    return None
