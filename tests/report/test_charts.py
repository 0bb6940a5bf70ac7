"""Bars as long as what they stand for."""

from __future__ import annotations

import io
import re
from xml.dom import minidom

from rich.console import Console

from repl_fx.report.charts import benchmark_chart, picture_of
from tests.benchmarking.test_results import measured


def _shown(peak: int | None = None) -> list[str]:
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(benchmark_chart(measured(peak)))
    text = console.file
    assert isinstance(text, io.StringIO)
    return [line.rstrip() for line in text.getvalue().splitlines()]


def test_each_group_has_a_bar_for_each_median() -> None:
    lines = _shown()
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
    assert "Peak memory of a step" in _shown(500)


def test_the_picture_is_one_file_that_fetches_nothing() -> None:
    text = picture_of(benchmark_chart(measured()), "<a> & [b]: Net")
    picture = minidom.parseString(text)
    words = [node.firstChild.data.replace("\xa0", " ") for node in picture.getElementsByTagName("text")]  # type: ignore
    assert words[0] == "<a> & [b]: Net" and any("█" in word for word in words)
    assert re.findall(r"https?://\S+", text) == ['http://www.w3.org/2000/svg"']
    assert text == picture_of(benchmark_chart(measured()), "<a> & [b]: Net")
