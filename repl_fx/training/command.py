"""From a specification or a directory to a run, and from its end back to the artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from repl_fx.artifact import built_like, load_artifact, require_free, save
from repl_fx.errors import BadInput
from repl_fx.pipeline import TransformResult, transform
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.sources import Source, load_source
from repl_fx.training.config import TrainConfig, read_config
from repl_fx.training.data import load_data
from repl_fx.training.data.kinds import Data, UserData
from repl_fx.training.run import CHECKPOINT, STATE, Trained, settings_of, train
from repl_fx.training.schedules import require_schedule, train_in_phases


@dataclass(frozen=True, eq=False)
class Run:
    """A run that can begin.

    Attributes:
        directory: of the artifact, which has the model as it is before.
        resume: whether to go on from the last checkpoint.
        source: how the model is built; None for an artifact, which knows.
        result: of the transform.
    """

    directory: Path
    model: nn.Module
    data: Data | UserData
    config: TrainConfig
    resume: bool
    source: Source | None = None
    result: TransformResult | None = None


def begin(
    spec: str,
    output: Path | None,
    given: Mapping[str, Any],
    *,
    config_file: Path | None = None,
    resume: bool = False,
    every: int = 2,
    surrogate: str = "auto",
    force: bool = False,
    weights: Path | None = None,
    input_shape: str | None = None,
    model: str | None = None,
    trust_remote_code: bool = False,
    progress: Callable[[str], None] = lambda stage: None,
) -> Run:
    """Make a run of a model, which is transformed first, or of an artifact.

    Args:
        spec: a specification, or the directory of an artifact.
        output: the directory of the run; the artifact's own by default.
        given: settings that were given as flags; None for those that were not.
        config_file: settings that flags come before.
        resume: go on with the run of the directory.
        every, surrogate, weights, input_shape, model, trust_remote_code: see `transform`, `load_source`, `load`.
        force: replace the artifact at `output`.
        progress: called with the name of each stage as it begins.

    Raises:
        BadInput: options that do not go together, settings that are none, data or a model that cannot be read.
        ReplFxError: see `transform` and `load`.
    """
    is_artifact = Path(spec).is_dir()
    changes = {name: value for name, value in given.items() if value is not None}
    if resume:
        if not is_artifact or output is not None:
            raise BadInput("--resume goes on with the run of a directory, in that directory; leave out -o")
        if changes or config_file is not None:
            named = "--config" if config_file is not None else f"--{next(iter(changes)).replace('_', '-')}"
            raise BadInput(f"--resume goes on with the settings in {spec}/{STATE}; leave out {named}")
        config = settings_of(Path(spec))
    else:
        config = (TrainConfig() if config_file is None else read_config(config_file)).changed(**changes)
    if is_artifact and output is None and not (resume or force) and (Path(spec) / STATE / CHECKPOINT).exists():
        raise BadInput(f"{spec} has a run already; go on with --resume, give -o DIR, or replace the run with --force")
    if not is_artifact and output is None:
        raise BadInput("no place to write to; give -o DIR")
    if output is not None:
        require_free(output, force=force)
    if is_artifact and not resume and config.replace_at is not None:
        raise BadInput(f"replace_at begins with whole blocks, and in {spec} they are gone; give the model itself")
    progress("load")
    if is_artifact:
        loaded = load_artifact(spec, model, trust_remote_code=trust_remote_code)
        if not resume:
            require_schedule(config, loaded.result)
        rewritten = loaded.model if loaded.result.in_place.model is not None else loaded.module
        data = _data(config, loaded.inputs, progress)
        if output is not None:
            save(rewritten, output, force=force)
        return Run(output or Path(spec), rewritten, data, config, resume, result=loaded.result)
    assert output is not None
    source = load_source(
        spec, input_shape=input_shape, seed=config.seed, trust_remote_code=trust_remote_code, weights=weights or True
    )
    # What is not there should not cost a capture.
    data = _data(config, source.inputs, progress)
    result = transform(
        source.model, source.args, source.kwargs, every=every, surrogate=surrogate, seed=config.seed, progress=progress
    )
    require_schedule(config, result)
    save(result.model, output, source=source, force=force)
    return Run(output, result.model, data, config, resume, source, result)


def _data(config: TrainConfig, inputs: ExampleInputs, progress: Callable[[str], None]) -> Data | UserData:
    """The data of the settings; pictures that are read file by file, in the size that the model is given."""
    progress("load data")
    shape = inputs.tensors[0].shape if inputs.tensors else ()
    return load_data(
        config.data,
        root=None if config.data_dir is None else Path(config.data_dir),
        download=config.download,
        context=config.context,
        size=int(shape[-1]) if len(shape) == 4 else None,
    )


def train_directory(run: Run, *, show: bool = False) -> Trained:
    """Train, and put the trained weights into the artifact; see `train`."""
    options: Any = {"resume": run.resume, "show": show}
    if run.config.is_scheduled and run.result is not None:
        trained, model = train_in_phases(run.result, run.data, run.config, run.directory, **options)
        built_like(model, run.model)
    else:
        trained, model = train(run.model, run.data, run.config, run.directory, **options), run.model
    save(model.cpu(), run.directory, source=run.source, force=True)
    return trained
