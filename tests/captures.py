"""Captures that tests share: nets that are built alike are traced once in a process, for a trace is most of a test.

    TokenNet(depth=3), of any weights  ->  one trace  ->  a copy of its graph for each, with its own parameters

What a trace looks at is part of the key: classes, attributes, modes, shapes, which tensors are one. A net with
anything else (hooks, tensors in lists) is captured anew, and so is one that is no single graph. Tests of captures
themselves, and of what `repl_fx.transform` adds to them, call repl-fx.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping, Sequence
from types import BuiltinFunctionType, FunctionType
from typing import Any, Unpack

import torch
from torch import Tensor, fx, nn

import repl_fx
from repl_fx._torch import pytree
from repl_fx.benchmarking.training import kept_bytes
from repl_fx.pipeline import rewrite, rewrite_again
from repl_fx.planning.options import Options
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.tracing.capture import widen_batch
from repl_fx.tracing.parts.capture_parts import CapturedParts

_PLAIN = (bool, int, float, str, type(None), type, torch.dtype, torch.device, FunctionType, BuiltinFunctionType)
_TENSORS = ("_parameters", "_buffers", "_modules")

_graphs: dict[Hashable, fx.GraphModule] = {}


class _Unknown(Exception):
    """A trace may look at something that no key describes."""


def captured(model: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> CapturedParts:
    """What `repl_fx.capture_parts` returns."""
    try:
        inputs = widen_batch(model, ExampleInputs.of(args, kwargs))
        key = _structure(model), _described(inputs.args), _described(inputs.kwargs), _surroundings()
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
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    plan: repl_fx.Plan | None = None,
    check: bool = True,
    **options: Unpack[Options],
) -> repl_fx.TransformResult:
    """What `repl_fx.transform` returns; `options` are those of `repl_fx.planning.options.Options`."""
    inputs = widen_batch(model, ExampleInputs.of(args, kwargs))
    known = captured(model, inputs.args, inputs.kwargs)
    return rewrite(known, options, check=check) if plan is None else rewrite_again(known, plan, check=check)


def _structure(model: nn.Module) -> Hashable:
    modules: dict[int, int] = {}
    tensors: dict[int, int] = {}
    rows: list[Hashable] = []
    for path, module in model.named_modules(remove_duplicate=False):
        rows.append((path, modules.setdefault(id(module), len(modules)), type(module)))
        for name, value in vars(module).items():
            if name not in _TENSORS:
                rows.append((name, _described(value)))
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            rows.append((name, None if tensor is None else tensors.setdefault(id(tensor), len(tensors))))
            rows.append(_described(tensor))
            if tensor is not None and (tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None)):
                raise _Unknown
    return tuple(rows)


def _described(value: Any) -> Hashable:
    if isinstance(value, _PLAIN):
        # Equal numbers of several types are one key of a dictionary.
        return type(value), value
    if isinstance(value, Tensor):
        return type(value), value.shape, value.stride(), value.dtype, value.device, value.requires_grad
    if type(value) in (list, tuple):
        return type(value), tuple(_described(item) for item in value)
    if type(value) is set:
        return set, frozenset(_described(item) for item in value)
    if isinstance(value, Mapping):
        return type(value), tuple((key, _described(item)) for key, item in value.items())
    raise _Unknown


def _surroundings() -> Hashable:
    # A trace does not look at regions of the caller's, without gradients or of another precision.
    return torch.get_default_dtype(), torch.get_default_device()


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
