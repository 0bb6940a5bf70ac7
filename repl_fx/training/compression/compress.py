"""Compress a trained model: from its weights and data to a smaller one, with what each stage did to it.

    score -> plan -> cut and fit -> heal -> export -> verify
               |           |          |
            budget     evaluate    evaluate        and the original, once

Each stage is a part of repl-fx that is usable alone: `inspect --data`, `transform --budget --scores`, `repl_fx.fit`,
`heal`, `export`. A run that was stopped goes on behind the last stage that ended (`stages`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from torch import nn

from repl_fx.artifact import PROOF, load_artifact, require_free, save
from repl_fx.artifact.exporting import OnnxFile, export_artifact
from repl_fx.artifact.manifest import MANIFEST, read_manifest
from repl_fx.display.progress import stage
from repl_fx.display.shell import typed
from repl_fx.errors import BadInput
from repl_fx.fitting.compression import compress
from repl_fx.planning.budgets import budget_lines
from repl_fx.planning.settings import given_among
from repl_fx.reporting.documents import blocks_document, costs_document
from repl_fx.reporting.tables import grown_lines
from repl_fx.sources import Source
from repl_fx.tracing.capture import widen_batch
from repl_fx.tracing.parts.capture_parts import CapturedParts, capture_compared
from repl_fx.tracing.parts.finders import by_options
from repl_fx.tracing.parts.part_repeats import find_in_parts
from repl_fx.training.calibration import calibration, require_loaders, score_on_data
from repl_fx.training.command import RunRequest, begin as begin_training, require_effect, train_directory
from repl_fx.training.compression.stages import CompressionState
from repl_fx.training.data.content import content_of
from repl_fx.training.data.data_set import Data, UserData
from repl_fx.training.healing import with_places
from repl_fx.training.loading import batch_of, changes_of, kept_preprocessing, prepared, purpose_of, read_data
from repl_fx.training.run import CHECKPOINT, STATE, evaluate, require_available
from repl_fx.training.safe_checkpoints import discard_all, last_whole
from repl_fx.training.train_config import CompressConfig, read_config, settings_to_compress
from repl_fx.training.variants import Models

Note = Callable[[Literal["data", "note"], Sequence[str]], None]


@dataclass(frozen=True)
class Compressed:
    """The result of a compression.

    Attributes:
        directory: of the artifact.
        figures: of the original, the cut and the healed model, by name.
        budget: of each cost the limit, the expected and the reached share of the original.
        blocks: the fate of each block, as `blocks_document` has it; none of a run of a version that kept none.
        fits: of each surrogate, what it was fitted on and how near it came; or the reason why none was.
        costs: of the original and of the cut model.
        said: lines on the budget and the costs: how latency was measured, what is not reached, what grew.
        exported: the ONNX files of this run; none where they were there already.
    """

    directory: Path
    figures: dict[str, dict[str, float]]
    budget: dict[str, dict[str, float | None]]
    blocks: list[dict[str, Any]]
    fits: list[dict[str, Any]]
    costs: dict[str, Any]
    said: list[str]
    exported: dict[str, OnnxFile]


@dataclass(frozen=True, eq=False)
class _CompressRun:
    """A run, which knows how its model is built.

    Attributes:
        request: for it, of the model itself where it goes on, too.
        note: see `compress_source`.
    """

    state: CompressionState
    request: RunRequest
    config: CompressConfig
    note: Note

    @property
    def directory(self) -> Path:
        """The directory of the artifact."""
        return self.state.directory


def compress_source(request: RunRequest, note: Note = lambda kind, lines: None) -> Compressed:
    """Compress a trained model, or go on with a compression that was stopped.

    Args:
        request: of a model specification; with `resume`, of the directory of the run.
        note: called with `data` and a line for each change that the data go through, and with `note` and remarks.

    Raises:
        BadInput: options that do not go together, a budget that nobody can meet, data or a model that do not fit.
        ReplFxError: see `transform` and `export_onnx`.
    """
    run = _begun(request, note)
    try:
        if not (request.resume and "cut" in run.state.figures()):
            run = _cut(run)
        if run.config.heal and "healed" not in run.state.figures():
            _heal(run)
        exported = {} if PROOF in read_manifest(run.directory).files else _export(run)
    except BaseException as problem:
        if run.state.begun:
            problem.add_note(f"go on with: repl-fx compress {typed(run.directory)} --resume")
        raise
    known = {"blocks": [], "said": [], **run.state.result()}
    parts: Any = {name: known[name] for name in ("figures", "budget", "blocks", "fits", "costs", "said")}
    return Compressed(run.directory, **parts, exported=exported)


def _begun(request: RunRequest, note: Note) -> _CompressRun:
    spec, output, changes = request.spec, request.output, given_among(request.given)
    if request.resume:
        if output is not None or changes or request.config is not None:
            raise BadInput(
                "--resume goes on with the run of a directory, with its settings; leave out all else: "
                f"repl-fx compress {typed(output or spec)} --resume"
            )
        state = CompressionState(Path(spec))
        begun = state.settings()
        return _CompressRun(state, replace(request, spec=begun.spec), begun.settings, note)
    if output is None:
        raise BadInput("no place to write to; give -o DIR")
    if request.is_artifact:
        raise BadInput(f"{spec} is a directory; give the model itself, or --resume, and leave out -o")
    base = settings_to_compress()
    config = (base if request.config is None else read_config(request.config, base)).changed(**changes)
    if not config.budget:
        raise BadInput("no budget to compress to; give --budget, such as --budget flops=0.75")
    require_effect(changes, config)
    config.planning_options()
    require_available(config)
    state = CompressionState(output)
    if state.begun and not request.force:
        raise BadInput(f"{output} has a compression already; go on with --resume, or begin anew with --force")
    require_free(output, force=request.force)
    return _CompressRun(state, request, config, note)


def _cut(run: _CompressRun) -> _CompressRun:
    """Score, plan, replace, fit, evaluate and save; returns the run, which may have come to other settings."""
    spec, resume, trusted = run.request.spec, run.request.resume, run.request.trust_remote_code
    stage("load data")
    data = read_data(run.config, spec, trust_remote_code=trusted)
    require_loaders(data)
    stage("load")
    models = Models(spec, run.config, trusted, purpose_of(data, run.config, trained=True))
    source = _on_device(models.source(run.config.seed), run.config)
    data = prepared(data, source.preprocessing, run.config)
    run.note("note", source.notes)
    run.note("data", changes_of(data, run.config, training=run.config.heal))
    stage("capture")
    captured = _captured(source, run.config)
    own = models.at_own_batch(captured, batch_of(data, run.config))
    if own is not None:
        # A capture that takes one batch alone is of that of the data.
        assert isinstance(own.config, CompressConfig)  # as they were
        run = replace(run, config=own.config)
        source = _on_device(own.source(run.config.seed), run.config)
        captured = _captured(source, run.config)
        run.note(
            "note", [f"the model is captured at a batch of {source.inputs.batch} alone; what fills none is left out"]
        )
    if resume:
        run.state.require_same_data(data)
    else:
        run.state.begin(spec, run.config, content_of(data))
    try:
        _cut_captured(run, source, data, captured)
    except BadInput:
        if not resume:
            # With these settings it would fail again: nothing to go on with.
            run.state.discard()
        raise
    return run


def _captured(source: Source, config: CompressConfig) -> CapturedParts:
    inputs = widen_batch(source.model, source.inputs)
    return capture_compared(source.model, inputs.args, inputs.kwargs, fixed=config.fixed_names)


def _on_device(source: Source, config: CompressConfig) -> Source:
    """The source where it is evaluated: a model that moves later no longer shares buffers with what is made of it."""
    device = "cuda" if require_available(config) == "gpu" else "cpu"
    inputs = source.inputs.map(lambda tensor: tensor.to(device))
    return replace(source, model=source.model.to(device), args=inputs.args, kwargs=inputs.kwargs)


def _cut_captured(run: _CompressRun, source: Source, data: Data | UserData, captured: CapturedParts) -> None:
    config, state = run.config, run.state
    scores = state.scores()
    if scores is None:
        blocks = config.planning_options().get("blocks") or ()
        found = find_in_parts(captured, by_options(captured, blocks, config.finder))
        repeats = found.own or None
        scores = score_on_data(captured, data, config, config.score, samples=config.samples, repeats=repeats)
        state.write_scores(scores)

    def figures(model: nn.Module) -> dict[str, float]:
        is_original = model is source.model
        if is_original and (known := state.figures().get("original")):
            return cast(dict[str, float], known)
        stage(f"evaluate the {'original' if is_original else 'cut model'}")
        found = evaluate(model, data, config, source.model)
        if is_original:
            state.add(figures={"original": found})
            run.note("note", _near_chance(found, data))
        return found

    batches, _ = calibration(source.model, data, config, config.samples, with_loss=False)
    options: Any = {"args": source.args, "kwargs": source.kwargs, "captured": captured, "scores": scores}
    options |= {"seed": config.seed, "score": config.score, "evaluate": figures}
    options |= {name: value for name, value in config.transform_options().items() if name not in ("plan", "fixed")}
    done = compress(source.model, lambda: (given for given, _ in batches()), **options)
    before, after = done.costs
    source = replace(source, preprocessing=kept_preprocessing(source.preprocessing, data, config))
    save(done.result.model.cpu(), run.directory, source=source, force=(run.directory / MANIFEST).exists())
    state.add(
        figures={"cut": done.figures["cut"]},
        # Healing may still bring back a model of which nothing could be fitted.
        fits=[asdict(one) for one in done.fit.surrogates] if done.fit else [{"reason": done.unfitted}],
        costs={"before": costs_document(before), "after": costs_document(after)},
        budget=done.budget,
        blocks=blocks_document(done.result.report, done.result.plan),
        said=[*budget_lines(done.budget, done.result.plan.timed_on), *grown_lines(before, after)],
    )


# Of what guessing reaches.
_CHANCE = 1.5


def _near_chance(figures: Mapping[str, float], data: Data | UserData) -> list[str]:
    """A warning of an original that has hardly learned its data, as it seems; empty where it has."""
    if not isinstance(data, Data) or data.task != "classification" or not data.has_targets:
        return []
    guessed, found = 1 / data.classes, figures.get("accuracy", 1.0)
    if found > _CHANCE * guessed:
        return []
    return [
        f"the original is right in {found:.1%} of {data.name}, where guessing is in {guessed:.1%}: look whether the "
        "data come to it as in its training, which the lines on data say; then whether its weights are loaded"
    ]


def _heal(run: _CompressRun) -> None:
    directory = run.directory
    # A checkpoint may be that of another run, which this one takes the place of.
    begun = run.state.result().get("healing") and last_whole(directory / STATE / CHECKPOINT) is not None
    options: Any = {"resume": bool(begun), "force": not begun, "trust_remote_code": run.request.trust_remote_code}
    options["defaults"] = run.config.healing()
    training = begin_training(RunRequest(str(directory), None, {}, **options))
    # Between the stages, too: those before were of the data that the run began with.
    run.state.require_same_data(training.data)
    if not begun:
        discard_all(directory / STATE / CHECKPOINT)
        run.state.add(healing=True)
    training = replace(training, config=with_places(training.config, training.model))
    trained = train_directory(training)
    run.state.add(figures={"healed": trained.figures})


def _export(run: _CompressRun) -> dict[str, OnnxFile]:
    stage("load")
    artifact = load_artifact(run.directory, trust_remote_code=run.request.trust_remote_code)
    return export_artifact(artifact)
