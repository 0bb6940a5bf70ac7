"""Artifacts are saved and loaded, in this process and another; what is damaged or another model's is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.artifact import load_artifact
from repl_fx.artifact.exporting import export_artifact
from repl_fx.artifact.manifest import read_manifest
from repl_fx.artifact.store import text_of
from repl_fx.pipeline import unreplaced
from repl_fx.planning.written_options import read_scores
from repl_fx.sources import load_source
from repl_fx.tracing import capture
from tests.artifact.edits import edit_manifest, set_value
from tests.artifact.tied_net import MODEL
from tests.nets import Counts, MlpNet, TokenNet, tokens

FILES = {"plan.json", "model.safetensors", "constants.safetensors", "graph.txt", "source.txt", "captured.json"}


@pytest.mark.slow
def test_reloads_in_a_fresh_process_after_training(model_file: Path, tmp_path: Path) -> None:
    source = load_source(str(model_file))
    result = repl_fx.transform(source.model, source.args)
    gm = result.graph_module.train()
    optimizer = torch.optim.SGD(gm.parameters(), 1e-4)
    for _ in range(3):
        loss = gm(*source.args).square().mean()
        loss.backward()
        optimizer.step()
    repl_fx.save(result, tmp_path / "out", source=source)
    torch.save(gm.eval()(*source.args), tmp_path / "expected.pt")
    code = (
        "import sys, torch, repl_fx; gm = repl_fx.load(sys.argv[1]); "
        "y = gm(torch.arange(12).reshape(2, 6) % 11); "
        "assert torch.equal(y, torch.load(sys.argv[2])); print(gm.head.weight is gm.embed.weight)"
    )
    # From another directory: the artifact must not depend on where it was made.
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out"), str(tmp_path / "expected.pt")],
        capture_output=True,
        text=True,
        cwd=tmp_path.parent,
        env={**os.environ, "PYTHONPATH": str(Path(repl_fx.__file__).parents[1])},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Tied tensors are one tensor again.
    assert done.stdout.strip() == "True"


def test_contents(artifact: Path) -> None:
    assert {p.name for p in artifact.iterdir()} == {"manifest.json", *FILES}
    manifest = json.loads((artifact / "manifest.json").read_text())
    assert manifest["aliases"] == {"head.weight": "embed.weight"}
    ids = {"kind": "tensor", "shape": [2, 6], "dtype": "int64", "range": [0, 10]}
    assert manifest["inputs"] == {"args": [ids], "kwargs": {}}
    assert set(manifest["files"]) == FILES
    loaded = load_artifact(artifact)
    assert loaded.plan == repl_fx.Plan.from_json((artifact / "plan.json").read_text())
    assert manifest["parameters"] == sum(p.numel() for p in loaded.graph_module.parameters())
    assert torch.equal(loaded.inputs.args[0], torch.arange(12).reshape(2, 6) % 11)


@pytest.mark.slow
def test_the_scores_a_plan_was_made_from_are_a_file_of_the_artifact(tmp_path: Path) -> None:
    net, x = TokenNet(depth=4), tokens()
    scores = {"blocks.1": 0.1, "blocks.2": 2.5, "blocks.0": 1.0}
    options: Any = {"surrogate": "identity", "budget": {"params": 0.9}, "scores": scores}
    out, again = tmp_path / "out", tmp_path / "again"
    for place, given in ((out, repl_fx.transform(net, (x,), **options)), (again, None)):
        # A module from `load` brings them along, and the model in place does.
        repl_fx.save(given or repl_fx.load(out, net), place)
        assert json.loads((place / "scores.json").read_text()) == scores
        assert set(read_manifest(place).files) == {*FILES, "scores.json"}
    assert load_artifact(out, net).result.scores == scores == read_scores(out / "scores.json")
    repl_fx.save(load_artifact(out, net).model, again, force=True)
    assert read_scores(again / "scores.json") == scores
    export_artifact(load_artifact(again, net), verify=False)
    assert {"scores.json", "model.onnx"} < set(read_manifest(again).files)
    (again / "scores.json").write_text((again / "scores.json").read_text().replace("2.5", "2.6"))
    with pytest.raises(repl_fx.ArtifactError, match=r"scores\.json is not the file that was written"):
        repl_fx.load(again, net)
    # Another artifact in its place has none, where its plan was made from none.
    repl_fx.save(repl_fx.transform(net, (x,), surrogate="identity"), out, force=True)
    assert not (out / "scores.json").exists() and set(read_manifest(out).files) == FILES


def test_models_given_in_python(tmp_path: Path) -> None:
    x = tokens()
    result = repl_fx.transform(MlpNet(), (x,))
    repl_fx.save(result, tmp_path / "out")
    with pytest.raises(repl_fx.ArtifactError, match="name the model: --model SPEC"):
        repl_fx.load(tmp_path / "out")
    model = MlpNet()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    again = repl_fx.load(tmp_path / "out", model)
    assert torch.equal(again(x), result.graph_module.eval()(x))
    # The model that was handed over keeps its own weights.
    assert all(t.equal(before[n]) for n, t in model.state_dict().items())
    with pytest.raises(repl_fx.BadInput, match=r"has surrogates already, such as .*; give the original"):
        repl_fx.load(tmp_path / "out", result.model)


@pytest.mark.parametrize(
    ("old", "new", "difference"),
    [
        ("range(5)", "range(6)", "what differs first: "),
        (".relu()", ".tanh()", "aten.tanh.default.*, which was .*aten.relu.default"),
        ("x + self.fc2", "0.5 * x + self.fc2", r"aten.mul.Tensor\(%\d+, 0.5\), which was"),
        ("nn.LayerNorm(width)", "nn.LayerNorm(width, eps=0.1)", "eps=0.1, which was eps=1e-05"),
    ],
)
def test_a_model_that_changed_no_longer_fits(
    artifact: Path, model_file: Path, old: str, new: str, difference: str
) -> None:
    model_file.write_text(MODEL.replace(old, new))
    with pytest.raises(repl_fx.ArtifactError, match=r"net.py changed since .*artifact was made from it; .* --model"):
        repl_fx.load(artifact)
    for model in (str(model_file), load_source(str(model_file)).model):
        with pytest.raises(repl_fx.ArtifactError, match=f"no longer fits its model: Net has changed .*{difference}"):
            repl_fx.load(artifact, model)


def flip_a_bit(file: Path) -> None:
    """Change a weight by one bit."""
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "manifest.json").unlink(), "is no artifact: it has no manifest.json"),
        (lambda d: (d / "manifest.json").write_text("{"), "manifest.json is damaged or of another program"),
        (lambda d: (d / "manifest.json").write_text("[" * 10**5), "manifest.json is damaged or of another program"),
        (lambda d: (d / "manifest.json").write_text('{"schema": 1, "kind": "x"}'), r"written by another program \(x\)"),
        (lambda d: (d / "manifest.json").write_text("[]"), "is of another program, or damaged"),
        (
            lambda d: (d / "manifest.json").write_text((d / "manifest.json").read_text().replace("2.", "3.", 1)),
            "is damaged or was changed by hand",
        ),
        (lambda d: (d / "plan.json").write_text("[]"), "is damaged: plan.json is not the file that was written"),
        (lambda d: (d / "graph.txt").write_text(""), "is damaged: graph.txt is not the file that was written"),
        (
            lambda d: (d / "captured.json").write_text("{}"),
            "is damaged: captured.json is not the file that was written",
        ),
        (lambda d: (d / "plan.json").unlink(), "is damaged: plan.json is gone"),
        (lambda d: (d / "model.safetensors").write_bytes(b"\x00" * 20), "is damaged"),
        (lambda d: (d / "model.safetensors").unlink(), "is damaged: model.safetensors is gone"),
        (
            lambda d: flip_a_bit(d / "model.safetensors"),
            "is damaged: model.safetensors is not the file that was written",
        ),
        (shutil.rmtree, "is no directory"),
    ],
)
def test_damaged_and_foreign_artifacts(artifact: Path, damage: object, message: str) -> None:
    assert callable(damage)
    damage(artifact)
    with pytest.raises(repl_fx.ArtifactError, match=message) as caught:
        repl_fx.load(artifact)
    assert "\n" not in str(caught.value)


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The classes of the models that are traced."""
    found: list[str] = []
    trace: Any = capture._trace_by

    def noting(tracer: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        found.append(type(model).__name__)
        return trace(tracer, model, *args, **kwargs)

    monkeypatch.setattr(capture, "_trace_by", noting)
    return found


def without_graphs(artifact: Path) -> Path:
    """The artifact as versions wrote it that kept no graphs."""
    (artifact / "captured.json").unlink()

    def edit(text: str) -> str:
        data = json.loads(text)
        del data["files"]["captured.json"]
        return json.dumps(data)

    edit_manifest(artifact, edit)
    return artifact


@pytest.mark.slow
@pytest.mark.parametrize("in_place", [False, True])
def test_a_model_of_the_same_code_is_not_traced(tmp_path: Path, traces: list[str], in_place: bool) -> None:
    torch.manual_seed(0)
    result, x = repl_fx.transform(TokenNet(depth=5), (torch.randn(2, 6, 16),)), torch.randn(3, 6, 16)
    directory = repl_fx.save(result.model if in_place else result, tmp_path / "out")
    traces.clear()
    found = repl_fx.load(directory, TokenNet(depth=5))
    graphs = load_artifact(directory, TokenNet(depth=5))
    # What follows needs no trace either.
    again = repl_fx.save(found, tmp_path / "again")
    repl_fx.fold(graphs.graph_module)
    assert torch.equal(repl_fx.load(again, TokenNet(depth=5))(x), found(x))
    assert not traces
    assert (again / "captured.json").read_text() == (directory / "captured.json").read_text()
    traced = load_artifact(without_graphs(directory), TokenNet(depth=5))
    assert traces == ["TokenNet"]
    assert torch.equal((traced.model if in_place else traced.module)(x), found(x))
    for ours, theirs in zip(graphs.result.all_parts, traced.result.all_parts, strict=True):
        assert text_of(ours.graph_module.graph) == text_of(theirs.graph_module.graph)
    assert graphs.result.report == traced.result.report and graphs.result.made == traced.result.made


@pytest.mark.slow
def test_parts_of_the_same_code_are_not_traced(tmp_path: Path, traces: list[str]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 16)
    result = repl_fx.transform(Counts(TokenNet(depth=5)), (x,))
    directory = repl_fx.save(result, tmp_path / "out")
    traces.clear()
    torch.manual_seed(0)
    found = repl_fx.load(directory, Counts(TokenNet(depth=5)))
    assert not traces
    torch.manual_seed(0)
    assert torch.equal(repl_fx.load(without_graphs(directory), Counts(TokenNet(depth=5)))(x), found(x))
    assert traces == ["TokenNet"]


def test_a_model_of_other_code_is_traced(artifact: Path, model_file: Path, traces: list[str]) -> None:
    repl_fx.load(artifact)
    assert not traces
    for text in (MODEL.replace("import torch\n", "import torch\n\n"), MODEL.replace(".relu()", ".relu() * 1")):
        model_file.write_text(text)
        traces.clear()
        if "* 1" in text:
            with pytest.raises(repl_fx.ArtifactError, match="no longer fits its model: Net has changed"):
                repl_fx.load(artifact, str(model_file))
        else:
            repl_fx.load(artifact, str(model_file))
        assert traces == ["Net"]


def test_graphs_that_nobody_wrote_are_refused(artifact: Path) -> None:
    written = (artifact / "captured.json").read_text()
    for old, new in (
        ("aten.relu.default", "aten.from_file.default"),
        ("operator", "function"),
        ('"tables"', '"table"'),
        ('"nodes":[', '"nodes":[["import os","output",null,["tuple"],["dict"],{}],'),
        ("blocks.0.fc1", "blocks.0.fc9"),
    ):
        (artifact / "captured.json").write_text(written.replace(old, new))
        edit_manifest(artifact, lambda text: text)
        with pytest.raises(
            repl_fx.ArtifactError, match=r"is damaged: captured.json: .*; transform the model"
        ) as caught:
            repl_fx.load(artifact)
        assert "\n" not in str(caught.value)


def test_an_artifact_of_another_torch_is_judged_by_names_and_shapes(artifact: Path, model_file: Path) -> None:
    plan = json.loads((artifact / "plan.json").read_text())
    (artifact / "plan.json").write_text(json.dumps({**plan, "fingerprint": "of another trace"}))
    edit_manifest(artifact, lambda text: text)
    with pytest.raises(repl_fx.ArtifactError, match="no longer fits its model"):
        repl_fx.load(artifact)
    edit_manifest(artifact, set_value("versions/torch", "2.0"))
    assert repl_fx.load(artifact)(torch.zeros(2, 6, dtype=torch.int64)).shape == (2, 6, 11)
    # Other code is another model, with any torch.
    model_file.write_text(MODEL.replace(".relu()", ".tanh()"))
    with pytest.raises(repl_fx.ArtifactError, match="no longer fits its model"):
        repl_fx.load(artifact, str(model_file))


def test_a_failure_leaves_nothing_behind(tmp_path: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = {p.name: p.read_bytes() for p in artifact.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("repl_fx.artifact.tensor_files.save_file", full)
    result = repl_fx.transform(nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), (torch.randn(2, 4),))
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(repl_fx.OutputError, match="No space left on device"):
        repl_fx.save(result, artifact, force=True)
    with pytest.raises(repl_fx.OutputError, match="No space left on device"):
        repl_fx.save(result, tmp_path / "new" / "newer")
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert {p.name: p.read_bytes() for p in artifact.iterdir()} == old


def test_hooks_on_parameters_come_along_in_a_copy(tmp_path: Path) -> None:
    model, x = MlpNet(), tokens()
    model.head.weight.register_hook(lambda grad: grad * 2)  # type: ignore[no-untyped-call]
    seen: list[torch.Tensor] = []
    model.embed.weight.register_post_accumulate_grad_hook(seen.append)  # type: ignore[no-untyped-call]
    result = repl_fx.transform(model, (x,), copy=True)
    repl_fx.save(result, tmp_path / "artifact")
    gradients = []
    for module in (result.module, repl_fx.load(tmp_path / "artifact", model)):
        module.eval()(x).sum().backward()
        gradients.append(dict(module.named_parameters())["head.weight"].grad)
    assert gradients[0] is not None and gradients[1] is not None and torch.equal(gradients[0], gradients[1])
    assert len(seen) == 2
    plain = repl_fx.load(tmp_path / "artifact", MlpNet())
    plain(x).sum().backward()
    once = dict(plain.named_parameters())["head.weight"].grad
    assert once is not None and gradients[1] is not None and torch.equal(gradients[1], 2 * once)


class Offset(nn.Module):
    """Does not run on numbers below 5, asks whether there is one example, and computes the same then."""

    def __init__(self, *, alike: bool) -> None:
        super().__init__()
        self.alike = alike
        self.embedding, self.body = nn.Embedding(5, 16), MlpNet()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids - 5)
        if ids.shape[0] == 1:
            x = x * (1.0 if self.alike else 2.0)
        return self.body(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("alike", [True, False])
def test_a_size_of_one_is_taken_after_loading_as_before(tmp_path: Path, alike: bool) -> None:
    torch.manual_seed(0)
    model, ids = Offset(alike=alike), torch.randint(5, 10, (2, 6))
    result = repl_fx.transform(model, (ids,))
    repl_fx.save(result, tmp_path / "out")
    loaded = repl_fx.load(tmp_path / "out", Offset(alike=alike), graph=True)
    made = result.graph_module.eval()
    assert torch.equal(loaded(ids), made(ids))
    if alike:
        assert torch.equal(loaded(ids[:1]), made(ids[:1]))
    else:
        for module in (loaded, made):
            with pytest.raises(repl_fx.BadInput, match=r"goes another way with them than where ids\.shape\[0\] != 1"):
                module(ids[:1])


@pytest.mark.slow
@pytest.mark.parametrize("parts", [False, True])
def test_a_model_whose_blocks_are_whole_again_is_loaded_as_it_is(tmp_path: Path, parts: bool) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return Counts(TokenNet(depth=3)) if parts else TokenNet(depth=3)

    x = torch.randn(2, 6, 16)
    whole = unreplaced(repl_fx.transform(build(), (x,), surrogate="blend"), "it was restored").model
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(0.1)
    repl_fx.save(whole, tmp_path / "out")
    found = repl_fx.load(tmp_path / "out", build())
    assert type(found) is type(whole) and torch.equal(found(x), whole.eval()(x))
    graphs = repl_fx.load(tmp_path / "out", build(), graph=True)
    assert torch.equal(graphs(x), whole(x))
    # Saved again, it is the same.
    repl_fx.save(found, tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "out/model.safetensors").read_bytes()
    with pytest.raises(repl_fx.ArtifactError, match="no longer fits its model"):
        repl_fx.load(tmp_path / "out", TokenNet(depth=4) if not parts else Counts(TokenNet(depth=4)))


def test_the_model_of_a_result_in_a_graph_is_saved_as_the_result_is(tmp_path: Path) -> None:
    result = repl_fx.transform(MlpNet(), (torch.randn(2, 6, 16),), graph=True)
    assert result.model is result.module
    repl_fx.save(result, tmp_path / "result")
    repl_fx.save(result.model, tmp_path / "model")
    for file in ("manifest.json", "model.safetensors"):
        assert (tmp_path / "model" / file).read_bytes() == (tmp_path / "result" / file).read_bytes()
