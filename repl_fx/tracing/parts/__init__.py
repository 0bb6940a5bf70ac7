"""Models that are no single graph: the largest modules in them that are."""
