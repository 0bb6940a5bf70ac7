"""The document of a model, before a transform and after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import torch
from torch import fx

import repl_fx
from repl_fx.artifact.provenance import with_origin
from repl_fx.artifact.store import Artifact
from repl_fx.costs.counted import Costs, measure_form
from repl_fx.finding.blocks import Repeat
from repl_fx.graph.captured import copy_graph
from repl_fx.passes.driver import run_passes
from repl_fx.passes.write_in_place import write_in_place_
from repl_fx.reporting.documents import blocks_document
from repl_fx.reporting.model_graph.document import (
    SCHEMA,
    BlockRow,
    Cost,
    Document,
    EagerModule,
    Graph,
    Group,
    Input,
    MadeBy,
    ModelFacts,
    PlanTable,
    RepeatRow,
    Totals,
    View,
    Views,
)
from repl_fx.reporting.model_graph.graphs import GraphMaker
from repl_fx.reporting.model_graph.layout import GroupShape, lay_out
from repl_fx.reporting.model_graph.nesting import Steps, nest, nest_rewritten
from repl_fx.reporting.model_graph.node_facts import costs_by_node
from repl_fx.reporting.model_graph.reading import read_evidence
from repl_fx.rewriting.result import TransformResult
from repl_fx.tracing.parts.capture_parts import CapturedParts, Part, qualified_name
from repl_fx.tracing.parts.part_repeats import ModelRepeats, PartRepeats


def document_of(model: ModelRepeats | TransformResult, spec: str | None = None, notes: Sequence[str] = ()) -> Document:
    """The document of a model: before a transform, and after it where there was one.

    Args:
        model: the repeats of a model, or the result of its transform.
        spec: the words for the model; its class by default.
        notes: remarks on it, a line each.
    """
    result = model if isinstance(model, TransformResult) else None
    found = model.found if isinstance(model, TransformResult) else model
    captured = found.captured
    # One layout for all groups that look the same.
    layouts: dict[GroupShape, str] = {}
    inputs = {part.path: part for part in captured.parts}
    pairs = [_graphs(part, inputs[part.path], captured, result, layouts) for part in found]
    before, after = (tuple(graphs) for graphs in zip(*pairs, strict=True))
    infos = [part.graph_module.meta["capture"] for part in captured.parts]
    if result is None:
        costs: Sequence[Costs] = [measure_form(captured.source, captured.module, captured.parts)]
    else:
        costs = result.costs()
    totals = [Cost(one.parameters, one.flops, one.activation_bytes) for one in costs]
    return Document(
        schema=SCHEMA,
        made=MadeBy(repl_fx.__version__, str(torch.__version__), datetime.now(UTC).isoformat(timespec="seconds")),
        model=ModelFacts(
            spec=spec or type(captured.source).__name__,
            type=infos[0].model if captured.whole else type(captured.source).__name__,
            tracer=", ".join(dict.fromkeys(info.tracer for info in infos)),
            inputs=tuple(_inputs(before, captured.parts)),
            eager=tuple(EagerModule(one.path, one.kind, one.reason) for one in captured.eager),
            notes=(*notes, *captured.sizes),
        ),
        totals=Totals(captured.parts[0].inputs.batch, *totals),
        views=Views(View(before), None if result is None else View(after)),
        layouts={key: lay_out(outline) for outline, key in layouts.items()},
        repeats=tuple(_repeat_rows(found.repeats)),
        plan=None if result is None else _plan_table(result, before, after),
    )


def document_of_artifact(artifact: Artifact, spec: str, notes: Sequence[str] = ()) -> Document:
    """The document of an artifact, with all that its directory says; see `document_of`.

    Raises:
        ArtifactError, BadInput: a file of the directory is damaged.
    """
    # What is damaged is said before any work is done.
    known = read_evidence(artifact.directory)
    return msgspec.structs.replace(document_of(artifact.result, spec, notes), **known)


def _graphs(
    part: PartRepeats,
    captured: Part,
    model: CapturedParts,
    result: TransformResult | None,
    layouts: dict[GroupShape, str],
) -> tuple[Graph, Graph]:
    """The graphs of a part before and after; the same twice where nothing is replaced in it."""
    report = {} if result is None else {row.block: row for row in result.report}
    replaced = [
        part.blocks[name].name for name, row in report.items() if row.status == "replaced" and name in part.blocks
    ]
    nesting = nest(part.graph_module, part.inside, replaced)
    source = model.source.get_submodule(part.path)

    def maker(gm: fx.GraphModule, steps: Mapping[str, Steps], *, after: bool) -> GraphMaker:
        costs = costs_by_node(gm, captured.inputs)
        return GraphMaker(part, gm, steps, nesting, costs, report, source, layouts, after)

    before = maker(part.graph_module, nesting.steps, after=False)
    rewritten = None if result is None else result.one_by_one.get(part.path)
    if rewritten is None:
        same = before.make({} if result is None else before.at)
        return same, same
    # The graph that trains does all syntheses together; each on its own lies with its block, and costs the same. The
    # model in place writes nothing into the stream.
    written = () if result is None or result.in_place.model is not None else (write_in_place_,)
    gm = run_passes(copy_graph(rewritten, compiled=False), *written).graph_module
    after = maker(gm, nest_rewritten(gm.graph, nesting), after=True)
    return before.make(after.at), after.make(before.at)


def _inputs(graphs: Sequence[Graph], parts: Sequence[Part]) -> Iterator[Input]:
    """The inputs of all graphs; a nested argument is one for each tensor in it."""
    dynamic = {part.path: part.graph_module.meta["capture"].dynamic for part in parts}
    for graph in graphs:
        for node in graph.nodes:
            if node.kind == "input":
                name = graph.words[node.target]
                sizes = dynamic[graph.id].get(name, ())
                yield Input(qualified_name(graph.id, name), graph.values[node.value].text, tuple(sizes))


def _repeat_rows(repeats: Sequence[Repeat]) -> list[RepeatRow]:
    return [
        RepeatRow(
            repeat.name,
            tuple(block.name for block in repeat.blocks),
            len(repeat.blocks[0].nodes),
            repeat.size,
            "shared" if repeat.shared else "similar" if repeat.similar else "exact",
        )
        for repeat in repeats
    ]


def _plan_table(result: TransformResult, before: Sequence[Graph], after: Sequence[Graph]) -> PlanTable:
    plan, scores = result.plan, with_origin(result)[1].scores
    sides = {"before": _block_groups(before), "after": _block_groups(after)}
    rows = []
    for known in blocks_document(result.report, plan):
        groups = {side: found[known["block"]] for side, found in sides.items() if known["block"] in found}
        facts = {
            **known,
            "neighbours": known["made_from"] or (),
            "score": scores.get(known["block"]),
            **{f"flops_{side}": group.flops for side, group in groups.items()},
            **{f"kept_{side}": group.kept for side, group in groups.items()},
        }
        rows.append(msgspec.convert(facts, BlockRow))
    options: dict[str, Any] = {"seed": plan.seed}
    if plan.expected:
        options["expected"] = dict(plan.expected)
    return PlanTable(options, tuple(rows))


def _block_groups(graphs: Sequence[Graph]) -> dict[str, Group]:
    """The groups of blocks, by each of their names."""
    groups = (group for graph in graphs for group in graph.groups if group.kind in ("block", "surrogate"))
    return {name: group for group in groups for name in (group.name, *group.aliases)}
