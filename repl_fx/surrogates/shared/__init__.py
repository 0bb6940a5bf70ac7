"""What several surrogates share."""
