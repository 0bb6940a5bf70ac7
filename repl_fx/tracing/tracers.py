"""Tracers: ways to get a graph over a model's own modules, in the mode the model is in."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from repl_fx._torch import OperatorsRun, any_names, autograd_calls, memory_of, pytree, quiet_tracing
from repl_fx.errors import ForeignError, Untraceable, foreign_code
from repl_fx.graph.assigned_buffers import BufferAssignments
from repl_fx.graph.decisions import Comparison
from repl_fx.graph.runtime import AutogradCall
from repl_fx.graph.signature import BoundInputs, InputNodes
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.untouched import as_now
from repl_fx.tracing.attempt import Attempt, Learned
from repl_fx.tracing.control_flow import join_branches, truth_for
from repl_fx.tracing.data_attributes import DataAttributes
from repl_fx.tracing.data_dependent import constant_numbers
from repl_fx.tracing.dynamic_shapes import auto_shapes, every_dim, outer_dims
from repl_fx.tracing.functions_watched import FunctionsWatched
from repl_fx.tracing.hooks import no_tensor_hooks
from repl_fx.tracing.leaf_calls import attention_kernels
from repl_fx.tracing.leaves import is_leaf
from repl_fx.tracing.lift_modules import lift_modules
from repl_fx.tracing.state_changes import buffer_settles

# Methods that belong to the one tensor of a trace.
_ON_ONE_TENSOR = ("register_hook", "register_post_accumulate_grad_hook", "retain_grad", "backward", "requires_grad_")

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

    def free(tensor: Tensor) -> tuple[int, ...]:
        wanted = set(dims(tensor)).intersection(outer_dims(tensor) if learned.involved else every_dim(tensor))
        return tuple(dim for dim in sorted(wanted) if (id(tensor), dim) not in learned.pinned)

    # What a trace that failed leaves the next would take for the model's own.
    undo = as_now(model)

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
            asked = attempt.branches.asked
            learned.copies = max(learned.copies, len(attempt.stamps.stamps))
            learned.by_mode = attempt.modes.seen or attempt.calls.by_mode or bool(asked)
            return graph, asked

    def example(condition: fx.Node) -> bool | None:
        values = dict(inputs.arguments)
        values.update((learned.name(tensor), tensor) for tensor in list(learned.tensors))
        return truth_for(condition, values) if whole else None

    try:
        return join_branches(trace, example)
    except (Untraceable, ForeignError):
        if not learned.decides or learned.involved:
            raise
    # Ways that leave out a layer may leave sizes free that others fix, and cannot be joined then.
    learned.involved = ", as the forward goes its way by values or at random"
    return join_branches(trace, example)


def trace_by_fx(model: nn.Module, inputs: BoundInputs, learned: Learned, *, whole: bool = True) -> fx.Graph:
    """Trace with `fx.Tracer`, which takes the forward's Python away, and what is left with `trace_by_export`."""
    given = inputs.arguments
    fixed = {n: v for n, v in given.items() if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(v))}
    tracer = _LeafTracer()
    # fx warns that it cannot assert that an odd constant stays what it was; `check_constant` does.
    with (
        quiet_tracing(),
        autograd_calls(tracer.autograd_call),
        constant_numbers(lambda: False),
        no_tensor_hooks(lambda: False),
        FunctionsWatched([DataAttributes(lambda: False)]),
        _state_unread(model),
        (assigned := BufferAssignments()).noted(model, lambda module: False),
        foreign_code(),
    ):
        defaults = {n: p.default for n, p in inspect.signature(model.forward).parameters.items() if n not in given}
        omitted = {n: v for n, v in defaults.items() if v is not inspect.Parameter.empty and not isinstance(v, Tensor)}
        traced = tracer.trace(model, {**omitted, **fixed})
    if any(leaf.training is not training for leaf, training in tracer.modes):
        raise Untraceable("fx cannot call a module in another mode than the forward leaves it in")
    if assigned.buffers:
        raise Untraceable(f"fx cannot rebind a buffer ({'.'.join(assigned.buffers[0]).lstrip('.')})")
    with any_names():
        plain = fx.GraphModule(model, _of_inputs(traced, inputs, fixed))
    # Tensors that the trace met are no state of the model; `fx.GraphModule` takes them for buffers.
    for name in {n for n, _ in plain.named_buffers()} - {n for n, _ in model.named_buffers(remove_duplicate=False)}:
        owner, _, attribute = name.rpartition(".")
        holder = plain.get_submodule(owner)
        vars(holder)[attribute] = holder._buffers.pop(attribute)
    positional = BoundInputs(ExampleInputs(tuple(given.values())), inputs.arguments, inputs.defaults)
    graph = trace_by_export(plain, positional, learned, whole=whole)
    # What read the mode was the model's Python, which is gone.
    learned.by_mode = True
    return graph


def _of_inputs(traced: fx.Graph, inputs: BoundInputs, fixed: Collection[str]) -> fx.Graph:
    """The graph of a trace on the inputs that vary, by the names that they get."""
    graph = fx.Graph()
    roots = InputNodes(graph, inputs).roots
    env: dict[fx.Node, fx.Node] = {}
    for node in traced.nodes:
        if node.op == "placeholder":
            if str(node.target).startswith("*") and node.users:
                raise Untraceable(f"fx cannot tell what the forward takes by {node.target}")
            if node.target in roots and node.target not in fixed:
                env[node] = roots[node.target]
        elif node.op == "call_method" and node.target in _ON_ONE_TENSOR:
            raise Untraceable(f"the forward calls {node.target}, which a graph would drop")
        elif node.op == "output":
            # Where a fixed argument is nested, fx keeps the leaves of the output.
            graph.output(traced.process_outputs(fx.node.map_arg(node.args[0], env.__getitem__)))
        elif all(feeder in env for feeder in node.all_input_nodes):
            # All but the checks that a fixed argument keeps its value, which `InputNodes` makes.
            env[node] = graph.node_copy(node, env.__getitem__)
    return graph


def _state_unread(model: nn.Module) -> OperatorsRun:
    """Refuses operators on parameters and buffers themselves: fx sees none of them, and bakes in what they return."""
    memory = {memory_of(tensor) for tensor in (*model.parameters(), *model.buffers())}

    def run(operator: Any, args: Any, kwargs: Any) -> Any:
        if torch.Tag.nondeterministic_seeded in operator.tags:
            raise Untraceable(f"fx would bake in what {operator} draws")
        for leaf in pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and memory_of(leaf) in memory:
                raise Untraceable(f"fx would bake in what {operator} computes from a parameter or a buffer")
        return operator(*args, **kwargs)

    return OperatorsRun(run)


class _Proxy(fx.Proxy):
    """A proxy that is not told what `.data` it has, or to be frozen, as its node would go on without it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("data", "requires_grad"):
            raise Untraceable(f"fx cannot trace a forward that sets `.{name}` of a tensor")
        super().__setattr__(name, value)


class _LeafTracer(fx.Tracer):
    """An fx tracer that stops at the same leaves as the other tracers, and notes the mode that each is in."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[tuple[nn.Module, bool]] = []
        self.kernels = attention_kernels()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if any(isinstance(parameter, fx.Proxy) for parameter in m._parameters.values()):
            raise Untraceable(f"fx cannot call {module_qualified_name} with other parameters than its own")
        if is_leaf(m):
            self.modes.append((m, m.training))
        return is_leaf(m)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Make a node, or refuse one in a region that fx would silently leave out."""
        if not torch.is_grad_enabled():
            raise Untraceable("fx cannot trace a torch.no_grad region")
        if any(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")):
            raise Untraceable("fx cannot trace a torch.autocast region")
        if attention_kernels() != self.kernels:
            raise Untraceable("fx cannot trace an sdpa_kernel region")
        return super().create_node(*args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        """An argument or result as fx writes it, but for a container that fx would put a plain one in the place of."""
        if isinstance(a, (dict, list)) and pytree.tree_structure(a).is_leaf():
            raise Untraceable(f"fx cannot keep a {type(a).__name__}, a container of a class of its own")
        return super().create_arg(a)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def autograd_call(self, function: type[torch.autograd.Function], apply: Callable[..., Any]) -> Callable[..., Any]:
        """The stand-in for `apply`: fx would trace into the forward, and lose the backward."""
        recorded = torch.is_grad_enabled()

        def call(*args: Any) -> Any:
            if any(isinstance(leaf, fx.Proxy) for leaf in pytree.tree_leaves(args)):
                with torch.set_grad_enabled(recorded):
                    return self.create_proxy("call_function", AutogradCall(function), args, {})
            return apply(*args)

        return call
