"""`repl-fx transform`: what it shows and writes, and what it refuses without writing anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import fx

import repl_fx
from repl_fx.artifact.manifest import read_manifest
from repl_fx.rewriting.in_place.wrapped_forward import CheckpointedForward
from repl_fx.sources import load_source
from tests.cli.results import document, one_line, refused
from tests.planning.untrainable import MADE, register

if TYPE_CHECKING:
    from .conftest import Run


@pytest.mark.slow
def test_transform_shows_and_writes(run: Run, model_file: Path, tmp_path: Path) -> None:
    result = run("transform", model_file, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "bottleneck, from blocks.0" in result.stdout
    assert "bit for bit" in result.stdout
    assert f"next:    repl-fx export {tmp_path / 'out'}" in result.stdout
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "captured.json",
        "constants.safetensors",
        "graph.txt",
        "manifest.json",
        "model.safetensors",
        "plan.json",
        "source.txt",
    ]
    assert repl_fx.load(tmp_path / "out") is not None


UNLIKE = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, number):
        super().__init__()
        self.number, self.norm, self.linear = number, nn.LayerNorm(8), nn.Linear(8, 8)
    def forward(self, x):
        return x + nn.functional.dropout(self.linear(self.norm(x)), self.number / 10, self.training)

def model():
    return nn.Sequential(*(Block(number + 1) for number in range(4)))

def example_inputs():
    return torch.randn(2, 8)
"""


def test_where_copies_of_calls_differ_each_is_traced_by_itself(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.py"
    file.write_text(UNLIKE)
    monkeypatch.setattr("repl_fx.tracing.stamping.TracedCall.stands_for", lambda *args: True)
    result = run("transform", file, "-o", tmp_path / "out", "--json", "--every", "2", "--surrogate", "identity")
    assert result.exit_code == 0, result.stderr
    found = document(result.stdout)
    assert found["check"] == {"evaluation": True, "training": True}
    (note,) = found["notes"]
    assert note.startswith("each call of a module was traced by itself: a graph with copies of alike ones differed (")


@pytest.mark.slow
def test_an_artifact_keeps_the_dimensions_that_were_to_stay(run: Run, model_file: Path, tmp_path: Path) -> None:
    result = run("transform", model_file, "--input-shape", "2x6x8", "--fixed", "length", "-o", tmp_path / "out")
    assert "sizes: batch any; length 6 alone, as asked" in result.stdout, result.stderr
    assert read_manifest(tmp_path / "out").fixed == ("length",)
    loaded = repl_fx.load(tmp_path / "out", graph=True)
    assert isinstance(loaded, fx.GraphModule) and loaded.meta["capture"].dynamic == {"x": (0,)}
    loaded(torch.randn(3, 6, 8))
    with pytest.raises(repl_fx.BadInput, match=r"has shape \[3, 5, 8\], but was captured as \[any, 6, 8\]"):
        loaded(torch.randn(3, 5, 8))


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


@pytest.mark.slow
def test_a_pattern_names_the_blocks(run: Run, model_file: Path, tmp_path: Path) -> None:
    done = run("transform", model_file, "-o", tmp_path / "out", "--blocks", "blocks.[1-4],2", "--json", "-q")
    assert done.exit_code == 0, done.stderr
    assert [(b["block"], b["status"]) for b in document(done.stdout)["blocks"]] == [
        *(("blocks.1", "kept"), ("blocks.2", "replaced"), ("blocks.3", "kept"), ("blocks.4", "kept"))
    ]
    plan = tmp_path / "out" / "plan.json"
    again = run("transform", model_file, "-o", tmp_path / "again", "--plan", plan)
    assert again.exit_code == 0 and (tmp_path / "again" / "plan.json").read_text() == plan.read_text()
    assert [type(repl_fx.load(tmp_path / name)).__name__ for name in ("out", "again")] == ["Net", "Net"]
    message = refused(run, tmp_path / "no", model_file, "--blocks", "layers.*")
    assert "'layers.*' matches no module that computes anything" in message


def test_a_dry_run_writes_nothing(run: Run, model_file: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    result = run("transform", model_file, "--dry-run", "--no-check")
    assert result.exit_code == 0
    assert "nothing was written" in result.stdout
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_the_model_in_place_is_saved(run: Run, model_file: Path, tmp_path: Path) -> None:
    result = run("transform", model_file, "-o", tmp_path / "out", "--in-place", "--checkpoint-blocks")
    assert result.exit_code == 0, result.output
    model = repl_fx.load(tmp_path / "out")
    assert not isinstance(model, fx.GraphModule)
    assert read_manifest(tmp_path / "out").checkpoint_blocks
    assert sum(CheckpointedForward.on(m) is not None for m in model.modules()) > 1
    assert run("export", tmp_path / "out").exit_code == 0


def test_a_plan_is_replayed(run: Run, artifact: Path, tmp_path: Path) -> None:
    source = artifact.parent / "model.py"
    result = run("transform", source, "-o", tmp_path / "again", "--plan", artifact / "plan.json")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "again" / "graph.txt").read_text() == (artifact / "graph.txt").read_text()
    both = run("transform", source, "--dry-run", "--plan", artifact / "plan.json", "--every", "3")
    assert both.exit_code == 2 and "leave out --every" in both.stderr


@pytest.mark.slow
def test_trained_weights_go_into_the_artifact(run: Run, model_file: Path, tmp_path: Path) -> None:
    trained = load_source(str(model_file), seed=5)
    torch.save({"state_dict": trained.model.state_dict(), "epoch": 3}, tmp_path / "last.ckpt")
    result = run("transform", model_file, "-o", tmp_path / "out", "--weights", tmp_path / "last.ckpt", "--json")
    assert result.exit_code == 0, result.stderr
    found = document(result.stdout)
    assert found["notes"] == [f"weights are those of {tmp_path / 'last.ckpt'}, 32 tensors"]
    # The graph that was checked is of the trained model.
    assert found["check"] == {"evaluation": True, "training": True}
    (tmp_path / "last.ckpt").unlink()
    loaded, x = repl_fx.load(tmp_path / "out"), torch.randn(3, 8)
    expected = repl_fx.transform(trained.model, trained.args).graph_module
    assert torch.equal(loaded.eval()(x), expected.eval()(x))


def test_weights_of_another_model(run: Run, model_file: Path, tmp_path: Path) -> None:
    state = load_source(str(model_file), options={"depth": 4}).model.state_dict()
    torch.save(state, tmp_path / "other.pt")
    line = refused(run, tmp_path, model_file, "--weights", tmp_path / "other.pt")
    assert line == (
        f"{tmp_path / 'other.pt'} does not fit Net: 6 keys of Net are missing in it (blocks.4.norm.weight, "
        "blocks.4.norm.bias, blocks.4.up.weight and 3 more); build the model that it is the checkpoint of, or rename "
        "its keys"
    )


def test_weights_that_are_a_pickle(run: Run, model_file: Path, tmp_path: Path) -> None:
    torch.save(load_source(str(model_file)).model, tmp_path / "whole.pt")
    line = refused(run, tmp_path, model_file, "--weights", tmp_path / "whole.pt")
    assert "is a pickle of more than weights" in line and "which could run code and is not loaded" in line


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


def test_a_model_that_no_tracer_takes(run: Run, model_file: Path, tmp_path: Path) -> None:
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


@pytest.mark.slow
def test_weights_on_the_meta_device(run: Run, model_file: Path, tmp_path: Path) -> None:
    line = refused(run, tmp_path, model_file, "--device", "meta")
    assert "no values to check or to write" in line
    shown = run("transform", model_file, "--device", "meta", "--dry-run", "--no-check")
    assert shown.exit_code == 0 and "dry run" in shown.stdout, shown.stderr
    model_file.write_text(model_file.read_text().replace("return Net(depth)", "return Net(depth).to('meta')"))
    assert "without values: blocks.0.norm.weight and 31 more" in refused(run, tmp_path, model_file)
    assert run("inspect", model_file, "--device", "meta").exit_code == 0


@pytest.mark.slow
def test_a_budget_is_kept_and_shown(run: Run, model_file: Path, tmp_path: Path) -> None:
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({f"blocks.{i}": i for i in range(5)}))
    options = "--budget", "params=0.9,flops=0.95", "--scores", scores, "--surrogate", "identity", "--no-check"
    result = run("transform", model_file, "-o", tmp_path / "out", *options)
    assert result.exit_code == 0, result.stderr
    assert "Budget, of the original" in result.stdout
    plan = repl_fx.Plan.from_json((tmp_path / "out" / "plan.json").read_text())
    assert [r.block for r in plan.replacements] == ["blocks.1"]
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == json.loads(scores.read_text())
    shown = document(run("transform", model_file, "--dry-run", "--json", *options).stdout)["budget"]
    assert shown["params"] == {"limit": 0.9, "expected": plan.expected["params"], "reached": plan.expected["params"]}
    assert shown["memory"]["limit"] is None and shown["memory"]["expected"] == shown["memory"]["reached"]
    assert repl_fx.load(tmp_path / "out") is not None


def test_a_budget_that_is_none_or_that_nobody_can_meet(run: Run, model_file: Path, tmp_path: Path) -> None:
    assert refused(run, tmp_path, tmp_path / "none.py", "--budget", "size=0.5") == (
        "budget has no cost 'size'; the costs are params, flops, memory, latency"
    )
    both = refused(run, tmp_path, tmp_path / "none.py", "--budget", "params=0.5", "--blocks", "2")
    assert both == "a budget says which blocks go; leave out blocks, or the budget"
    line = refused(run, tmp_path, model_file, "--budget", "params=0.2", "--surrogate", "identity", "--no-check")
    assert line == (
        "no plan has params at or below 0.2 of the original: the least is 0.411, with 3 blocks replaced of 3 that may "
        "go; give --budget params=0.411, or another surrogate"
    )
