"""Write the call of any leaf module as plain nodes, so that its weights can come from elsewhere."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from repl_fx._torch import pytree
from repl_fx.surrogates.site import Site


def inline_module(site: Site, node: fx.Node, module: nn.Module, state: dict[str, fx.Node]) -> fx.Node:
    """Trace one module call and copy its operators to the current insertion point.

    Args:
        site: where the call stands.
        node: the call.
        module: what it calls.
        state: nodes for the module's parameters, by name.

    Returns:
        The node that has the call's value.
    """
    leaves, structure = pytree.tree_flatten((node.args, node.kwargs))
    feeders = [leaf for leaf in leaves if isinstance(leaf, fx.Node)]
    names = list(state)

    def run(*values: Any) -> Any:
        parameters = dict(zip(names, values[: len(names)], strict=True))
        given = iter(values[len(names) :])
        args, kwargs = pytree.tree_unflatten([next(given) if isinstance(v, fx.Node) else v for v in leaves], structure)
        return torch.func.functional_call(module, parameters, args, kwargs)

    values = [n.meta["val"] for n in (*state.values(), *feeders)]
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        traced = make_fx(run, pre_dispatch=True, _allow_non_fake_inputs=True)(*values)
    env: dict[fx.Node, fx.Node] = {}
    given_nodes = iter((*state.values(), *feeders))
    result: fx.Node | None = None
    for inner in traced.graph.nodes:
        if inner.op == "placeholder":
            env[inner] = next(given_nodes)
        elif inner.op == "output":
            result = env[inner.args[0]]
        else:
            env[inner] = site.graph_module.graph.node_copy(inner, lambda n: env[n])
            env[inner].meta.update({k: v for k, v in node.meta.items() if k != "val"})
    assert result is not None
    return result
