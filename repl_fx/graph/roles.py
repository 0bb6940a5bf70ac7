"""Roles of operators: the one table of which ATen operators add, multiply, convolve, move positions or draw.

A graph holds leaf-module calls and ATen operators, whatever traced it, and surrogates add such operators too; so each
role has one spelling here. What an operator's schema says (views, writes in place, random draws) is asked of the
schema.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten

ADDITIONS = frozenset({aten.add.Tensor, aten.add_.Tensor})
MULTIPLICATIONS = frozenset({aten.mul.Tensor})
LINEAR = aten.linear.default
# By number of spatial dimensions.
CONVOLUTIONS: Mapping[int, Any] = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
# The same where the padding is a word, "same" or "valid".
CONVOLUTIONS_PADDED_BY_WORD: Mapping[int, Any] = {n: one.overloadpacket.padding for n, one in CONVOLUTIONS.items()}
ANY_CONVOLUTION = frozenset({*CONVOLUTIONS.values(), *CONVOLUTIONS_PADDED_BY_WORD.values()})
# The place of the stride among their arguments.
STRIDE_ARGUMENT = 3
# input @ weight: positions of the two among the arguments.
PRODUCTS: Mapping[Any, tuple[int, int]] = {
    aten.mm.default: (0, 1),
    aten.matmul.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.bmm.default: (0, 1),
    aten.baddbmm.default: (1, 2),
}
SCALED_PRODUCT = aten.scaled_dot_product_attention.default
SOFTMAX = frozenset({aten.softmax.int, aten._softmax.default})
TRANSPOSES = frozenset({aten.t.default, aten.transpose.int, aten.numpy_T.default})
PERMUTATIONS = frozenset({aten.permute.default, aten.transpose.int, aten.movedim.int})
RESHAPES = frozenset({aten.view.default, aten.reshape.default, aten._unsafe_view.default})
CASTS = frozenset(
    {
        *(getattr(aten.to, kind) for kind in ("dtype", "device", "other", "dtype_layout", "prim_dtype")),
        aten._to_copy.default,
        aten.type_as.default,
    }
)
COPIES = frozenset({aten.clone.default, aten.contiguous.default})
RELUS = frozenset({aten.relu.default, aten.relu_.default})
# Nonlinearities of one tensor, element by element. `torch.Tag.pointwise` has these, and powers, roots and sums too.
ACTIVATIONS = RELUS | {
    aten.relu6.default,
    aten.gelu.default,
    aten.silu.default,
    aten.silu_.default,
    aten.mish.default,
    aten.tanh.default,
    aten.sigmoid.default,
    aten.elu.default,
    aten.selu.default,
    aten.celu.default,
    aten.leaky_relu.default,
    aten.leaky_relu_.default,
    aten.hardswish.default,
    aten.hardswish_.default,
    aten.hardsigmoid.default,
    aten.hardtanh.default,
    aten.hardtanh_.default,
    aten.softplus.default,
}
BATCH_NORM = aten.batch_norm.default
# Position of the argument that is a probability.
PROBABILITY: Mapping[Any, int] = {
    aten.dropout.default: 1,
    aten.dropout_.default: 1,
    aten.feature_dropout.default: 1,
    aten.alpha_dropout.default: 1,
    aten.bernoulli.p: 1,
    aten.bernoulli_.float: 1,
    SCALED_PRODUCT: 4,
}
# Copies of a view, and copies of parts of it.
_LIKE_VIEWS = COPIES | {
    aten._unsafe_view.default,
    aten.repeat_interleave.self_int,
    aten.repeat_interleave.self_Tensor,
    aten.repeat_interleave.Tensor,
}


def is_view(node: fx.Node) -> bool:
    """Tell whether a node changes neither values nor, but for repeating all alike, their number; it may copy them."""
    if node.target is operator.getitem or node.target in _LIKE_VIEWS:
        return True
    given = node.args[0].meta.get("val") if node.args and isinstance(node.args[0], fx.Node) else None
    made = node.meta.get("val")
    first = made[0] if isinstance(made, (tuple, list)) and made else made
    same_kind = isinstance(given, Tensor) and isinstance(first, Tensor) and given.dtype == first.dtype
    return same_kind and aliases(node.target)


def aliases(target: Any) -> bool:
    """Tell whether an operator's first result has, by its schema, memory of an argument that is not written to."""
    schema = getattr(target, "_schema", None)
    alias = schema.returns[0].alias_info if schema is not None and schema.returns else None
    return alias is not None and not alias.is_write
