"""DOT: Graphviz reads it, whatever the names are."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from repl_fx.reporting.pictures.dot import dot_of
from repl_fx.reporting.pictures.folded import fold_document
from tests.model_graphs import small_document
from tests.reporting.pictures.pictured import ODD


def test_panels_and_stacks_are_clusters() -> None:
    pytest.importorskip("igraph")
    made = dot_of(fold_document(small_document()))
    assert re.findall(r"subgraph (\w+)", made) == ["cluster_p0", "cluster_s0", "cluster_b"]
    assert re.search(r's0_1 \[label="blocks\.1\\n→ bottleneck\\n', made)
    assert made.count("box3d") == 1 and "s0_0 -> s0_1;" in made and "s0_1 -> s0_2;" in made
    assert re.search(r"p0_\d+ -> s0_0 \[lhead=cluster_s0", made) and "s0_0 -> b_0 [lhead=cluster_b" in made
    known = set(re.findall(r"^    (\w+) \[label", made, re.MULTILINE))
    assert known == set(re.findall(r"\b([psb]\d*_\d+)\b", made))


def test_strings_end_where_they_should() -> None:
    made = dot_of(ODD)
    assert "\0" not in made
    # With its strings taken out, nothing of the names is left.
    assert "script" not in re.sub(r'"(?:\\.|[^"\\])*"', "", made)


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
def test_graphviz_reads_it() -> None:
    done = subprocess.run(["dot", "-Tsvg"], input=dot_of(ODD), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and "<script>" not in done.stdout
