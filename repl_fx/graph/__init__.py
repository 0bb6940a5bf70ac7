"""The normal form: the graph module, its signature, and what it calls at run time."""
