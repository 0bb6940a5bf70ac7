"""One phase of a run: the training of one model for some of the epochs, from a checkpoint to another.

The checkpoint at the end of one phase becomes the one that the next begins with:

    weights         by name: what was there goes on, what is new is as the model of the phase has it
    averages        the same, of the averaged weights
    optimizer       by name: a parameter that was trained keeps its moments, a new one has none; settings of a group,
                    the rate of now among them, go on
    schedule        goes on at its step; what it keeps for each group follows the groups
    all the rest    (progress, place in the data, scaler, callbacks) as it is

State of optimizers is by number in a checkpoint; a note in it has the names (`noted`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from repl_fx.errors import BadInput, first_line, foreign_code
from repl_fx.training.safe_checkpoints import WholeCheckpoints, read_checkpoint

# The key of the note in a checkpoint, and the key of averaged runs for the weights that are trained (Lightning's).
NOTE, CURRENT = "repl_fx_phase", "current_model_state"


def noted(
    phase: str, module: nn.Module, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, Any]:
    """The note of a phase: its name, the prefix of the model's tensors, the parameters of each optimizer in order."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    path = next(path for path, found in module.named_modules() if found is model)
    return {
        "phase": phase,
        "prefix": f"{path}." if path else "",
        "parameters": [
            [names.get(id(p), "") for group in optimizer.param_groups for p in group["params"]]
            for optimizer in optimizers
        ],
    }


def phase_of(checkpoint: Mapping[str, Any]) -> str:
    """The phase that a checkpoint is of.

    Raises:
        BadInput: it is of a run without phases.
    """
    if NOTE not in checkpoint:
        raise BadInput("the checkpoint is of a run without phases; go on with the settings that it was begun with")
    return str(checkpoint[NOTE]["phase"])


def trained_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of the model in a checkpoint, those that are trained."""
    return _of_model(checkpoint, checkpoint.get(CURRENT, checkpoint["state_dict"]))


def averaged_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """The averaged weights of the model in a checkpoint; None where there are none."""
    return _of_model(checkpoint, checkpoint["state_dict"]) if CURRENT in checkpoint else None


def _of_model(checkpoint: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = checkpoint[NOTE]["prefix"]
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def carried_over(
    checkpoint: Mapping[str, Any],
    note: Mapping[str, Any],
    state: Mapping[str, Tensor],
    averages: Mapping[str, Tensor],
    optimizers: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The checkpoint that a phase begins with, from the one at the end of the phase before; that stays as it is.

    Args:
        note: of the phase that begins, see `noted`.
        state: the `state_dict` of its LightningModule.
        averages: values of averaged weights that are new, by name in that.
        optimizers: the `state_dict` of each of its optimizers.
    """
    before = checkpoint.get(CURRENT, checkpoint["state_dict"])
    made = {**checkpoint, NOTE: dict(note), "state_dict": _by_name(state, before)}
    if CURRENT in checkpoint:
        made[CURRENT] = made["state_dict"]
        made["state_dict"] = _by_name({**made[CURRENT], **averages}, checkpoint["state_dict"])
    names = zip(checkpoint[NOTE]["parameters"], note["parameters"], strict=True)
    states = zip(checkpoint["optimizer_states"], optimizers, names, strict=True)
    same = {name for name, tensor in state.items() if name in before and before[name].shape == tensor.shape}
    carried = [_Carried(old, fresh, *pair, same) for old, fresh, pair in states]
    made["optimizer_states"] = [optimizer.state for optimizer in carried]
    schedules = checkpoint["lr_schedulers"]
    owners = carried if len(schedules) == len(carried) else carried[:1] * len(schedules)
    made["lr_schedulers"] = [owner.schedule(known) for owner, known in zip(owners, schedules, strict=True)]
    return made


def _by_name(new: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: before[name] if name in before and before[name].shape == tensor.shape else tensor
        for name, tensor in new.items()
    }


class _Carried:
    """The state of an optimizer on other parameters.

    Args:
        old: its `state_dict` in the checkpoint.
        fresh: that of the new optimizer.
        old_names, names: of their parameters, by number.
        same: names of what goes on.
    """

    def __init__(
        self,
        old: Mapping[str, Any],
        fresh: Mapping[str, Any],
        old_names: Sequence[str],
        names: Sequence[str],
        same: Collection[str],
    ) -> None:
        self.old, self.old_names, self.names = old, old_names, names
        numbers = {name: number for number, name in enumerate(old_names) if name in same}
        moments = {i: old["state"].get(numbers[name]) for i, name in enumerate(names) if name in numbers}
        # For each new group, the old one whose settings it goes on with.
        self.sources = [self._source(group) for group in fresh["param_groups"]]
        groups = [self._group(group, source) for group, source in zip(fresh["param_groups"], self.sources, strict=True)]
        self.state = {"state": {i: state for i, state in moments.items() if state}, "param_groups": groups}

    def _source(self, group: Mapping[str, Any]) -> int | None:
        """The old group with the most of a group's parameters, or else with its decay; None where there is neither."""
        own = {self.names[number] for number in group["params"]}
        shared = [len(own & {self.old_names[n] for n in old["params"]}) for old in self.old["param_groups"]]
        if max(shared):
            return shared.index(max(shared))
        decays = [old.get("weight_decay") for old in self.old["param_groups"]]
        return decays.index(group["weight_decay"]) if group.get("weight_decay") in decays else None

    def _group(self, group: Mapping[str, Any], source: int | None) -> dict[str, Any]:
        old = self.old["param_groups"][source or 0]
        if source is None:
            # All groups follow one schedule.
            return {**group, **{name: old[name] for name in ("lr", "initial_lr") if name in old}}
        return {**old, "params": group["params"]}

    def schedule(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The state of the schedule: lists with an entry for each group are those of the new groups."""
        count = len(self.old["param_groups"])
        return {
            name: [value[source or 0] for source in self.sources]
            if isinstance(value, list) and len(value) == count
            else value
            for name, value in state.items()
        }


class Phase(pl.Callback):
    """A phase, which each checkpoint of it names.

    Args:
        name: of the phase.
        until: epochs at its end, of the whole run.
        averages: values of the model's averaged weights where these begin otherwise than the weights, by name.
    """

    def __init__(self, name: str, until: int, averages: Mapping[str, Tensor] | None = None) -> None:
        self.name, self.until, self.averages = name, until, averages or {}
        self._model: nn.Module | None = None

    def begin(self, place: Path | None, module: pl.LightningModule, model: nn.Module) -> None:
        """Let the checkpoint be one of this phase, if it is the last one of the phase before.

        Args:
            place: of the checkpoint; None for a run that begins.
            module: has the model, with the weights that the phase begins with.
            model: what is trained.

        Raises:
            BadInput: a LightningModule of a user's whose optimizers are not known before the run.
            OutputError: the checkpoint cannot be written; the one before is whole.
        """
        self._model = model
        if place is None:
            return
        checkpoint = read_checkpoint(place)
        if phase_of(checkpoint) == self.name:
            return
        optimizers = _optimizers_of(module)
        note = noted(self.name, module, model, optimizers)
        averages = {f"{note['prefix']}{name}": value for name, value in self.averages.items()}
        states = [optimizer.state_dict() for optimizer in optimizers]
        made = carried_over(checkpoint, note, module.state_dict(), averages, states)
        WholeCheckpoints().save_checkpoint(made, place)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note the phase, and the names of what is by number in a checkpoint."""
        assert self._model is not None
        checkpoint[NOTE] = noted(self.name, pl_module, self._model, trainer.optimizers)


def _optimizers_of(module: pl.LightningModule) -> list[torch.optim.Optimizer]:
    """The optimizers that a module would train with, in any of the forms that Lightning takes."""
    why = f"{type(module).__name__} has no optimizers before it trains, and a run with phases asks for them"
    with foreign_code(lambda problem: BadInput(f"{why}: {first_line(problem)}")):
        configured: Any = module.configure_optimizers()
    if isinstance(configured, Sequence) and configured and isinstance(configured[0], list | tuple):
        configured = configured[0]
    several = configured if isinstance(configured, list | tuple) else [configured]
    return [one["optimizer"] if isinstance(one, Mapping) else one for one in several if one is not None]
