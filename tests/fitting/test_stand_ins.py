"""What stands in for each block, and what of it can be fitted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import repl_fx
from repl_fx.fitting.stand_ins import silence_, stand_ins
from repl_fx.surrogates.shared.fitted_starts import ChannelTerms, LastLayer, Term, WholeMap
from tests.nets import ConvNet, MlpNet, TokenNet, images, tokens


def test_of_a_stretch_there_is_the_map_alone() -> None:
    result = repl_fx.transform(MlpNet(depth=6), (tokens(),), surrogate="linear", blocks=[2, 4, 5])
    assert [(r.block, r.surrogate) for r in result.plan.replacements] == [
        ("blocks.1", "linear"),
        ("blocks.3", "identity"),
        ("blocks.4", "linear"),
    ]
    found = list(stand_ins(result))
    assert [(one.block, one.surrogate) for one in found] == [("blocks.1", "linear"), ("blocks.4", "linear")]
    assert all(isinstance(start, WholeMap) for one in found for _, start in one.starts)


@pytest.mark.slow
def test_a_block_that_keeps_some_units_beside_a_stretch_stands_for_itself() -> None:
    result = repl_fx.transform(
        TokenNet(depth=7), (tokens(),), surrogate="trained", budget={"params": 0.54}, check=False
    )
    made = [(r.block, r.surrogate) for r in result.plan.replacements]
    assert {surrogate for _, surrogate in made} == {"narrow", "linear", "identity"}
    assert [(one.block, one.surrogate) for one in stand_ins(result)] == [one for one in made if one[1] != "identity"]


def test_the_output_and_the_sums_before_it_are_the_points() -> None:
    (one,) = stand_ins(repl_fx.transform(TokenNet(depth=3, post_norm=True), (tokens(),), surrogate="bottleneck"))
    ((node, start),) = one.starts
    assert isinstance(start, LastLayer) and start.gains and start.bias is not None
    (output,) = one.outputs
    points = one.points[node, start]
    assert points[0] is output and one.original[output] is one.last and "norm2" in str(output.target)
    assert points[1].name == one.original[points[1]].name and "add" in points[1].name


def test_a_part_of_the_channels_is_no_output() -> None:
    (one,) = stand_ins(repl_fx.transform(ConvNet(depth=3), (images(),), surrogate="slim"))
    assert [tuple(node.meta["val"].shape)[1] for node in one.outputs] == [8]
    # Both norms get statistics, of which the second is fitted.
    assert [start is not None for _, start in one.in_order] == [False, False, True]
    assert isinstance(one.starts[0][1], ChannelTerms) and one.in_order[1][0] is one.in_order[2][0]


def test_norms_of_the_source_are_none_of_the_surrogates() -> None:
    (one,) = stand_ins(repl_fx.transform(ConvNet(depth=3), (images(),), surrogate="coarse"))
    assert all(str(node.target).startswith("surrogates.") for node, _ in one.in_order)


@pytest.mark.slow
def test_a_surrogate_without_its_numbers_is_silent() -> None:
    torch.manual_seed(0)
    x = tokens()
    net = TokenNet(depth=3).eval()
    result = repl_fx.transform(net, (x,), surrogate="reuse")
    (one,) = stand_ins(result)
    ((node, start),) = one.starts
    module = one.graph.get_submodule(str(node.target))
    pruned = repl_fx.transform(net, (x,), surrogate="identity").graph_module.eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
        assert not torch.allclose(result.graph_module.eval()(x), pruned(x))
        silence_(module, start)
        torch.testing.assert_close(result.graph_module(x), pruned(x))
    assert float(module.get_parameter("gain").detach().norm()) > 0
    assert repl_fx.fit(repl_fx.transform(net, (x,), surrogate="reuse"), [tokens(8)]).surrogates[0].numbers


@torch.no_grad()
def test_numbers_that_are_drawn_to_their_start_stay() -> None:
    layer = nn.Linear(3, 3)
    terms = (Term("bias", 0, 2),)
    silence_(layer, ChannelTerms(terms, silent=False))
    assert layer.bias.all()
    silence_(layer, ChannelTerms(terms))
    assert [bool(value) for value in layer.bias] == [False, False, True]
