"""Networks that show the values of their graphs as they run.

One copy of the graphs serves for all that is fitted: each run says which values it keeps.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from repl_fx._torch import pytree
from repl_fx.graph.recording import watched
from repl_fx.graph.runtime import REGIONS
from repl_fx.rewriting.result import TransformResult
from repl_fx.running.batches import Batch, Evaluation
from repl_fx.running.untouched import in_mode

# A node, after the path of the part whose graph it is in.
Place = tuple[str, fx.Node]


class _Enough(BaseException):
    """All values that are wanted are there; no error, so that nobody's code takes it for one."""


class Network:
    """A network that shows some of its values.

    Where one graph is all of it, each node runs once, and a run ends at the last value that is wanted.

    Args:
        result: of a transform.
        graphs: the graphs of the parts, by path; they share their tensors with the network.
        places: the values that can be asked for.
    """

    def __init__(self, result: TransformResult, graphs: Mapping[str, fx.GraphModule], places: Iterable[Place]) -> None:
        notes: dict[str, dict[fx.Node, Any]] = {}
        for path, node in places:
            notes.setdefault(path, {})[node] = partial(self._keep, node)
        shown = {path: watched(graphs[path], found) for path, found in notes.items()}
        self.model = result.captured_parts.with_graphs({**graphs, **shown})
        opens_regions = any(node.target in REGIONS for gm in graphs.values() for node in gm.graph.nodes)
        self._ends_early = result.captured_parts.whole and not opens_regions
        self._wanted: Collection[fx.Node] = ()
        self._values: dict[fx.Node, Any] = {}

    def _keep(self, node: fx.Node, value: Any) -> None:
        if node in self._wanted:
            # What comes later may write over it.
            self._values[node] = pytree.tree_map_only(Tensor, torch.clone, value)
            if self._ends_early and len(self._values) == len(self._wanted):
                raise _Enough

    @torch.no_grad()
    def values(self, batch: Batch, wanted: Collection[fx.Node]) -> dict[fx.Node, Any]:
        """The values at some nodes for a batch, in evaluation mode; buffers stay as they are.

        Raises:
            BadInput: the model does not take the batch.
        """
        self._wanted, self._values = frozenset(wanted), {}
        with in_mode(self.model, False), suppress(_Enough):
            Evaluation(self.model).outputs(self.model, batch)
        values, self._values = self._values, {}
        return values
