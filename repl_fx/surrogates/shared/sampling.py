"""Which positions of a block's stream a map of single positions reads, where the block changes sizes.

pixel     9x9 -> 5x5     the pixels 0, 2, 4, 6, 8 along each axis: a stride of 2, and sizes rounded up
mean      9x9 -> 5x5     the values of the average that the block's own shortcut takes of its stream
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import networkx as nx
import torch
from torch import fx, nn

from repl_fx.graph.bridge import digraph
from repl_fx.graph.captured import called_module
from repl_fx.graph.roles import ANY_CONVOLUTION, STRIDE_ARGUMENT
from repl_fx.surrogates.shared.site import Site

_AVERAGES = (torch.ops.aten.avg_pool1d.default, torch.ops.aten.avg_pool2d.default, torch.ops.aten.avg_pool3d.default)
_AVERAGE_MODULES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
# The longest stride that is looked for among sizes that depend on the input.
_LONGEST = 32


@dataclass(frozen=True)
class Sampling:
    """The values that a map reads.

    Attributes:
        strides: of the convolution of one pixel; empty where the channels are the last axis.
        average: the average pool of the block that comes before it; None where the map reads the stream itself.
    """

    strides: tuple[int, ...]
    average: fx.Node | None = None


def sampling_of(site: Site, start: fx.Node, axis: int) -> Sampling | None:
    """The reading along an axis that makes the sizes of a block's output; None where no stride makes them.

    Args:
        site: a block.
        start: what the map takes: the block's input, or that of a block before it in a stretch.
        axis: of the channels, whose number may change: 1, or -1 for the last.
    """
    average = _average_of(site) if start is site.input else None
    strides = None if average is None else _strides(site, average, axis)
    if strides is not None:
        return Sampling(strides, average)
    strides = _strides(site, start, axis)
    return None if strides is None else Sampling(strides)


def _strides(site: Site, start: fx.Node, axis: int) -> tuple[int, ...] | None:
    given, made = start.meta["val"].shape, site.block.output.meta["val"].shape
    spatial = range(len(given) if axis == -1 else 2, len(given))
    kept = set(range(len(given))) - set(spatial) - {axis % len(given)}
    if any(str(given[dim]) != str(made[dim]) for dim in kept):
        return None
    found = []
    for dim in spatial:
        # Several strides may make a size of another: that of the block's own steps reads the pixels that these read.
        likely = (_product_of_steps(site, start, dim), *_shortest(given[dim], made[dim]))
        stride = next((n for n in likely if _makes(given[dim], n, made[dim])), None)
        if stride is None:
            return None
        found.append(stride)
    return tuple(found)


def _product_of_steps(site: Site, start: fx.Node, dim: int) -> int:
    """The product of the strides on the shortest path to the end of the block; 0 where one is not known."""
    whole = digraph(site.graph_module.graph.nodes)
    product = 1
    for one, other in pairwise(nx.shortest_path(whole, start, site.block.output)):
        sizes = [node.meta["val"].shape[dim] for node in (one, other) if dim < node.meta["val"].ndim]
        if len(sizes) < 2:
            return 0
        likely = (*_own_stride(site, other, dim), *_shortest(*sizes))
        product *= next((n for n in likely if _makes(sizes[0], n, sizes[1])), 0)
    return product


def _own_stride(site: Site, node: fx.Node, dim: int) -> tuple[int, ...]:
    """The stride of a convolution along a dimension; nothing of another node."""
    stride: Any = getattr(called_module(site.graph_module, node), "stride", ())
    if node.target in ANY_CONVOLUTION and len(node.args) > STRIDE_ARGUMENT:
        stride = node.args[STRIDE_ARGUMENT]
    stride = tuple(stride) if isinstance(stride, (tuple, list)) else ()
    return stride[dim - 2 : dim - 1] if dim - 2 < len(stride) else ()


def _shortest(given: Any, made: Any) -> Iterable[int]:
    """The strides that may be between two sizes, the shortest first."""
    if isinstance(given, int) and isinstance(made, int):
        return (-(-given // made),)
    return range(1, _LONGEST + 1)


def _makes(given: Any, stride: int, made: Any) -> bool:
    """Tell whether a convolution of one pixel with a stride makes a size of another: it rounds up."""
    if stride < 1:
        return False
    # Of sizes that depend on the input: written as the shape of a convolution is.
    return str(given if stride == 1 else (given - 1) // stride + 1) == str(made)


def _average_of(site: Site) -> fx.Node | None:
    """The average pool that a block takes of its stream; None where it takes none, or several."""
    found = []
    for node in site.block.nodes:
        averages = node.target in _AVERAGES or type(called_module(site.graph_module, node)) in _AVERAGE_MODULES
        if averages and node.all_input_nodes == [site.input]:
            found.append(node)
    return found[0] if len(found) == 1 else None
