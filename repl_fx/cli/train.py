"""`repl-fx train`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from repl_fx.cli import common
from repl_fx.cli.flags import RunFlags
from repl_fx.display.shell import typed
from repl_fx.training.train_config import TrainConfig

if TYPE_CHECKING:
    from repl_fx.training.command import TrainingRun

Found = TypeVar("Found")


@common.command(RunFlags, TrainConfig)
def train_command(terminal: common.Terminal, flags: RunFlags, spec: common.AnySpecArgument, **given: Any) -> None:
    """Train a rewritten model: a model whose blocks are replaced first, or a directory that transform wrote.

    Examples:
        repl-fx train model.py -o out --data digits --epochs 5
        repl-fx train out --data folder:pictures --config train.yaml
        repl-fx train out --resume
        repl-fx train model.py -o out --compare --seeds 3
    """
    with common.needing("train", "train"):
        from repl_fx.training.command import rows_document, train_directory, train_side_by_side
    from repl_fx.reporting.tables import comparison_table

    def work(run: TrainingRun) -> tuple[list[Any], dict[str, Any]]:
        if run.config.compare or run.config.seeds > 1:
            rows = train_side_by_side(run)
            return [comparison_table(rows)], {"comparison": rows_document(rows)}
        trained = train_directory(run)
        return trained.figures_lines, {"steps": trained.steps, "figures": trained.figures}

    run, (shown, known) = in_a_run(terminal, flags, work, spec, given)
    show_run(terminal, run, shown, known)


def in_a_run(
    terminal: common.Terminal,
    flags: RunFlags,
    work: Callable[[TrainingRun], Found],
    spec: str,
    given: dict[str, Any],
    **more: Any,
) -> tuple[TrainingRun, Found]:
    """The run that the flags ask for, and what the work on it made; of several processes, in the first alone.

    Args:
        spec, given, more: see `RunRequest`.

    Raises:
        typer.Exit: in the other processes, and where they did all the work.
    """
    from repl_fx.training.command import RunRequest, begin, gone_where_refused
    from repl_fx.training.processes import Ended, ending_together

    asked = flags.some("output", "config", "resume", "force", "model", "trust_remote_code")
    try:
        with ending_together():
            run = begin(RunRequest(spec, given=given, stdout=terminal.descriptor, **asked, **more))
            if run.processes.first:
                terminal.show(*common.note_lines(run.notes), *common.data_lines(run.changes))
            with gone_where_refused(run):
                found = work(run)
    except Ended as end:
        raise typer.Exit(int(end.code or 0)) from None
    if not run.processes.first:
        raise typer.Exit
    return run, found


def show_run(terminal: common.Terminal, run: TrainingRun, shown: list[Any], known: dict[str, Any]) -> None:
    """Show what a run made, and where it is."""
    terminal.show(*shown, f"written: {run.directory}", f"next:    repl-fx export {typed(run.directory)}")
    terminal.document({"directory": str(run.directory), "data": list(run.changes), **known})
