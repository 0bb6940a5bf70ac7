"""Bytes that a forward pass keeps for the backward pass, and the peak where there is one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from repl_fx.benchmarking.training import clear_memory, kept_bytes, peak_bytes

X = torch.randn(5, 4)


def _layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def _loss(module: nn.Module) -> Tensor:
    out: Tensor = module(X)
    return out.square().mean()


def test_kept_is_every_storage_once_without_parameters() -> None:
    model = _layers()
    # The input; what the ReLU made, which the next layer shares; the output, which is squared.
    assert kept_bytes(model, _loss) == 4 * (5 * 4 + 5 * 8 + 5 * 3)
    assert all(p.grad is None for p in model.parameters())


def test_kept_counts_what_is_made_of_parameters() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, 2 * self.weight, self.bias)

    plain = kept_bytes(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), _loss)
    assert kept_bytes(nn.Sequential(nn.Linear(4, 8), Scaled(8, 3)), _loss) == plain + 4 * 8 * 3


def test_a_cpu_has_no_peak() -> None:
    steps: list[int] = []
    assert peak_bytes(lambda: steps.append(1), torch.device("cpu")) is None
    clear_memory(torch.device("cpu"))
    assert not steps


@pytest.mark.gpu
def test_the_peak_is_what_a_step_held_at_most() -> None:
    device = torch.device("cuda")
    clear_memory(device)
    before = torch.cuda.memory_allocated(device)
    peak = peak_bytes(lambda: torch.zeros(2**20, device=device), device)
    assert peak is not None and peak - before >= 4 * 2**20
