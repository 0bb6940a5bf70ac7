"""Compare a model with its graph at other inputs than those of the trace, with as little computing as tells."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, fx, nn

from repl_fx._torch import example_of, has_example, pytree
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.opaque_outputs import PLAIN, equal_inside, equal_leaves, open_objects
from repl_fx.running.untouched import Outcome, outcome_of
from repl_fx.running.without_values import WithoutValues, buffers_of_both, same_results

# Products that take as long to compute as a node on shapes alone, on one core.
_PER_NODE = 25_000_000
# How much longer than in a product of matrices one takes in a convolution.
_CONVOLUTION = 4


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
        self._shapes = WithoutValues(within) if is_long_to_run(gm) else None

    def returned(self, gm: nn.Module, inputs: ExampleInputs, training: bool = False) -> bool | None:
        """Tell without computing whether both return, and the same, or both stop; None where only values can tell."""
        return None if self._shapes is None else self._shapes.returned(self._model, gm, inputs, training)

    def same(self, gm: nn.Module | None, inputs: ExampleInputs, training: bool) -> bool | None:
        """Tell whether a graph returns, and leaves in buffers, what the model does in a mode; None where that stops.

        Args:
            gm: None where the graph stops at these inputs.
        """
        if self._shapes is not None:
            ours = self._shapes.run(self._model, inputs, training)
            if ours.stopped:
                return None
            if not ours.open:
                told = False if gm is None else same_results(ours, self._shapes.run(gm, inputs, training))
                if told is not None:
                    return told
        made = outcome_of(self._model, inputs, training, within=self._within, buffers=True)
        if made.problem is not None:
            return None
        if gm is None:
            return False
        by_graph = outcome_of(gm, inputs, training, within=self._within, buffers=True)
        if by_graph.problem is not None or not equal_inside(made.outputs, by_graph.outputs):
            return False
        return all(equal_leaves(*both) for both in buffers_of_both(made.buffers, by_graph.buffers))

    def compare(self, gm: nn.Module | None, inputs: ExampleInputs) -> tuple[bool, bool]:
        """Tell whether the model runs on inputs in both modes, and whether a graph then does the same; see `same`."""
        alike = True
        for training in (True, False):
            same = self.same(gm if alike else None, inputs, training)
            if same is None:
                return False, False
            alike = same
        return True, alike


def are_close(ours: Outcome, theirs: Outcome, relative: float = 1e-5, absolute: float = 1e-8) -> bool:
    """Tell whether what two modules returned is equal but for rounding, or the first does not run."""
    if ours.problem is not None or theirs.problem is not None:
        return ours.problem is not None
    # With the keys, which may be texts of sizes.
    places, others = (pytree.tree_flatten_with_path(open_objects(made.outputs))[0] for made in (ours, theirs))
    return [path for path, _ in places] == [path for path, _ in others] and all(
        _close_leaves(a, b, relative, absolute) for (_, a), (_, b) in zip(places, others, strict=True)
    )


def _close_leaves(ours: Any, theirs: Any, relative: float, absolute: float) -> bool:
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        alike = ours.shape == theirs.shape and ours.dtype == theirs.dtype
        return alike and torch.allclose(ours, theirs, relative, absolute, equal_nan=True)
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=relative, abs_tol=absolute) or (ours != ours and theirs != theirs)
    return not isinstance(ours, PLAIN) or (type(ours) is type(theirs) and bool(ours == theirs))


def is_long_to_run(gm: fx.GraphModule) -> bool:
    """Tell whether a graph takes longer on values than on shapes alone, by an estimate."""
    return products_of(gm) > _PER_NODE * len(gm.graph.nodes)


def products_of(gm: fx.GraphModule) -> int:
    """Estimate how many products of weights and values a graph computes, at the sizes of its example.

    Those of convolutions count as products of matrices that take as long.
    """
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
            found += sum(
                math.prod((*sizes, *w)) // size * (_CONVOLUTION if len(w) > 2 else 1)
                for w, size in zip(matrices, wide, strict=True)
                if size
            )
    return found
