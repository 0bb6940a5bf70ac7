"""`repl-fx transform`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repl_fx.cli import common
from repl_fx.cli.flags import Directory, SpecFlags, Switch
from repl_fx.cli.group import CheckFailed
from repl_fx.display.shell import typed
from repl_fx.errors import BadInput
from repl_fx.planning.settings import PlanSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rich.console import RenderableType

    from repl_fx import TransformResult
    from repl_fx.sources import Source
    from repl_fx.tracing.check import CaptureCheck


class TransformFlags(SpecFlags, frozen=True, kw_only=True):
    """Flags of the command.

    Attributes:
        output: Where the artifact goes.
        dry_run: Show what would be done, and write nothing.
        force: Replace an artifact that is there already.
        check: Check that the captured graph equals the model, bit for bit, and that the rewritten one trains.
        in_place: Replace only blocks whose surrogates have a place in the model's tree; save the model in place.
        allow_nan: Take a model with weights that are NaN or infinite, too.
    """

    output: Directory | None = None
    dry_run: Switch = False
    force: Switch = False
    check: bool = True
    in_place: Switch = False
    allow_nan: Switch = False


@common.command(TransformFlags, PlanSettings, without=("model",))
def transform_command(
    terminal: common.Terminal, flags: TransformFlags, spec: common.SpecArgument, **given: Any
) -> None:
    """Replace repeated blocks of a model by light surrogates, and write the result as a directory.

    Examples:
        repl-fx transform model.py -o out
        repl-fx transform timm:vit_tiny_patch16_224 --every 3 --surrogate reuse -o out
        repl-fx transform model.py --budget params=0.7 --dry-run
        repl-fx transform model.py --weights trained.safetensors --blocks 3,5 -o out
    """
    from repl_fx import save, transform
    from repl_fx.sources import load_source

    written = _place(flags)
    settings = PlanSettings().changed(**given)
    options = settings.transform_options()
    terminal.stage("load")
    built: Any = {"trust_remote_code": flags.trust_remote_code, **settings.source_options()}
    source = load_source(spec, seed=flags.seed, device=flags.device, **built)
    _require_values(flags)
    model = source.model, source.args, source.kwargs
    options |= flags.some("seed", "allow_nan", "check", "in_place")
    transformed = partial(transform, *model, **options)
    result, checked = transformed(), None
    if flags.check:
        terminal.stage("check the capture")
        result, checked = _checked(source, result, transformed)
    terminal.stage("measure costs")
    lines, document = _results(source, result, checked, options.get("budget") or {})
    if written is not None:
        terminal.stage("save")
        save(result, written, source=source, force=flags.force)
    terminal.show(*lines)
    if written is None:
        terminal.show("dry run: nothing was written")
    else:
        terminal.show(f"written: {written}", f"next:    repl-fx export {typed(written)}")
    directory = None if written is None else str(written)
    terminal.document({"spec": spec, "directory": directory, **document})


def _place(flags: TransformFlags) -> Path | None:
    """The directory to write to; None for a dry run."""
    from repl_fx.artifact import require_free

    if flags.dry_run:
        return None
    if flags.output is None:
        raise BadInput("no place to write to; give -o DIR, or --dry-run to see what would be done")
    require_free(flags.output, force=flags.force)
    return flags.output


def _require_values(flags: TransformFlags) -> None:
    """Refuse the meta device where values of weights are needed."""
    if flags.device.startswith("meta") and (flags.check or not flags.dry_run):
        raise BadInput(
            "weights on the meta device have no values to check or to write; see what would be done with "
            "--dry-run --no-check, or choose another --device"
        )


def _results(
    source: Source, result: TransformResult, checked: CaptureCheck | None, limits: Mapping[str, float]
) -> tuple[list[RenderableType], dict[str, Any]]:
    """A transform as the terminal shows it, and as data.

    Args:
        checked: the check of the capture; None where there was none.
        limits: of a budget, by cost.
    """
    from repl_fx.costs.counted import flops_of_parts, measure_parts
    from repl_fx.display.comparisons import budget_table
    from repl_fx.finding.repeats import repeats_table
    from repl_fx.planning.budgets import budget_lines, shares_of
    from repl_fx.reporting import documents, tables
    from repl_fx.rewriting.block_reports import blocks_table

    captured, (before, after) = result.captured_parts, result.costs()
    notes, flops = [*source.notes, *captured.notes], flops_of_parts(captured.parts)
    shares = shares_of(result, before, after, limits)
    said = [*tables.grown_lines(before, after), *budget_lines(shares, result.plan.timed_on)]
    if result.in_place.model is not None:
        other = tables.forms_line(after, measure_parts(result.module, captured.parts))
        said += [f"note: {other}"] if other else []
    lines: list[RenderableType] = [
        *common.captured_lines(str(source), captured),
        *captured.sizes,
        *common.note_lines(notes),
        repeats_table(result.repeats, before, flops),
        blocks_table(result.report),
        *common.costs_lines(before, after),
        *([budget_table(shares)] if shares else []),
        tables.placing_line(result.in_place),
        *said,
    ]
    if checked:
        what = "captured graph" if captured.whole else "model with graphs in it"
        modes = "in evaluation and in training" if checked.training else "in evaluation"
        lines.append(f"checked: the {what} equals the model bit for bit, {modes}")
        if not checked.training:
            lines.append("not checked: the model does not run in training mode on its example inputs")
    return lines, {
        "notes": notes,
        "check": None if checked is None else {"evaluation": checked.evaluation, "training": checked.training},
        "parts": documents.parts_document(captured),
        "repeats": documents.repeats_document(result.repeats, before, flops),
        "blocks": documents.blocks_document(result.report, result.plan),
        "not_in_place": [{"block": r.block, "reason": r.reason} for r in result.in_place.refusals],
        "costs": {"before": documents.costs_document(before), "after": documents.costs_document(after)},
        "budget": shares,
        "said": said,
    }


def _checked(
    source: Source, result: TransformResult, again: Callable[[], TransformResult]
) -> tuple[TransformResult, CaptureCheck]:
    """A result whose capture is exact, and the check that passed.

    The model may fail on its own example inputs, which tracing had not noticed. Where a capture with copies of alike
    calls is not exact, one of each call by itself may be.
    """
    from repl_fx import check_capture
    from repl_fx.errors import foreign_code
    from repl_fx.tracing.attempt import each_call_traced
    from repl_fx.tracing.model_checks import misfit

    if result.captured_parts.check is not None:
        return result, result.captured_parts.check
    with foreign_code(lambda problem: misfit(source.model, problem, result.inputs)):
        checked = check_capture(source.model, result.captured, result.args, result.kwargs)
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
