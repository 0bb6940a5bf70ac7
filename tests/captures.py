"""Captures that tests share: nets that are built alike are traced once in a process, for a trace is most of a test.

    TokenNet(depth=3), of any weights  ->  one trace  ->  a copy of its graph for each, with its own parameters

What a trace looks at is part of the key: the mark of the source, modes and shapes. A net without a mark is captured
anew, and so is one that is no single graph. Tests of captures themselves call repl-fx.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

import repl_fx
from repl_fx._torch import pytree
from repl_fx.benchmarking.training import kept_bytes
from repl_fx.graph.captured import tensors_in
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.opaque_outputs import PLAIN
from repl_fx.running.source_mark import source_mark
from repl_fx.tracing.capture import widen_batch
from repl_fx.tracing.parts.capture_parts import CapturedParts

_graphs: dict[Hashable, fx.GraphModule] = {}


class _Unknown(Exception):
    """A trace may look at something that no key describes."""


def captured(model: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> CapturedParts:
    """What `repl_fx.capture_parts` returns."""
    try:
        inputs = widen_batch(model, ExampleInputs.of(args, kwargs))
        key = _source(model), _described(inputs.args), _described(inputs.kwargs), torch.get_default_device()
    except _Unknown:
        return repl_fx.capture_parts(model, args, kwargs)
    if key not in _graphs:
        found = repl_fx.capture_parts(model, args, kwargs)
        if not found.whole:
            return found
        _graphs[key] = found.parts[0].graph_module
    graph = _graphs[key]
    own = _tensors(model)
    # Copied, it has the tensors of this model in the places of those of the model that was traced.
    memo: dict[int, Any] = {id(tensor): own[name] for name, tensor in _tensors(graph).items() if name in own}
    made = copy.deepcopy(graph, memo)
    return CapturedParts.of_graph(made, inputs, model)


def captured_graph(
    model: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
) -> fx.GraphModule:
    """What `repl_fx.capture` returns."""
    (part,) = captured(model, args, kwargs).parts
    return part.graph_module


def transformed(
    model: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
) -> repl_fx.TransformResult:
    """What `repl_fx.transform` returns; `options` are its own, but for those of captures."""
    return repl_fx.transform(model, args, kwargs, captured=captured(model, args, kwargs), **options)


def _source(model: nn.Module) -> Hashable:
    digest = source_mark(model).digest
    held = [tensor for module in model.modules() for tensor in tensors_in(list(vars(module).values()))]
    # Hooks on gradients are not copied, and values with a history cannot be.
    if not digest or any(getattr(tensor, "_post_accumulate_grad_hooks", None) or not tensor.is_leaf for tensor in held):
        raise _Unknown
    return digest, tuple(module.training for module in model.modules())


def _described(value: Any) -> Hashable:
    if isinstance(value, PLAIN):
        # Equal numbers of several types are one key of a dictionary.
        return type(value), value
    if isinstance(value, Tensor):
        return type(value), value.shape, value.stride(), value.dtype, value.device, value.requires_grad
    if type(value) in (list, tuple):
        return type(value), tuple(_described(item) for item in value)
    if isinstance(value, Mapping):
        return type(value), tuple((key, _described(item)) for key, item in value.items())
    raise _Unknown


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: tensor
        for found in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
        for name, tensor in found
    }


def kept_in_a_run(module: nn.Module, *args: Tensor) -> int:
    """Bytes that autograd keeps of a real forward pass in training mode."""

    def total(net: nn.Module) -> Tensor:
        # Sums keep nothing.
        return torch.stack([leaf.sum() for leaf in pytree.tree_leaves(net(*args)) if leaf.requires_grad]).sum()

    return kept_bytes(module.train(), total)
