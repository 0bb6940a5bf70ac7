"""`repl-fx inspect`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from msgspec import Meta

from repl_fx.cli import common
from repl_fx.cli.flags import File, Sections, SpecFlags, Switch
from repl_fx.cli.report import report_on, require_renderer
from repl_fx.errors import BadInput
from repl_fx.planning.settings import ModelSettings, given_among
from repl_fx.training.train_config import READING, TrainConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from repl_fx.costs.counted import Costs
    from repl_fx.finding.blocks import Repeat
    from repl_fx.reporting.report import Report
    from repl_fx.sources import Purpose
    from repl_fx.tracing.parts.capture_parts import CapturedParts
    from repl_fx.training.data.data_set import Data, UserData


class InspectFlags(SpecFlags, frozen=True, kw_only=True):
    """Flags of the command.

    Attributes:
        blocks: Show the modules that a pattern names as a repeat, such as layers.*, in place of what is found.
        finder: Take the repeats from this finder of an installed package.
        score: The score that is drawn; gradient and loss need targets.
        samples: Samples to score on, at most.
        greedy: With --score loss: blocks to skip one after the other.
        html: Write the page of `repl-fx report`, too.
        svg: Write a picture of the model: repeats as stacks, one block opened.
        dot: Write the same picture for Graphviz.
        force: Replace the files of pictures if they exist.
    """

    blocks: Annotated[str, "PATTERN"] | None = None
    finder: Annotated[str, "NAME"] | None = None
    score: Literal["influence", "change", "gradient", "loss"] = "influence"
    samples: Annotated[int, Meta(ge=1)] = 256
    greedy: Annotated[int, Meta(ge=0)] = 0
    html: File | None = None
    svg: File | None = None
    dot: File | None = None
    force: Switch = False

    sections: ClassVar[Sections] = {
        **SpecFlags.sections,
        "Scores of trained blocks": ("score", "samples", "greedy"),
        "Pictures": ("html", "svg", "dot", "force"),
    }


@common.command(
    InspectFlags,
    TrainConfig,
    without={*TrainConfig.__struct_fields__}
    - {*READING, *ModelSettings.__struct_fields__, *InspectFlags.__struct_fields__},
    defaults={"data": None},
)
def inspect_command(terminal: common.Terminal, flags: InspectFlags, spec: common.AnySpecArgument, **given: Any) -> None:
    """Show what repeats in a model, with sizes and costs; for a directory, also what was replaced in it.

    With --data, show which blocks matter least, too. With --html, --svg or --dot, draw it.

    Examples:
        repl-fx inspect model.py --input-shape 2x3x32x32
        repl-fx inspect timm:resnet50
        repl-fx inspect out --json
        repl-fx inspect model.py --weights trained.safetensors --data digits
        repl-fx inspect out --svg out.svg
    """
    from repl_fx import capture_parts
    from repl_fx.costs import counted as costs
    from repl_fx.finding.repeats import repeats_table
    from repl_fx.reporting import documents, tables
    from repl_fx.tracing.parts.finders import by_options
    from repl_fx.tracing.parts.part_repeats import find_in_parts

    reading = {name: given.pop(name) for name in READING}
    scored = reading["data"] is not None
    _require_scorable(spec, flags, scored=scored)
    patterns = _patterns(spec, flags)
    pictures = _pictures(flags, spec)
    purpose = None
    if scored:
        # What is not there should not cost a capture, and the model is called as the data want it.
        terminal.stage("load data")
        samples_from, config, purpose = _samples(spec, flags, reading)
    terminal.stage("load")
    target = common.load_target(spec, flags, ModelSettings().changed(**given), purpose=purpose)
    if target.artifact is None:
        terminal.stage("capture")
        captured = capture_parts(target.module, target.inputs.args, target.inputs.kwargs, fixed=target.fixed)
        terminal.stage("find repeats")
        found = find_in_parts(captured, by_options(captured, patterns, flags.finder))
        repeats = found.repeats
        terminal.stage("measure costs")
        before, after = costs.measure_form(captured.source, captured.module, captured.parts), None
    else:
        captured, repeats, found = target.artifact.result.captured_parts, target.artifact.result.repeats, None
        terminal.stage("measure costs")
        before, after = target.artifact.result.costs()
    flops = costs.flops_of_parts(captured.parts)

    document: dict[str, Any] = {
        "spec": spec,
        "notes": [*target.notes, *captured.notes],
        "parts": documents.parts_document(captured),
        "repeats": documents.repeats_document(repeats, before, flops),
    }
    terminal.show(*common.captured_lines(target.title, captured), *common.note_lines((*target.notes, *captured.notes)))
    terminal.show(tables.sizes_table(captured))
    terminal.show(repeats_table(repeats, before, flops) if repeats else "nothing repeats in this model")
    document |= _shown_costs(terminal, target, before, after)
    if scored:
        from repl_fx.training.loading import prepared

        samples_from = prepared(samples_from, target.preprocessing, config)
        inside = None if found is None else found.own or None
        document |= _shown_scores(terminal, captured, samples_from, config, flags, inside)
    if pictures:
        report = report_on(target, spec, terminal, found)
        terminal.stage("draw")
        _draw(report, document.get("scores"), flags)
        terminal.show(*(f"written: {file}" for file in pictures))
        document["written"] = [str(file) for file in pictures]
    terminal.document(document)


def _pictures(flags: InspectFlags, spec: str) -> list[Path]:
    """The files of pictures that are asked for; refused where they cannot be drawn or are there already."""
    files = [file for file in (flags.html, flags.svg, flags.dot) if file is not None]
    if files:
        require_renderer("inspect --html, --svg and --dot")
    for file in files:
        common.require_free_file(file, force=flags.force, read=spec)
    return files


def _require_scorable(spec: str, flags: InspectFlags, *, scored: bool) -> None:
    """Refuse options of scores that do not go together."""
    if not scored and (flags.score != "influence" or flags.greedy):
        raise BadInput("--score and --greedy need data to run the model on; give --data")
    if flags.greedy and flags.score != "loss":
        raise BadInput("--greedy skips blocks by the loss; give --score loss")
    if scored and Path(spec).is_dir():
        raise BadInput(f"{spec} has blocks replaced, which cannot be scored any more; give the model itself")


def _patterns(spec: str, flags: InspectFlags) -> list[str | int]:
    """The patterns of `--blocks`; refuses it and the finder where the repeats are known or cannot be found so."""
    from repl_fx.planning.written_options import parse_blocks
    from repl_fx.tracing.parts.finders import finder_of, without_patterns

    patterns = parse_blocks(flags.blocks) if flags.blocks is not None else []
    if without_patterns(patterns):
        raise BadInput(f"--blocks {flags.blocks!r} names no repeat; give a pattern of module names, such as layers.*")
    if (patterns or flags.finder) and Path(spec).is_dir():
        raise BadInput(f"{spec} has the repeats that it was made with; leave out --blocks and --finder")
    if flags.finder is not None:
        finder_of(flags.finder)
    return patterns


def _samples(
    spec: str, flags: InspectFlags, reading: Mapping[str, Any]
) -> tuple[Data | UserData, TrainConfig, Purpose | None]:
    """The data to score on, the settings that they were read by, and what a model is called with for them."""
    with common.needing("train", "inspect --data"):
        from repl_fx.training.calibration import require_loaders
        from repl_fx.training.loading import purpose_of, read_data
    config = TrainConfig().changed(seed=flags.seed, **given_among(reading))
    samples = read_data(config, spec, trust_remote_code=flags.trust_remote_code)
    require_loaders(samples)
    return samples, config, purpose_of(samples, config, trained=True)


def _shown_costs(
    terminal: common.Terminal, target: common.Target, before: Costs, after: Costs | None
) -> dict[str, Any]:
    """Show the costs of a model, for a directory before and after, and give them as data."""
    from repl_fx.reporting import documents, tables

    if target.artifact is None or after is None:
        terminal.show(*common.costs_lines(before))
        return {"costs": documents.costs_document(before)}
    from repl_fx.rewriting.block_reports import blocks_table

    done = target.artifact.result.report
    terminal.show(blocks_table(done), *common.costs_lines(before, after), *tables.grown_lines(before, after))
    return {
        "costs": {"before": documents.costs_document(before), "after": documents.costs_document(after)},
        "blocks": documents.blocks_document(done, target.artifact.plan),
    }


def _shown_scores(
    terminal: common.Terminal,
    captured: CapturedParts,
    data: Data | UserData,
    config: TrainConfig,
    flags: InspectFlags,
    repeats: Sequence[Repeat] | None,
) -> dict[str, Any]:
    """Score the blocks of a model, show the scores, and give them as data."""
    from repl_fx.reporting import documents, figures, tables, terminal_charts
    from repl_fx.training.calibration import score_on_data
    from repl_fx.training.loading import changes_of

    changes = list(changes_of(data, config, training=False))
    terminal.show(*common.data_lines(changes))
    options: Any = {"samples": flags.samples, "greedy": flags.greedy, "repeats": repeats}
    found = score_on_data(captured, data, config, flags.score, **options)
    chart = terminal_charts.chart_of(figures.scores_figures(found, flags.score))
    terminal.show(str(found), tables.scores_table(found), chart)
    return {"data": changes, "scores": documents.scores_document(found)}


def _draw(report: Report, scores: Mapping[str, Any] | None, flags: InspectFlags) -> None:
    """Write the pictures of a model with the scores of its blocks, after its transform where it was transformed."""
    import msgspec

    from repl_fx.reporting.pictures.dot import dot_of
    from repl_fx.reporting.pictures.folded import fold_document
    from repl_fx.reporting.pictures.svg import svg_of

    if scores is not None:
        report = replace(report, document=msgspec.structs.replace(report.document, scores=scores))
    if flags.html is not None:
        common.write_whole(flags.html, report.page)
    folded = fold_document(report.document)
    for file, text_of in ((flags.svg, svg_of), (flags.dot, dot_of)):
        if file is not None:
            common.write_whole(file, text_of(folded))
