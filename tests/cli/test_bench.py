"""`repl-fx bench`: the figures, where they go, and what it refuses before anything is measured."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest

from repl_fx.artifact.manifest import read_manifest
from tests.benchmarking.test_results import measured
from tests.cli.results import document, one_line
from tests.training.trained_net import MODEL

if TYPE_CHECKING:
    from .conftest import Run

BRIEF = ("--rounds", "1", "--warm-up", "0", "--no-compile", "--no-onnx")


@pytest.mark.slow
def test_a_model_is_measured_and_nothing_is_written(run: Run, model_file: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    result = run("bench", model_file, *BRIEF, "--batch", "4", "--surrogate", "blend", "--every", "3", "--json")
    assert result.exit_code == 0, result.stderr
    found = document(result.stdout)
    assert found["replaced"] == [{"block": "blocks.2", "surrogate": "blend"}]
    assert [row["variant"] for row in found["training"]] == ["original", "rewritten", "depth-pruned", "checkpointed"]
    assert [(row["batch"], row["runtime"]) for row in found["inference"]] == [(1, "eager")] * 4 + [(4, "eager")] * 4
    assert all(row["seconds"]["median"] > 0 and row["not_measured"] is None for row in found["training"])
    assert found["settings"]["rounds"] == 1 and found["machine"]["threads"] >= 1
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "__pycache__"] == before


@pytest.mark.slow
def test_a_model_that_fixes_its_batch_is_captured_at_that_of_the_option(run: Run, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(dedent(MODEL))
    spec = f"{tmp_path / 'model.py'}:one_by_one"
    result = run("bench", spec, *BRIEF, "--batch", "4", "--batch-sizes", "4", "--json")
    assert result.exit_code == 0, result.stderr
    found = document(result.stdout)
    assert all(row["not_measured"] is None for row in (*found["training"], *found["inference"]))


@pytest.mark.slow
def test_a_model_is_measured_with_dimensions_that_stay(run: Run, model_file: Path) -> None:
    given = (*BRIEF, "--only", "inference", "--surrogate", "linear", "--fixed", "batch", "--json")
    found = document(run("bench", model_file, *given).stdout)
    reasons = {row["variant"]: row["not_measured"] for row in found["inference"] if row["batch"] == 1}
    assert "captured as [2, " in reasons["rewritten"], reasons


@pytest.mark.slow
def test_a_model_goes_to_a_file_as_it_is_shown(run: Run, model_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "cost.json"
    result = run("bench", model_file, *BRIEF, "--only", "training", "-o", file)
    assert result.exit_code == 0, result.stderr
    assert "Training, batch 2" in result.stdout and "Inference" not in result.stdout
    assert "Step of training, ms" in result.stdout and f"written: {file}" in result.stdout
    found = json.loads(file.read_text())
    assert len(found["training"]) == 4 and found["inference"] == [] and found["spec"] == str(model_file)
    assert "exists; choose another place with -o, or replace it with --force" in one_line(
        run("bench", model_file, *BRIEF, "-o", file)
    )


@pytest.mark.slow
def test_an_artifact_gets_the_figures_and_the_chart(run: Run, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in artifact.iterdir() if path.name != "manifest.json"}
    result = run("bench", artifact, *BRIEF, "--only", "inference", "--batch-sizes", "3")
    assert result.exit_code == 0, result.stderr
    assert f"written: {artifact / 'bench.json'}\nwritten: {artifact / 'bench.svg'}\n" in result.stdout
    after = {path.name: path.read_bytes() for path in artifact.iterdir() if path.name != "manifest.json"}
    found = json.loads(after.pop("bench.json"))
    assert [row["batch"] for row in found["inference"]] == [3, 3, 3, 3] and found["training"] == []
    assert b"Inference," in after.pop("bench.svg").replace(b"&#160;", b" ")
    assert after == before
    # They are the artifact's own from now on: replaced by the next, and kept by an export.
    assert {"bench.json", "bench.svg", "model.onnx"} <= read_manifest(artifact).files.keys()
    monkeypatch.setattr("repl_fx.benchmarking.benchmark.bench", lambda *_, **__: measured())
    again = run("bench", artifact)
    assert again.exit_code == 0 and "not measured: depth-pruned, training: a reason\n" in again.stdout
    assert json.loads((artifact / "bench.json").read_text())["settings"] == {"rounds": 3}
    assert run("export", artifact, "--no-verify").exit_code == 0
    assert {"bench.json", "bench.svg"} <= read_manifest(artifact).files.keys() and (artifact / "bench.svg").exists()


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fails a measurement as an interrupt does; holds a word for each that began."""
    began: list[str] = []

    def interrupted(*_: Any, **__: Any) -> None:
        began.append("began")
        raise KeyboardInterrupt

    monkeypatch.setattr("repl_fx.benchmarking.benchmark.bench", interrupted)
    return began


def test_an_interrupt_leaves_the_artifact_as_it_was(run: Run, artifact: Path, unmeasured: list[str]) -> None:
    before = {path: path.read_bytes() for path in artifact.iterdir()}
    result = run("bench", artifact)
    assert (result.exit_code, result.stdout) == (130, "") and "Traceback" not in result.stderr
    assert {path: path.read_bytes() for path in artifact.iterdir()} == before
    file = artifact.parent / "cost.json"
    assert run("bench", artifact, "-o", file).exit_code == 130
    assert not file.exists() and len(unmeasured) == 2


def test_a_file_of_others_is_never_replaced(run: Run, artifact: Path, unmeasured: list[str]) -> None:
    (artifact / "bench.json").write_text("mine")
    assert "bench.json is not as repl-fx wrote it" in one_line(run("bench", artifact))
    assert (artifact / "bench.json").read_text() == "mine" and not unmeasured


def test_an_artifact_has_a_plan_inputs_and_weights(run: Run, artifact: Path, unmeasured: list[str]) -> None:
    for option, value in (("--every", "3"), ("--surrogate", "blend"), ("--budget", "params=0.7")):
        assert f"has its plan; leave out {option}" in one_line(run("bench", artifact, option, value))
    for option, value in (("--input-shape", "2x8"), ("--weights", "x.pt")):
        assert f"leave out {option}" in one_line(run("bench", artifact, option, value))
    assert not unmeasured


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rounds", "0"), "Invalid value for '--rounds'"),
        (("--batch", "0"), "Invalid value for '--batch'"),
        (("--warm-up", "-1"), "Invalid value for '--warm-up'"),
        (("--only", "both"), "Invalid value for '--only'"),
        (("--batch-sizes", "1,0"), "--batch-sizes '1,0' has an item that is no positive number"),
        (("--device", "no such"), "device 'no such' cannot be used here"),
        (("--device", "meta"), "device 'meta' cannot be timed; choose cpu or cuda"),
        (("-o", "none/cost.json"), "there is no directory none"),
        (("-o", "."), ". is a directory; give the name of a file"),
    ],
)
def test_bad_values_are_refused_before_the_model_is_built(
    run: Run, tmp_path: Path, options: tuple[str, str], message: str
) -> None:
    assert message in one_line(run("bench", tmp_path / "model.py", *options))


def test_a_model_that_fails_entirely_is_one_line(run: Run, model_file: Path) -> None:
    model_file.write_text(model_file.read_text().replace("depth=5", "depth=1"))
    assert "nothing to replace" in one_line(run("bench", model_file, *BRIEF))


def test_a_batch_that_no_memory_holds(run: Run, model_file: Path) -> None:
    assert "not enough memory" in one_line(run("bench", model_file, *BRIEF, "--batch", f"{10**15}"))
