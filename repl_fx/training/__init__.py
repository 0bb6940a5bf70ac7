"""Training of rewritten models: settings, data, the Lightning module, and runs that can be resumed."""
