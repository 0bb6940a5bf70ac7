"""`repl-fx verify`: files that equal their model, and files that do not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch

import repl_fx
from repl_fx.sources import load_source
from tests.cli.results import document, one_line

if TYPE_CHECKING:
    from .conftest import Run


@pytest.mark.slow
def test_verify_a_directory(run: Run, artifact: Path) -> None:
    result = run("verify", artifact, artifact / "model.onnx", "--batch", "2,3", "--per-layer")
    assert result.exit_code == 0, result.stderr
    assert "Layers" in result.stdout and "equivalent: 1 output at batch 2, 3" in result.stdout
    assert f"{artifact / 'model.onnx'} is the file that export verified" in " ".join(result.stdout.split())


@pytest.mark.slow
def test_verify_a_model(run: Run, artifact: Path) -> None:
    # The surrogates compute something else than the blocks they stand in for, and verify has to see it.
    source = artifact.parent / "model.py"
    result = run("verify", source, artifact / "model.onnx", "--json")
    assert result.exit_code == 1
    assert document(result.stdout)["equivalent"] is False
    # On a slow machine progress lines stand before it.
    assert result.stderr.splitlines()[-1].startswith("repl-fx: error: not equivalent")
    # Outputs are not all.
    loose = document(run("verify", source, artifact / "model.onnx", "--atol", "100", "--json").stdout)
    assert loose["outputs_equal"] is True and loose["weights"]["unmatched"] and not loose["weights"]["in_place"]


@pytest.mark.slow
def test_verify_a_model_with_trained_weights(run: Run, model_file: Path, tmp_path: Path) -> None:
    trained = load_source(str(model_file), seed=5)
    torch.save(trained.model.state_dict(), tmp_path / "weights.pt")
    repl_fx.export_onnx(repl_fx.capture(trained.model, trained.args), tmp_path / "net.onnx", trained.args)
    assert run("verify", model_file, tmp_path / "net.onnx").exit_code == 1
    result = run("verify", model_file, tmp_path / "net.onnx", "--weights", tmp_path / "weights.pt")
    assert result.exit_code == 0, result.stderr


def test_an_artifact_brings_its_own_weights(run: Run, artifact: Path) -> None:
    given = ("--weights", artifact / "model.safetensors")
    assert "leave out --weights" in one_line(run("verify", artifact, artifact / "model.onnx", *given))


@pytest.mark.slow
def test_verify_finds_a_tampered_file(run: Run, artifact: Path) -> None:
    model = onnx.load(str(artifact / "model.onnx"))
    weight = max(model.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] += 0.1
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, str(artifact / "model.onnx"))
    result = run("verify", artifact, artifact / "model.onnx")
    assert result.exit_code == 1
    assert "DIFFERS" in result.stdout
    assert "is not the file that export verified" in " ".join(result.stdout.split())
    assert f"weights in the file that are not the module's: {weight.name}: 1 of" in result.stderr
    # On a slow machine progress lines stand before it.
    assert [line for line in result.stderr.splitlines() if "not equivalent" in line] == result.stderr.splitlines()[-1:]
    # By so little that no output shows it.
    values.flat[0] += -0.1 + 1e-6
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, str(artifact / "model.onnx"))
    result = run("verify", artifact, artifact / "model.onnx", "--json")
    found = document(result.stdout)
    assert result.exit_code == 1 and found["is_exported"] is False
    assert (found["outputs_equal"], found["weights_equal"], found["equivalent"]) == (True, False, False)
    assert [one["name"] for one in found["weights"]["altered"]] == [weight.name]


@pytest.mark.slow
def test_bad_onnx_files(run: Run, artifact: Path, tmp_path: Path) -> None:
    assert "there is no ONNX file" in one_line(run("verify", artifact, tmp_path / "none.onnx"))
    (tmp_path / "bad.onnx").write_text("not onnx")
    assert "cannot load" in one_line(run("verify", artifact, tmp_path / "bad.onnx"))
    assert "positive number" in one_line(run("verify", artifact, artifact / "model.onnx", "--batch", "1,x"))
    assert "leave out --input-shape" in one_line(
        run("verify", artifact, artifact / "model.onnx", "--input-shape", "2x8")
    )


@pytest.mark.parametrize("batch", ["0", "2,0", "-1", "2,-3", "1.5", "", "2,,3", "٣,x", f"{10**20}"])
def test_batches_that_are_none(run: Run, artifact: Path, batch: str) -> None:
    line = one_line(run("verify", artifact, artifact / "model.onnx", "--batch", batch))
    assert line.startswith(f"--batch {batch!r} has an item that is no positive number") or "empty item" in line


def test_a_batch_that_no_memory_holds(run: Run, artifact: Path) -> None:
    assert "not enough memory" in one_line(run("verify", artifact, artifact / "model.onnx", "--batch", f"2,{10**15}"))
