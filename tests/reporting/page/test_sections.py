"""Sections: what the charts and tables beside the picture say."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import pytest

from repl_fx.reporting.figures import Bar, Bars, Curves, Errors
from repl_fx.reporting.model_graph.document import Curve
from repl_fx.reporting.page import sections
from repl_fx.reporting.page.sections import Section, sections_of
from tests.reporting.page.samples import document


def _sections(*, after: bool = True, evidence: bool = True) -> dict[str, Section]:
    return {section.key: section for section in sections_of(document(after=after, evidence=evidence))}


def _bars(section: Section, place: int = 0) -> Sequence[Bar]:
    figure = section.figures[place]
    assert isinstance(figure, Bars)
    return figure.bars


def test_there_is_a_section_for_what_is_known_alone() -> None:
    assert list(_sections()) == ["blocks", "repeats", "plan", "scores", "training", "verify", "bench"]
    assert list(_sections(after=False, evidence=False)) == ["blocks", "repeats"]
    nothing = msgspec.structs.replace(document(evidence=False), repeats=())
    assert sections_of(nothing)[1].lines == ("nothing repeats in this model",)


def test_bars_of_a_plan_are_pairs_and_those_of_a_model_are_not() -> None:
    section = _sections(evidence=False)["blocks"]
    assert len(section.figures) == 3
    assert _bars(section) == [
        Bar("blocks.0", 1000, 1000, "1.00 k"),
        Bar("blocks.1", 1000, 100, "1.00 k → 100", marked=True),
        Bar("blocks.2", 1000, 1000, "1.00 k"),
    ]
    assert "blocks.1 1.00 k → 100" in section.figures[0].summary
    alone = _sections(after=False, evidence=False)["blocks"]
    # What the blocks keep is not known there.
    assert _bars(alone) == [Bar(f"blocks.{i}", 1000, None, "1.00 k") for i in range(3)]
    assert [figure.note for figure in alone.figures] == ["", ""]


def test_many_bars_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sections, "_MOST_BARS", 2)
    section = _sections(evidence=False)["blocks"]
    assert section.figures[0].note.endswith("the first 2 of 3")
    assert _bars(section) == [
        Bar("blocks.0", 1000, 1000, "1.00 k"),
        Bar("blocks.1", 1000, 100, "1.00 k → 100", marked=True),
    ]


def test_the_plan_says_what_became_of_each_block_and_why() -> None:
    section = _sections(evidence=False)["plan"]
    assert section.lines == ["1 of 3 blocks are replaced", "seed: 0, expected: params 0.7"]
    kept, replaced, refused = section.tables[0].rows
    assert kept[:3] == ("1", "blocks.0", "kept") and kept[-1] == ""
    assert replaced[3:5] == ("slim", "1.00 k → 100 (-90.0 %)")
    assert replaced[-1] == "made from blocks.0 and blocks.2; ratio 0.25"
    assert refused[2] == "refused" and refused[-1] == "no spine in blocks"
    assert section.tables[0].columns[1].kind == "block" and section.tables[0].columns[4].number


def test_scores_mark_the_blocks_that_go() -> None:
    section = _sections()["scores"]
    assert _bars(section) == [
        Bar("blocks.0", 0.0, None, "0"),
        Bar("blocks.1", 0.1, None, "0.1", marked=True),
        Bar("blocks.2", 0.2, None, "0.2"),
    ]
    assert section.lines == ("3 blocks by influence, over 8 samples",)


def test_training_has_curves_figures_and_variants() -> None:
    section = _sections()["training"]
    curves = [Curve("loss", ((0, 2.0), (1, 1.0)), "blocks"), Curve("loss", ((0, 2.5), (1, 1.5)))]
    assert section.figures == [Curves("loss", curves)]
    assert section.figures[0].summary == "loss over the steps of training: blocks from 2 to 1, loss from 2.5 to 1.5"
    figures, variants = section.tables
    assert figures.rows == [("trained", "0.9")]
    assert variants.rows == [
        ("original", "3,100", "0.8500 ± 0.0707", "100", "1", ""),
        ("blocks", "-", "-", "-", "-", "not trained: blocks"),
    ]


def test_a_long_curve_keeps_its_ends() -> None:
    thin = Curve("loss", tuple((i, float(i)) for i in range(1000))).thinned(300).points
    assert [thin[0], thin[-1], len(thin)] == [(0, 0.0), (999, 999.0), 251]
    assert Curve("loss", ((0, 1.0), (1, 2.0))).thinned(300).points == ((0, 1.0), (1, 2.0))


def test_verification_shows_errors_relative_to_the_scale() -> None:
    section = _sections()["verify"]
    errors = [(0.0, True), (5e-8, True), (1e-6, True), (math.inf, False)]
    (figure,) = section.figures
    assert isinstance(figure, Errors)
    assert [(layer.error, layer.passed) for layer in figure.layers] == errors
    assert figure.summary.endswith("4 layers in the order of execution; the largest error is inf, at layer 3")
    assert section.lines == ["differs at blocks", "no output blocks"]
    outputs, layers = section.tables
    assert not outputs.folded and list(outputs.rows) == [("blocks", "2", "height 9", "2.0e-06", "1", "passes")]
    assert layers.folded and list(layers.rows)[3] == ("3", "blocks.3", "inf", "2", "differs")


def test_the_benchmark_has_a_chart_for_each_setting() -> None:
    section = _sections()["bench"]
    assert [(figure.title, figure.note) for figure in section.figures] == [
        ("Step of training", "median, batch 4"),
        ("Inference, eager, batch 1", "median"),
        ("Inference, eager, batch 2", "median"),
        ("Kept for the backward pass", ""),
    ]
    assert section.figures[0].summary == "Step of training: original 300 ms, rewritten 150 ms"
    assert _bars(section) == [
        Bar("original", 300.0, None, "300"),
        Bar("rewritten", 150.0, None, "150", marked=True),
    ]
    assert section.lines[1] == "note on blocks"
    assert "not measured: depth-pruned, training: a reason" in section.lines
    assert section.tables[0].rows[2] == ("depth-pruned", *["-"] * 6) and section.tables[1].rows[0][0] == "1"


def test_a_benchmark_of_an_older_version_says_not_what_can_be_judged() -> None:
    sample = document()
    assert sample.bench is not None
    older = {**sample.bench, "training": [dict(row) for row in sample.bench["training"]]}
    for row in older["training"]:
        del row["settled"]
    section = {one.key: one for one in sections_of(msgspec.structs.replace(sample, bench=older))}["bench"]
    assert len(section.tables) == 2 and not any("rewritten, training" in line for line in section.lines)
