"""Tables: what stands in them, and that they keep to 80 columns."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.benchmarking.results import Benchmark, InferenceRow, TrainingRow, bench_tables
from repl_fx.benchmarking.training import PARTS, Sizes
from repl_fx.costs.counted import Costs, flops_by_node, measure_costs
from repl_fx.display.columns import Table
from repl_fx.export import Difference, LayerDifference, Verification
from repl_fx.finding.repeats import repeats_table
from repl_fx.reporting.documents import costs_document, repeats_document
from repl_fx.reporting.model_graph.document import VariantOutcome
from repl_fx.reporting.tables import (
    comparison_table,
    costs_table,
    forms_line,
    grown_lines,
    layers_table,
    scores_table,
    verification_table,
)
from repl_fx.rewriting.block_reports import BlockReport, blocks_table
from tests.display.shown import row_of, text_of
from tests.planning.scoring.test_scores import SCORES

NAMES = ("original", "depth-pruned")


class Pair(nn.Module):
    """Two linear layers in a row, each with its activation."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.layers:
            y = torch.relu(layer(y))
        return x + y


@pytest.fixture(scope="module")
def result() -> repl_fx.TransformResult:
    return repl_fx.transform(nn.Sequential(*(Pair() for _ in range(5))), (torch.randn(2, 8),))


def test_repeats_with_the_repeats_inside_them(result: repl_fx.TransformResult) -> None:
    costs = measure_costs(result.captured, result.args)
    flops = flops_by_node(result.captured, result.inputs)
    text = text_of(repeats_table(result.repeats, costs, flops))
    (repeat,) = result.repeats
    cells = row_of(text, "1")
    assert cells[1] == repeat.name
    assert cells[2:7] == ["5", str(len(repeat.blocks[0].nodes)), "144", "720", "100.0"]
    assert cells[-2:] == ["100.0", "%"]
    for child in repeat.children:
        assert row_of(text, child.name)[1] == str(len(child))
    (document,) = repeats_document(result.repeats, costs, flops)
    assert document["parameters_share"] == document["flops_share"] == 1.0
    assert [block["number"] for block in document["blocks"]] == [1, 2, 3, 4, 5]
    assert len(document["inside"]) == len(repeat.children)
    json.dumps(document, allow_nan=False)


def test_scores_with_the_reason_where_there_is_none() -> None:
    text = text_of(scores_table(SCORES))
    assert row_of(text, "1") == ["1", "b.0", "0.5", "0.5", "-"]
    assert row_of(text, "2") == ["2", "b.1", "0.125", "-0.25", "2"]
    assert row_of(text, "3") == ["3", "b.2", "-", "0.25", "1", "it", "is", "odd"]


def test_costs_before_and_after() -> None:
    before = Costs(2, 1_000_000, 4_000_000, 10**9, 2**20, 0)
    after = Costs(2, 500_000, 2_000_000, 10**8, 2**19, 1024)
    text = text_of(costs_table(before, after))
    assert row_of(text, "parameters") == ["parameters", "1.00", "M", "500", "k", "-50.0", "%"]
    assert row_of(text, "FLOPs,")[-2:] == ["-90.0", "%"]
    assert row_of(text, "activations")[-6:] == ["1.00", "MiB", "512", "KiB", "-50.0", "%"]
    assert row_of(text, "kept")[-3:] == ["1.00", "KiB", "-"]
    assert "synthesis" not in text_of(costs_table(before))
    for parts, words in ((1, "one call of 1 part"), (3, "one call of each of 3 parts")):
        assert words in text_of(costs_table(replace(before, parts=parts)))
    assert costs_document(before)["flops_per_sample"] == 5 * 10**8


def test_what_grows_is_said() -> None:
    before = Costs(2, 1_000_000, 4_000_000, 10**9, 2**20, 0)
    assert grown_lines(before, before) == [] == grown_lines(before, Costs(2, 10, 40, None, None, None, "it branches"))
    after = Costs(2, 1_460_000, 2_000_000, 10**9 + 1, 2**19, 2**20)
    assert grown_lines(before, after) == [
        "warning: the number of parameters grew from 1.00 M to 1.46 M (+46.0 %)",
        "warning: the FLOPs of a forward pass grew from 1.00 G to 1.00 G (0.0 %)",
        "warning: the memory kept for backward, with that for synthesis, grew from 1.00 MiB to 1.50 MiB (+50.0 %)",
    ]


def test_a_graph_that_keeps_more_or_less_than_the_model_in_place_is_said() -> None:
    small, large = Costs(2, 1, 4, 1, 2**20, 0), Costs(2, 1, 4, 1, 2**20, 2**20)
    assert forms_line(small, small) is None
    line = "its graph keeps 2.00 MiB for the backward pass, and the model in place 1.00 MiB; train the model in place"
    assert forms_line(small, large) == line
    assert forms_line(large, small) == "its graph keeps 1.00 MiB for the backward pass, and the model in place 2.00 MiB"


def test_unknown_costs_are_dashes() -> None:
    unknown = Costs(2, 10, 40, None, None, None, "it branches")
    text = text_of(costs_table(unknown, unknown))
    assert row_of(text, "FLOPs,")[-3:] == ["-", "-", "-"]
    assert costs_document(unknown)["flops_per_sample"] is None


def difference(name: str, passed: bool = True, top1: float | None = 1.0) -> Difference:
    return Difference(
        name, 2, "float32", 20, 1.26e-7, 1e-8, 0.0, 3e-6, 1.0, 0.99999999, top1, True, True, 1e-6, 1e-5, passed
    )


def test_verification_rows() -> None:
    layer = LayerDifference("linear", "blocks.0.fc", difference("linear"))
    verification = Verification((difference("logits"), difference("hidden", False, None)), (layer,))
    text = text_of(verification_table(verification))
    assert " ".join(row_of(text, "logits")) == "logits 1.3e-07 1.0e-08 0 3.0e-06 1.000000 100 % equal"
    assert row_of(text_of(verification_table(verification), width=100), "hidden")[-4:] == ["-", "DIFFERS", "batch", "2"]
    assert row_of(text_of(layers_table(verification)), "blocks.0.fc")[-1] == "equal"


def test_an_output_has_a_line_with_the_worst_of_all_sizes() -> None:
    names = "last_hidden_state", *(f"present_{layer}_{kind}" for layer in range(4) for kind in ("key", "value"))
    other = "past_length 7, past_key_values_1_key_past_length 6"
    at = [(1, ""), (2, ""), (5, ""), (2, other)]
    rows = [replace(difference(name), batch=batch, sizes=sizes) for batch, sizes in at for name in names]
    rows[9:11] = replace(rows[9], max_abs=4.2e-7, cosine=0.9), replace(rows[10], top1_agreement=0.5)
    lines = text_of(verification_table(Verification(tuple(rows)), "decoder")).rstrip().splitlines()
    assert lines[0].rstrip() == "ONNX Runtime and PyTorch, decoder, the worst of 4 sizes"
    assert len(lines) == 4 + len(names) and [line.split()[0] for line in lines[4:]] == list(names)
    assert " ".join(lines[4].split()[1:]) == "4.2e-07 1.0e-08 0 3.0e-06 0.900000 100 % equal"
    assert " ".join(lines[5].split()[1:]) == "1.3e-07 1.0e-08 0 3.0e-06 1.000000 50 % equal"
    assert "differs at" not in " ".join(lines)
    rows[-1], rows[-10] = replace(rows[-1], passed=False), replace(rows[-10], passed=False)
    text = text_of(verification_table(Verification(tuple(rows))), width=160)
    assert f"DIFFERS batch 5; batch 2, {other}" in " ".join(text.split()) and text.count("DIFFERS") == 1
    every = [replace(row, passed=False) for row in rows if row.output == "present_3_value"]
    assert row_of(text_of(verification_table(Verification(tuple(every))), width=120), every[0].output)[-2:] == [
        "all",
        "sizes",
    ]


def _of_long_runs() -> list[Table]:
    steps = [dict.fromkeys(PARTS, seconds / 3) for seconds in (123.456, 234.567)]
    rows = [TrainingRow(name, 10**6, "source", None, Sizes(10**12, 1, 10**13, None), steps) for name in NAMES]
    calls = [InferenceRow(name, 10**5, "source", None, "ONNX Runtime", [123.456, 234.567]) for name in NAMES]
    long = Benchmark({}, {}, tuple(rows), tuple(calls))
    return bench_tables(long.to_json())


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_no_line_is_longer_than_80_columns(encoding: str, result: repl_fx.TransformResult) -> None:
    name = "model.encoder.very_long_name_of_a_container.layers.17.attention.output_projection"
    row = BlockReport(name, name, "refused", None, "because " + name, 10**9, 10**9)
    tables = [
        repeats_table(result.repeats, measure_costs(result.captured, result.args)),
        blocks_table((row,)),
        verification_table(Verification((difference(name), difference(f"{name}_2", False)))),
        layers_table(Verification((), (LayerDifference("n", name, difference(name)),))),
        *_of_long_runs(),
        costs_table(Costs(1024, 10**12, 10**13, 10**18, 10**12, 10**9), Costs(1024, 1, 1, 1, 1, 1)),
    ]
    for table in tables:
        text = text_of(table, encoding)
        assert max(len(line) for line in text.splitlines()) <= 80
        # No number and no verdict is cut.
        assert not re.search(r"…(\s|$)", text)


def test_a_comparison_has_means_and_spreads_and_reasons() -> None:
    rows = (
        VariantOutcome("original", 3000, {"loss": [0.5, 0.7], "accuracy": [0.9, 0.8]}, [4000.0, 8000.0]),
        VariantOutcome("depth-pruned", reason="seed 0: the loss is nan"),
        VariantOutcome("rewritten", 2000, {"loss": [0.6], "accuracy": [0.85]}),
    )
    shown = text_of(comparison_table(rows), width=160)
    original, pruned, rewritten = (next(line for line in shown.splitlines() if row.variant in line) for row in rows)
    assert "3,000" in original and "0.6000 ± 0.1414" in original and "0.8500 ± 0.0707" in original
    assert "6,000 ± 2,828" in original
    assert "not trained: seed 0: the loss is nan" in pruned
    assert "0.8500" in rewritten and "±" not in rewritten and " - " in rewritten
    assert "memory" not in shown
