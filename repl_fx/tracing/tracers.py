"""Tracers: ways to get a graph over a model's own modules, in the mode the model is in."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from repl_fx._torch import (
    OperatorsSeen,
    any_names,
    autocast_cache_as_outside,
    autograd_calls,
    buffer_hooks_restored,
    lean_tracing,
    memory_of,
    pytree,
    quiet_tracing,
)
from repl_fx.config import stamp_calls
from repl_fx.errors import ForeignError, Untraceable, foreign_code
from repl_fx.graph.assigned_buffers import BufferAssignments, assigned_by
from repl_fx.graph.decisions import Comparison
from repl_fx.graph.runtime import AutogradCall
from repl_fx.graph.signature import BoundInputs, InputNodes
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.opaque_outputs import open_objects
from repl_fx.running.untouched import as_now
from repl_fx.tracing.attributes_aside import AttributesAside, ModeReads
from repl_fx.tracing.control_flow import join_branches, truth_for
from repl_fx.tracing.data_dependent import DataDependentBranches, constant_numbers, recorded
from repl_fx.tracing.dynamic_shapes import auto_shapes, every_dim, outer_dims
from repl_fx.tracing.hooks import no_tensor_hooks
from repl_fx.tracing.known_shapes import FAKES
from repl_fx.tracing.layouts import Layouts
from repl_fx.tracing.leaf_calls import LeafCalls, LeafNotOpaque, attention_kernels, record_leaf_calls
from repl_fx.tracing.leaves import is_leaf
from repl_fx.tracing.lift_modules import Exported, Learned, lift_modules
from repl_fx.tracing.model_checks import causes_of
from repl_fx.tracing.module_calls import record_module_calls
from repl_fx.tracing.questions import Asked, is_bounded, unaware_of_export
from repl_fx.tracing.settled import buffer_settles
from repl_fx.tracing.size_questions import SizeQuestions, lengths_symbolic, whole_symbolic
from repl_fx.tracing.size_tensors import SizeTensors
from repl_fx.tracing.stamping import Stamps
from repl_fx.tracing.state_changes import forward_replaced

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
        wanted = outer_dims(tensor) if learned.involved else dims(tensor)
        return tuple(dim for dim in wanted if (id(tensor), dim) not in learned.pinned)

    # What a trace that failed leaves the next would take for the model's own.
    undo = as_now(model)

    def trace(answers: Sequence[bool]) -> tuple[fx.Graph, Sequence[Comparison | None]]:
        while True:
            attempt = _Attempt(model, answers, learned)
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
            exported = Exported(program, attempt.calls, attempt.questions, attempt.stamps, attempt.rebound)
            graph = lift_modules(exported, model, inputs, learned)
            for buffer, reason in attempt.assigned.reshaped.items():
                read = any(node.op == "get_attr" and node.target == buffer for node in graph.nodes)
                if read or not buffer_settles(model, buffer, inputs.inputs):
                    raise Untraceable(reason)
            asked = attempt.branches.asked
            learned.by_mode = attempt.modes.seen or attempt.calls.by_mode or bool(asked)
            return graph, asked

    def example(condition: fx.Node) -> bool | None:
        values = dict(inputs.arguments)
        values.update((learned.name(tensor), tensor) for tensor in list(learned.tensors))
        return truth_for(condition, values) if whole else None

    return join_branches(trace, example)


class _Attempt:
    """One export of a model, with all that watches it."""

    def __init__(self, model: nn.Module, answers: Sequence[bool], learned: Learned) -> None:
        self.model = model
        self.learned = learned
        self.calls = LeafCalls(learned.inlined)
        self.asked = Asked()
        self.assigned = BufferAssignments()
        self.questions = SizeQuestions(
            self.calls.is_running,
            learned.reasons,
            learned.involved,
            decides=learned.decides,
            unlimited=lambda: self.asked.yes and not learned.aware,
        )
        self.branches = DataDependentBranches(answers, self.calls.is_running)
        self.aside = AttributesAside(self.calls.is_running)
        self.modes = ModeReads(model, self.aside)
        stamped = learned.stamped and stamp_calls()
        self.stamps = Stamps(model, self.calls, self.aside, self.branches, on=stamped)

    @contextmanager
    def watched(self, kwargs: Mapping[str, Any]) -> Iterator[None]:
        """Watch the export that runs inside, on these keyword arguments."""
        with (
            record_leaf_calls(self.model, self.calls),
            self.aside.served(),
            self.modes.noted(),
            record_module_calls(self.model, self.stamps),
            buffer_hooks_restored(),
            no_tensor_hooks(self.calls.is_running),
            quiet_tracing(),
            lean_tracing(FAKES),
            autocast_cache_as_outside(),
            any_names(),
            _spelled_out(self.model, kwargs, self.calls, self.assigned),
            self.questions.noted(),
            lengths_symbolic(),
            whole_symbolic((self.learned.whole_numbers or {}).values()),
            recorded(self.branches, Layouts(self.calls), SizeTensors()),
            unaware_of_export(self.asked, unaware=not self.learned.aware),
            foreign_code(),
        ):
            yield

    @property
    def rebound(self) -> Sequence[tuple[str, str]] | None:
        """The buffers that the program returns new values of; None where it returns its own outputs alone."""
        return None if _is_interpreted(self.model) else self.assigned.buffers

    def learn_from_failure(self, problem: Exception) -> bool:
        """Learn what the next attempt may do otherwise; whether there is anything."""
        learned = self.learned
        if learned.whole_numbers:
            learned.whole_numbers = None
        elif self.questions.exceeded is not None and not learned.involved:
            learned.involved = f", as the arithmetic on sizes is too involved to follow{self.questions.exceeded}"
        elif self.calls.inlined != learned.inlined and any(
            LeafNotOpaque.__name__ in repr(cause) for cause in causes_of(problem)
        ):
            learned.inlined.update(self.calls.inlined)
        elif self.asked.yes and not learned.aware:
            learned.aware = True
        elif self.stamps.regions and learned.stamped and isinstance(problem, ForeignError):
            learned.stamped = False
        else:
            return False
        return True

    def learn_from(self, program: ExportedProgram) -> bool:
        """Learn what the export has shown; whether it has to be made again with that."""
        learned = self.learned
        if toggled := self.calls.toggled():
            learned.inlined.update(toggled)
        elif self.asked.yes and not learned.aware and is_bounded(program):
            learned.aware = True
        elif self.branches.asked and not learned.involved:
            # Ways that leave out a layer leave sizes free that others fix, and could not be joined.
            learned.involved, learned.decides = ", as the forward goes its way by values or at random", True
        elif learned.whole_numbers is not None and self.questions.whole.keys() - learned.whole_numbers.keys():
            learned.whole_numbers.update(self.questions.whole)
        elif new := _pinned(program, self.questions):
            learned.pinned.update(new)
            learned.reasons.update(self.questions.pinned)
        else:
            return False
        return True


def _pinned(program: ExportedProgram, questions: SizeQuestions) -> set[tuple[int, int]]:
    """The sizes that are symbolic in a program and can be no other: `id` of the example input, and the dimension."""
    traced = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    inputs = zip(program.graph_signature.user_inputs, pytree.tree_leaves(program.example_inputs), strict=True)
    tensors = [(given, value.shape) for name, given in inputs if isinstance(value := traced.get(str(name)), Tensor)]
    return {(id(tensors[number][0]), dim) for number, dim in questions.settle([shape for _, shape in tensors])}


def _hooked(model: nn.Module, hooks: Mapping[int, Any], args: Any, kwargs: Any, results: Any) -> Any:
    """The results of a forward after the model's forward hooks."""
    for key, hook in hooks.items():
        given = (args, kwargs) if key in model._forward_hooks_with_kwargs else (args,)
        changed = hook(model, *given, results)
        results = results if changed is None else changed
    return results


def _is_interpreted(model: nn.Module) -> bool:
    """Whether torch.export runs a model node by node, past its forward, which keeps what the nodes note.

    One that rebinds buffers is traced like any other module, as its forward has to say which.
    """
    graphs = [module.graph for module in model.modules() if isinstance(module, fx.GraphModule)]
    return isinstance(model, fx.GraphModule) and not any(assigned_by(node) for graph in graphs for node in graph.nodes)


@contextmanager
def _spelled_out(
    model: nn.Module, kwargs: Mapping[str, Any], calls: LeafCalls, assigned: BufferAssignments
) -> Iterator[None]:
    """Let the forward say what torch.export cannot see by itself.

    Its signature names what is passed through its `**kwargs`, objects in its result show the tensors they hold, and the
    buffers it rebinds leave it as further results.
    """
    if isinstance(model, fx.GraphModule) and not _is_interpreted(model):
        kind = type(model)
        plain: Any = type(kind.__name__, (nn.Module,), {"forward": kind.forward, "graph_root": property(lambda gm: gm)})
        model.__class__ = plain
        try:
            with _spelled_out(model, kwargs, calls, assigned):
                yield
        finally:
            model.__class__ = kind
        return
    own = model.forward
    signature = inspect.signature(own)
    named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    passed = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY) for n in kwargs if n not in signature.parameters]

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.begin(model)
        with assigned.noted(model, lambda module: module is not model and calls.stands_aside(module)):
            results = open_objects(_hooked(model, hooks, args, kwargs, own(*args, **kwargs)))
        return results, list(assigned.values)

    spelled: Any = forward
    spelled.__signature__ = signature.replace(parameters=[*named, *passed]) if passed else signature
    # Hooks on the model's result must not see the buffers.
    hooks = dict(model._forward_hooks)
    with patch.dict(model._forward_hooks, clear=True), forward_replaced(model, forward):
        yield


def trace_by_fx(
    model: nn.Module,
    inputs: BoundInputs,
    learned: Learned,
    *,
    whole: bool = True,
) -> fx.Graph:
    """Trace with `fx.Tracer`, which takes the forward's Python away, and what is left with `trace_by_export`."""
    given = inputs.arguments
    fixed = {n: v for n, v in given.items() if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(v))}
    tracer = _LeafTracer()
    # fx warns that it cannot assert that an odd constant stays what it was; `check_constant` does.
    with (
        quiet_tracing(),
        autograd_calls(tracer.autograd_call),
        constant_numbers(),
        no_tensor_hooks(lambda: False),
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
    graph = fx.Graph()
    roots = InputNodes(graph, inputs).roots
    env: dict[fx.Node, fx.Node] = {}
    for node in traced.nodes:
        if node.op == "placeholder":
            if str(node.target).startswith("*") and node.users:
                raise Untraceable(f"fx cannot tell what the forward takes by {node.target}")
            if node.target in roots.keys() - fixed.keys():
                env[node] = roots[node.target]
        elif node.op == "call_method" and node.target in _ON_ONE_TENSOR:
            raise Untraceable(f"the forward calls {node.target}, which a graph would drop")
        elif node.op == "output":
            # Where a fixed argument is nested, fx keeps the leaves of the output.
            graph.output(traced.process_outputs(fx.node.map_arg(node.args[0], env.__getitem__)))
        elif all(feeder in env for feeder in node.all_input_nodes):
            # All but the checks that a fixed argument keeps its value, which `InputNodes` makes.
            env[node] = graph.node_copy(node, env.__getitem__)
    with any_names():
        plain = fx.GraphModule(model, graph)
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


def _state_unread(model: nn.Module) -> OperatorsSeen:
    """Refuses operators on parameters and buffers themselves: fx sees none of them, and bakes in what they return."""
    memory = {memory_of(tensor) for tensor in (*model.parameters(), *model.buffers())}

    def see(operator: Any, args: Any, kwargs: Any) -> None:
        if torch.Tag.nondeterministic_seeded in operator.tags:
            raise Untraceable(f"fx would bake in what {operator} draws")
        for leaf in pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and memory_of(leaf) in memory:
                raise Untraceable(f"fx would bake in what {operator} computes from a parameter or a buffer")

    return OperatorsSeen(see)


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

    def autograd_call(self, function: type[torch.autograd.Function], apply: Callable[..., Any]) -> Callable[..., Any]:
        """The stand-in for `apply`: fx would trace into the forward, and lose the backward."""

        def call(*args: Any) -> Any:
            if any(isinstance(leaf, fx.Proxy) for leaf in pytree.tree_leaves(args)):
                return self.create_proxy("call_function", AutogradCall(function), args, {})
            return apply(*args)

        return call
