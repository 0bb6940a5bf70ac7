"""An artifact is exactly what was trained, and what `load` returned can be saved again."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.artifact import load_artifact
from repl_fx.sources import load_source
from tests.artifact.edits import edit_manifest
from tests.nets import TokenNet, tokens

TABLES = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return x + self.fc2(self.fc1(x).relu())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)
        self.register_buffer("seen", torch.zeros(8), persistent=False)
        self.register_buffer("wide", torch.ones(1).expand(8), persistent=False)
        self.table = torch.linspace(0.0, 1.0, 48).reshape(6, 8) + ANGLE
        self.blocks = nn.Sequential(*(Block() for _ in range(3)))

    def forward(self, x):
        if self.training:
            self.seen += x.mean((0, 1)).detach()
        return self.blocks(x * self.scale + self.table) + self.seen + self.wide


def model():
    return Net()


def example_inputs():
    return (torch.randn(2, 6, 8),)
"""
X = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))


def _write(file: Path, angle: float = 0.0, scale: str = "2.0") -> Path:
    file.write_text(f"ANGLE = {angle}\n{TABLES}".replace("2.0", scale))
    return file


def _transformed(place: Path, **options: Any) -> tuple[repl_fx.TransformResult, Path]:
    source = load_source(str(_write(place / "net.py")))
    result = repl_fx.transform(source.model, source.args, **options)
    return result, repl_fx.save(result, place / "out", source=source)


def test_buffers_that_are_in_no_state_dict_are_those_that_were_saved(tmp_path: Path) -> None:
    source = load_source(str(_write(tmp_path / "net.py")))
    result = repl_fx.transform(source.model, source.args)
    net = result.graph_module.train()
    net(X)
    net.scale.fill_(3.0)  # type: ignore[operator]
    wanted = net.eval()(X)
    repl_fx.save(result, tmp_path / "out", source=source)
    loaded = repl_fx.load(tmp_path / "out")
    assert torch.equal(loaded(X), wanted)
    assert loaded.seen.abs().sum() > 0  # type: ignore[operator]
    # Whatever the code computes by now.
    again = repl_fx.load(tmp_path / "out", str(_write(tmp_path / "other.py", angle=1e-5, scale="4.0")))
    assert torch.equal(again(X), wanted)


def test_a_constant_of_the_code_that_changed_is_refused(tmp_path: Path) -> None:
    _, out = _transformed(tmp_path)
    with pytest.raises(repl_fx.ArtifactError, match=r"no longer fits its model: the constant \S*traced_constant_0 has"):
        repl_fx.load(out, str(_write(tmp_path / "other.py", angle=0.1)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_keeps_the_precision_it_was_trained_in(tmp_path: Path, dtype: torch.dtype) -> None:
    result, _ = _transformed(tmp_path)
    net = result.graph_module.eval().to(dtype)
    repl_fx.save(result, tmp_path / "again", source=load_source(str(tmp_path / "net.py")))
    loaded = repl_fx.load(tmp_path / "again")
    assert {p.dtype for p in loaded.parameters()} == {dtype} == {b.dtype for b in loaded.buffers()}
    assert torch.equal(loaded(X.to(dtype)), net(X.to(dtype)))


def _train(net: nn.Module, x: Tensor) -> None:
    optimizer = torch.optim.SGD(net.train().parameters(), 1e-3)
    for _ in range(2):
        net(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def _pickled(net: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(net))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("surrogate", "copied"), [("bottleneck", lambda net: net), ("blend", copy.deepcopy), ("bottleneck", _pickled)]
)
def test_what_was_loaded_is_saved_again_with_its_spec_and_inputs(
    tmp_path: Path, surrogate: str, copied: Callable[[nn.Module], nn.Module]
) -> None:
    _, out = _transformed(tmp_path, surrogate=surrogate)
    net = copied(repl_fx.load(out))
    _train(net, X)
    # Evaluation keeps the weights that a synthesis makes; they are no change of the model.
    net.eval()(X)
    repl_fx.save(net, out, force=True)
    again = load_artifact(out)
    assert torch.equal(again.module(X), net.eval()(X))
    assert again.manifest.model is not None and again.manifest.model.spec == f"{tmp_path / 'net.py'}:model"
    assert again.plan.replacements and again.plan == load_artifact(out).plan
    assert again.inputs.args[0].shape == (2, 6, 8)
    # And once more, from there.
    repl_fx.save(again.module, tmp_path / "third")
    assert torch.equal(repl_fx.load(tmp_path / "third")(X), net(X))


def test_the_model_file_that_was_named_at_load_is_the_one_that_is_saved(tmp_path: Path) -> None:
    _, out = _transformed(tmp_path)
    (tmp_path / "net.py").rename(tmp_path / "moved.py")
    repl_fx.save(repl_fx.load(out, str(tmp_path / "moved.py")), tmp_path / "again")
    assert repl_fx.load(tmp_path / "again")(X).shape == X.shape


def test_models_given_in_python_are_saved_again_without_a_spec(tmp_path: Path) -> None:
    x = tokens()
    repl_fx.save(repl_fx.transform(TokenNet(), (x,)), tmp_path / "out")
    net = repl_fx.load(tmp_path / "out", TokenNet())
    repl_fx.save(net, tmp_path / "again")
    assert torch.equal(repl_fx.load(tmp_path / "again", TokenNet())(x), net(x))


def test_a_trace_of_another_torch_is_saved_as_it_is_now(tmp_path: Path) -> None:
    _, out = _transformed(tmp_path)
    plan = json.loads((out / "plan.json").read_text())
    (out / "plan.json").write_text(json.dumps({**plan, "fingerprint": "of another trace"}))
    edit_manifest(out, lambda text: text.replace('"torch": "', '"torch": "1.'))
    repl_fx.save(repl_fx.load(out), tmp_path / "again")
    assert repl_fx.load(tmp_path / "again")(X).shape == X.shape


def test_only_what_an_artifact_can_hold_is_saved(tmp_path: Path) -> None:
    result, out = _transformed(tmp_path)
    net = repl_fx.load(out)
    with pytest.raises(repl_fx.BadInput, match=r"save takes .*, and this is a TokenNet"):
        repl_fx.save(TokenNet(), tmp_path / "again")
    with pytest.raises(repl_fx.BadInput, match=r"this Sequential holds it: give model\.0"):
        repl_fx.save(nn.Sequential(net), tmp_path / "again")
    with pytest.raises(repl_fx.BadInput, match=r"save takes .*, and this is an int"):
        repl_fx.save(3, tmp_path / "again")  # type: ignore[arg-type]
    relu = next(node for node in net.graph.nodes if "relu" in str(node.target))  # type: ignore[union-attr]
    relu.target = torch.ops.aten.tanh.default
    with pytest.raises(repl_fx.BadInput, match=r"was changed since: .*aten\.tanh\.default.*, which was .*aten\.relu"):
        repl_fx.save(net, tmp_path / "again")
    next(n for n in result.graph_module.graph.nodes if "relu" in str(n.target)).target = torch.ops.aten.tanh.default
    with pytest.raises(repl_fx.BadInput, match="was changed since"):
        repl_fx.save(result, tmp_path / "again")
    assert not (tmp_path / "again").exists()


class Boxed:
    """An input of a class that plain data does not describe."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


class TakesBoxes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = TokenNet()

    def forward(self, boxed: Boxed) -> Tensor:
        x = boxed.x
        if float(x.detach().abs().sum()) < 0:
            return x
        result: Tensor = self.net(x)
        return result


def test_inputs_that_plain_data_does_not_describe_are_given(tmp_path: Path) -> None:
    boxed = Boxed(tokens())
    result = repl_fx.transform(TakesBoxes(), (boxed,))
    repl_fx.save(result, tmp_path / "out")
    with pytest.raises(repl_fx.ArtifactError, match=r"input is a .*Boxed.*load\(directory, args=…, kwargs=…\)"):
        repl_fx.load(tmp_path / "out", TakesBoxes())
    loaded = repl_fx.load(tmp_path / "out", TakesBoxes(), args=(boxed,))
    assert torch.equal(loaded(boxed), result.module.eval()(boxed))
    # Captured in parts, it is saved again as any other.
    repl_fx.save(loaded, tmp_path / "again")
    again = repl_fx.load(tmp_path / "again", TakesBoxes(), args=(boxed,))
    assert isinstance(again, TakesBoxes) and torch.equal(again(boxed), loaded(boxed))
    vars(again)["limit"] = 0.5
    with pytest.raises(repl_fx.BadInput, match=r"was changed since: .*limit=0\.5, which was"):
        repl_fx.save(again, tmp_path / "third")
