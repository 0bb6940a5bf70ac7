"""`repl-fx transform`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from repl_fx.cli import common
from repl_fx.cli.group import CheckFailed
from repl_fx.cli.settings import with_flags
from repl_fx.planning.settings import PlanSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from repl_fx import TransformResult
    from repl_fx.sources import Source
    from repl_fx.tracing.check import CaptureCheck


@with_flags(PlanSettings)
def transform_command(
    spec: common.SpecArgument,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Where the artifact goes.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an artifact that is there already.")] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check/--no-check",
            help="Check that the captured graph equals the model, bit for bit, and that the rewritten one trains.",
        ),
    ] = True,
    in_place: Annotated[
        bool,
        typer.Option(
            "--in-place",
            help="Replace only blocks whose surrogates have a place in the model's tree; save the model in place.",
        ),
    ] = False,
    allow_nan: Annotated[
        bool, typer.Option("--allow-nan", help="Take a model with weights that are NaN or infinite, too.")
    ] = False,
    seed: common.SeedOption = 0,
    device: common.DeviceOption = "cpu",
    trust: common.TrustOption = False,
    as_json: common.JsonOption = False,
    verbose: common.VerboseOption = False,
    quiet: common.QuietOption = False,
    **given: Any,
) -> None:
    """Replace repeated blocks of a model by light surrogates, and write the result as a directory."""
    with common.running(as_json, verbose, quiet) as terminal:
        from repl_fx import save, transform
        from repl_fx.artifact import require_free
        from repl_fx.costs import counted as costs
        from repl_fx.display.figures import budget_table
        from repl_fx.errors import BadInput
        from repl_fx.finding.repeats import repeats_table
        from repl_fx.planning.budgets import budget_lines, budget_shares, reached
        from repl_fx.report import documents, tables
        from repl_fx.rewriting.blocks_table import blocks_table
        from repl_fx.sources import load_source

        if output is None and not dry_run:
            raise BadInput("no place to write to; give -o DIR, or --dry-run to see what would be done")
        written = None if dry_run else output
        if written is not None:
            require_free(written, force=force)
        settings = PlanSettings().changed(**given)
        options = settings.transform_options()

        terminal.stage("load")
        built = settings.source_options()
        source = load_source(spec, seed=seed, device=device, trust_remote_code=trust, **built)
        if device.startswith("meta") and (check or not dry_run):
            raise BadInput(
                "weights on the meta device have no values to check or to write; see what would be done with "
                "--dry-run --no-check, or choose another --device"
            )
        transformed = partial(
            transform,
            source.model,
            source.args,
            source.kwargs,
            seed=seed,
            allow_nan=allow_nan,
            check=check,
            in_place=in_place,
            progress=terminal.stage,
            **options,
        )
        result, checked = transformed(), None
        if check:
            terminal.stage("check the capture")
            result, checked = _checked(source, result, transformed)
        terminal.stage("measure costs")
        captured = result.captured_parts
        before, after = result.costs()
        flops = costs.flops_of_parts(captured.parts)
        left = reached(before, after, result.plan, captured.parts, result.all_parts)
        shares = budget_shares(options.get("budget") or {}, result.plan, left)
        said = [*tables.grown_lines(before, after), *budget_lines(shares, result.plan.timed_on)]
        if result.in_place.model is not None:
            other = tables.forms_line(after, costs.measure_parts(result.module, captured.parts))
            said += [f"note: {other}"] if other else []
        if written is not None:
            terminal.stage("save")
            save(
                result.model if in_place or settings.checkpoint_blocks else result, written, source=source, force=force
            )

        terminal.show(
            *common.captured_lines(str(source), captured),
            *captured.sizes,
            *common.note_lines((*source.notes, *captured.notes)),
            repeats_table(result.repeats, before, flops),
            blocks_table(result.report),
            *common.costs_lines(before, after),
            *([budget_table(shares)] if shares else []),
            tables.placing_line(result.in_place),
            *said,
        )
        if checked:
            what = "captured graph" if captured.whole else "model with graphs in it"
            modes = "in evaluation and in training" if checked.training else "in evaluation"
            terminal.show(f"checked: the {what} equals the model bit for bit, {modes}")
        if checked and not checked.training:
            terminal.show("not checked: the model does not run in training mode on its example inputs")
        if written is None:
            terminal.show("dry run: nothing was written")
        else:
            terminal.show(f"written: {written}", f"next:    repl-fx export {written}")
        terminal.document(
            {
                "spec": spec,
                "notes": [*source.notes, *captured.notes],
                "directory": None if written is None else str(written),
                "check": None if checked is None else {"evaluation": checked.evaluation, "training": checked.training},
                "parts": documents.parts_document(captured),
                "repeats": documents.repeats_document(result.repeats, before, flops),
                "blocks": documents.blocks_document(result.report, result.plan),
                "not_in_place": [{"block": r.block, "reason": r.reason} for r in result.in_place.refusals],
                "costs": {"before": documents.costs_document(before), "after": documents.costs_document(after)},
                "budget": shares,
                "said": said,
            }
        )


def _checked(
    source: Source, result: TransformResult, again: Callable[[], TransformResult]
) -> tuple[TransformResult, CaptureCheck]:
    """A result whose capture is exact, and the check that passed.

    The model may fail on its own example inputs, which tracing had not noticed. Where a capture with copies of alike
    calls is not exact, one of each call by itself may be.
    """
    from repl_fx import check_capture
    from repl_fx.errors import ForeignError, foreign_code
    from repl_fx.tracing.attempt import each_call_traced
    from repl_fx.tracing.model_checks import misfit

    if result.captured_parts.check is not None:
        return result, result.captured_parts.check
    try:
        with foreign_code():
            checked = check_capture(source.model, result.captured, result.args, result.kwargs)
    except ForeignError as failed:
        raise misfit(source.model, failed.problem, result.inputs) from failed.problem
    if not checked and result.captured_parts.copies:
        with each_call_traced(f"a graph with copies of alike ones differed ({checked.differences[0]})"):
            return _checked(source, again(), again)
    if not checked:
        modes = " and ".join(name for name in ("evaluation", "training") if not getattr(checked, name))
        raise CheckFailed(
            f"the captured graph of {type(source.model).__name__} does not compute what the model computes in {modes} "
            f"mode ({checked.differences[0]}); nothing was written (--no-check goes on all the same)"
        )
    return result, checked
