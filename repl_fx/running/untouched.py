"""Run or trace a model so that it, its modes and the random generators are afterwards as they were."""

from __future__ import annotations

import copy as copying
import random
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.python_state import PythonState


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Put a model in one mode for a while; afterwards each of its modules has the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def untouched(model: nn.Module, *, buffers: bool = False, parameters: bool = False) -> Iterator[None]:
    """Give every module back the attributes it had, whatever a trace or a forward leaves there.

    Args:
        model: its forward may count its calls, keep an activation, replace a buffer.
        buffers: restore the values of buffers too, for a forward on real tensors.
        parameters: likewise of parameters.
    """
    state = PythonState(model)
    kept = [(module, dict(vars(module)), _registries(module)) for module in model.modules()]
    tensors = [*(model.buffers() if buffers else ()), *(model.parameters() if parameters else ())]
    values = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    finally:
        state.restore()
        for module, attributes, registries in kept:
            vars(module).clear()
            vars(module).update(attributes)
            for registry, content in registries:
                registry.clear()
                registry.update(content)
        with torch.no_grad():
            for tensor, value in values:
                if not tensor.is_meta and not torch.equal(tensor, value):
                    tensor.copy_(value)


def _registries(module: nn.Module) -> list[tuple[Any, Any]]:
    """The dictionaries of every module (state, children, hooks), each with a copy."""
    own = (value for name, value in vars(module).items() if name.startswith("_"))
    # These very types: a library's frozen dict, say, cannot be filled again.
    return [(registry, copying.copy(registry)) for registry in own if type(registry) in (dict, OrderedDict, set)]


def own_randomness(device: torch.device) -> AbstractContextManager[None]:
    """Leave the caller's random generators of torch as they are."""
    if device.type in ("cpu", "meta"):
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device], device_type=device.type)


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the generators of torch, Python and numpy for a while; afterwards they are as they were."""
    state, array_state = random.getstate(), np.random.get_state()
    try:
        with own_randomness(device):
            seed_everything(seed)
            yield
    finally:
        random.setstate(state)
        np.random.set_state(array_state)


def seed_everything(seed: int) -> None:
    """Seed the generators that a forward may draw from: torch's, Python's and numpy's."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def device_of(model: nn.Module, inputs: ExampleInputs | None = None) -> torch.device:
    """Where a model lives: the device of its first parameter or buffer, or of the first input."""
    tensors = (*model.parameters(), *model.buffers(), *(inputs.tensors if inputs else ()))
    return tensors[0].device if tensors else torch.device("cpu")
