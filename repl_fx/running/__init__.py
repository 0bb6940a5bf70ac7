"""Run a model, compare what it returns, and find it afterwards as it was."""
