"""A digest of a model's weights, by which one that is built again is known to be the same."""

from __future__ import annotations

import hashlib

from torch import Tensor, nn

from repl_fx.running.holders import bytes_of


def digest_of(model: nn.Module) -> str:
    """SHA-256 of the names, types, shapes and bytes of all tensors of a state dict; empty where one has no values.

    Args:
        model: on any device; tensors that are tied count under each of their names.
    """
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            continue
        if value.is_meta:
            return ""
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(bytes_of(value))
    return found.hexdigest()
