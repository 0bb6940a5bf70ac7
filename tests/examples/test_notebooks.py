"""The notebooks in examples/ run from the first cell to the last, and what a call returns shows itself."""

from __future__ import annotations

import os
import re
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


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
# pyzmq and jupyter_client, of the event loop that they make for themselves.
@pytest.mark.filterwarnings("ignore:.*event loop.*")
def test_runs_to_the_end(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The kernel is a process of its own, and imports what is tested here.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(EXAMPLES.parent), os.environ.get("PYTHONPATH", ""))))
    notebook = nbformat.read(file, as_version=4)
    for cell in notebook.cells:
        # Readers see a model learn; here it is enough that it does.
        cell.source = re.sub(r"\bepochs=\d+", "epochs=1", cell.source)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    shown = "\n".join(map(_outputs, notebook.cells))
    assert [word for word in SHOWN[file.stem] if word not in shown] == []


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_is_kept_without_outputs(file: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")


def test_there_is_one_for_each_kind_of_model() -> None:
    assert {file.stem for file in NOTEBOOKS} == SHOWN.keys()
