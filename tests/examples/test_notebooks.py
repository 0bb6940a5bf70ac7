"""The notebooks in examples/ run from the first cell to the last, and what a call returns shows itself."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="the extra test has it")
nbclient = pytest.importorskip("nbclient", reason="the extra test has it")
pytest.importorskip("ipykernel", reason="the extra test has it")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
# Words that the outputs of each have to show.
SHOWN = {
    "vit": ("accuracy", "flops", "healed", "Repeats", "srcdoc="),
    "resnet": ("blocks replaced", "accuracy", "Training, batch 16", "Costs"),
    "language_model": ("loss", "params", "healed", "def model() -> "),
}


def _outputs(cell: Any) -> str:
    """The output that a reader sees: HTML where there is some, as a notebook takes it."""
    shown = [output.get("data", {}) for output in cell.get("outputs", ())]
    return "\n".join(data.get("text/html", data.get("text/plain", "")) for data in shown)


# Readers see a model learn; here it is enough that it does.
FEWER = {
    r"\bepochs=\d+": "epochs=1",
    r"\[:1400\]": "[:192]",
    r"\[1400:\]": "[1400:1528]",
    r"\[:512\]": "[:128]",
    r"\bwindows\[50:": "windows[50:242",
    r"\bdepth=6": "depth=4",
}


def _with_fewer(source: str) -> str:
    for words, fewer in FEWER.items():
        source = re.sub(words, fewer, source)
    return source


@pytest.fixture(scope="module")
def kernel() -> Iterator[Any]:
    """The process that runs the cells of all notebooks, as its imports are half of what one takes."""
    with pytest.MonkeyPatch.context() as patches:
        # The kernel imports what is tested here.
        patches.setenv("PYTHONPATH", os.pathsep.join((str(EXAMPLES.parent), os.environ.get("PYTHONPATH", ""))))
        none, place = nbformat.v4.new_notebook(), {"metadata": {"path": str(EXAMPLES)}}
        client = nbclient.NotebookClient(none, timeout=120, resources=place)
        with client.setup_kernel():
            yield client


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
# pyzmq and jupyter_client, of the event loop that they make for themselves.
@pytest.mark.filterwarnings("ignore:.*event loop.*")
def test_runs_to_the_end(file: Path, kernel: Any) -> None:
    notebook = kernel.nb = nbformat.read(file, as_version=4)
    # No name is left of the notebook before.
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
    for number, cell in enumerate(notebook.cells):
        cell.source = _with_fewer(cell.source)
        kernel.execute_cell(cell, number)
    shown = "\n".join(map(_outputs, notebook.cells))
    assert [word for word in SHOWN[file.stem] if word not in shown] == []


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_is_kept_without_outputs(file: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")


def test_what_a_test_takes_fewer_of_is_there() -> None:
    written = "".join(cell.source for file in NOTEBOOKS for cell in nbformat.read(file, as_version=4).cells)
    assert [words for words in FEWER if not re.search(words, written)] == []


def test_there_is_one_for_each_kind_of_model() -> None:
    assert {file.stem for file in NOTEBOOKS} == SHOWN.keys()
