"""What a map of single positions reads of a stream, where a block changes sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import repl_fx
from repl_fx.finding.blocks import Block
from repl_fx.surrogates.shared.sampling import sampling_of
from repl_fx.surrogates.shared.site import Site
from tests.surrogates.nets import Halving, Strided


def _site(model: nn.Module, shape: tuple[int, ...]) -> Site:
    """The whole of a model as a block."""
    gm = repl_fx.capture(model, (torch.randn(shape),))
    given = next(node for node in gm.graph.nodes if node.op == "placeholder")
    nodes = tuple(node for node in gm.graph.nodes if node.op in ("call_function", "call_module"))
    made: Any = gm.graph.output_node().args[0]
    made = made[0] if isinstance(made, (tuple, list)) else made
    block = Block("all", nodes, (given,), (made,), (), (), (), None, {})
    return Site(gm, block, block, block, "all")


@pytest.mark.parametrize(
    ("layers", "shape", "strides"),
    [
        ([nn.Conv2d(2, 3, 3, 2, 1)], (2, 2, 9, 8), (2, 2)),
        # Strides of three and four make three of nine.
        ([nn.Conv2d(2, 3, 1, 4)], (2, 2, 9, 9), (4, 4)),
        ([nn.Conv2d(2, 3, 3, 2, 1), nn.ReLU(), nn.Conv2d(3, 4, 3, (2, 1), 1)], (2, 2, 9, 9), (4, 2)),
        ([nn.Conv2d(2, 3, 3, 2)], (2, 2, 9, 9), None),
        # Of an odd size, a pool without an edge leaves one pixel out.
        ([nn.MaxPool2d(2)], (2, 2, 8, 8), None),
        ([nn.MaxPool2d(2, ceil_mode=True)], (2, 2, 8, 8), (2, 2)),
        ([nn.MaxPool2d(2)], (2, 2, 9, 9), None),
        ([nn.Upsample(scale_factor=2)], (2, 2, 4, 4), None),
    ],
)
def test_strides_are_those_of_the_blocks_own_steps(
    layers: list[nn.Module], shape: tuple[int, ...], strides: tuple[int, ...] | None
) -> None:
    site = _site(nn.Sequential(*layers), shape)
    found = sampling_of(site, site.input, 1)
    assert (None if found is None else found.strides) == strides
    assert found is None or found.average is None


def test_channels_that_are_last_have_no_strides_and_no_other_sizes() -> None:
    site = _site(nn.Linear(8, 4), (2, 5, 8))
    found = sampling_of(site, site.input, -1)
    assert found is not None and found.strides == ()
    halved = _site(nn.Sequential(nn.Flatten(1, 2), nn.Unflatten(1, (4, 4))), (2, 2, 8))
    assert sampling_of(halved, halved.input, -1) is None


def test_an_average_of_the_stream_is_read_in_its_place() -> None:
    site = _site(Strided(8, 12, average=True), (2, 8, 9, 9))
    found = sampling_of(site, site.input, 1)
    assert found is not None and found.average is not None and found.strides == (1, 1)
    assert found.average.all_input_nodes == [site.input]
    # Of a stretch, what the last block averages is not what the first took.
    gm = repl_fx.capture(Halving(average=True), (torch.randn(2, 8, 9, 9),))
    blocks: Any = repl_fx.find_repeats(gm)[0].blocks
    last = Site(gm, blocks[3], blocks[2], blocks[4], "similar_1")
    stretch = sampling_of(last, blocks[1].input, 1)
    assert stretch is not None and stretch.average is None and stretch.strides == (4, 4)
