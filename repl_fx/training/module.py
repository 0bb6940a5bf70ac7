"""The Lightning module: what a step of training and of evaluation computes, and the optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from repl_fx.errors import BadInput
from repl_fx.training.config import TrainConfig

BETAS = (0.9, 0.95)
CLASSIFICATION, LANGUAGE = "classification", "language-modelling"


class Training(pl.LightningModule):
    """Training of a model on pairs of inputs and targets.

    Args:
        model: takes a batch of inputs, and returns logits, or an object or mapping that has `logits`.
        config: the settings.
        task: `classification`, whose logits are (batch, classes), or `language-modelling`: (batch, length, classes).
        classes: how many.
        steps: of the optimizer, in all.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, task: str, classes: int, steps: int) -> None:
        super().__init__()
        self.model, self.config, self.task, self.classes, self.steps = model, config, task, classes, steps
        self.accuracy = MulticlassAccuracy(classes, average="micro") if task == CLASSIFICATION else None
        self.test_loss = MeanMetric()

    def forward(self, inputs: Tensor) -> Tensor:
        """The logits."""
        return logits_of(self.model(inputs))

    def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
        """The loss of a batch; smoothed, where that was asked for."""
        inputs, targets = batch
        loss = self._loss(self(inputs), targets, self.config.label_smoothing)
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], number: int) -> None:
        """Add a batch to the figures of the evaluation."""
        inputs, targets = batch
        logits = self(inputs)
        self.test_loss.update(self._loss(logits, targets, 0.0), targets.numel())
        if self.accuracy is not None:
            self.accuracy.update(logits, targets)

    def on_validation_epoch_end(self) -> None:
        """Log the figures of the evaluation: over all of the test data."""
        self.log_dict({f"test_{name}": value for name, value in self._figures().items()}, prog_bar=True)

    def _figures(self) -> dict[str, Tensor]:
        loss = self.test_loss.compute()
        self.test_loss.reset()
        if self.accuracy is None:
            return {"loss": loss, "bits_per_byte": loss / math.log(2)}
        accuracy = self.accuracy.compute()
        self.accuracy.reset()
        return {"loss": loss, "accuracy": accuracy}

    def _loss(self, logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        if self.task == LANGUAGE:
            logits, targets = logits.flatten(0, 1), targets.flatten()
        return F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)

    def configure_optimizers(self) -> Any:
        """The optimizer, with a rate that rises linearly and then falls as a cosine to zero, step by step."""
        made = optimizer_of(self.model.parameters(), self.config)
        factor = Schedule(self.steps, self.config.warmup)
        scheduler = torch.optim.lr_scheduler.LambdaLR(made, factor)
        return {"optimizer": made, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Schedule:
    """The factor of the learning rate at a step: a linear rise, and half a cosine (Loshchilov 2017) behind it.

    Args:
        steps: in all.
        warmup: share of them in which the rate rises.
    """

    def __init__(self, steps: int, warmup: float) -> None:
        self.steps, self.rising = steps, round(warmup * steps)

    def __call__(self, step: int) -> float:
        if step < self.rising:
            return (step + 1) / self.rising
        return 0.5 * (1 + math.cos(math.pi * (step - self.rising) / max(1, self.steps - self.rising)))


def optimizer_of(parameters: Iterable[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of the settings; what has one direction alone (norms, biases, gains) is not decayed."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    matrices = [parameter for parameter in trained if sum(size > 1 for size in parameter.shape) > 1]
    known = set(map(id, matrices))
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in trained if id(parameter) not in known], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)
    return torch.optim.AdamW(groups, lr=config.lr, betas=BETAS)


def logits_of(outputs: Any) -> Tensor:
    """The logits in what a model returns.

    Raises:
        BadInput: there are none.
    """
    found = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", outputs)
    if isinstance(found, (tuple, list)) and found:
        found = found[0]
    if not isinstance(found, Tensor):
        raise BadInput(f"the model returns a {type(outputs).__name__}, which holds no logits")
    return found
