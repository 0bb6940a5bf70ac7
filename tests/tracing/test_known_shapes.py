"""The kinds of results of plain layers are those of their calls."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from torch import Tensor, nn

from repl_fx._torch import pytree
from repl_fx.tracing.known_shapes import FAKES, known_result

aten = torch.ops.aten
PICTURE = torch.randn(2, 8, 5, 4)
CASES = {
    "linear": (nn.Linear(8, 3), torch.randn(2, 5, 8)),
    "layer norm": (nn.LayerNorm(8), torch.randn(2, 5, 8)),
    "batch norm": (nn.BatchNorm2d(8), PICTURE),
    "batch norm, channels last": (nn.BatchNorm2d(8), PICTURE.contiguous(memory_format=torch.channels_last)),
    "activation": (nn.GELU(), PICTURE),
    "in place": (nn.ReLU(inplace=True), PICTURE.clone()),
    "identity": (nn.Identity(), PICTURE),
}


@pytest.mark.parametrize("case", CASES)
def test_the_kind_of_a_result_is_known_without_a_call(case: str) -> None:
    layer, x = CASES[case]
    known, made = known_result(layer, (x,), {}), layer(x)
    assert known is not None
    assert (known.shape, known.stride(), known.dtype) == (made.shape, made.stride(), made.dtype)
    assert (known is x) is (made is x)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(8, 3), torch.randn(2, 8, 5).mT),
        (nn.Linear(8, 3).double(), torch.randn(2, 8)),
        (nn.Linear(8, 3), torch.randn(2, 7)),
        (nn.GELU(), PICTURE[:, :, ::2]),
        (nn.Conv2d(8, 8, 1), PICTURE),
        (nn.BatchNorm2d(7), PICTURE),
    ],
    ids=["not packed", "another dtype", "another width", "with gaps", "another layer", "other channels"],
)
def test_other_calls_have_to_run(layer: nn.Module, x: Tensor) -> None:
    assert known_result(layer, (x,), {}) is None


WEIGHT = torch.rand(8)
NORMS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "layer norm": (aten.layer_norm.default, (torch.randn(2, 5, 8), [8], WEIGHT, WEIGHT)),
    "layer norm, permuted": (aten.layer_norm.default, (PICTURE.permute(0, 2, 3, 1), [8])),
    "layer norm over two": (aten.layer_norm.default, (PICTURE, [5, 4])),
    "batch norm, training": (
        aten.native_batch_norm.default,
        (PICTURE, WEIGHT, WEIGHT, WEIGHT, WEIGHT, True, 0.1, 1e-5),
    ),
    "batch norm, evaluation": (aten.native_batch_norm.default, (PICTURE, None, None, WEIGHT, WEIGHT, False, 0.1, 1e-5)),
    "group norm": (aten.native_group_norm.default, (PICTURE, WEIGHT, None, 2, 8, 20, 4, 1e-5)),
}
OTHER_NORMS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "another width": (aten.layer_norm.default, (torch.randn(2, 5, 7), [8])),
    "another dtype": (aten.layer_norm.default, (torch.randn(2, 5, 8), [8], WEIGHT.double())),
    "another size of weight": (aten.layer_norm.default, (torch.randn(2, 5, 8), [8], WEIGHT[:7])),
    "with gaps": (aten.native_batch_norm.default, (PICTURE[:, :, ::2], None, None, WEIGHT, WEIGHT, False, 0.1, 1e-5)),
    "half precision": (aten.native_batch_norm.default, (PICTURE.half(), None, None, None, None, True, 0.1, 1e-5)),
    "other channels": (
        aten.native_batch_norm.default,
        (PICTURE[:, :7].clone(), WEIGHT, None, None, None, True, 0.1, 0),
    ),
    "groups that do not fit": (aten.native_group_norm.default, (PICTURE, None, None, 2, 8, 20, 3, 1e-5)),
    "channels last": (
        aten.native_group_norm.default,
        (PICTURE.contiguous(memory_format=torch.channels_last), None, None, 2, 8, 20, 4, 1e-5),
    ),
}


def own(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.clone() if isinstance(value, Tensor) else value for value in arguments)


@pytest.mark.parametrize("case", NORMS)
def test_the_kinds_of_what_a_norm_returns_are_those_of_the_kernel(case: str) -> None:
    operator, arguments = NORMS[case]
    arguments, ours = own(arguments), own(arguments)
    made, known = pytree.tree_leaves(operator(*arguments)), pytree.tree_leaves(FAKES[operator](*ours))
    kinds = [[(value.shape, value.stride(), value.dtype) for value in results] for results in (made, known)]
    assert kinds[0] == kinds[1]
    for value, mine in zip(arguments, ours, strict=True):
        assert not isinstance(value, Tensor) or value._version == mine._version


@pytest.mark.parametrize("case", OTHER_NORMS)
def test_other_calls_of_norms_are_left_to_torch(case: str) -> None:
    operator, arguments = OTHER_NORMS[case]
    assert FAKES[operator](*arguments) is None


@settings(deadline=None)
@given(st.data())
def test_the_kind_of_a_view_is_that_of_the_kernel(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4))
    order = data.draw(st.permutations(range(len(sizes))))
    x = torch.randn(sizes).permute(order)[data.draw(st.sampled_from([slice(None), slice(1), slice(None, None, 2)]))]
    shape = data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 6, 12]), max_size=4)) + [-1] * data.draw(st.booleans())
    assume(x.numel() == math.prod(shape) or (-1 in shape and x.numel() % -math.prod(shape) == 0))
    known = FAKES[aten.view.default](x, shape)
    try:
        made = x.view(shape)
    except RuntimeError:
        assert known is None
        return
    if known is not None:
        kinds = [(t.shape, t.stride(), t.storage_offset(), t.data_ptr()) for t in (known, made)]
        assert kinds[0] == kinds[1]
    assert known is not None or 1 in x.shape
