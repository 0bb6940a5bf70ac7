"""Compression of a trained model in one run: score, cut, fit, heal, evaluate, export, verify."""
