"""Costs of models and of the blocks in them: counted on shapes alone, or timed."""
