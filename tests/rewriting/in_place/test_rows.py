"""Surrogates of rows of modules."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.rewriting.in_place.placing import OWN, place_of
from repl_fx.rewriting.in_place.restoring import restored_state
from repl_fx.rewriting.in_place.rows import NotInPlace, Way, main_of, ways_of
from tests.rewriting.in_place.pairs import Pair, X, steps


class _Twos(nn.Module):
    """Blocks of two layers each, in a row of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(Pair(i % 2 == 1) for i in range(6)))

    def forward(self, x: Tensor) -> Any:
        return self.layers(x)


@pytest.mark.parametrize("surrogate", ["identity", "bottleneck", "linear"])
def test_one_of_a_row_of_modules_has_the_surrogate(surrogate: str, tmp_path: Path) -> None:
    result = repl_fx.transform(_Twos(), (X,), surrogate=surrogate)
    (part,) = result.found
    (replaced,) = result.plan.replacements
    assert replaced.block == "layers.2-3"
    assert place_of(part, part.blocks[replaced.block]) == ("layers.2", "layers.3")
    outputs, gradients = steps(result.graph_module)
    for model in (result.model, copy.deepcopy(result.model), pickle.loads(pickle.dumps(result.model))):
        assert isinstance(model, _Twos) and all(isinstance(layer, Pair) for layer in model.layers)
        ours = steps(model)
        assert all(map(torch.equal, ours[0], outputs))
        torch.testing.assert_close(ours[1], gradients)
    repl_fx.save(result, tmp_path / "out")
    assert torch.equal(repl_fx.load(tmp_path / "out", model=_Twos())(X), result.model.eval()(X))
    if surrogate != "bottleneck":
        whole = _Twos().eval()
        whole.load_state_dict(restored_state(result.found, result.model, result.plan))
        torch.testing.assert_close(whole(X), result.model.eval()(X))


def test_the_others_of_a_row_hand_on() -> None:
    model: Any = repl_fx.transform(_Twos(), (X,), surrogate="bottleneck").model.eval()
    assert model.layers[2].get_submodule(OWN) is not None
    assert model.layers[3](X) is X
    # What it keeps of the block is read there: the norm of the last branch.
    assert "mlp.0.bias" in dict(model.layers[3].named_parameters())


def test_blocks_whose_layers_are_in_several_modules_of_a_row_have_no_place() -> None:
    result = repl_fx.transform(_Twos(), (X,), surrogate="blend")
    assert "layers.2-3: it calls layers.3.norm, which is outside of layers.2" in result.in_place.reason


def test_the_way_of_a_stream_leads_through_all_modules_of_a_row() -> None:
    (part,) = repl_fx.transform(_Twos(), (X,), surrogate="identity").found
    block, graph = part.blocks["layers.2-3"], part.graph_module.graph
    ways = ways_of(graph, block, ("layers.2", "layers.3"))
    assert ways == {"layers.2": Way(("x",), 0), "layers.3": Way(("x",), 0)}
    with pytest.raises(NotInPlace, match=r"of the results of layers.3, 0 go on"):
        ways_of(graph, block, ("layers.3", "layers.2"))


def test_the_module_with_the_layers_that_are_called_has_the_surrogate() -> None:
    graph = torch.fx.Graph()
    given = graph.placeholder("x")
    plain, called = graph.call_function(torch.relu, (given,)), graph.call_module("layers.3.norm", (given,))
    assert main_of(("layers.2", "layers.3"), {plain}) == "layers.2"
    assert main_of(("layers.2", "layers.3"), {plain, called}) == "layers.3"
