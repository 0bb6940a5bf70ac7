"""The recipe of step_cost.py: cross entropy, in `torch.autocast` or not, and torch.compile for the module."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.training.variants import SometimesSkipped
from repl_fx.benchmarking.training import Loss, Trainer


def cross_entropy(batch: tuple[Tensor, Tensor], autocast: torch.dtype | None) -> Loss:
    """The forward pass on a batch.

    Args:
        batch: inputs and targets, on the device.
        autocast: dtype of `torch.autocast`; None for none. Parameters are float32.
    """
    inputs, targets = batch

    def loss(module: nn.Module) -> Tensor:
        with nullcontext() if autocast is None else torch.autocast(inputs.device.type, autocast):
            logits: Tensor = module(inputs)
        return F.cross_entropy(logits.float().flatten(0, -2), targets.flatten())

    return loss


def trainer_of(
    module: nn.Module, compiled: bool, autocast: torch.dtype | None, batch: tuple[Tensor, Tensor]
) -> Trainer:
    """A trainer with this recipe, which torch.compile gets where it is `compiled`; see `Trainer`."""
    trainer = Trainer(module, cross_entropy(batch, autocast), batch[0].device)
    if compiled:
        compile_(trainer.module)
    return trainer


def compile_(module: nn.Module, backend: str = "inductor") -> None:
    """Let torch.compile have a module, in place, in one graph and for the sizes it meets.

    Where blocks are skipped at random the whole is no one graph: each block is compiled by itself.
    """
    skipped = [part.block for part in module.modules() if isinstance(part, SometimesSkipped)]
    for part in skipped or [module]:
        part.compile(backend=backend, fullgraph=True, dynamic=False)
