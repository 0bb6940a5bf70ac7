"""Which blocks go: the repeats of a model's parts, trials of a plan, and the report."""
