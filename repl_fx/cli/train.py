"""`repl-fx train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from repl_fx.cli import common
from repl_fx.cli.settings import with_flags
from repl_fx.training.config import TrainConfig


def _commands() -> Any:
    """The functions that need the libraries of the extra."""
    from repl_fx.errors import BadInput

    try:
        from repl_fx.training.command import begin, train_directory
    except ModuleNotFoundError as missing:
        if str(missing.name).startswith("repl_fx"):
            raise
        raise BadInput(f"train needs {missing.name}; pip install 'repl-fx[train]'") from missing
    return begin, train_directory


@with_flags(lambda: TrainConfig)
def train_command(
    spec: common.AnySpecArgument,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Where the artifact goes, for a model.", show_default=False),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run of DIR, with its settings.")] = False,
    config_file: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="Settings in YAML; flags come before them.", show_default=False),
    ] = None,
    every: Annotated[int, typer.Option("--every", metavar="K", help="Replace each K-th block of each repeat.")] = 2,
    surrogate: Annotated[
        str, typer.Option("--surrogate", metavar="KEY", help="What stands in for a replaced block.")
    ] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace an artifact that is there already.")] = False,
    weights: common.WeightsOption = None,
    input_shape: common.ShapeOption = None,
    model: common.ModelOption = None,
    trust: common.TrustOption = False,
    as_json: common.JsonOption = False,
    verbose: common.VerboseOption = False,
    quiet: common.QuietOption = False,
    **given: Any,
) -> None:
    """Train a rewritten model: a model whose blocks are replaced first, or a directory that transform wrote."""
    with common.running(as_json, verbose, quiet) as terminal:
        begin, train_directory = _commands()

        run = begin(
            spec,
            output,
            given,
            config_file=config_file,
            resume=resume,
            every=every,
            surrogate=surrogate,
            force=force,
            weights=weights,
            input_shape=input_shape,
            model=model,
            trust_remote_code=trust,
            progress=terminal.stage,
        )
        terminal.stage("train")
        trained = train_directory(run, show=not (quiet or as_json))
        terminal.show(
            *(f"{name}: {value:.4f}" for name, value in trained.figures.items()),
            f"written: {run.directory}",
            f"next:    repl-fx export {run.directory}",
        )
        terminal.document({"directory": str(run.directory), "steps": trained.steps, "figures": trained.figures})
