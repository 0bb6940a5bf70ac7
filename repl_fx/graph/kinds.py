"""Tensors in words: the name of a dtype, and dtype with shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def dtype_name(dtype: torch.dtype) -> str:
    """The name that numpy has for a dtype, such as "float32"."""
    return str(dtype).removeprefix("torch.")


def of_torch(kind: str, name: str) -> Any:
    """The dtype, layout or memory format of a name; a `ValueError` where torch has none."""
    found = getattr(torch, name, None)
    if not isinstance(found, getattr(torch, kind)):
        raise ValueError(f"the {kind} {name!r}")
    return found


def kind_of(tensor: Tensor) -> str:
    """Dtype and shape of a tensor, such as "float32[2, 3]"."""
    return f"{dtype_name(tensor.dtype)}{list(tensor.shape)}"
