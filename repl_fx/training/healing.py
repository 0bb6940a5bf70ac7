"""Healing: a model that was cut learns from the original, by its logits and the values behind what was replaced.

    train_state/healing.json    figures of the original, of the model as it was cut, and of the healed one

A run of training like any other (`repl_fx.training.command`), with other settings where none are given. A short
training on the original's outputs brings back what a cut language model lost: Muralidharan et al. 2024,
arXiv:2407.14679, section 3.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

from repl_fx.artifact.places import FIGURES as FIGURES
from repl_fx.environment.files import writing
from repl_fx.training.command import TrainingRun, train_directory
from repl_fx.training.config import HEALING, TrainConfig
from repl_fx.training.distillation import places_in
from repl_fx.training.evaluation import evaluate
from repl_fx.training.run import STATE, TrainingResult


@dataclass(frozen=True)
class Healed:
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
    def figures(self) -> dict[str, dict[str, float]]:
        """The figures of each model that has some, by its name."""
        named = {"original": self.original, "cut": self.before, "healed": self.trained.figures}
        return {name: figures for name, figures in named.items() if figures}


def settings_to_heal() -> TrainConfig:
    """The settings of a run that heals, where none are given."""
    return TrainConfig().changed(**HEALING)


def heal_directory(
    run: TrainingRun, *, show: bool = False, progress: Callable[[str], None] = lambda stage: None
) -> Healed:
    """Heal the model of a run, and put its weights into the artifact.

    Values behind replaced blocks are compared where these are modules of the original, unless the settings say how much
    they weigh.

    Raises:
        BadInput, OutputError: see `repl_fx.training.command.train_directory`.
    """
    run = with_places(run)
    config, teacher = run.config, run.teacher
    original: dict[str, float] = {}
    before: dict[str, float] = {}
    if not run.resume and run.processes.alone and teacher is not None:
        progress("evaluate")
        original = evaluate(teacher, run.data, config, teacher)
        before = evaluate(run.model, run.data, config, teacher)
    healed = Healed(original, before, train_directory(run, show=show, progress=progress))
    if run.processes.first and original:
        file = run.directory / STATE / FIGURES
        with writing(file):
            file.write_text(json.dumps(healed.figures, indent=2) + "\n")
    return healed


def with_places(run: TrainingRun) -> TrainingRun:
    """The run, without values behind replaced blocks where none is a module, unless they were asked for."""
    config = run.config
    if places_in(run.model) or config.teacher_values != HEALING["teacher_values"]:
        return run
    return replace(run, config=config.changed(teacher_values=0.0))
