"""Calibration batches: the arguments of calls of a model, checked as they come."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from repl_fx._torch import pytree
from repl_fx.arguments import in_words, require_kind
from repl_fx.errors import BadInput, ReplFxError, first_line, foreign_code
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.untouched import KeptTensors, device_of, seeded

# Of fewer samples no mean says anything.
FEWEST = 8
Given = Iterable[Any] | Callable[[], Iterable[Any]]
Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch, on the device of the model.

    Attributes:
        where: the words for it in messages, such as "batch 3".
        inputs: the arguments of the model.
        targets: for the loss; None without one.
        samples: how many.
    """

    where: str
    inputs: ExampleInputs
    targets: Any
    samples: int


class Batches:
    """The batches that a caller gave, to be gone over once or more often.

    Args:
        given: batches, or a function that returns them; one that can be gone over once alone serves for one pass.
        model: takes them. Of pairs, as the loader of a data set gives them, one of a single argument gets the inputs.
        paired: whether a batch is a pair of inputs and targets.

    Raises:
        BadInput: `given` is neither.
    """

    def __init__(self, given: Given, model: nn.Module, *, paired: bool = False) -> None:
        if isinstance(given, Tensor | Mapping | str | nn.Module) or not (
            isinstance(given, Iterable) or (callable(given) and not isinstance(given, type))
        ):
            raise BadInput(
                f"batches is {in_words(given)}; give a list of batches, a DataLoader or a function that returns batches"
            )
        self.given, self.paired, self.device = given, paired, device_of(model)
        self._signature = inspect.signature(model.forward)

    @property
    def lasting(self) -> bool:
        """Tell whether the batches can be gone over more than once."""
        return not isinstance(self.given, Iterator)

    def __iter__(self) -> Iterator[Batch]:
        """The batches, checked.

        Raises:
            BadInput: a batch is none, holds NaN, or all together are too few samples.
        """
        # A loader may be callable too.
        given = self.given if isinstance(self.given, Iterable) else self.given()
        require_kind(given, Iterable, "batches is a function that returns batches")
        samples = 0
        for number, batch in enumerate(given):
            made = self._batch(batch, f"batch {number}")
            if not made.samples:
                # The last of a loader may be; nothing can be said of no samples.
                continue
            samples += made.samples
            yield made
        if samples < FEWEST:
            raise BadInput(
                f"the data hold too few samples to calibrate on, {samples}; give {FEWEST} or more, "
                "a few hundred are better"
            )

    def _batch(self, batch: Any, where: str) -> Batch:
        targets = None
        if self.paired:
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise BadInput(f"{where} is {in_words(batch)}; give pairs (inputs, targets) where there is a loss")
            batch, targets = batch
        elif isinstance(batch, tuple | list) and len(batch) == 2:
            batch = batch[0] if self._takes(batch[0]) and not self._takes(*batch) else batch
        if not isinstance(batch, Tensor | Mapping | tuple | list):
            raise BadInput(
                f"{where} is {in_words(batch)}; give a tensor, a tuple of arguments, or a dict of them by name"
            )
        inputs = ExampleInputs.of_batch(tuple(batch) if isinstance(batch, list) else batch)
        for number, tensor in enumerate(inputs.tensors):
            if tensor.is_floating_point() and bool(tensor.isnan().any()):
                place = tuple(int(i) for i in tensor.isnan().nonzero()[0])
                raise BadInput(f"{where}: tensor {number} of its inputs holds nan at {place}; give numbers")
        targets = pytree.tree_map_only(Tensor, lambda tensor: tensor.to(self.device), targets)
        return Batch(where, inputs.map(lambda tensor: tensor.to(self.device)), targets, _samples(inputs))

    def _takes(self, *args: Any) -> bool:
        """Tell whether the forward takes so many arguments."""
        try:
            self._signature.bind(*args)
        except TypeError:
            return False
        return True


def _samples(inputs: ExampleInputs) -> int:
    """The number of samples: of pictures in a list, else the first size of the first tensor."""
    first = next(iter((*inputs.args, *inputs.kwargs.values())), None)
    return len(first) if isinstance(first, list) else inputs.batch


class Evaluation:
    """Runs models that share their buffers, each time from the values that those had at first.

    Args:
        module: one of the models, which has the buffers of all.
    """

    def __init__(self, module: nn.Module) -> None:
        self._buffers = KeptTensors(buffer for buffer in module.buffers() if not buffer.is_inference())

    def outputs(self, model: nn.Module, batch: Batch) -> Any:
        """The outputs of a model for a batch, under one seed.

        Raises:
            BadInput: the model does not take the batch.
        """
        return self.run(model, batch, lambda: batch.inputs.fresh().passed_to(model))

    def run(self, model: nn.Module, batch: Batch, function: Callable[[], Any]) -> Any:
        """The result of a function that runs a model, or a part of it, on a batch; see `outputs`."""
        device = next((tensor.device for tensor in batch.inputs.tensors), torch.device("cpu"))
        registries = [(module._buffers, dict(module._buffers)) for module in model.modules() if module._buffers]
        try:
            with seeded(device, 0), foreign_code(partial(_not_taken, batch)):
                return function()
        finally:
            for registry, buffers in registries:
                registry.update(buffers)
            self._buffers.restore()


def _not_taken(batch: Batch, problem: Exception) -> BadInput:
    if isinstance(problem, ReplFxError):
        return BadInput(f"{batch.where}: {problem}")
    shapes = ", ".join("x".join(map(str, tensor.shape)) or "a number" for tensor in batch.inputs.tensors)
    what = f"{batch.where}, which is {shapes or 'without tensors'}"
    return BadInput(f"the model does not take {what}: {first_line(problem)}")


def loss_of(loss: Loss, outputs: Any, batch: Batch) -> Tensor:
    """The mean loss of a batch, a scalar.

    Raises:
        BadInput: the loss raises, or returns something else.
    """
    fails = f"the loss fails on {batch.where}"
    with foreign_code(lambda problem: BadInput(f"{fails}: {first_line(problem)}"), passing=ReplFxError):
        found = loss(outputs, batch.targets)
    if not isinstance(found, Tensor) or found.numel() != 1:
        kind = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else in_words(found)
        raise BadInput(f"the loss returns {kind} on {batch.where}; return one number, the mean over the batch")
    return found.reshape(())
