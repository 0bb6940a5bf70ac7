"""Scores of blocks: which blocks of a trained model matter least, from one pass over calibration data."""
