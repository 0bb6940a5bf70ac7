"""The kinds of results of plain layers are those of their calls."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings, strategies as st
from torch import Tensor, nn

from repl_fx._torch import pytree
from repl_fx.graph.known_shapes import FAKES, known_result

aten = torch.ops.aten
PICTURE = torch.randn(2, 8, 5, 4)
CASES = {
    "linear": (nn.Linear(8, 3), torch.randn(2, 5, 8)),
    "layer norm": (nn.LayerNorm(8), torch.randn(2, 5, 8)),
    "batch norm": (nn.BatchNorm2d(8), PICTURE),
    "batch norm, channels last": (nn.BatchNorm2d(8), PICTURE.contiguous(memory_format=torch.channels_last)),
    "convolution": (nn.Conv2d(8, 6, (3, 2), 2, 1, groups=2), PICTURE),
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
        (nn.ConvTranspose2d(8, 8, 1), PICTURE),
        (nn.BatchNorm2d(7), PICTURE),
        (nn.Conv2d(7, 8, 1), PICTURE),
        (nn.Conv2d(8, 8, 3, padding="same"), PICTURE),
        (nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), PICTURE),
        (nn.Conv2d(8, 8, 1), PICTURE[0]),
    ],
    ids=[
        "not packed",
        "another dtype",
        "another width",
        "with gaps",
        "another layer",
        "other channels",
        "other channels of a convolution",
        "padding by name",
        "other padding",
        "without a batch",
    ],
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
    "batch norm that says what it changes": (
        aten._native_batch_norm_legit.default,
        (PICTURE, WEIGHT, WEIGHT, WEIGHT, WEIGHT, False, 0.1, 1e-5),
    ),
    "batch norm for inference": (
        aten._native_batch_norm_legit_no_training.default,
        (PICTURE, WEIGHT, WEIGHT, WEIGHT, WEIGHT, 0.1, 1e-5),
    ),
    "layer norm with its figures": (aten.native_layer_norm.default, (PICTURE, [5, 4], None, None, 1e-5)),
    "group norm": (aten.native_group_norm.default, (PICTURE, WEIGHT, None, 2, 8, 20, 4, 1e-5)),
    "group norm, channels last": (
        aten.native_group_norm.default,
        (PICTURE.contiguous(memory_format=torch.channels_last), None, None, 2, 8, 20, 4, 1e-5),
    ),
    "affine grid": (aten.affine_grid_generator.default, (torch.randn(2, 2, 3), [2, 3, 5, 4], False)),
    "affine grid of volumes": (aten.affine_grid_generator.default, (torch.randn(2, 3, 4), [2, 3, 5, 4, 6], True)),
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
    "another affine map": (aten.affine_grid_generator.default, (torch.randn(2, 3, 4), [2, 3, 5, 4], False)),
    "another batch of maps": (aten.affine_grid_generator.default, (torch.randn(3, 2, 3), [2, 3, 5, 4], False)),
    "group norm with gaps": (aten.native_group_norm.default, (PICTURE[:, :, ::2], None, None, 2, 8, 12, 4, 1e-5)),
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


SIZES = st.sampled_from([1, 2, 3, 5])
BINARY = tuple(getattr(aten, name).Tensor for name in ("add", "sub", "mul", "div"))
UNARY = tuple(getattr(aten, name).default for name in ("relu", "gelu", "silu", "sigmoid", "tanh"))


@st.composite
def tensors(draw: st.DrawFn, sizes: st.SearchStrategy[list[int]]) -> Tensor:
    """A tensor as it is made, or one of which the dimensions are in another order, or have gaps."""
    shape = draw(sizes)
    order = draw(st.sampled_from([range(len(shape)), range(len(shape)), draw(st.permutations(range(len(shape))))]))
    made = torch.rand([shape[dim] for dim in order]).permute(list(map(list(order).index, range(len(shape)))))
    kept = draw(st.sampled_from([slice(None), slice(None), slice(None, None, 2)]))
    return made[..., kept].to(draw(st.sampled_from([torch.float32, torch.float32, torch.float64, torch.int64])))


@st.composite
def calls(draw: st.DrawFn) -> tuple[Any, tuple[Any, ...]]:
    """An operator and arguments, most of which it takes."""
    operator = draw(st.sampled_from([operator for operator in FAKES if operator not in ONES_OF_THEIR_OWN]))
    x = draw(tensors(st.lists(SIZES, min_size=2, max_size=4)))
    if operator in BINARY:
        number = draw(st.sampled_from([2, 0.5]))
        few = st.lists(SIZES, min_size=1, max_size=4)
        return operator, (x, draw(st.sampled_from([number, x + 1, torch.rand(x.shape[1:]), draw(tensors(few))])))
    if operator in UNARY:
        return operator, (x,)
    if operator in (aten._softmax.default, aten._safe_softmax.default):
        return operator, (x, draw(st.integers(-5, 4)), *[False] * (operator is aten._softmax.default))
    if operator is aten.cat.default:
        dim = draw(st.integers(-5, 4))
        shape = [draw(SIZES) if at == dim % x.ndim else size for at, size in enumerate(x.shape)]
        return operator, ([x, draw(tensors(st.just(shape))), x], dim)
    n, k, m = draw(SIZES), draw(SIZES), draw(SIZES)
    if draw(st.sampled_from([False] * 9 + [True])):
        # Of matrices where there are several, or the other way round.
        factors = x, torch.rand(*x.shape[:-2], x.shape[-1], m)
        return operator, (torch.rand(m), *factors) if operator is aten.addmm.default else factors
    one, other = draw(tensors(st.just([n, k]))), draw(tensors(st.just([k, m])))
    if operator is aten.bmm.default:
        return operator, (one[None].expand(3, -1, -1), other[None].repeat(3, 1, 1))
    return operator, (one, other) if operator is aten.mm.default else (draw(tensors(st.just([m]))), one, other)


VIEWS = aten.view.default, aten._unsafe_view.default
ONES_OF_THEIR_OWN = {*VIEWS, aten.convolution.default, *(operator for operator, _ in NORMS.values())}


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(calls())
def test_the_kinds_of_results_are_those_of_the_kernels(call: tuple[Any, tuple[Any, ...]]) -> None:
    operator, arguments = call
    known = FAKES[operator](*arguments)
    if known is not None:
        made = operator(*arguments)
        assert (known.shape, known.stride(), known.dtype) == (made.shape, made.stride(), made.dtype)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_the_kind_of_a_convolution_is_that_of_the_kernel(data: st.DataObject) -> None:
    dims, groups = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 2]))
    kernel, step, padded, apart = (
        data.draw(st.lists(st.integers(least, 3), min_size=dims, max_size=dims)) for least in (1, 1, 0, 1)
    )
    channels = data.draw(st.sampled_from([2 * groups, 2 * groups, 3]))
    x = torch.randn(2, channels, *(data.draw(st.integers(1, 9)) for _ in range(dims)))
    if dims == 2 and (order := data.draw(st.sampled_from(["", "channels last", "width first"]))):
        x = x.contiguous(memory_format=torch.channels_last) if order == "channels last" else x.mT.contiguous().mT
    weight = torch.randn(data.draw(st.sampled_from([4, 4, 4, 3])), 2, *kernel)
    bias = data.draw(st.sampled_from([None, WEIGHT[:4], WEIGHT[:4], WEIGHT[:3]]))
    arguments = (x, weight, bias, step, padded, apart, False, [0] * dims, groups)
    try:
        made = aten.convolution.default(*arguments)
    except RuntimeError:
        with suppress(RuntimeError):
            assert FAKES[aten.convolution.default](*arguments) is None
        return
    known = FAKES[aten.convolution.default](*arguments)
    if known is not None:
        assert (known.shape, known.stride(), known.dtype) == (made.shape, made.stride(), made.dtype)
    assert known is not None or not (x.is_contiguous() or (order == "channels last" and 1 not in x.shape))


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_the_kind_of_a_sum_of_tensors_of_one_shape_is_that_of_the_kernel(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.sampled_from([2, 3, 5]), min_size=2, max_size=4))
    packed = torch.rand(shape)
    some = torch.rand(shape[0], 2 * shape[1], *shape[2:])[:, : shape[1]]
    rows = torch.rand(shape[0], 2 * shape[1], *(data.draw(st.sampled_from([1, size])) for size in shape[2:]))
    overlapping = torch.rand(2 * packed.numel()).as_strided(shape, (1, *packed.stride()[1:]))
    turned = torch.rand(shape[::-1]).permute(*reversed(range(len(shape))))
    other = data.draw(st.sampled_from([some, rows[:, : shape[1]], overlapping, turned]))
    for pair in (packed, other), (other, packed):
        known, made = FAKES[aten.add.Tensor](*pair), torch.add(*pair)
        if known is not None:
            assert (known.shape, known.stride(), known.dtype) == (made.shape, made.stride(), made.dtype)
        assert known is not None or other is not some


def test_calls_with_results_of_other_kinds_are_left_to_torch() -> None:
    x, integers = torch.rand(2, 3), torch.ones(2, 3, dtype=torch.int64)
    assert FAKES[aten.add.Tensor](x, torch.rand(2, 2)) is None and FAKES[aten.add.Tensor](x, x.double()) is None
    assert FAKES[aten.cat.default]([PICTURE.contiguous(memory_format=torch.channels_last)]) is None
    assert FAKES[aten.div.Tensor](integers, 2) is None and FAKES[aten.mul.Tensor](integers, 0.5) is None
    assert FAKES[aten.mm.default](x, x) is None and FAKES[aten.addmm.default](x, x, x.T) is None
    assert FAKES[aten.cat.default]([x, x.T]) is None and FAKES[aten.cat.default]([x, x.double()]) is None
    assert FAKES[aten._softmax.default](x.half(), 1, True) is None
