"""The model in place: the source's own module tree with surrogates where blocks were."""
