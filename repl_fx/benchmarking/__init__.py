"""Measured costs of a model and of its variants: steps of training, memory, latency of inference."""
