"""Questions of a forward about dynamic sizes that a size of 1 would answer otherwise.

torch.export takes a dynamic size for 2 or more: `if x.shape[0] == 1` is settled without a guard, and a graph of that
is another function than the model at 1. Such questions of the model's own code are noted; the graph then refuses that
size, unless model and graph compute the same there.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from repl_fx._torch import pytree
from repl_fx.errors import ForeignError, foreign_code
from repl_fx.graph.captured import copy_graph
from repl_fx.graph.runtime import check_least, check_shape
from repl_fx.graph.signature import bind_arguments
from repl_fx.passes.driver import Result, run_passes
from repl_fx.running.equality import equal_leaves
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.opaque_outputs import open_objects
from repl_fx.running.untouched import device_of, in_mode, seeded, untouched


@contextmanager
def size_questions(least: dict[str, int]) -> Iterator[None]:
    """Note the smallest value of symbolic sizes for which a trace holds, where the model asks about them meanwhile.

    Args:
        least: filled with 2 for each size, by the name of its symbol, for which 1 has another answer.
    """
    kind: Any = torch.SymBool
    own = kind.__bool__

    def truth(question: Any) -> bool:
        answer: bool = own(question)
        asker = str(sys._getframe(1).f_globals.get("__name__"))
        if asker.split(".")[0] not in ("torch", "repl_fx", "sympy"):
            expression = question.node.expr
            for symbol in getattr(expression, "free_symbols", ()):
                at_one = expression.subs(symbol, 1)
                if at_one in (True, False) and bool(at_one) != answer:
                    least[str(symbol)] = 2
        return answer

    kind.__bool__ = truth
    try:
        yield
    finally:
        kind.__bool__ = own


def drop_questions_answered_alike_(gm: fx.GraphModule, model: nn.Module, inputs: ExampleInputs) -> Result:
    """Let a graph take a size of 1 again where it computes there what the model does, in both modes.

    `is_causal = length > 1` is such a question: whether one token is masked makes no difference.

    Args:
        gm: the graph captured from the model; its `check_least` nodes are removed where they are not needed.
        model: it runs on the example inputs, with the sizes asked about narrowed to 1, and is not changed.
        inputs: the example inputs.

    Returns:
        The graph, with the names of the checks that are gone.
    """
    checks: dict[str, list[str]] = {}
    for node in gm.graph.nodes:
        if node.target is check_least:
            checks.setdefault(str(_source(node).meta["val"].shape[node.args[1]]), []).append(node.name)
    if not checks or device_of(model, inputs).type == "meta":
        return Result(gm)
    dims = _dims_of(gm, model, inputs)
    alike: list[str] = []
    for symbol, names in checks.items():
        asked = {key: sizes.get(symbol, ()) for key, sizes in dims.items()}
        trial = run_passes(copy_graph(gm, compiled=False), partial(_drop_checks_, names=names)).graph_module
        if _same_outputs(trial, model, _narrowed(inputs, asked)):
            alike += names
    return _drop_checks_(gm, alike)


def refused_sizes(gm: fx.GraphModule) -> list[tuple[str, int]]:
    """The sizes that a graph refuses to be 1: names of inputs, each with a dimension."""
    return [(node.args[3], node.args[1]) for node in gm.graph.nodes if node.target is check_least]


def refuse_sizes_(gm: fx.GraphModule, refused: Collection[tuple[str, int]]) -> Result:
    """Let a graph refuse no more than another graph of its model did, whose example inputs the model runs on."""
    checks = gm.graph.find_nodes(op="call_function", target=check_least)
    return _drop_checks_(gm, [node.name for node in checks if (node.args[3], node.args[1]) not in refused])


def _drop_checks_(gm: fx.GraphModule, names: Collection[str]) -> Result:
    for node in gm.graph.find_nodes(op="call_function", target=check_least):
        if node.name in names:
            gm.graph.erase_node(node)
    return Result(gm, tuple(names))


def _source(check: fx.Node) -> fx.Node:
    source = check.args[0]
    assert isinstance(source, fx.Node)
    return source


def _dims_of(gm: fx.GraphModule, model: nn.Module, inputs: ExampleInputs) -> dict[int, dict[str, tuple[int, ...]]]:
    """For each input tensor, by its id, the dimensions that have a size, by the name of its symbol."""
    given = bind_arguments(model, inputs).arguments

    def value(node: Any) -> Any:
        if not isinstance(node, fx.Node):
            return node
        function: Any = node.target
        return given[str(node.target)] if node.op == "placeholder" else function(*map(value, node.args))

    dims: dict[int, dict[str, tuple[int, ...]]] = {}
    for node in gm.graph.nodes:
        if node.target is check_shape:
            sizes = dims.setdefault(id(value(_source(node))), {})
            for dim, size in enumerate(_source(node).meta["val"].shape):
                sizes[str(size)] = (*sizes.get(str(size), ()), dim)
    return dims


def _narrowed(inputs: ExampleInputs, dims: Mapping[int, Sequence[int]]) -> ExampleInputs:
    """The inputs with a size of 1 in these dimensions of the tensors with these ids."""

    def narrow(tensor: Tensor) -> Tensor:
        for dim in dims.get(id(tensor), ()):
            tensor = tensor.narrow(dim, 0, 1)
        return tensor

    return inputs.map(narrow)


def _same_outputs(gm: fx.GraphModule, model: nn.Module, inputs: ExampleInputs) -> bool:
    device = device_of(model, inputs)
    for training in (True, False):
        outputs = []
        for module in (model, gm):
            with untouched(module, buffers=True), in_mode(module, training), seeded(device, 0), torch.no_grad():
                try:
                    with foreign_code():
                        outputs.append(pytree.tree_leaves(open_objects(inputs.fresh().passed_to(module))))
                except ForeignError:
                    return False
        ours, theirs = outputs
        if len(ours) != len(theirs) or not all(map(equal_leaves, ours, theirs)):
            return False
    return True
