"""Healing: a model that was cut learns from the original, by its logits and the values behind what was replaced.

    train_state/healing.json    figures of the original, of the model as it was cut, and of the healed one

A run of training like any other (`repl_fx.training.train`), with other settings where none are given. A short
training on the original's outputs brings back what a cut language model lost: Muralidharan et al. 2024,
arXiv:2407.14679, section 3.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from repl_fx.arguments import require_module, require_ordinary_tensors
from repl_fx.artifact.places import FIGURES as FIGURES, STATE
from repl_fx.display.columns import Table
from repl_fx.display.comparisons import figures_table
from repl_fx.display.html import Displayed
from repl_fx.display.progress import shown, stage
from repl_fx.environment.files import writing
from repl_fx.errors import BadInput, needing
from repl_fx.graph.captured import copy_model
from repl_fx.rewriting.result import HoldsResult, TransformResult, result_and_model
from repl_fx.training.train import data_of, settings_for, train
from repl_fx.training.train_config import HEALING, TrainConfig

if TYPE_CHECKING:
    from repl_fx.training.run import TrainingResult


@dataclass(frozen=True, eq=False, repr=False)
class Healed(Displayed):
    """The result of healing.

    Attributes:
        original: figures of the original model, by name; none where a run went on, or has several processes.
        before: those of the model as it was cut; none likewise.
        trained: the run, with the figures of the healed model.
    """

    original: dict[str, float]
    before: dict[str, float]
    trained: TrainingResult

    @property
    def model(self) -> nn.Module | None:
        """The healed model."""
        return self.trained.model

    @property
    def figures(self) -> dict[str, dict[str, float]]:
        """The figures of each model that has some, by its name."""
        named = {"original": self.original, "cut": self.before, "healed": self.trained.figures}
        return {name: figures for name, figures in named.items() if figures}

    def displayed(self) -> Sequence[Table]:
        """The table of the figures."""
        return (figures_table(self.figures),)


def settings_to_heal() -> TrainConfig:
    """The settings of a run that heals, where none are given."""
    return TrainConfig().changed(**HEALING)


@shown("heal")
def heal(
    model: TransformResult | HoldsResult | nn.Module,
    data: Any,
    *,
    original: nn.Module | None = None,
    config: TrainConfig | None = None,
    directory: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[str], None] | None = None,
    **settings: Any,
) -> Healed:
    """Train a model that was cut against the original: its logits and values, and the targets where there are some.

    Values behind replaced blocks are compared where these are modules of the original, unless the settings say how much
    they weigh.

    Args:
        model: what `compress` or `transform` returned, whose `model` is trained, or the model.
        data: see `train`; batches of inputs alone will do.
        original: the model before the cut, with its weights; that of the result by default. It is not changed.
        config, directory, resume, progress: see `train`.
        **settings: see `train`; by default `epochs=1, lr=3e-4, teacher_values=1.0`.

    Raises:
        BadInput, OutputError: see `train`.
    """
    with needing("train", "heal"):
        from repl_fx.training.processes import join
        from repl_fx.training.run import evaluate
    result, cut = result_and_model(model)
    require_module("heal", cut)
    require_ordinary_tensors()
    if original is None and result is not None:
        original = result.captured_parts.source
    if original is None:
        raise BadInput("heal learns from the model before the cut; give it with its weights: original=…")
    require_module("heal", original, name="original")
    shared = {id(tensor) for tensor in cut.parameters()}
    if any(id(tensor) in shared for tensor in original.parameters()):
        original = copy_model(original)
    config = with_places(settings_for("heal", config or settings_to_heal(), data, settings), cut)
    data = data_of(data, config)
    before: list[dict[str, float]] = [{}, {}]
    if not resume and join(config).alone:
        stage("evaluate")
        before = [evaluate(one, data, config, original) for one in (original, cut)]
    trained = train(model, data, teacher=original, config=config, directory=directory, resume=resume)
    healed = Healed(before[0], before[1], trained)
    if directory is not None and healed.original:
        file = Path(directory) / STATE / FIGURES
        with writing(file):
            file.write_text(json.dumps(healed.figures, indent=2) + "\n")
    return healed


def with_places(config: TrainConfig, model: nn.Module) -> TrainConfig:
    """The settings, without values behind replaced blocks where none is a module, unless they were asked for."""
    from repl_fx.training.distillation import places_in

    if config.teacher_values != HEALING["teacher_values"] or places_in(model):
        return config
    return config.changed(teacher_values=0.0)
