"""After replacing, one training step: what cannot take it is refused, and nothing of the model moves."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repl_fx
from repl_fx.errors import NothingToReplace, PlanMismatch
from repl_fx.rewriting.check_training import TrainingCheck
from repl_fx.running.example_inputs import ExampleInputs
from tests.nets import ConvNet, Counts, TokenNet, images, tokens
from tests.planning.perceptron import Perceptron
from tests.planning.untrainable import MADE, register


@pytest.mark.parametrize("kind", MADE)
def test_a_surrogate_that_cannot_be_trained_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    apply, reason = MADE[kind]
    register(monkeypatch, apply)
    model, x = nn.Sequential(*(Perceptron() for _ in range(3))), torch.randn(4, 16)
    if kind == "dead":
        # Captured in parts, the whole is checked.
        with pytest.raises(NothingToReplace, match=f"body.1: given .*{reason}"):
            repl_fx.transform(Counts(model), (x,), surrogate="given")
    with pytest.raises(NothingToReplace, match=f"1: given .*{reason}"):
        repl_fx.transform(model, (x,), surrogate="given")
    made = repl_fx.transform(model, (x,), surrogate="given", check=False)
    with pytest.raises(PlanMismatch, match=f"cannot be trained: given .*{reason}"):
        repl_fx.transform(model, (x,), plan=made.plan)
    repl_fx.transform(model, (x,), plan=made.plan, check=False)


def test_a_parameter_of_the_model_that_nothing_uses_hides_no_dead_surrogate(monkeypatch: pytest.MonkeyPatch) -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Parameter(torch.ones(2))
            self.body = nn.Sequential(*(Perceptron() for _ in range(3)))

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.body(x)
            return made

    apply, reason = MADE["dead"]
    register(monkeypatch, apply)
    with pytest.raises(NothingToReplace, match=f"body.1: given .*{reason}"):
        repl_fx.transform(Spare(), (torch.randn(4, 16),), surrogate="given")


def test_a_gate_that_is_closed_at_first_is_no_death() -> None:
    model = nn.Sequential(*(Perceptron(gate=0.0) for _ in range(3)))
    x = torch.randn(4, 16)
    gm = repl_fx.transform(model, (x,), surrogate="bottleneck").graph_module
    gm(x).square().sum().backward()
    own = [p.grad for n, p in gm.named_parameters() if n.startswith("surrogates")]
    assert own and all(gradient is not None and not gradient.any() for gradient in own)


@pytest.mark.parametrize(
    "end", [F.relu, F.relu_, F.relu6, torch.square, lambda y: y * y, lambda y: F.threshold(y, 0, 0)]
)
def test_a_branch_that_ends_in_what_is_flat_at_zero_does_not_begin_there(end: Callable[[Tensor], Tensor]) -> None:
    model = nn.Sequential(*(Perceptron(end=end) for _ in range(3)))
    x = torch.randn(4, 16)
    result = repl_fx.transform(model, (x,))
    assert [r.surrogate for r in result.plan.replacements] == ["bottleneck"]
    result.graph_module(x).square().sum().backward()
    own = [p.grad for n, p in result.graph_module.named_parameters() if n.startswith("surrogates")]
    assert own and all(gradient is not None and gradient.any() for gradient in own)


@pytest.mark.parametrize("surrogate", ["coarse", "slim", "bottleneck"])
def test_likewise_in_pictures(surrogate: str) -> None:
    model = nn.Sequential(*(_PictureBlock() for _ in range(3)))
    x = torch.randn(2, 16, 8, 8)
    gm = repl_fx.transform(model, (x,), surrogate=surrogate).graph_module
    gm(x).square().sum().backward()
    own = [p.grad for n, p in gm.named_parameters() if n.startswith("surrogates")]
    assert own and all(gradient is not None and gradient.any() for gradient in own)


class _PictureBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.relu(self.conv(x))  # type: ignore[no-any-return]


def test_nothing_of_the_model_moves() -> None:
    model, x = ConvNet(), images()
    model.train()
    model.blocks[0].eval()
    model(x).sum().backward()
    state = copy.deepcopy(model.state_dict())
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    drawn = torch.get_rng_state()
    result = repl_fx.transform(model, (x,))
    assert torch.equal(drawn, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert gradient is None or (parameter.grad is not None and torch.equal(parameter.grad, gradient))
    fresh = repl_fx.transform(model, (x,), check=False).graph_module.state_dict()
    for name, value in result.graph_module.state_dict().items():
        assert torch.equal(value, fresh[name]), name
    assert all(p.grad is None for n, p in result.graph_module.named_parameters() if n.startswith("surrogates"))


def test_what_the_model_itself_cannot_do_is_not_the_surrogates_fault() -> None:
    class Stubborn(TokenNet):
        def forward(self, x: Tensor) -> Tensor:
            # sigmoid keeps its result, which is then written to.
            return super().forward(x).sigmoid().add_(1)

    result = repl_fx.transform(Stubborn(depth=3), (tokens(),), surrogate="bottleneck")
    assert [r.block for r in result.plan.replacements] == ["blocks.1"]


def test_on_the_meta_device_nothing_is_run() -> None:
    with torch.device("meta"):
        model, x = TokenNet(depth=3), tokens()
    assert not TrainingCheck(model, ExampleInputs((x,))).possible
    assert repl_fx.transform(model, (x,), surrogate="bottleneck").plan.replacements
