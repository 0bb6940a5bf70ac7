"""Habits of training, saving and tuning with which `benchmarks.ecosystem` tries models."""
