"""The model in place to an artifact and back."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import repl_fx
from repl_fx.artifact import load_artifact
from repl_fx.running.holders import ORIGIN
from tests.artifact.edits import edit_manifest, set_value
from tests.nets import ConvNet, MixedHalves, RawNet, TokenNet

TOKENS, PICTURES = torch.randn(2, 6, 16), torch.randn(2, 3, 8, 8)


def _trained(result: repl_fx.TransformResult, x: torch.Tensor) -> nn.Module:
    """The model in place after two steps."""
    model = result.model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        torch.autograd.backward(model(x).square().mean())
        optimizer.step()
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("surrogate", "make", "x"),
    [("reuse", TokenNet, TOKENS), ("blend", TokenNet, TOKENS), ("slim", ConvNet, PICTURES)],
)
def test_the_model_in_place_comes_back_as_it_was_saved(
    surrogate: str, make: type[nn.Module], x: torch.Tensor, tmp_path: Path
) -> None:
    model = _trained(repl_fx.transform(make(), (x,), surrogate=surrogate), x)
    repl_fx.save(model, tmp_path / "first")
    loaded = repl_fx.load(tmp_path / "first", make())
    assert type(loaded) is make
    assert torch.equal(loaded(x), model(x))
    repl_fx.save(loaded, tmp_path / "second")
    assert torch.equal(repl_fx.load(tmp_path / "second", make())(x), model(x))
    names = {file: (tmp_path / file / "graph.txt").read_text() for file in ("first", "second")}
    assert names["first"] == names["second"]


def test_each_form_can_be_loaded_from_the_other(tmp_path: Path) -> None:
    result = repl_fx.transform(ConvNet(), (PICTURES,), surrogate="slim")
    model = _trained(result, PICTURES)
    # Statistics that are no parameters moved too.
    repl_fx.save(result, tmp_path / "graphs")
    repl_fx.save(model, tmp_path / "place")
    graphs = repl_fx.load(tmp_path / "place", ConvNet(), graph=True)
    assert isinstance(graphs, torch.fx.GraphModule)
    assert torch.equal(graphs(PICTURES), model(PICTURES))
    placed = repl_fx.load(tmp_path / "graphs", ConvNet())
    assert type(placed) is ConvNet
    assert torch.equal(placed(PICTURES), result.graph_module.eval()(PICTURES))


def _tied_blocks() -> nn.Module:
    """A network whose second block, which is replaced, has weights of the third and the first."""
    net = TokenNet()
    first, second, third = (net.get_submodule(f"blocks.{number}") for number in range(3))
    second.get_submodule("fc1").weight = third.get_parameter("fc1.weight")
    second.get_submodule("fc2").weight = first.get_parameter("fc2.weight")
    return net


def test_weights_of_a_replaced_block_that_kept_ones_have_too_come_back_in_each_form(tmp_path: Path) -> None:
    result = repl_fx.transform(_tied_blocks(), (TOKENS,), surrogate="blend")
    model = _trained(result, TOKENS)
    assert result.graph_module.state_dict().keys() - model.state_dict().keys() >= {"blocks.1.fc1.weight"}
    for name, form in (("graphs", result), ("place", model)):
        repl_fx.save(form, tmp_path / name)
        for graph in (False, True):
            assert torch.equal(repl_fx.load(tmp_path / name, _tied_blocks(), graph=graph)(TOKENS), model(TOKENS))


def test_a_pickled_model_in_place_can_be_saved(tmp_path: Path) -> None:
    model = _trained(repl_fx.transform(TokenNet(), (TOKENS,), surrogate="reuse"), TOKENS)
    repl_fx.save(pickle.loads(pickle.dumps(model)), tmp_path / "out")
    assert torch.equal(repl_fx.load(tmp_path / "out", TokenNet())(TOKENS), model(TOKENS))


def test_a_model_in_place_that_was_changed_is_refused(tmp_path: Path) -> None:
    model = repl_fx.transform(TokenNet(), (TOKENS,), surrogate="reuse").model
    model.get_submodule("blocks.0").fc1 = nn.Linear(16, 32)
    repl_fx.save(model, tmp_path / "same")
    model.get_submodule("blocks.0").fc1 = nn.Sequential(nn.Linear(16, 32))
    with pytest.raises(repl_fx.BadInput, match="was changed since"):
        repl_fx.save(model, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_an_artifact_without_places_says_so(tmp_path: Path) -> None:
    result = repl_fx.transform(RawNet(), (torch.randn(4, 8),), surrogate="blend")
    # Its model to train is the graph, and is saved as one in place is.
    assert result.model is result.module
    repl_fx.save(result.model, tmp_path / "out")
    # What was saved with it is still known where it is loaded, asked for its model and saved again.
    loaded = load_artifact(tmp_path / "out", RawNet())
    before = vars(loaded.module)[ORIGIN]
    assert loaded.result.model is loaded.module and vars(loaded.module)[ORIGIN] is before
    assert isinstance(repl_fx.load(tmp_path / "out", RawNet()), torch.fx.GraphModule)


def test_a_checkpoint_of_the_source_goes_into_the_model_in_place() -> None:
    model = repl_fx.transform(TokenNet(depth=3), (TOKENS,), surrogate="reuse").model
    other = TokenNet(depth=3)
    loaded = repl_fx.load_source_state(model, other.state_dict())
    assert torch.equal(model.get_parameter("blocks.0.fc1.weight"), other.get_parameter("blocks.0.fc1.weight"))
    assert "blocks.1.attn.qkv.weight" in loaded.left_out
    assert all(name.startswith("blocks.1.surrogate.") for name in loaded.own)


class _Positions(MixedHalves):
    """Makes a table in its forward, on the device of its input."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(x, torch.arange(x.shape[1], device=x.device))


def _positions() -> nn.Module:
    return nn.Sequential(*(_Positions(number) for number in range(4)))


def test_what_follows_the_device_in_one_form_is_no_state_of_the_other(tmp_path: Path) -> None:
    x = torch.randn(2, 5, 8)
    model = repl_fx.transform(_positions(), (x,), surrogate="identity").model.eval()
    assert [name for name, _ in model.named_buffers()] == ["1.device_anchor"]
    repl_fx.save(model, tmp_path / "out")
    for graph in (False, True):
        assert torch.equal(repl_fx.load(tmp_path / "out", _positions(), graph=graph)(x), model(x))


class _Scaled(nn.Module):
    """Asks for the number of its hidden units, of which a surrogate has fewer than the trace."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.fc(x).relu()
        made: torch.Tensor = x + self.out(h) / math.sqrt(h.shape[-1])
        return made


def _scaled() -> nn.Module:
    return nn.Sequential(*(_Scaled() for _ in range(4)))


@pytest.mark.parametrize("in_place", [True, False])
def test_a_surrogate_that_runs_its_graph_does_so_when_it_comes_back(tmp_path: Path, in_place: bool) -> None:
    model, x = _scaled(), torch.randn(2, 16)
    result = repl_fx.transform(model, (x,), surrogate="narrow")
    repl_fx.save(result.model if in_place else result, tmp_path / "out")
    loaded = repl_fx.load(tmp_path / "out", copy.deepcopy(model))
    assert torch.equal(loaded(x), result.graph_module.eval()(x))
    repl_fx.save(loaded, tmp_path / "again")
    assert torch.equal(repl_fx.load(tmp_path / "again", copy.deepcopy(model))(x), loaded(x))


@pytest.mark.parametrize("in_place", [True, False])
def test_a_model_that_was_compared_is_not_run_to_load_it_but_under_other_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_place: bool
) -> None:
    model, x = _scaled(), torch.randn(2, 16)
    result = repl_fx.transform(model, (x,), surrogate="narrow")
    repl_fx.save(result.model if in_place else result, tmp_path / "out")
    compared: list[nn.Module] = []

    def parting(model: nn.Module, *_: object, **__: object) -> str:
        compared.append(model)
        return ""

    monkeypatch.setattr("repl_fx.rewriting.in_place.assembling.parting", parting)
    repl_fx.load(tmp_path / "out", copy.deepcopy(model))
    assert not compared
    edit_manifest(tmp_path / "out", set_value("versions/torch", "2.0"))
    repl_fx.load(tmp_path / "out", copy.deepcopy(model))
    assert len(compared) == (0 if in_place else 1)
