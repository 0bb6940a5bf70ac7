"""A repeat that the user made: blocks by module paths or by nodes, checked to be copies of one another.

    repeat_of(gm, "enc.*")                         the modules enc.0, enc.1, …
    repeat_of(gm, ["enc.0", "enc.1"])
    repeat_of(gm, [["enc.0", "enc.1"], ["enc.2", "enc.3"]])
    repeat_of(gm, [nodes[3:9], nodes[9:15]])       nodes of the graph, or their names

    x -> [enc.0] -> [enc.1] -> [enc.2] -> y        one value goes into each block, one comes out
              mask ---^---------^                  side inputs are the same for all

Node k of one block has to do what node k of another does, on parameters of the same shapes (`node_table`, as for the
repeats that are found). Blocks that are not back to back make a similar repeat.
Never touches: the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

import numpy as np
from torch import Tensor, fx

from repl_fx.arguments import in_words, require_module
from repl_fx.errors import BadInput, close_matches
from repl_fx.finding.block_names import BlockNames
from repl_fx.finding.block_values import blocks_of, share_parameters, with_passing
from repl_fx.finding.blocks import Repeat
from repl_fx.finding.node_table import NONE, Bools, Ints, NodeTable, common_path, node_table, passes_through
from repl_fx.graph.captured import attribute
from repl_fx.graph.kinds import kind_of
from repl_fx.plan import OwnRepeat

# A block as it is given: a module path, or nodes, names of nodes and paths of modules.
Given = str | Sequence[fx.Node | str]
_OUTSIDE = -1


def repeat_of(gm: fx.GraphModule, blocks: str | Sequence[Given], name: str = "") -> Repeat:
    """Make a repeat of blocks that the user names, in place of one that `find_repeats` finds.

    Args:
        gm: a graph in normal form.
        blocks: a pattern of module paths, such as `enc.*`, in which `*` stands within one step of a path; or two blocks
            or more, each a module path, or a sequence of its nodes, of their names or of several module paths.
        name: of the repeat; by default the module path that all blocks share, or `repeat_1`.

    Returns:
        The repeat, its blocks in program order, as `make_plan` and `score_blocks` take it.

    Raises:
        BadInput: no such module or node; or blocks that are no copies of one another, or do not take one value and make
            one: says which block, and what does not hold.
    """
    require_module("repeat_of", gm, graph=True)
    names = BlockNames(node_table(gm))
    if isinstance(blocks, str):
        blocks = require_several(blocks, _matching(names, blocks, ""))
    if not isinstance(blocks, Sequence) or len(blocks) < 2:
        raise BadInput(
            "repeat_of takes two blocks or more, each a module path or its nodes, or one pattern such as 'enc.*'"
        )
    made = [(_positions(names, block), block) for block in blocks]
    made.sort(key=lambda one: one[0][0])
    words = [block if isinstance(block, str) else f"block {i}" for i, (_, block) in enumerate(made, start=1)]
    copies = _Copies(names.table, [positions for positions, _ in made], words)
    copies.require_alike()
    copies.require_whole()
    given = [block for _, block in made]
    if all(isinstance(block, str) for block in given):
        titles = [str(block) for block in given]
        name = name or ".".join(common_path([tuple(title.split(".")) for title in titles])) or "repeat_1"
    else:
        found, titles = names.names([positions for positions, _ in made])
        name = name or found
    return _repeat(copies, names, name, titles)


def own_repeat(gm: fx.GraphModule, known: OwnRepeat) -> Repeat:
    """The repeat of a plan in a graph; raises as `repeat_of` does."""
    return repeat_of(gm, known.blocks, known.name)


def described(repeat: Repeat, part: str = "") -> OwnRepeat:
    """A repeat of the user's as a plan holds it; `part` is the path of its graph in the model."""
    if all(block.module_path == block.name for block in repeat.blocks):
        return OwnRepeat(repeat.name, tuple(block.name for block in repeat.blocks), part)
    return OwnRepeat(repeat.name, tuple(tuple(node.name for node in block.nodes) for block in repeat.blocks), part)


def is_pattern(block: object) -> bool:
    """Tell whether a word for a block is a pattern of module paths, and so means a repeat."""
    return isinstance(block, str) and any(sign in block for sign in "*?[")


def modules_matching(gm: fx.GraphModule, pattern: str, part: str) -> list[str]:
    """Paths of the modules whose names in the model match, in the order of the graph, which lies at the path `part`."""
    return _matching(BlockNames(node_table(gm)), pattern, part)


def require_several(pattern: str, paths: Sequence[str]) -> Sequence[str]:
    """The paths that a pattern matches, which are two or more."""
    if len(paths) < 2:
        matched = f"{paths[0]} alone" if paths else "no module that computes anything"
        raise BadInput(f"{pattern!r} matches {matched}; give a pattern of two blocks or more, such as layers.*")
    return paths


def _matching(names: BlockNames, pattern: str, part: str) -> list[str]:
    steps = pattern.split(".")
    around = part.split(".") if part else []

    def matches(path: str) -> bool:
        own = [*around, *path.split(".")]
        return len(own) == len(steps) and all(map(fnmatchcase, own, steps))

    return [path for path in names.under if matches(path)]


def _positions(names: BlockNames, block: Given) -> list[int]:
    """The nodes of a block, in program order, as positions in the table."""
    if isinstance(block, str):
        if block not in names.under:
            raise BadInput(f"no module {block!r} computes anything in the graph{close_matches(block, names.under)}")
        nodes: Iterable[fx.Node] = names.under[block]
    else:
        if not isinstance(block, Sequence):
            raise BadInput(f"a block is a module path or a sequence of nodes, and this is {in_words(block)}")
        known = {node.name: node for node in names.table.graph_module.graph.nodes}
        nodes = [node for one in block for node in _nodes(names, known, one)]
    index = names.table.index
    positions = sorted({index[node] for node in nodes if node in index})
    if not positions:
        raise BadInput("a block of no nodes that compute tensors; give some, such as those of a layer")
    return positions


def _nodes(names: BlockNames, known: dict[str, fx.Node], given: fx.Node | str) -> Iterable[fx.Node]:
    """The nodes that a part of a block means; the names of nodes come before those of modules."""
    if isinstance(given, str) and given not in known and given in names.under:
        return names.under[given]
    node = known.get(given) if isinstance(given, str) else given
    if not isinstance(node, fx.Node) or node.graph is not names.table.graph_module.graph:
        why = "is of another graph" if isinstance(node, fx.Node) else "is no node of the graph, and no module"
        raise BadInput(f"{given} {why}{close_matches(str(given), known)}; give nodes of the graph that is given")
    return (node,)


@dataclass(frozen=True)
class _Copies:
    """Blocks of a graph, by the positions of their nodes, with a word for each."""

    table: NodeTable
    members: list[list[int]]
    words: list[str]

    @cached_property
    def inside(self) -> list[dict[fx.Node, None]]:
        return with_passing([[self.table.nodes[i] for i in copy] for copy in self.members])

    @cached_property
    def wiring(self) -> list[Ints]:
        """For each copy the places within it of the arguments of its nodes; `_OUTSIDE` for values from elsewhere."""
        found = []
        for copy in self.members:
            place = {position: k for k, position in enumerate(copy)}
            rows = self.table.arguments[copy]
            found.append(np.array([[place.get(v, _OUTSIDE) for v in row] for row in rows.tolist()]).reshape(rows.shape))
        return found

    def require_alike(self) -> None:
        """Refuse blocks that share nodes, or do not compute the same on parameters of the same shapes."""
        taken: dict[int, str] = {}
        for copy, word in zip(self.members, self.words, strict=True):
            shared = next((i for i in copy if i in taken), None)
            if shared is not None:
                raise BadInput(f"{taken[shared]} and {word} share {self._name(shared)}; give blocks that share nothing")
            taken |= dict.fromkeys(copy, word)
        first, labels = self.members[0], self.table.labels
        for copy, word, wiring in zip(self.members[1:], self.words[1:], self.wiring[1:], strict=True):
            for ours, theirs in zip(copy, first, strict=False):
                if labels[ours] != labels[theirs]:
                    self._refuse(word, f"it has {self._what(ours)} where the other has {self._what(theirs)}")
            if len(copy) != len(first):
                self._refuse(word, f"it has {len(copy)} nodes and the other {len(first)}")
            rows = np.flatnonzero((wiring != self.wiring[0]).any(axis=1))
            if len(rows):
                ours, theirs = copy[rows[0]], first[rows[0]]
                self._refuse(word, f"{self._name(ours)} takes other values than {self._name(theirs)} does")

    def require_whole(self) -> None:
        """Refuse a block of which a value comes back to it from outside."""
        for copy, word in zip(self.members, self.words, strict=True):
            own, around = set(copy), set[int]()
            for position in range(copy[0], copy[-1] + 1):
                given = set(self.table.arguments[position].tolist())
                if position not in own and given & (own | around):
                    around.add(position)
                elif position in own and given & around:
                    between = self._name(min(given & around))
                    raise BadInput(f"{word} leaves out {between}, which takes a value of it and hands one back; add it")

    @cached_property
    def output(self) -> int:
        """The place of the one value that each block hands on: that which leaves all, or that the next one takes."""
        leaving = set.intersection(
            *(
                {k for k, i in enumerate(copy) if _leaves(self.table.nodes[i], nodes)}
                for copy, nodes in zip(self.members, self.inside, strict=True)
            )
        )
        found = leaving if len(leaving) == 1 else leaving & self._handed
        if len(found) != 1:
            names = ", ".join(self._name(self.members[0][k]) for k in sorted(found or leaving))
            what = f"{len(found or leaving)} values leave it: {names}" if names else "no value leaves it"
            raise BadInput(f"{self.words[0]} and those like it are no blocks: {what}; a block hands on one")
        return next(iter(found))

    @cached_property
    def _handed(self) -> set[int]:
        """Places of the values that each next block takes."""
        pairs = zip(self.members[:-1], self.members[1:], strict=True)
        taken = ((copy, set(self.table.arguments[after].ravel().tolist())) for copy, after in pairs)
        return set.intersection(*({k for k, i in enumerate(copy) if i in given} for copy, given in taken))

    @property
    def chained(self) -> bool:
        """Tell whether each block takes what the one before makes."""
        return self.output in self._handed

    def streamed(self) -> Bools:
        """The arguments of a block that are the one value it takes: bool array (nodes, arguments)."""
        given = self.table.arguments[np.array(self.members)]
        outside = (self.wiring[0] == _OUTSIDE) & (given[0] != NONE)
        stream: Bools = np.zeros_like(outside)
        for row, slot in zip(*np.nonzero(outside), strict=True):
            values = given[:, row, slot].tolist()
            if self.chained and values[1:] == [copy[self.output] for copy in self.members[:-1]]:
                stream[row, slot] = True
            elif not all(self.table.same(value, values[0]) for value in values):
                # A value of its own, the stream where blocks are not back to back.
                if self.chained:
                    self._refuse_input(given[:, row, slot], row)
                stream[row, slot] = True
        for copy, word in zip(given, self.words, strict=True):
            number = len(set(copy[stream].tolist()))
            if number != 1:
                took = f"{number} values of its own" if number else "no value that the others do not take too"
                raise BadInput(f"{word} is no block: it takes {took}; a block takes one, besides what all share")
        return stream

    def _refuse_input(self, values: Ints, row: int) -> None:
        number = next(k for k, value in enumerate(values.tolist()) if not self.table.same(value, int(values[0])))
        taker = self._name(self.members[number][row])
        raise BadInput(
            f"{self.words[number]} is no block: {taker} takes a value from outside that is neither what the block "
            f"before it makes nor what {self.words[0]} takes there; a block takes one, besides what all share"
        )

    def _refuse(self, word: str, why: str) -> None:
        raise BadInput(f"{word} is no copy of {self.words[0]}: {why}; leave it out, or give it a repeat of its own")

    def _name(self, position: int) -> str:
        return self.table.nodes[position].name

    def _what(self, position: int) -> str:
        """A node with what tells it from others: its operator, parameters and result."""
        node = self.table.nodes[position]
        root, kind = self.table.graph_module, node.target
        if node.op == "call_module":
            kind = type(root.get_submodule(str(node.target)))
        word = getattr(kind, "__name__", str(kind))
        shapes = [str(tuple(attribute(root, path).shape)) for path in self.table.parameters[position]]
        on = f" on {', '.join(shapes)}" if shapes else ""
        value = node.meta.get("val")
        made = f" -> {kind_of(value)}" if isinstance(value, Tensor) else ""
        return f"{node.name} ({word}{on}{made})"


def _leaves(node: fx.Node, nodes: dict[fx.Node, None]) -> bool:
    """Tell whether a value of a block is used outside it, seen through dropout that is the block's own."""
    return any(user not in nodes or (passes_through(user) and _leaves(user, nodes)) for user in node.users)


def _repeat(copies: _Copies, names: BlockNames, name: str, titles: Sequence[str]) -> Repeat:
    blocks = blocks_of(names, titles, np.array(copies.members), [copies.streamed()], [copies.output])
    return Repeat(name, tuple(blocks), shared=share_parameters(blocks), similar=not copies.chained)
