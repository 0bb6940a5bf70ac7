"""Attributes that are put aside are read as before, and each read is seen."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.tracing.attributes_aside import AttributesAside, ModeReads


class Numbered(nn.Module):
    """Has a number."""

    kind = "plain"

    def __init__(self) -> None:
        super().__init__()
        self.number = 3
        self.kind = "own"


def test_a_read_is_seen_and_the_attribute_comes_back() -> None:
    module, aside, reads = Numbered(), AttributesAside(lambda: False), []
    with (
        aside.served(),
        aside.kept([(module, "number"), (module, "kind")], lambda part, name: reads.append((part, name))) as watched,
    ):
        # The class would answer for the other.
        assert watched == [(module, "number")]
        assert "number" not in vars(module)
        assert module.number == 3 and not hasattr(module, "missing")
    assert reads == [(module, "number")]
    assert vars(module)["number"] == 3


def test_reads_of_a_running_leaf_are_its_own_and_writes_stay() -> None:
    module, reads = Numbered(), []
    aside = AttributesAside(lambda: True)
    with aside.served(), aside.kept([(module, "number")], lambda part, name: reads.append(name)):
        assert module.number == 3
        module.number = 4
    assert not reads and module.number == 4


def test_what_reads_or_sets_a_mode_is_seen() -> None:
    model = nn.Sequential(Numbered(), nn.Dropout())
    for use, seen in ((lambda: None, False), (lambda: model[0].training, True), (lambda: model[1].eval(), True)):
        aside = AttributesAside(lambda: False)
        modes = ModeReads(model, aside)
        with aside.served(), modes.noted():
            use()
        assert modes.seen is seen
        assert all("training" in vars(module) for module in model.modules())


class Looks(nn.Linear):
    """Looks its mode up past the lookup of attributes."""

    def forward(self, x: Tensor) -> Tensor:
        trains = vars(self).get("training") and self.__dict__["training"]
        return super().forward(x * 2 if trains else x)


def test_a_mode_that_is_looked_up_in_the_dictionary_is_seen() -> None:
    model, x = Looks(4, 4), torch.randn(2, 4)
    gm = repl_fx.capture(model, (x,))
    for training in (True, False):
        assert torch.equal(gm.train(training)(x), model.train(training)(x))


def test_a_mode_that_never_changes_may_be_read() -> None:
    model = nn.Sequential(Numbered(), nn.Dropout())
    for module, seen in zip(model, (False, True), strict=True):
        aside = AttributesAside(lambda: False)
        modes = ModeReads(model, aside, {model[0]})
        with aside.served(), modes.noted():
            assert module.training
        assert modes.seen is seen


class Scores(nn.Module):
    """Reads its mode, and has no parameters."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation, self.drop = activation, nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.drop(self.activation(x))
        return scores * (2.0 if self.training else 1.0)


class Shared(nn.Module):
    """Two modules share a third, so that torch.export runs their forwards on stand-ins."""

    def __init__(self) -> None:
        super().__init__()
        activation = nn.ReLU()
        self.first, self.scores, self.second = nn.Linear(4, 4), Scores(activation), Scores(activation)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.second(self.scores(self.first(x)))
        return scores


def test_a_module_reads_its_mode_where_modules_are_shared() -> None:
    model, x = Shared(), torch.randn(2, 4)
    gm = repl_fx.capture(model, (x,))
    assert gm.meta["capture"].tracer == "torch.export"
    for mode in (True, False):
        torch.manual_seed(0)
        expected = model.train(mode)(x)
        torch.manual_seed(0)
        assert torch.equal(gm.train(mode)(x), expected)
