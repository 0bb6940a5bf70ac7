"""What the benchmarks of training share: models, and the variants of a model that are compared."""
