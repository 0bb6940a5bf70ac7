"""Checkpoints of a source model: reading their files, and giving their tensors to a model or to a rewritten one."""
