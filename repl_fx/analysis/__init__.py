"""Questions about a graph: blocks, branches, residual units, linear operators, attention."""
