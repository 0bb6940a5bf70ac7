"""Branches and attentions that keep their normalised input alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from repl_fx.surrogates.shared.recompute import MapForm, RecomputedAttention, RecomputedBranch


def _arguments(dtype: torch.dtype = torch.float64, bias: bool = True) -> list[Tensor | None]:
    torch.manual_seed(0)
    sizes = ((2, 5, 12), (3, 12), (12, 3), (3,), (12,))
    made: list[Tensor | None] = [torch.randn(size, dtype=dtype, requires_grad=True) for size in sizes]
    return made if bias else [*made[:3], None, None]


def _plain(norm: str) -> Callable[[Tensor], Tensor]:
    if norm == "layer":
        return lambda x: F.layer_norm(x, (12,), eps=1e-5)
    if norm == "rms":
        return lambda x: F.rms_norm(x, (12,), eps=1e-5)
    return lambda x: x


@pytest.mark.parametrize("norm", ["layer", "rms", "none"])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_its_docstring_and_gradients_are_right(norm: str, bias: bool) -> None:
    branch = RecomputedBranch(norm, 1e-5, nn.GELU())
    x, w_in, w_out, b_in, b_out = given = _arguments(bias=bias)
    assert x is not None and w_in is not None and w_out is not None
    expected = F.linear(F.gelu(F.linear(_plain(norm)(x), w_in, b_in)), w_out, b_out)
    torch.testing.assert_close(branch(*given), expected)
    assert torch.autograd.gradcheck(branch, tuple(given))  # type: ignore[arg-type]
    with torch.no_grad():
        torch.testing.assert_close(branch(*given), expected)


@pytest.mark.parametrize("norm", ["rms", "none"])
def test_gradients_of_complex_values_are_those_of_plain_operators(norm: str) -> None:
    branch = RecomputedBranch(norm, 1e-5, nn.Sigmoid())
    given = [t.detach().to(torch.complex128) * (1 + 0.5j) for t in _arguments() if t is not None]
    given = [t.div(4).requires_grad_() for t in given]
    assert torch.autograd.gradcheck(branch, tuple(given))


def test_a_random_activation_has_the_gradients_of_what_it_drew() -> None:
    branch, given = RecomputedBranch("layer", 1e-5, nn.RReLU()), _arguments()
    branch.train()

    def drawn(*args: Tensor) -> Tensor:
        torch.manual_seed(0)
        made: Tensor = branch(*args)
        # The backward pass is some draws behind.
        torch.rand(3)
        return made

    assert torch.autograd.gradcheck(drawn, tuple(given))  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_in_lower_precision_are_those_of_plain_operators(dtype: torch.dtype, norm: str) -> None:
    branch = RecomputedBranch(norm, 1e-5, F.silu)
    exact, rough = (
        _arguments(torch.float64),
        [t.detach().to(dtype).requires_grad_() for t in _arguments() if t is not None],
    )
    for given in (exact, rough):
        branch(*given).square().sum().backward()
    for a, b in zip(exact, rough, strict=True):
        assert a is not None and a.grad is not None and b.grad is not None and b.grad.dtype == dtype
        near = 1e-5 if dtype == torch.float32 else 3e-2
        assert (a.grad - b.grad).norm() <= near * a.grad.norm()


def _kept(run: Callable[[], Tensor]) -> int:
    """Elements that a forward pass keeps, weights left out."""
    found: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = run()
    assert kept.requires_grad
    return sum(found.values())


def test_it_keeps_one_value_in_the_precision_of_autocast() -> None:
    rows, width, thin = 64, 32, 8
    x = torch.randn(rows, width, requires_grad=True) + 0
    w_in, w_out = nn.Parameter(torch.randn(thin, width)), nn.Parameter(torch.randn(width, thin))
    branch = RecomputedBranch("layer", 1e-5, nn.GELU())
    plain = nn.LayerNorm(width)
    with torch.autocast("cpu", torch.bfloat16):
        lean = _kept(lambda: branch(x, w_in, w_out, None, None))
        ordinary = _kept(lambda: F.linear(F.gelu(F.linear(plain(x), w_in)), w_out))
        assert branch(x, w_in, w_out, None, None).dtype == torch.bfloat16
    weights = 2 * 2 * width * thin
    assert lean == rows * width * 2 + rows * 4 + weights
    assert ordinary > lean + rows * width * 4


def test_compiled_and_exported_it_is_plain_operators() -> None:
    branch = RecomputedBranch("layer", 1e-5, nn.GELU())
    given = tuple(t.detach() for t in _arguments(torch.float32) if t is not None)
    program = torch.export.export(branch, given)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.gelu.default" in targets and not any("autograd" in target for target in targets)
    torch.testing.assert_close(program.module()(*given), branch(*given))


@pytest.mark.parametrize("dims", [(12,), (5, 12), (2, 5, 12), (2, 3, 5, 12)])
def test_what_follows_may_write_into_the_result(dims: tuple[int, ...]) -> None:
    x = torch.randn(dims, requires_grad=True)
    _, *state = _arguments(torch.float32)
    branch = RecomputedBranch("layer", 1e-5, nn.GELU())
    for made in (branch(x, *state), branch(x, *state).view(-1, 12)):
        made.mul_(0.5).add_(1.0)
        made[..., :3].relu_()
        made.square().sum().backward()
        assert x.grad is not None and x.grad.any()
    wanted = branch(x, *state).mul(0.5).add(1.0)
    torch.testing.assert_close(branch(x, *state).mul_(0.5).add_(1.0), wanted)


def _attended(layer: RecomputedAttention, plain: Callable[[Tensor], Tensor], *given: Tensor | None) -> Tensor:
    """What the docstring of the layer says, head by head; (batch, positions, features)."""
    x, weight, out, bias, bias_out, *rest = given
    assert x is not None and weight is not None and out is not None
    values = F.linear(plain(x), weight, bias)
    heads = []
    for number, of_head in enumerate(values.chunk(layer.heads, -1)):
        if layer.form.scaled:
            q, k, mask = rest
            assert q is not None and k is not None and mask is not None
            scores = layer.form.scale * q[:, number] @ k[:, number].mT + mask  # type: ignore[operator]
            amap = scores.softmax(-1)
        else:
            assert rest[0] is not None
            amap = rest[0][:, number]
        heads.append(amap @ of_head)
    joined: Tensor = F.linear(torch.cat(heads, -1), out, bias_out)
    return joined


@pytest.mark.parametrize("norm", ["layer", "rms", "none"])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_an_attention_is_its_docstring_and_gradients_are_right(norm: str, scaled: bool, batch_first: bool) -> None:
    torch.manual_seed(0)
    layer = RecomputedAttention(norm, 1e-5, 2, MapForm(scaled, False, 0.3 if scaled else None, batch_first))
    sizes: list[tuple[int, ...]] = [(3, 5, 12), (4, 12), (12, 4), (4,), (12,)]
    sizes += [(3, 2, 5, 6), (3, 2, 5, 6), (5, 5)] if scaled else [(3, 2, 5, 5)]
    given = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes]
    drop = [0.0] if scaled else []

    def run(x: Tensor, *rest: Tensor) -> Tensor:
        made: Tensor = layer(x if batch_first else x.transpose(0, 1), *rest, *drop)
        return made if batch_first else made.transpose(0, 1)

    expected = _attended(layer, _plain(norm), *given)
    torch.testing.assert_close(run(*given), expected)
    assert torch.autograd.gradcheck(run, tuple(given))
    with torch.no_grad():
        torch.testing.assert_close(run(*given), expected)


@pytest.mark.parametrize("dims", [2, 3, None])
def test_what_an_attention_drops_is_dropped_again_in_the_backward_pass(dims: int | None) -> None:
    layer = RecomputedAttention("layer", 1e-5, 2, MapForm(scaled=True, dims=dims))
    torch.manual_seed(0)
    x, weight, out = (
        torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((3, 5, 12), (4, 12), (12, 4))
    )
    queries, keys = torch.randn(2, 3, 2, 5, 6, dtype=torch.float64)
    made, toward = [], []
    for plain in (False, True):
        torch.manual_seed(1)
        normalised = layer.normalised(x)[0]
        if plain:
            result = layer.mixed(normalised, weight, out, None, None, queries, keys, None, 0.5)
        else:
            result = layer(x, weight, out, None, None, queries, keys, None, 0.5)
        state = torch.get_rng_state()
        toward.append(torch.autograd.grad(result.square().sum(), (x, weight, out)))
        assert torch.equal(torch.get_rng_state(), state)
        made.append(result)
    assert made[0].ndim == (dims or 3)
    torch.testing.assert_close(made[0], made[1])
    torch.testing.assert_close(toward[0], toward[1])


def test_what_follows_an_attention_may_write_into_the_result() -> None:
    layer = RecomputedAttention("layer", 1e-5, 2, MapForm(scaled=False))
    x, amap = torch.randn(3, 5, 12, requires_grad=True), torch.rand(3, 2, 5, 5)
    made = layer(x, torch.randn(4, 12), torch.randn(12, 4), None, None, amap)
    made += x
    made.sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_rms_norm_in_half_precision_squares_in_single(dtype: torch.dtype) -> None:
    # The squares of these numbers are too large for half precision.
    x = torch.full((2, 12), 300.0, dtype=dtype)
    made, rescale = RecomputedBranch("rms", 1e-5, None).normalised(x)
    torch.testing.assert_close(made, torch.ones_like(x))
    assert made.dtype == dtype and rescale is not None and rescale.dtype == torch.float32


def _attention_arguments(scaled: bool, dtype: torch.dtype = torch.float64) -> list[Any]:
    torch.manual_seed(0)
    sizes: list[tuple[int, ...]] = [(2, 5, 12), (6, 12), (12, 6), (6,), (12,)]
    sizes += [(2, 2, 5, 3), (2, 2, 5, 3)] if scaled else [(2, 2, 5, 5)]
    made: list[Any] = [torch.randn(size, dtype=dtype, requires_grad=True) for size in sizes]
    return [*made, None, 0.0] if scaled else made


def _attention(norm: str, scaled: bool) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """An attention as a function of tensors alone, and the tensors."""
    given = _attention_arguments(scaled)
    tensors = tuple(t for t in given if isinstance(t, Tensor))
    layer, rest = RecomputedAttention(norm, 1e-5, 2, MapForm(scaled)), given[len(tensors) :]
    return lambda *t: layer(*t, *rest), tensors


@pytest.mark.parametrize("norm", ["layer", "rms", "none"])
@pytest.mark.parametrize("scaled", [True, False])
def test_gradients_of_an_attention_are_right(norm: str, scaled: bool) -> None:
    run, tensors = _attention(norm, scaled)
    assert torch.autograd.gradcheck(run, tensors)
    with torch.no_grad():
        plain = run(*tensors)
    torch.testing.assert_close(run(*tensors), plain)


def test_dropout_is_drawn_once() -> None:
    """What is computed again in the backward pass drops the same."""
    layer = RecomputedAttention("layer", 1e-5, 2, MapForm(scaled=True))
    *given, _ = _attention_arguments(scaled=True)
    torch.manual_seed(1)
    made = layer(*given, 0.5)
    n = F.layer_norm(given[0], (12,), eps=1e-5)
    torch.manual_seed(1)
    plain = layer.mixed(n, *given[1:], 0.5)
    torch.testing.assert_close(made, plain)
    found, wanted = (torch.autograd.grad(y.square().sum(), given[2]) for y in (made, plain))
    torch.testing.assert_close(found, wanted)


def test_an_attention_keeps_one_value_in_the_precision_of_autocast() -> None:
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and tensor.ndim == 3:
            sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    layer = RecomputedAttention("layer", 1e-5, 2, MapForm(scaled=True))
    x, *given = _attention_arguments(scaled=True, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        made = layer(x + 0, *given)
    assert made.dtype == torch.bfloat16
    # The normalised input, and one number a row.
    assert sorted(set(sizes)) == [x.numel() // 12 * 4, x.numel() * 2]


def test_compiled_and_exported_an_attention_is_plain_operators() -> None:
    layer = RecomputedAttention("layer", 1e-5, 2, MapForm(scaled=True))
    given = tuple(
        t.detach() if isinstance(t, Tensor) else t for t in _attention_arguments(scaled=True, dtype=torch.float32)
    )
    program = torch.export.export(layer, given)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.scaled_dot_product_attention.default" in targets
    assert not any("autograd" in target or "checkpoint" in target for target in targets)
    torch.testing.assert_close(program.module()(*given), layer(*given))


@pytest.mark.parametrize("norm", ["layer", "rms", "none"])
@pytest.mark.parametrize("bias", [True, False])
def test_second_derivatives_of_a_branch_are_right(norm: str, bias: bool) -> None:
    branch = RecomputedBranch(norm, 1e-5, nn.GELU())
    given = _arguments(bias=bias)
    assert torch.autograd.gradgradcheck(branch, tuple(given), fast_mode=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", ["layer", "rms", "none"])
@pytest.mark.parametrize("scaled", [True, False])
def test_second_derivatives_of_an_attention_are_right(norm: str, scaled: bool) -> None:
    run, tensors = _attention(norm, scaled)
    # The other kernels have no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradgradcheck(run, tensors, fast_mode=True)


def test_second_derivatives_where_one_input_is_made_of_another() -> None:
    """Each way is counted once: here queries come from the stream, and one weight is the other."""
    layer = RecomputedAttention("layer", 1e-5, 2, MapForm(scaled=True))
    x, *given = _attention_arguments(scaled=True)
    made = []
    with sdpa_kernel(SDPBackend.MATH):
        for plain in (False, True):
            queries = x.reshape(2, 5, 2, 6)[..., :3].transpose(1, 2)
            read = [given[0], given[0].t() * 2, *given[2:4], queries, *given[5:]]
            y = layer.mixed(layer.normalised(x)[0], *read) if plain else layer(x, *read)
            toward, to_weight = torch.autograd.grad(y.square().sum(), [x, given[0]], create_graph=True)
            made.append((toward, to_weight, *torch.autograd.grad(toward.square().sum(), [x, given[0]])))
    torch.testing.assert_close(made[0], made[1])


def test_second_derivatives_drop_what_was_dropped() -> None:
    layer = RecomputedAttention("layer", 1e-5, 2, MapForm(scaled=True))
    x, *given, _ = _attention_arguments(scaled=True)
    made = []
    with sdpa_kernel(SDPBackend.MATH):
        for plain in (False, True):
            torch.manual_seed(1)
            y = layer.mixed(layer.normalised(x)[0], *given, 0.5) if plain else layer(x, *given, 0.5)
            (toward,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
            made.append((toward, *torch.autograd.grad(toward.square().sum(), [x, *given[:2]])))
    torch.testing.assert_close(made[0], made[1])


def test_a_branch_runs_on_the_meta_device() -> None:
    x, *state = (
        None if given is None else given.detach().to("meta").requires_grad_() for given in _arguments(torch.float32)
    )
    made = RecomputedBranch("layer", 1e-5, nn.GELU())(x, *state)
    made.sum().backward()
    assert made.is_meta and x is not None and x.grad is not None


def test_a_trace_has_the_norm_by_the_operator_that_converters_know() -> None:
    branch, x = RecomputedBranch("layer", 1e-5, F.gelu), torch.randn(2, 3, 8)
    read = (torch.randn(4, 8), torch.randn(8, 4), None, None)
    trace: Any = torch.jit.trace
    traced = trace(lambda x: branch(x, *read), (x,))
    kinds = {node.kind() for node in traced.graph.nodes()}
    assert "aten::layer_norm" in kinds and "aten::native_layer_norm" not in kinds
    torch.testing.assert_close(traced(x), branch(x.requires_grad_(), *read), rtol=0, atol=0)
