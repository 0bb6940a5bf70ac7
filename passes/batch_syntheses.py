"""Do the syntheses of a graph together.

    before   get_attr a.weight, c.weight -> call_module surrogates.b.values -> getitem 0 -> linear(x, _) -> …
             get_attr c.weight, e.weight -> call_module surrogates.d.values -> getitem 0 -> linear(y, _)
    after    get_attr a.weight, c.weight, surrogates.b.values.gain, … -> call_module surrogates.together
             -> getitem 0 -> getitem 0 -> linear(x, _) -> … ; getitem 1 -> getitem 0 -> linear(y, _)

A synthesis is a few operators on small slices, so on a GPU the launches cost more than the work, and one synthesis at a
time is that for every replaced block. They depend on parameters alone and can all be done first.
Their own parameters stay where they were.

Needs: syntheses that begin with blends of slices (`BlendingSynthesis`).
Never touches: other syntheses; what reads the results; `state_dict` keys.
"""

from __future__ import annotations

import operator

from torch import fx

from repl_fx.graph.captured import copy_graph, drop_dead, get_attr, unique_name
from repl_fx.passes.driver import Result
from repl_fx.surrogates.shared.synthesis import BlendingSynthesis, SynthesisBatch


def batch_syntheses(gm: fx.GraphModule) -> Result:
    """Put all syntheses that can be done together into one call.

    Args:
        gm: a rewritten graph; it is not changed.

    Returns:
        A copy, whose code is not written yet, with the names of the nodes that were put together; none where there are
        fewer than two.
    """
    gm = copy_graph(gm, compiled=False)
    members = {node: found for node in gm.graph.nodes if (found := _joinable(gm, node)) is not None}
    if len(members) < 2:
        return Result(gm)
    batch = SynthesisBatch(list(members.values()), [len(node.args) for node in members])
    batch.train(gm.training)
    path = f"surrogates.{unique_name(gm.get_submodule('surrogates'), 'together')}"
    gm.add_submodule(path, batch)
    # Before all else: the first of them may be in a layer that training may skip.
    with gm.graph.inserting_before(next(n for n in gm.graph.nodes if n.op != "placeholder")):
        given: list[fx.Node] = []
        for node, member in members.items():
            given += [get_attr(gm, str(source.target)) for source in node.args if isinstance(source, fx.Node)]
            given += [get_attr(gm, f"{node.target}.{name}") for name, _ in member.named_parameters()]
        together = gm.graph.call_module(path, tuple(given))
        together.meta["val"] = tuple(node.meta["val"] for node in members)
        parts = [gm.graph.call_function(operator.getitem, (together, i)) for i in range(len(members))]
    names = tuple(node.name for node in members)
    for node, part in zip(members, parts, strict=True):
        part.meta.update(node.meta)
        node.replace_all_uses_with(part, propagate_meta=False)
        gm.graph.erase_node(node)
    drop_dead(gm.graph)
    return Result(gm, names)


def _joinable(gm: fx.GraphModule, node: fx.Node) -> BlendingSynthesis | None:
    """The synthesis that a node calls on parameters and buffers alone, each as one argument."""
    found = gm.get_submodule(str(node.target)) if node.op == "call_module" and not node.kwargs else None
    reads_state = all(isinstance(a, fx.Node) and a.op == "get_attr" for a in node.args)
    return found if isinstance(found, BlendingSynthesis) and reads_state else None
