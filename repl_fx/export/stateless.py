"""Updates of buffers in evaluation mode, which an ONNX graph has no place for.

    before   count = add(get_attr calls, 1);  assign_buffer(owner, "calls", count)
    after    nothing, where no output depends on `calls`; else the export is refused

Batch normalisation and the like update their statistics in training mode alone, and are exported as they evaluate.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from repl_fx.errors import ExportError
from repl_fx.graph.assigned_buffers import assigned_by
from repl_fx.graph.bridge import digraph_with_writes, leading_to
from repl_fx.graph.captured import drop_dead, memory_of, writes_in_place
from repl_fx.graph.runtime import ModeSwitch, assign_buffer
from repl_fx.passes.driver import Result


def drop_updates_(gm: fx.GraphModule) -> Result:
    """Leave out updates of buffers that no output depends on.

    Args:
        gm: changed in place.

    Returns:
        The graph, with the names of the updates that were left out.

    Raises:
        ExportError: an output depends on a buffer that each forward changes; names the buffer.
    """
    updates = {node: buffer for node in gm.graph.nodes for buffer in _updated(gm, node)}
    read = leading_to(digraph_with_writes(gm.graph.nodes), gm.graph.find_nodes(op="output"))
    for buffer in dict.fromkeys(updates.values()):
        if any(n.op == "get_attr" and str(n.target) == buffer for n in read):
            raise stateful(buffer)
    dropped = []
    for node in reversed(updates):
        if not node.users:
            dropped.append(node.name)
            gm.graph.erase_node(node)
    drop_dead(gm.graph)
    return Result(gm, tuple(dropped))


def stateful(buffer: str) -> ExportError:
    """The error for outputs that depend on a buffer which each forward changes."""
    return ExportError(
        f"the outputs depend on buffer {buffer}, which each forward changes in evaluation mode too; an ONNX graph has "
        "no state, so it would be right for one call alone"
    )


def _updated(gm: fx.GraphModule, node: fx.Node) -> Iterator[str]:
    """Paths of the buffers that a node changes in evaluation mode."""
    assigned = assigned_by(node)
    if assigned is not None:
        yield assigned
    elif node.op == "call_function" and writes_in_place(node):
        made = memory_of(node)
        if made.op == "get_attr":
            yield str(made.target)
    elif node.op == "call_module" and isinstance(switch := gm.get_submodule(str(node.target)), ModeSwitch):
        given = dict(zip(switch.when_evaluating.graph.find_nodes(op="placeholder"), node.args, strict=True))
        for inner in switch.when_evaluating.graph.nodes:
            source = given.get(memory_of(inner)) if writes_in_place(inner) else None
            if isinstance(source, fx.Node) and source.op == "get_attr":
                yield str(source.target)
            if inner.target is assign_buffer and isinstance(owner := given.get(inner.args[0]), fx.Node):
                yield f"{owner.target}.{inner.args[1]}".removeprefix("graph_root.")
