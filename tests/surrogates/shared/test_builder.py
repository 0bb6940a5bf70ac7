"""Nodes that surrogates make, in a copy of the captured graph."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repl_fx
from repl_fx.graph.roles import LINEAR
from repl_fx.passes.fold_surrogates import is_synthesis
from repl_fx.pipeline import rewrite
from repl_fx.planning.options import Options
from tests.nets import ConvNet, TokenNet, images, tokens


def test_one_capture_serves_for_several_rewrites_and_stays_as_it_is() -> None:
    captured = repl_fx.capture_parts(TokenNet(depth=5), (tokens(),))
    (part,) = captured.parts
    before = part.graph_module.print_readable(print_output=False)
    results = [rewrite(captured, Options(surrogate=key)) for key in ("reuse", "blend", "reuse")]
    assert part.graph_module.print_readable(print_output=False) == before
    first, _, again = (result.graph_module for result in results)
    assert str(first.graph) == str(again.graph)
    torch.testing.assert_close(first.state_dict(), again.state_dict(), rtol=0, atol=0)


def test_nodes_of_a_surrogate_say_what_they_replace() -> None:
    gm = repl_fx.transform(TokenNet(depth=3), (tokens(),), surrogate="bottleneck").graph_module
    made = [n for n in gm.graph.nodes if "replaces" in n.meta]
    assert made and {n.meta["replaces"] for n in made} == {("blocks.1", "bottleneck")}
    assert all("val" in n.meta for n in made)


class _Lowered(nn.Module):
    """Two linear layers, computed in a lower precision than what is around them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            made: Tensor = self.second(F.relu(self.first(x)))
        return x + made.float()


def test_values_are_of_the_precision_of_the_place_where_nodes_are_made() -> None:
    x = torch.randn(2, 8)
    gm = repl_fx.transform(nn.Sequential(*(_Lowered() for _ in range(3))), (x,), surrogate="blend").graph_module
    made = [n for n in gm.graph.nodes if "replaces" in n.meta and n.target is LINEAR]
    assert [n.meta["val"].dtype for n in made] == [torch.bfloat16] * 2
    assert gm(x).dtype == torch.float32


def test_blocks_of_one_plan_may_have_other_widths() -> None:
    x = images()
    model = ConvNet(width=16)
    plan = repl_fx.transform(model, (x,), surrogate="bottleneck").plan
    first, second = plan.replacements
    mixed = replace(plan, replacements=(first, replace(second, settings={**second.settings, "width": 7})))
    gm = repl_fx.transform(model, (x,), plan=mixed).graph_module
    (made,) = (n for n in gm.graph.nodes if is_synthesis(gm, n))
    assert [int(weights[0].shape[0]) for weights in made.meta["val"]] == [4, 7]
