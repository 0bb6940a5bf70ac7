"""Surrogates of parts of a module, in the place of the module; and of rows of modules."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.errors import CallRefused
from repl_fx.rewriting.in_place.placing import OWN, NotInPlace, Way, main_of, place_of, places_of, ways_of
from repl_fx.rewriting.in_place.restoring import restored_state
from repl_fx.rewriting.in_place.wrapped_forward import CheckpointedForward
from tests.rewriting.in_place.pairs import Pair, X, steps


class _Net(nn.Module):
    """Blocks that repeat in halves alone: no two of a kind stand a fixed distance apart."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Pair(i in (1, 2, 5)) for i in range(6))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


def _result(surrogate: str) -> repl_fx.TransformResult:
    return repl_fx.transform(_Net(), (X,), surrogate=surrogate)


def _check_forms(result: repl_fx.TransformResult, net: type[nn.Module], tmp_path: Path) -> None:
    """The model in place, copied, pickled and loaded, computes what the graph does."""
    outputs, gradients = steps(result.graph_module)
    for model in (result.model, copy.deepcopy(result.model), pickle.loads(pickle.dumps(result.model))):
        assert isinstance(model, net)
        assert all(isinstance(layer, (Pair, nn.ModuleList)) for layer in model.get_submodule("layers").children())
        ours = steps(model)
        assert all(map(torch.equal, ours[0], outputs))
        # A weight that is read three times has its gradients added in another order.
        torch.testing.assert_close(ours[1], gradients)
    repl_fx.save(result, tmp_path / "out")
    assert torch.equal(repl_fx.load(tmp_path / "out", model=net())(X), result.model.eval()(X))


@pytest.mark.parametrize("surrogate", ["auto", "blend", "linear", "narrow"])
def test_the_model_in_place_computes_what_the_graph_does(surrogate: str, tmp_path: Path) -> None:
    result = _result(surrogate)
    (part,) = result.found
    places = {place.paths[0]: [r.block for r in place.replacements] for place in places_of(part, result.plan)}
    if surrogate != "narrow":
        # Both halves of one layer, of others one half.
        assert places["layers.3"] == ["layers.3#similar_1", "layers.3.mlp"]
        assert places["layers.1"] == ["layers.1#similar_1"] and places["layers.2"] == ["layers.2.mlp"]
    _check_forms(result, _Net, tmp_path)


def test_a_block_that_is_part_of_the_module_with_its_name_is_shown_with_its_layers() -> None:
    result = _result("linear")
    named = {row.block: row.named for row in result.report}
    assert named["layers.3"] == "layers.3" and named["layers.0.mlp"] == "layers.0.mlp"
    assert named["layers.5"] == "layers.5 (norm, mix)"
    assert named["layers.3#similar_1"] == "layers.3#similar_1 (norm, mix)"


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


class _Careful(nn.Module):
    """A norm in single precision, whatever that of the model is."""

    def forward(self, x: Tensor) -> Tensor:
        single = x.float()
        normed: Tensor = (single / single.norm(dim=-1, keepdim=True)).to(x.dtype)
        return normed


def test_what_stays_refuses_a_precision_in_which_its_graph_cannot_compute() -> None:
    net: Any = _Net().eval()
    assert _result("identity").model.double()(X.double()).dtype == torch.float64
    for layer in net.layers:
        layer.norm = _Careful()
    model = repl_fx.transform(net, (X,), surrogate="identity").model
    with torch.autocast("cpu", torch.bfloat16):
        assert model(X).isfinite().all()
    with pytest.raises(
        CallRefused, match=r"layers.\d was captured with x in torch.float32, .* convert the model before"
    ):
        model.to(torch.bfloat16)(X.to(torch.bfloat16))


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
    # Whether others train depends on the release of transformers.
    others = [replacement.why for replacement in result.plan.replacements]
    refused = [refusal.reason for refusal in result.in_place.refusals]
    assert any("beside which another block is replaced" in reason for reason in (*others, *refused))
    made, graph = result.model.eval()(**inputs), result.graph_module.eval()(**inputs)
    assert torch.equal(made["last_hidden_state"], graph["last_hidden_state"])


# --- rows of modules ------------------------------------------------------------------------------------------------


class _Twos(nn.Module):
    """Blocks of two layers each, in a row of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(Pair(i % 2 == 1) for i in range(6)))

    def forward(self, x: Tensor) -> Any:
        return self.layers(x)


@pytest.mark.parametrize("surrogate", ["identity", "bottleneck", "linear", "blend"])
def test_one_of_a_row_of_modules_has_the_surrogate(surrogate: str, tmp_path: Path) -> None:
    result = repl_fx.transform(_Twos(), (X,), surrogate=surrogate)
    (part,) = result.found
    (replaced,) = result.plan.replacements
    assert replaced.block == "layers.2-3"
    assert place_of(part, part.blocks[replaced.block]) == ("layers.2", "layers.3")
    _check_forms(result, _Twos, tmp_path)
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


class _Lists(nn.Module):
    """Blocks that are lists of two modules, which a loop calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList(Pair(odd) for odd in (False, True)) for _ in range(5))

    def forward(self, x: Tensor) -> Any:
        layers: Any = self.layers
        for even, odd in layers:
            x = odd(even(x))
        return x


@pytest.mark.parametrize("surrogate", ["bottleneck", "blend"])
def test_a_list_of_modules_that_nobody_calls_is_a_row(surrogate: str, tmp_path: Path) -> None:
    result = repl_fx.transform(_Lists(), (X,), surrogate=surrogate)
    (part,) = result.found
    assert part.blocks["layers.1"].module_path == "layers.1"
    assert place_of(part, part.blocks["layers.1"]) == ("layers.1.0", "layers.1.1")
    assert result.in_place.refusals == ()
    _check_forms(result, _Lists, tmp_path)


def test_each_module_of_a_kept_row_is_computed_again() -> None:
    def kept(model: nn.Module) -> list[str]:
        return [path for path, module in model.named_modules() if CheckpointedForward.on(module)]

    lists = repl_fx.transform(_Lists(), (X,), surrogate="bottleneck", checkpoint_blocks=True)
    assert kept(lists.model) == [f"layers.{i}.{j}" for i in (0, 2, 4) for j in (0, 1)]
    row = repl_fx.transform(_Twos(), (X,), plan=repl_fx.transform(_Twos(), (X,)).plan, checkpoint_blocks=True)
    assert kept(row.model) == ["layers.0", "layers.1", "layers.4", "layers.5"]
    # The module around a kept half has the surrogate of the other half.
    halves = _result("bottleneck")
    again = repl_fx.transform(_Net(), (X,), plan=halves.plan, checkpoint_blocks=True)
    assert kept(again.model) == ["layers.0", "layers.4", "layers.5"]


class _Masked(nn.Module):
    """Makes the same mask in front of each layer, where the trace sees it as the first of the block."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=mask == 0)
        return x


@pytest.mark.parametrize("surrogate", ["blend", "linear"])
def test_what_a_loop_makes_of_a_mask_before_it_calls_a_block_is_not_its_surrogates(surrogate: str) -> None:
    mask = torch.ones(2, X.shape[1], dtype=torch.int64)
    result = repl_fx.transform(_Masked(), (X, mask), surrogate=surrogate)
    assert [type(layer).__name__ for layer in result.model.get_submodule("layers").children()].count(
        "TransformerEncoderLayerSurrogate"
    ) == len(result.plan.replacements)
    mask[1, 3:] = 0
    for model in (result.model, result.module):
        model.eval()
    assert torch.equal(result.model(X, mask), result.module(X, mask))


class _Between(nn.Module):
    """Does more between its layers than to call them: a scale in front, a squeeze behind."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Pair(True) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x * 2))
        return x


@pytest.mark.parametrize("surrogate", ["blend", "narrow"])
def test_a_layer_between_which_the_model_does_more_swaps_parameters_alone(surrogate: str, tmp_path: Path) -> None:
    result = repl_fx.transform(_Between(), (X,), surrogate=surrogate)
    (part,) = result.found
    assert all(place.is_loose for place in places_of(part, result.plan)) and result.in_place.reason == ""
    _check_forms(result, _Between, tmp_path)


class _Normed(_Between):
    """Calls layers of torch between its own, in the loop itself."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + torch.relu(norm(layer(x)))
        return x


def test_layers_of_torch_around_a_block_stay_as_they_are_and_auto_takes_what_has_a_place(tmp_path: Path) -> None:
    result = repl_fx.transform(_Normed(), (X,), surrogate="auto")
    (part,) = result.found
    (place,) = places_of(part, result.plan)
    assert place.is_loose and len(place.paths) == 2
    assert "has no place" in result.plan.replacements[0].why
    assert type(result.model.get_submodule(place.paths[1])) is nn.LayerNorm
    _check_forms(result, _Normed, tmp_path)


class _Dropping(Pair):
    def forward(self, x: Tensor, scale: float = 1.0) -> Any:
        return x + self.drop(self.mlp(x)) * scale


class _Shared(nn.Module):
    """Blocks that all call one dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Dropping(False) for _ in range(5))
        for layer in self.layers:
            layer.drop = self.layers[0].drop

    def forward(self, x: Tensor) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_surrogate_calls_a_layer_that_all_blocks_share(tmp_path: Path) -> None:
    result = repl_fx.transform(_Shared(), (X,), surrogate="bottleneck")
    assert result.in_place.refusals == ()
    _check_forms(result, _Shared, tmp_path)


@pytest.mark.parametrize(("made", "layer"), [([partial(nn.Linear, 8, 8)], 1), ([partial(nn.Linear, 8, 8), nn.ReLU], 2)])
def test_layers_are_no_places(made: list[Callable[[], nn.Module]], layer: int) -> None:
    net = nn.Sequential(*(make() for _ in range(4) for make in made))
    reason = repl_fx.transform(net, (X,), surrogate="identity").in_place.reason
    assert f"{layer} is a layer, and surrogates stand in the places of modules around layers" in reason


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


# --- additions in a loop --------------------------------------------------------------------------------------------


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24, bias=False), nn.Linear(8, 8)

    def forward(self, x: Tensor, output_attentions: bool = False) -> Any:
        q, k, v = (made.unflatten(-1, (2, 4)).transpose(1, 2) for made in self.qkv(self.norm(x)).chunk(3, -1))
        mixed = (q @ k.transpose(-1, -2) * 0.5).softmax(-1)
        made = self.out((mixed @ v).transpose(1, 2).flatten(2))
        return (made, mixed) if output_attentions else made


class _Mlp(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, 8))


class _Loop(nn.Module):
    """Layers return branches; the addition of each stands in the loop, as in vit-pytorch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList((_Attention(), _Mlp())) for _ in range(5))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, output_attentions: bool = False) -> Any:
        for layer in self.layers:
            attention, mlp = layer.children()
            x = self.step(x, attention, mlp, output_attentions)
        return self.head(x)

    def step(self, x: Tensor, attention: nn.Module, mlp: nn.Module, output_attentions: bool) -> Any:
        x = (attention(x, output_attentions)[0] if output_attentions else attention(x)) + x
        return x + mlp(x)


class _LoopOfFixedLength(_Loop):
    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, 5, 8))

    def forward(self, x: Tensor, output_attentions: bool = False) -> Any:
        return super().forward(x + self.positions, output_attentions)


class _LoopOfOne(_Loop):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Mlp() for _ in range(5))

    def forward(self, x: Tensor, output_attentions: bool = False) -> Any:
        for mlp in self.layers:
            x = x + mlp(x)
        return self.head(x)


@pytest.mark.parametrize("surrogate", ["identity", "blend", "bottleneck", "narrow", "reuse", "auto"])
def test_a_loop_adds_what_surrogates_return(surrogate: str, tmp_path: Path) -> None:
    result = repl_fx.transform(_Loop(), (X,), surrogate=surrogate, in_place=True)
    assert [r.block for r in result.plan.replacements] == ["layers.1", "layers.3"] and not result.in_place.refusals
    (part,) = result.found
    (first, _) = places_of(part, result.plan)
    assert first.paths == ("layers.1.0", "layers.1.1") and first.is_added
    _check_forms(result, _Loop, tmp_path)
    longer = torch.randn(3, 7, 8)
    assert torch.equal(result.model.eval()(longer), result.graph_module.eval()(longer))
    optimizer = torch.optim.SGD(result.model.parameters(), 0.1)
    steps(result.model)
    optimizer.step()
    assert torch.equal(result.model.eval()(X), result.graph_module.eval()(X))
    # No tensor is in two places of the model.
    assert len(dict(result.model.named_parameters(remove_duplicate=False))) == len([*result.model.parameters()])


def test_what_is_left_of_layers_that_a_loop_adds_is_as_if_they_were_gone() -> None:
    source = _Loop().eval()
    result = repl_fx.transform(source, (X,), surrogate="identity")
    pruned = copy.deepcopy(source)
    pruned.layers = nn.ModuleList(pruned.layers[i] for i in (0, 2, 4))
    assert torch.equal(result.model(X), pruned(X))
    layer: Any = result.model.get_submodule("layers.1")
    assert isinstance(layer[0], _Attention) and isinstance(layer[1], _Mlp)
    assert not layer[0](X).any() and not layer[1](X).any() and not [*layer.parameters()]


def test_neighbours_that_are_replaced_hand_the_stream_on() -> None:
    result = repl_fx.transform(_Loop().eval(), (X,), surrogate="identity", blocks=["layers.1", "layers.2"])
    assert not result.in_place.refusals and torch.equal(result.model(X), result.graph_module(X))


@pytest.mark.parametrize("surrogate", ["coarse", "blend"])
def test_layers_of_one_module_are_called_by_another(surrogate: str, tmp_path: Path) -> None:
    result = repl_fx.transform(_LoopOfFixedLength(), (X,), surrogate=surrogate, in_place=True)
    _check_forms(result, _LoopOfFixedLength, tmp_path)


@pytest.mark.parametrize("surrogate", ["identity", "blend", "bottleneck", "narrow"])
def test_a_loop_adds_one_branch_of_each_block(surrogate: str) -> None:
    result = repl_fx.transform(_LoopOfOne(), (X,), surrogate=surrogate, in_place=True)
    (part,) = result.found
    assert [(p.paths, p.is_half) for p in places_of(part, result.plan)] == [
        (("layers.1",), False),
        (("layers.3",), False),
    ]
    outputs, gradients = steps(result.graph_module)
    ours = steps(result.model)
    assert all(map(torch.equal, ours[0], outputs))
    torch.testing.assert_close(ours[1], gradients)


@pytest.mark.parametrize(
    ("surrogate", "net"),
    [
        *((surrogate, net) for surrogate in ("identity", "blend", "narrow") for net in (_Net, _Loop)),
        *(("blend", _Normed), ("narrow", _Normed)),
    ],
)
def test_blocks_are_whole_again(surrogate: str, net: type[nn.Module]) -> None:
    result = repl_fx.transform(net().eval(), (X,), surrogate=surrogate)
    with torch.no_grad():
        for parameter in result.model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    whole = net().eval()
    whole.load_state_dict(restored_state(result.found, result.model, result.plan))
    assert isinstance(result.model, net)
    torch.testing.assert_close(whole(X), result.model.eval()(X))


def test_layers_that_are_to_return_more_are_refused() -> None:
    model: Any = repl_fx.transform(_Loop().eval(), (X,), surrogate="identity").model
    with pytest.raises(
        CallRefused, match=r"layers.0.0 returns 2 values now, and returned 1 .* layers.1.0 cannot follow"
    ):
        model(X, output_attentions=True)


class _Scaled(_Loop):
    def step(self, x: Tensor, attention: nn.Module, mlp: nn.Module, output_attentions: bool) -> Any:
        x = x + attention(x, output_attentions) * 0.5
        return x + mlp(x)


class _SideBySide(_Loop):
    def step(self, x: Tensor, attention: nn.Module, mlp: nn.Module, output_attentions: bool) -> Any:
        return x + attention(x) + mlp(x)


@pytest.mark.parametrize(
    ("net", "surrogate", "reason"),
    [
        (_Scaled, "identity", "it is no call of a single module"),
        (_SideBySide, "identity", "layers.1.1 is not handed the stream"),
        (_LoopOfOne, "linear", "it is no sum with the stream"),
        (_Between, "linear", "its surrogate does not run its own code"),
    ],
)
def test_what_a_loop_does_more_than_to_add_has_no_place(net: type[nn.Module], surrogate: str, reason: str) -> None:
    result = repl_fx.transform(net(), (X,), surrogate=surrogate)
    assert reason in result.in_place.reason
    with pytest.raises(repl_fx.errors.NothingToReplace, match=reason):
        repl_fx.transform(net(), (X,), surrogate=surrogate, in_place=True)
