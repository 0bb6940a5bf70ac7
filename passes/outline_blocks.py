"""Make blocks submodules of the graph, one call each.

    before   … -> layer_norm(add_3) -> linear -> gelu -> linear -> add_4 -> …
    after    … -> call_module blocks.2(add_3) -> …            with the nodes in the graph of `blocks.2`

Wrappers that go block by block (FSDP, activation checkpoints, hooks) find modules that are called.

A block lies at the path of the source's module where it is one, else at a path of its own. Its parameters stay where
they are, so `state_dict` keys do not change. Sizes are those of the block's own inputs. The weights of a surrogate are
made outside and handed in.
Needs: a captured graph with its repeats, or a rewritten graph, whose nodes know their blocks.
Never touches: nodes outside of blocks; what is computed, and in which order random numbers are drawn.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Sequence

from torch import fx, nn

from repl_fx.finding.blocks import Repeat
from repl_fx.graph.bridge import digraph, reached_from
from repl_fx.graph.captured import (
    BESIDE,
    AlikeGraphModule,
    CapturedModule,
    container_of,
    copy_graph,
    has_attribute,
    has_effect,
    within,
)
from repl_fx.graph.code import regions_of
from repl_fx.graph.decisions import is_random, skippable
from repl_fx.graph.extracting import Extract
from repl_fx.graph.grouping import grouped
from repl_fx.graph.notes import BLOCK
from repl_fx.passes.driver import Result
from repl_fx.passes.fold_surrogates import is_synthesis
from repl_fx.passes.replace_blocks import block_of
from repl_fx.plan import Refusal


def outline_blocks(gm: fx.GraphModule, repeats: Sequence[Repeat] | None = None) -> Result:
    """Make each block of each repeat a submodule.

    Args:
        gm: a captured or a rewritten graph.
        repeats: those of a captured graph; a rewritten one knows its blocks.

    Returns:
        A graph with the names of the blocks that are submodules now, and the refusals of the others: those whose nodes
        other computations lie between, and those inside of blocks that are submodules.
    """
    result = copy_graph(gm, compiled=False)
    copies = dict(zip(gm.graph.nodes, result.graph.nodes, strict=True))
    if repeats is None:
        members = grouped((block, n) for n in result.graph.nodes if (block := block_of(n)) is not None)
    else:
        members = {b.name: [copies[node] for node in b.nodes] for repeat in repeats for b in repeat.blocks}
    streamed = _streamed(result)
    done, refusals, taken = [], [], set[fx.Node]()
    for block, nodes in members.items():
        try:
            if not taken.isdisjoint(nodes):
                raise _Torn("its nodes are part of another block")
            taken.update(nodes)
            # What depends on parameters alone, such as the weights of a surrogate, is handed in. The draw that skips a
            # layer is of the block whose layer it is.
            own = set(nodes) & streamed
            own.update(n for n in result.graph.nodes if is_random(n) and n.users.keys() <= own)
            _Outline(result, block, [node for node in result.graph.nodes if node in own], streamed).make()
        except _Torn as torn:
            refusals.append(Refusal(block, "", str(torn)))
        else:
            done.append(block)
    return Result(result, tuple(done), refusals=tuple(refusals))


class OutlinedBlock(CapturedModule, AlikeGraphModule):
    """The graph of a block, with parameters, buffers and layers at their paths."""


class _Torn(Exception):
    """A block that is no submodule; the message is the reason."""


def _streamed(gm: fx.GraphModule) -> set[fx.Node]:
    """The nodes whose values depend on the inputs of a graph, on draws or on what is written; syntheses do neither."""
    sources = (n for n in gm.graph.nodes if (has_effect(n) or is_random(n)) and not is_synthesis(gm, n))
    return reached_from(digraph(gm.graph.nodes), sources)


class _Outline:
    """The making of one block's submodule.

    Args:
        gm: the graph, which is changed.
        block: the name of the block.
        nodes: its nodes, in program order.
        streamed: the nodes of the graph that depend on its inputs, on draws or on what is written.
    """

    def __init__(self, gm: fx.GraphModule, block: str, nodes: Sequence[fx.Node], streamed: Collection[fx.Node]) -> None:
        if not nodes:
            raise _Torn("nothing is left of it")
        self.gm, self.block, self.nodes, self.streamed = gm, block, nodes, streamed
        self.inside = set(nodes)
        # The children of the source's module; its own forward is not in the graph.
        self.root = gm.get_submodule(block) if has_attribute(gm, block) else None
        if self.root is not None and type(self.root) is not nn.Module:
            raise _Torn(f"{block} is a layer that the graph calls")
        self.outside: dict[str, nn.Module] = {}

    def make(self) -> None:
        """Put the nodes into a submodule, and a call of it in their place."""
        self._require_alike()
        outputs = [node for node in self.nodes if not self.inside.issuperset(node.users)]
        read = dict.fromkeys(given for node in self.nodes for given in node.all_input_nodes if given not in self.inside)
        given = [node for node in read if self._own(node) is None]
        extract = Extract(given)
        # Given are tensors; what can be told from their sizes is.
        inputs = [node for node in given if extract.size(node) is None]
        place = self._place(inputs, outputs)
        for number, node in enumerate(inputs):
            # Names are those of places, so that blocks that do the same have the same code.
            extract.take(node, f"input_{number}")
        for node in (*(node for node in read if self._own(node)), *self.nodes):
            path = str(node.target)
            extract.copy(node, self._own(node) or (self._outside(path) if node.op == "call_module" else None))
        made = [extract.made[node] for node in outputs]
        extract.graph.output(made[0] if len(made) == 1 else tuple(made))
        self._put_module(extract.graph)
        with self.gm.graph.inserting_before(place):
            results = self._called(inputs, outputs)
        for old, new in zip(outputs, results, strict=True):
            old.replace_all_uses_with(new, lambda user: user not in self.inside)
        for node in reversed(self.nodes):
            self.gm.graph.erase_node(node)

    def _require_alike(self) -> None:
        """Refuse nodes of which some are computed in another way than the others, or skipped without them."""
        regions = regions_of(self.gm.graph)
        if any(len({begin < node < end for node in self.nodes}) > 1 for begin, end in regions):
            raise _Torn("a part of it is computed without gradients, or in a precision of its own")
        for decision, layer, choices in skippable(self.gm.graph):
            skipped = {decision, *choices, *(node for node in layer if node in self.streamed and has_effect(node))}
            if self.inside & skipped and not (self.inside >= skipped or self.inside <= set(layer)):
                raise _Torn("a part of it is skipped together with what is outside of it")

    def _own(self, node: fx.Node) -> str | None:
        """The path in the block of a parameter, buffer or layer that a node refers to; None where it is elsewhere."""
        target, prefix = str(node.target), f"{self.block}."
        local = node.op in ("get_attr", "call_module") and self.root is not None and target.startswith(prefix)
        return target.removeprefix(prefix) if local else None

    def _place(self, inputs: Iterable[fx.Node], outputs: Iterable[fx.Node]) -> fx.Node:
        """The node before which the block can be called.

        Raises:
            _Torn: something that depends on the block is needed by it; or something with an effect lies between.
        """
        order: list[fx.Node] = list(self.gm.graph.nodes)
        number = {node: i for i, node in enumerate(order)}
        first, last = number[self.nodes[0]], number[self.nodes[-1]]
        users = (number[user] for node in outputs for user in node.users if user not in self.inside)
        place = min([last + 1, *users])
        late = next((node for node in inputs if number[node] >= place), None)
        if late is not None:
            raise _Torn(f"{late.name}, which it reads, comes behind what reads the block")
        for node in order[first:last]:
            if node not in self.inside and node in self.streamed and (has_effect(node) or is_random(node)):
                raise _Torn(f"{node.name}, which has an effect, lies between its nodes")
        return order[place]

    def _outside(self, path: str) -> str:
        """The name, beside the block's submodules, of a layer that lies elsewhere: its tensors keep their names."""
        layer = self.gm.get_submodule(path)
        known = next((name for name, other in self.outside.items() if other is layer), None)
        name = known or f"beside_{len(self.outside)}"
        self.outside[name] = layer
        return name

    def _put_module(self, graph: fx.Graph) -> None:
        """Put the submodule into the graph module."""
        root = nn.Module() if self.root is None else container_of(self.root)
        root.training = self.gm.training
        module = OutlinedBlock(root, graph, "OutlinedBlock")
        module.__dict__[BESIDE] = self.outside
        module.meta["pinned"] = within(self.block, self.gm.meta.get("pinned", {}))
        if self.root is None:
            self.gm.add_submodule(self.block, module)
        else:
            self.gm.set_submodule(self.block, module)

    def _called(self, inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]) -> list[fx.Node]:
        """Nodes that call the submodule, one for each output."""
        call = self.gm.graph.call_module(self.block, tuple(inputs))
        if len(outputs) == 1:
            call.meta = dict(outputs[0].meta)
            return [call]
        call.meta = {"val": tuple(node.meta["val"] for node in outputs), BLOCK.key: self.block}
        parts = [self.gm.graph.call_function(operator.getitem, (call, i)) for i in range(len(outputs))]
        for part, node in zip(parts, outputs, strict=True):
            part.meta = dict(node.meta)
        return parts
