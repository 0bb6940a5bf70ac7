"""Tests for repl_fx.tracing.control_flow: traces with different answers become one graph."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

import repl_fx
from repl_fx.graph.decisions import is_choice, is_decision, is_random
from repl_fx.graph.runtime import check_condition
from tests.nets import seeded_call


class Skips(nn.Module):
    """Skips layers at random in training, and a last one by what it computed, in both modes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        # Read before the mode is.
        self.gain = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.gain
        for layer in self.layers:
            skip = self.training and torch.rand([]) < 0.5
            if not skip:
                x = layer(x)
                # A size that the first layer which runs computes, for all.
                x = x.reshape(x.shape[0] * 2, 2).reshape(-1, 4)
            if skip:
                continue
        if (x > 3).any():
            x = x.clamp(max=3)
        return x


@pytest.mark.slow
def test_one_graph_decides_as_the_source_does() -> None:
    torch.manual_seed(0)
    model = Skips()
    gm = repl_fx.capture(model, (torch.randn(3, 4),))
    decisions = [node for node in gm.graph.nodes if is_decision(node)]
    assert [is_random(node) for node in decisions] == [True, True, True, False]
    assert sum(is_choice(node) for node in gm.graph.nodes) == 4
    for seed in range(8):
        for scale in (1.0, 50.0):
            x = torch.randn(5, 4) * scale
            wanted = seeded_call(model, seed, x)
            assert torch.equal(seeded_call(gm, seed, x), wanted)
    model.eval()
    gm.eval()
    assert torch.equal(gm(x), model(x))


class Hears(nn.Module):
    """Skips layers at random in training, which `wide` ones take at any length."""

    def __init__(self, *, wide: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(1, 1, 3, padding=1) if wide else nn.Linear(8, 8) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(1)
        for layer in self.layers if x.ndim == 3 else ():
            if not (self.training and torch.rand([]) < 0.5):
                x = layer(x)
        return x.mean(1)


@pytest.mark.parametrize("wide", [True, False])
def test_lengths_are_free_beside_layers_that_training_skips_where_these_take_any(wide: bool) -> None:
    torch.manual_seed(0)
    model = Hears(wide=wide)
    gm = repl_fx.capture(model, (torch.randn(2, 8),))
    _same(gm, model, torch.randn(3, 8))
    if wide:
        _same(gm, model, torch.randn(3, 13))
        return
    # Where all of them are left out, the source takes any length.
    with pytest.raises(repl_fx.BadInput, match=r"captured as \[any, 8\]"):
        gm.train()(torch.randn(3, 13))


class Remembers(nn.Module):
    """Returns what the layers that ran have made, by their numbers, as a decoder returns its cache."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> BaseModelOutput:
        made = {}
        for number, layer in enumerate(self.layers):
            if not (self.training and torch.rand([]) < 0.5):
                made[f"layer_{number}"] = layer(x)
                x = x + made[f"layer_{number}"].relu()
        return BaseModelOutput(last_hidden_state=x, hidden_states=made)


def test_an_output_class_may_hold_values_of_layers_that_training_skips() -> None:
    torch.manual_seed(0)
    model = Remembers()
    x = torch.randn(3, 4)
    gm = repl_fx.capture(model, (x,))
    for seed in range(8):
        ours, theirs = (seeded_call(m, seed, x) for m in (gm.train(), model.train()))
        assert type(ours) is BaseModelOutput
        assert torch.equal(ours.last_hidden_state, theirs.last_hidden_state)
        made = {name: value for name, value in ours.hidden_states.items() if value is not None}
        assert made.keys() == theirs.hidden_states.keys()
        assert all(torch.equal(value, theirs.hidden_states[name]) for name, value in made.items())
    assert torch.equal(gm.eval()(x).hidden_states["layer_1"], model.eval()(x).hidden_states["layer_1"])


class Cleans(nn.Module):
    """What it computes is needed whether it is changed or not."""

    def __init__(self, *, leaf: bool) -> None:
        super().__init__()
        self.fc, self.leaf = nn.Linear(4, 4), leaf

    def forward(self, x: Tensor) -> Tensor:
        def made() -> Tensor:
            return self.fc(x) if self.leaf else x.cos() @ self.fc.weight

        return made().nan_to_num() if torch.isnan(x).any() else made()


@pytest.mark.slow
def test_what_both_ways_compute_is_computed_before_the_decision_or_refused() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4)
    unclean = x.clone()
    unclean[0, 0] = torch.nan
    model = nn.Sequential(Cleans(leaf=False), Cleans(leaf=False))
    gm = repl_fx.capture(model, (x,))
    for given in (x, unclean):
        for training in (True, False):
            made, wanted = gm.train(training)(given), model.train(training)(given)
            torch.testing.assert_close(made, wanted, rtol=0, atol=0, equal_nan=True)
    with pytest.raises(repl_fx.CaptureError, match="has an effect, and is needed whether skip_"):
        repl_fx.capture(nn.Sequential(Cleans(leaf=True), Cleans(leaf=True)), (x,))


class Swaps(nn.Module):
    """Computes one thing or another."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sin() if x.sum() > 0 else x.cos()


def test_a_choice_between_two_computations_is_refused() -> None:
    with pytest.raises(repl_fx.CaptureError, match="a decision does more than skip a layer"):
        repl_fx.capture(Swaps(), (torch.randn(3, 4),))


class Masked(nn.Module):
    """Layers that compute otherwise where a mask asks for more than its ones, and that training skips at random."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        more = mask > 1
        special = more.flatten().any().item()
        for layer in self.layers:
            if self.training and torch.rand([]) < 0.5:
                continue
            y = layer(x)
            if special:
                y = y + y[more.nonzero(as_tuple=True)].sum()
            # The first layer that runs computes these sizes.
            x = x + y.view(x.shape[0] * 2, -1, 2).view(x.shape).relu()
        return x


def _same(ours: nn.Module, theirs: nn.Module, *inputs: Tensor) -> None:
    for training in (True, False):
        ours.train(training)
        theirs.train(training)
        for seed in range(6 if training else 1):
            wanted = seeded_call(theirs, seed, *inputs)
            assert torch.equal(seeded_call(ours, seed, *inputs), wanted)


class Shaken(nn.Module):
    """Training adds noise to the value that layers take which it skips at random."""

    def __init__(self) -> None:
        super().__init__()
        self.extra, self.layers = nn.Linear(4, 4), nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x + torch.rand(1) * self.extra(x)
        for layer in self.layers:
            if not (self.training and torch.rand([]) < 0.5):
                x = x + layer(x).relu()
        return x


def test_a_layer_that_may_be_skipped_takes_a_value_of_training_alone() -> None:
    torch.manual_seed(0)
    model, x = Shaken(), torch.randn(2, 4)
    gm = repl_fx.capture(model, (x,))
    assert sum(is_decision(node) for node in gm.graph.nodes) == 3
    _same(gm, model, x)


@pytest.mark.slow
def test_a_decision_that_the_inputs_settle_becomes_a_check() -> None:
    torch.manual_seed(0)
    model = Masked()
    ones = torch.ones(2, 6, dtype=torch.int64)
    gm = repl_fx.capture(model, (torch.randn(2, 6, 4), ones))
    checks = [node for node in gm.graph.nodes if node.target is check_condition]
    assert [node.args[1] for node in checks] == [False]
    assert [(repeat.name, len(repeat.blocks)) for repeat in repl_fx.find_repeats(gm)] == [("layers", 4)]
    x, other = torch.randn(3, 5, 4), torch.zeros(3, 5, dtype=torch.int64)
    _same(gm, model, x, other)
    other[0, 0] = 2
    with pytest.raises(repl_fx.BadInput, match=r"special = .* was False for the inputs .* is True for these"):
        gm(x, other)


class Blanks(nn.Module):
    """Blanks an embedding in place, and with `marks` what its mask was made of, before it asks for the mask (ESM-2)."""

    def __init__(self, marks: bool) -> None:
        super().__init__()
        self.marks, self.through = marks, nn.Identity()
        self.embedding, self.layers = nn.Embedding(9, 4), nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, tokens: Tensor) -> Tensor:
        mask = tokens == 1
        x: Tensor = self.embedding(tokens)
        (self.through(mask) if self.marks else x[..., 0]).masked_fill_(tokens == 2, 0)
        special = bool(mask.any())
        for layer in self.layers:
            y = layer(x)
            x = x + (y.masked_fill(mask[..., None], 0) if special else y).relu()
        return x


@pytest.mark.slow
def test_a_write_into_an_activation_changes_no_mask() -> None:
    model, tokens = Blanks(False), torch.randint(3, 9, (2, 6))
    gm = repl_fx.capture(model, (tokens,))
    _same(gm, model, torch.randint(2, 9, (3, 5)))
    with pytest.raises(repl_fx.BadInput, match=r"special = .* is True for these"):
        gm(torch.ones(3, 5, dtype=torch.int64))


def test_a_write_through_a_module_that_returns_a_mask_may_change_it() -> None:
    with pytest.raises(repl_fx.CaptureError, match="has an effect, and is needed whether"):
        repl_fx.capture(Blanks(True), (torch.randint(3, 9, (2, 6)),))


def test_the_example_says_which_way_is_captured() -> None:
    torch.manual_seed(0)
    model = Sums()
    gm = repl_fx.capture(model, (torch.randn(2, 6), torch.tensor([[True], [False]])))
    x = torch.randn(3, 6)
    _same(gm, model, x, torch.tensor([[False], [True], [True]]))
    with pytest.raises(repl_fx.BadInput, match="was True"):
        gm(x, torch.zeros(3, 1, dtype=torch.bool))


class Sums(nn.Module):
    """One computation or another, by a mask that it writes into."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        seen = torch.zeros(x.shape[0], 1, dtype=torch.bool)
        seen[:] = mask
        return x.sin() if seen.any() else x.cos()


class Learned(nn.Module):
    """Another computation for another weight, or for other activations."""

    def __init__(self, of_weight: bool) -> None:
        super().__init__()
        self.of_weight = of_weight
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x.sin() if (self.scale if self.of_weight else x).sum() > 0 else x.cos()


@pytest.mark.parametrize("of_weight", [True, False])
def test_what_the_next_step_may_decide_otherwise_is_refused(of_weight: bool) -> None:
    with pytest.raises(repl_fx.CaptureError, match="a decision does more than skip a layer"):
        repl_fx.capture(Learned(of_weight), (torch.ones(3, 4),))


class Thinned(nn.Module):
    """Runs the layers that a draw leaves, in both modes (CaiT of vit-pytorch)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        dropped = torch.zeros(4).uniform_(0.0, 1.0) < 0.3
        for layer in [layer for layer, drop in zip(self.layers, dropped, strict=True) if not drop]:
            x = x + layer(x).relu()
        return x


def test_random_numbers_written_into_a_tensor_are_no_inputs() -> None:
    with pytest.raises(repl_fx.CaptureError, match="a decision does more than skip a layer"):
        repl_fx.capture(Thinned(), (torch.randn(2, 4),))


class Asserts(nn.Module):
    """Stops at activations that are no numbers, before or behind its layer, which training may skip."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.layer = number, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        assert torch.isfinite(x).all(), "not finite"
        if not (self.training and torch.rand([]) < 0.5):
            x = x + self.layer(x)
        if x.isnan().any():
            raise ValueError(f"not a number in layer {self.number}")
        return x


def test_assertions_about_values_are_checks_of_the_graph() -> None:
    model, x = nn.Sequential(*map(Asserts, range(3))), torch.randn(2, 8)
    gm = repl_fx.capture(model, (x,))
    for seed in range(4):
        expected = seeded_call(model, seed, x)
        assert torch.equal(seeded_call(gm, seed, x), expected)
    with pytest.raises(AssertionError, match="not finite"):
        model.eval()(x * torch.nan)
    words = re.escape('a condition of 0 (assert torch.isfinite(x).all(), "not finite") was True')
    with pytest.raises(repl_fx.BadInput, match=words):
        gm.eval()(x * torch.nan)


class States(nn.Module):
    """States by a function of torch what holds of its input, in a block."""

    def __init__(self, state: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.first, self.second, self.state = nn.Linear(8, 16), nn.Linear(16, 8), state

    def forward(self, x: Tensor) -> Tensor:
        self.state(x < 50)
        x = x + self.second(self.first(x).relu())
        return x


def _asserts(low: Tensor) -> None:
    assert low.all(), "too high"


@pytest.mark.parametrize(
    "state",
    [
        _asserts,
        lambda low: torch._assert(low.all(), "too high"),
        lambda low: torch._assert_async(low.all()),
        torch._check_tensor_all,
    ],
)
def test_what_functions_of_torch_assert_is_checked_by_the_graph(state: Callable[[Tensor], object]) -> None:
    model, x = nn.Sequential(*(States(state) for _ in range(4))), torch.randn(4, 8)
    gm = repl_fx.transform(model, (x,), blocks=["1"], surrogate="identity", check=False).graph_module
    assert torch.equal(gm(x), model[3](model[2](model[0](x))))
    assert [node.args[1] for node in gm.graph.nodes if node.target is check_condition] == [True] * 3
    with pytest.raises(repl_fx.BadInput, match=r"a condition of 0 .* was True"):
        gm(x * 1000)
    exported = torch.export.export(gm, (x,)).module()
    for made in (exported, torch.compile(gm, fullgraph=True, backend="eager")):
        assert torch.equal(made(x), gm(x))
    with pytest.raises(RuntimeError, match=r"a condition of 0 .* was True"):
        exported(x * 1000)


class Checked(nn.Linear):
    """Raises on the tensors of a trace, behind a decision that goes one way for its inputs."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 100:
            return super().forward(-x)
        if type(x) is not Tensor:
            raise TypeError("no such tensors")
        return super().forward(x)


def test_an_exception_in_the_way_of_the_example_is_no_assertion() -> None:
    with pytest.raises(repl_fx.CaptureError, match=r"TypeError: no such tensors \(at .*\.py, line \d+\)"):
        repl_fx.capture(Checked(4, 4), (torch.zeros(2, 4),))
