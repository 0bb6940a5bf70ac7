"""`repl-fx inspect`."""

from __future__ import annotations

from typing import Any

from repl_fx.cli import common


def inspect_command(
    spec: common.AnySpecArgument,
    model: common.ModelOption = None,
    input_shape: common.ShapeOption = None,
    seed: common.SeedOption = 0,
    device: common.DeviceOption = "cpu",
    trust: common.TrustOption = False,
    as_json: common.JsonOption = False,
    verbose: common.VerboseOption = False,
    quiet: common.QuietOption = False,
) -> None:
    """Show what repeats in a model, with sizes and costs; for a directory, also what was replaced in it."""
    with common.running(as_json, verbose, quiet) as terminal:
        from repl_fx import capture_parts
        from repl_fx.costs import counted as costs
        from repl_fx.planning.part_repeats import find_in_parts, repeats_of
        from repl_fx.report import documents, tables

        terminal.stage("load")
        target = common.load_target(spec, model, input_shape=input_shape, seed=seed, device=device, trust=trust)
        if target.artifact is not None:
            captured, repeats = target.artifact.result.captured_parts, target.artifact.result.repeats
        else:
            terminal.stage("capture")
            captured = capture_parts(target.module, target.inputs.args, target.inputs.kwargs)
            terminal.stage("find repeats")
            repeats = repeats_of(find_in_parts(captured))
        terminal.stage("measure costs")
        before, after = costs.measure_parts(captured.module, captured.parts), None
        flops = costs.flops_of_parts(captured.parts)

        document: dict[str, Any] = {
            "spec": spec,
            "notes": list(target.notes),
            "parts": documents.parts_document(captured),
            "repeats": documents.repeats_document(repeats, before, flops),
        }
        terminal.show(*common.captured_lines(target.title, captured), *common.note_lines(target.notes))
        terminal.show(tables.repeats_table(repeats, before, flops) if repeats else "nothing repeats in this model")
        document["costs"] = documents.costs_document(before)
        if target.artifact is not None:
            after = costs.measure_parts(target.module, target.artifact.result.parts)
            done, plan = target.artifact.result.report, target.artifact.plan
            document["costs"] = {"before": document["costs"], "after": documents.costs_document(after)}
            document["blocks"] = documents.blocks_document(done, plan)
            terminal.show(tables.blocks_table(done, plan))
        terminal.show(*common.costs_lines(before, after))
        terminal.document(document)
