"""Machinery of the benchmark of trained models: the networks, the ways to cut them, the report."""
