"""Fold surrogates into plain operators, for inference.

    before   get_attr a.weight, get_attr c.weight -> call_module surrogates.b.branch_0 -> getitem 0 -> linear(x, _)
    after    get_attr surrogates.b.folded -> linear(x, _)

Needs: every input of a synthesis is a parameter, a buffer or another synthesis, or computed from these alone, such as
the weight of a layer that is pruned, or has an adapter or a parametrisation.
Everything that is computed from a synthesis and state alone is folded with it; the syntheses and what only they read
go. Never touches: nodes that depend on an input of the model; the graph it is given.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations

from repl_fx.errors import NotFoldable
from repl_fx.graph.captured import (
    CapturedModule,
    attribute,
    copy_graph,
    drop_dead,
    erase_dead,
    get_attr,
    has_effect,
    is_tensor,
    unique_name,
    writes_in_place,
)
from repl_fx.graph.notes import REPLACES
from repl_fx.graph.runtime import ModeSwitch
from repl_fx.graph.state import SOURCE_STATE, prune_state_, used_by
from repl_fx.passes.driver import Result
from repl_fx.surrogates.shared.site import surrogate_path
from repl_fx.surrogates.shared.synthesis import Synthesis


def fold_surrogates(gm: fx.GraphModule) -> Result:
    """Replace each synthesis by the weights it computes now.

    Args:
        gm: a graph, rewritten or not, in any mode; it is not changed.

    Returns:
        A copy, whose code is not written yet, that shares the tensors of what is kept, with the names of the synthesis
        nodes that became constants.

    Raises:
        NotFoldable: a synthesis depends on an activation; names the synthesis and the input.
    """
    result = copy_graph(gm, compiled=False)
    syntheses = [node for node in result.graph.nodes if is_synthesis(result, node)]
    if not syntheses:
        return Result(result)
    used = used_by(result)
    fixed, constants = _constant_nodes(result, syntheses)
    values: dict[fx.Node, Any] = {}
    for node in constants:
        if constants.keys() >= node.users.keys() or not isinstance(_evaluate(result, node, values), Tensor):
            continue
        path = _store(result, node, constants, values[node])
        with result.graph.inserting_before(node):
            constant = get_attr(result, path)
        constant.meta.update({k: v for k, v in node.meta.items() if k != "val"})
        node.replace_all_uses_with(constant, delete_user_cb=lambda u: u not in constants, propagate_meta=False)
    names = tuple(node.name for node in syntheses)
    erase_dead(result.graph, fixed)
    drop_dead(result.graph)
    prune_state_(result, used)
    # Constants do not follow the weights of a checkpoint.
    result.meta.pop(SOURCE_STATE, None)
    return Result(result, names)


def is_synthesis(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a node calls a synthesis."""
    return node.op == "call_module" and isinstance(gm.get_submodule(str(node.target)), Synthesis)


def _constant_nodes(gm: fx.GraphModule, syntheses: list[fx.Node]) -> tuple[set[fx.Node], dict[fx.Node, None]]:
    """Nodes computed from state alone, and those among them computed from syntheses, in program order."""
    fixed: set[fx.Node] = set()
    constants: dict[fx.Node, None] = {}
    for node in gm.graph.nodes:
        loose = next((f for f in node.all_input_nodes if f not in fixed), None)
        is_made = node in syntheses
        if is_made and loose:
            raise NotFoldable(f"synthesis {node.name} depends on {loose.name}, which is no parameter")
        if is_made or (loose is None and _is_fixed(gm, node)):
            fixed.add(node)
            if is_made or not constants.keys().isdisjoint(node.all_input_nodes):
                constants[node] = None
    return fixed, constants


def _is_fixed(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a node whose inputs are constants is one."""
    if node.op == "get_attr":
        # What a graph reads that is no tensor is the mode.
        return is_tensor(node) and not any(map(writes_in_place, node.users))
    if node.op != "call_module":
        return not has_effect(node)
    module = gm.get_submodule(str(node.target))
    if isinstance(module, ModeSwitch):
        inner = (n for n in module.when_evaluating.graph.nodes if n.op not in ("placeholder", "output"))
        return not (module.training or any(map(has_effect, inner)))
    return type(module).__module__ == parametrizations.__name__ and not module.training


def _evaluate(gm: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    if node in values:
        return values[node]
    if node.op == "get_attr":
        return attribute(gm, str(node.target))
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: _evaluate(gm, n, values))
    function: Any = gm.get_submodule(str(node.target)) if node.op == "call_module" else node.target
    with torch.no_grad():
        values[node] = function(*args, **kwargs)
    return values[node]


def _store(gm: CapturedModule, node: fx.Node, constants: Container[fx.Node], value: Tensor) -> str:
    """Keep a constant where the modules of its surrogate are: a parameter, as tools that fuse layers have weights."""
    source = node
    while REPLACES.of(source) is None and not is_synthesis(gm, source):
        source = next(f for f in source.all_input_nodes if f in constants)
    replaced = REPLACES.of(source)
    parent = surrogate_path(replaced[0]) if replaced else str(source.target).rpartition(".")[0]
    owner = gm.get_submodule(parent)
    name = unique_name(owner, "folded")
    owner.register_parameter(name, nn.Parameter(value.detach().clone(), requires_grad=False))
    return f"{parent}.{name}".lstrip(".")
