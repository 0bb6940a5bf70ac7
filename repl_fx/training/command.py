"""From a specification or a directory to a run, and from its end back to the artifact."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
from torch import nn

from repl_fx.artifact import build_original, built_like, load_artifact, require_free, save
from repl_fx.artifact.places import COMPARISON as COMPARISON, KEPT, LOGS, OTHERS as OTHERS
from repl_fx.benchmarking.results import ORIGINAL, REWRITTEN
from repl_fx.display.progress import stage, stages_as_steps
from repl_fx.environment.files import writing
from repl_fx.errors import BadInput, first_line
from repl_fx.planning.settings import flag_of, given_among
from repl_fx.reporting.model_graph.document import VariantOutcome
from repl_fx.rewriting.result import TransformResult
from repl_fx.sources import Source
from repl_fx.training.data.data_set import Data, UserData
from repl_fx.training.healing import Healed, heal
from repl_fx.training.loading import batch_of, changes_of, kept_preprocessing, prepared, purpose_of, read_data
from repl_fx.training.processes import Processes, restarts
from repl_fx.training.run import (
    CHECKPOINT,
    CONFIG,
    STATE,
    TrainingResult,
    begin_state,
    finished,
    joined,
    require_same_data,
    settings_of,
    train_once,
)
from repl_fx.training.safe_checkpoints import last_whole
from repl_fx.training.schedules import require_schedule
from repl_fx.training.train import train
from repl_fx.training.train_config import (
    FROM_SPEC,
    MAKING,
    OF_HEALING,
    OF_TEACHER,
    CompressConfig,
    TrainConfig,
    read_config,
)
from repl_fx.training.variants import VARIANTS, Models


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """A run that can begin, or several side by side.

    Attributes:
        directory: of the artifact, which has the model as it is before.
        model: the rewritten model.
        result: of the transform.
        resume: whether to go on from the last checkpoint.
        processes: of which this is one; the first alone writes.
        source: how the model is built; None for an artifact, which knows.
        models: builds the other models of a comparison; None where there are no others.
        teacher: the original model, to learn from.
        is_new: whether the directory was not there before.
    """

    directory: Path
    model: nn.Module
    result: TransformResult
    data: Data | UserData
    config: TrainConfig
    resume: bool
    processes: Processes
    source: Source | None = None
    models: Models | None = None
    teacher: nn.Module | None = None
    is_new: bool = False

    @property
    def trainable(self) -> TransformResult | nn.Module:
        """The result where the run has phases, else the model, which has the weights of an artifact."""
        return self.result if self.config.is_scheduled else self.model

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the model, such as its class and arguments where the data chose them."""
        return () if self.source is None else self.source.notes

    @property
    def changes(self) -> tuple[str, ...]:
        """One line for each change that the data go through, see `changes_of`."""
        return changes_of(self.data, self.config)


@dataclass(frozen=True)
class RunRequest:
    """The request for a run, as a command has it.

    Attributes:
        spec: a specification, or the directory of an artifact.
        output: the directory of the run; the artifact's own by default.
        given: settings that were given as flags; None for those that were not.
        config: settings that flags come before.
        resume: go on with the run of the directory; beside `output` with the one there, where it has begun.
        force: replace the artifact at `output`.
        model, trust_remote_code: see `load`.
        defaults: settings where none are given.
        stdout: file descriptor where processes that this one starts write; its own by default.
    """

    spec: str
    output: Path | None
    given: Mapping[str, Any]
    config: Path | None = None
    resume: bool = False
    force: bool = False
    model: str | None = None
    trust_remote_code: bool = False
    defaults: TrainConfig = field(default_factory=TrainConfig)
    stdout: int | None = None

    @property
    def is_artifact(self) -> bool:
        """Tell whether the model is that of an artifact."""
        return Path(self.spec).is_dir()

    def continued(self) -> RunRequest:
        """The request to go on, where the run has begun that this one asks for with `resume`, or is started again for.

        torchrun starts a run again with the same command (`--max-restarts`), and so do queues of a cluster.

        Raises:
            BadInput: the run of the directory has other settings.
        """
        if self.output is None or not (self.resume or restarts()):
            return self
        begins = replace(self, resume=False)
        if not (self.output / STATE / CONFIG).exists():
            return begins
        wanted, there = begins.settings(), settings_of(self.output)
        for name, value in msgspec.structs.asdict(wanted).items():
            if value not in (getattr(self.defaults, name), getattr(there, name)):
                raise BadInput(
                    f"{self.output} has the run of other settings, with {flag_of(name)} {getattr(there, name)}; give "
                    "another place, or replace it with --force and without --resume"
                )
        if there.compare or there.seeds > 1 or last_whole(self.output / STATE / CHECKPOINT):
            return replace(self, spec=str(self.output), output=None, given={}, config=None, resume=True, force=False)
        # It was ended before its first checkpoint.
        return replace(begins, force=True)

    def settings(self) -> TrainConfig:
        """The settings of the run.

        Raises:
            BadInput: options that do not go together, or settings that are none.
        """
        spec, output = self.spec, self.output
        changes = given_among(self.given)
        if self.resume:
            if not self.is_artifact:
                raise BadInput(
                    f"--resume goes on with the run of a directory; give it in the place of {spec}, or by -o"
                )
            if changes or self.config is not None:
                named = "--config" if self.config is not None else flag_of(next(iter(changes)))
                raise BadInput(f"--resume goes on with the settings in {spec}/{STATE}; leave out {named}")
            if not (Path(spec) / STATE / CONFIG).exists():
                raise BadInput(f"{spec} has no run to go on with; begin one without --resume")
            return settings_of(Path(spec))
        base = self.defaults if self.config is None else read_config(self.config, self.defaults)
        config = base.changed(**changes)
        require_effect(changes, config)
        if not self.is_artifact:
            if output is None:
                raise BadInput(f"no place to write to, as {spec} is no directory; give -o DIR")
            # What cannot be should leave no artifact behind.
            config.planning_options()
            return config
        _require_as_made(spec, config)
        if output is None and not self.force and last_whole(Path(spec) / STATE / CHECKPOINT):
            raise BadInput(
                f"{spec} has a run already; go on with --resume, give -o DIR, or replace the run with --force"
            )
        return config


def require_effect(changes: Mapping[str, Any], config: TrainConfig) -> None:
    """Refuse flags that say how to do what is not done."""
    beside = {name: "heal" for name in OF_HEALING if isinstance(config, CompressConfig) and not config.heal}
    beside |= {name: "teacher" for name in OF_TEACHER if config.teacher is None}
    beside |= {"momentum": "optimizer sgd"} if config.optimizer != "sgd" else {}
    if idle := next((name for name in beside if name in changes), None):
        raise BadInput(f"{flag_of(idle)} does nothing without --{beside[idle]}; give that, or leave it out")


def begin(request: RunRequest) -> TrainingRun:
    """Make a run of a model, which is transformed first, or of an artifact.

    Raises:
        BadInput: see `RunRequest.settings`; or data or a model that cannot be read.
        ReplFxError: see `transform` and `load`.
        Ended: the run is that of other processes, which this one started and which have ended.
    """
    request = request.continued()
    config = request.settings()
    _, processes = joined(config, resume=request.resume, stdout=request.stdout)
    if request.output is not None and processes.first:
        require_free(request.output, force=request.force)
    is_new = request.output is not None and not request.output.exists()
    return replace((_of_artifact if request.is_artifact else _of_model)(request, config, processes), is_new=is_new)


@contextmanager
def gone_where_refused(run: TrainingRun) -> Iterator[None]:
    """Let nothing stay of a run that is refused before it trained, or it would be in the way of the next try."""
    try:
        yield
    except BadInput:
        if run.is_new and run.processes.first and not (run.directory / STATE / LOGS).exists():
            shutil.rmtree(run.directory)
        raise


def _of_artifact(request: RunRequest, config: TrainConfig, processes: Processes) -> TrainingRun:
    spec, model, trusted = request.spec, request.model, request.trust_remote_code
    stage("load")
    loaded = load_artifact(spec, model, graph=config.graph, trust_remote_code=trusted)
    if not request.resume:
        require_schedule(config, loaded.result)
    stage("load data")
    made_of = loaded.manifest.model
    built = model or (made_of.spec if made_of else "")
    read = read_data(config, made_of.spec if made_of else "", trust_remote_code=trusted)
    data = prepared(read, made_of.preprocessing if made_of else None, config)
    teacher = None
    if config.teacher is not None:
        stage("build the original")
        weights = None if config.teacher == FROM_SPEC else Path(config.teacher)
        teacher = build_original(spec, model, weights, trusted)
    if request.output is not None and processes.first:
        save(loaded.model, request.output, force=request.force)
    known = loaded.model, loaded.result, data, config, request.resume, processes
    models = Models(built, config, trusted) if built else None
    return TrainingRun(request.output or Path(spec), *known, models=models, teacher=teacher)


def _of_model(request: RunRequest, config: TrainConfig, processes: Processes) -> TrainingRun:
    output = request.output
    assert output is not None
    # First, as the model is built for them.
    stage("load data")
    data = read_data(config, request.spec, trust_remote_code=request.trust_remote_code)
    stage("load")
    models = Models(request.spec, config, request.trust_remote_code, purpose_of(data, config))
    source = models.source(config.seed)
    data = prepared(data, source.preprocessing, config)
    result = models.transform(source)
    own = models.at_own_batch(result.captured_parts, batch_of(data, config))
    if own is not None:
        models, config, source = own, own.config, own.source(config.seed)
        result = models.transform(source)
    require_schedule(config, result)
    source = replace(source, preprocessing=kept_preprocessing(source.preprocessing, data, config))
    # What is refused leaves nothing behind.
    teacher = models.teacher()
    if processes.first:
        save(result, output, source=source, force=request.force)
    known = result.model, result, data, config, request.resume, processes
    return TrainingRun(output, *known, source, models, teacher)


def _require_as_made(directory: str, config: TrainConfig) -> None:
    """Refuse settings that an artifact cannot follow: it has its blocks replaced, and lost their weights."""
    default = TrainConfig()
    for name in (*MAKING, "compare", "replace_at"):
        if getattr(config, name) != getattr(default, name):
            flag = flag_of(name)
            raise BadInput(f"{directory} has its blocks replaced already; leave out {flag}, or give the model itself")
    if config.seeds > 1:
        raise BadInput(f"{directory} has one set of weights; leave out --seeds, or give the model itself")


def train_directory(run: TrainingRun) -> TrainingResult:
    """Train, and put the trained weights into the artifact; see `train`."""
    options: Any = {"config": run.config, "directory": run.directory, "resume": run.resume}
    trained = train(run.trainable, run.data, teacher=run.teacher, **options)
    keep(run, trained.model)
    return trained


def heal_directory(run: TrainingRun) -> Healed:
    """Heal, and put the healed weights into the artifact; see `heal`."""
    options: Any = {"config": run.config, "directory": run.directory, "resume": run.resume}
    healed = heal(run.trainable, run.data, original=run.teacher, **options)
    keep(run, healed.model)
    return healed


def keep(run: TrainingRun, model: nn.Module | None) -> None:
    """Put the weights of a trained model into the artifact of its run, once; what is saved there later stays."""
    kept = run.directory / STATE / KEPT
    if run.processes.first and model is not None and not (run.resume and kept.exists()):
        built_like(model, run.model)
        save(model.cpu(), run.directory, source=run.source, force=True)
        with writing(kept):
            kept.touch()


def train_side_by_side(run: TrainingRun) -> tuple[VariantOutcome, ...]:
    """Train all variants of each seed in turn, from paired starts; the rewritten model of the first seed is `run`'s.

    A run that goes on skips those that are at their end. A model other than `run`'s own that cannot be made or
    trained is a row with the reason.

    Raises:
        BadInput, OutputError: see `train`, for the run's own model.
    """
    state, config = run.directory / STATE, run.config
    variants = VARIANTS if config.compare else (REWRITTEN,)
    if not run.resume:
        shutil.rmtree(state / OTHERS, ignore_errors=True)
        # Before the first member: a run that is killed in it goes on with these.
        begin_state(state, config, run.data)
    else:
        # Members that are at their end do not read them again.
        require_same_data(state, run.data)
    found: dict[str, list[TrainingResult]] = {variant: [] for variant in variants}
    reasons = dict.fromkeys(variants, "")
    for seed, variant in product(range(config.seed, config.seed + config.seeds), variants):
        stage(f"train {variant}, seed {seed}")
        own = (variant, seed) == (REWRITTEN, config.seed)
        try:
            with stages_as_steps():
                found[variant].append(_own(run) if own else _other(run, variant, seed))
        except BadInput as problem:
            if own:
                raise
            reasons[variant] = f"seed {seed}: {first_line(problem)}"
    rows = tuple(_row(variant, found[variant], reasons[variant]) for variant in variants)
    with writing(state):
        (state / COMPARISON).write_text(json.dumps(rows_document(rows), indent=2) + "\n")
    return rows


def rows_document(rows: Sequence[VariantOutcome]) -> list[dict[str, Any]]:
    """The rows of a comparison as they go into a JSON document."""
    return [msgspec.structs.asdict(row) for row in rows]


def _own(run: TrainingRun) -> TrainingResult:
    """Train the run's own model, whose weights may not have come into the artifact before it was stopped."""
    begun = last_whole(run.directory / STATE / CHECKPOINT) is not None
    return train_directory(replace(run, resume=run.resume and begun))


def _other(run: TrainingRun, variant: str, seed: int) -> TrainingResult:
    """Train another model of a comparison, or go on with it, or read what came out."""
    assert run.models is not None
    folder = f"{OTHERS}/{variant}-seed-{seed}"
    done = finished(run.directory, folder) if run.resume else None
    if done is not None:
        return done
    model = run.models.variant(variant, seed, run.result.plan)
    config = run.config.changed(seed=seed, compare=False, seeds=1)
    resume = run.resume and (run.directory / STATE / folder / CHECKPOINT).exists()
    teacher = None if variant == ORIGINAL else run.teacher
    return train_once(model, run.data, config, run.directory, folder=folder, resume=resume, teacher=teacher)


def _row(variant: str, trained: Sequence[TrainingResult], reason: str) -> VariantOutcome:
    names = list(dict.fromkeys(name for run in trained for name in run.figures))
    return VariantOutcome(
        variant,
        parameters=trained[0].parameters if trained else 0,
        figures={name: [run.figures[name] for run in trained] for name in names},
        inputs_per_second=[run.inputs_per_second for run in trained if run.inputs_per_second is not None],
        memory_mib=[run.memory_mib for run in trained if run.memory_mib is not None],
        reason=reason,
    )
