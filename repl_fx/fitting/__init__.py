"""Surrogates fitted in closed form to a trained network, on the activations of a few samples."""
