"""A plan becomes a model: applied to the graphs, tried in a training step, put in place, and the result."""
