"""Surrogates of parts of a module, in the place of the module."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.errors import CallRefused
from repl_fx.rewriting.in_place.placing import OWN, place_of, places_of
from repl_fx.rewriting.in_place.restoring import restored_state
from tests.captures import transformed

X = torch.randn(2, 5, 8)


class _Pair(nn.Module):
    """A mixer, which all of a kind have alike, and layers of one of two kinds."""

    def __init__(self, odd: bool) -> None:
        super().__init__()
        self.norm, self.mix, self.drop = nn.LayerNorm(8), nn.Linear(8, 8), nn.Dropout(0.1)
        self.mlp = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU() if odd else nn.ReLU(), nn.Linear(16, 8))
        self.odd = odd

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        x = x + self.drop(self.mix(self.norm(x))) * scale
        y = self.mlp(x)
        return x + (torch.tanh(y) if self.odd else y)


class _Net(nn.Module):
    """Blocks that repeat in halves alone: no two of a kind stand a fixed distance apart."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Pair(i in (1, 2, 5)) for i in range(6))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


def _result(surrogate: str) -> repl_fx.TransformResult:
    return transformed(_Net(), (X,), surrogate=surrogate)


def _steps(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients in both modes; the order of parameters differs in place."""
    outputs, gradients = list[Tensor](), list[Tensor]()
    for training in (False, True):
        model.train(training).zero_grad()
        torch.manual_seed(0)
        outputs.append(model(X))
        outputs[-1].square().sum().backward()  # type: ignore[no-untyped-call]
        found = (p.grad for p in model.parameters() if p.grad is not None)
        gradients += sorted(found, key=lambda gradient: (gradient.numel(), gradient.norm().item()))
    return outputs, gradients


@pytest.mark.parametrize("surrogate", ["auto", "blend", "linear", "narrow"])
def test_the_model_in_place_computes_what_the_graph_does(surrogate: str, tmp_path: Path) -> None:
    result = _result(surrogate)
    (part,) = result.found
    places = {place.paths[0]: [r.block for r in place.replacements] for place in places_of(part, result.plan)}
    if surrogate != "narrow":
        # Both halves of one layer, of others one half.
        assert places["layers.3"] == ["layers.3#similar_1", "layers.3.mlp"]
        assert places["layers.1"] == ["layers.1#similar_1"] and places["layers.2"] == ["layers.2.mlp"]
    assert isinstance(result.model, _Net) and all(isinstance(layer, _Pair) for layer in result.model.layers)
    outputs, gradients = _steps(result.graph_module)
    for model in (result.model, copy.deepcopy(result.model), pickle.loads(pickle.dumps(result.model))):
        ours = _steps(model)
        assert all(map(torch.equal, ours[0], outputs))
        # A weight that is read three times has its gradients added in another order.
        torch.testing.assert_close(ours[1], gradients)
    repl_fx.save(result, tmp_path / "out")
    assert torch.equal(repl_fx.load(tmp_path / "out", model=_Net())(X), result.model.eval()(X))


def test_each_block_has_its_own_surrogate_and_what_stays_its_layers() -> None:
    result = _result("bottleneck")
    both, half = result.model.get_submodule("layers.3"), result.model.get_submodule("layers.2")
    assert [name for name, _ in both.get_submodule(OWN).named_children()] == ["0", "1"]
    assert half.get_submodule("mix") is not None
    assert half.get_parameter("mix.weight") is result.graph_module.get_parameter("layers.2.mix.weight")


def test_arguments_of_what_stays_are_those_of_the_trace() -> None:
    model: Any = _result("bottleneck").model.eval()
    assert torch.equal(model.layers[2](X, 1.0), model.layers[2](X))
    with pytest.raises(CallRefused, match=r"captured with scale = 1.0, and is called with 2.0"):
        model.layers[2](X, 2.0)
    # Blends run the code of the module.
    blended: Any = _result("blend").model.eval()
    assert not torch.equal(blended.layers[2](X, 2.0), blended.layers[2](X))


@pytest.mark.parametrize("surrogate", ["identity", "blend", "narrow"])
def test_blocks_are_whole_again(surrogate: str) -> None:
    result = _result(surrogate)
    with torch.no_grad():
        for parameter in result.model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    whole = _Net().eval()
    whole.load_state_dict(restored_state(result.captured_parts.source, result.model, result.found, result.plan))
    torch.testing.assert_close(whole(X), result.model.eval()(X))


class _Twos(nn.Module):
    """Blocks of two layers each, in a row of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(_Pair(i % 2 == 1) for i in range(6)))

    def forward(self, x: Tensor) -> Any:
        return self.layers(x)


@pytest.mark.parametrize("surrogate", ["identity", "bottleneck", "linear"])
def test_one_of_a_row_of_modules_has_the_surrogate(surrogate: str, tmp_path: Path) -> None:
    result = transformed(_Twos(), (X,), surrogate=surrogate)
    (part,) = result.found
    (replaced,) = result.plan.replacements
    assert replaced.block == "layers.2-3"
    assert place_of(part, part.blocks[replaced.block]) == ("layers.2", "layers.3")
    outputs, gradients = _steps(result.graph_module)
    for model in (result.model, copy.deepcopy(result.model), pickle.loads(pickle.dumps(result.model))):
        assert isinstance(model, _Twos) and all(isinstance(layer, _Pair) for layer in model.layers)
        ours = _steps(model)
        assert all(map(torch.equal, ours[0], outputs))
        torch.testing.assert_close(ours[1], gradients)
    repl_fx.save(result, tmp_path / "out")
    assert torch.equal(repl_fx.load(tmp_path / "out", model=_Twos())(X), result.model.eval()(X))
    if surrogate != "bottleneck":
        whole = _Twos().eval()
        whole.load_state_dict(restored_state(result.captured_parts.source, result.model, result.found, result.plan))
        torch.testing.assert_close(whole(X), result.model.eval()(X))


def test_the_others_of_a_row_hand_on() -> None:
    model: Any = transformed(_Twos(), (X,), surrogate="bottleneck").model.eval()
    assert model.layers[2].get_submodule(OWN) is not None
    assert model.layers[3](X) is X
    # What it keeps of the block is read there: the norm of the last branch.
    assert "mlp.0.bias" in dict(model.layers[3].named_parameters())


def test_blocks_whose_layers_are_in_several_modules_of_a_row_have_no_place() -> None:
    result = transformed(_Twos(), (X,), surrogate="blend")
    assert "layers.2-3: it calls layers.3.norm, which is outside of layers.2" in result.in_place.reason


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_map_that_a_graph_makes_is_not_taken() -> None:
    """Of local layers half is replaced, beside attention whose map a surrogate of another block would mix by."""
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 9,
        "num_attention_heads": 2,
        "local_attention": 8,
    }
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    source = transformers.ModernBertModel(transformers.ModernBertConfig(vocab_size=50, **sizes, **special)).eval()
    inputs = {"input_ids": torch.arange(3, 21).reshape(2, 9)}
    result = repl_fx.transform(source, (), inputs)
    assert result.in_place.model is not None
    reasons = [replacement.why for replacement in result.plan.replacements if replacement.why]
    assert any("beside which another block is replaced" in reason for reason in reasons)
    made, graph = result.model.eval()(**inputs), result.graph_module.eval()(**inputs)
    assert torch.equal(made.last_hidden_state, graph["last_hidden_state"])
