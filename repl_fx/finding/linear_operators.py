"""Recognise parametric mixing operators: linear layers, convolutions, products with a parameter.

A linear operator reads an activation and a weight of two or more dimensions and mixes channels (or positions) with it.
A surrogate must know which weight it reads, how that is laid out, and along which axis of the activation it works.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from repl_fx.graph.captured import attribute
from repl_fx.graph.roles import ANY_CONVOLUTION, LINEAR, PRODUCTS, TRANSPOSES

_CONV_MODULES = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# The arguments after input, weight and bias of every one of them, with their defaults.
_CONV_SETTINGS = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
_NORM_MODULES = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)


@dataclass(frozen=True)
class LinearOperator:
    """One parametric mixing operator.

    Attributes:
        node: the operator.
        input: the activation it reads.
        weight: path of its weight; None where the weight is computed, or of a kind not understood.
        kind: `linear` works along the last axis of the activation, `conv` along axis 1, `other` is not understood.
        transposed: the weight is (in, out) instead of (out, in, …).
        groups: groups of a convolution.
        centred: a convolution whose result at a position depends on both sides of it alike and has the input's size:
            stride 1, zeros on both sides, an odd kernel.
        dilation: of a convolution, one number for each spatial dimension.
        bias: whether a bias is added.
    """

    node: fx.Node
    input: fx.Node
    weight: str | None
    kind: str
    transposed: bool = False
    groups: int = 1
    bias: bool = False
    centred: bool = False
    dilation: tuple[int, ...] = ()

    @property
    def axis(self) -> int:
        """The channel axis of the activation and of the result."""
        return 1 if self.kind == "conv" else -1


def is_norm(module: nn.Module) -> bool:
    """Tell whether a module normalises; derived classes count."""
    return isinstance(module, _NORM_MODULES)


def is_plain(module: nn.Module) -> bool:
    """Tell whether a module is a linear layer or convolution that does with its weight just what torch's own does.

    A derived class may pad one side only (causal convolutions), mask or standardise the weight; a hook may compute it.
    """
    base = next((base for base in (nn.Linear, *_CONV_MODULES) if isinstance(module, base)), None)
    methods = ("forward", "_conv_forward")
    same = all(getattr(type(module), name, None) is getattr(base, name, None) for name in methods)
    return base is not None and same and "weight" in module._parameters


def matrix_like(tensor: Tensor) -> bool:
    """Tell whether a parameter mixes: two or more dimensions longer than one. Biases, scales and norms are not."""
    return sum(size > 1 for size in tensor.shape) >= 2


def linear_operator_of(gm: fx.GraphModule, node: fx.Node) -> LinearOperator | None:
    """The linear operator that a node is, None where it is none."""
    if node.op == "call_module":
        return _module_operator(gm.get_submodule(str(node.target)), node)
    if node.op != "call_function":
        return None
    if node.target is LINEAR or node.target in ANY_CONVOLUTION:
        return _function_operator(gm, node)
    if node.target in PRODUCTS:
        return _product(gm, node)
    if node.target is torch.ops.aten.einsum.default:
        activations = [f for f in node.all_input_nodes if _weight_path(gm, f)[0] is None]
        if activations and len(activations) < len(node.all_input_nodes):
            return LinearOperator(node, activations[0], None, "other")
    return None


def _product(gm: fx.GraphModule, node: fx.Node) -> LinearOperator | None:
    at, weight_at = PRODUCTS[node.target]
    given, weight = node.args[at], node.args[weight_at]
    path, transposed = _weight_path(gm, weight)
    if path is not None and isinstance(given, fx.Node):
        flat = attribute(gm, path).ndim == 2
        bias = node.target is torch.ops.aten.addmm.default
        return LinearOperator(
            node, given, path if flat else None, "linear" if flat else "other", not transposed, 1, bias
        )
    if _weight_path(gm, given)[0] is not None and isinstance(weight, fx.Node):
        # parameter @ activation mixes positions, along another axis than the last.
        return LinearOperator(node, weight, None, "other")
    return None


def _module_operator(module: nn.Module, node: fx.Node) -> LinearOperator | None:
    given = next(iter(node.all_input_nodes), None)
    if given is None or is_norm(module) or not any(matrix_like(p) for p in module.parameters()):
        return None
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return None
    path = f"{node.target}.weight"
    if not is_plain(module):
        return LinearOperator(node, given, None, "other")
    bias = module.bias is not None
    if isinstance(module, nn.Linear):
        return LinearOperator(node, given, path, "linear", bias=bias)
    conv = cast("nn.Conv2d", module)
    centred = conv.padding_mode == "zeros" and _is_centred(conv.weight, conv.stride, conv.padding, conv.dilation)
    dilation = _each(conv.dilation, conv.weight.ndim - 2)
    return LinearOperator(node, given, path, "conv", groups=conv.groups, bias=bias, centred=centred, dilation=dilation)


def _is_centred(weight: Tensor, stride: Any, padding: Any, dilation: Any) -> bool:
    sizes = weight.shape[2:]
    count = len(sizes)
    if any(size % 2 == 0 for size in sizes) or any(step != 1 for step in _each(stride, count)):
        return False
    if isinstance(padding, str):
        return padding == "same"
    return all(
        2 * p == d * (k - 1) for p, d, k in zip(_each(padding, count), _each(dilation, count), sizes, strict=True)
    )


def _each(value: Any, count: int) -> tuple[Any, ...]:
    """A setting of a convolution for each of its spatial dimensions."""
    given = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return given if len(given) == count else given * count


def _function_operator(gm: fx.GraphModule, node: fx.Node) -> LinearOperator | None:
    given, weight = node.args[0], node.args[1]
    path, transposed = _weight_path(gm, weight)
    if not isinstance(given, fx.Node):
        return None
    bias = len(node.args) > 2 and node.args[2] is not None
    if node.target is LINEAR:
        return LinearOperator(node, given, path, "linear" if path else "other", transposed, 1, bias)
    if path is None or transposed:
        return LinearOperator(node, given, None, "other")
    stride, padding, dilation, groups = (
        node.kwargs.get(name, node.args[i] if len(node.args) > i else default)
        for i, (name, default) in enumerate(_CONV_SETTINGS.items(), start=3)
    )
    stored = attribute(gm, path)
    centred = _is_centred(stored, stride, padding, dilation)
    return LinearOperator(
        node, given, path, "conv", False, int(str(groups)), bias, centred, _each(dilation, stored.ndim - 2)
    )


def _weight_path(gm: fx.GraphModule, value: Any) -> tuple[str | None, bool]:
    """Path of the parameter a value is, and whether it is transposed on the way; None where it is no parameter."""
    transposed = False
    while isinstance(value, fx.Node) and value.target in TRANSPOSES:
        made = value.meta.get("val")
        if len(value.all_input_nodes) != 1 or not isinstance(made, Tensor) or made.ndim != 2:
            return None, False
        transposed = not transposed
        value = value.all_input_nodes[0]
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return None, False
    tensor = attribute(gm, str(value.target))
    if not isinstance(tensor, nn.Parameter) or not matrix_like(tensor):
        return None, False
    return str(value.target), transposed
