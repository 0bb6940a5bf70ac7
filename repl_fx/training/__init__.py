"""Training: the data sets, and what runs a recipe on them."""
