"""Optimise an exported program, and mend what the exporter and the optimizer of onnxscript do wrong.

Conv(x, w, Expand(0))       ->  Conv(x, w)         zeros of a wrong shape, under a Conv3d
Transpose(weight)           ->  Transpose(weight)  folded, it would be another tensor under no name
Add(x, 1e-15)               ->  Add(x, 1e-15)      the optimizer takes it for Add(x, 0) and drops it
MatMul(Transpose(x), w)     ->  MatMul(Squeeze(Unsqueeze(Transpose(x))), w)   else ONNX Runtime crashes, in halves
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer
from onnxscript.rewriter import RewritePass, RewriteRule
from onnxscript.rewriter.rules import common as rules

# By the operator that a pattern ends in.
_RULES: dict[str, Sequence[RewriteRule]] = {
    "Mul": rules.mul_by_1_rule.commute(),
    "Add": rules.add_0_rule.commute(),
    "Sub": [rules.sub_0_rule],
    "Div": [rules.div_by_1_rule],
    "Dropout": [rules.dropout_zero_rule, rules.dropout_inference_rule],
    "Reshape": [
        rules.two_reshapes_matmul_reshape_rule,
        rules.one_reshape_matmul_reshape_rule,
        rules.materialize_reshape_shape_rule,
        rules.reshape_reshape_rule,
        rules.squeeze_reshape_1d_rule,
    ],
    "Cast": [
        rules.cast_constant_of_shape_rule,
        rules.cast_constant_of_shape_without_value_rule,
        rules.cast_cast_rule,
        rules.no_op_cast_rule,
    ],
    "Slice": [rules.collapse_slice_rule, rules.collapse_slice2_rule, rules.slice_split_rule],
    "Min": [rules.min_min_rule, rules.max_min_rule],
    "Max": [rules.max_max_rule, rules.min_max_rule],
    "Clip": [rules.successive_clip_relu_rule, rules.successive_clip_rule],
    "Relu": [rules.successive_relu_clip_rule, rules.successive_relu_rule],
    "Expand": [rules.no_op_expand_rule],
    "Flatten": [rules.flatten_to_reshape_rule],
    "Transpose": [rules.no_op_transpose_rule, rules.transpose_transpose_rule],
    "Unsqueeze": [rules.unsqueeze_unsqueeze_rule],
    "ScatterND": [rules.no_op_dynamic_scatter_nd_rule, rules.no_op_static_scatter_nd_rule],
    "Conv": [
        rules.normalize_pad_format_conv_rule,
        rules.fuse_pad_into_conv_rule,
        rules.remove_optional_bias_from_conv_rule,
    ],
    "ConvTranspose": [rules.remove_optional_bias_from_conv_transpose_rule],
    "BatchNormalization": [
        rules.fuse_batchnorm_into_conv_rule,
        rules.fuse_batchnorm_into_conv_transpose_rule,
        rules.fuse_batchnorm_into_gemm_rule,
    ],
    "Gemm": [rules.remove_optional_bias_from_gemm_rule],
}
_NEUTRAL = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0}
# No domain that a rule of the optimizer knows.
_ASIDE = "repl_fx.aside"


def optimize_(model: ir.Model) -> None:
    """Fold constants, drop what computes nothing and inline functions, in place; what the model computes stays."""
    _drop_zero_biases(model.graph)
    # Constants first, so that numbers that are computed are seen.
    optimizer.fold_constants(model, should_fold=_keep_weights)
    with _nearly_neutral_aside(model.graph):
        _simplify(model)
    _part_transposes_from_products(model.graph)
    _register_strays(model)


class _AtItsOperator:
    """A rule that is tried on nodes of one operator alone.

    The rewriter tries each rule on each node, and a rule for two nodes lists the whole graph each time: a GPT-2 of 48
    layers took 49 CPU seconds to export, and takes 20.
    """

    def __init__(self, operator: str, rule: RewriteRule) -> None:
        self.operator, self.rule = operator, rule

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rule, name)

    def try_rewrite(self, model: ir.Model, graph: ir.Graph | ir.Function, node: ir.Node, **settings: Any) -> Any:
        """Rewrite what ends in a node, where the rule's pattern does; see `RewriteRule`."""
        return self.rule.try_rewrite(model, graph, node, **settings) if node.op_type == self.operator else None


def _simplify(model: ir.Model) -> None:
    """Simplify a model as `onnxscript.optimizer.optimize_ir` does, with the rules of `_RULES`."""
    chosen: list[Any] = [_AtItsOperator(operator, rule) for operator, some in _RULES.items() for rule in some]
    untyped: Any = common
    passes = (
        RewritePass(chosen),
        untyped.RemoveUnusedNodesPass(),
        untyped.RemoveUnusedFunctionsPass(),
        untyped.RemoveUnusedOpsetsPass(),
    )
    common.InlinePass()(model)
    for _ in range(2):
        folded = optimizer.fold_constants(model, onnx_shape_inference=True, should_fold=_keep_weights).modified
        if not any([folded, *(step(model).modified for step in passes)]):
            break
    ir.passes.Sequential(
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)


@contextmanager
def _nearly_neutral_aside(graph: ir.Graph) -> Iterator[None]:
    """Keep sums with a number of nearly 0, and products with one of nearly 1, out of the optimizer's sight.

    Its rules for `x + 0` and `x * 1` take any number within 1e-8, or 1e-5 of its size, for the neutral one; then
    x / (y + 1e-15) is no number where y is 0.
    """
    aside = [node for node in graph if _is_nearly_neutral(node)]
    for node in aside:
        node.domain = _ASIDE
    try:
        yield
    finally:
        for node in aside:
            node.domain = ""


def _is_nearly_neutral(node: ir.Node) -> bool:
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


def _part_transposes_from_products(graph: ir.Graph) -> None:
    """Put something between products in half precision and transposes that move the first dimension inwards.

    ONNX Runtime (1.31) makes one operator of both, of which its CPU has no kernel in half precision, and ends the
    process with a segmentation fault as it loads the file. It does not see a transpose behind a dimension that is put
    in and taken out.
    """
    for node in list(graph):
        if node.op_type != "Transpose" or node.domain != "" or "perm" not in node.attributes:
            continue
        order = tuple(node.attributes["perm"].as_ints())
        made = node.outputs[0]
        products = [use for use in made.uses() if use.node.op_type == "MatMul"]
        if made.dtype is not ir.DataType.FLOAT16 or not products or order[:-2] != tuple(range(1, len(order) - 1)):
            continue
        axis = ir.node("Constant", [], {"value_ints": [0]})
        put_in = ir.node("Unsqueeze", [made, axis.outputs[0]])
        taken_out = ir.node("Squeeze", [put_in.outputs[0], axis.outputs[0]])
        taken_out.outputs[0].shape, taken_out.outputs[0].dtype = made.shape, made.dtype
        graph.insert_after(node, (axis, put_in, taken_out))
        for use in products:
            use.node.replace_input_with(use.idx, taken_out.outputs[0])


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
