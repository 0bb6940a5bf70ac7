"""Optimise an exported program, and mend what the exporter and the optimizer of onnxscript do wrong.

Conv(x, w, Expand(0))       ->  Conv(x, w)         zeros of a wrong shape, under a Conv3d
Transpose(weight)           ->  Transpose(weight)  folded, it would be another tensor under no name
Add(x, 1e-15)               ->  Add(x, 1e-15)      the optimizer takes it for Add(x, 0) and drops it
Clip(Clip(x, 0, 1), 2, 3)   ->  Clip(Clip(…), 2, 3)   the optimizer takes it for Clip(x, 2, 1), which is 1
MatMul(Transpose(x), w)     ->  MatMul(Squeeze(Unsqueeze(Transpose(x))), w)   else ONNX Runtime crashes, in halves
MaxPool(Pad(x))             ->  MaxPool(Squeeze(Unsqueeze(Pad(x))))           else it takes no maximum with the zeros
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer, rewriter
from onnxscript.rewriter import RewriteRule

from repl_fx.running.meanwhile import attributes_set

_NEUTRAL = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0}
# Rules that make one clip of two whose bounds have nothing in common, or of a Relu and a clip below 0.
_WRONG = ("FuseSuccessiveClip", "FuseSuccessiveReluClip")
# No domain that a rule of the optimizer knows.
_ASIDE = "repl_fx.aside"


def optimize_(model: ir.Model) -> None:
    """Fold constants, drop what computes nothing and inline functions, in place; what the model computes stays."""
    _drop_zero_biases(model.graph)
    # Constants first, so that numbers that are computed are seen.
    optimizer.fold_constants(model, should_fold=_keep_weights)
    with attributes_set(filter(_is_nearly_neutral, model.graph), "domain", _ASIDE):
        _simplify(model)
    _part_what_fuses_wrongly(model.graph)
    _register_strays(model)


class _AtItsOperator:
    """A rule that is tried on nodes of the operator alone that its pattern ends in.

    The rewriter tries each rule on each node, and a rule for two nodes lists the whole graph each time: a GPT-2 of 48
    layers took 49 CPU seconds to export, and takes 20.
    """

    def __init__(self, rule: RewriteRule) -> None:
        last: Any = rule._target_pattern.outputs[0].producer()
        self.operator, self.rule = last.op, rule

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rule, name)

    def try_rewrite(self, model: ir.Model, graph: ir.Graph | ir.Function, node: ir.Node, **settings: Any) -> Any:
        """Rewrite what ends in a node, where the rule's pattern does; see `RewriteRule`."""
        ends = self.operator.matches(node.op_type)
        return self.rule.try_rewrite(model, graph, node, **settings) if ends else None


def _simplify(model: ir.Model) -> None:
    """Simplify a model by the rules of onnxscript that are right, each tried where it may fit."""
    rules = [_AtItsOperator(rule) for rule in rewriter._DEFAULT_REWRITE_RULES if rule.name not in _WRONG]
    with attributes_set([rewriter], "_DEFAULT_REWRITE_RULES", rules):
        optimizer.optimize_ir(model, should_fold=_keep_weights)


def _is_nearly_neutral(node: ir.Node) -> bool:
    """Tell whether a node is a sum with a number of nearly 0, or a product with one of nearly 1.

    The optimizer's rules for `x + 0` and `x * 1` take any number within 1e-8, or 1e-5 of its size, for the neutral one;
    then x / (y + 1e-15) is no number where y is 0.
    """
    neutral = _NEUTRAL.get(node.op_type)
    if neutral is None or node.domain != "":
        return False
    numbers = (_number(value) for value in node.inputs)
    return any(number is not None and number != neutral and abs(number - neutral) < 1e-4 for number in numbers)


def _drop_zero_biases(graph: ir.Graph) -> None:
    """Take off the zeros that the exporter adds to a convolution without bias: those of a Conv3d have a wrong shape."""
    for node in graph:
        if node.op_type == "Conv" and len(node.inputs) == 3 and _is_spread_zero(node.inputs[2]):
            node.resize_inputs(2)


def _is_spread_zero(value: ir.Value | None) -> bool:
    """Tell whether a value is one zero, expanded."""
    made = None if value is None else value.producer()
    return made is not None and made.op_type == "Expand" and _number(made.inputs[0]) == 0


def _number(value: ir.Value | None) -> float | None:
    """The one real number that a value is, casts apart; None where it is anything else."""
    while value is not None and (made := value.producer()) is not None and made.op_type in ("Cast", "CastLike"):
        value = made.inputs[0]
    constant = None if value is None else ir.convenience.get_const_tensor(value)
    if constant is None or constant.size != 1 or constant.dtype is ir.DataType.STRING:
        return None
    number = complex(constant.numpy().reshape(()))
    return None if number.imag else number.real


def _part_what_fuses_wrongly(graph: ir.Graph) -> None:
    """Put something between nodes of which ONNX Runtime (1.31) would make one wrong operator.

    It does not see what is behind a dimension that is put in and taken out.
    """
    for node in list(graph):
        made, uses = node.outputs[0], _fuse_wrongly(node)
        if not uses:
            continue
        axis = ir.node("Constant", [], {"value_ints": [0]})
        put_in = ir.node("Unsqueeze", [made, axis.outputs[0]])
        taken_out = ir.node("Squeeze", [put_in.outputs[0], axis.outputs[0]])
        taken_out.outputs[0].shape, taken_out.outputs[0].type = made.shape, made.type
        graph.insert_after(node, (axis, put_in, taken_out))
        for use in uses:
            use.node.replace_input_with(use.idx, taken_out.outputs[0])


def _fuse_wrongly(node: ir.Node) -> list[Any]:
    """The uses of a node's result that ONNX Runtime would make one operator of with the node, and a wrong one."""
    made = node.outputs[0]
    if node.op_type == "Pad":
        # A pool takes no maximum with its own padding, and drops a last window that begins in it.
        uses = ((use, use.node) for use in made.uses())
        return [use for use, pool in uses if pool.op_type == "MaxPool" or pool.attributes.get_int("ceil_mode")]
    if node.op_type != "Transpose" or "perm" not in node.attributes or made.dtype is not ir.DataType.FLOAT16:
        return []
    # Of a transpose that moves the first dimension inwards, and a product, its CPU has no kernel in half precision: the
    # process ends with a segmentation fault as the file is loaded.
    order = tuple(node.attributes["perm"].as_ints())
    inwards = order[:-2] == tuple(range(1, len(order) - 1))
    return [use for use in made.uses() if inwards and use.node.op_type == "MatMul"]


def _register_strays(model: ir.Model) -> None:
    """Give back constants that the optimizer lost: it gives the bounds of two clips of one value the same name."""
    # Inputs and outputs, too, got names that an inner value may have had.
    common.NameFixPass()(model)
    for value in [value for node in model.graph for value in node.inputs]:
        if value is None or value.producer() is not None or value.const_value is None:
            continue
        if not value.is_graph_input() and not value.is_initializer():
            model.graph.register_initializer(value)


def _keep_weights(node: ir.Node) -> bool | None:
    """Never fold a weight: its transpose would be another tensor under no name, stored again beside a tied one."""
    return False if any(value is not None and value.is_initializer() for value in node.inputs) else None
