"""The Lightning module: what a step of training and of evaluation computes, and the optimizer.

`module_of` makes the one of a run, by the task, the data and the model; `file.py:CLASS` is one of the user's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from repl_fx._torch import pytree
from repl_fx.arguments import in_words
from repl_fx.errors import BadInput, first_line, foreign_code
from repl_fx.running.untouched import in_mode
from repl_fx.training.callbacks import step_of
from repl_fx.training.data.data_set import Data, UserData
from repl_fx.training.data.targets import has_targets
from repl_fx.training.data.user_code import called
from repl_fx.training.distillation import Distillation
from repl_fx.training.tasks import Batch, Classification, LanguageModelling, Task, task_of
from repl_fx.training.train_config import TrainConfig

BETAS = (0.9, 0.95)
# The class of a user's file that names none.
DEFAULT = "Module"


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
        if self.config.accumulate > 1:
            # Lightning divides by as many in the last step of an epoch too, which may have fewer.
            loss = loss * (self.config.accumulate / len(step_of(self.trainer, number)))
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


def module_of(
    model: nn.Module,
    data: Data | UserData,
    config: TrainConfig,
    steps: int,
    batch: Batch,
    teacher: nn.Module | None = None,
) -> pl.LightningModule:
    """The LightningModule that trains a model.

    Args:
        batch: one that is held out, on which the model is tried.
        teacher: the original model, to learn from.
        steps: of the optimizer, in all.

    Raises:
        BadInput: the task is not that of the data, or the model does not fit the data.
    """
    if config.has_own_module:
        assert config.task is not None
        if teacher is not None:
            raise BadInput(
                f"--teacher is for tasks that are known here; let {config.task} do it, and leave out --teacher"
            )
        return user_module(config.task, model, config, steps)
    name = _task_name(data, config)
    # Of data that do not say how many classes there are, the model does.
    classes = data.classes if isinstance(data, Data) else 0
    task = task_of(name, classes)
    if isinstance(task, LanguageModelling) and isinstance(data, Data):
        task.bytes_per_token = data.bytes_per_token
    outputs = _tried(model, task, batch, data.name)
    targets = has_targets(batch[1])
    if not classes:
        task = task_of(name, task.classes_in(model, outputs))
    if not targets and teacher is None:
        raise BadInput(f"{data.name} has no targets; learn from the original: repl-fx heal, or --teacher original")
    task.require_fit(model, outputs, batch, data.name)
    distillation = None
    if teacher is not None:
        distillation = Distillation(teacher, model, task, config)
        distillation.require_fit(batch, outputs)
    return Training(model, task, config, steps, distillation, targets=targets)


def user_module(spec: str, model: nn.Module, config: TrainConfig, steps: int) -> pl.LightningModule:
    """Call the class of `file.py:CLASS`, or `Module` of `file.py`, with the model to train.

    Raises:
        BadInput: no such file or class, its code raises, or the result is no LightningModule that holds the model, or
            one that the settings do not go with.
    """
    module, where, _ = called(spec, DEFAULT, model)
    if not isinstance(module, pl.LightningModule):
        raise BadInput(f"{where} made {in_words(module)}; give a LightningModule of the package pytorch_lightning")
    if not any(part is model for part in module.modules()):
        raise BadInput(f"{where} does not keep the model it is given; set it as an attribute of the LightningModule")
    if not is_overridden("configure_optimizers", module, pl.LightningModule):
        vars(module)["configure_optimizers"] = lambda: optimizers_of(module.parameters(), config, steps)
    if not module.automatic_optimization and (config.accumulate > 1 or config.clip):
        raise BadInput(f"{spec} steps its optimizers itself; give --accumulate 1 --clip 0, and do both in it")
    return module


def _task_name(data: Data | UserData, config: TrainConfig) -> str:
    if isinstance(data, UserData):
        return config.task or Classification.key
    if config.task not in (None, data.task):
        raise BadInput(f"{data.name} is data for {data.task}; leave out --task {config.task}")
    return data.task


def _tried(model: nn.Module, task: Task, batch: Batch, name: str) -> Any:
    """The outputs of the model for a batch, in evaluation mode, on the device of the batch."""
    tensors = [leaf for leaf in pytree.tree_leaves(batch[0]) if isinstance(leaf, Tensor)]
    device = tensors[0].device if tensors else torch.device("cpu")
    # A list is of pictures, which may differ in size.
    sizes = tensors[0].shape[isinstance(batch[0], Tensor) :] if tensors else ()
    shape = "x".join(map(str, sizes)) if tensors else "no tensors"
    fails = f"{type(model).__name__} does not take inputs of {name}, which are {shape}"
    advice = "; --context sets how many tokens they are" if name.startswith("text:") else ""
    refused = foreign_code(lambda problem: BadInput(f"{fails}: {first_line(problem)}{advice}"))
    with in_mode(model, False), torch.no_grad(), refused:
        return task.outputs(model.to(device), batch)
