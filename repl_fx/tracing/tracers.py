"""The tracer: a graph over a model's own modules by torch.export, in the mode the model is in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from repl_fx.errors import ForeignError, Untraceable
from repl_fx.graph.captured import traced_constant
from repl_fx.graph.decisions import Comparison
from repl_fx.graph.signature import BoundInputs, InputNodes
from repl_fx.running.untouched import as_now
from repl_fx.tracing.attempt import Attempt, Learned
from repl_fx.tracing.control_flow import join_branches, truth_for
from repl_fx.tracing.dynamic_shapes import auto_shapes, every_dim, outer_dims
from repl_fx.tracing.lift_modules import lift_modules
from repl_fx.tracing.state_changes import buffer_settles

Tracer = Callable[[nn.Module, BoundInputs, Learned], fx.Graph]


def trace_by_export(
    model: nn.Module,
    inputs: BoundInputs,
    learned: Learned,
    *,
    dims: Callable[[Tensor], tuple[int, ...]] = every_dim,
    whole: bool = True,
) -> fx.Graph:
    """Trace with torch.export, in the mode that the model is in, and lift the leaf calls.

    Args:
        learned: collects the tensors that the trace makes.
        dims: picks the sizes of an input that are dynamic where the model agrees.
        whole: the inputs are the user's own. Those of a part come from eager code, which takes other ways by itself.
    """
    args, kwargs = inputs.inputs.args, inputs.inputs.kwargs
    # Refuses an argument that no graph can hold, by its name, which torch.export does not say.
    InputNodes(fx.Graph(), inputs)

    def free(tensor: Tensor) -> tuple[int, ...]:
        wanted = set(dims(tensor)).intersection(outer_dims(tensor) if learned.involved else every_dim(tensor))
        return tuple(dim for dim in sorted(wanted) if (id(tensor), dim) not in learned.pinned)

    # What a trace that failed leaves the next would take for the model's own.
    undo = as_now(model)
    # The answers to decisions of the forward that are one alone, by number.
    settled: dict[int, bool] = {}

    def trace(answers: Sequence[bool]) -> tuple[fx.Graph, Sequence[Comparison | None]]:
        while True:
            attempt = Attempt(model, answers, learned)
            shapes: Any = auto_shapes(inputs.inputs, dims=free)
            try:
                with attempt.watched(kwargs):
                    program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
            except (Untraceable, ForeignError) as problem:
                undo()
                if not attempt.learn_from_failure(problem):
                    raise
                continue
            if attempt.learn_from(program):
                continue
            graph = lift_modules(program, attempt, inputs)
            for buffer, reason in attempt.assigned.reshaped.items():
                read = any(node.op == "get_attr" and node.target == buffer for node in graph.nodes)
                if read or not buffer_settles(model, buffer, inputs.inputs):
                    raise Untraceable(reason)
            given = enumerate(attempt.branches.given)
            settled.update((number, answer) for number, (place, answer) in given if place in learned.survived)
            asked = attempt.branches.asked
            learned.copies = max(learned.copies, len(attempt.stamps.stamps))
            for kind, paths in attempt.modes.asked.items():
                learned.asked[kind] |= paths
            learned.called[model.training] = attempt.stamps.given()
            learned.by_mode = attempt.modes.seen or attempt.calls.by_mode or bool(asked)
            return graph, asked

    def example(condition: fx.Node) -> bool | None:
        values = dict(inputs.arguments)
        values.update((traced_constant(index), tensor) for index, tensor in enumerate(learned.tensors))
        return truth_for(condition, values) if whole else None

    try:
        return join_branches(trace, example, settled)
    except (Untraceable, ForeignError):
        if not learned.decides or learned.involved:
            raise
        settled.clear()
    # Ways that leave out a layer may leave sizes free that others fix, and cannot be joined then.
    learned.involved = ", as the forward goes its way by values or at random"
    return join_branches(trace, example, settled)
