"""Traces that tests share: models that are alike are traced once in a process, for a trace is most of a test.

    TokenNet(depth=3), of any weights  ->  one trace  ->  a copy of its graph for each, with its own parameters

What a trace looks at is part of the key: the mark of the source, modes, inputs and settings. A model without a mark is
traced anew. What a test traces after it has changed attributes (`monkeypatch.setattr`), which may be repl-fx's, is for
that test alone; those of `tests/tracing` share none.
"""

from __future__ import annotations

import copy
import importlib
from collections import ChainMap
from collections.abc import Callable, Hashable, Mapping, Sequence, Sized
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from repl_fx._torch import pytree
from repl_fx.benchmarking.training import kept_bytes
from repl_fx.config import stamp_calls
from repl_fx.graph.captured import CapturedModule, tensors_in
from repl_fx.graph.state import named_tensors
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.opaque_outputs import PLAIN
from repl_fx.running.source_mark import source_mark
from repl_fx.tracing.attempt import _unlike
from repl_fx.tracing.leaf_calls import attention_kernels

Trace = Callable[..., CapturedModule]

_graphs: dict[Hashable, CapturedModule] = {}


class _Unknown(Exception):
    """A trace may look at something that no key describes."""


def shared(trace: Trace, patches: Sized) -> Trace:
    """`repl_fx.tracing.capture.trace_by_first`, for models that are like none traced before by this test or others.

    Args:
        patches: those of the test, which keep a trace from others.
    """
    graphs = ChainMap[Hashable, CapturedModule]({}, _graphs)

    @wraps(trace)
    def traced(
        tracers: Mapping[str, Any], model: nn.Module, inputs: ExampleInputs, fixed: Sequence[str] = ()
    ) -> CapturedModule:
        try:
            given = _described((inputs.args, inputs.kwargs)), tuple(fixed)
            settings = stamp_calls(), _unlike.get(), torch.get_default_device(), attention_kernels()
            key = tuple(tracers), _source(model), given, settings
        except _Unknown:
            return trace(tracers, model, inputs, fixed)
        if key in graphs:
            return copied(graphs[key], model)
        graph = trace(tracers, model, inputs, fixed)
        # Its own is changed by the test.
        (graphs if patches else _graphs)[key] = copied(graph, model)
        return graph

    return traced


def traced_alone() -> AbstractContextManager[Any]:
    """Let models be traced inside as they are without tests around: what is measured or compared is a trace."""
    capturing = importlib.import_module("repl_fx.tracing.capture")
    return patch.object(capturing, "trace_by_first", capturing.trace_by_first.__wrapped__)


def copied(graph: CapturedModule, model: nn.Module) -> CapturedModule:
    """A copy of a graph with the tensors of a model in the places of those of the one that was traced."""
    own = named_tensors(model)
    memo: dict[int, Any] = {id(tensor): own[name] for name, tensor in named_tensors(graph).items() if name in own}
    return copy.deepcopy(graph, memo)


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
    if isinstance(value, Tensor) and value.layout is torch.strided:
        few = tuple(value.flatten().tolist()) if value.numel() == 1 and not value.is_meta else ()
        return type(value), value.shape, value.stride(), value.dtype, value.device, value.requires_grad, few
    if type(value) in (list, tuple):
        return type(value), tuple(_described(item) for item in value)
    if isinstance(value, Mapping):
        return type(value), tuple((key, _described(item)) for key, item in value.items())
    raise _Unknown


def kept_in_a_run(module: nn.Module, *args: Tensor) -> int:
    """Bytes that autograd keeps of a real forward pass in training mode."""

    def total(net: nn.Module) -> Tensor:
        # Sums keep nothing.
        return torch.stack([leaf.sum() for leaf in pytree.tree_leaves(net(*args)) if leaf.requires_grad]).sum()

    return kept_bytes(module.train(), total)
