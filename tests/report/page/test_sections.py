"""Sections: what the charts and tables beside the picture say."""

from __future__ import annotations

import math

import msgspec
import pytest

from repl_fx.report.page import sections
from repl_fx.report.page.charts import Bar, Curve, LayerError
from repl_fx.report.page.sections import Section, sections_of
from tests.report.page.samples import document


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[object]]:
    """What is drawn, by the kind of chart, in place of the pictures."""
    found: dict[str, list[object]] = {"bars": [], "curves": [], "errors": []}
    for kind in found:

        def draw(what: object, _: str, kind: str = kind) -> str:
            found[kind].append(what)
            return f"<svg>{kind}</svg>"

        monkeypatch.setattr(sections, f"{kind}_chart", draw)
    return found


def _sections(*, after: bool = True, evidence: bool = True) -> dict[str, Section]:
    return {section.key: section for section in sections_of(document(after=after, evidence=evidence))}


def test_there_is_a_section_for_what_is_known_alone() -> None:
    assert list(_sections()) == ["blocks", "repeats", "plan", "scores", "training", "verify", "bench"]
    assert list(_sections(after=False, evidence=False)) == ["blocks", "repeats"]
    nothing = msgspec.structs.replace(document(evidence=False), repeats=())
    assert sections_of(nothing)[1].lines == ("nothing repeats in this model",)


def test_bars_of_a_plan_are_pairs_and_those_of_a_model_are_not(drawn: dict[str, list[object]]) -> None:
    section = _sections(evidence=False)["blocks"]
    assert len(section.charts) == 3
    assert drawn["bars"][0] == [
        Bar("blocks.0", 1000, 1000, "1.00 k"),
        Bar("blocks.1", 1000, 100, "1.00 k → 100", marked=True),
        Bar("blocks.2", 1000, 1000, "1.00 k"),
    ]
    assert "blocks.1 1.00 k → 100" in section.charts[0].summary
    drawn["bars"].clear()
    alone = _sections(after=False, evidence=False)["blocks"]
    # What the blocks keep is not known there.
    assert drawn["bars"][0] == [Bar(f"blocks.{i}", 1000, None, "1.00 k") for i in range(3)]
    assert [chart.note for chart in alone.charts] == ["", ""]


def test_many_bars_are_cut_and_long_names_keep_their_end(
    drawn: dict[str, list[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sections, "_MOST_BARS", 2)
    monkeypatch.setattr(sections, "_LONGEST_NAME", 5)
    section = _sections(evidence=False)["blocks"]
    assert section.charts[0].note.endswith("the first 2 of 3")
    assert drawn["bars"][0] == [
        Bar("…ks.0", 1000, 1000, "1.00 k"),
        Bar("…ks.1", 1000, 100, "1.00 k → 100", marked=True),
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


def test_scores_mark_the_blocks_that_go(drawn: dict[str, list[object]]) -> None:
    section = _sections()["scores"]
    assert drawn["bars"][3] == [
        Bar("blocks.0", 0.0, None, "0"),
        Bar("blocks.1", 0.1, None, "0.1", marked=True),
        Bar("blocks.2", 0.2, None, "0.2"),
    ]
    assert section.lines == ("3 blocks by influence, over 8 samples",)


def test_training_has_curves_figures_and_variants(drawn: dict[str, list[object]]) -> None:
    section = _sections()["training"]
    assert drawn["curves"] == [[Curve("blocks", [(0, 2.0), (1, 1.0)]), Curve("loss", [(0, 2.5), (1, 1.5)])]]
    assert section.charts[0].summary == "loss over the steps of training: blocks from 2 to 1, loss from 2.5 to 1.5"
    figures, variants = section.tables
    assert figures.rows == [("trained", "0.9")]
    assert variants.rows == [("original", "3.10 k", "0.85", "100", "1", ""), ("blocks", "", "", "", "", "blocks")]


def test_a_long_curve_keeps_its_ends() -> None:
    thin = sections._thinned([(i, float(i)) for i in range(1000)])
    assert [thin[0], thin[-1], len(thin)] == [(0, 0.0), (999, 999.0), 251]
    assert list(sections._thinned([(0, 1.0), (1, 2.0)])) == [(0, 1.0), (1, 2.0)]


def test_verification_shows_errors_relative_to_the_scale(drawn: dict[str, list[object]]) -> None:
    section = _sections()["verify"]
    errors = [(0.0, True), (5e-8, True), (1e-6, True), (math.inf, False)]
    assert drawn["errors"] == [[LayerError(place, *error) for place, error in enumerate(errors)]]
    assert section.lines == ["differs at blocks", "no output blocks"]
    outputs, layers = section.tables
    assert not outputs.folded and list(outputs.rows) == [("blocks", "2", "2.0e-06", "1", "passes")]
    assert layers.folded and list(layers.rows)[3] == ("3", "blocks.3", "inf", "2", "differs")


def test_the_benchmark_has_a_chart_for_each_setting(drawn: dict[str, list[object]]) -> None:
    section = _sections()["bench"]
    assert [chart.title for chart in section.charts] == [
        "Step of training, batch 4",
        "Inference, eager, batch 1",
        "Inference, eager, batch 2",
        "Kept for the backward pass",
    ]
    assert drawn["bars"][4] == [
        Bar("original", 300.0, None, "300 ms"),
        Bar("rewritten", 150.0, None, "150 ms", marked=True),
    ]
    assert section.lines[1] == "note on blocks"
    assert section.tables[0].rows[2] == ("Step of training, batch 4", "depth-pruned", "", "", "", "a reason")
