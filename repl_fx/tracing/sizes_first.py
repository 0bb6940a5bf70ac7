"""Put the arithmetic on sizes in front, so that two traces of one model have it in the same place.

    before   decision 0; a; size = sym_size(x, 1); n = size // 4; view(a, [n, 4]); decision 1; m = size // 4; …
    after    size = sym_size(x, 1); n = size // 4; decision 0; a; view(a, [n, 4]); decision 1; …

A trace computes a size where it is first needed: in another layer where that one is skipped, and in another order.
Needs: a graph of `torch.export`, whose sizes are no tensors.
Never touches: tensors; a size of a tensor that the graph computes stays behind that tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from repl_fx.graph.captured import has_effect
from repl_fx.graph.runtime import check_constant, check_items, check_keys, check_shape

# Checks of an input have to run before its sizes are used.
_CHECKS = (check_constant, check_items, check_keys, check_shape)


def sizes_first_(graph: fx.Graph) -> None:
    """Compute each size once, as soon as what it is computed from is there and checked, in an order of its own."""
    order = list(graph.nodes)
    place = {node: i for i, node in enumerate(order)}
    checked = max((place[n] for n in order if n.op == "placeholder" or n.target in _CHECKS), default=0)
    # The key of the order must not be the place in this graph.
    words: dict[fx.Node, tuple[int, str]] = {}
    known: dict[Any, fx.Node] = {}
    groups: dict[int, list[fx.Node]] = {}
    for node in order:
        if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.SymInt) or has_effect(node):
            continue
        depth = 1 + max((words[f][0] for f in node.all_input_nodes if f in words), default=0)
        spelled = fx.node.map_arg((node.args, node.kwargs), lambda f: words[f][1] if f in words else str(f.target))
        same = known.setdefault((node.target, str(node.args), str(node.kwargs)), node)
        if same is not node:
            node.replace_all_uses_with(same)
            graph.erase_node(node)
            continue
        words[node] = depth, f"{node.target}{spelled}"
        place[node] = max([checked, *(place[f] for f in node.all_input_nodes)])
        groups.setdefault(place[node], []).append(node)
    for number, nodes in groups.items():
        last = order[number]
        for node in sorted(nodes, key=words.__getitem__):
            if last.next is not node:
                last.append(node)
            last = node
