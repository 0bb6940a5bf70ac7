"""Bars as long as what they stand for."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from xml.dom import minidom

from rich.console import Console, Group

from repl_fx.planning.scoring.scores import BlockScore, Kind, Scores
from repl_fx.reporting.figures import bench_figures, scores_figures
from repl_fx.reporting.terminal_charts import chart_of, picture_of
from tests.benchmarking.test_results import measured
from tests.planning.scoring.test_scores import SCORES


def _benchmark(peak: int | None = None) -> Group:
    return chart_of(bench_figures(measured(peak).to_json()))


def _scores(scores: Scores, kind: Kind) -> Group:
    return chart_of(scores_figures(scores, kind))


def _lines(chart: Group) -> list[str]:
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(chart)
    text = console.file
    assert isinstance(text, io.StringIO)
    return [line.rstrip() for line in text.getvalue().splitlines()]


def test_each_group_has_a_bar_for_each_median() -> None:
    lines = _lines(_benchmark())
    assert lines[:3] == [
        "Step of training, ms",
        f"original     {'█' * 48}        300",
        f"rewritten    {'█' * 24}{' ' * 24}        150",
    ]
    titles = [line for line in lines if line and "█" not in line]
    assert titles == [
        "Step of training, ms",
        "Kept for the backward pass",
        "Inference, eager, batch 1, ms",
        "Inference, eager, batch 2, ms",
    ]
    assert f"rewritten    {'█' * 24}{' ' * 24}   2.00 KiB" in lines
    # No bar for what was not measured.
    assert not any(line.startswith("depth-pruned") for line in lines)
    assert "Peak memory of a step" in _lines(_benchmark(500))


def test_scores_have_a_bar_for_each_block_and_a_group_for_each_repeat() -> None:
    assert _lines(_scores(SCORES, "influence")) == [
        "b: influence",
        f"b.0          {'█' * 48}        0.5",
        f"b.1          {'█' * 12}{' ' * 36}      0.125",
    ]
    # No bar for a loss that falls.
    assert _lines(_scores(SCORES, "loss"))[:3] == [
        "b: rise of the loss without the block",
        f"b.0          {'█' * 48}        0.5",
        f"b.1          {' ' * 48}      -0.25",
    ]
    zeros = replace(SCORES, blocks=(BlockScore("b.0", "b", 0.0), BlockScore("c.0", "c", 1.0)))
    assert [line for line in _lines(_scores(zeros, "influence")) if ":" in line] == [
        "b: influence",
        "c: influence",
    ]
    long = replace(SCORES, blocks=(BlockScore("a" * 70, "b", 1.0),))
    assert max(map(len, _lines(_scores(long, "influence")))) <= 80


def test_the_picture_is_one_file_that_fetches_nothing() -> None:
    text = picture_of(_benchmark(), "<a> & [b]: Net")
    picture = minidom.parseString(text)
    words = [node.firstChild.data.replace("\xa0", " ") for node in picture.getElementsByTagName("text")]  # type: ignore
    assert words[0] == "<a> & [b]: Net" and any("█" in word for word in words)
    assert re.findall(r"https?://\S+", text) == ['http://www.w3.org/2000/svg">']
    assert text == picture_of(_benchmark(), "<a> & [b]: Net")
