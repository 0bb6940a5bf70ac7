"""Bad input: one clear line on stderr, the right exit code, and nothing half-written."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import Result

import repl_fx
from repl_fx.cli.common import parse_settings
from repl_fx.errors import BadInput
from tests.planning.test_check_training import MADE, register

if TYPE_CHECKING:
    from .conftest import Run


def one_line(result: Result, code: int = 2) -> str:
    """The one line of an error."""
    assert result.exit_code == code, (result.exit_code, result.stderr)
    lines = [line for line in result.stderr.splitlines() if " … " not in line]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("repl-fx: error: ")
    assert "Traceback" not in result.stderr
    return lines[0].removeprefix("repl-fx: error: ")


def refused(run: Run, tmp_path: Path, *arguments: object) -> str:
    """The line with which a transform refuses; checks that it writes nothing."""
    before = sorted(tmp_path.rglob("*"))
    line = one_line(run("transform", *arguments, "-o", tmp_path / "out"))
    after = [path for path in sorted(tmp_path.rglob("*")) if "__pycache__" not in path.parts]
    assert after == before
    return line


def test_a_missing_file(run: Run, tmp_path: Path) -> None:
    assert f"no file {tmp_path / 'none.py'}" in refused(run, tmp_path, tmp_path / "none.py")


def test_no_factory(run: Run, model_file: Path, tmp_path: Path) -> None:
    assert "has no factory 'make'" in refused(run, tmp_path, f"{model_file}:make")


def test_a_factory_that_raises(run: Run, model_file: Path, tmp_path: Path) -> None:
    model_file.write_text("def model():\n    raise ValueError('too few\\nlayers')\n")
    line = refused(run, tmp_path, model_file)
    assert "ValueError: too few layers" in line and f"({model_file}, line 2)" in line


def test_a_wrong_input_shape(run: Run, model_file: Path, tmp_path: Path) -> None:
    line = refused(run, tmp_path, model_file, "--input-shape", "2x9")
    assert "[2, 9]" in line and "--input-shape" in line
    assert "write it like" in refused(run, tmp_path, model_file, "--input-shape", "two")


def test_a_model_that_no_rung_captures(run: Run, model_file: Path, tmp_path: Path) -> None:
    model_file.write_text(
        "import torch\n"
        "from torch import nn\n"
        "class Odd(nn.Module):\n"
        "    def forward(self, x):\n"
        "        if float(x.numpy().sum()) > 0:\n"
        "            return x + 1\n"
        "        return x\n"
        "def model(): return Odd()\n"
        "def example_inputs(): return (torch.randn(2, 4),)\n"
    )
    line = refused(run, tmp_path, model_file)
    assert "could not be captured" in line and f"{model_file}, line 5" in line


def test_an_unknown_surrogate(run: Run, model_file: Path, tmp_path: Path) -> None:
    line = refused(run, tmp_path, model_file, "--surrogate", "magic")
    assert "'magic'" in line
    assert all(key in line for key in repl_fx.known_surrogates())


def test_a_setting_that_is_not_there(run: Run, model_file: Path, tmp_path: Path) -> None:
    line = refused(run, tmp_path, model_file, "--surrogate", "bottleneck", "--set", "colour=red")
    assert "no setting 'colour'" in line and "ratio" in line
    assert "no setting; write it like" in refused(run, tmp_path, model_file, "--set", "ratio")


@pytest.mark.parametrize("block", ["99", "0", "encoder.5"])
def test_a_block_that_is_not_there(run: Run, model_file: Path, tmp_path: Path, block: str) -> None:
    assert f"no block '{block}'; the blocks are blocks.0, blocks.1" in refused(
        run, tmp_path, model_file, "--blocks", f"2,{block}"
    )


def test_every_one(run: Run, model_file: Path, tmp_path: Path) -> None:
    assert "must be 2 or more" in refused(run, tmp_path, model_file, "--every", "1")


def test_nothing_to_replace(run: Run, model_file: Path, tmp_path: Path) -> None:
    line = refused(run, tmp_path, model_file, "--ignore", "*")
    assert "nothing to replace" in line and "--ignore *" in line


def test_a_device_that_is_not_there(run: Run, model_file: Path, tmp_path: Path) -> None:
    assert "'nowhere'" in refused(run, tmp_path, model_file, "--device", "nowhere")


def test_no_place_to_write_to(run: Run, model_file: Path) -> None:
    assert "give -o DIR" in one_line(run("transform", model_file))


def test_a_place_below_a_file(run: Run, model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    line = one_line(run("transform", model_file, "-o", tmp_path / "file" / "out"))
    assert "cannot write" in line
    assert "is a file" in one_line(run("transform", model_file, "-o", tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_place_that_is_taken(run: Run, model_file: Path, artifact: Path) -> None:
    before = sorted(artifact.rglob("*"))
    assert "--force" in one_line(run("transform", model_file, "-o", artifact))
    assert sorted(artifact.rglob("*")) == before
    done = run("transform", model_file, "-o", artifact, "--force", "--no-check")
    assert done.exit_code == 0, done.stderr
    assert not (artifact / "model.onnx").exists()


def test_force_replaces_artifacts_only(run: Run, model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.png").write_text("dear")
    assert "artifacts only" in one_line(run("transform", model_file, "-o", tmp_path / "photos", "--force"))
    assert (tmp_path / "photos" / "me.png").exists()


def test_a_plan_that_cannot_be_used(run: Run, model_file: Path, tmp_path: Path) -> None:
    assert "cannot be read" in refused(run, tmp_path, model_file, "--plan", tmp_path / "none.json")
    (tmp_path / "plan.json").write_text("[]")
    assert "not a plan" in refused(run, tmp_path, model_file, "--plan", tmp_path / "plan.json")


def test_a_plan_of_another_model(run: Run, artifact: Path, tmp_path: Path) -> None:
    changed = artifact.parent / "model.py"
    changed.write_text(changed.read_text().replace("depth=5", "depth=6"))
    assert "another model" in refused(run, tmp_path, changed, "--plan", artifact / "plan.json")


def _no_artifact(artifact: Path) -> None:
    (artifact / "manifest.json").unlink()


def _foreign(artifact: Path) -> None:
    (artifact / "manifest.json").write_text('{"schema": 1, "kind": "photo album"}')


def _newer(artifact: Path) -> None:
    manifest = json.loads((artifact / "manifest.json").read_text())
    (artifact / "manifest.json").write_text(json.dumps({**manifest, "schema": 99}))


def _garbled(artifact: Path) -> None:
    (artifact / "manifest.json").write_bytes(b"\xff\xfe{")


def _bad_plan(artifact: Path) -> None:
    (artifact / "plan.json").write_text('{"schema": 1, "replacements": 3}')


def _cut_short(artifact: Path) -> None:
    weights = artifact / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _no_weights(artifact: Path) -> None:
    (artifact / "model.safetensors").unlink()


def _model_gone(artifact: Path) -> None:
    (artifact.parent / "model.py").unlink()


def _model_changed(artifact: Path) -> None:
    file = artifact.parent / "model.py"
    file.write_text(file.read_text().replace("nn.Linear(8, 3)", "nn.Linear(8, 4)"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_artifact, "no artifact"),
        (_foreign, "another program"),
        (_newer, "schema 99"),
        (_garbled, "manifest.json"),
        (_bad_plan, "damaged"),
        (_cut_short, "damaged"),
        (_no_weights, "damaged"),
        (_model_gone, "model.py"),
        (_model_changed, "changed since"),
    ],
)
def test_an_artifact_that_cannot_be_used(run: Run, artifact: Path, damage: Any, message: str) -> None:
    damage(artifact)
    before = sorted(artifact.rglob("*"))
    for command in (("export", artifact), ("inspect", artifact), ("verify", artifact, artifact / "model.onnx")):
        assert message in one_line(run(*command))
    assert sorted(artifact.rglob("*")) == before


def test_bad_onnx_files(run: Run, artifact: Path, tmp_path: Path) -> None:
    assert "there is no ONNX file" in one_line(run("verify", artifact, tmp_path / "none.onnx"))
    (tmp_path / "bad.onnx").write_text("not onnx")
    assert "cannot load" in one_line(run("verify", artifact, tmp_path / "bad.onnx"))
    assert "positive number" in one_line(run("verify", artifact, artifact / "model.onnx", "--batch", "1,x"))
    assert "leave out --input-shape" in one_line(
        run("verify", artifact, artifact / "model.onnx", "--input-shape", "2x8")
    )


def test_an_export_that_fails_leaves_no_file(run: Run, artifact: Path, tmp_path: Path) -> None:
    (artifact / "model.onnx").unlink()
    one_line(run("export", artifact, "--opset", "1"))
    assert "none" in one_line(run("export", artifact, "-o", tmp_path / "none" / "model.onnx"))
    assert not (artifact / "model.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("frobnicate",), "No such command 'frobnicate'; see repl-fx --help"),
        (("transform", "--colour"), "No such option: --colour"),
        (("export",), "see repl-fx export --help"),
        (("inspect", "model.py", "--seed", "x"), "--seed"),
    ],
)
def test_bad_usage(run: Run, arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert message in one_line(result)
    assert result.stdout == ""


def test_a_surrogate_that_cannot_be_trained(
    run: Run, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply, reason = MADE["dead"]
    register(monkeypatch, apply)
    command = ("transform", model_file, "-o", tmp_path / "out", "--surrogate", "given")
    assert reason in one_line(run(*command))
    assert not (tmp_path / "out").exists()
    assert run(*command, "--no-check").exit_code == 0 and (tmp_path / "out").exists()


def test_a_capture_that_differs_fails_the_check(run: Run, model_file: Path, tmp_path: Path) -> None:
    # What it adds changes from call to call, which no trace can know.
    text = model_file.read_text().replace("return self.head(", "return time.perf_counter() + self.head(")
    text = text.replace("import torch\n", "import time\nimport torch\n", 1)
    model_file.write_text(text)
    line = one_line(run("transform", model_file, "-o", tmp_path / "out"), code=1)
    assert "does not compute what the model computes in evaluation and training mode" in line
    assert not (tmp_path / "out").exists()


def test_a_model_that_fails_on_values_only(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "ids.py"
    file.write_text(
        "import torch\n"
        "from torch import nn\n"
        "def model():\n"
        "    return nn.Sequential(nn.Embedding(4, 8), *(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(5)))\n"
        "def example_inputs(): return (torch.full((2, 3), 9),)\n"
    )
    assert "IndexError" in one_line(run("transform", file, "-o", tmp_path / "out"))


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "weights"), 2, "no space left at weights"),
        (MemoryError(), 2, "not enough memory"),
        (RuntimeError("first\nsecond"), 70, "a defect of repl-fx: RuntimeError: first second"),
        (KeyboardInterrupt(), 130, None),
    ],
)
def test_what_goes_wrong_inside(
    run: Run, model_file: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str | None
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("repl_fx.sources.load_source", fail)
    result = run("inspect", model_file)
    if message is None:
        assert result.exit_code == code and "Traceback" not in result.stderr
    else:
        assert message in one_line(result, code)
        loud = run("inspect", model_file, "-v")
        assert loud.exit_code == code and "Traceback" in loud.stderr


@pytest.mark.parametrize(
    ("stop", "code"), [("SystemExit(0)", 2), ("SystemExit(1)", 2), ("GeneratorExit", 2), ("KeyboardInterrupt", 130)]
)
def test_a_forward_that_ends_the_process(run: Run, model_file: Path, tmp_path: Path, stop: str, code: int) -> None:
    model_file.write_text(
        model_file.read_text().replace("return self.head(", f"raise {stop}\n        return self.head(")
    )
    result = run("transform", model_file, "-o", tmp_path / "out")
    assert result.exit_code == code
    assert code == 130 or f"the model's code ended the command with {stop.split('(')[0]}" in one_line(result)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--input-shape", f"{10**18}x8"), "not enough memory"),
        (("--input-shape", f"{10**20}x8"), "has a size that no tensor can have"),
        (("--input-shape", f"{10**12}x8"), "not enough memory"),
        (("--seed", f"{10**20}"), "Invalid value for '--seed'"),
    ],
)
def test_numbers_that_are_too_large(
    run: Run, model_file: Path, tmp_path: Path, arguments: tuple[str, str], message: str
) -> None:
    assert message in refused(run, tmp_path, model_file, *arguments)


@pytest.mark.parametrize("batch", ["0", "2,0", "-1", "2,-3", "1.5", "", "2,,3", "٣,x", f"{10**20}"])
def test_batches_that_are_none(run: Run, artifact: Path, batch: str) -> None:
    line = one_line(run("verify", artifact, artifact / "model.onnx", "--batch", batch))
    assert line.startswith(f"--batch {batch!r} has an item that is no positive number") or "empty item" in line


def test_a_batch_that_no_memory_holds(run: Run, artifact: Path) -> None:
    assert "not enough memory" in one_line(run("verify", artifact, artifact / "model.onnx", "--batch", f"2,{10**15}"))


def test_example_inputs_with_a_batch_of_0(run: Run, model_file: Path, tmp_path: Path) -> None:
    model_file.write_text(model_file.read_text().replace("torch.randn(2, 8)", "torch.randn(0, 8)"))
    assert "a batch of 0 (0: float32[0, 8])" in refused(run, tmp_path, model_file)
    assert "a batch of 0 (0: float32[0, 8])" in one_line(run("inspect", model_file))


def test_weights_that_are_no_numbers(run: Run, model_file: Path, tmp_path: Path) -> None:
    text = model_file.read_text()
    model_file.write_text(
        text.replace(
            "    return Net(depth)",
            "    net = Net(depth)\n    net.head.bias.data[1] = 1 / torch.zeros(())\n    return net",
        )
    )
    assert "head.bias has 1 infinite of 3 values" in refused(run, tmp_path, model_file)
    done = run("transform", model_file, "--dry-run", "--allow-nan")
    assert done.exit_code == 0, done.stderr


def test_weights_on_the_meta_device(run: Run, model_file: Path, tmp_path: Path) -> None:
    line = refused(run, tmp_path, model_file, "--device", "meta")
    assert "no values to check or to write" in line
    shown = run("transform", model_file, "--device", "meta", "--dry-run", "--no-check")
    assert shown.exit_code == 0 and "dry run" in shown.stdout, shown.stderr
    model_file.write_text(model_file.read_text().replace("return Net(depth)", "return Net(depth).to('meta')"))
    assert "without values: blocks.0.norm.weight and 31 more" in refused(run, tmp_path, model_file)
    assert run("inspect", model_file, "--device", "meta").exit_code == 0


def test_settings() -> None:
    items = ["a=1", "b=0.5", "c=true", "d=None", "e=text", "f=1e-3", "g=x=y", "h="]
    assert parse_settings(items) == {
        **{"a": 1, "b": 0.5, "c": True, "d": None},
        **{"e": "text", "f": 0.001, "g": "x=y", "h": ""},
    }
    for bad in (["ratio"], ["=1"], ["a=1", "a=2"]):
        with pytest.raises(BadInput):
            parse_settings(bad)
