"""From a model to its graph in normal form."""
