"""The Lightning module: what a step of training and of evaluation computes, and the optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from repl_fx.training.distillation import Distillation
from repl_fx.training.tasks import Batch, Task
from repl_fx.training.train_config import TrainConfig

BETAS = (0.9, 0.95)


class Training(pl.LightningModule):
    """Training of a model for a task.

    Args:
        model: takes the inputs of a batch.
        task: the loss and the figures.
        config: the settings.
        steps: of the optimizer, in all.
        distillation: from a teacher, whose weights are none of this module's; None without one.
        targets: whether batches have targets; else a model is held against the classes that the teacher tells.

    Attributes:
        counts: whether a held-out batch, by its number, adds to the figures of this process.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        config: TrainConfig,
        steps: int,
        distillation: Distillation | None = None,
        *,
        targets: bool = True,
    ) -> None:
        super().__init__()
        self.model, self.task, self.config, self.steps = model, task, config, steps
        self.distillation, self.targets = distillation, targets
        self.counts: Callable[[int], bool] = lambda number: True

    def on_fit_start(self) -> None:
        """Bring the teacher to the device."""
        if self.distillation is not None:
            self.distillation.teacher.to(self.device)

    def on_validation_start(self) -> None:
        """Bring the teacher to the device, for an evaluation by itself."""
        self.on_fit_start()

    def training_step(self, batch: Batch, number: int) -> Tensor:
        """The loss of a batch; smoothed, where that was asked for."""
        if self.distillation is None:
            loss = self.task.loss(self.task.outputs(self.model, batch), batch, self.config.label_smoothing)
        else:
            outputs, loss = self.distillation.step(self.model, batch)
            if self.config.target_weight and self.targets:
                own = self.task.loss(outputs, batch, self.config.label_smoothing)
                loss = loss + self.config.target_weight * own
        # Where the loggers write: a call takes longer than a small layer.
        if self.global_step == 0 or (self.global_step + 1) % self.config.log_every == 0:
            self.log("loss", loss.detach(), sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, number: int) -> None:
        """Add a batch to the figures of the evaluation."""
        if not self.targets:
            assert self.distillation is not None
            batch = self.distillation.with_targets(batch)
        outputs = self.task.outputs(self.model, batch)
        if self.counts(number):
            self.task.update(outputs, batch)

    def on_validation_epoch_end(self) -> None:
        """Log the figures of the evaluation: over all of the test data."""
        behind = "" if self.targets else "_to_original"
        self.log_dict({f"test_{name}{behind}": value for name, value in self.task.compute().items()})

    def configure_optimizers(self) -> Any:
        """The optimizer and its schedule."""
        return optimizers_of(self.model.parameters(), self.config, self.steps)


def optimizers_of(parameters: Iterable[nn.Parameter], config: TrainConfig, steps: int) -> dict[str, Any]:
    """An optimizer whose rate rises linearly, then falls as a cosine to zero, step by step, as Lightning takes it."""
    made = optimizer_of(parameters, config)
    scheduler = torch.optim.lr_scheduler.LambdaLR(made, Schedule(steps, config.warmup))
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
