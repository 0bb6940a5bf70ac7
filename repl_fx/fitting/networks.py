"""Networks that show the values of their graphs as they run.

One copy of the graphs serves for all that is fitted: each run says which values it keeps.

    run 1    input -> block 0 -> block 1                     for the surrogate of block 1, `Reached` before it
    run 2                        block 1                     goes on from there
    run 3                        block 1 -> block 2          for that of block 3, `Reached` before it
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, fx

from repl_fx._torch import pytree
from repl_fx.costs.counted import Interpreter
from repl_fx.graph.captured import called_module, changes_argument, memory_of
from repl_fx.graph.recording import watched
from repl_fx.graph.runtime import REGIONS, assign_buffer
from repl_fx.rewriting.result import TransformResult
from repl_fx.running.batches import Batch, Evaluation
from repl_fx.running.untouched import in_mode

# The values from which runs go on, of all batches; and those of a network that stays as it is.
_MOST_BYTES = 2 << 30
_MOST_KNOWN = 1 << 29


class _Enough(BaseException):
    """All values that are wanted are there; no error, so that nobody's code takes it for one."""


@dataclass(frozen=True)
class Reached:
    """A place in a graph to which a batch has run.

    Attributes:
        place: the number of the first node that has not run.
        values: those of nodes before that are read there or later.
    """

    place: int
    values: Mapping[fx.Node, Any]

    @cached_property
    def size(self) -> int:
        """The bytes of the values."""
        return _bytes(self.values)


class Network:
    """A network that shows some of its values.

    Where one graph is all of it, each node runs once, a run ends at the last value that is wanted, and can begin where
    another one ended.

    Args:
        result: of a transform.
        graphs: the graphs of the parts, by path; they share their tensors with the network.
    """

    def __init__(self, result: TransformResult, graphs: Mapping[str, fx.GraphModule]) -> None:
        shown = {
            path: watched(gm, {n: partial(self._keep, n) for n in gm.graph.nodes if n.op != "output"})
            for path, gm in graphs.items()
        }
        self.model = result.captured_parts.with_graphs(shown)
        self._modules = next(iter(shown.values()))
        every = [node for gm in graphs.values() for node in gm.graph.nodes]
        self._ends_early = result.captured_parts.whole and not any(node.target in REGIONS for node in every)
        self._places = {node: place for place, node in enumerate(every)} if self._ends_early else {}
        self._last = {node: max(map(self._places.__getitem__, node.users), default=0) for node in self._places}
        self._writers = [n for n in self._places if n.target is assign_buffer or changes_argument(self._modules, n)]
        if any(node.target is assign_buffer or self._memory(node).op == "get_attr" for node in self._writers):
            # State is as before behind each run.
            self._places = {}
        self._wanted: Collection[fx.Node] = ()
        self._values: dict[fx.Node, Any] = {}

    def place_of(self, nodes: Iterable[fx.Node]) -> int | None:
        """The place of the first of some nodes; None where all runs begin at the inputs."""
        return min(map(self._places.__getitem__, nodes)) if self._places else None

    def reach(self, batch: Batch, place: int, before: Reached | None = None) -> Reached | None:
        """Run a batch to a place, from the inputs or a place before; None where no run could go on from there."""
        read = [
            node
            for node, number in self._places.items()
            if number < place and node.op != "get_attr" and self._last[node] >= place
        ]
        # Copies of values do not tell what is one memory, nor what is written after they were made.
        memories = {self._memory(node): self._places[node] for node in read}
        written = {self._memory(node): self._places[node] for node in self._writers if self._places[node] < place}
        if not read or len(memories) < len(read) or any(written.get(m, 0) > number for m, number in memories.items()):
            return None
        values = self.values(batch, read, before)
        leaves = pytree.tree_leaves(list(values.values()))
        plain = all(isinstance(leaf, (Tensor, bool, int, float, type(None))) for leaf in leaves)
        return Reached(place, values) if plain else None

    @torch.no_grad()
    def values(self, batch: Batch, wanted: Collection[fx.Node], start: Reached | None = None) -> dict[fx.Node, Any]:
        """The values at some nodes for a batch, in evaluation mode; buffers stay as they are.

        Args:
            start: where the batch has run to; by default it runs from the inputs.

        Raises:
            BadInput: the model does not take the batch.
        """
        self._wanted, self._values = frozenset(wanted), {}
        evaluation = Evaluation(self.model)
        with in_mode(self.model, False), suppress(_Enough):
            if start is None:
                evaluation.outputs(self.model, batch)
            else:
                evaluation.run(self.model, batch, partial(self._go_on, start))
        values, self._values = self._values, {}
        return values

    def _keep(self, node: fx.Node, value: Any) -> None:
        if node in self._wanted:
            # What comes later may write over it.
            self._values[node] = _copied(value)
            if self._ends_early and len(self._values) == len(self._wanted):
                raise _Enough

    def _go_on(self, start: Reached) -> None:
        """Run the nodes from a place on."""
        runs = Interpreter(self._modules)
        for node, value in start.values.items():
            self._keep(node, value)
            runs.env[node] = _copied(value)
        for node, place in self._places.items():
            if place >= start.place or (node.op == "get_attr" and self._last[node] >= start.place):
                runs.env[node] = value = runs.run_node(node)
                self._keep(node, value)
                for given in node.all_input_nodes:
                    if self._last[given] <= place:
                        runs.env.pop(given, None)

    def _memory(self, node: fx.Node) -> fx.Node:
        """The node that made the memory of a value; a module without parameters may return what it is given."""
        made = memory_of(node)
        module = called_module(self._modules, made)
        passes = made.target is operator.getitem or (module is not None and not [*module.parameters()])
        return self._memory(made.all_input_nodes[0]) if passes and made.all_input_nodes else made


class NetworkPair:
    """A network that is fitted and the captured one, on the same batches, for one surrogate after another.

    Before a surrogate nothing changes any more: batches go on from there, while their values have room. In the captured
    network nothing changes at all, so for each surrogate a batch runs in it once, while there is room.
    """

    def __init__(self, fitted: Network, captured: Network) -> None:
        self._networks = fitted, captured
        # How far batches have run in both networks.
        self._reached: dict[Hashable, Sequence[Reached]] = {}
        self._full = False
        # The values of the captured network that are looked at.
        self._known: dict[Hashable, dict[fx.Node, Any]] = {}
        self._known_of: Collection[fx.Node] = ()
        self._room = _MOST_KNOWN

    def values(
        self,
        key: Hashable,
        batch: Batch,
        looked_at: Sequence[Collection[fx.Node]],
        wanted: Sequence[Collection[fx.Node]],
    ) -> Sequence[dict[fx.Node, Any]]:
        """The values at nodes of both networks; they are not written to.

        Args:
            key: of the batch; values that were reached with it count for another batch of later passes.
            looked_at: all nodes of each network whose values are looked at, or may change, for this surrogate.
            wanted: those whose values are returned.
        """
        (fitted, captured), (nodes, others) = self._networks, wanted
        before, start = self._starts(key, batch, looked_at)
        values = fitted.values(batch, nodes, before) if nodes else {}
        if self._known_of != looked_at[1]:
            self._known, self._known_of, self._room = {}, looked_at[1], _MOST_KNOWN
        known = self._known.get(key)
        if known is None and others:
            known = captured.values(batch, looked_at[1], start)
            if (size := _bytes(known)) <= self._room:
                self._known[key], self._room = known, self._room - size
        return values, {node: known[node] for node in others} if known else {}

    def _starts(
        self, key: Hashable, batch: Batch, looked_at: Sequence[Collection[fx.Node]]
    ) -> Sequence[Reached | None]:
        found = map(Network.place_of, self._networks, looked_at)
        places = [place for place in found if place is not None]
        nowhere: Sequence[Reached | None] = [None] * len(self._networks)
        if len(places) < len(nowhere) or (self._full and key not in self._reached):
            return nowhere
        before = self._reached.pop(key, nowhere)
        if any(one is not None and one.place > place for one, place in zip(before, places, strict=True)):
            before = nowhere
        steps = zip(self._networks, places, before, strict=True)
        made = [one if one and one.place == place else net.reach(batch, place, one) for net, place, one in steps]
        starts = tuple(one for one in made if one is not None)
        if len(starts) < len(made):
            return nowhere
        self._reached[key] = starts
        if sum(one.size for reached in self._reached.values() for one in reached) > _MOST_BYTES:
            self._full = True
            del self._reached[key]
        return starts


def _copied(value: Any) -> Any:
    return pytree.tree_map_only(Tensor, torch.clone, value)


def _bytes(values: Mapping[fx.Node, Any]) -> int:
    return sum(leaf.nbytes for leaf in pytree.tree_leaves(list(values.values())) if isinstance(leaf, Tensor))
