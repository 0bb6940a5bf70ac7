"""A block and its neighbours: questions about them, which change nothing."""

from __future__ import annotations

from unittest.mock import Mock, patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repl_fx
from repl_fx._torch import fixed_size
from repl_fx.finding.find_repeats import find_repeats
from repl_fx.graph.known_shapes import FAKES
from repl_fx.plan import Refusal
from repl_fx.surrogates.shared.activations import is_activation
from repl_fx.surrogates.shared.site import Site, Unfit, unfit_is_refused
from tests.graphs import residual
from tests.surrogates.nets import Residual


class _Counting(nn.Module):
    """An activation that keeps a running mean of its input in training."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.mean = 0.9 * self.mean + x.mean()
        return F.relu(x)


class _Dropping(nn.Module):
    """Dropout, and no activation: it treats elements unlike in training, and is linear in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training)


class _Idle(nn.Module):
    """A residual block that calls layers besides, whose results nothing reads; one of them reads hidden units.

    Args:
        idle: whether the calls are made.
        inside: whether the first of them is given hidden units.
        again: whether one is a call of a layer that is read elsewhere.
    """

    def __init__(self, *, idle: bool, inside: bool = False, again: bool = False) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.key, self.value = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.idle, self.inside, self.again = idle, inside, again

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x).relu()
        if self.idle:
            self.value(self.key(hidden if self.inside else x).relu())
            if self.again:
                self.fc2(x)
        made: Tensor = x + self.fc2(hidden)
        return made


@pytest.mark.parametrize(
    ("surrogate", "again"), [("blend", False), ("blend", True), ("coarse", True), ("narrow", False)]
)
def test_layers_whose_results_nothing_reads_change_no_surrogate(surrogate: str, again: bool) -> None:
    x = torch.randn(2, 8, 16, 16)
    results = []
    for idle in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(*(_Idle(idle=idle, again=again) for _ in range(3)))
        results.append(repl_fx.transform(model, (x,), blocks=["1"], surrogate=surrogate))
    for result in results:
        assert torch.equal(result.model(x), result.graph_module(x))
    assert torch.equal(results[0].model(x), results[1].model(x))


def test_units_that_a_layer_reads_for_nothing_stay() -> None:
    model = nn.Sequential(*(_Idle(idle=True, inside=True) for _ in range(3)))
    with pytest.raises(repl_fx.NothingToReplace, match=r"nothing reads the result of _1_key"):
        repl_fx.transform(model, (torch.randn(2, 8, 16, 16),), surrogate="narrow")


def test_planning_draws_no_numbers_and_dropout_is_no_activation() -> None:
    model = nn.Sequential(*(Residual(nn.Conv2d(16, 16, 1), _Dropping(), nn.Conv2d(16, 16, 1)) for _ in range(3)))
    gm = repl_fx.capture(model, (torch.randn(2, 16, 8, 8),))
    before = torch.get_rng_state()
    for surrogate in ("slim", "coarse", "bottleneck", "auto"):
        repl_fx.make_plan(gm, repl_fx.find_repeats(gm), surrogate=surrogate)
    assert torch.equal(torch.get_rng_state(), before)
    dropping = [n for n in gm.graph.nodes if n.op == "call_module" and type(gm.get_submodule(n.target)) is _Dropping]
    assert len(dropping) == 3 and not any(is_activation(gm, node) for node in dropping)


def test_planning_moves_no_state() -> None:
    model = nn.Sequential(*(Residual(nn.Conv2d(16, 16, 1), _Counting(), nn.Conv2d(16, 16, 1)) for _ in range(3)))
    gm = repl_fx.capture(model, (torch.randn(2, 16, 8, 8),))
    for surrogate in ("slim", "coarse", "bottleneck", "auto"):
        repl_fx.make_plan(gm, repl_fx.find_repeats(gm), surrogate=surrogate)
    for name, buffer in (*gm.named_buffers(), *model.named_buffers()):
        assert type(buffer) is Tensor and not buffer.any(), name


def test_a_norm_of_the_mean_of_all_batches_is_planned_and_stays() -> None:
    def block() -> nn.Module:
        return Residual(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16, momentum=None), nn.ReLU(), nn.Conv2d(16, 16, 1))

    model = nn.Sequential(*(block() for _ in range(3)))
    given = (torch.randn(2, 16, 8, 8),)
    gm = repl_fx.capture(model, given)
    for surrogate in ("slim", "narrow", "bottleneck", "auto"):
        result = repl_fx.transform(model, given, surrogate=surrogate, captured=gm)
        assert {m.momentum for m in result.module.modules() if isinstance(m, nn.BatchNorm2d)} == {None}


def _site() -> Site:
    gm = residual(3)
    (repeat,) = find_repeats(gm)
    before, block, after = repeat.blocks
    return Site(gm, block, before, after, repeat.name)


def test_counterparts_play_the_same_part_in_the_neighbours() -> None:
    site = _site()
    assert [site.counterpart(site.block.nodes[2], block).name for block in site.neighbours] == ["layer_2", "layer_6"]
    assert site.counterpart_parameters("layer_3.bias") == ("layer_1.bias", "layer_5.bias")


def test_an_unfit_block_is_refused_with_the_node() -> None:
    @unfit_is_refused
    def match(surrogate: object, site: Site) -> None:
        raise Unfit("it is too wide", site.block.nodes[0])

    site = _site()
    assert match(None, site) == Refusal(site.block.name, site.repeat, "it is too wide", "layer_3")


def test_a_match_that_depends_on_a_size_that_varies_is_refused_and_the_size_stays_free() -> None:
    @unfit_is_refused
    def match(surrogate: object, site: Site) -> None:
        int(site.input.meta["val"].shape[0])

    gm = repl_fx.capture(nn.Sequential(*(Residual(nn.Linear(8, 8)) for _ in range(3))), (torch.randn(2, 8),))
    (repeat,) = find_repeats(gm)
    before, block, after = repeat.blocks
    site = Site(gm, block, before, after, repeat.name)
    size = site.input.meta["val"].shape[0]
    refused = match(None, site)
    assert isinstance(refused, Refusal)
    assert refused.reason == f"whether it fits depends on a size that varies: {size}"
    # What an operator asks of its arguments is not remembered either.
    assert site.value_of(lambda x: x.new_zeros(int(x.shape[0])), site.input).shape == (2,)
    assert fixed_size(size) is None
    # Results that are known are not run for.
    rule = Mock(wraps=FAKES[torch.ops.aten.add.Tensor])
    with patch.dict("repl_fx.graph.known_shapes.FAKES", {torch.ops.aten.add.Tensor: rule}):
        assert site.value_of(torch.add, site.input, site.input).shape == site.input.meta["val"].shape
    rule.assert_called_once()
