"""Lift module calls and state out of an exported program.

    before   p_fc_weight, x -> leaf_call([x], [], 7) -> getitem 0 -> aten.mul(_, p_gamma)
    after    x -> call_module fc -> aten.mul(_, get_attr gamma)

Needs: a program traced under `record_leaf_calls` with the table of its calls.
Also undoes what torch.export adds around the model's own operators: flattened inputs and outputs become the source's
arguments and structure again, `no_grad` and `autocast` regions become calls that begin and end them, and the assertions
about shapes and dtypes that only the exported program needs are left out.
Never touches: the model, the program.
"""

from __future__ import annotations

import ast
import inspect
import operator
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from repl_fx._torch import (
    children_of,
    path_of_entry,
    pytree,
    set_grad_enabled,
    torch_enter_autocast,
    torch_exit_autocast,
)
from repl_fx.errors import Untraceable
from repl_fx.graph.assigned_buffers import add_assignments
from repl_fx.graph.boundaries import move_boundaries
from repl_fx.graph.captured import attribute, drop_dead
from repl_fx.graph.runtime import (
    REGIONS,
    AutogradCall,
    check_condition,
    check_layout,
    enter_autocast,
    enter_grad_mode,
    leaf_call_operator,
)
from repl_fx.graph.signature import BoundInputs, InputNodes, output_of, step_into
from repl_fx.graph.state import named_tensors
from repl_fx.running.collection import collection_paused
from repl_fx.tracing.attempt import Attempt
from repl_fx.tracing.control_flow import words_for
from repl_fx.tracing.dynamic_shapes import put_numbers_
from repl_fx.tracing.layouts import LAYOUT_ASKED, is_stand_in
from repl_fx.tracing.parameters_outside import require_own
from repl_fx.tracing.size_questions import add_checks
from repl_fx.tracing.sizes_kept import called
from repl_fx.tracing.stamping import CallCopies

aten = torch.ops.aten

_ASSERTIONS = {
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
}
# `torch._assert` of a tensor, too.
_CHECKS = (aten._assert_async.default, aten._assert_async.msg)
# Regions of `torch.no_grad` and `torch.autocast` that an exported program in the model has packed into one node: the
# call that begins one, and how many settings it has.
_REGIONS: Mapping[Any, tuple[Any, int]] = {
    torch.ops.higher_order.wrap_with_set_grad_enabled: (enter_grad_mode, 1),
    torch.ops.higher_order.wrap_with_autocast: (enter_autocast, 4),
}
_KEPT_META = ("val", "nn_module_stack", "stack_trace")
_SLICE = re.compile(r"slice\((\S+), (\S+), (\S+)\)")


@collection_paused()
def lift_modules(program: ExportedProgram, attempt: Attempt, inputs: BoundInputs) -> fx.Graph:
    """Rewrite an exported program as a graph over the model's own modules and state.

    Args:
        attempt: the export; what it has learned gets the tensors that the trace made.
        inputs: the example inputs of the export, with the names that the graph's arguments get.

    Returns:
        A graph whose targets are paths in the model, and the names of what the trace made.

    Raises:
        Untraceable: an input of a kind that has no place in a plain graph; names it.
    """
    lifter = _Lifter(program, attempt)
    lifter.placeholders(inputs)
    results = lifter.body(program.graph_module)
    structure = program.call_spec.out_spec
    if (rebound := attempt.rebound) is not None:
        structure = children_of(structure)[0]
        add_assignments(lifter.graph, rebound, results[structure.num_leaves :])
    lifter.graph.output(output_of(lifter.graph, results[: structure.num_leaves], structure))
    put_numbers_(lifter.graph)
    drop_dead(lifter.graph)
    attempt.learned.require_written_alone(lifter.graph)
    _complete_paths_(lifter.graph, attempt.model)
    return lifter.graph


def _complete_paths_(graph: fx.Graph, model: nn.Module) -> None:
    """Give modules that the trace named within those around them, as it does where two share one, their whole paths."""
    paths = {path for path, _ in model.named_modules(remove_duplicate=False)}
    names = {module: path for path, module in model.named_modules()}
    if len(paths) == len(names):
        return
    for node in graph.nodes:
        stack, around = {}, ""
        for key, entry in (node.meta.get("nn_module_stack") or {}).items():
            path = _out_of_slices(path_of_entry(entry), model, names)
            whole = f"{around}.{path}".lstrip(".")
            around = whole if whole in paths and not f"{path}.".startswith(f"{around}.") else path
            stack[key] = (around, *entry[1:])
        if stack:
            node.meta["nn_module_stack"] = stack


def _out_of_slices(path: str, model: nn.Module, names: Mapping[nn.Module, str]) -> str:
    """The path of a module that code took out of a slice: `layers.slice(1, None, None).0` is `layers.1`."""
    if "slice(" not in path:
        return path
    module: Any = model
    for step in path.split("."):
        ends = _SLICE.fullmatch(step)
        module = getattr(module, step) if ends is None else module[slice(*map(ast.literal_eval, ends.groups()))]
    return names.get(module, path)


class _Lifter:
    def __init__(self, program: ExportedProgram, attempt: Attempt) -> None:
        self.program, self.attempt, model = program, attempt, attempt.model
        self.graph = fx.Graph()
        self.paths = {module: path for path, module in model.named_modules()}
        self.env: dict[fx.Node, Any] = {}
        self.state: dict[str, fx.Node] = {}
        specs = self.program.graph_signature.input_specs
        named = named_tensors(model)
        targets = [s.target for s in specs if s.kind in (InputKind.PARAMETER, InputKind.BUFFER)]
        # A forward may register a buffer, which the model does not have behind the trace.
        self.states = {id(named[target]): target for target in targets if target in named}
        self.copies = CallCopies(attempt.stamps, self.graph, self.paths, self.states, self.state_at)
        # The nodes that begin the regions which are open.
        self.open: list[fx.Node] = []

    def placeholders(self, inputs: BoundInputs) -> None:
        made = InputNodes(self.graph, inputs)
        signature = self.program.graph_signature
        # torch.export puts keyword arguments in the order of the signature.
        _, keywords = children_of(self.program.call_spec.in_spec)
        located = iter(inputs.located(keywords.context))
        nodes = [node for node in self.program.graph.nodes if node.op == "placeholder"]
        for node, spec in zip(nodes, signature.input_specs, strict=True):
            if spec.kind is InputKind.USER_INPUT:
                name, path, _ = next(located)
                val = node.meta.get("val")
                self.env[node] = made.at(name, path, val) if isinstance(val, Tensor) else None
                self.keep_boundaries(node)
            elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
                self.env[node] = partial(self.state_at, spec.target, node.meta.get("val"))
            elif spec.kind is InputKind.CONSTANT_TENSOR:
                tensor = self.program.constants[spec.target]
                held = self.states.get(id(tensor))
                if held is None:
                    require_own(str(spec.target), tensor, self.attempt.model)
                    held = self.attempt.learned.name(tensor)
                self.env[node] = partial(self.state_at, held, node.meta.get("val"))
            else:
                raise Untraceable(f"an input of kind {spec.kind.name} ({spec.target})")
        tensors = [self.env[node] for node in nodes if isinstance(self.env[node], fx.Node)]
        questions = self.attempt.questions
        asking = {
            module: [self.paths[one] for one in self.attempt.stamps.all_like(module) if one in self.paths]
            for module in questions.modules()
        }
        add_checks(self.graph, questions, tensors, asking)

    def body(self, gm: fx.GraphModule) -> list[Any]:
        """Emit the nodes of one (sub)graph; returns its results."""
        for node in gm.graph.nodes:
            if node.op == "output":
                while self.open:
                    # `torch.set_grad_enabled(False)` alone, to the end of the forward.
                    self.end_region(node)
                return [self.value(result) for result in pytree.tree_leaves(node.args[0])]
            if node.op == "call_function":
                self.function(gm, node)
            elif node.op == "get_attr":
                self.env[node] = attribute(gm, str(node.target))
            elif node.op != "placeholder":
                raise Untraceable(f"a node of kind {node.op}")
        raise Untraceable("a graph without an output")

    def function(self, gm: fx.GraphModule, node: fx.Node) -> None:
        source: Any = node.args[0] if node.args else None
        if node.target is leaf_call_operator():
            self.env[node] = self.leaf(node)
        elif CallCopies.is_marker(node):
            number: Any = node.args[1]
            self.env[node] = self.copies.mark(node, self.value(source), number)
        elif node.target is operator.getitem and isinstance(self.env.get(source), (list, tuple)):
            self.env[node] = self.env[source][node.args[1]]
        elif node.target in _REGIONS:
            self.env[node] = self.region(node, *_REGIONS[node.target])
        elif node.target in (set_grad_enabled, torch_enter_autocast, torch_exit_autocast):
            self.setting(node)
            return
        elif node.target in _ASSERTIONS:
            return
        elif node.target in _CHECKS:
            given = (self.value(source), True, words_for(node))
            self.emit("call_function", check_condition, given, {}, node).meta["val"] = None
            return
        elif is_stand_in(node):
            self.env[node] = self.env[source]
        elif node.target is LAYOUT_ASKED:
            checked = self.emit("call_function", check_layout, self.value(node.args), {}, node)
            # What follows takes the checked tensor, so that a block has its checks inside.
            checked.meta.update(val=source.meta["val"], passes_through=True)
            self.env[source] = checked
            return
        else:
            target, args, kwargs = called(node)
            self.env[node] = self.emit("call_function", target, self.value(args), self.value(kwargs), node)
        self.keep_boundaries(node)

    def keep_boundaries(self, node: fx.Node) -> None:
        """Note on the node of the new graph which module calls the value goes into and comes out of."""
        made = self.env.get(node)
        if isinstance(made, fx.Node):
            move_boundaries(node, made)

    def leaf(self, node: fx.Node) -> list[Any]:
        index: Any = node.args[2]
        call = self.attempt.calls.calls[index]
        args, kwargs = call.given(self.value(node.args[0]), self.value(node.args[1]))
        if isinstance(call.callee, nn.Module):
            args, kwargs = _by_position(call.callee, args, kwargs)
            made = self.emit("call_module", self.paths[call.callee], args, kwargs, node)
        else:
            made = self.emit("call_function", AutogradCall(call.callee, call.has_effect), args, kwargs, node)
        made.meta["passes_through"] = call.passes_through
        made.meta["val"] = call.returned(node.meta["val"])
        if call.result is not None and call.result.is_leaf():
            return [made]
        nodes = []
        for path, value in pytree.tree_flatten_with_path(made.meta["val"])[0]:
            if not isinstance(value, Tensor):
                continue
            part = made
            for step in path:
                part = step_into(self.graph, part, step)
                part.meta = {name: node.meta[name] for name in _KEPT_META if name in node.meta}
            part.meta["val"] = value
            nodes.append(part)
        return nodes

    def region(self, node: fx.Node, enter: Any, settings: int) -> list[Any]:
        """Put the nodes of a packed region between a call that begins it and one that ends it."""
        given = node.args[:settings]
        body: Any = node.args[settings]
        inner = self.env[body]
        placeholders = [n for n in inner.graph.nodes if n.op == "placeholder"]
        for placeholder, value in zip(placeholders, node.args[settings + 1 :], strict=True):
            self.env[placeholder] = self.env[value] if isinstance(value, fx.Node) else value
        self.begin_region(enter, given, node)
        results = self.body(inner)
        self.end_region(node)
        return results

    def setting(self, node: fx.Node) -> None:
        """Begin or end a region where the forward does; gradients are on outside of all of them."""
        if node.target is torch_enter_autocast:
            self.begin_region(enter_autocast, node.args, node)
        elif node.target is torch_exit_autocast:
            # One of gradients may be open inside, where the forward only switches them off there.
            while self.end_region(node).target is not enter_autocast:
                pass
        elif node.args[0] is not next((r.args[0] for r in reversed(self.open) if r.target is enter_grad_mode), True):
            inside = bool(self.open) and self.open[-1].target is enter_grad_mode
            # What switches them back ends the region that was begun last, unless that is one of another kind.
            self.end_region(node) if inside else self.begin_region(enter_grad_mode, node.args, node)

    def begin_region(self, enter: Any, given: Any, source: fx.Node) -> None:
        """A call that begins a region."""
        begin = self.emit("call_function", enter, tuple(given), {}, source)
        begin.meta["val"] = None
        self.open.append(begin)

    def end_region(self, source: fx.Node) -> fx.Node:
        """A call that ends the region which was begun last; returns the one that began it."""
        begin = self.open.pop()
        end = self.emit("call_function", REGIONS[begin.target], (begin,), {}, source)
        end.meta["val"] = None
        return begin

    def emit(self, op: str, target: Any, args: Any, kwargs: Any, source: fx.Node) -> fx.Node:
        made = self.graph.create_node(op, target, args, kwargs)
        made.meta = {name: source.meta[name] for name in _KEPT_META if name in source.meta}
        return made

    def value(self, argument: Any) -> Any:
        """An argument of the exported graph as an argument of the new one; state appears where it is first used."""

        def one(node: fx.Node) -> Any:
            value = self.env[node]
            if isinstance(value, nn.Module):
                raise Untraceable(f"a packed region of another kind ({node.target})")
            return value() if isinstance(value, partial) else value

        return fx.node.map_arg(argument, one)

    def state_at(self, path: str, val: Any) -> fx.Node:
        """The node for the tensor at a path, made where that is first used."""
        if path not in self.state:
            self.state[path] = self.graph.create_node("get_attr", path)
            self.state[path].meta["val"] = val
        return self.state[path]


def _by_position(
    leaf: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a leaf, by position as far as its signature goes: passes read the input of a layer there."""
    if not kwargs or leaf._forward_pre_hooks or leaf._forward_hooks:
        # A hook may tell arguments by name from those by position.
        return args, kwargs
    placed, named = list(args), dict(kwargs)
    for parameter in list(inspect.signature(leaf.forward).parameters.values())[len(args) :]:
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD or parameter.name not in named:
            break
        placed.append(named.pop(parameter.name))
    return tuple(placed), named
