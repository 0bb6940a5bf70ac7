"""Questions about a graph: repeats and similar blocks, their branches, residual units, linear operators, attention."""
