"""A Lightning module that trains a subject; a module of its own, which processes that are spawned can import."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from benchmarks.habits.subject import Subject


class Training(pl.LightningModule):
    """Trains on the batch of the subject.

    Args:
        subject: what the model is.
        model: the model.
    """

    def __init__(self, subject: Subject, model: nn.Module) -> None:
        super().__init__()
        self.subject, self.model = subject, model
        self.losses: list[float] = []

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        """The loss on the subject's batch, whatever the loader gave."""
        loss = self.subject.loss(self.model)
        self.losses.append(float(loss))
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW."""
        return torch.optim.AdamW(self.model.parameters(), lr=3e-3)
