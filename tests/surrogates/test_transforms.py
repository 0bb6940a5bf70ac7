"""`torch.func` transforms, forward-mode differentiation and second derivatives of rewritten networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_mode
from torch import Tensor, fx
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import repl_fx
from tests.nets import as_after_training, rewritten
from tests.surrogates.nets import NETS

Named = dict[str, Tensor]
Rewrite = tuple[fx.GraphModule, Tensor]

_REWRITES = [
    ("tokens", "identity"),
    ("tokens", "bottleneck"),
    ("tokens", "blend"),
    ("tokens", "coarse"),
    ("tokens", "reuse"),
    ("batch norm", "bottleneck"),
    ("batch norm", "coarse"),
    ("batch norm", "slim"),
    ("layer scale", "slim"),
]


@pytest.fixture(params=_REWRITES, ids=" ".join)
def rewrite(request: pytest.FixtureRequest) -> Iterator[Rewrite]:
    """A rewritten network in evaluation mode, as batch norm in training takes no example alone, and its input."""
    net, surrogate = request.param
    model, x = NETS[net]()
    gm = rewritten(model, x, surrogate).graph_module
    as_after_training(gm)
    # Of the attention kernels one alone has all derivatives.
    with sdpa_kernel(SDPBackend.MATH):
        yield gm.double().eval(), x.double()


def _loss_of(gm: fx.GraphModule) -> Callable[[Named, Tensor], Tensor]:
    return lambda parameters, x: functional_call(gm, parameters, (x,)).square().mean()


def _state(gm: fx.GraphModule) -> Named:
    return {name: parameter.detach() for name, parameter in gm.named_parameters()}


def _gradients(gm: fx.GraphModule, x: Tensor) -> Named:
    names, parameters = zip(*gm.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(gm(x).square().mean(), parameters), strict=True))


def _random(like: Named) -> Named:
    return {name: torch.randn_like(value) for name, value in like.items()}


def test_gradients_of_all_examples_and_of_each(rewrite: Rewrite) -> None:
    gm, x = rewrite
    wanted, loss, state = _gradients(gm, x), _loss_of(gm), _state(gm)
    torch.testing.assert_close(grad(loss)(state, x), wanted)
    each = vmap(grad(lambda parameters, one: loss(parameters, one[None])), (None, 0))(state, x)
    torch.testing.assert_close({name: value.mean(0) for name, value in each.items()}, wanted)


def test_derivatives_along_a_direction(rewrite: Rewrite) -> None:
    gm, x = rewrite
    loss, state = _loss_of(gm), _state(gm)
    along = _random(state)
    wanted = torch.stack([(g * along[name]).sum() for name, g in _gradients(gm, x).items()]).sum()
    torch.testing.assert_close(jvp(lambda parameters: loss(parameters, x), (state,), (along,))[1], wanted)
    untyped: Any = forward_mode
    with forward_mode.dual_level():
        dual = {name: untyped.make_dual(value, along[name]) for name, value in state.items()}
        torch.testing.assert_close(untyped.unpack_dual(loss(dual, x)).tangent, wanted)


def test_second_derivatives(rewrite: Rewrite) -> None:
    gm, x = rewrite
    state = _state(gm)
    along = _random(state)
    wanted = jvp(lambda parameters: grad(_loss_of(gm))(parameters, x), (state,), (along,))[1]
    names, parameters = zip(*gm.named_parameters(), strict=True)
    first = torch.autograd.grad(gm(x).square().mean(), parameters, create_graph=True)
    torch.testing.assert_close(dict(zip(names, first, strict=True)), _gradients(gm, x))
    product = torch.stack([(g * along[name]).sum() for name, g in zip(names, first, strict=True)]).sum()
    second = torch.autograd.grad(product, parameters, materialize_grads=True)
    torch.testing.assert_close(dict(zip(names, second, strict=True)), wanted)


def test_a_gradient_penalty_trains(rewrite: Rewrite) -> None:
    """By the gradient of the input, in training mode."""
    gm, x = rewrite
    x.requires_grad_()
    (toward,) = torch.autograd.grad(gm.train()(x).square().sum(), x, create_graph=True)
    torch.autograd.backward(toward.square().sum())
    gradients = [p.grad for name, p in gm.named_parameters() if name.startswith("surrogates.") and p.grad is not None]
    assert all(torch.isfinite(g).all() for g in gradients)
    assert any(g.any() for g in gradients) or not any(n.startswith("surrogates.") for n, _ in gm.named_parameters())


# torch 2.15 takes a kernel of attention that has no rule for torch.vmap.
@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented:UserWarning")
def test_what_a_transform_made_is_not_kept() -> None:
    """A synthesis keeps its result without gradients; inside a transform it is of that transform alone."""
    model, x = NETS["tokens"]()
    gm = rewritten(model, x, "bottleneck").graph_module
    as_after_training(gm.eval())
    with torch.no_grad():
        wanted = gm(x)
        gm.train().eval()
        many = {name: torch.stack([value, value * 2]) for name, value in _state(gm).items()}
        both = vmap(lambda parameters: functional_call(gm, parameters, (x,)))(many)
        torch.testing.assert_close(both[0], wanted)
        assert not torch.allclose(both[1], wanted)
        assert torch.equal(gm(x), wanted)
        with repl_fx.shared_synthesis(gm):
            again = vmap(lambda parameters: functional_call(gm, parameters, (x,)))(many)
        torch.testing.assert_close(again, both)
