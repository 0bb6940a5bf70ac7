"""A model as one JSON document: its graphs in nested groups with costs and layouts, and what is known of it besides."""
