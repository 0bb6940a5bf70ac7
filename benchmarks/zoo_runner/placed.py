"""Whether the model in place computes what the rewritten graph does, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo_runner.exactness import difference, fresh, loss_of, same, tensors
from repl_fx.rewriting.result import TransformResult
from repl_fx.running.untouched import seed_everything
from repl_fx.tracing.dynamic_shapes import CACHES


def require_same_in_place(result: TransformResult, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Compare outputs, gradients and buffers in both modes, under one seed.

    The graph has its syntheses one by one here, as the model in place has: where they are done together, gradients are
    added up in another order.

    Raises:
        AssertionError: something differs, says what.
    """
    graphs = result.one_by_one
    for graph in graphs.values():
        graph.recompile()
    reference, model = result.captured_parts.with_graphs(graphs), result.in_place.model
    assert model is not None
    # Counters of layers that are gone go on in the graph, which reads them no more.
    paths = [f"{replacement.block.partition('#')[0]}." for replacement in result.plan.replacements]
    gone = {id(buffer) for name, buffer in reference.named_buffers() if name.startswith(tuple(paths))}
    # Constants in the code of a graph are buffers of it, and no state of the model.
    gone |= set(map(id, reference.buffers())) - set(map(id, model.buffers()))
    for training in (False, True):
        mode = "training" if training else "evaluation"
        (expected, theirs), (found, ours) = (_step(module, args, kwargs, training) for module in (reference, model))
        problem = difference(found, expected)
        assert problem is None, f"in place, {mode}: {problem}"
        assert ours.keys() >= theirs.keys() - gone, f"in place, {mode}: some parameters have no gradient"
        differing = [key for key, value in theirs.items() if key not in gone and not same(value, ours[key])]
        assert not differing, f"in place, {mode}: {len(differing)} gradients or buffers differ"


def _step(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], training: bool
) -> tuple[list[Tensor], dict[int, Tensor]]:
    """The outputs of a step; gradients and buffers by the id of their tensor, which the two modules share."""
    module.train(training)
    module.zero_grad()
    seed_everything(1)
    given, named = fresh(args, kwargs)
    with _buffers_kept(module) as buffers:
        outputs = module(*given, **named)
        if isinstance(outputs, Mapping):
            # Of a removed block the cache has what the surrogate keeps, and that of the graph has nothing.
            outputs = {name: value for name, value in outputs.items() if name not in CACHES}
        made = tensors(outputs)
        if any(tensor.requires_grad for tensor in made):
            torch.autograd.backward(loss_of(outputs))
        state = {id(p): p.grad.detach().clone() for p in module.parameters() if p.grad is not None}
        # A forward may have put others in their places.
        state |= {id(buffer): held[name].detach().clone() for held, name, buffer in buffers}
    module.zero_grad()
    return [tensor.detach() for tensor in made], state


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[list[tuple[dict[str, Any], str, Tensor]]]:
    """The buffers of a module, with the registries and names that they have; behind it they are as they were."""
    registries = [part._buffers for part in module.modules()]
    buffers = [(held, name, b) for held in registries for name, b in held.items() if b is not None]
    values = [buffer.detach().clone() for _, _, buffer in buffers]
    yield buffers
    with torch.no_grad():
        for (held, name, buffer), value in zip(buffers, values, strict=True):
            held[name] = buffer.copy_(value)
