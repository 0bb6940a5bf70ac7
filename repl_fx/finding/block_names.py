"""Names for what was found in a graph; they label repeats and blocks and take no part in finding them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import fx

from repl_fx.finding.node_table import NodeTable, common_path


class BlockNames:
    """Names for repeats and blocks: module paths where they tell the copies apart, numbers elsewhere."""

    def __init__(self, table: NodeTable) -> None:
        self.table = table
        self.unnamed = 0
        self.similars = 0
        self.taken: set[str] = set()
        self.under: dict[str, set[fx.Node]] = {}
        for position, node in enumerate(table.nodes):
            path = table.paths[position]
            for depth in range(1, len(path) + 1):
                self.under.setdefault(".".join(path[:depth]), set()).add(node)

    def names(self, members: list[list[int]]) -> tuple[str, list[str]]:
        """Name of a repeat and of each of its copies."""
        paths = [self._paths(copy) for copy in members]
        shared = common_path([path for copy in paths for path in copy])
        name = ".".join(shared)
        names = []
        for copy in paths:
            own = common_path(copy)
            if len(own) > len(shared):
                names.append(".".join(own[: len(shared) + 1]))
                continue
            below = list(dict.fromkeys(path[len(shared)] for path in copy if len(path) > len(shared)))
            names.append(f"{name}.{below[0]}-{below[-1]}".lstrip(".") if below else "")
        if not name or name in self.taken:
            self.unnamed += 1
            name = f"{name}.repeat_{self.unnamed}".lstrip(".")
        if len(set(names)) < len(names) or "" in names or self.taken & set(names):
            names = [f"{name}#{number}" for number in range(len(names))]
        self.taken.update([name, *names])
        return name, names

    def similar(self, members: Sequence[Sequence[int]]) -> tuple[str, list[str]]:
        """Name of a similar repeat and of each of its blocks, whose module paths other blocks may have taken."""
        self.similars += 1
        name = f"similar_{self.similars}"
        names = []
        for number, copy in enumerate(members):
            own = ".".join(common_path(self._paths(copy))) or f"{name}#{number}"
            own = own if own not in self.taken else f"{own}#{name}"
            names.append(own if own not in self.taken else f"{own}#{number}")
            self.taken.add(names[-1])
        self.taken.add(name)
        return name, names

    def _paths(self, copy: Sequence[int]) -> list[tuple[str, ...]]:
        """Module paths of a copy's nodes; of those with parameters, as additions often stand in the module around."""
        return [self.table.paths[i] for i in copy if self.table.sizes[i]] or [self.table.paths[i] for i in copy]

    def module_of(self, path: str, nodes: Iterable[fx.Node]) -> str | None:
        """The module at a path, or around it, that computes just these nodes, dropout and the like left out."""
        block = set(nodes)
        while path and self.under.get(path) != block:
            path = path.rpartition(".")[0]
        return path or None
