"""What an artifact's directory says besides its model, from files made by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from repl_fx.artifact.manifest import MANIFEST, File, Manifest, read_manifest
from repl_fx.errors import ArtifactError, BadInput
from repl_fx.export.difference import Difference
from repl_fx.export.layers import LayerDifference
from repl_fx.export.verification import Verification
from repl_fx.reporting.model_graph.reading import read_evidence, read_score_document, read_verifications
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.tracing.parts.inputs import Inputs
from tests.planning.scoring.test_scores import SCORES

Write = Callable[[str, str], Path]
ROW = Difference("out", 2, "float32", 4, 0.5, 0.1, 0.1, 0.2, 3.0, 0.9, None, True, True, 1e-6, 1e-5, False)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file of an artifact; one of its own is known to the manifest."""
    manifest = Manifest(
        versions={},
        code="",
        model=None,
        parts=(),
        eager=(),
        inputs=Inputs.of(ExampleInputs()),
        aliases={},
        parameters=0,
    )
    (tmp_path / MANIFEST).write_text(manifest.to_json())

    def written(name: str, text: str) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        if "/" not in name:
            known = read_manifest(tmp_path)
            files = {**known.files, name: File(name, hashlib.sha256(text.encode()).hexdigest())}
            (tmp_path / MANIFEST).write_text(msgspec.structs.replace(known, files=files).to_json())
        return tmp_path

    return written


def test_a_directory_that_says_nothing_more(write: Write) -> None:
    assert set(read_evidence(write("compression/other.txt", "")).values()) == {None}


def test_scores_are_those_of_a_compression(write: Write) -> None:
    found = read_evidence(write("compression/scores.json", SCORES.to_json()))["scores"]
    assert found == json.loads(SCORES.to_json())


def test_scores_of_inspect_are_read_too(write: Write) -> None:
    directory = write("inspect.txt", json.dumps({"spec": "x", "scores": json.loads(SCORES.to_json())}))
    assert read_score_document(directory / "inspect.txt") == json.loads(SCORES.to_json())


def test_curves_go_on_where_a_run_went_on(write: Write) -> None:
    write("train_state/logs/from_step_0/metrics.csv", "epoch,loss,step,test_loss\n0,3.0,9,\n0,2.5,19,\n0,,20,nan\n")
    write("train_state/logs/from_step_15/metrics.csv", "epoch,loss,step\n0,2.0,19\n0,1.5,29\n")
    directory = write("train_state/others/original-seed-0/logs/from_step_0/metrics.csv", "step,loss\n9,1.0\n")
    training = read_evidence(directory)["training"]
    assert training is not None
    assert [(curve.run, curve.name, curve.points) for curve in training.curves] == [
        ("", "loss", ((9, 3.0), (19, 2.0), (29, 1.5))),
        ("original-seed-0", "loss", ((9, 1.0),)),
    ]


def test_long_curves_are_thinned_to_their_last_point(write: Write) -> None:
    rows = "".join(f"{step},{step / 2}\n" for step in range(5001))
    training = read_evidence(write("train_state/logs/from_step_0/metrics.csv", f"step,loss\n{rows}"))["training"]
    assert training is not None
    (curve,) = training.curves
    assert 1000 < len(curve.points) <= 2000
    assert curve.points[-1] == (5000, 2500.0)


def test_figures_have_the_names_of_models(write: Write) -> None:
    directory = write("train_state/result.json", json.dumps({"figures": {"loss": 2.0}, "steps": 3}))
    training = read_evidence(directory)["training"]
    assert training is not None and training.figures == {"trained": {"loss": 2.0}}
    write("train_state/healing.json", json.dumps({"original": {"loss": 1.0}, "healed": {"loss": 2.0}}))
    training = read_evidence(directory)["training"]
    assert training is not None and list(training.figures) == ["original", "healed"]


def test_comparison(write: Write) -> None:
    rows = [{"variant": "original", "parameters": 7, "figures": {"loss": [1.0, 2.0]}}, {"variant": "x", "reason": "no"}]
    training = read_evidence(write("train_state/comparison.json", json.dumps(rows)))["training"]
    assert training is not None and training.comparison is not None
    assert [(row.variant, row.reason) for row in training.comparison] == [("original", ""), ("x", "no")]
    assert training.comparison[0].figures == {"loss": [1.0, 2.0]}


def test_verifications_of_parts_with_layers(write: Write) -> None:
    result = Verification((ROW,), (LayerDifference("add", "a.b", ROW),))
    directory = write("verify.json", json.dumps({"parts": {"backbone": result.to_json()}}))
    found = read_evidence(directory)["verify"]
    assert found is not None
    (one,) = found
    assert (one.part, one.equivalent, len(one.outputs)) == ("backbone", bool(result), 1)
    assert (one.layers[0].node, one.layers[0].module, one.layers[0].max_abs) == ("add", "a.b", 0.5)
    write("verify.json", json.dumps(result.to_json()))
    assert read_verifications(directory / "verify.json")[0].part == ""


def test_a_benchmark(write: Write) -> None:
    document = {"kind": "repl-fx bench", "schema": 1, "training": []}
    assert read_evidence(write("bench.json", json.dumps(document)))["bench"] == document


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("compression/scores.json", "{}", "not scores"),
        ("compression/scores.json", "[", "cannot be read"),
        ("verify.json", "{}", "damaged"),
        ("verify.json", '{"parts": 3}', "damaged"),
        ("bench.json", '{"kind": 3}', "no result of"),
        ("train_state/result.json", '{"figures": [1]}', "damaged"),
        ("train_state/healing.json", "3", "cannot be read"),
        ("train_state/comparison.json", '[{"variant": 3}]', "cannot be read"),
        ("train_state/logs/from_step_0/metrics.csv", "step,loss\nx,1\n", "cannot be read"),
        ("train_state/logs/from_step_0/metrics.csv", "loss\n1\n", "cannot be read"),
        ("train_state/logs/from_step_0/metrics.csv", "step,loss\n1,2,3\n", "cannot be read"),
        ("train_state/logs/mine/metrics.csv", "", "its name says not"),
    ],
)
def test_damage_is_one_line(write: Write, name: str, text: str, said: str) -> None:
    with pytest.raises(BadInput, match=rf"^[^\n]*{said}[^\n]*$"):
        read_evidence(write(name, text))


def test_a_file_that_was_changed_is_damaged(write: Write) -> None:
    directory = write("bench.json", "{}")
    (directory / "bench.json").write_text("{ }")
    with pytest.raises(ArtifactError, match=r"bench\.json is not the file that was written"):
        read_evidence(directory)
