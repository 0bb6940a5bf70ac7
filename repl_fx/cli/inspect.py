"""`repl-fx inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from repl_fx.cli import common
from repl_fx.cli.flags import with_flags
from repl_fx.cli.report import page_renderer, report_document
from repl_fx.planning.settings import ModelSettings, given_among
from repl_fx.training.config import READING, TrainConfig

if TYPE_CHECKING:
    from repl_fx.costs.counted import Costs
    from repl_fx.report.model_graph.document import Document
    from repl_fx.sources import Purpose
    from repl_fx.tracing.parts.capture import CapturedParts
    from repl_fx.tracing.parts.origin import Preprocessing
    from repl_fx.training.data.kinds import Data, UserData

# Sections of the help.
_SCORES, _PICTURES = "Scores of trained blocks", "Pictures"

ScoreOption = Annotated[
    Literal["influence", "change", "gradient", "loss"],
    typer.Option(
        "--score",
        help="The score that is drawn; gradient and loss need targets.",
        rich_help_panel=_SCORES,
    ),
]
SamplesOption = Annotated[
    int,
    typer.Option(
        "--samples",
        min=1,
        help="Samples to score on, at most.",
        rich_help_panel=_SCORES,
    ),
]
GreedyOption = Annotated[
    int,
    typer.Option(
        "--greedy", min=0, help="With --score loss: blocks to skip one after the other.", rich_help_panel=_SCORES
    ),
]

HtmlOption = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="FILE",
        help="Write the page of `repl-fx report`, too.",
        show_default=False,
        rich_help_panel=_PICTURES,
    ),
]
SvgOption = Annotated[
    Path | None,
    typer.Option(
        "--svg",
        metavar="FILE",
        help="Write a picture of the model: repeats as stacks, one block opened.",
        show_default=False,
        rich_help_panel=_PICTURES,
    ),
]
DotOption = Annotated[
    Path | None,
    typer.Option(
        "--dot",
        metavar="FILE",
        help="Write the same picture for Graphviz.",
        show_default=False,
        rich_help_panel=_PICTURES,
    ),
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Replace the files of pictures if they exist.", rich_help_panel=_PICTURES)
]


@with_flags(
    TrainConfig,
    without={*TrainConfig.__struct_fields__} - {*READING, *ModelSettings.__struct_fields__},
    defaults={"data": None},
)
def inspect_command(
    spec: common.AnySpecArgument,
    model: common.ModelOption = None,
    seed: common.SeedOption = 0,
    blocks: Annotated[
        str | None,
        typer.Option(
            "--blocks",
            metavar="PATTERN",
            help="Show the modules that a pattern names as a repeat, such as layers.*, in place of what is found.",
            show_default=False,
        ),
    ] = None,
    finder: common.FinderOption = None,
    score: ScoreOption = "influence",
    samples: SamplesOption = 256,
    greedy: GreedyOption = 0,
    html: HtmlOption = None,
    svg: SvgOption = None,
    dot: DotOption = None,
    force: ForceOption = False,
    device: common.DeviceOption = "cpu",
    trust: common.TrustOption = False,
    as_json: common.JsonOption = False,
    verbose: common.VerboseOption = False,
    quiet: common.QuietOption = False,
    **given: Any,
) -> None:
    """Show what repeats in a model, with sizes and costs; for a directory, also what was replaced in it.

    With --data, show which blocks matter least, too. With --html, --svg or --dot, draw it.
    """
    with common.running(as_json, verbose, quiet) as terminal:
        import msgspec

        from repl_fx import capture_parts
        from repl_fx.costs import counted as costs
        from repl_fx.finding.repeats import repeats_table
        from repl_fx.report import documents, tables
        from repl_fx.tracing.parts.finders import by_options
        from repl_fx.tracing.parts.part_repeats import find_in_parts, own_inside, repeats_of

        reading = {name: given.pop(name) for name in READING}
        data = reading["data"]
        _require_scorable(spec, data, score, greedy)
        patterns = _patterns(spec, blocks, finder)
        pictures = [file for file in (html, svg, dot) if file is not None]
        if pictures:
            render_page = page_renderer("inspect --html, --svg and --dot")
        for file in pictures:
            common.require_free_file(file, force=force)
        purpose = None
        if data is not None:
            # What is not there should not cost a capture, and the model is called as the data want it.
            terminal.stage("load data")
            samples_from, config, purpose = _samples(spec, trust=trust, seed=seed, **reading)
        terminal.stage("load")
        settings = ModelSettings().changed(**given)
        target = common.load_target(spec, model, settings, seed=seed, device=device, trust=trust, purpose=purpose)
        found_in_parts = None
        if target.artifact is not None:
            captured, repeats = target.artifact.result.captured_parts, target.artifact.result.repeats
        else:
            terminal.stage("capture")
            captured = capture_parts(target.module, target.inputs.args, target.inputs.kwargs, fixed=target.fixed)
            terminal.stage("find repeats")
            found_in_parts = find_in_parts(captured, by_options(captured, patterns, finder))
            repeats = repeats_of(found_in_parts)
        terminal.stage("measure costs")
        after = None
        if target.artifact is None:
            before = costs.measure_form(captured.source, captured.module, captured.parts)
        else:
            before, after = target.artifact.result.costs()
        flops = costs.flops_of_parts(captured.parts)

        document: dict[str, Any] = {
            "spec": spec,
            "notes": [*target.notes, *captured.notes],
            "parts": documents.parts_document(captured),
            "repeats": documents.repeats_document(repeats, before, flops),
        }
        terminal.show(
            *common.captured_lines(target.title, captured), *common.note_lines((*target.notes, *captured.notes))
        )
        terminal.show(tables.sizes_table(captured))
        terminal.show(repeats_table(repeats, before, flops) if repeats else "nothing repeats in this model")
        document |= _shown_costs(terminal, target, before, after)
        if data is not None:
            options: Any = {"samples": samples, "greedy": greedy, "repeats": own_inside(found_in_parts or ())}
            document |= _shown_scores(terminal, captured, samples_from, target.preprocessing, config, score, **options)
        if pictures:
            shown = report_document(target, spec, terminal, captured, found_in_parts)
            if "scores" in document:
                shown = msgspec.structs.replace(shown, scores=document["scores"])
            terminal.stage("draw")
            if html is not None:
                common.write_whole(html, render_page(shown))
            _draw(shown, svg, dot)
            terminal.show(*(f"written: {file}" for file in pictures))
            document["written"] = [str(file) for file in pictures]
        terminal.document(document)


def _require_scorable(spec: str, data: str | None, score: str, greedy: int) -> None:
    """Refuse options of scores that do not go together."""
    from repl_fx.errors import BadInput

    if data is None and (score != "influence" or greedy):
        raise BadInput("--score and --greedy need data to run the model on; give --data")
    if greedy and score != "loss":
        raise BadInput("--greedy skips blocks by the loss; give --score loss")
    if data is not None and Path(spec).is_dir():
        raise BadInput(f"{spec} has blocks replaced, which cannot be scored any more; give the model itself")


def _patterns(spec: str, blocks: str | None, finder: str | None) -> list[str | int]:
    """The patterns of `--blocks`; refuses it and the finder where the repeats are known or cannot be found so."""
    from repl_fx.errors import BadInput
    from repl_fx.planning.written_options import parse_blocks
    from repl_fx.tracing.parts.finders import finder_of, without_patterns

    patterns = parse_blocks(blocks) if blocks is not None else []
    if without_patterns(patterns):
        raise BadInput(f"--blocks {blocks!r} names no repeat; give a pattern of module names, such as layers.*")
    if (patterns or finder) and Path(spec).is_dir():
        raise BadInput(f"{spec} has the repeats that it was made with; leave out --blocks and --finder")
    if finder is not None:
        finder_of(finder)
    return patterns


def _samples(
    spec: str, *, trust: bool, seed: int, **reading: Any
) -> tuple[Data | UserData, TrainConfig, Purpose | None]:
    """The data to score on, the settings that they were read by, and what a model is called with for them."""
    with common.needing("train", "inspect --data"):
        from repl_fx.training.calibration import require_loaders
        from repl_fx.training.loading import purpose_of, read_data
    config = TrainConfig().changed(seed=seed, **given_among(reading))
    samples = read_data(config, spec, trust_remote_code=trust)
    require_loaders(samples)
    return samples, config, purpose_of(samples, config, trained=True)


def _shown_costs(
    terminal: common.Terminal, target: common.Target, before: Costs, after: Costs | None
) -> dict[str, Any]:
    """Show the costs of a model, for a directory before and after, and give them as data."""
    from repl_fx.report import documents, tables

    if target.artifact is None or after is None:
        terminal.show(*common.costs_lines(before))
        return {"costs": documents.costs_document(before)}
    from repl_fx.rewriting.blocks_table import blocks_table

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
    preprocessing: Preprocessing | None,
    config: TrainConfig,
    score: Literal["influence", "change", "gradient", "loss"],
    **options: Any,
) -> dict[str, Any]:
    """Score the blocks of a model, show the scores, and give them as data."""
    from repl_fx.report import charts, documents, figures, tables
    from repl_fx.training.calibration import score_on_data
    from repl_fx.training.loading import changes_of, prepared

    data = prepared(data, preprocessing, config)
    changes = list(changes_of(data, config, training=False))
    terminal.show(*common.data_lines(changes))
    found = score_on_data(captured, data, config, score, progress=terminal.stage, **options)
    chart = charts.chart_of(figures.scores_figures(found, score))
    terminal.show(str(found), tables.scores_table(found), chart)
    return {"data": changes, "scores": documents.scores_document(found)}


def _draw(shown: Document, svg: Path | None, dot: Path | None) -> None:
    """Write the pictures of a model, after its transform where it was transformed."""
    from repl_fx.report.pictures.dot import dot_of
    from repl_fx.report.pictures.folded import fold_document
    from repl_fx.report.pictures.svg import svg_of

    folded = fold_document(shown)
    for file, text_of in ((svg, svg_of), (dot, dot_of)):
        if file is not None:
            common.write_whole(file, text_of(folded))
