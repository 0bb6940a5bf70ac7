"""`repl-fx heal`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from repl_fx.cli import common
from repl_fx.cli.completion import complete_artifact
from repl_fx.cli.flags import with_flags
from repl_fx.training.config import HEALING, NOT_TO_HEAL, TrainConfig


@with_flags(TrainConfig, without=NOT_TO_HEAL, defaults=HEALING)
def heal_command(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="A directory that transform wrote.",
            show_default=False,
            autocompletion=complete_artifact,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Where the healed model goes.  [default: DIR itself]"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run of DIR, with its settings.")] = False,
    config_file: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="Settings in YAML; flags come before them.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a run or an artifact that is there already.")] = False,
    model: common.ModelOption = None,
    trust: common.TrustOption = False,
    as_json: common.JsonOption = False,
    verbose: common.VerboseOption = False,
    quiet: common.QuietOption = False,
    **given: Any,
) -> None:
    """Train a model that was cut against the original: its logits and values, and the targets where there are some."""
    quiet = quiet or os.environ.get("RANK", "0") != "0"
    with common.running(as_json, verbose, quiet) as terminal:
        with common.needing("train", "heal"):
            from repl_fx.training.command import begin
            from repl_fx.training.healing import heal_directory, settings_to_heal
            from repl_fx.training.processes import Ended, ending_together
        from repl_fx.artifact.manifest import read_manifest
        from repl_fx.display.comparisons import figures_table

        # A model that was not cut has nothing to heal.
        read_manifest(directory)
        try:
            with ending_together():
                run = begin(
                    str(directory),
                    output,
                    given,
                    config_file=config_file,
                    resume=resume,
                    force=force,
                    model=model,
                    trust_remote_code=trust,
                    defaults=settings_to_heal(),
                    progress=terminal.stage,
                    stdout=terminal.descriptor,
                )
                if run.processes.first:
                    terminal.show(*common.data_lines(run.changes))
                healed = heal_directory(run, show=not (quiet or as_json), progress=terminal.stage)
        except Ended as end:
            raise typer.Exit(int(end.code or 0)) from None
        if not run.processes.first:
            return
        terminal.show(figures_table(healed.figures))
        terminal.show(f"written: {run.directory}", f"next:    repl-fx export {run.directory}")
        known = {"directory": str(run.directory), "data": list(run.changes)}
        terminal.document({**known, "steps": healed.trained.steps, "figures": healed.figures})
