"""`repl-fx train`: from a model to a trained artifact, and on from there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import fx

import repl_fx
from repl_fx.training.run import settings_of
from tests.cli.results import document, one_line

if TYPE_CHECKING:
    from .conftest import Run

MODEL = """
import torch
from tests.training.runs import Net

def model():
    torch.manual_seed(0)
    net = Net(classes=10)
    net.stem = torch.nn.Linear(64, 8)
    return net

def example_inputs():
    return (torch.randn(2, 1, 8, 8),)
"""
FAST = ("--epochs", "2", "--batch-size", "256", "--lr", "0.05", "--device", "cpu")


@pytest.mark.slow
def test_a_model_is_trained_goes_on_and_is_exported(run: Run, tmp_path: Path) -> None:
    spec, out = tmp_path / "model.py", tmp_path / "out"
    spec.write_text(MODEL)
    result = run("train", spec, "-o", out, *FAST, "--no-augment", "--json")
    assert result.exit_code == 0, result.stderr
    found = document(result.stdout)
    assert found["directory"] == str(out) and found["figures"]["accuracy"] > 0.3
    assert settings_of(out).lr == 0.05 and not settings_of(out).augment
    trained: Any = repl_fx.load(out)
    assert not torch.equal(trained.head.bias, torch.zeros(10))
    again = run("train", out, "--resume", "--json")
    assert again.exit_code == 0, again.stderr
    assert document(again.stdout)["figures"] == found["figures"]
    # As a queue of a cluster starts it again.
    same = run("train", spec, "-o", out, *FAST, "--no-augment", "--json", "--resume")
    assert same.exit_code == 0, same.stderr
    assert document(same.stdout)["figures"] == found["figures"]
    assert "has a run already; go on with --resume" in one_line(run("train", out, *FAST))
    other = run("train", out, "-o", tmp_path / "other", *FAST, "--surrogate", "auto", "-q")
    assert other.exit_code == 0, other.stderr
    assert run("export", out).exit_code == 0


@pytest.mark.slow
def test_blocks_are_replaced_and_restored_on_the_way(run: Run, tmp_path: Path) -> None:
    spec, out = tmp_path / "model.py", tmp_path / "out"
    spec.write_text(MODEL)
    schedule = ("--epochs", "3", "--replace-at", "1", "--restore-at", "2", "--neighbours", "detach")
    result = run("train", spec, "-o", out, *FAST, *schedule, "--surrogate", "blend", "--json")
    assert result.exit_code == 0, result.stderr
    found = document(result.stdout)
    # What is left is the model itself, for all commands, under its own names.
    whole: Any = repl_fx.load(out)
    assert type(whole).__name__ == "Net" and {type(block).__name__ for block in whole.blocks} == {"MlpBlock"}
    again: Any = repl_fx.load(out, graph=True)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(whole(x), again(x))
    assert run("export", out, "-q").exit_code == 0
    resumed = run("train", out, "--resume", "--json")
    assert resumed.exit_code == 0, resumed.stderr
    assert document(resumed.stdout)["figures"] == found["figures"]
    assert torch.equal(whole(x), repl_fx.load(out)(x))
    from_file = run("transform", spec, "-o", tmp_path / "new", "--weights", out / "model.safetensors", "-q")
    assert from_file.exit_code == 0, from_file.stderr
    said = one_line(run("train", out, "-o", tmp_path / "other", "--neighbours", "freeze", *FAST))
    assert said == "replace_at, restore_at, neighbours and learn are for a model with replaced blocks; here none is"
    said = one_line(run("train", tmp_path / "new", "--replace-at", "1", *FAST))
    assert said.endswith("has its blocks replaced already; leave out --replace-at, or give the model itself")
    assert not (tmp_path / "other").exists() and not (tmp_path / "new" / "train_state").exists()
    assert run("train", tmp_path / "new", "--restore-at", "1", *FAST, "-q").exit_code == 0
    assert type(repl_fx.load(tmp_path / "new").blocks[1]).__name__ == "MlpBlock"  # type: ignore[index]


def test_a_library_that_is_not_there_is_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("repl_fx.training.command", "repl_fx.training.run"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    said = one_line(run("train", tmp_path / "model.py", "-o", tmp_path / "out"))
    assert said == "train needs pytorch_lightning; pip install 'repl-fx[train]'"


def test_what_cannot_begin_is_a_line_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    spec, out = tmp_path / "model.py", tmp_path / "out"
    spec.write_text(MODEL)
    config = tmp_path / "config.yaml"
    config.write_text("data: digit\n")
    assert "give -o DIR" in one_line(run("train", spec))
    assert "digit" in one_line(run("train", spec, "-o", out, "--config", config))
    assert "--lr" in one_line(run("train", tmp_path, "--resume", "--lr", "1"))
    assert "has no run to go on with; begin one without --resume" in one_line(run("train", tmp_path, "--resume"))
    assert f"give it in the place of {spec}, or by -o" in one_line(run("train", spec, "--resume"))
    assert "lr is -1.0; it must be float > 0.0" in one_line(run("train", spec, "-o", out, "--lr", "-1"))
    assert "tpu is no device to train on" in one_line(run("train", spec, "-o", out, "--device", "tpu"))
    assert not out.exists()


@pytest.mark.slow
def test_a_graph_is_trained(run: Run, tmp_path: Path) -> None:
    spec, out = tmp_path / "model.py", tmp_path / "out"
    spec.write_text(MODEL)
    result = run("train", spec, "-o", out, "--graph", "--steps", "1", "--batch-size", "8", "--device", "cpu", "-q")
    assert result.exit_code == 0, result.stderr
    trained = repl_fx.load(out, graph=True)
    assert isinstance(trained, fx.GraphModule)
    # What is saved behind the end of a run stays, also where the run is asked for again.
    head: Any = trained.head
    torch.nn.init.constant_(head.bias, 3.0)
    repl_fx.save(trained, out, force=True)
    assert run("train", out, "--resume", "-q").exit_code == 0
    again: Any = repl_fx.load(out, graph=True)
    assert torch.equal(again.head.bias, head.bias)
    assert run("train", out, "--force", "--graph", "--steps", "1", "--batch-size", "8", "-q").exit_code == 0
    again = repl_fx.load(out, graph=True)
    assert not torch.equal(again.head.bias, head.bias)


def test_data_that_the_model_does_not_fit_leave_nothing(run: Run, tmp_path: Path) -> None:
    spec, out, data = tmp_path / "model.py", tmp_path / "out", tmp_path / "twelve.npz"
    spec.write_text(MODEL)
    x, y = np.zeros((24, 8, 8), np.uint8), np.arange(24) % 12
    np.savez(data, train_x=x, train_y=y, test_x=x, test_y=y)
    asked = ("--batch-size", "4", "--steps", "1", "--device", "cpu", "-q")
    for more in ((), ("--seeds", "2")):
        said = one_line(run("train", spec, "-o", out, "--data", f"npz:{data}", *asked, *more))
        assert "Net returns 10 logits" in said and "has 12 classes" in said
        assert not out.exists()
    out.mkdir()
    (out / "repl_fx_notes").mkdir()
    assert "is not empty" in one_line(run("train", spec, "-o", out, "--data", f"npz:{data}", *asked))
    assert out.exists()


@pytest.mark.parametrize(
    ("flags", "needed"),
    [
        (("--temperature", "4"), "--teacher"),
        (("--target-weight", "0"), "--teacher"),
        (("--momentum", "0.5"), "--optimizer sgd"),
    ],
)
def test_flags_that_would_do_nothing(run: Run, tmp_path: Path, flags: tuple[str, str], needed: str) -> None:
    spec, out = tmp_path / "model.py", tmp_path / "out"
    spec.write_text(MODEL)
    words = f"{flags[0]} does nothing without {needed}; give that, or leave it out"
    assert words in one_line(run("train", spec, "-o", out, *flags)) and not out.exists()
    more = ("--optimizer", "sgd") if needed != "--teacher" else ("--teacher", tmp_path / "none.pt")
    # With it, it goes on to what is wrong next.
    assert "none" in one_line(run("train", spec, "-o", out, "--data", "none", *flags, *more))


def test_a_teacher_that_is_not_there_leaves_nothing(run: Run, tmp_path: Path) -> None:
    spec, out = tmp_path / "model.py", tmp_path / "out"
    spec.write_text(MODEL)
    line = one_line(run("train", spec, "-o", out, "--data", "digits", *FAST, "--teacher", tmp_path / "gone.pt"))
    assert "gone.pt" in line and not out.exists()
