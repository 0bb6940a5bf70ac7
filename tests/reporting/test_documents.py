"""The documents that `--json` writes, from blocks and costs made by hand."""

from __future__ import annotations

import json

from torch import fx, nn

from repl_fx.costs.counted import Costs
from repl_fx.finding.blocks import Block, Repeat
from repl_fx.plan import Plan, Replacement
from repl_fx.planning.scoring.scores import Scores
from repl_fx.reporting.documents import (
    blocks_document,
    costs_document,
    parts_document,
    repeats_document,
    scores_document,
)
from repl_fx.rewriting.block_reports import BlockReport
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.tracing.capture import CaptureInfo
from repl_fx.tracing.parts.capture_parts import CapturedParts, Part
from repl_fx.tracing.parts.search import Eager
from tests.planning.scoring.test_scores import SCORES


def _traced() -> fx.GraphModule:
    return fx.symbolic_trace(nn.Sequential(nn.ReLU(), nn.ReLU(), nn.ReLU()))


def test_repeats_are_numbered_and_share_costs() -> None:
    nodes = [node for node in _traced().graph.nodes if node.op == "call_module"]
    first, second, inner = (
        Block(name, (node,), (), (), (), (), (), None, {number: size})
        for number, (node, name, size) in enumerate(zip(nodes, ("b.0", "b.1", "b.0"), (30, 30, 5), strict=True))
    )
    repeat = Repeat("b", (first, second), (Repeat("x", (inner, inner)),))
    (document,) = repeats_document((repeat,), Costs(2, 240, 960, 40, 8, 0), {nodes[0]: 10, nodes[1]: 10})
    assert (document["number"], document["copies"], document["parameters"], document["flops"]) == (1, 2, 60, 20)
    assert (document["parameters_share"], document["flops_share"]) == (0.25, 0.5)
    assert [(block["number"], block["flops"]) for block in document["blocks"]] == [(1, 10), (2, 10)]
    # A block inside a block has no number: `--blocks` does not take it.
    assert [block["number"] for block in document["inside"][0]["blocks"]] == [None, None]
    (unknown,) = repeats_document((repeat,), Costs(2, 0, 0, None, None, None, "it branches"))
    assert unknown["flops"] is unknown["flops_share"] is unknown["parameters_share"] is None
    json.dumps([document, unknown], allow_nan=False)


def test_blocks_say_what_they_are_made_from() -> None:
    report = (
        BlockReport("b.0", "b", "kept", None, None, 30, 30),
        BlockReport("b.1", "b", "replaced", "blend", None, 30, 2, ("b.0", "b.2")),
    )
    plan = Plan((Replacement("b.1", "b", "b.0", "b.2", "blend", {"per": "tensor"}),), (), "")
    kept, replaced = blocks_document(report, plan)
    assert (kept["number"], kept["status"], kept["made_from"], kept["settings"]) == (1, "kept", None, None)
    assert (replaced["number"], replaced["parameters_after"]) == (2, 2)
    assert (replaced["made_from"], replaced["settings"]) == (("b.0", "b.2"), {"per": "tensor"})


def test_costs_are_told_for_one_sample_too() -> None:
    document = costs_document(Costs(4, 10, 40, 80, 12, 0))
    assert (document["flops"], document["flops_per_sample"], document["activation_bytes_per_sample"]) == (80, 20, 3)


def test_parts_and_what_stays_eager() -> None:
    gm = _traced()
    gm.meta["capture"] = CaptureInfo("Sequential", "torch.fx", ())
    captured = CapturedParts(
        gm, gm, (Part("body", gm, ExampleInputs()),), ExampleInputs(), (Eager("", "Net", "it branches"),)
    )
    assert parts_document(captured) == {
        "captured": [{"path": "body", "class": "Sequential", "tracer": "torch.fx", "sizes": []}],
        "eager": [{"path": "", "class": "Net", "reason": "it branches"}],
    }


def test_scores_are_read_again() -> None:
    document = scores_document(SCORES)
    assert Scores.from_json(json.dumps(document)) == SCORES
    assert document["blocks"][2]["reasons"] == {"influence": "it is odd"}
