"""`repl-fx heal`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from repl_fx.cli import common
from repl_fx.cli.completion import complete_artifact
from repl_fx.cli.flags import with_flags
from repl_fx.cli.train import done
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
    resume: common.ResumeOption = False,
    config_file: common.ConfigOption = None,
    force: common.ForceOption = False,
    model: common.ModelOption = None,
    trust: common.TrustOption = False,
    as_json: common.JsonOption = False,
    verbose: common.VerboseOption = False,
    quiet: common.QuietOption = False,
    **given: Any,
) -> None:
    """Train a model that was cut against the original: its logits and values, and the targets where there are some."""
    with common.running(as_json, verbose, quiet) as terminal:
        with common.needing("train", "heal"):
            from repl_fx.training.command import heal_directory
            from repl_fx.training.healing import settings_to_heal
        from repl_fx.artifact.manifest import read_manifest
        from repl_fx.display.comparisons import figures_table

        # A model that was not cut has nothing to heal.
        read_manifest(directory)
        asked: Any = {"resume": resume, "config_file": config_file, "force": force, "model": model}
        asked |= {"trust_remote_code": trust, "defaults": settings_to_heal()}
        work = partial(heal_directory, progress=terminal.stage)
        run, healed = done(terminal, work, str(directory), output, given, **asked)
        terminal.show(figures_table(healed.figures))
        terminal.show(f"written: {run.directory}", f"next:    repl-fx export {run.directory}")
        known = {"directory": str(run.directory), "data": list(run.changes)}
        terminal.document({**known, "steps": healed.trained.steps, "figures": healed.figures})
