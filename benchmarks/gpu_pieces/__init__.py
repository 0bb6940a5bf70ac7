"""The pieces of the run on a GPU: what each measures, and the table of them."""
