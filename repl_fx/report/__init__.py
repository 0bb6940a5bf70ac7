"""Costs, tables and documents: what a user sees of a model, a transform and a verification."""

from __future__ import annotations

from repl_fx.report.costs import Costs, flops_by_node, flops_of_parts, measure_costs, measure_parts
from repl_fx.report.documents import blocks_document, costs_document, parts_document, repeats_document
from repl_fx.report.tables import (
    blocks_table,
    costs_table,
    layers_table,
    parts_table,
    repeats_table,
    verification_table,
)

__all__ = [
    "Costs",
    "blocks_document",
    "blocks_table",
    "costs_document",
    "costs_table",
    "flops_by_node",
    "flops_of_parts",
    "layers_table",
    "measure_costs",
    "measure_parts",
    "parts_document",
    "parts_table",
    "repeats_document",
    "repeats_table",
    "verification_table",
]
