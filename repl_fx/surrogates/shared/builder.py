"""Nodes that surrogates make, in a copy of the graph their sites are in.

    rewriting = Rewriting(gm)                       a copy of the captured graph
    builder = Builder(rewriting, site, "identity")  the site, with nodes to be made in the copy
    surrogate.build(builder, match)

Sites and matches name nodes of the captured graph, which stays as it is, so that one match serves for as many copies as
are made. As an argument of what a builder makes, such a node stands for the node of the copy that has its value now:
the copy of it, or what took its place.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from repl_fx._torch import pytree
from repl_fx.errors import foreign_code, is_ours
from repl_fx.finding.blocks import Block
from repl_fx.graph.boundaries import move_boundaries
from repl_fx.graph.bridge import digraph, leading_to
from repl_fx.graph.captured import copy_graph, get_attr, has_attribute, unique_name, writes_in_place
from repl_fx.graph.notes import COUNTERPART, REPLACES
from repl_fx.graph.roles import CONVOLUTIONS, CONVOLUTIONS_PADDED_BY_WORD, LINEAR
from repl_fx.graph.runtime import enter_autocast
from repl_fx.running.holders import attributes_of
from repl_fx.surrogates.shared.fitted_starts import FITTED, FittedStart
from repl_fx.surrogates.shared.site import Site, surrogate_path
from repl_fx.surrogates.shared.synthesis import Synthesis


class Rewriting:
    """A copy of a captured graph whose blocks are being replaced; it shares tensors with that, and is not compiled."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        self.graph_module = copy_graph(graph_module, compiled=False)
        self._copies = dict(zip(graph_module.graph.nodes, self.graph_module.graph.nodes, strict=True))
        self._replaced: dict[fx.Node, fx.Node] = {}
        self._known: dict[str, Any] = {}

    def once(self, call: str, compute: Callable[[], Any]) -> Any:
        """The fake result of a call, the most costly part of a node; isomorphic blocks make the same calls."""
        if call not in self._known:
            self._known[call] = compute()
        return self._known[call]

    def copy_of(self, node: fx.Node) -> fx.Node:
        """The copy of a node of the captured graph, which may be replaced or erased by now."""
        copied: fx.Node = self._copies.get(node, node)
        return copied

    def left_of(self, block: Block) -> tuple[fx.Node, ...]:
        """The copies of a block's nodes that are not erased."""
        copies = (self.copy_of(node) for node in block.nodes)
        return tuple(node for node in copies if not node._erased)

    def now(self, node: fx.Node) -> fx.Node:
        """The node of the copy that has the value of a node now."""
        found = self.copy_of(node)
        while found in self._replaced:
            found = self._replaced[found]
        return found

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Let all that reads the value of one node read that of another."""
        old, new = self.now(old), self.now(new)
        if old is not new:
            old.replace_all_uses_with(new, propagate_meta=False)
            move_boundaries(old, new)
            self._replaced[old] = new


class Builder(Site):
    """A site at which nodes are made, in a copy of its graph; the key of the surrogate is noted on each of them."""

    def __init__(self, rewriting: Rewriting, site: Site, surrogate: str) -> None:
        super().__init__(site.graph_module, site.block, site.before, site.after, site.repeat)
        self.surrogate = surrogate
        self.path = surrogate_path(site.block.name)
        self._rewriting = rewriting
        self._made = rewriting.graph_module
        # The node before which others are made, where one was named.
        self._place: fx.Node | None = None

    def now(self, value: Any) -> Any:
        """A node, or arguments, with the nodes of the copy that have the values of those of the captured graph."""
        return fx.node.map_arg(value, self._rewriting.now)

    @property
    def taken(self) -> fx.Node:
        """The node of the captured graph whose value the block takes now: of a stretch, what the first block took."""
        stream = self.now(self.input)
        before = leading_to(digraph(self.graph_module.graph.nodes), [self.input])
        handed = (node for node in before if self.now(node) is stream)
        return max(node for node in handed if str(node.meta["val"].shape) == str(stream.meta["val"].shape))

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Let all that reads the value of one node read that of another."""
        self._rewriting.replace(old, new)

    def put_instead(self, old: fx.Node, new: fx.Node) -> None:
        """Let all that reads the value of one node, which may be a kept block's, read that of another, and drop it."""
        self.replace(old, new)
        self._made.graph.erase_node(self._rewriting.copy_of(old))

    def leave_out(self, addition: fx.Node, passed: fx.Node) -> None:
        """Let all that reads a sum read one of its operands (see `without`), also where the sum is written over it."""
        self.replace(addition, passed)
        copied = self._rewriting.copy_of(addition)
        if writes_in_place(copied):
            self._made.graph.erase_node(copied)

    @contextmanager
    def before_node(self, node: fx.Node) -> Iterator[None]:
        """Put the nodes made meanwhile right before `node`."""
        before, self._place = self._place, self._rewriting.copy_of(node)
        with self._made.graph.inserting_before(self._place):
            yield
        self._place = before

    def value_of(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The fake result of a function of fake values, or of nodes, at the place where nodes are made."""
        with ExitStack() as regions:
            for dtype, enabled in self._regions():
                kind = self._made.meta["device"].type
                regions.enter_context(torch.autocast(kind, dtype, enabled, cache_enabled=False))
            return super().value_of(function, *args, **kwargs)

    def _regions(self) -> list[tuple[Any, ...]]:
        """The source's `torch.autocast` regions that are open where nodes are made: the dtype, and whether it is on."""
        place = self._place
        begun = self._made.graph.find_nodes(op="call_function", target=enter_autocast)
        if place is None or self._made.meta["device"].type == "meta":
            return []
        return [node.args[1:3] for node in begun if node < place and all(place <= end for end in node.users)]

    def parameter(self, path: str) -> fx.Node:
        """A node that reads a parameter or buffer."""
        return self._mark(get_attr(self._made, path))

    def module(self, name: str, module: nn.Module, instead: fx.Node | None = None) -> str:
        """Add a module of the surrogate's own; returns its path.

        Args:
            name: of the module among those of the surrogate.
            module: the module.
            instead: the call of one of the block, whose statistics it has: the source may keep that in one mode.
        """
        path = f"{self.path}.{name}"
        if has_attribute(self._made, path):
            path = f"{self.path}.{unique_name(self._made.get_submodule(self.path), name)}"
        module.train(self._made.training)
        self._made.add_submodule(path, module)
        pinned = self._made.meta.get("pinned", {})
        if instead is not None and str(instead.target) in pinned:
            module.train(self.graph_module.get_submodule(str(instead.target)).training)
            self._made.meta["pinned"] = {**pinned, path: pinned[str(instead.target)]}
        return path

    def call_module(self, path: str, *args: Any) -> fx.Node:
        """A node that calls a module of the graph."""
        module = self._made.get_submodule(path)
        with _code_of(module):
            value = self._once(_form_of(module), partial(self.call_on_fakes, module), self.now(args), {})
        return self.create("call_module", path, args, {}, value)

    def again(self, node: fx.Node, *values: fx.Node) -> fx.Node:
        """A node that does to other values what one of the block does to the first values it reads."""
        instead = dict(zip(node.all_input_nodes, values, strict=False))
        args, kwargs = self.now(fx.node.map_arg((node.args, node.kwargs), lambda n: instead.get(n, n)))
        # The source's own operator, which may refuse other values; that is no defect of the surrogate's.
        with foreign_code():
            value = self.computed(node, args, kwargs)
        return self.create(node.op, node.target, args, kwargs, value)

    def mix(
        self,
        value: fx.Node,
        weight: fx.Node,
        bias: fx.Node | None,
        dilation: Sequence[int] = (),
        groups: int = 1,
        *,
        stride: Sequence[int] = (),
    ) -> fx.Node:
        """A node that applies a weight: (out, in) along the last axis, (out, in, …) by a centred convolution."""
        kernel = weight.meta["val"].shape[2:]
        if not kernel:
            return self.call(LINEAR, value, weight, bias)
        ones = [1] * len(kernel)
        spread = list(dilation or ones)
        padding = [d * (int(k) - 1) // 2 for d, k in zip(spread, kernel, strict=True)]
        return self.call(CONVOLUTIONS[len(kernel)], value, weight, bias, list(stride or ones), padding, spread, groups)

    def convolved(self, like: nn.Conv2d, value: fx.Node, weight: fx.Node, bias: fx.Node | None, groups: int) -> fx.Node:
        """A node that applies a weight as a convolution of any number of dimensions does, in so many groups."""
        known = CONVOLUTIONS_PADDED_BY_WORD if isinstance(like.padding, str) else CONVOLUTIONS
        function, settings = known[like.weight.ndim - 2], (like.stride, like.padding, like.dilation)
        return self.call(function, value, weight, bias, *settings, groups)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A node that calls a function."""
        args, kwargs = self.now((args, kwargs))
        value = self._once(repr(function), function, args, kwargs)
        return self.create("call_function", function, args, kwargs, value)

    def _once(self, form: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The fake result of a function of nodes, or that of one of the same form on values of the same kinds."""
        given = pytree.tree_map_only(fx.Node, lambda n: _Kind(n.meta["val"]), (args, kwargs))
        call = f"{form} {given!r} {self._regions()!r}"
        return self._rewriting.once(call, lambda: self.value_of(function, *args, **kwargs))

    def synthesise(self, name: str, synthesis: Synthesis, *weights: fx.Node) -> fx.Node:
        """Add a synthesis and call it on neighbours' weights."""
        return self.call_module(self.module(name, synthesis), *weights)

    def synthesised(
        self, name: str, synthesis: Synthesis, given: Iterable[str], results: Iterable[str]
    ) -> dict[str, fx.Node]:
        """Add a synthesis and call it on the parameters at some paths; a node for each result, by the names given."""
        made = self.synthesise(name, synthesis, *map(self.parameter, given))
        return {result: self.call(operator.getitem, made, i) for i, result in enumerate(results)}

    def fitted(self, made: fx.Node, *starts: FittedStart) -> None:
        """Note what can be fitted of the module that made a value: that a node calls, or takes a result of."""
        node = made.args[0] if made.target is operator.getitem else made
        assert isinstance(node, fx.Node)
        FITTED.put(node, starts)

    def stands_for(self, made: fx.Node, original: fx.Node) -> None:
        """Note that a node has the value that a node of the block had, or its first channels."""
        COUNTERPART.put(made, original.name)

    def create(self, op: str, target: Any, args: Any, kwargs: Any, value: Any) -> fx.Node:
        """A node that makes a call whose fake result is known."""
        node = self._mark(self._made.graph.create_node(op, target, *self.now((args, kwargs))))
        node.meta["val"] = value
        return node

    def _mark(self, node: fx.Node) -> fx.Node:
        source = self.block.output
        node.meta.setdefault("nn_module_stack", source.meta.get("nn_module_stack"))
        node.meta["stack_trace"] = source.meta.get("stack_trace")
        REPLACES.put(node, (self.block.name, self.surrogate))
        return node


def _code_of(module: nn.Module) -> AbstractContextManager[None]:
    """Run a module on sizes of a surrogate's; what code of the model's own raises there is no defect of repl-fx."""
    kinds = (type(part).__module__ for part in module.modules())
    return nullcontext() if all(is_ours(kind) or kind.startswith("torch.") for kind in kinds) else foreign_code()


def _form_of(module: nn.Module) -> str:
    """The classes, settings and kinds of tensors of a module, which decide the shapes of its results."""
    settings = [(id(type(part)), attributes_of(part)) for part in module.modules()]
    return f"{settings!r} {[_Kind(tensor) for tensor in (*module.parameters(), *module.buffers())]!r}"


class _Kind:
    """Prints dtype and shape of the tensors in a value, on which the shape of a result depends."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return repr(pytree.tree_map_only(Tensor, lambda t: (t.dtype, t.shape), self.value))
