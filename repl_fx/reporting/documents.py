"""The documents that `--json` writes: the tables as plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from torch import fx

from repl_fx.finding.blocks import Block, Repeat
from repl_fx.finding.repeats import block_flops, repeat_flops
from repl_fx.graph.axes import dimensions_of

if TYPE_CHECKING:
    from repl_fx.costs.counted import Costs
    from repl_fx.plan import Plan
    from repl_fx.planning.scoring.scores import Scores
    from repl_fx.rewriting.block_reports import BlockReport
    from repl_fx.tracing.parts.capture_parts import CapturedParts


def parts_document(captured: CapturedParts) -> dict[str, Any]:
    """The modules of a model that are graphs, with their sizes, and those that were tried and stay eager."""
    return {
        "captured": [
            {
                "path": part.path,
                "class": (info := part.graph_module.meta["capture"]).model,
                "tracer": info.tracer,
                "sizes": [asdict(one) for one in dimensions_of(part.graph_module)],
            }
            for part in captured.parts
        ],
        "eager": [{"path": eager.path, "class": eager.kind, "reason": eager.reason} for eager in captured.eager],
    }


def costs_document(costs: Costs) -> dict[str, Any]:
    """Costs, and FLOPs and activation bytes for one sample."""
    return {
        **asdict(costs),
        "flops_per_sample": costs.flops_per_sample,
        "activation_bytes_per_sample": costs.activation_bytes_per_sample,
    }


def repeats_document(
    repeats: Sequence[Repeat], costs: Costs, flops: Mapping[fx.Node, int] | None = None
) -> list[dict[str, Any]]:
    """Repeats with their blocks, which are numbered from 1 over all repeats, as `--blocks` takes them."""
    numbers = {block.name: i for i, block in enumerate((b for r in repeats for b in r.blocks), start=1)}
    return [{"number": i, **_repeat(repeat, costs, flops, numbers)} for i, repeat in enumerate(repeats, start=1)]


def blocks_document(report: Sequence[BlockReport], plan: Plan) -> list[dict[str, Any]]:
    """The fate of each block, numbered as `--blocks` takes them."""
    settings = {one.block: dict(one.settings) for one in plan.replacements}
    return [{"number": i, **asdict(row), "settings": settings.get(row.block)} for i, row in enumerate(report, start=1)]


def scores_document(scores: Scores) -> dict[str, Any]:
    """The scores as `Scores.from_json` reads them."""
    document: dict[str, Any] = json.loads(scores.to_json())
    return document


def _repeat(
    repeat: Repeat, costs: Costs, flops: Mapping[fx.Node, int] | None, numbers: Mapping[str, int]
) -> dict[str, Any]:
    total = repeat_flops(repeat, flops)
    return {
        "name": repeat.name,
        "copies": len(repeat),
        "nodes": len(repeat.blocks[0].nodes),
        "parameters": repeat.size,
        "parameters_per_block": repeat.blocks[0].size,
        "parameters_share": repeat.size / costs.parameters if costs.parameters else None,
        "flops": total,
        "flops_share": total / costs.flops if total is not None and costs.flops else None,
        "shared": repeat.shared,
        "similar": repeat.similar,
        "streamed_values": len(repeat.blocks[0].inputs),
        "blocks": [_block(block, flops, numbers) for block in repeat.blocks],
        "inside": [_repeat(child, costs, flops, {}) for child in repeat.children],
    }


def _block(block: Block, flops: Mapping[fx.Node, int] | None, numbers: Mapping[str, int]) -> dict[str, Any]:
    return {
        "number": numbers.get(block.name),
        "name": block.name,
        "module": block.module_path,
        "nodes": len(block.nodes),
        "parameters": block.size,
        "flops": block_flops(block, flops),
    }
