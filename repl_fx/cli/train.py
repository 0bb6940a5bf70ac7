"""`repl-fx train`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from repl_fx.cli import common
from repl_fx.cli.flags import with_flags
from repl_fx.training.config import TrainConfig


def _commands() -> Any:
    """The functions that need the libraries of the extra."""
    with common.needing("train", "train"):
        from repl_fx.training.command import begin, train_directory, train_side_by_side
        from repl_fx.training.processes import Ended, ending_together
    return begin, train_directory, train_side_by_side, Ended, ending_together


@with_flags(TrainConfig)
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
    force: Annotated[bool, typer.Option("--force", help="Replace an artifact that is there already.")] = False,
    model: common.ModelOption = None,
    trust: common.TrustOption = False,
    as_json: common.JsonOption = False,
    verbose: common.VerboseOption = False,
    quiet: common.QuietOption = False,
    **given: Any,
) -> None:
    """Train a rewritten model: a model whose blocks are replaced first, or a directory that transform wrote.

    Examples:
        repl-fx train model.py -o out --data digits --epochs 5
        repl-fx train out --data folder:pictures --config train.yaml
        repl-fx train out --resume
        repl-fx train model.py -o out --compare --seeds 3
    """
    # Of several processes the first one shows what there is to show.
    quiet = quiet or os.environ.get("RANK", "0") != "0"
    with common.running(as_json, verbose, quiet) as terminal:
        begin, train_directory, train_side_by_side, ended, ending_together = _commands()
        from repl_fx.training.comparing import comparison_table, rows_document

        try:
            with ending_together():
                run = begin(
                    spec,
                    output,
                    given,
                    config_file=config_file,
                    resume=resume,
                    force=force,
                    model=model,
                    trust_remote_code=trust,
                    progress=terminal.stage,
                    stdout=terminal.descriptor,
                )
                if run.processes.first:
                    terminal.show(*common.note_lines(run.notes), *common.data_lines(run.changes))
                show = not (quiet or as_json)
                if run.config.compare or run.config.seeds > 1:
                    rows = train_side_by_side(run, show=show, progress=terminal.stage)
                    shown: list[Any] = [comparison_table(rows)]
                    figures: dict[str, Any] = {"comparison": rows_document(rows)}
                else:
                    trained = train_directory(run, show=show, progress=terminal.stage)
                    shown = [f"{name}: {value:.4f}" for name, value in trained.figures.items()]
                    figures = {"steps": trained.steps, "figures": trained.figures}
        except ended as end:
            raise typer.Exit(end.code) from None
        if not run.processes.first:
            return
        terminal.show(*shown, f"written: {run.directory}", f"next:    repl-fx export {run.directory}")
        terminal.document({"directory": str(run.directory), "data": list(run.changes), **figures})
