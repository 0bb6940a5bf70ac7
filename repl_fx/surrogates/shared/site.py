"""The place where a surrogate works: a block and its neighbours, and questions about them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from repl_fx._torch import OperatorsRun, answers_of_the_example, enable_python_dispatcher, fake_like
from repl_fx.finding.blocks import Block
from repl_fx.finding.branches import Split, split_branches
from repl_fx.finding.linear_operators import LinearOperator, linear_operator_of
from repl_fx.graph.bridge import digraph_with_writes, leading_to
from repl_fx.graph.captured import attribute, called_module, has_effect, parameters_read, share_tensors
from repl_fx.graph.known_shapes import known_or_run
from repl_fx.plan import Refusal
from repl_fx.running.hushed import hushed

Asked = TypeVar("Asked")
Found = TypeVar("Found")
_CALLS = ("call_function", "call_module")


def surrogate_path(block: str) -> str:
    """The path of the modules of the surrogate of a block of this name."""
    return f"surrogates.{block.replace('.', '_')}"


def shown(sizes: Iterable[Any]) -> str:
    """Sizes as messages give them, such as 64x3x3x3."""
    return "x".join(str(size) for size in sizes)


class Unfit(Exception):
    """A block that a surrogate cannot stand in for: the reason, and the node that it is, where that is a single one."""

    def __init__(self, reason: str, node: fx.Node | None = None) -> None:
        super().__init__(reason)
        self.node = node


def unfit_is_refused(match: Callable[[Asked, Site], Found]) -> Callable[[Asked, Site], Found | Refusal]:
    """Let a `match` that raises `Unfit`, from however deep, return the refusal.

    A match that depends on a size which varies is refused too: it would be of the example inputs' size alone.
    """

    @functools.wraps(match)
    def refusing(surrogate: Asked, site: Site) -> Found | Refusal:
        # An operator that does not take other sizes is an answer; torch logs it with its stack.
        quiet = hushed((), ("torch._subclasses.fake_tensor",), least=logging.CRITICAL)
        try:
            with quiet, answers_of_the_example(site.graph_module.meta.get("fake_mode")) as asked:
                found = match(surrogate, site)
        except Unfit as unfit:
            return site.refusal(str(unfit), unfit.node)
        if asked and not isinstance(found, Refusal):
            return site.refusal(f"whether it fits depends on a size that varies: {asked[0]}")
        return found

    return refusing


@dataclass(frozen=True)
class NodeCall:
    """A call of a node of the block, on its own arguments or on others, and the fake result."""

    node: fx.Node
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    value: Any


class Site:
    """A block to be replaced in a graph, with the kept blocks before and after it: questions, which change nothing.

    Args:
        graph_module: the captured graph.
        block: the block to replace.
        before: the nearest kept block before it in its repeat; the block itself where its surrogate stands alone.
        after: the nearest kept block after it; likewise.
        repeat: name of the repeat.
    """

    def __init__(self, graph_module: fx.GraphModule, block: Block, before: Block, after: Block, repeat: str) -> None:
        self.graph_module = graph_module
        self.block = block
        self.before = before
        self.after = after
        self.repeat = repeat

    @property
    def input(self) -> fx.Node:
        """The value that the block takes, the first of several."""
        return self.block.input

    @property
    def neighbours(self) -> tuple[Block, Block]:
        """The block before and the block after."""
        return self.before, self.after

    def refusal(self, reason: str, node: fx.Node | None = None) -> Refusal:
        """A refusal to stand in for the block, with the node of it that is the reason, where it is a single one."""
        return Refusal(self.block.name, self.repeat, reason, None if node is None else node.name)

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
        """The linear of a neighbour that plays the part of one of the block's."""
        found = linear_operator_of(self.graph_module, self.counterpart(linear.node, neighbour))
        assert found is not None
        return found

    @cached_property
    def split(self) -> Split:
        """Spine and branches of the block, or the reason why it has none."""
        return split_branches(self.graph_module, self.block)

    def require_split(self) -> Split:
        """Spine and branches of the block.

        Raises:
            Unfit: the block has none.
        """
        if self.split.reason:
            raise Unfit(self.split.reason)
        return self.split

    def require_one_stream(self) -> tuple[Tensor, Tensor]:
        """The fake values of what streams in and out; a block with several is `Unfit`."""
        given, made = self.block.input.meta.get("val"), self.block.output.meta.get("val")
        if len(self.block.inputs) != 1 or not isinstance(given, Tensor) or not isinstance(made, Tensor):
            raise Unfit("it has several streamed values")
        return given, made

    @cached_property
    def unmixed_parameters(self) -> tuple[str, ...]:
        """The block's parameters that no branch mixes with: norms, biases and scales, on the spine or in a branch."""
        mixing = {linear.weight for branch in self.split.branches for linear in branch.operators}
        return tuple(path for path in self.block.parameters if path not in mixing)

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

    @cached_property
    def idle_parameters(self) -> frozenset[str]:
        """The block's parameters that only calls read whose results nothing reads.

        A graph keeps such calls of modules, for what they may do besides.
        """
        nodes = {*self.block.nodes, *self.weight_nodes}
        if all(node.users for node in nodes):
            return frozenset()
        ends = {*self.block.outputs, *self.block.side_outputs}
        ends.update(node for node in nodes if node.op == "call_function" and has_effect(node))
        live = leading_to(digraph_with_writes(nodes), ends)
        return self._parameters_of(nodes - live) - self._parameters_of(live)

    def _parameters_of(self, nodes: Collection[fx.Node]) -> frozenset[str]:
        """The paths of the parameters that nodes read themselves."""
        return frozenset(path for node in nodes for path in parameters_read(self.graph_module, node))

    def tensor(self, path: str) -> Tensor:
        """A parameter or buffer of the graph."""
        found = attribute(self.graph_module, path)
        assert isinstance(found, Tensor)
        return found

    def computed(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """The fake result of the call of a node on fake values, or on nodes that have them.

        Raises:
            RuntimeError, TypeError, ValueError, IndexError, AssertionError: the call does not take such values.
        """
        module = called_module(self.graph_module, node)
        if module is not None:
            return self.value_of(lambda *a, **k: self.call_on_fakes(module, *a, **k), *args, **kwargs)
        function: Any = node.target
        return self.value_of(function, *args, **kwargs)

    def value_of(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The fake result of a function of fake values, or of nodes that have them."""
        values = fx.node.map_arg((args, kwargs), lambda n: n.meta["val"])
        mode = self.graph_module.meta.get("fake_mode")
        # Composite operators cannot take symbolic sizes in C++; in Python they can.
        symbolic, free = enable_python_dispatcher(), answers_of_the_example(mode)
        known = OperatorsRun(known_or_run) if mode else nullcontext()
        with torch.no_grad(), torch.random.fork_rng(devices=[]), free, symbolic, mode or nullcontext(), known:
            return function(*values[0], **values[1])

    def call_on_fakes(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Call a module with its state replaced by tensors of the mode of the graph, where the graph has one."""
        # A copy, as a forward may put its fakes in the place of state.
        module, mode = share_tensors(module), self.graph_module.meta.get("fake_mode")
        if mode is None:
            return module(*args, **kwargs)
        for layer in module.modules():
            # A mean of all batches divides by their number, which a fake has not; another gives the same kinds.
            if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.momentum is None:
                layer.momentum = 0.1
        state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        fakes = {name: fake_like(mode, tensor) for name, tensor in state.items()}
        return torch.func.functional_call(module, fakes, args, kwargs)
