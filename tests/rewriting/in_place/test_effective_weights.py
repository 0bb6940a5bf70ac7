"""Weights as they act: those of now, through wrappers, parametrisations and adapters."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval

import repl_fx
from repl_fx.errors import CallRefused
from repl_fx.rewriting.in_place.effective_weights import weight_now


class _Adapter(nn.Module):
    """A layer with what PEFT's LoRA layers have."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.delta = base, torch.ones_like(base.weight)
        self.active_adapters, self.lora_A = ["default", "of another layer"], {"default": None}
        self.adapter_layer_names = ("lora_A", "ia3_l")
        self.merged = self.disable_adapters = False

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    def get_delta_weight(self, name: str) -> Tensor:
        assert name == "default"
        return self.delta


def _net() -> Any:
    return nn.ModuleDict({"fc": nn.Linear(2, 2)})


def test_the_weight_is_looked_up_each_time() -> None:
    net = _net()
    assert weight_now(net, "fc.weight") is net["fc"].weight
    net["fc"] = nn.Linear(2, 2)
    assert weight_now(net, "fc.weight") is net["fc"].weight
    assert weight_now(net, "fc.training") is True


def test_a_parametrised_weight_is_what_the_layer_uses() -> None:
    class Twice(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    net = _net()
    before = net["fc"].weight.detach().clone()
    parametrize.register_parametrization(net["fc"], "weight", Twice())
    assert torch.equal(weight_now(net, "fc.weight"), 2 * before)


def test_a_parametrisation_that_iterates_does_so_in_the_forward_of_its_layer_alone() -> None:
    net, x = _net().train(), torch.randn(3, 2)
    nn.utils.parametrizations.spectral_norm(net["fc"])
    nn.init.normal_(net["fc"].parametrizations.weight.original)
    before = [buffer.clone() for buffer in net.buffers()]
    made = weight_now(net, "fc.weight")
    assert all(map(torch.equal, net.buffers(), before))
    # The layer takes the step that was looked ahead.
    torch.testing.assert_close(net["fc"](x), x @ made.t() + net["fc"].bias)
    assert not all(map(torch.equal, net.buffers(), before))
    made.sum().backward()
    assert net["fc"].parametrizations.weight.original.grad is not None


def test_an_adapter_is_added_until_it_is_merged() -> None:
    net = _net()
    base = net["fc"]
    adapter: Any = _Adapter(base)
    net["fc"] = adapter
    assert torch.equal(weight_now(net, "fc.weight"), base.weight + 1)
    assert weight_now(net, "fc.base_layer.bias") is base.bias
    for flag in ("merged", "disable_adapters"):
        setattr(adapter, flag, True)
        assert weight_now(net, "fc.weight") is base.weight
        setattr(adapter, flag, False)
    for name in ("use_dora", "lora_bias", "lora_variant"):
        setattr(adapter, name, {"default": True})
        with pytest.raises(CallRefused, match=r"the adapter default \(lora_A\) does more than add; use plain LoRA"):
            weight_now(net, "fc.weight")
        delattr(adapter, name)
    adapter.lora_A, adapter.ia3_l = {}, {"default": None}
    with pytest.raises(CallRefused, match=r"the adapter default \(ia3_l\) .*, or exclude_modules='fc'"):
        weight_now(net, "fc.weight")


def _name_adapters(module: Any, args: Any, kwargs: dict[str, Any], **names: Any) -> Any:
    return args, {**kwargs, **names}


def test_a_call_that_chooses_its_adapters_by_rows_is_refused() -> None:
    net = _net()
    base = net["fc"]
    adapter: Any = _Adapter(base)
    net["fc"], adapter.active_adapters = adapter, ["default"]
    for names in ({"adapter_names": ["default", "other"]}, {"alora_offsets": [None, 3]}):
        handle = adapter.register_forward_pre_hook(partial(_name_adapters, **names), with_kwargs=True)
        with pytest.raises(CallRefused, match=r"fc.weight, whose adapters this call chooses .* exclude_modules='fc'"):
            weight_now(net, "fc.weight")
        handle.remove()
    hook = partial(_name_adapters, adapter_names=["default", "default"])
    adapter.register_forward_pre_hook(hook, with_kwargs=True)
    assert torch.equal(weight_now(net, "fc.weight"), base.weight + 1)


class _Quanto(nn.Linear):
    """A layer as optimum-quanto has them: quantised in each forward, until it is frozen."""

    __module__ = "optimum.quanto.nn.qlinear"

    @property
    def qweight(self) -> Tensor | None:
        return None if self.in_features == 3 else self.weight.round()


def test_a_layer_that_quantises_its_weight_in_each_forward_has_that_one() -> None:
    net: Any = nn.ModuleDict({"fc": _Quanto(2, 2), "plain": _Quanto(3, 2)})
    assert torch.equal(weight_now(net, "fc.weight"), net["fc"].weight.round())
    assert weight_now(net, "fc.bias") is net["fc"].bias
    assert weight_now(net, "plain.weight") is net["plain"].weight


def test_a_quantised_layer_has_no_weight_to_make_another_from() -> None:
    class Quantised(nn.Module):
        def weight(self) -> Tensor:
            return torch.ones(2, 2)

    net = nn.ModuleDict({"fc": Quantised()})
    with pytest.raises(
        RuntimeError, match=r"fc.weight, which Quantised has as a method; .* repl_fx.fold\(result.module"
    ):
        weight_now(net, "fc.weight")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("hook", ["pruned", "weight_norm", "spectral_norm"])
def test_a_weight_that_a_hook_makes_is_that_of_the_next_forward(hook: str, training: bool) -> None:
    net, x = _net(), torch.randn(3, 2)
    if hook == "pruned":
        nn.utils.prune.l1_unstructured(net["fc"], "weight", 0.5)  # type: ignore[no-untyped-call]
    elif hook == "weight_norm":
        with pytest.warns(FutureWarning, match="weight_norm"):
            nn.utils.weight_norm(net["fc"])
    else:
        nn.utils.spectral_norm(net["fc"])
    net.eval()
    net["fc"](x)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3.0).add_(0.1)
    net.train(training)
    made = weight_now(net, "fc.weight")
    torch.testing.assert_close(net["fc"](x), x @ made.t() + net["fc"].bias)
    made.sum().backward()
    assert any(parameter.grad is not None for name, parameter in net["fc"].named_parameters() if name != "bias")


def test_a_layer_that_is_gone_is_named() -> None:
    net = _net()
    del net["fc"]
    with pytest.raises(CallRefused, match=r"made from fc\.weight, which the model has no more"):
        weight_now(net, "fc.weight")


def test_a_weight_that_torchao_quantised_has_the_values_that_its_layer_computes_with() -> None:
    class Quantised(Tensor):
        def dequantize(self) -> Tensor:
            return self.as_subclass(Tensor).round()

    Quantised.__module__ = "torchao.quantization"
    net = _net()
    net["fc"].weight = nn.Parameter(torch.full((2, 2), 1.7).as_subclass(Quantised))
    assert torch.equal(weight_now(net, "fc.weight"), torch.full((2, 2), 2.0))


class _Fake(nn.Module):
    """What torchao and torch.ao put beside a weight that is trained to be quantised: it notes what it sees."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, weight: Tensor) -> Tensor:
        self.seen += 1
        return weight + (weight.round() - weight).detach()


@pytest.mark.parametrize("name", ["weight_fake_quantizer", "weight_fake_quant"])
def test_a_weight_that_trains_to_be_quantised_is_what_its_layer_computes_with(name: str) -> None:
    net = _net()
    net["fc"].add_module(name, _Fake())
    made = weight_now(net, "fc.weight")
    assert torch.equal(made, net["fc"].weight.round()) and made.requires_grad
    assert net.get_buffer(f"fc.{name}.seen") == 0 and weight_now(net, "fc.bias") is net["fc"].bias


class _ConvBlock(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1, bias=bias), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.bn(self.conv(x)))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("surrogate", ["blend", "identity"])
def test_a_norm_that_is_fused_into_a_layer_makes_another_weight_of_it(surrogate: str, bias: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, 5)
    blocks = nn.Sequential(*(_ConvBlock(bias) for _ in range(3)))
    model: Any = repl_fx.transform(blocks, (x,), surrogate=surrogate).model
    model(x)
    before = model.eval()(x)
    for block in (model[0], model[2]):
        block.conv, block.bn = fuse_conv_bn_eval(block.conv, block.bn), nn.Identity()
    if surrogate == "identity":
        torch.testing.assert_close(model(x), before)
    else:
        changed = "0.bn fused into" if bias else "a bias now,"
        with pytest.raises(CallRefused, match=rf"0.conv.weight, whose layer has {changed} .*; fold the model"):
            model(x)
