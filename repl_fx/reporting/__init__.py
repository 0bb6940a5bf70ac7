"""Costs, tables and documents: what a user sees of a model, a transform and a verification."""
