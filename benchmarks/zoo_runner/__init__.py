"""How `benchmarks/zoo.py` runs a model through the stages, and what it writes about it."""
