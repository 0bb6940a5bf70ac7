"""The machinery that several surrogates share."""
