"""One step of training in parts: what it takes, and what it holds.

A step is a forward pass with its loss, a backward pass, and AdamW with the clearing of the gradients.
"""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.training.variants import SometimesSkipped

PARTS = ("forward", "backward", "optimizer")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Mark = Callable[[], None]


class Trainer:
    """A module on its way through training: on the host with nothing else, or on the device with an optimizer.

    Args:
        module: what to train, in training mode; a copy of it is trained.
        compiled: whether torch.compile gets it.
        autocast: dtype of `torch.autocast`; None for none. Parameters are float32.
        batch: inputs and targets, on the device.
    """

    def __init__(
        self, module: nn.Module, compiled: bool, autocast: torch.dtype | None, batch: tuple[Tensor, Tensor]
    ) -> None:
        self.module = copy.deepcopy(module)
        self.autocast = autocast
        self.inputs, self.targets = batch
        self.optimizer: torch.optim.Optimizer | None = None
        if compiled:
            compile_(self.module)

    def load(self) -> None:
        """Put the module on the device, with an optimizer that has not stepped."""
        self.module.to(self.inputs.device)
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=1e-4, fused=True)

    def unload(self) -> None:
        """Put the module on the host, without gradients and optimizer."""
        self.optimizer = None
        self.module.zero_grad()
        self.module.to("cpu")

    def loss(self) -> Tensor:
        """The forward pass."""
        device = self.inputs.device.type
        with nullcontext() if self.autocast is None else torch.autocast(device, self.autocast):
            logits = self.module(self.inputs)
        return F.cross_entropy(logits.float().flatten(0, -2), self.targets.flatten())

    def step(self, mark: Mark = lambda: None) -> Tensor:
        """One step, with a mark before, between and after its three parts; returns the loss."""
        assert self.optimizer is not None, "load() comes first"
        mark()
        loss = self.loss()
        mark()
        torch.autograd.backward(loss)
        mark()
        self.optimizer.step()
        self.optimizer.zero_grad()
        mark()
        return loss.detach()

    def parameters(self) -> int:
        """Number of parameters, tied ones once."""
        return sum(p.numel() for p in self.module.parameters())

    def optimizer_bytes(self) -> int:
        """Bytes of the optimizer's state, after a step."""
        assert self.optimizer is not None, "load() comes first"
        tensors = (value for state in self.optimizer.state.values() for value in state.values())
        return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))

    def kept_bytes(self) -> int:
        """Bytes that a forward pass keeps for the backward pass, the same on every device.

        Every storage that autograd saves counts once, and whole; parameters and buffers do not count. What is made of
        parameters does: copies of them in bfloat16, synthesised weights.
        """
        storages = [tensor.untyped_storage() for tensor in (*self.module.parameters(), *self.module.buffers())]
        state = {storage.data_ptr() for storage in storages}
        kept: dict[int, torch.UntypedStorage] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in state:
                # Held until all are counted, so that no other storage gets its address.
                kept[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self.loss()
        size = sum(storage.nbytes() for storage in kept.values())
        # Checkpointing ends its bookkeeping in the backward pass.
        torch.autograd.backward(loss)
        self.module.zero_grad()
        return size


def compile_(module: nn.Module) -> None:
    """Let torch.compile have a module, in place, in one graph and for the sizes it meets.

    Where blocks are skipped at random the whole is no one graph: each block is compiled by itself.
    """
    skipped = [part.block for part in module.modules() if isinstance(part, SometimesSkipped)]
    for part in skipped or [module]:
        part.compile(fullgraph=True, dynamic=False)


class Timer:
    """Seconds of the parts of a step.

    On CUDA, events on the stream of the device time them; before the step that is timed runs another of the same kind,
    which is not waited for, so that the host is ahead of the device as it is in a loop. Elsewhere a clock of the host
    times them.

    Args:
        device: where the steps run.
        clock: of `CLOCKS`; without meaning on CUDA.
    """

    def __init__(self, device: torch.device, clock: str) -> None:
        self.device = device
        self.now = CLOCKS[clock]

    def __call__(self, trainer: Trainer) -> dict[str, float]:
        """Time one step."""
        if self.device.type == "cuda":
            return self._by_events(trainer)
        times: list[float] = []
        trainer.step(lambda: times.append(self.now()))
        return _differences(times, lambda a, b: b - a)

    def _by_events(self, trainer: Trainer) -> dict[str, float]:
        events: list[Any] = []
        # Has no annotations.
        event: Any = torch.cuda.Event

        def mark() -> None:
            events.append(event(enable_timing=True))
            events[-1].record(torch.cuda.current_stream(self.device))

        trainer.step()
        trainer.step(mark)
        torch.cuda.synchronize(self.device)
        return _differences(events, lambda a, b: a.elapsed_time(b) / 1e3)


def _differences(marks: list[Any], between: Callable[[Any, Any], float]) -> dict[str, float]:
    return {part: between(a, b) for part, a, b in zip(PARTS, marks[:-1], marks[1:], strict=True)}


def peak_bytes(trainer: Trainer) -> int | None:
    """Peak memory of one step, on a device that has nothing else.

    Args:
        trainer: loaded and warmed up.

    Returns:
        Bytes that tensors took at most: parameters, optimizer state, gradients, the batch, what is kept for backward,
        what kernels work with. None where the device does not count them.
    """
    device = trainer.inputs.device
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    trainer.step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def clear_memory(device: torch.device) -> None:
    """Give back what nobody holds."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
