"""Costs, tables and documents: what a user sees of a model, a transform and a verification."""

from __future__ import annotations

from repl_fx.report.costs import Costs, flops_by_node, measure_costs
from repl_fx.report.documents import blocks_document, costs_document, repeats_document
from repl_fx.report.tables import blocks_table, costs_table, layers_table, repeats_table, verification_table

__all__ = [
    "Costs",
    "blocks_document",
    "blocks_table",
    "costs_document",
    "costs_table",
    "flops_by_node",
    "layers_table",
    "measure_costs",
    "repeats_document",
    "repeats_table",
    "verification_table",
]
