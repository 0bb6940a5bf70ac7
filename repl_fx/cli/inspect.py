"""`repl-fx inspect`."""

from __future__ import annotations

from typing import Any

from repl_fx.cli.common import (
    AnySpecArgument,
    DeviceOption,
    JsonOption,
    QuietOption,
    SeedOption,
    ShapeOption,
    VerboseOption,
    load_target,
    running,
)


def inspect_command(
    spec: AnySpecArgument,
    input_shape: ShapeOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what repeats in a model, with sizes and costs; for a directory, also what was replaced in it."""
    with running(as_json, verbose, quiet) as terminal:
        from repl_fx import capture, find_repeats
        from repl_fx.report import (
            blocks_document,
            blocks_table,
            costs_document,
            costs_table,
            flops_by_node,
            measure_costs,
            repeats_document,
            repeats_table,
        )

        target = load_target(terminal, spec, input_shape, seed, device)
        if target.artifact is not None:
            graph, repeats = target.artifact.result.captured, target.artifact.result.repeats
        else:
            terminal.stage("capture")
            graph = capture(target.module, target.args, target.kwargs)
            terminal.stage("find repeats")
            repeats = find_repeats(graph)
        terminal.stage("measure costs")
        costs = measure_costs(graph, target.args, target.kwargs)
        flops = flops_by_node(graph, target.args, target.kwargs)

        document: dict[str, Any] = {"spec": spec, "repeats": repeats_document(repeats, costs, flops)}
        terminal.show(f"{target.title}, captured by {graph.meta['capture'].rung}")
        terminal.show(repeats_table(repeats, costs, flops) if repeats else "nothing repeats in this model")
        if target.artifact is not None:
            after = measure_costs(target.module, target.args, target.kwargs)
            report, plan = target.artifact.result.report, target.artifact.plan
            document["costs"] = {"before": costs_document(costs), "after": costs_document(after)}
            document["blocks"] = blocks_document(report, plan)
            terminal.show(blocks_table(report, plan), costs_table(costs, after))
        else:
            document["costs"] = costs_document(costs)
            terminal.show(costs_table(costs))
        if costs.unknown:
            terminal.show(f"costs are unknown, as the model needs values to run: {costs.unknown}")
        terminal.document(document)
