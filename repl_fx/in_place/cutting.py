"""Cut surrogates out of a rewritten graph, each behind the signature of the module that it stands for.

    graph    add_7 [into blocks.3: x] -> narrow -> linear(_, synthesised) -> add -> add_9 [out of blocks.3]
    piece    forward(x, mask=None): narrow(x) -> linear(_, synthesised) -> add -> add_9

A piece takes the values that the module was handed; sizes are those of its own inputs; weights of neighbours are read
from the model around it.
Needs: a rewritten graph in which each synthesis is on its own, with the boundaries of module calls
(`repl_fx.graph.boundaries`).
Never touches: the graph; pieces share its tensors.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn

from repl_fx._torch import SYMBOLIC, module_stack
from repl_fx.graph.boundaries import BOUNDARIES, ModuleCall, at_boundaries, boundaries
from repl_fx.graph.captured import (
    CapturedModule,
    attribute,
    has_attribute,
    has_effect,
    is_tensor,
    is_traced_constant,
    share_tensors,
)
from repl_fx.graph.signature import is_writable, output_of, step_into
from repl_fx.in_place.inner_values import InnerValue, InnerValues
from repl_fx.in_place.state_elsewhere import StateElsewhere
from repl_fx.passes.replace_blocks import LEFT_OF
from repl_fx.surrogates.shared.site import surrogate_path
from repl_fx.tracing.parts.capture import qualified_name
from repl_fx.tracing.parts.search import keep_attributes

# The submodules of a piece: state and values of the rest of the model, and the surrogate's own modules.
ELSEWHERE = "elsewhere"
INNER = "inner_values"
OWN = "surrogate"

_STARS: Mapping[Any, str] = MappingProxyType(
    {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
)


class NotInPlace(Exception):
    """A surrogate that cannot stand in the source's own tree; the message is the reason."""


def cut_out(gm: fx.GraphModule, block: str, path: str, source: nn.Module, part: str = "") -> CapturedModule:
    """The surrogate of one block as a module.

    Args:
        gm: the rewritten graph, with syntheses one by one.
        block: name of the block.
        path: of the module that the block was, in the graph.
        source: the module that the block was.
        part: path of the graph in the model.

    Returns:
        A module with the arguments and results of `source`. Weights of the rest of the model come from its submodule
        `elsewhere`, which has to be told the model first.

    Raises:
        NotInPlace: the surrogate needs a value that the module is not handed, or the module is called in a way that no
            other module can be called in.
    """
    return _Cutter(gm, block, path, source, part).piece()


class _Cutter:
    def __init__(self, gm: fx.GraphModule, block: str, path: str, source: nn.Module, part: str) -> None:
        self.gm, self.source, self.path, self.part = gm, source, path, part
        self.own = f"{surrogate_path(block)}."
        self.inside = {
            node
            for node in gm.graph.nodes
            if block in (node.meta.get(LEFT_OF), *node.meta.get("replaces", ())[:1])
        }
        self.call, self.arguments, self.results = self._boundaries()
        self.root = self._root()
        self.graph = fx.Graph()
        self.roots = self._placeholders()
        self.env: dict[fx.Node, fx.Node] = {}
        self.elsewhere: list[str] = []
        self.inner: dict[fx.Node, InnerValue] = {}

    def _boundaries(self) -> tuple[ModuleCall, dict[fx.Node, tuple[Any, ...]], dict[int, fx.Node]]:
        """The call of the module; the place of each value among its arguments; its results by number."""
        arguments: dict[fx.Node, tuple[Any, ...]] = {}
        results: dict[int, fx.Node] = {}
        calls: set[ModuleCall] = set()
        for node, boundary in at_boundaries(self.gm.graph, self.path):
            calls.add(boundary.call)
            if boundary.argument is None:
                results[boundary.leaf] = node
            else:
                arguments.setdefault(node, boundary.argument)
        if not calls:
            raise NotInPlace(f"no call of the module {self.path} was seen in the trace")
        call = calls.pop()
        if calls or len(call.calls) > 1:
            raise NotInPlace(f"the module {self.path} is called more than once")
        if call.result is None or not all(is_writable(value) for value in call.constants.values()):
            raise NotInPlace(f"the module {self.path} returns something that is neither a tensor nor a constant")
        # Sizes come from the first value that has them: the streamed one mostly, and not a mask that may be broadcast.
        names = list(inspect.signature(self.source.forward).parameters)
        order = sorted(arguments, key=lambda node: names.index(arguments[node][0].key))
        return call, {node: arguments[node] for node in order}, results

    def _root(self) -> nn.Module:
        """The modules and the state of the piece: those left of the block, and those of the surrogate."""
        root = share_tensors(self.gm.get_submodule(self.path)) if has_attribute(self.gm, self.path) else nn.Module()
        for name in (OWN, ELSEWHERE, INNER):
            if hasattr(root, name):
                raise NotInPlace(f"the module {self.path} has an attribute {name} already")
        if has_attribute(self.gm, self.own[:-1]):
            root.add_module(OWN, share_tensors(self.gm.get_submodule(self.own[:-1])))
        return root

    def _placeholders(self) -> dict[str, fx.Node]:
        """The arguments of the source, by name."""
        roots: dict[str, fx.Node] = {}
        optional = False
        for parameter in inspect.signature(self.source.forward).parameters.values():
            stars = _STARS.get(parameter.kind, "")
            # Python wants every argument after an optional one to be optional too.
            optional = not stars and (optional or parameter.default is not parameter.empty)
            default = parameter.default if parameter.default is not parameter.empty else None
            args = (default if is_writable(default) else None,) if optional else ()
            roots[parameter.name] = self.graph.create_node("placeholder", f"{stars}{parameter.name}", args)
            roots[parameter.name].meta["val"] = None
        return roots

    def piece(self) -> CapturedModule:
        """The surrogate as a module."""
        needed = self._needed()
        self._take_inner_values()
        for node in self.gm.graph.nodes:
            if node in needed:
                self._place(node)
        assert self.call.result is not None
        leaves = [self._result(number) for number in range(self.call.result.num_leaves)]
        self.graph.output(output_of(self.graph, leaves, self.call.result))
        if self.elsewhere:
            self.root.add_module(ELSEWHERE, StateElsewhere(self.elsewhere))
        self.root.training = self.gm.training
        piece = CapturedModule(self.root, self.graph, f"{type(self.source).__name__}Surrogate")
        inner = f"{self.path}."
        piece.meta["pinned"] = {
            path.removeprefix(inner): mode
            for path, mode in self.gm.meta.get("pinned", {}).items()
            if path.startswith(inner)
        }
        keep_attributes(self.source, piece)
        return piece

    def _needed(self) -> set[fx.Node]:
        """The nodes that the results of the module and the effects of the surrogate need."""
        pending = [*self.results.values(), *(node for node in self.inside if has_effect(node))]
        needed: set[fx.Node] = set()
        while pending:
            node = pending.pop()
            if node in needed or node in self.arguments or self._size(node) is not None:
                continue
            if node not in self.inside and node.op != "get_attr" and not self._is_number(node):
                value = self._inner_value(node)
                if value is not None:
                    self.inner[node] = value
                    continue
                if node.op != "call_function" or has_effect(node):
                    place = ".".join(module_stack(node)[-1:]) or "the model"
                    raise NotInPlace(f"it reads {node.name} of {place}, which {self.path} is not handed")
            needed.add(node)
            pending += node.all_input_nodes
        return needed

    def _inner_value(self, node: fx.Node) -> InnerValue | None:
        """A value from outside, where it is the result of a module that is called once; None where it is not."""
        for boundary in boundaries(node):
            if boundary.argument is None and len(boundary.call.calls) == 1:
                return InnerValue(qualified_name(self.part, boundary.call.path), boundary.leaf)
        if node.op != "call_module":
            return None
        calls = self.gm.graph.find_nodes(op="call_module", target=node.target)
        return InnerValue(qualified_name(self.part, str(node.target)), None) if len(calls) == 1 else None

    def _take_inner_values(self) -> None:
        """Nodes for values of other modules, before all else: a surrogate takes each of them at each call."""
        if not self.inner:
            return
        self.root.add_module(INNER, InnerValues(list(self.inner.values())))
        taken = self.graph.call_module(INNER)
        taken.meta["val"] = tuple(node.meta.get("val") for node in self.inner)
        for number, node in enumerate(self.inner):
            self.env[node] = self.graph.call_function(operator.getitem, (taken, number))
            self.env[node].meta["val"] = node.meta.get("val")

    def _is_number(self, node: fx.Node) -> bool:
        return isinstance(node.meta.get("val"), (bool, int, float, *SYMBOLIC)) and node.op == "call_function"

    def _size(self, node: fx.Node) -> tuple[fx.Node, int] | None:
        """The argument and the dimension whose size is the value of a node."""
        value = node.meta.get("val")
        if not isinstance(value, torch.SymInt):
            return None
        for argument in self.arguments:
            shape = argument.meta["val"].shape if is_tensor(argument) else ()
            for dim, size in enumerate(shape):
                if isinstance(size, torch.SymInt) and str(size) == str(value):
                    return argument, dim
        return None

    def _place(self, node: fx.Node) -> None:
        """Put a node of the graph into the piece."""
        if node.op == "get_attr":
            made = self._state(str(node.target))
        else:
            target = node.target
            if node.op == "call_module":
                target = self._local(str(target))
                if target is None:
                    raise NotInPlace(f"it calls {node.target}, which is outside of {self.path}")
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._value)
            made = self.graph.create_node(node.op, target, args, kwargs)
        made.meta = {name: note for name, note in node.meta.items() if name != BOUNDARIES}
        self.env[node] = made

    def _state(self, target: str) -> fx.Node:
        """A node that reads a parameter, a buffer or a flag of the graph."""
        local = self._local(target)
        if local is not None:
            return self.graph.create_node("get_attr", local)
        if is_traced_constant(target):
            self.root.register_buffer(target, attribute(self.gm, target), persistent=False)
            return self.graph.create_node("get_attr", target)
        self.elsewhere.append(qualified_name(self.part, target))
        if len(self.elsewhere) == 1:
            self.all_elsewhere = self.graph.call_module(ELSEWHERE)
            self.all_elsewhere.meta["val"] = None
        return self.graph.call_function(operator.getitem, (self.all_elsewhere, len(self.elsewhere) - 1))

    def _local(self, target: str) -> str | None:
        """The path in the piece of what is at a path of the graph; None where it is outside of the block."""
        for prefix, place in ((f"{self.path}.", ""), (self.own, f"{OWN}.")):
            if target.startswith(prefix):
                return place + target.removeprefix(prefix)
        return None

    def _value(self, node: fx.Node) -> fx.Node:
        """The node of the piece that has the value of a node of the graph."""
        if node not in self.env:
            size = self._size(node)
            if node in self.arguments:
                name, *path = self.arguments[node]
                made = self.roots[name.key]
                for step in path:
                    made = step_into(self.graph, made, step)
                    made.meta["val"] = None
            else:
                assert size is not None
                argument, dim = size
                made = self.graph.call_function(torch.ops.aten.sym_size.int, (self._value(argument), dim))
            made.meta["val"] = node.meta.get("val")
            self.env[node] = made
        return self.env[node]

    def _result(self, number: int) -> Any:
        """A leaf of the result; None for a value that only the removed block had."""
        if number in self.call.constants:
            return self.call.constants[number]
        return self._value(self.results[number]) if number in self.results else None
