"""`repl-fx bench`."""

from __future__ import annotations

import contextlib
import json
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from repl_fx.cli import common
from repl_fx.cli.flags import with_flags
from repl_fx.planning.settings import PlanSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from repl_fx import TransformResult


class Only(StrEnum):
    """One of the two things that are measured."""

    TRAINING = "training"
    INFERENCE = "inference"


@with_flags(PlanSettings)
def bench_command(
    spec: common.AnySpecArgument,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="The JSON file to write.  [default: DIR/bench.json]"),
    ] = None,
    only: Annotated[Only | None, typer.Option("--only", help="Measure one of the two alone.")] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Repetitions of each variant, which take turns.")] = 10,
    warm_up: Annotated[int, typer.Option("--warm-up", min=0, help="Repetitions before those.")] = 2,
    batch: Annotated[
        int | None,
        typer.Option("--batch", min=1, help="Inputs of a training step; by default those of the example inputs."),
    ] = None,
    batch_sizes: Annotated[
        str | None,
        typer.Option(
            "--batch-sizes", metavar="LIST", help="Inputs of a call in inference.  [default: 1 and that of --batch]"
        ),
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Measure inference by torch.compile, too.")
    ] = True,
    onnx: Annotated[bool, typer.Option("--onnx/--no-onnx", help="Measure inference by ONNX Runtime, too.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace the FILE of -o if it exists.")] = False,
    model: common.ModelOption = None,
    seed: common.SeedOption = 0,
    device: common.DeviceOption = "cpu",
    trust: common.TrustOption = False,
    as_json: common.JsonOption = False,
    verbose: common.VerboseOption = False,
    quiet: common.QuietOption = False,
    **given: Any,
) -> None:
    """Measure a rewritten model next to the original, to depth pruning and to activation checkpointing: time, memory
    and throughput of a training step, and latency of inference. For a directory, the result goes to DIR/bench.json and
    DIR/bench.svg.
    """  # noqa: D205 - this is the help text, and its first line is a paragraph
    with common.running(as_json, verbose, quiet) as terminal:
        from repl_fx.artifact import BENCH, CHART, changing
        from repl_fx.benchmarking.benchmark import Settings, benchmark
        from repl_fx.benchmarking.machine import in_a_line
        from repl_fx.planning.written_options import parse_sizes
        from repl_fx.report import charts, figures, tables
        from repl_fx.sources import usable_device
        from repl_fx.sources.input_shapes import shape_at_batch

        usable_device(device)
        settings = Settings(
            device=device,
            batch=batch,
            batch_sizes=None if batch_sizes is None else parse_sizes(batch_sizes, "--batch-sizes"),
            rounds=rounds,
            warm_up=warm_up,
            training=only is not Only.INFERENCE,
            inference=only is not Only.TRAINING,
            compiled=compiled,
            onnx=onnx,
            seed=seed,
        )
        planned = PlanSettings().changed(**given)
        if Path(spec).is_dir():
            common.require_no_plan(spec, given)
        if output is not None:
            common.require_free_file(output, force=force)
        terminal.stage("load")
        # Variants go to the device one after another.
        load = partial(common.load_target, spec, model, seed=seed, device="cpu", trust=trust)
        target = load(planned)
        result, rewritten = _rewritten(target, planned, seed, terminal.stage)
        shape = None if target.artifact else shape_at_batch(result.captured_parts, batch or 0)
        if shape is not None:
            planned = planned.changed(input_shape=shape)
            target = load(planned)
            result, rewritten = _rewritten(target, planned, seed, terminal.stage)
        artifact = target.artifact if output is None else None
        with changing(artifact.directory) if artifact else contextlib.nullcontext() as change:
            if change is not None:
                # What cannot be written should not cost a measurement.
                change.require_own([BENCH, CHART])
            measured = benchmark(result, rewritten, target.inputs, settings, progress=terminal.stage)
            replacements = [{"block": one.block, "surrogate": one.surrogate} for one in result.plan.replacements]
            document: dict[str, Any] = {"spec": spec, "replaced": replacements, **measured.to_json()}
            document["notes"] = [*target.notes, *measured.notes]
            chart = charts.chart_of(figures.bench_figures(document))
            text = json.dumps(document, indent=1, allow_nan=False) + "\n"
            if change is not None and artifact is not None:
                terminal.stage("save")
                (change.place / BENCH).write_text(text)
                (change.place / CHART).write_text(charts.picture_of(chart, target.title))
                change.commit(artifact.manifest, keep=artifact.manifest.files.keys())
        if output is not None:
            common.write_whole(output, text)
        terminal.show(target.title, *common.note_lines(document["notes"]), in_a_line(measured.machine))
        terminal.show(*tables.bench_tables(document), chart)
        terminal.show(*tables.unmeasured_lines(document), *tables.unsettled_lines(document))
        written = [output] if output else [artifact.directory / name for name in (BENCH, CHART)] if artifact else []
        terminal.show(*(f"written: {file}" for file in written))
        terminal.document(document)


def _rewritten(
    target: common.Target, settings: PlanSettings, seed: int, progress: Callable[[str], None]
) -> tuple[TransformResult, nn.Module]:
    """The transform of a target and the model that it made, with the weights of the artifact where it is one."""
    from repl_fx import transform

    if target.artifact is None:
        args, kwargs = target.inputs.args, target.inputs.kwargs
        result = transform(target.module, args, kwargs, seed=seed, progress=progress, **settings.transform_options())
        return result, result.model
    return target.artifact.result, target.artifact.model
