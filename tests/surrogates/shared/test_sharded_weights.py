"""Blends of sharded weights; what they are over several processes is told by `tests.surrogates.test_fully_sharded`."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call

from repl_fx.errors import WeightsChanged
from repl_fx.surrogates.shared import sharded_weights
from repl_fx.surrogates.shared.sharded_weights import blend_all, is_fully_sharded_anywhere, is_sharded, whole
from repl_fx.surrogates.shared.synthesis import Synthesis
from repl_fx.surrogates.shared.weight_slices import SliceBlend, WeightSlice, blend_slices


def test_tensors_of_one_process_stay_what_they_are() -> None:
    for tensor in (torch.randn(3), nn.Parameter(torch.randn(3)), nn.Buffer(torch.randn(3))):
        assert not is_sharded(tensor) and whole(tensor) is tensor
    gains, weights = torch.randn(2, 3), (torch.randn(4, 5), torch.randn(4, 5))
    blends = [SliceBlend(WeightSlice(0, 0, 3), (gains,), weights)]
    torch.testing.assert_close(blend_all(blends), blend_slices(blends), rtol=0, atol=0)


def test_a_fully_sharded_module_is_known_without_an_import_of_fsdp(monkeypatch: pytest.MonkeyPatch) -> None:
    fsdp = SimpleNamespace(FSDPModule=type("FSDPModule", (), {}))
    monkeypatch.setitem(sys.modules, "torch.distributed.fsdp", fsdp)
    assert not is_fully_sharded_anywhere()
    sharded = type("Sharded", (fsdp.FSDPModule,), {})
    assert is_fully_sharded_anywhere() and sharded_weights.is_fully_sharded(sharded())


def test_weights_that_are_gone_in_the_backward_pass_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Total(Synthesis):
        def synthesise(self, *weights: Any) -> Any:
            return weights[0].sum()

    monkeypatch.setattr("repl_fx.surrogates.shared.synthesis.is_fully_sharded_anywhere", lambda: True)
    weight = nn.Parameter(torch.ones(3))
    made = Total(True)(weight)
    torch.autograd.backward(made, retain_graph=True)
    weight.untyped_storage().resize_(0)
    with pytest.raises(WeightsChanged, match=r"FSDP2 freed weights that Total reads .* call reshard\(\)"):
        torch.autograd.backward(made)


def test_a_process_that_sharded_some_module_transforms_and_keeps_no_hook_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Scaled(Synthesis):
        def synthesise(self, *weights: Any) -> Any:
            return weights[0] * self.gain, self.gain

    monkeypatch.setattr("repl_fx.surrogates.shared.synthesis.is_fully_sharded_anywhere", lambda: True)
    synthesis, weight = Scaled(True), torch.ones(3)
    synthesis.hold({"gain": torch.full((3,), 2.0)})
    synthesis(weight)
    gain = synthesis.get_parameter("gain")
    assert not gain._backward_hooks
    total = torch.func.grad(lambda gain: functional_call(synthesis, {"gain": gain}, (weight,))[0].sum())
    assert total(gain.detach()).tolist() == [1.0] * 3
