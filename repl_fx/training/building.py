"""The LightningModule of a run, by the task, the data and the model; `file.py:CLASS` is one of the user's own."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from repl_fx._torch import pytree
from repl_fx.arguments import in_words
from repl_fx.errors import BadInput, first_line, foreign_code
from repl_fx.running.untouched import in_mode
from repl_fx.training.data.data_set import Data, UserData
from repl_fx.training.data.targets import has_targets
from repl_fx.training.data.user_code import called
from repl_fx.training.distillation import Distillation
from repl_fx.training.module import Training, optimizers_of
from repl_fx.training.tasks import Batch, Classification, LanguageModelling, Task, task_of
from repl_fx.training.train_config import TrainConfig

DEFAULT = "Module"


def user_module(spec: str, model: nn.Module) -> pl.LightningModule:
    """Call the class of `file.py:CLASS`, or `Module` of `file.py`, with the model to train.

    Raises:
        BadInput: no such file or class, its code raises, or the result is no LightningModule that holds the model.
    """
    made, where, _ = called(spec, DEFAULT, model)
    if not isinstance(made, pl.LightningModule):
        raise BadInput(f"{where} made {in_words(made)}; give a LightningModule of the package pytorch_lightning")
    if not any(module is model for module in made.modules()):
        raise BadInput(f"{where} does not keep the model it is given; set it as an attribute of the LightningModule")
    return made


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
        return _user_module(config.task, model, config, steps)
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


def _user_module(spec: str, model: nn.Module, config: TrainConfig, steps: int) -> pl.LightningModule:
    module: Any = user_module(spec, model)
    if not is_overridden("configure_optimizers", module, pl.LightningModule):
        module.configure_optimizers = lambda: optimizers_of(module.parameters(), config, steps)
    if not module.automatic_optimization and (config.accumulate > 1 or config.clip):
        raise BadInput(f"{spec} steps its optimizers itself; give --accumulate 1 --clip 0, and do both in it")
    return module  # type: ignore[no-any-return]


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
