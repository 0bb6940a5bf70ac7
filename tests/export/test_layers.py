"""Layers: where a difference begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import repl_fx
from repl_fx.errors import BadInput
from repl_fx.export import layers, verify_onnx
from tests.export.subjects import Net, X
from tests.exporting import Exported
from tests.nets import ConvNet, TokenNet, as_after_training, tokens


@pytest.mark.slow
def test_layers_are_compared_in_order(exported: tuple[fx.GraphModule, Path]) -> None:
    check = verify_onnx(exported[0], exported[1], (X,), per_layer=True)
    assert check
    assert [layer.module for layer in check.layers] == ["first", "norm", "second", "head"]
    assert all(layer.passed for layer in check.layers)
    assert check.first_difference is None and check.notes == ()


def test_the_first_layer_that_differs_is_named(tmp_path: Path) -> None:
    class Noisy(nn.Module):
        """Computes something else under export, as a wrong translation of an operator would."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale * (1.01 if torch.compiler.is_exporting() else 1.0)

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before = nn.Linear(8, 8)
            self.wrong = Noisy()
            self.after = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.after(self.wrong(self.before(x)))
            return result

    class Leafy(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, Noisy) or super().is_leaf_module(m, module_qualified_name)

    holder, x = Holder(), torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    gm = fx.GraphModule(holder, Leafy().trace(holder))
    check = Exported(gm, tmp_path / "m.onnx", (x,)).verify(per_layer=True)
    assert not check
    assert check.first_difference is not None and check.first_difference.module == "wrong"
    assert "begins at wrong" in check.summary()


@pytest.mark.slow
def test_chosen_layers(exported: tuple[fx.GraphModule, Path]) -> None:
    check = verify_onnx(exported[0], exported[1], (X,), layer_nodes=["tanh"])
    assert [(layer.node, layer.module) for layer in check.layers] == [("tanh", "")]
    with pytest.raises(BadInput, match="no inner value 'nowhere'"):
        verify_onnx(exported[0], exported[1], (X,), layer_nodes=["nowhere"])


class Counting(Net):
    """Counts its calls, as no graph does."""

    calls = 0

    def forward(self, *args: Any) -> Any:
        self.calls += 1
        return super().forward(*args)


def test_layers_need_a_graph(exported: tuple[fx.GraphModule, Path]) -> None:
    module = Counting()
    module.load_state_dict(exported[0].state_dict())
    with pytest.raises(BadInput, match="Counting could not be captured"):
        verify_onnx(module, exported[1], (X,), per_layer=True)


@pytest.mark.slow
@pytest.mark.parametrize("surrogate", ["bottleneck", "blend"])
def test_a_neighbour_that_changed_after_the_export_is_found(tmp_path: Path, surrogate: str) -> None:
    x = tokens()
    gm = repl_fx.transform(TokenNet(depth=3), (x,), surrogate=surrogate).graph_module
    as_after_training(gm)
    exported = Exported(gm, tmp_path / "m.onnx", (x,))
    path = exported.path
    if surrogate == "bottleneck":
        check = exported.verify(per_layer=True)
        assert check
        assert check.notes == () and all(layer.passed for layer in check.layers)
        assert {"blocks.0.fc1", "blocks.1", "blocks.2.attn.qkv", "head"} <= {layer.module for layer in check.layers}

    neighbour = gm.get_parameter("blocks.2.fc1.weight")
    kept = neighbour.detach().clone()
    with torch.no_grad():
        neighbour.mul_(1.05)
    check = verify_onnx(gm, path, (x,), per_layer=True)
    assert not check
    # The surrogate of blocks.1 reads the weights of both its neighbours, and runs before blocks.2.
    first = check.first_difference
    assert first is not None and first.module == "blocks.1"
    before = [layer.module for layer in check.layers][: check.layers.index(first)]
    # In a bottleneck, norm2 is part of the thin layer, and there is no attention before it.
    assert before[-1] == ("blocks.0.drop" if surrogate == "bottleneck" else "blocks.1.norm2")
    assert "begins at blocks.1; weights in the file that are not the module's: blocks.2.fc1.weight" in check.summary()

    if surrogate == "blend":
        return
    with torch.no_grad():
        neighbour.copy_(kept)
        gm.get_parameter("blocks.2.fc1.bias").mul_(1.5)
    check = verify_onnx(gm, path, (x,), per_layer=True)
    assert not check
    assert check.first_difference is not None and check.first_difference.module == "blocks.2.fc1"
    assert check.notes == () and check.weights.altered[0].name == "blocks.2.fc1.bias"


@pytest.mark.slow
def test_a_synthesis_is_no_layer_of_the_file(tmp_path: Path) -> None:
    x = tokens()
    gm = repl_fx.transform(TokenNet(depth=3), (x,), surrogate="blend").graph_module
    exported = Exported(gm, tmp_path / "m.onnx", (x,))
    with pytest.raises(BadInput, match="no inner value 'surrogates_blocks_1_branch_0'"):
        exported.verify(layer_nodes=["surrogates_blocks_1_branch_0"])


@pytest.mark.slow
def test_a_module_that_returns_several_tensors(tmp_path: Path) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.head(self.attention(x, x, x)[0])
            return result

    gm, x = fx.symbolic_trace(Attention()), torch.randn(2, 5, 8)
    check = Exported(gm, tmp_path / "m.onnx", (x,)).verify(per_layer=True)
    assert check
    assert [(layer.module, layer.difference.output) for layer in check.layers] == [
        ("attention", "attention_0"),
        ("attention", "attention_1"),
        ("head", "head"),
    ]


def test_a_graph_without_modules_is_compared_by_its_operators(tmp_path: Path) -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x) + 1

    gm = fx.symbolic_trace(Plain())
    check = Exported(gm, tmp_path / "m.onnx", (X,)).verify(per_layer=True)
    assert check
    assert [layer.node for layer in check.layers] == ["relu", "add"]


def test_many_layers_are_thinned_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    gm = fx.symbolic_trace(nn.Sequential(*(nn.Identity() for _ in range(10))))
    monkeypatch.setattr(layers, "_MAX_LAYERS", 4)
    assert [node.target for node in layers.choose_nodes(gm.graph)] == ["0", "3", "6", "9"]


class WritesLater(nn.Module):
    """Layers whose values, or views of them, are written into after they were made."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.act = nn.ReLU(inplace=True)
        self.second = nn.Linear(8, 8)
        self.flat = nn.Flatten()
        self.pool = nn.MaxPool1d(2, return_indices=True)
        self.register_buffer("table", torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.first(x))
        z = self.second(y)
        part = z[:, :4]
        part.add_(1)
        flat = self.flat(z)
        flat.mul_(0.5)
        values, places = self.pool(flat)
        places.add_(1)
        seen = self.get_buffer("table").view(2, 4)[0].add(values)
        seen[:, 1:] = 3
        return seen * places  # type: ignore[no-any-return]


@pytest.mark.slow
def test_layers_that_are_written_into_later_are_compared_as_they_were_made(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = WritesLater().eval(), torch.randn(3, 8)
    gm = repl_fx.capture(model, (x,))
    exported = Exported(gm, tmp_path / "m.onnx", (x,))
    for names in (None, [n.name for n in gm.graph.nodes if n.op.startswith("call")]):
        check = exported.verify(layer_nodes=names, per_layer=True)
        assert check and check.layers
        assert check.first_difference is None, str(check.first_difference)
    # A layer has its own value, and not that which is written over it.
    with torch.no_grad():
        gm.get_parameter("second.weight").mul_(1.5)
    check = verify_onnx(gm, exported.path, (x,), per_layer=True)
    assert not check and check.first_difference is not None and check.first_difference.module == "second"


@pytest.mark.slow
def test_a_layer_is_not_what_is_written_over_it(tmp_path: Path) -> None:
    """Channels that a `slim` surrogate takes as a view are written in place by the next step, and are another layer."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    gm = repl_fx.transform(ConvNet(depth=3), (x,), surrogate="slim").graph_module
    check = Exported(gm, tmp_path / "m.onnx", (x,)).verify(per_layer=True)
    assert check
    assert any(layer.node.startswith("take_channels") for layer in check.layers)
    assert check.first_difference is None, str(check.first_difference)


class _Skips(nn.Module):
    """A layer whose inner value another one reads; it is skipped at random, or by a number of the stream."""

    def __init__(self, at_random: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.at_random = at_random

    def forward(self, x: Tensor) -> Tensor:
        if self.at_random:
            if not (self.training and torch.rand([]) < 0.5):
                x = x + self.first(self.norm(x))
        elif x.sum() > 0:
            x = x + self.first(self.norm(x))
        result: Tensor = self.second(x)
        return result


@pytest.mark.slow
@pytest.mark.parametrize("at_random", [True, False])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_layers_that_may_be_skipped_are_compared_too(tmp_path: Path, at_random: bool, sign: float) -> None:
    x = sign * X.abs()
    gm = repl_fx.capture(_Skips(at_random), (x,)).eval()
    exported = Exported(gm, tmp_path / "m.onnx", (x,))
    check = exported.verify(per_layer=True)
    assert check, check.summary()
    assert [layer.module for layer in check.layers] == ["norm", "first", "second"]
    every = [node.name for node in gm.graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
    assert all(layer.passed for layer in exported.verify(layer_nodes=every).layers)
