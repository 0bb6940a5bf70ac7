"""The place where a surrogate works: a block, its neighbours, and the edits a surrogate may make there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from repl_fx._torch import enable_python_dispatcher, fake_of, pytree
from repl_fx.analysis.blocks import Block
from repl_fx.analysis.branches import Split, split_branches
from repl_fx.analysis.linear_operators import LinearOperator, linear_operator_of
from repl_fx.graph.captured import add_module, attribute, get_attr, has_attribute, share_tensors, unique_name
from repl_fx.surrogates.shared.synthesis import Synthesis

_CALLS = ("call_function", "call_module")


def surrogate_path(block: str) -> str:
    """Where the modules of the surrogate of a block of this name live."""
    return f"surrogates.{block.replace('.', '_')}"


def shown(sizes: Iterable[Any]) -> str:
    """Sizes as messages give them, such as 64x3x3x3."""
    return "x".join(str(size) for size in sizes)


@dataclass(frozen=True)
class Call:
    """A call of a node of the block, on its own arguments or on others.

    Attributes:
        node: which.
        args, kwargs: its arguments.
        value: what it makes.
    """

    node: fx.Node
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    value: Any

    @classmethod
    def of(cls, node: fx.Node) -> Call:
        """The call that a node is."""
        return cls(node, node.args, node.kwargs, node.meta["val"])


class Site:
    """A block to be replaced in a graph, with the kept blocks before and after it.

    Args:
        graph_module: the graph, which may be changed.
        block: the block to replace.
        before: the nearest kept block before it in its repeat.
        after: the nearest kept block after it.
        inputs: the values the block takes now; they differ from `block.inputs` when the block before was replaced too.
        surrogate: key of the surrogate, noted on every node made here.
        known: fake results of calls, shared by the sites of one graph: isomorphic blocks make the same calls, and the
            fake value costs more than all else about a node.
    """

    def __init__(
        self,
        graph_module: fx.GraphModule,
        block: Block,
        before: Block,
        after: Block,
        inputs: tuple[fx.Node, ...],
        surrogate: str,
        known: dict[str, Any] | None = None,
    ) -> None:
        self.graph_module = graph_module
        self.block = block
        self.before = before
        self.after = after
        self.inputs = inputs
        self.surrogate = surrogate
        self.path = surrogate_path(block.name)
        self._known = {} if known is None else known

    @property
    def input(self) -> fx.Node:
        """The value the block takes now, the first of several."""
        return self.inputs[0]

    @property
    def neighbours(self) -> tuple[Block, Block]:
        """The block before and the block after."""
        return self.before, self.after

    def counterpart(self, node: fx.Node, neighbour: Block) -> fx.Node:
        """The node of a neighbour that plays the part of `node` in the block."""
        return neighbour.nodes[self.block.nodes.index(node)]

    def counterpart_parameter(self, path: str, neighbour: Block) -> str:
        """The parameter of a neighbour that plays the part of the block's parameter at `path`."""
        return neighbour.parameters[self.block.parameters.index(path)]

    def counterpart_parameters(self, path: str) -> tuple[str, str]:
        """The parameters of both neighbours that play the part of the block's parameter at `path`."""
        return self.counterpart_parameter(path, self.before), self.counterpart_parameter(path, self.after)

    def counterpart_operator(self, linear: LinearOperator, neighbour: Block) -> LinearOperator:
        """The linear operator of a neighbour that plays the part of one of the block's."""
        found = linear_operator_of(self.graph_module, self.counterpart(linear.node, neighbour))
        assert found is not None
        return found

    @contextmanager
    def before_node(self, node: fx.Node) -> Iterator[None]:
        """Put the nodes made meanwhile right before `node`."""
        with self.graph_module.graph.inserting_before(node):
            yield

    def parameter(self, path: str) -> fx.Node:
        """A node that reads a parameter or buffer."""
        return self._mark(get_attr(self.graph_module, path))

    def module(self, name: str, module: nn.Module) -> str:
        """Add a module of the surrogate's own; returns its path."""
        path = f"{self.path}.{name}"
        if has_attribute(self.graph_module, path):
            path = f"{self.path}.{unique_name(self.graph_module.get_submodule(self.path), name)}"
        module.train(self.graph_module.training)
        add_module(self.graph_module, path, module)
        return path

    def call_module(self, path: str, *args: Any) -> fx.Node:
        """A node that calls a module of the graph."""
        node = self._mark(self.graph_module.graph.call_module(path, args))
        node.meta["val"] = self.computed(node, args, {})
        return node

    def call_elementwise(self, path: str, value: fx.Node) -> fx.Node:
        """A node that calls a module whose result has the shape and dtype of its one argument."""
        node = self._mark(self.graph_module.graph.call_module(path, (value,)))
        node.meta["val"] = value.meta["val"]
        return node

    def repeat(self, call: Call) -> fx.Node:
        """A node that makes a call."""
        made = self._mark(self.graph_module.graph.create_node(call.node.op, call.node.target, call.args, call.kwargs))
        made.meta["val"] = call.value
        return made

    def call_on_state(self, path: str, state: Sequence[fx.Node], call: Call) -> fx.Node:
        """A node that calls the module at `path` on state and then on the arguments of a call."""
        made = self._mark(self.graph_module.graph.call_module(path, (*state, *call.args), call.kwargs))
        made.meta["val"] = call.value
        return made

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A node that calls a function."""
        node = self._mark(self.graph_module.graph.call_function(function, args, kwargs))
        given = pytree.tree_map_only(fx.Node, lambda n: _Kind(n.meta["val"]), (args, kwargs))
        node.meta["val"] = self._once(f"{function!r} {given!r}", lambda: self._computed(function, args, kwargs))
        return node

    def synthesise(self, name: str, synthesis: Synthesis, *weights: fx.Node) -> fx.Node:
        """Add a synthesis and call it on neighbours' weights."""
        node = self._mark(self.graph_module.graph.call_module(self.module(name, synthesis), weights))
        # Settings such as a width decide the result's shape as much as the state does.
        settings = {name: value for name, value in vars(synthesis).items() if not name.startswith("_")}
        kinds = [_Kind(tensor) for tensor in (*synthesis.parameters(), *(weight.meta["val"] for weight in weights))]
        call = f"{type(synthesis)!r} {settings!r} {kinds!r}"
        node.meta["val"] = self._once(call, lambda: self._shapes_of(synthesis, weights))
        return node

    def _shapes_of(self, synthesis: Synthesis, weights: tuple[fx.Node, ...]) -> Any:
        """Fake results of a synthesis. Weights have fixed sizes, so the meta device will do, and is faster."""
        tensors = (*synthesis.named_parameters(), *synthesis.named_buffers())
        state = {name: tensor.detach().to("meta") for name, tensor in tensors}
        values = [node.meta["val"] for node in weights]
        given = [torch.empty(tuple(value.shape), dtype=value.dtype, device="meta") for value in values]
        with torch.no_grad():
            made = torch.func.functional_call(synthesis, state, tuple(given))
        return pytree.tree_map_only(Tensor, self._fake, made)

    def _fake(self, tensor: Tensor) -> Tensor:
        mode = self.graph_module.meta.get("fake_mode")
        return tensor if mode is None else fake_of(mode, tensor, self.graph_module.meta["device"])

    @cached_property
    def split(self) -> Split:
        """Spine and branches of the block, before anything was changed in it."""
        return split_branches(self.graph_module, replace(self.block, inputs=self.inputs))

    @cached_property
    def weight_nodes(self) -> frozenset[fx.Node]:
        """The modules of its own, such as dropout, that the block's weights go through before the block reads them.

        These nodes depend on parameters alone, so that they are no part of a block between two streamed values.
        """
        constant: set[fx.Node] = set()
        for node in self.graph_module.graph.nodes:
            feeders = node.all_input_nodes
            if node.op == "get_attr" or (node.op in _CALLS and feeders and constant.issuperset(feeders)):
                constant.add(node)
        inside = self.block.node_set
        found: set[fx.Node] = set()
        for node in sorted(constant - inside, reverse=True):
            if node.op in _CALLS and node.users and all(user in inside or user in found for user in node.users):
                found.add(node)
        return frozenset(found)

    def tensor(self, path: str) -> Tensor:
        """A parameter or buffer of the graph."""
        found = attribute(self.graph_module, path)
        assert isinstance(found, Tensor)
        return found

    def _mark(self, node: fx.Node) -> fx.Node:
        source = self.block.output
        node.meta.setdefault("nn_module_stack", source.meta.get("nn_module_stack"))
        node.meta["stack_trace"] = source.meta.get("stack_trace")
        node.meta["replaces"] = (self.block.name, self.surrogate)
        return node

    def computed(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """The fake result of the call of a node on fake values.

        Raises:
            RuntimeError, TypeError, ValueError, IndexError, AssertionError: the call does not take such values.
        """
        if node.op == "call_module":
            module = self.graph_module.get_submodule(str(node.target))
            return self._computed(lambda *a, **k: _call_on_fakes(module, a, k), args, kwargs)
        function: Any = getattr(type(args[0]), str(node.target)) if node.op == "call_method" else node.target
        return self._computed(function, args, kwargs)

    def value_of(self, function: Callable[..., Any], *args: Any) -> Any:
        """The fake result of a function of fake values, without a node."""
        return self._computed(function, args, {})

    def _once(self, call: str, compute: Callable[[], Any]) -> Any:
        if call not in self._known:
            self._known[call] = compute()
        return self._known[call]

    def _computed(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The fake result of a call on nodes."""
        values = fx.node.map_arg((args, kwargs), lambda n: n.meta["val"])
        mode = self.graph_module.meta.get("fake_mode")
        # Composite operators cannot take symbolic sizes in C++; in Python they can.
        symbolic = enable_python_dispatcher()
        with torch.no_grad(), torch.random.fork_rng(devices=[]), symbolic, mode or nullcontext():
            return function(*values[0], **values[1])


class _Kind:
    """Prints dtype and shape of the tensors in a value: what the shape of a result depends on."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return repr(pytree.tree_map_only(Tensor, lambda t: (t.dtype, t.shape), self.value))


def _call_on_fakes(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a module with its state replaced by tensors of the mode the arguments belong to."""
    # A copy, as a forward may put its fakes in the place of state.
    module = share_tensors(module)
    mode = next((a.fake_mode for a in pytree.tree_leaves(args) if hasattr(a, "fake_mode")), None)
    if mode is None:
        return module(*args, **kwargs)
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    fakes = {name: mode.from_tensor(tensor, static_shapes=True) for name, tensor in state.items()}
    return torch.func.functional_call(module, fakes, args, kwargs)
