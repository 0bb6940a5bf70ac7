"""Memory of a step of training: the peak on a device that counts it, and what is kept for the backward pass."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch import Tensor, nn


def peak_bytes(step: Callable[[], object], device: torch.device) -> int | None:
    """Peak memory of one step, on a device that has nothing else.

    Args:
        step: a step of training, after warm-up.

    Returns:
        Bytes that tensors took at most: parameters, optimizer state, gradients, the batch, what is kept for backward,
        what kernels work with. None where the device does not count them.
    """
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def kept_bytes(module: nn.Module, loss: Callable[[nn.Module], Tensor]) -> int:
    """Bytes that a forward pass keeps for the backward pass, the same on every device.

    Every storage that autograd saves counts once, and whole; parameters and buffers do not count. What is made of
    parameters does: copies of them in bfloat16, synthesised weights.

    Args:
        module: in training mode; its gradients are gone afterwards.
        loss: the forward pass.
    """
    storages = [tensor.untyped_storage() for tensor in (*module.parameters(), *module.buffers())]
    state = {storage.data_ptr() for storage in storages}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in state:
            # Held until all are counted, so that no other storage gets its address.
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        made = loss(module)
    size = sum(storage.nbytes() for storage in kept.values())
    # Checkpointing ends its bookkeeping in the backward pass.
    torch.autograd.backward(made)
    module.zero_grad()
    return size


def clear_memory(device: torch.device) -> None:
    """Give back what nobody holds."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
