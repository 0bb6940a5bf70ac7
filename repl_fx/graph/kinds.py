"""Tensors in words: the name of a dtype, and dtype with shape."""

from __future__ import annotations

import torch
from torch import Tensor


def dtype_name(dtype: torch.dtype) -> str:
    """The name that numpy has for a dtype, such as "float32"."""
    return str(dtype).removeprefix("torch.")


def kind_of(tensor: Tensor) -> str:
    """Dtype and shape of a tensor, such as "float32[2, 3]"."""
    return f"{dtype_name(tensor.dtype)}{list(tensor.shape)}"
