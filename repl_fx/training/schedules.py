"""Schedules of Replacement Learning: which model is trained in which epochs of a run.

    replace_at=N     original     the model as it is, for N epochs
                     rewritten    its blocks are replaced: kept ones go on, surrogates are as at a transform of now
    restore_at=M     restored     from epoch M on, each replaced block is a whole one that begins with its surrogate

While blocks are replaced, their neighbours may be left as they are, or all but the surrogates (`treated`).

Each phase is one fit that begins with a checkpoint: the last one of the phase before, converted by name
(`phases`), so that kept parameters keep their moments, and the learning rate goes on. The converted one
takes the place of that in one moment. A run that was killed is in the phase that its checkpoint names; what a phase
begins with is a function of the last checkpoint of the phase before alone, in the same process or in the next.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from repl_fx.errors import BadInput
from repl_fx.pipeline import rewrite_again, unreplaced
from repl_fx.rewriting.in_place.restoring import restored_state
from repl_fx.rewriting.result import TransformResult
from repl_fx.running.meanwhile import attributes_set
from repl_fx.surrogates.shared.synthesis import OwnWeights, Synthesis, SynthesisBatch
from repl_fx.training.data.data_set import Data, UserData
from repl_fx.training.phases import Phase, averaged_weights, phase_of, trained_weights
from repl_fx.training.run import CHECKPOINT, STATE, TrainingResult, train_once
from repl_fx.training.safe_checkpoints import read_checkpoint
from repl_fx.training.train_config import TrainConfig

ORIGINAL, REWRITTEN, RESTORED = "original", "rewritten", "restored"
_RESTORED = "it was replaced for a part of the training, and is whole again"


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
    names = [name for name, _ in phases]
    checkpoint = directory / STATE / CHECKPOINT
    replaced = bool(result.plan.replacements)
    first = phase_of(read_checkpoint(checkpoint)) if resume and checkpoint.exists() else names[0]
    if first not in names or not (replaced or first == RESTORED):
        raise BadInput(f"{checkpoint} is of another run than {directory}; train it without --resume")
    if replaced:
        require_schedule(config, result)
    now = unreplaced(result, _RESTORED) if replaced and first != REWRITTEN else result
    averages: dict[str, Tensor] | None = None
    resumed: list[int | None] = []
    for name, until in phases[names.index(first) :]:
        if resumed:
            now, averages = _next(now, result, checkpoint, name)
        how = (config.neighbours, config.learn) if name == REWRITTEN else ("train", "all")
        options: Any = {"resume": resume or bool(resumed), "phase": Phase(name, until, averages)}
        with treated(now.model, now, *how):
            trained = train_once(now.model, data, config, directory, kept=kept, teacher=teacher, **options)
        resumed.append(trained.resumed)
    return replace(trained, resumed=resumed[0])


def _phases(config: TrainConfig) -> list[tuple[str, int]]:
    """The phases, each with the number of epochs at its end."""
    ends = {ORIGINAL: config.replace_at, REWRITTEN: config.restore_at or config.epochs}
    ends[RESTORED] = None if config.restore_at is None else config.epochs
    return [(name, end) for name, end in ends.items() if end is not None]


def _next(
    before: TransformResult, result: TransformResult, checkpoint: Path, name: str
) -> tuple[TransformResult, dict[str, Tensor] | None]:
    """The model of a phase, with the weights that the last checkpoint of the phase before makes, and its averages."""
    saved = read_checkpoint(checkpoint)
    source = result.captured_parts.source.cpu()
    source.zero_grad(set_to_none=True)
    if name == REWRITTEN:
        # Into the tensors that the captured graphs share.
        source.load_state_dict(trained_weights(saved))
        made = rewrite_again(result.captured_parts, result.plan)
        return replace(made, checkpoint_blocks=result.checkpoint_blocks), None
    model, averaged = before.model.cpu(), averaged_weights(saved)

    def restored(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        model.load_state_dict(weights)
        return restored_state(result.found, model, result.plan)

    averages = None if averaged is None else restored(averaged)
    state, whole = restored(trained_weights(saved)), unreplaced(result, _RESTORED)
    # Of tied tensors, one is enough.
    whole.model.load_state_dict(state, strict=False)
    return whole, averages


@contextmanager
def treated(model: nn.Module, result: TransformResult, how: str, learn: str = "all") -> Iterator[None]:
    """Let neighbours be treated in some way meanwhile, or let surrogates alone learn.

    Args:
        model: the rewritten model that is trained.
        result: what is known of it.
        how: `train`; `detach`, which lets no gradient go through a synthesis into their weights; or `freeze`, which
            leaves their parameters as they are. Their running statistics go on: they follow what goes through them.
        learn: `all`; or `surrogates`, which leaves all parameters of the source as they are.

    Raises:
        BadInput: there is nothing to detach or to freeze, or nothing to train beside what is frozen.
    """
    with ExitStack() as stack:
        if learn == "surrogates":
            own = {name for name, _ in result.captured_parts.source.named_parameters(remove_duplicate=False)}
            _freeze(stack, model, own, "learn=surrogates", "no surrogate has parameters")
        if how == "detach":
            syntheses = [synthesis for synthesis in _syntheses(model) if synthesis.train_neighbours]
            if not syntheses:
                raise BadInput("neighbours=detach is for surrogates made from neighbours' weights; here is none")
            stack.enter_context(attributes_set(syntheses, "train_neighbours", False))
        elif how == "freeze":
            around = neighbours_of(result)
            if not around:
                raise BadInput("neighbours=freeze is for surrogates between kept blocks; here is none")
            _freeze(stack, model, around, "neighbours=freeze", "all parameters are those of neighbours")
        yield


def neighbours_of(result: TransformResult) -> frozenset[str]:
    """The parameters of the kept blocks that surrogates are made from, by name in the model."""
    names = {name for r in result.plan.replacements for name in r.neighbours}
    blocks = (block for repeat in result.repeats for block in repeat.blocks)
    return frozenset(path for block in blocks if block.name in names for path in block.parameters)


def _freeze(stack: ExitStack, model: nn.Module, names: Collection[str], setting: str, why: str) -> None:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found = {id(p): p for name, p in parameters.items() if name in names and p.requires_grad}
    if not any(p.requires_grad and id(p) not in found for p in parameters.values()):
        raise BadInput(f"{setting} leaves nothing to train: {why}")
    stack.enter_context(attributes_set(found.values(), "requires_grad", False))


def _syntheses(model: nn.Module) -> Iterator[Synthesis]:
    """The syntheses of a model that read neighbours' weights."""
    for module in model.modules():
        if isinstance(module, SynthesisBatch):
            yield from module.members
        elif isinstance(module, Synthesis) and not isinstance(module, OwnWeights):
            yield module
