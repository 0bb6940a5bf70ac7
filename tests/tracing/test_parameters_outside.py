"""Parameters that a forward takes from elsewhere than its modules."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import repl_fx

OUTSIDE = nn.Parameter(torch.randn(8, 8))
X = torch.randn(2, 8)


class Tied(nn.Module):
    """A layer whose weight is read from a list, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.tied = [self.first.weight]

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.first(x).relu(), self.tied[0])


class Viewed(Tied):
    """The same through a view without gradients, made once."""

    def __init__(self) -> None:
        super().__init__()
        self.view = self.first.weight.detach()[2:].t()

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x)[:, 2:] @ self.view.t()[:, 2:]  # type: ignore[no-any-return]


class Scaled(nn.Module):
    """A buffer that a list holds too, whole or a view of it that was made once."""

    scales: Tensor

    def __init__(self, first: int) -> None:
        super().__init__()
        self.register_buffer("scales", torch.arange(1.0, 9.0))
        self.layer, self.held = nn.Linear(8, 8), [self.scales[first:] if first else self.scales]

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.held[0].sum()  # type: ignore[no-any-return]


class Reading(nn.Module):
    """Reads the parameter of the script, or a module that is in no tree, where gradients flow or where none do."""

    def __init__(self, how: str, gradients: bool) -> None:
        super().__init__()
        self.layer, self.hidden = nn.Linear(8, 8), [nn.Linear(8, 8)]
        self.how, self.gradients = how, gradients

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.gradients):
            if self.how == "by a module":
                known = self.hidden[0](x)
            else:
                known = x @ OUTSIDE if self.how == "alone" else torch.cat([x, OUTSIDE]).mean(0)
        return self.layer(x) + known  # type: ignore[no-any-return]


def test_a_parameter_of_the_model_that_a_list_holds_too_is_that_parameter() -> None:
    model = Tied()
    gm = repl_fx.capture(model, (X,))
    of_model, of_graph = (torch.autograd.grad(one(X).sum(), model.first.weight)[0] for one in (model, gm))
    assert torch.equal(of_model, of_graph)
    with torch.no_grad():
        model.first.weight.mul_(1.5)
    assert torch.equal(model(X), gm(X))


def test_a_view_of_a_parameter_that_was_made_once_is_refused() -> None:
    with pytest.raises(repl_fx.CaptureError, match=r"reads view, a view of first\.weight that was made before"):
        repl_fx.capture(Viewed(), (X,))


def test_a_buffer_that_a_list_holds_too_is_that_buffer_and_a_view_of_one_is_refused() -> None:
    model = Scaled(0)
    gm = repl_fx.capture(model, (X,))
    model.scales.add_(1)
    assert torch.equal(model(X), gm(X))
    with pytest.raises(repl_fx.CaptureError, match="a view of scales that was made before"):
        repl_fx.capture(Scaled(1), (X,))


@pytest.mark.parametrize("how", ["alone", "among others", "by a module"])
def test_a_parameter_of_no_module_is_refused_where_it_would_be_trained(how: str) -> None:
    with pytest.raises(
        repl_fx.CaptureError, match=r"computes with a parameter \[8, 8\] that no module of its model gives"
    ):
        repl_fx.capture(Reading(how, gradients=True), (X,))
    model = Reading(how, gradients=False)
    assert torch.equal(repl_fx.capture(model, (X,))(X), model(X))
