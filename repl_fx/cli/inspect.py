"""`repl-fx inspect`."""

from __future__ import annotations

from typing import Any

from repl_fx.cli.common import (
    AnySpecArgument,
    DeviceOption,
    JsonOption,
    ModelOption,
    QuietOption,
    SeedOption,
    ShapeOption,
    TrustOption,
    VerboseOption,
    captured_lines,
    load_target,
    note_lines,
    running,
)


def inspect_command(
    spec: AnySpecArgument,
    model: ModelOption = None,
    input_shape: ShapeOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    trust: TrustOption = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what repeats in a model, with sizes and costs; for a directory, also what was replaced in it."""
    with running(as_json, verbose, quiet) as terminal:
        from repl_fx import capture_parts, report
        from repl_fx.planning.part_repeats import repeats_of

        terminal.stage("load")
        target = load_target(spec, model, input_shape=input_shape, seed=seed, device=device, trust=trust)
        if target.artifact is not None:
            captured, repeats = target.artifact.result.captured_parts, target.artifact.result.repeats
        else:
            terminal.stage("capture")
            captured = capture_parts(target.module, target.inputs.args, target.inputs.kwargs)
            terminal.stage("find repeats")
            repeats = repeats_of(captured)
        terminal.stage("measure costs")
        costs = report.measure_parts(captured.module, captured.parts)
        flops = report.flops_of_parts(captured.parts)

        document: dict[str, Any] = {
            "spec": spec,
            "notes": list(target.notes),
            "parts": report.parts_document(captured),
            "repeats": report.repeats_document(repeats, costs, flops),
        }
        terminal.show(*captured_lines(target.title, captured), *note_lines(target.notes))
        terminal.show(report.repeats_table(repeats, costs, flops) if repeats else "nothing repeats in this model")
        if target.artifact is not None:
            after = report.measure_parts(target.module, target.artifact.result.parts)
            done, plan = target.artifact.result.report, target.artifact.plan
            document["costs"] = {"before": report.costs_document(costs), "after": report.costs_document(after)}
            document["blocks"] = report.blocks_document(done, plan)
            terminal.show(report.blocks_table(done, plan), report.costs_table(costs, after))
        else:
            document["costs"] = report.costs_document(costs)
            terminal.show(report.costs_table(costs))
        if costs.unknown:
            terminal.show(f"costs are unknown, as the model needs values to run: {costs.unknown}")
        terminal.document(document)
