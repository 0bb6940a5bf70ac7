"""Where the attention map comes from that a surrogate mixes by and does not make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, fx

from repl_fx._torch import module_stack
from repl_fx.graph.notes import Note


@dataclass(frozen=True)
class Heads:
    """Some heads of several.

    Attributes:
        chosen: which.
        total: of how many.
    """

    chosen: tuple[int, ...]
    total: int

    def among(self, total: int) -> tuple[int, ...]:
        """The same heads where each is repeated for several, or one stands for several.

        Raises:
            ValueError: neither number is a multiple of the other.
        """
        if max(total, self.total) % min(total, self.total):
            raise ValueError(f"{total} heads cannot be told from {self.total}")
        return tuple(head * total // self.total for head in self.chosen)

    def of(self, value: Tensor) -> Tensor:
        """These heads of (batch, heads, positions, c)."""
        return value[:, selection(self.among(value.shape[1]))]


@dataclass(frozen=True)
class BorrowedMap:
    """An attention map that another module makes.

    Attributes:
        module: the path, in the graph, of the module in whose forward the map is made.
        number, count: which call of its kind there makes it, of how many.
        scaled: whether the call is one of `scaled_dot_product_attention`, which is given queries and keys; else it is
            a product of the map with values.
        queries: the heads of the queries, or of the map.
        keys: those of the keys and values.
    """

    module: str
    number: int
    count: int
    scaled: bool
    queries: Heads
    keys: Heads

    @classmethod
    def made_at(cls, core: fx.Node, queries: Heads, keys: Heads, *, scaled: bool) -> BorrowedMap:
        """The map that a node of a captured graph makes, or is given."""
        path = _inside(core)
        alike = [node for node in core.graph.nodes if node.target is core.target and _inside(node) == path]
        return cls(path, alike.index(core), len(alike), scaled, queries, keys)


# On a node that mixes by a map that is made elsewhere: which map.
BORROWS: Note[BorrowedMap] = Note("borrows", BorrowedMap)


def _inside(node: fx.Node) -> str:
    return ".".join(module_stack(node)[-1:])


def selection(heads: Sequence[int]) -> slice | list[int]:
    """An index that takes some heads; of those at even distances a view."""
    steps = {b - a for a, b in pairwise(heads)} or {1}
    if len(steps) == 1 and min(steps) > 0:
        step = steps.pop()
        return slice(heads[0], heads[-1] + 1, step)
    return list(heads)
