"""The check of a capture can fail: on what differs, and on what only one of the two trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import repl_fx
from repl_fx.errors import CaptureError
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.tracing.check import ModeCheck, check_of, compare_modes
from tests.releases import fails_on_old_torch

X = torch.linspace(-1, 1, 8).reshape(2, 4)


class Detached(nn.Linear):
    """A layer whose output has no history."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).detach()


class ForInference(nn.Module):
    """A model that computes inside torch.inference_mode."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            made: Tensor = self.fc(x)
            return made


def check(model: nn.Module, module: nn.Module, training: bool) -> ModeCheck:
    (found,) = compare_modes(model, module, ExampleInputs((X,)), (training,))
    return found


def test_what_only_one_of_them_trains() -> None:
    plain, detached = nn.Linear(4, 4), Detached(4, 4)
    detached.load_state_dict(plain.state_dict())
    assert check(detached, plain, True).differences == tuple(
        f"training, step {step}: its outputs require a gradient, and those of the model do not" for step in (1, 2)
    )
    assert "its outputs require no gradient, and those of the model do" in check(plain, detached, True).differences[0]
    assert not check(plain, plain, True).differences and not check(detached, detached, False).differences


class _FailsBackward(torch.autograd.Function):
    """A function with a backward pass for training alone, as reversible blocks have one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, training: bool) -> Tensor:
        ctx.state = b"drawn" if training else None
        return x * 2

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, None]:
        return given[0] * len(ctx.state), None


class TrainsAlone(nn.Linear):
    """A layer whose backward pass fails in evaluation, by an error of Python's own."""

    def forward(self, input: Tensor) -> Tensor:
        made: Tensor = _FailsBackward.apply(super().forward(input), self.training)
        return made


def test_a_backward_pass_may_fail_by_any_error() -> None:
    model, plain = TrainsAlone(4, 4), nn.Linear(4, 4)
    assert not check(model, model, False).differences
    found = check(model, plain, False).differences
    assert any("backward pass: no error, not object of type 'NoneType' has no len()" in line for line in found)


class LetsInputsLearn(nn.Linear):
    """A layer that asks for the gradient of its input itself, as the feature encoder of wav2vec 2.0 does."""

    def forward(self, input: Tensor) -> Tensor:
        rows = input[:, None]
        if self.training:
            rows.requires_grad = True
        return super().forward(rows)


def test_a_model_that_takes_no_input_with_a_gradient_is_compared_without() -> None:
    model, other = LetsInputsLearn(4, 4), LetsInputsLearn(4, 4)
    found = check(model, model, True)
    assert not found.differences
    assert all(found.source.state[f"the gradient of {name}"] is not None for name in ("weight", "bias"))
    assert any("gradient of weight" in line for line in check(model, other, True).differences)


def test_a_parameter_that_a_forward_changes_is_put_back_when_the_check_ends() -> None:
    class Moves(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            self.bias.data = self.bias.data + 1.0
            return super().forward(input)

    model = Moves(4, 4)
    before = model.bias.detach().clone()
    checks = compare_modes(model, model, ExampleInputs((X,)))
    next(checks)
    checks.close()
    assert torch.equal(model.bias, before)


def test_inference_mode_inside_a_forward_is_not_taken_for_training() -> None:
    with pytest.raises(CaptureError, match="the forward calls inference_mode, which a graph would drop"):
        repl_fx.capture(ForInference(), (X,))


class Laid(nn.Module):
    """Attention, or what a graph of it may be."""

    def __init__(self, join: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        heads = x.view(*x.shape[:2], 2, -1).transpose(1, 2)
        return self.join(F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2))


_COPIES = Laid(lambda y: y.contiguous().flatten(2) * 2.0)


@pytest.mark.parametrize(
    ("source", "graph", "told"),
    [
        # The kernel that a CPU takes by itself leaves nothing to copy.
        (_COPIES, Laid(lambda y: y.view(*y.shape[:2], -1) * 2.0), "view size is not compatible"),
        (_COPIES, _COPIES, None),
        # Where the source needs that kernel, so may the graph.
        (Laid(lambda y: y.view(*y.shape[:2], -1)), Laid(lambda y: y.view(*y.shape[:2], -1)), None),
        (Laid(lambda y: y.view(*y.shape[:2], -1)), Laid(lambda y: y.reshape(*y.shape[:2], -1)), None),
    ],
)
def test_both_run_under_another_kernel_of_attention(source: nn.Module, graph: nn.Module, told: str | None) -> None:
    x = torch.linspace(-1, 1, 80).reshape(2, 5, 8)
    (found,) = compare_modes(source, graph, ExampleInputs((x,)), (False,))
    assert [told in line for line in found.differences] == [True] if told else not found.differences


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (lambda x: x.contiguous() * 2.0, "output 0 has other strides"),
        (lambda x: x * (2.0 if x.is_contiguous() else 3.0), "output 0 differs by up to"),
        (lambda x: x * 2.0, None),
    ],
)
def test_both_run_on_inputs_of_other_strides(other: Callable[[Tensor], Tensor], told: str | None) -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2.0

    class Other(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return other(x)

    for shape in ((2, 3), (2, 3, 4), (2, 3, 4, 5), (2, 3, 4, 5, 6)):
        given = ExampleInputs((torch.ones(shape),))
        (found,) = compare_modes(Plain(), Other(), given, (False,))
        assert [told in line for line in found.differences] == [True] if told else not found.differences
        (found,) = compare_modes(Plain(), Other(), given, (True,))
        assert not found.differences


class Attending(nn.Module):
    """A block whose attention torch computes otherwise where nothing needs a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.fc = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + torch.relu(self.fc(x))


@fails_on_old_torch("attention in a graph stops at some other strides")
def test_attention_that_is_frozen_is_compared_by_its_own_code() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(Attending() for _ in range(3))).requires_grad_(False)
    result = repl_fx.transform(model, (torch.randn(2, 6, 16),), surrogate="identity")
    assert not isinstance(result.model, fx.GraphModule)
    assert torch.backends.mha.get_fastpath_enabled()
    assert check_of(model, repl_fx.capture(model, (torch.randn(2, 6, 16),)), ExampleInputs.of((torch.randn(2, 6, 16),)))


class Silent(nn.Linear):
    """Fails without a word on inputs that have gaps in memory."""

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_contiguous():
            raise ValueError
        return super().forward(x)


def test_an_error_without_a_word_is_named_by_its_class() -> None:
    plain, silent = nn.Linear(4, 4), Silent(4, 4)
    silent.load_state_dict(plain.state_dict())
    (difference,) = check(plain, silent, training=False).differences
    assert difference.endswith("attention kernel: ValueError")
