"""Choose the blocks to replace: every k-th of each repeat, or named ones; the ends of a repeat stay.

    every=2    1 2 3 4 5 6      blocks 2 and 4 go: a replaced block has a kept block on both sides
                 x   x

Where surrogates are made from their block alone (`narrow`) the ends can go too, and all blocks of a repeat.

Of a similar repeat those blocks can go that keep the size of their value and are no part of an exact repeat of three
blocks or more, which has neighbours of its own to offer; one that changes sizes goes where it is named, or surrogates
are made from their block alone, or can do so too (`linear`) and a budget says which blocks go.
Never touches: the graph.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import accumulate, chain

from torch import fx

from repl_fx.errors import BadInput, UnknownBlock
from repl_fx.finding.blocks import Block, Repeat
from repl_fx.plan import Refusal

# The reason why a block stays that has gone blocks alone on a side.
NONE_KEPT = "no block like it is kept on one side"


@dataclass(frozen=True)
class Chosen:
    """A block to replace, with the nearest kept blocks around it; None on a side where no block is kept."""

    repeat: Repeat
    block: Block
    before: Block | None
    after: Block | None

    @property
    def around(self) -> tuple[str, str]:
        """The names of the blocks before and after; empty where there is none."""
        return self.before.name if self.before else "", self.after.name if self.after else ""


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
    alone: bool = False,
) -> Choice:
    """Choose blocks.

    Args:
        repeats: from `find_repeats`.
        every: replace the k-th, 2k-th, … block of each repeat; 2 or more, or 1 where surrogates may stand alone.
        blocks: names of blocks, or their numbers in the order of all repeats from 1; overrides `every`.
        ignore: globs; a block stays whose name or any parameter matches one, or the path of a module with a parameter.
        alone: whether surrogates may be made from their block alone, so that it may have no kept one around it.

    Returns:
        The choice; neighbours are the nearest blocks that stay.

    Raises:
        BadInput: `every` below 2.
        UnknownBlock: a name or number that no block has.
    """
    if every < (1 if alone else 2):
        why = "" if alone else ", because a replaced block needs kept blocks around it"
        raise BadInput(f"every is {every}; it must be {1 if alone else 2} or more{why}")
    sorting = Candidates(ignore, alone, "goes")
    if blocks is None:
        _ask_every(sorting, repeats, every, alone)
    else:
        wanted = _named(repeats, blocks)
        for repeat in repeats:
            sorting.ask(repeat, [i for i, block in enumerate(repeat.blocks) if block.name in wanted])
    order = {id(repeat): i for i, repeat in enumerate(repeats)}
    picked = sorted(sorting.places, key=lambda one: (order[id(one[0])], one[1]))
    between = with_neighbours(picked, one_sided=alone)
    return Choice(between.chosen, (*sorting.refusals, *between.refusals))


def _ask_every(sorting: Candidates, repeats: Sequence[Repeat], every: int, alone: bool) -> None:
    """Ask for every k-th block of each repeat; one that has none to be asked for is refused."""
    settled = _settled(repeats)
    idle = []
    for repeat in repeats:
        if repeat.similar:
            asked = _spread(_inner(repeat, settled, alone), every)
        else:
            asked = [i for i in _inner(repeat, settled) if (i + 1) % every == 0]
        if not asked:
            idle.append(repeat)
        sorting.ask(repeat, asked)
    for repeat in repeats if alone else ():
        if asked := [i for i in _ends(repeat, sorting.gone, alone) if (i + 1) % every == 0]:
            idle = [one for one in idle if one is not repeat]
        sorting.ask(repeat, asked)
    sorting.refusals += [Refusal(one.name, one.name, _idle(one, every, alone)) for one in idle]


def candidates(
    repeats: Sequence[Repeat], ignore: Sequence[str] = (), *, changes_sizes: bool = False, alone: bool = False
) -> Candidates:
    """The blocks that may go: all but the ends of a repeat, and what must stay.

    A node is part of one candidate alone, that of the first repeat that has it inside, or else at an end.

    Args:
        repeats, ignore, alone: see `choose_blocks`.
        changes_sizes: whether blocks of a similar repeat may go that change the size of their value.
    """
    settled, sorting = _settled(repeats), Candidates(ignore, alone, "may go")
    for repeat in repeats:
        inner = _inner(repeat, settled, changes_sizes)
        if not inner and not alone and (short := _too_short(repeat)):
            sorting.refusals.append(Refusal(repeat.name, repeat.name, short))
        sorting.ask(repeat, inner)
    for repeat in repeats if alone else ():
        sorting.ask(repeat, _ends(repeat, sorting.gone, changes_sizes))
    return sorting


def with_neighbours(
    picked: Sequence[tuple[Repeat, int]], alone: Collection[str] = (), *, one_sided: bool = False
) -> Choice:
    """The blocks that go, each a repeat and its place there, with the nearest blocks that stay.

    Args:
        picked: repeats and places.
        alone: names of those that go in part, as surrogates are made from them alone; they are neighbours of others.
        one_sided: whether others may go too that have no kept block on a side.
    """
    # A block of one repeat may be the neighbour of a block of another, so all that goes must be known before.
    whole = [repeat.blocks[i] for repeat, i in picked if repeat.blocks[i].name not in alone]
    gone = {node for block in whole for node in block.nodes}
    chosen: list[Chosen] = []
    refusals: list[Refusal] = []
    for repeat, i in picked:
        block = repeat.blocks[i]
        kept = [j for j, other in enumerate(repeat.blocks) if gone.isdisjoint(other.nodes)]
        before = next((repeat.blocks[j] for j in reversed(kept) if j < i), None)
        after = next((repeat.blocks[j] for j in kept if j > i), None)
        if block.name in alone:
            chosen.append(Chosen(repeat, block, None, None))
        elif one_sided or (before and after):
            chosen.append(Chosen(repeat, block, before, after))
        else:
            refusals.append(Refusal(block.name, repeat.name, NONE_KEPT))
    return Choice(tuple(chosen), tuple(refusals))


def _paths_to(parameters: Iterable[str]) -> set[str]:
    """The names of parameters, and the paths of all modules that have them."""
    every = (list(accumulate(name.split("."), "{}.{}".format)) for name in parameters)
    return set(chain.from_iterable(every))


def _settled(repeats: Sequence[Repeat]) -> set[fx.Node]:
    """The nodes of exact repeats with blocks to spare."""
    return {n for r in repeats if not r.similar and len(r) > 2 for block in r.blocks for n in block.nodes}


def _inner(repeat: Repeat, settled: set[fx.Node], changes_sizes: bool = False) -> list[int]:
    """The blocks that are no ends; of a similar repeat, those that keep sizes, or may not, and are not settled."""
    inner = range(1, len(repeat) - 1)
    if not repeat.similar:
        return list(inner)
    free = [i for i in inner if settled.isdisjoint(repeat.blocks[i].nodes)]
    return [i for i in free if changes_sizes or repeat.blocks[i].keeps_size]


def _ends(repeat: Repeat, taken: Mapping[fx.Node, str], changes_sizes: bool = False) -> list[int]:
    """The first and the last block; of a similar repeat, where they keep sizes, or may not; none that is taken."""
    ends = [i for i in (0, len(repeat) - 1) if taken.keys().isdisjoint(repeat.blocks[i].nodes)]
    return [i for i in ends if not repeat.similar or changes_sizes or repeat.blocks[i].keeps_size]


def _spread(candidates: Iterable[int], every: int) -> list[int]:
    """As many candidates as there are with every - 1 blocks kept before each."""
    picked: list[int] = []
    for i in candidates:
        if i - (picked[-1] if picked else -1) >= every:
            picked.append(i)
    return picked


def _named(repeats: Sequence[Repeat], blocks: Sequence[str | int]) -> set[str]:
    every = [block.name for repeat in repeats for block in repeat.blocks]
    found = set()
    for block in blocks:
        number = int(block) if str(block).isdecimal() else None
        if isinstance(block, str) and block in every:
            found.add(block)
        elif number is not None and 1 <= number <= len(every):
            found.add(every[number - 1])
        else:
            raise UnknownBlock(str(block), every)
    return found


def _idle(repeat: Repeat, every: int, alone: bool) -> str:
    """Why no block of a repeat is asked for."""
    if alone:
        return f"with every={every} none of its {len(repeat)} blocks goes that is not part of another repeat"
    return _too_short(repeat) or f"with every={every} no block of its {len(repeat)} has a kept block on both sides"


def _too_short(repeat: Repeat) -> str | None:
    """Why a repeat has no block that may go; None where it is long enough."""
    if len(repeat) < 3:
        return f"it has {len(repeat)} blocks, and a replaced block needs a kept one on both sides"
    if repeat.similar:
        return "all but the ends of its blocks change the size of their value or belong to an exact repeat"
    return None


@dataclass
class Candidates:
    """Blocks that were asked for: those that can go, and why the others stay.

    Attributes:
        ignore, alone: see `choose_blocks`.
        fate: what becomes of those that can go, in the words of refusals.
        places: those that can go, each as its repeat and its place there.
        gone: the nodes of those, with the name of the block.
    """

    ignore: Sequence[str]
    alone: bool
    fate: str
    places: list[tuple[Repeat, int]] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    gone: dict[fx.Node, str] = field(default_factory=dict)

    def ask(self, repeat: Repeat, asked: Iterable[int]) -> None:
        """Sort out some blocks of a repeat, which may share nodes."""
        reasons = {i: self._reason(repeat, i) for i in asked}
        for i, reason in reasons.items():
            block = repeat.blocks[i]
            if reason is None:
                self.places.append((repeat, i))
                self.gone.update(dict.fromkeys(block.nodes, block.name))
            else:
                self.refusals.append(Refusal(block.name, repeat.name, reason))

    def _reason(self, repeat: Repeat, i: int) -> str | None:
        block = repeat.blocks[i]
        if repeat.shared:
            return "all copies use the same parameters, so there is nothing to save"
        if not self.alone and i in (0, len(repeat) - 1):
            which, side = ("first", "before") if i == 0 else ("last", "after")
            return f"it is the {which} of its repeat, and has no block {side} it to be made from"
        for node in block.nodes:
            if node in self.gone:
                return f"it is part of {self.gone[node]}, which {self.fate}"
        names = {block.name, *_paths_to(block.parameters)} if self.ignore else ()
        for glob in self.ignore:
            if any(fnmatchcase(name, glob) for name in names):
                return f"it matches --ignore {glob}"
        return None
