"""Compare a model with its graph at other inputs than those of the trace, with as little computing as tells."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, fx, nn

from repl_fx._torch import example_of, has_example
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.opaque_outputs import equal_inside
from repl_fx.running.untouched import outcome_of
from repl_fx.running.without_values import ShapeRun, WithoutValues, same_results

# Products that take as long to compute as a node on shapes alone, on one core.
_PER_NODE = 25_000_000
_OPEN = ShapeRun(None, open=True)


class SideBySide:
    """Runs a model and graphs of it side by side: on shapes alone, where computing would take longer, and on values.

    Args:
        model: the source, which is not changed.
        gm: its graph as captured; those that are tried are copies of it.
        within: makes the context in which both run.
    """

    def __init__(
        self,
        model: nn.Module,
        gm: fx.GraphModule,
        within: Callable[[], AbstractContextManager[object]] = torch.enable_grad,
    ) -> None:
        self._model = model
        self._within = within
        self._shapes = WithoutValues(within) if products_of(gm) > _PER_NODE * len(gm.graph.nodes) else None

    def agree(self, gm: nn.Module, inputs: ExampleInputs, training: bool = False) -> bool:
        """Tell whether it is sure without computing that both return the same, or stop."""
        return self.returned(gm, inputs, training) is not None

    def returned(self, gm: nn.Module, inputs: ExampleInputs, training: bool = False) -> bool | None:
        """Tell without computing whether both return, and the same, or both stop; None where only values can tell."""
        return None if self._shapes is None else self._shapes.returned(self._model, gm, inputs, training)

    def compare(self, gm: nn.Module | None, inputs: ExampleInputs) -> tuple[bool, bool]:
        """Tell whether the model runs on inputs in both modes, and whether a graph then computes the same.

        Args:
            gm: None where the graph stops at these inputs.
        """
        alike = gm is not None
        for training in (True, False):
            ours, theirs = _OPEN, _OPEN
            if self._shapes is not None:
                ours = self._shapes.run(self._model, inputs, training)
                if ours.stopped:
                    return False, False
                theirs = self._shapes.run(gm, inputs, training) if gm is not None and alike and not ours.open else _OPEN
            same = same_results(ours, theirs) if alike or ours.open else False
            if same is None:
                made = outcome_of(self._model, inputs, training, within=self._within)
                if made.problem is not None:
                    return False, False
                by_graph = outcome_of(gm, inputs, training, within=self._within) if gm is not None and alike else made
                same = by_graph.problem is None and equal_inside(made.outputs, by_graph.outputs)
            alike = alike and same
        return True, alike


def products_of(gm: fx.GraphModule) -> int:
    """Estimate how many products of weights and values a graph computes, at the sizes of its example."""
    found = 0
    for node in gm.graph.nodes:
        made: Any = node.meta.get("val")
        weights = [
            given.meta["val"] for given in node.all_input_nodes if given.op == "get_attr" and "val" in given.meta
        ]
        if node.op == "call_module":
            weights = list(gm.get_submodule(str(node.target)).parameters())
        if isinstance(made, Tensor) and all(map(has_example, made.shape)):
            sizes = [example_of(size) for size in made.shape]
            matrices = [w.shape for w in weights if isinstance(w, Tensor) and w.ndim > 1]
            # Some layers keep their weights the other way round.
            wide = [next((size for size in w[:2] if size in sizes), max(w)) for w in matrices]
            found += sum(math.prod((*sizes, *w)) // size for w, size in zip(matrices, wide, strict=True) if size)
    return found
