"""`repl-fx bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta

from repl_fx.cli import common
from repl_fx.cli.flags import File, SpecFlags, Switch
from repl_fx.planning.settings import PlanSettings

if TYPE_CHECKING:
    from repl_fx import TransformResult
    from repl_fx.artifact import Artifact


class BenchFlags(SpecFlags, frozen=True, kw_only=True):
    """Flags of the command.

    Attributes:
        output: The JSON file to write.  [default: DIR/bench.json]
        only: Measure one of the two alone.
        rounds: Repetitions of each variant, which take turns.
        warm_up: Repetitions before those.
        batch: Inputs of a training step; by default those of the example inputs.
        batch_sizes: Inputs of a call in inference.  [default: 1 and that of --batch]
        compile: Measure inference by torch.compile, too.
        onnx: Measure inference by ONNX Runtime, too.
        force: Replace the FILE of -o if it exists.
    """

    output: File | None = None
    only: Literal["training", "inference"] | None = None
    rounds: Annotated[int, Meta(ge=1)] = 10
    warm_up: Annotated[int, Meta(ge=0)] = 2
    batch: Annotated[int, Meta(ge=1)] | None = None
    batch_sizes: Annotated[str, "LIST"] | None = None
    compile: bool = True
    onnx: bool = True
    force: Switch = False


@common.command(BenchFlags, PlanSettings)
def bench_command(terminal: common.Terminal, flags: BenchFlags, spec: common.AnySpecArgument, **given: Any) -> None:
    """Measure a rewritten model next to the original, to depth pruning and to activation checkpointing: time, memory
    and throughput of a training step, and latency of inference. For a directory, the result goes to DIR/bench.json and
    DIR/bench.svg.

    Examples:
        repl-fx bench out
        repl-fx bench timm:resnet18 --only inference --batch-sizes 1,8
    """  # noqa: D205 - this is the help text, and its first line is a paragraph
    from repl_fx.artifact import BENCH, CHART, Artifact, adding
    from repl_fx.benchmarking.benchmark import Settings, bench
    from repl_fx.benchmarking.hardware import in_a_line
    from repl_fx.benchmarking.results import bench_tables, unmeasured_lines, unsettled_lines
    from repl_fx.planning.written_options import parse_sizes
    from repl_fx.reporting import figures, terminal_charts
    from repl_fx.sources import usable_device
    from repl_fx.sources.input_shapes import shape_at_batch

    usable_device(flags.device)
    settings = Settings(
        batch_sizes=None if flags.batch_sizes is None else parse_sizes(flags.batch_sizes, "--batch-sizes"),
        training=flags.only != "inference",
        inference=flags.only != "training",
        compiled=flags.compile,
        **flags.some("device", "batch", "rounds", "warm_up", "onnx", "seed"),
    )
    planned = PlanSettings().changed(**given)
    if Path(spec).is_dir():
        common.require_no_plan(spec, given)
    if flags.output is not None:
        common.require_free_file(flags.output, force=flags.force, read=spec)
    terminal.stage("load")
    # Variants go to the device one after another.
    target = common.load_target(spec, flags, planned, device="cpu")
    made = _rewritten(target, planned, flags.seed)
    shape = None if isinstance(made, Artifact) else shape_at_batch(made.captured_parts, flags.batch or 0)
    if shape is not None:
        planned = planned.changed(input_shape=shape)
        target = common.load_target(spec, flags, planned, device="cpu")
        made = _rewritten(target, planned, flags.seed)
    artifact = target.artifact if flags.output is None else None
    # What cannot be written should not cost a measurement.
    with adding(artifact, BENCH, CHART) as place:
        measured = bench(made, settings, inputs=target.inputs)
        replacements = [{"block": one.block, "surrogate": one.surrogate} for one in made.plan.replacements]
        document: dict[str, Any] = {"spec": spec, "replaced": replacements, **measured.to_json()}
        document["notes"] = [*target.notes, *measured.notes]
        chart = terminal_charts.chart_of(figures.bench_figures(document))
        text = json.dumps(document, indent=1, allow_nan=False) + "\n"
        if place is not None:
            terminal.stage("save")
            (place / BENCH).write_text(text)
            (place / CHART).write_text(terminal_charts.picture_of(chart, target.title))
    if flags.output is not None:
        common.write_whole(flags.output, text)
    terminal.show(target.title, *common.note_lines(document["notes"]), in_a_line(measured.machine))
    terminal.show(*bench_tables(document), chart)
    terminal.show(*unmeasured_lines(document), *unsettled_lines(document))
    written = (
        [flags.output] if flags.output else [artifact.directory / name for name in (BENCH, CHART)] if artifact else []
    )
    terminal.show(*(f"written: {file}" for file in written))
    terminal.document(document)


def _rewritten(target: common.Target, settings: PlanSettings, seed: int) -> TransformResult | Artifact:
    """The transform of a target; the artifact, where it is one."""
    from repl_fx import transform

    if target.artifact is not None:
        return target.artifact
    return transform(target.module, target.inputs.args, target.inputs.kwargs, seed=seed, **settings.transform_options())
