"""One step of training in parts: its time, and the memory that it holds.

A step is a forward pass with its loss, a backward pass, and AdamW with the clearing of the gradients.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from repl_fx.errors import BadInput
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.opaque_outputs import floating_outputs
from repl_fx.running.timing import Mark, interleaved

PARTS = ("forward", "backward", "optimizer")
Loss = Callable[[nn.Module], Tensor]
Seconds = dict[str, float]
# Parameters, gradients and the two moments of AdamW, in float32.
_RESIDENT_BYTES, _FREE_SHARE = 16, 0.9


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
    """Give back the memory of a GPU that nobody holds; that of the host is given back as it is freed."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def mean_squares(inputs: ExampleInputs) -> Loss:
    """The loss of a model of which nothing is known: the sum of the mean squares of its floating outputs.

    It costs next to nothing beside the model, and gives each output a gradient. A model that returns losses of its own
    has them among these outputs.

    Args:
        inputs: of each forward pass; copies of them, as a forward may change what it gets.

    Raises:
        BadInput: from the loss, where no output depends on a parameter.
    """

    def loss(module: nn.Module) -> Tensor:
        squares = [out.square().mean() for out in floating_outputs(inputs.fresh().passed_to(module)) if out.numel()]
        if not squares:
            raise BadInput("none of its outputs depends on a parameter, so that it has no step of training")
        return torch.stack([square.double() for square in squares]).sum() if len(squares) > 1 else squares[0]

    return loss


class Trainer:
    """A module on its way through training: on the host with nothing else, or on the device with an optimizer.

    Args:
        module: the module; a copy of it is trained, in the mode that it is in.
        loss: the forward pass, on inputs that are on the device. Parameters have the module's own precision.
        device: where it trains.

    Attributes:
        sizes: its memory; None where that was not measured.
    """

    def __init__(self, module: nn.Module, loss: Loss, device: torch.device) -> None:
        self.module = copy.deepcopy(module)
        self.device = device
        self.loss = loss
        self.optimizer: torch.optim.Optimizer | None = None
        self.sizes: Sizes | None = None

    def load(self) -> None:
        """Put the module on the device, with an optimizer that has not stepped."""
        self.module.to(self.device)
        fused = all(parameter.is_floating_point() for parameter in self.module.parameters())
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=1e-4, fused=fused)

    def unload(self) -> None:
        """Put the module on the host, without gradients and optimizer."""
        self.optimizer = None
        self.module.zero_grad()
        self.module.to("cpu")

    def step(self, mark: Mark = lambda: None) -> Tensor:
        """One step, with a mark before, between and after its three parts; returns the loss."""
        assert self.optimizer is not None, "load() comes first"
        mark()
        loss = self.loss(self.module)
        mark()
        torch.autograd.backward(loss)
        mark()
        self.optimizer.step()
        self.optimizer.zero_grad()
        mark()
        return loss.detach()


@dataclass(frozen=True)
class Sizes:
    """The memory of a module in training.

    Attributes:
        parameters: how many, tied ones once.
        optimizer_bytes: size of the optimizer's state.
        kept_bytes: size of what the forward pass keeps for the backward pass.
        peak_bytes: most that tensors took on the device in a step; None where it cannot be told.
    """

    parameters: int
    optimizer_bytes: int
    kept_bytes: int
    peak_bytes: int | None

    @classmethod
    def of(cls, trainer: Trainer, draws: int = 1) -> Sizes:
        """The sizes of a trainer that is loaded and warm, the largest of some draws where branches are random."""
        assert trainer.optimizer is not None, "load() comes first"
        module, states = trainer.module, trainer.optimizer.state.values()
        peaks = [peak_bytes(trainer.step, trainer.device) for _ in range(draws)]
        return cls(
            parameters=sum(parameter.numel() for parameter in module.parameters()),
            optimizer_bytes=sum(one.nbytes for state in states for one in state.values() if isinstance(one, Tensor)),
            kept_bytes=max(kept_bytes(module, trainer.loss) for _ in range(draws)),
            peak_bytes=None if None in peaks else max(one for one in peaks if one is not None),
        )


def timed_steps(
    trainers: Mapping[str, Trainer],
    timer: Callable[[Callable[[Mark], object]], list[float]],
    rounds: int,
    *,
    warm_up: int,
    attempt: Callable[[str, Callable[[], Seconds]], Seconds | None],
    over: Callable[[], bool] = lambda: False,
) -> Iterator[dict[str, Seconds]]:
    """Time steps of trainers that take turns; see `interleaved`.

    Args:
        trainers: by variant, on the host, with their sizes.
        timer: a `Timer` of their device.

    Yields:
        For each round, the seconds of the parts of one step, by variant.
    """
    devices = {trainer.device for trainer in trainers.values()}
    sizes = [trainer.sizes for trainer in trainers.values() if trainer.sizes is not None]
    resident = all(_fit(sizes, device) for device in devices)
    for device in devices:
        clear_memory(device)

    def turn(trainer: Trainer) -> Seconds:
        with ExitStack() as leaving:
            # Also where it fails: the others may need its memory.
            leaving.callback(trainer.unload)
            if trainer.optimizer is None:
                trainer.load()
                trainer.step()
            seconds = dict(zip(PARTS, timer(trainer.step), strict=True))
            if resident:
                leaving.pop_all()
        return seconds

    turns = {name: partial(turn, trainer) for name, trainer in trainers.items()}
    yield from interleaved(turns, rounds, warm_up=warm_up, attempt=attempt, over=over)


def _fit(sizes: Sequence[Sizes], device: torch.device) -> bool:
    """Tell whether all of some modules can stay on a device while one of them takes a step."""
    if device.type != "cuda":
        return True
    held = sum(_RESIDENT_BYTES * size.parameters for size in sizes)
    peak = max((size.peak_bytes or 0 for size in sizes), default=0)
    return held + peak < _FREE_SHARE * torch.cuda.get_device_properties(device).total_memory
