"""`repl-fx train`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from repl_fx.cli import common
from repl_fx.cli.flags import with_flags
from repl_fx.training.config import TrainConfig

if TYPE_CHECKING:
    from repl_fx.training.command import TrainingRun

Found = TypeVar("Found")


@with_flags(TrainConfig)
def train_command(
    spec: common.AnySpecArgument,
    output: common.OutputOption = None,
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
    """Train a rewritten model: a model whose blocks are replaced first, or a directory that transform wrote."""
    with common.running(as_json, verbose, quiet) as terminal:
        with common.needing("train", "train"):
            from repl_fx.training.command import train_directory, train_side_by_side
        from repl_fx.training.comparing import comparison_table, rows_document

        def work(run: TrainingRun) -> tuple[list[Any], dict[str, Any]]:
            if run.config.compare or run.config.seeds > 1:
                rows = train_side_by_side(run, terminal.stage)
                return [comparison_table(rows)], {"comparison": rows_document(rows)}
            trained = train_directory(run, terminal.stage)
            shown = [f"{name}: {value:.4f}" for name, value in trained.figures.items()]
            return shown, {"steps": trained.steps, "figures": trained.figures}

        asked = {"resume": resume, "config_file": config_file, "force": force, "model": model}
        run, (shown, known) = done(terminal, work, spec, output, given, trust_remote_code=trust, **asked)
        terminal.show(*shown, f"written: {run.directory}", f"next:    repl-fx export {run.directory}")
        terminal.document({"directory": str(run.directory), "data": list(run.changes), **known})


def done(
    terminal: common.Terminal, work: Callable[[TrainingRun], Found], *asked: Any, **more: Any
) -> tuple[TrainingRun, Found]:
    """A run and what came out of the work on it; of several processes, in the first alone.

    Args:
        asked, more: see `RunRequest`.

    Raises:
        typer.Exit: in the other processes, and where they did all there is to do.
    """
    from repl_fx.training.command import RunRequest, begin
    from repl_fx.training.processes import Ended, ending_together

    try:
        with ending_together():
            run = begin(RunRequest(*asked, **more, progress=terminal.stage, stdout=terminal.descriptor))
            if run.processes.first:
                terminal.show(*common.note_lines(run.notes), *common.data_lines(run.changes))
            found = work(run)
    except Ended as end:
        raise typer.Exit(int(end.code or 0)) from None
    if not run.processes.first:
        raise typer.Exit
    return run, found
