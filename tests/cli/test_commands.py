"""Every command, end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

import repl_fx

if TYPE_CHECKING:
    from .conftest import Run


def document(text: str) -> dict[str, Any]:
    """The one JSON document that `text` is."""
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


def test_inspect_shows_repeats_and_costs(run: Run, model_file: Path) -> None:
    result = run("inspect", model_file)
    assert result.exit_code == 0
    assert "captured by torch.export" in result.stdout
    assert "Repeats" in result.stdout and "Costs" in result.stdout
    assert max(len(line) for line in result.stdout.splitlines() if str(model_file) not in line) <= 80


def test_inspect_json(run: Run, model_file: Path) -> None:
    found = document(run("inspect", model_file, "--json").stdout)
    (repeat,) = found["repeats"]
    parameters = 16 + (8 * 16 + 16) + (16 * 8 + 8)
    assert (repeat["copies"], repeat["parameters_per_block"]) == (5, parameters)
    assert found["costs"]["parameters"] == 5 * parameters + 27
    assert found["costs"]["flops"] == 2 * 2 * (5 * 2 * 8 * 16 + 8 * 3)
    assert repeat["flops"] == 2 * 2 * 5 * 2 * 8 * 16


def test_inspect_of_an_artifact_shows_what_was_done(run: Run, artifact: Path) -> None:
    found = document(run("inspect", artifact, "--json").stdout)
    assert [block["status"] for block in found["blocks"]] == ["kept", "replaced", "kept", "replaced", "kept"]
    assert found["costs"]["after"]["parameters"] < found["costs"]["before"]["parameters"]
    shown = run("inspect", artifact)
    assert shown.exit_code == 0
    assert "rewritten Net" in shown.stdout and "Before and after" in shown.stdout


def test_inspect_where_nothing_repeats(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "flat.py"
    file.write_text("from torch import nn\ndef model(): return nn.Linear(4, 4)\n")
    result = run("inspect", file, "--input-shape", "2x4")
    assert result.exit_code == 0
    assert "nothing repeats" in result.stdout


def test_transform_shows_and_writes(run: Run, model_file: Path, tmp_path: Path) -> None:
    result = run("transform", model_file, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "bottleneck, from blocks.0" in result.stdout
    assert "bit for bit" in result.stdout
    assert f"next:    repl-fx export {tmp_path / 'out'}" in result.stdout
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "constants.safetensors",
        "graph.txt",
        "manifest.json",
        "model.safetensors",
        "plan.json",
        "source.txt",
    ]
    assert repl_fx.load(tmp_path / "out") is not None


def test_transform_options_reach_the_plan(run: Run, model_file: Path, tmp_path: Path) -> None:
    result = run(
        *("transform", model_file, "-o", tmp_path / "out", "--blocks", "2,3", "--ignore", "*.2.*", "--json"),
        *("--surrogate", "bottleneck", "--set", "width=3", "--seed", "7", "--no-check", "-q"),
    )
    assert result.exit_code == 0, result.stderr
    found = document(result.stdout)
    assert found["check"] is None
    assert [block["status"] for block in found["blocks"]] == ["kept", "replaced", "refused", "kept", "kept"]
    assert found["blocks"][1]["settings"]["width"] == 3
    assert found["blocks"][2]["reason"] == "it matches --ignore *.2.*"
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["seed"] == 7


def test_a_dry_run_writes_nothing(run: Run, model_file: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    result = run("transform", model_file, "--dry-run", "--no-check")
    assert result.exit_code == 0
    assert "nothing was written" in result.stdout
    assert sorted(tmp_path.iterdir()) == before


def test_a_plan_is_replayed(run: Run, artifact: Path, tmp_path: Path) -> None:
    source = artifact.parent / "model.py"
    result = run("transform", source, "-o", tmp_path / "again", "--plan", artifact / "plan.json")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "again" / "graph.txt").read_text() == (artifact / "graph.txt").read_text()
    both = run("transform", source, "--dry-run", "--plan", artifact / "plan.json", "--every", "3")
    assert both.exit_code == 2 and "leave out --every" in both.stderr


def test_export_writes_the_file_and_the_proof(run: Run, artifact: Path) -> None:
    (artifact / "model.onnx").unlink()
    (artifact / "verify.json").unlink()
    result = run("export", artifact)
    assert result.exit_code == 0, result.stderr
    assert "equivalent: 1 output at batch 1, 2, 5" in result.stdout
    assert json.loads((artifact / "verify.json").read_text())["equivalent"] is True
    onnx.checker.check_model(str(artifact / "model.onnx"))


def test_export_without_verification_leaves_no_old_proof(run: Run, artifact: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.onnx"
    result = run("export", artifact, "-o", file, "--opset", "18", "--no-verify", "--json")
    assert result.exit_code == 0, result.stderr
    found = document(result.stdout)
    assert found["verification"] is None and found["bytes"] == file.stat().st_size
    assert not (artifact / "verify.json").exists()
    assert {opset.domain: opset.version for opset in onnx.load(str(file)).opset_import}[""] == 18
    taken = run("export", artifact, "-o", file)
    assert taken.exit_code == 2 and "--force" in taken.stderr
    assert run("export", artifact, "-o", file, "--no-verify", "--force").exit_code == 0


def test_a_model_that_moved_is_named(run: Run, artifact: Path, tmp_path: Path) -> None:
    moved = (artifact.parent / "model.py").rename(tmp_path / "net.py")
    for command in (("inspect", artifact), ("verify", artifact, artifact / "model.onnx"), ("export", artifact)):
        lost = run(*command)
        assert lost.exit_code == 2 and "which is gone; name where it is: --model" in lost.stderr
        assert run(*command, "--model", moved).exit_code == 0
    # What writes the manifest notes the new place.
    assert run("inspect", artifact).exit_code == 0
    for command in (("inspect", moved), ("verify", moved, artifact / "model.onnx")):
        needless = run(*command, "--model", moved)
        assert needless.exit_code == 2 and "is no directory; leave out --model" in needless.stderr


def test_verify_a_directory(run: Run, artifact: Path) -> None:
    result = run("verify", artifact, artifact / "model.onnx", "--batch", "2,3", "--per-layer")
    assert result.exit_code == 0, result.stderr
    assert "Layers" in result.stdout and "equivalent: 1 output at batch 2, 3" in result.stdout


def test_verify_a_model(run: Run, artifact: Path) -> None:
    # The surrogates compute something else than the blocks they stand in for, and verify has to see it.
    source = artifact.parent / "model.py"
    result = run("verify", source, artifact / "model.onnx", "--json")
    assert result.exit_code == 1
    assert document(result.stdout)["equivalent"] is False
    assert result.stderr.startswith("repl-fx: error: not equivalent")
    loose = run("verify", source, artifact / "model.onnx", "--atol", "100")
    assert loose.exit_code == 0, loose.stderr


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
    # On a slow machine progress lines stand before it.
    assert [line for line in result.stderr.splitlines() if "not equivalent" in line] == result.stderr.splitlines()[-1:]


def test_version_and_help(run: Run) -> None:
    assert run("--version").stdout == f"repl-fx {repl_fx.__version__}\n"
    for arguments in ((), ("--help",)):
        result = run(*arguments)
        assert result.exit_code == 0
        for command in ("inspect", "transform", "export", "verify"):
            assert command in result.stdout
            assert run(command, "--help").exit_code == 0


def test_json_stands_alone_whatever_the_model_prints(run: Run, model_file: Path) -> None:
    model_file.write_text(model_file.read_text() + "\nprint('hello')\nimport warnings\nwarnings.warn('loud')\n")
    result = run("inspect", model_file, "--json")
    document(result.stdout)
    assert "hello" in result.stderr and "loud" not in result.stderr


def test_stages_are_told_with_v_and_not_with_q(run: Run, model_file: Path) -> None:
    loud = run("inspect", model_file, "-v")
    assert [line.split(" … ")[0] for line in loud.stderr.splitlines() if " … " in line] == [
        "load",
        "capture",
        "find repeats",
        "measure costs",
    ]
    assert run("inspect", model_file, "-q").stderr == ""


def test_as_a_process(model_file: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(repl_fx.__file__).parents[1]), "OMP_NUM_THREADS": "1"}

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "repl_fx", "transform", model_file.name, "-o", "out", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    done = call()
    assert done.returncode == 0, done.stderr
    assert "next:    repl-fx export out" in done.stdout
    assert all(" … " in line for line in done.stderr.splitlines()), done.stderr
    again = call("--json")
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == (
        "repl-fx: error: out is not empty; choose another place with -o, or replace it with --force\n"
    )
    # What C code of a model's prints, too, is no part of the document.
    said = ("import os", r"os.write(1, b'by number\n')", "os.system('echo by a child')", "print('by name')")
    model_file.write_text("\n".join((*said, model_file.read_text())))
    one = call("--json", "--dry-run", "--no-check")
    assert one.returncode == 0 and json.loads(one.stdout)["directory"] is None
    assert all(words in one.stderr for words in ("by number", "by a child", "by name"))
    shown = call("--dry-run", "--no-check")
    assert all(words in shown.stdout for words in ("by number", "by a child", "by name"))
