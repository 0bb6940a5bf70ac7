"""Pictures of a model without a browser: SVG, and DOT for Graphviz."""
