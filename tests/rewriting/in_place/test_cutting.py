"""What keeps a surrogate from a place in the source's own tree."""

from __future__ import annotations

import functools
import math
import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import repl_fx
from repl_fx.errors import BadInput, CallRefused
from repl_fx.rewriting.in_place.surrogate_block import SwappedBlock
from tests.nets import LevelledBlock, MlpBlock

X = torch.randn(2, 6, 8)


def _reasons(model: nn.Module, args: Sequence[Any] = (X,), surrogate: str = "bottleneck") -> list[str]:
    result = repl_fx.transform(model, args, surrogate=surrogate)
    assert (result.in_place.model is None) == bool(result.in_place.refusals)
    return [refusal.reason for refusal in result.in_place.refusals]


class _Net(nn.Module):
    def __init__(self, block: type[nn.Module] = MlpBlock) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block(8) for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        for block in self.blocks:
            x = block(x)
        return x


def test_a_plain_block_has_its_place() -> None:
    assert _reasons(_Net()) == []


def test_a_block_that_is_called_twice_has_none() -> None:
    class Twice(_Net):
        def forward(self, x: Tensor) -> Any:
            for block in self.blocks:
                x = block(x)
            return x, self.blocks[1](torch.zeros_like(x))

    model = Twice()
    try:
        reasons = _reasons(model)
    except repl_fx.NothingToReplace:
        pytest.skip("such blocks are no repeat")
    assert all("is called more than once" in reason or "no call of a single module" in reason for reason in reasons)
    assert reasons


def test_a_name_that_is_taken_is_not_taken_again() -> None:
    class Named(MlpBlock):
        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.surrogate = "of something else"

    assert _reasons(_Net(Named)) == ["the module blocks.1 has an attribute surrogate already"]


def test_a_wrapper_that_leaves_its_name_out_of_the_state_has_none() -> None:
    model = _Net()
    model.blocks = nn.ModuleList(map(checkpoint_wrapper, model.blocks))
    assert _reasons(model) == [
        "hooks of blocks.1 would load the surrogate elsewhere; wrap the block after the transform"
    ]
    after: Any = repl_fx.transform(_Net(), (X,), surrogate="bottleneck").model
    after.blocks = nn.ModuleList(map(checkpoint_wrapper, after.blocks))
    after.load_state_dict(after.state_dict())


def test_hooks_that_load_older_names_keep_no_block_from_its_place() -> None:
    model: Any = _Net()
    for block in model.blocks:
        block.register_load_state_dict_pre_hook(lambda module, state, prefix, *_: state.pop(f"{prefix}older", None))
    assert _reasons(model) == []


def test_a_recurrent_layer_keeps_its_weights_twice() -> None:
    class Recurrent(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.rnn = nn.GRU(width, width, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.rnn(x)[0]  # type: ignore[no-any-return]

    assert _reasons(_Net(Recurrent), surrogate="blend") == [
        "the module blocks.1 has a recurrent layer, which keeps its weights twice"
    ]


class _Ramped(MlpBlock):
    """Adds what is made on the device of the capture."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.arange(x.shape[-1], device=x.device) / 100


def test_what_a_surrogate_makes_on_a_device_follows_the_model() -> None:
    x = torch.randn(2, 4, 16)
    result = repl_fx.transform(nn.Sequential(*(_Ramped(16) for _ in range(3))), (x,), surrogate="bottleneck")
    model = result.in_place.model
    assert model is not None
    assert torch.equal(model(x), result.graph_module(x))
    with torch.no_grad():
        assert model.to("meta")(x.to("meta")).device.type == "meta"


class _Hidden(MlpBlock):
    """Computes with the number of its hidden units."""

    def number(self, h: Tensor, x: Tensor) -> float:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.fc1(self.norm(x)))
        made: Tensor = x + self.fc2(h) / self.number(h, x)
        return made


class _Root(_Hidden):
    def number(self, h: Tensor, x: Tensor) -> float:
        return math.sqrt(h.shape[-1])


class _Attribute(_Hidden):
    def number(self, h: Tensor, x: Tensor) -> float:
        return math.sqrt(self.fc1.out_features)


class _InTraining(_Hidden):
    def number(self, h: Tensor, x: Tensor) -> float:
        return h.shape[-1] if self.training else 1.0


class _OfLongOnes(_Hidden):
    def number(self, h: Tensor, x: Tensor) -> float:
        return min(h.shape[-1], x.shape[1])


class _Kept(MlpBlock):
    """Lays its hidden values out by a number that it keeps."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.fc1(self.norm(x)))
        made: Tensor = x + self.fc2(h.reshape(-1, 16)).reshape(x.shape)
        return made


class _Read(MlpBlock):
    """Lays its hidden values out by their number, which says nothing else."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.fc1(self.norm(x)))
        made: Tensor = x + self.fc2(h.reshape(-1, h.shape[-1])).reshape(x.shape)
        return made


@functools.lru_cache
def _table(width: int) -> Tensor:
    return torch.arange(float(width))


class _Tabled(_Read):
    """Adds a table that it makes once for each width."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + _table(self.fc1.in_features))


_OWN = {
    _Root: False,
    _Attribute: False,
    _InTraining: False,
    _OfLongOnes: False,
    _Kept: False,
    _Read: True,
    _Tabled: True,
}


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize(("block", "own"), _OWN.items())
def test_code_that_computes_with_its_hidden_size_does_not_run_on_fewer_units(
    block: type[nn.Module], own: bool, silent: bool
) -> None:
    source = _Net(block)
    if silent:
        # Outputs of now say nothing then.
        for module in source.blocks:
            nn.init.zeros_(module.fc2.weight)  # type: ignore[arg-type, union-attr]
            nn.init.zeros_(module.fc2.bias)  # type: ignore[arg-type, union-attr]
    result = repl_fx.transform(source, (X,), surrogate="narrow")
    model: Any = result.in_place.model
    assert model is not None
    assert isinstance(model.blocks[1], SwappedBlock) is own
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    for training in (False, True):
        for length in (6, 12, 20):
            x = torch.randn(2, length, 8)
            assert torch.equal(model.train(training)(x), result.graph_module.train(training)(x))


def test_code_that_computes_with_its_hidden_size_does_not_run_where_blocks_are_computed_again() -> None:
    result = repl_fx.transform(_Net(_Root), (X,), surrogate="narrow", checkpoint_blocks=True)
    assert torch.equal(result.model.eval()(X), result.graph_module.eval()(X))


def test_what_reads_another_size_of_a_surrogate_than_the_graph_keeps_it_out_of_place() -> None:
    class Reading(_Net):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x) * self.blocks[1].fc1.out_features  # type: ignore[union-attr]

    result = repl_fx.transform(Reading(), (X,), surrogate="narrow")
    assert [refusal.reason for refusal in result.in_place.refusals] == [
        "in evaluation it computes otherwise there than in the graph"
    ]
    assert result.model is result.module


class _Skipping(nn.Module):
    """Layers that training skips by a draw."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MlpBlock(8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if not self.training or bool(torch.rand([]) >= 0.5):
                x = layer(x)
        return x


def test_what_leaves_nothing_has_a_place_where_layers_may_be_skipped() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 8)
    result = repl_fx.transform(_Skipping(), (x,), surrogate="identity", blocks=["layers.1"])
    assert not result.in_place.refusals
    net: Any = result.model.eval()
    assert torch.equal(net(x), net.layers[3](net.layers[2](net.layers[0](x))))
    assert torch.equal(net(x), result.module.eval()(x))
    draws = set()
    for seed in range(80):
        torch.manual_seed(seed)
        draws.add(tuple(net.train()(x).flatten().tolist()))
    # Each of the three layers that stay is there or not.
    assert len(draws) == 8
    refused = repl_fx.transform(_Skipping(), (x,), surrogate="bottleneck", blocks=["layers.1"]).in_place.reason
    assert "may be skipped in training; give the model a rate of 0" in refused


class _Weighted(nn.Module):
    """Makes a number of the length of its input, which a trace fixes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(*(MlpBlock(16) for _ in range(5)))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x * torch.tensor([1 / (n + 1) for n in range(x.shape[1])])[:, None])  # type: ignore[no-any-return]


@pytest.mark.parametrize("surrogate", ["identity", "bottleneck", "linear"])
def test_what_computes_with_its_stream_alone_goes_along_with_lengths_that_code_elsewhere_fixed(surrogate: str) -> None:
    model = _Weighted()
    result = repl_fx.transform(model, (torch.randn(2, 7, 16),), surrogate=surrogate)
    there = repl_fx.transform(model, (torch.randn(2, 9, 16),), plan=replace(result.plan, fingerprint="")).model
    there.load_state_dict(result.model.state_dict())
    x = torch.randn(3, 9, 16)
    assert torch.equal(result.model.eval()(x), there.eval()(x))
    with pytest.raises(BadInput, match=r"has shape \[3, 9, 16\], but was captured as"):
        result.module(x)
    if surrogate != "identity":
        with pytest.raises(CallRefused, match=r"x of shape \(any, any, 16\), and is called with \(3, 9, 8\)"):
            result.model.get_submodule("net.1")(x[..., :8])


class _InHalf(MlpBlock):
    """Adds a product in half precision."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        with torch.autocast("cpu", torch.bfloat16):
            product = x @ x.transpose(1, 2)
        return x + product.float().mean(-1, keepdim=True)


@pytest.mark.parametrize("block", [LevelledBlock, _InHalf])
def test_what_a_block_computes_without_gradients_or_in_half_it_computes_so_in_place(block: type[nn.Module]) -> None:
    torch.manual_seed(0)
    result = repl_fx.transform(_Net(block), (X,), surrogate="bottleneck")
    assert result.in_place.refusals == ()
    gradients = []
    for form in (result.model, result.module):
        x = X.clone().requires_grad_()
        form(x).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


class _OnGrid(nn.Module):
    """Lays its stream out as a picture, of a size that it is handed."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc, self.out = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.conv = nn.Conv2d(16, 16, 3, padding=1, groups=16)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = x.mT.unflatten(2, size)  # type: ignore[no-untyped-call]
        h = self.fc(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        x = x + self.out(self.conv(h).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x.flatten(2).mT


class _Grids(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 8, 2, 2), nn.ModuleList(_OnGrid() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        size, x = tuple(x.shape[2:]), x.flatten(2).mT
        for block in self.blocks:
            x = block(x, size)
        return x


def test_a_surrogate_takes_the_numbers_that_its_block_is_handed() -> None:
    result = repl_fx.transform(_Grids(), (torch.randn(2, 3, 8, 12),), surrogate="bottleneck")
    assert result.in_place.refusals == ()
    x = torch.randn(3, 3, 14, 10)
    wanted = result.module.eval()(x)
    assert torch.equal(result.model.eval()(x), wanted)
    # In a trace they are symbols.
    assert torch.equal(repl_fx.capture(result.model, (torch.randn(2, 3, 8, 12),)).eval()(x), wanted)
    assert torch.equal(pickle.loads(pickle.dumps(result.model))(x), wanted)
    with pytest.raises(
        CallRefused, match=r"computes with size, which was a number when the model was captured and is None now"
    ):
        result.model.get_submodule("blocks.1")(torch.randn(2, 6, 8), None)
