"""Example inputs at other batch sizes."""

from __future__ import annotations

import torch
from torch import Tensor

from repl_fx.export.tensors import FlatInputs, batch_size


def default_batches(traced: int) -> tuple[int, ...]:
    """Return 1, the batch size of the example inputs, and one that is larger; (0,) where no input has a batch."""
    return tuple(dict.fromkeys((1, traced, traced + 3))) if traced else (0,)


def at_batch(inputs: FlatInputs, batch: int, seed: int) -> FlatInputs:
    """Return inputs of this batch size: the example's own at its own size, drawn with `seed` at any other.

    Inputs whose dimension 0 is not the batch stay as they are.
    """
    traced = batch_size(inputs.tensors)
    if batch == traced:
        return inputs
    generator = torch.Generator().manual_seed(seed)
    return inputs.map(
        lambda tensor: draw(tensor, batch, generator) if tensor.ndim and tensor.shape[0] == traced else tensor
    )


def draw(example: Tensor, batch: int, generator: torch.Generator) -> Tensor:
    """Draw values like the example's for another batch; what looks like a mask is repeated: its pattern matters."""
    repeated = example[torch.arange(batch) % max(example.shape[0], 1)]
    if example.dtype == torch.bool or not example.numel():
        return repeated
    if example.is_floating_point():
        finite = example[torch.isfinite(example)].double()
        if finite.numel() < example.numel() or bool(((finite == finite.min()) | (finite == finite.max())).all()):
            return repeated
        noise = torch.randn(repeated.shape, generator=generator, dtype=torch.float64)
        return (noise * finite.std() + finite.mean()).to(example.dtype)
    if example.is_complex() or bool(((example == 0) | (example == 1)).all()):
        return repeated
    # Only values that were seen: an id, a position or an index out of range has no meaning.
    seen = example.flatten()
    return seen[torch.randint(seen.numel(), repeated.shape, generator=generator)]
