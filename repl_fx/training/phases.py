"""One phase of a run: the training of one model for some of the epochs, from a checkpoint to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from repl_fx.errors import BadInput, ForeignError, first_line, foreign_code
from repl_fx.training.phase_checkpoints import NOTE, Beginning, carried_over, noted, phase_of
from repl_fx.training.safe_checkpoints import WholeCheckpoints, read_checkpoint


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
        made = carried_over(checkpoint, Beginning(note, module.state_dict(), averages, states))
        WholeCheckpoints().save_checkpoint(made, place)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note the phase, and the names of what is by number in a checkpoint."""
        assert self._model is not None
        checkpoint[NOTE] = noted(self.name, pl_module, self._model, trainer.optimizers)


def _optimizers_of(module: pl.LightningModule) -> list[torch.optim.Optimizer]:
    """The optimizers that a module would train with, in any of the forms that Lightning takes."""
    try:
        with foreign_code():
            configured: Any = module.configure_optimizers()
    except ForeignError as failed:
        raise BadInput(
            f"{type(module).__name__} has no optimizers before it trains, and a run with phases asks for them: "
            f"{first_line(failed.problem)}"
        ) from failed.problem
    if isinstance(configured, Sequence) and configured and isinstance(configured[0], list | tuple):
        configured = configured[0]
    several = configured if isinstance(configured, list | tuple) else [configured]
    return [one["optimizer"] if isinstance(one, Mapping) else one for one in several if one is not None]
