"""Models in place whose blocks lie on several devices, or whose parameters are loaded block by block."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.testing._internal.distributed.fake_pg import FakeStore

import repl_fx
from repl_fx.errors import CallRefused
from tests.nets import ConvNet, TokenNet, TransformerBlock

CASES = [
    *((TokenNet, torch.randn(2, 6, 16), surrogate) for surrogate in ("reuse", "bottleneck", "blend")),
    *((ConvNet, torch.randn(2, 3, 8, 8), surrogate) for surrogate in ("slim", "coarse", "blend")),
]


class _Offloading:
    """What accelerate's hook of an offloaded layer does: its parameters are there while it runs."""

    offload, execution_device = True, torch.device("cpu")

    def __init__(self, layer: nn.Module) -> None:
        self.weights_map: Mapping[str, Tensor] = {n: p.detach() for n, p in layer.named_parameters(recurse=False)}
        layer.register_forward_pre_hook(self.pre_forward)
        layer.register_forward_hook(self.post_forward)
        layer.__dict__["_hf_hook"] = self
        self.post_forward(layer)

    def pre_forward(self, layer: nn.Module, *args: Any) -> None:
        for name, value in self.weights_map.items():
            layer._parameters[name] = nn.Parameter(value)

    def post_forward(self, layer: nn.Module, *args: Any) -> None:
        for name, value in self.weights_map.items():
            layer._parameters[name] = nn.Parameter(value.to("meta"))


def _in_place(net: type[nn.Module], x: Tensor, surrogate: str) -> Any:
    """A model in place, whose surrogates are away from their silent start."""
    result = repl_fx.transform(net(), (x,), surrogate=surrogate)
    assert not result.in_place.refusals
    with torch.no_grad():
        for parameter in result.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return result.model.eval()


@pytest.mark.parametrize(("net", "x", "surrogate"), CASES)
def test_what_is_offloaded_is_loaded_for_surrogates_too(net: type[nn.Module], x: Tensor, surrogate: str) -> None:
    model = _in_place(net, x, surrogate)
    expected = model(x)
    for layer in list(model.modules()):
        if next(layer.parameters(recurse=False), None) is not None:
            _Offloading(layer)
    assert all(parameter.is_meta for parameter in model.parameters())
    for _ in range(2):
        assert torch.equal(model(x), expected)
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize(("net", "x", "surrogate"), CASES)
def test_blocks_may_lie_on_several_devices(net: type[nn.Module], x: Tensor, surrogate: str) -> None:
    """The second is that of shapes without values, so that one is enough for the test."""
    model = _in_place(net, x, surrogate)
    for part in (model.blocks[3], model.blocks[4], model.head):
        part.to("meta")
    model.blocks[3].register_forward_pre_hook(lambda block, args: tuple(value.to("meta") for value in args))
    made = model(x)
    assert made.is_meta and made.shape == (2, 10)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("original", [True, False])
def test_shards_of_the_first_fsdp_are_refused(original: bool) -> None:
    x = torch.randn(2, 6, 16)
    model = _in_place(TokenNet, x, "blend")
    expected = model(x)
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        shard = partial(FullyShardedDataParallel, use_orig_params=original, device_id=torch.device("cpu"))
        whole = shard(copy.deepcopy(model), sharding_strategy=ShardingStrategy.NO_SHARD)
        assert torch.equal(whole(x), expected)
        sharded = shard(model, auto_wrap_policy=ModuleWrapPolicy({TransformerBlock}))
        with pytest.raises(CallRefused, match=r"blocks\.0.*keeps in shards; use FSDP2"):
            sharded(x)
    finally:
        dist.destroy_process_group()
