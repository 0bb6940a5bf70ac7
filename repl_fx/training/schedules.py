"""Schedules of Replacement Learning: which model is trained in which epochs of a run.

    replace_at=N     original     the model as it is, for N epochs
                     rewritten    its blocks are replaced: kept ones go on, surrogates are as at a transform of now
    restore_at=M     restored     from epoch M on, each replaced block is a whole one that begins with its surrogate

Each phase is one fit that begins with a checkpoint: the last one of the phase before, converted by name
(`phase_checkpoints`), so that kept parameters keep their moments, and the learning rate goes on. The converted one
takes the place of that in one moment. A run that was killed is in the phase that its checkpoint names; what a phase
begins with is a function of the last checkpoint of the phase before alone, in the same process or in the next.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from repl_fx.errors import BadInput
from repl_fx.pipeline import rewrite_again, unreplaced
from repl_fx.rewriting.in_place.restoring import restored_state
from repl_fx.rewriting.result import TransformResult
from repl_fx.training.data.data_set import Data, UserData
from repl_fx.training.neighbours import treated
from repl_fx.training.phases import Phase, averaged_weights, phase_of, trained_weights
from repl_fx.training.run import CHECKPOINT, STATE, TrainingResult, train_once
from repl_fx.training.safe_checkpoints import read_checkpoint
from repl_fx.training.train_config import TrainConfig

ORIGINAL, REWRITTEN, RESTORED = "original", "rewritten", "restored"
_RESTORED = "it was replaced for a part of the training, and is whole again"


@dataclass(frozen=True, eq=False)
class _PhaseModel:
    """The model of a phase.

    Attributes:
        result: it with its plan, which replaces nothing where blocks are whole.
        averages: see `Phase`.
    """

    result: TransformResult
    averages: dict[str, Tensor] | None = None


def require_schedule(config: TrainConfig, result: TransformResult) -> None:
    """Refuse a schedule that cannot be for a model, before any training.

    Raises:
        BadInput: nothing is replaced, blocks that cannot be restored, or neighbours that cannot be treated so.
    """
    if not config.is_scheduled:
        return
    if not result.plan.replacements:
        raise BadInput(
            "replace_at, restore_at, neighbours and learn are for a model with replaced blocks; here none is"
        )
    if config.restore_at is not None and result.in_place.model is None:
        raise BadInput(f"restore_at needs the model in place, which is refused: {result.in_place.reason}")
    with treated(result.model, result, config.neighbours, config.learn):
        pass


def train_in_phases(
    result: TransformResult,
    data: Data | UserData,
    config: TrainConfig,
    directory: Path,
    *,
    resume: bool = False,
    kept: bool = True,
    teacher: nn.Module | None = None,
) -> TrainingResult:
    """Train a model by a schedule; it begins with the weights that the source has now.

    Args:
        result: the transform; or, where a run that is at its end goes on, its restored model (`unreplaced`).
        data, config, directory, resume, kept, teacher: see `train_once`.

    Returns:
        The result of the last phase.

    Raises:
        BadInput, OutputError: see `require_schedule` and `train_once`.
    """
    phases = _phases(config)
    checkpoint = directory / STATE / CHECKPOINT
    number = 0
    if resume and checkpoint.exists():
        name = phase_of(read_checkpoint(checkpoint))
        number = next((i for i, (known, _) in enumerate(phases) if known == name), len(phases))
    if number == len(phases) or (not result.plan.replacements and phases[number][0] != RESTORED):
        raise BadInput(f"{checkpoint} is of another run than {directory}; train it without --resume")
    if result.plan.replacements:
        require_schedule(config, result)
    name, until = phases[number]
    model = _PhaseModel(result if name == REWRITTEN or not result.plan.replacements else unreplaced(result, _RESTORED))
    resumed: list[int | None] = []
    while True:
        trained_model = model.result.model
        how = (config.neighbours, config.learn) if name == REWRITTEN else ("train", "all")
        phase = Phase(name, until, model.averages)
        options: Any = {"resume": resume or bool(resumed), "phase": phase, "kept": kept, "teacher": teacher}
        with treated(trained_model, model.result, *how):
            trained = train_once(trained_model, data, config, directory, **options)
        resumed.append(trained.resumed)
        number += 1
        if number == len(phases):
            return replace(trained, resumed=resumed[0])
        name, until = phases[number]
        model = _next(model, result, checkpoint, name)


def _phases(config: TrainConfig) -> list[tuple[str, int]]:
    """The phases, each with the number of epochs at its end."""
    ends = {ORIGINAL: config.replace_at, REWRITTEN: config.restore_at or config.epochs}
    ends[RESTORED] = None if config.restore_at is None else config.epochs
    return [(name, end) for name, end in ends.items() if end is not None]


def _next(before: _PhaseModel, result: TransformResult, checkpoint: Path, name: str) -> _PhaseModel:
    """The model of a phase, with the weights that the last checkpoint of the phase before makes."""
    saved = read_checkpoint(checkpoint)
    source = result.captured_parts.source.cpu()
    source.zero_grad(set_to_none=True)
    if name == REWRITTEN:
        # Into the tensors that the captured graphs share.
        source.load_state_dict(trained_weights(saved))
        made = rewrite_again(result.captured_parts, result.plan)
        return _PhaseModel(replace(made, checkpoint_blocks=result.checkpoint_blocks))
    model, averaged = before.result.model.cpu(), averaged_weights(saved)

    def restored(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        model.load_state_dict(weights)
        return restored_state(result.found, model, result.plan)

    averages = None if averaged is None else restored(averaged)
    state, whole = restored(trained_weights(saved)), unreplaced(result, _RESTORED)
    # Of tied tensors, one is enough.
    whole.model.load_state_dict(state, strict=False)
    return _PhaseModel(whole, averages)
