"""The piece of a rewritten graph from the parameters that are fitted to the stream behind them, to be run alone.

    graph    x, attn -> norm -> thin(_, W(theta)) -> dropout -> add(x, _) -> relu
    piece    x, norm -> thin(_, W(theta)) -> dropout -> add(x, _)

In double precision, on values of the network as it runs. So what is said of it here is exact: that its value is affine
in the parameters, and how.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from repl_fx._torch import any_names, pytree
from repl_fx.graph.bridge import digraph, leading_to, reached_from
from repl_fx.graph.captured import in_double_precision
from repl_fx.graph.extracting import Extract

# Values are affine where the rounding of double precision alone is in the way.
ROUNDING = 1e-7
_FRACTIONS = frozenset(one for one in vars(torch).values() if isinstance(one, torch.dtype) and one.is_floating_point)


class Piece:
    """The nodes that lead from some nodes to a point, those included.

    Args:
        gm: a rewritten graph; it is not changed.
        starts: the nodes where the piece begins.
        point: the node whose value it computes.
        instead: whether the values of the starts are given, and not computed.

    Attributes:
        given: the nodes whose values it takes.
    """

    def __init__(
        self, gm: fx.GraphModule, starts: Collection[fx.Node], point: fx.Node, *, instead: bool = False
    ) -> None:
        whole = digraph(gm.graph.nodes)
        self.nodes = sorted(reached_from(whole, starts) & leading_to(whole, [point]))
        inside = [node for node in self.nodes if not instead or node not in starts]
        read = (feeder for node in inside for feeder in node.all_input_nodes)
        self.given = tuple(feeder for feeder in dict.fromkeys(read) if feeder not in inside and feeder.op != "get_attr")
        self._gm, self._inside, self._point = gm, inside, point

    @cached_property
    def module(self) -> nn.Module:
        """The piece as a module, with its own tensors."""
        piece = Extract()
        for feeder in self.given:
            piece.take(feeder, feeder.name)
        for node in self._inside:
            for feeder in node.all_input_nodes:
                if feeder not in piece.made:
                    piece.copy(feeder)
            piece.copy(node)
        piece.graph.output(piece.made[self._point])
        with any_names():
            module = fx.GraphModule(self._gm, piece.graph)
        return in_double_precision(module, _FRACTIONS).eval().requires_grad_(False)

    def __contains__(self, node: fx.Node) -> bool:
        return node in self.nodes

    def parameter(self, node: fx.Node, name: str) -> Tensor:
        """A parameter of the module that a node of the piece calls."""
        return self.module.get_submodule(str(node.target)).get_parameter(name)

    def __call__(self, values: Mapping[fx.Node, Any]) -> Tensor:
        """The value at the point.

        Args:
            values: those of the nodes `given`; they are not changed.
        """
        made: Tensor = self.module(*(in_double(values[node]) for node in self.given))
        return made


def in_double(value: Any) -> Any:
    """A copy of a value, its tensors of fractions in double precision."""
    return pytree.tree_map_only(
        Tensor, lambda t: t.to(torch.float64, copy=True) if t.is_floating_point() else t.clone(), value
    )


def drawn(like: Tensor) -> Tensor:
    """Normal values as large as a tensor, and where it is; the same at each call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(like.shape, generator=generator, dtype=torch.float64, device="cpu").to(like.device)


def close(found: Tensor, wanted: Tensor, size: Tensor) -> bool:
    """Tell whether two values differ by no more than the rounding of values as large as a third."""
    return bool((found - wanted).norm() <= ROUNDING * size.norm())


def axis_of_first(moved: Tensor) -> int | None:
    """The axis behind the batch along which the first of several values alone is not zero; None where none is so."""
    for axis in range(1, moved.ndim):
        along = moved.movedim(axis, 0).flatten(1).abs().sum(1)
        if len(along) > 1 and along[0] > 0 and not bool(along[1:].any()):
            return axis
    return None
