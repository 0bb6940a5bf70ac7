"""Which blocks go, and what stands in for each: by choice, or under a budget."""
