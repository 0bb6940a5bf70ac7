"""Scores of blocks by hand, on whole models and on models in parts, and a line for all that cannot be scored."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies
from torch import Tensor, nn

import repl_fx
from repl_fx.errors import BadInput, NothingToReplace
from repl_fx.planning.scoring.scores import KINDS
from repl_fx.tracing.parts.capture_parts import CapturedParts
from tests.nets import ConvNet, Counts, MlpNet, images, tokens
from tests.planning.scoring.nets import Plane, mean_square

X = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).repeat(4, 1)
NAMES = ("blocks.0", "blocks.1", "blocks.2")


@cache
def _plane() -> CapturedParts:
    return repl_fx.capture_parts(Plane().eval(), (X,))


def test_scores_by_hand() -> None:
    # With targets of zeros the loss of (1, 0) is 4 behind all blocks, half of 2² + 2²; of (0, 2) four times that.
    scores = repl_fx.score_blocks(_plane(), [(X, torch.zeros(8, 2))], loss=mean_square, kinds=KINDS, greedy=3)
    assert scores.samples == 8 and scores.loss == (4 + 16) / 2
    assert scores.of("influence") == dict(zip(NAMES, (0.0, 0.0, pytest.approx(1 - 2**-0.5)), strict=True))
    assert scores.of("change") == dict(zip(NAMES, (1.0, 0.0, 1.0), strict=True))
    # dL/dy is y: (2, 2) behind block 2, and (4, 0) behind block 0, for the first sample.
    assert scores.of("gradient") == dict(zip(NAMES, ((4 + 16) / 2, 0.0, (4 + 16) / 2), strict=True))
    # Without the first or the last block: (1, 1) or (2, 0).
    assert [score.loss for score in scores.blocks] == [(1 + 4) / 2, 10.0, (2 + 8) / 2]
    assert scores.of("loss") == dict(zip(NAMES, (-7.5, 0.0, -5.0), strict=True))
    assert [(one.first, one.last, one.length) for one in scores.stretches] == [
        ("blocks.0", "blocks.1", 2),
        ("blocks.0", "blocks.2", 3),
        ("blocks.1", "blocks.2", 2),
    ]
    # The ends stay, as in any plan.
    assert scores.greedy == ("blocks.1",) and scores.blocks[1].greedy_loss == 10.0
    assert repl_fx.Scores.from_json(scores.to_json()) == scores


@cache
def _residual() -> tuple[ConvNet, CapturedParts]:
    torch.manual_seed(0)
    net = ConvNet(5, 4).eval()
    with torch.no_grad():
        for parameter in net.get_submodule("blocks.3.bn2").parameters():
            parameter.zero_()
    return net, repl_fx.capture_parts(net, (images(),))


def test_a_block_that_adds_nothing_has_no_influence_and_goes_first() -> None:
    net, found = _residual()
    with torch.no_grad():
        pictures = images(16)
        # Of a trained model: any block less is a loss.
        data = [(pictures[:8], net(pictures[:8])), (pictures[8:], net(pictures[8:]))]
    scores = repl_fx.score_blocks(found, data, loss=F.mse_loss, kinds=KINDS, greedy=2)
    for kind in KINDS:
        values = scores.of(kind)
        assert values.pop("blocks.3") == 0
        assert kind == "gradient" or min(values.values()) > 0
    assert scores.greedy[0] == "blocks.3" and len(scores.greedy) == 2
    second = scores.blocks[int(scores.greedy[1].rpartition(".")[2])]
    assert second.greedy_rank == 2 and second.greedy_loss == second.loss


def test_the_order_follows_what_is_gone_already() -> None:
    net = Plane().eval()
    with torch.no_grad():
        net.blocks.append(copy.deepcopy(net.blocks[2]))
        # Twice as long, then half as long: one alone is a loss, both together are none.
        for number, factor in ((1, 1.0), (2, -0.5)):
            net.get_parameter(f"blocks.{number}.turn.weight").copy_(factor * torch.eye(2))
        targets = net(X)
    scores = repl_fx.score_blocks(
        repl_fx.capture_parts(net, (X,)), [(X, targets)], loss=mean_square, kinds=("loss",), greedy=2
    )
    first, second = (next(s for s in scores.blocks if s.block == name) for name in scores.greedy)
    assert {first.block, second.block} == {"blocks.1", "blocks.2"} and first.greedy_loss == first.loss
    assert second.greedy_loss == 0.0 and second.loss and first.loss and not scores.stretches


@given(strategies.lists(strategies.integers(1, 12), min_size=2, max_size=6).filter(lambda sizes: sum(sizes) >= 8))
@settings(max_examples=6)
def test_batches_of_any_sizes_give_the_same(sizes: list[int]) -> None:
    _, found = _double()
    x = torch.randn(sum(sizes), 3, 16, dtype=torch.float64)
    y = torch.randint(10, (sum(sizes),))
    several = list(zip(torch.split(x, sizes), torch.split(y, sizes), strict=True))
    options: Any = {"loss": F.cross_entropy, "kinds": KINDS}
    whole, split = (repl_fx.score_blocks(found, data, **options) for data in ([(x, y)], several))
    for kind in KINDS:
        assert split.of(kind) == pytest.approx(whole.of(kind), rel=1e-10, abs=1e-13)
    assert [s.influence for s in split.stretches] == pytest.approx([s.influence for s in whole.stretches], rel=1e-10)
    assert split.samples == whole.samples


@cache
def _double() -> tuple[MlpNet, CapturedParts]:
    net = MlpNet(3).double().eval()
    return net, repl_fx.capture_parts(net, (tokens().double(),))


def test_the_model_stays_as_it_is() -> None:
    net = ConvNet(3, 4)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_("bias" in name)
    found = repl_fx.capture_parts(net, (images(),))
    before = copy.deepcopy(net.state_dict())
    trained = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    state = torch.get_rng_state()
    data = [(torch.ones(8, 3, 8, 8), torch.zeros(8, dtype=torch.int64))]
    scores = repl_fx.score_blocks(found, data, loss=F.cross_entropy, kinds=("gradient", "loss"), greedy=1)
    assert all(value > 0 for value in scores.of("gradient").values())
    assert found.module.training and all(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert trained == {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_parts_are_scored_as_the_whole() -> None:
    net = Plane().eval()
    parts = repl_fx.capture_parts(Counts(net), (X,))
    assert not parts.whole
    data = [(X, torch.zeros(8, 2))]
    ours, theirs = (
        repl_fx.score_blocks(found, data, loss=mean_square, kinds=KINDS, greedy=1) for found in (parts, _plane())
    )
    assert [score.block for score in ours.blocks] == [f"body.{name}" for name in NAMES]
    for kind in KINDS:
        assert list(ours.of(kind).values()) == list(theirs.of(kind).values())
    assert ours.greedy == ("body.blocks.1",)


def test_a_graph_alone_and_some_of_its_repeats() -> None:
    gm = repl_fx.capture(Plane().eval(), (X,))
    repeats = repl_fx.find_repeats(gm)
    scores = repl_fx.score_blocks(gm, lambda: iter([X]), repeats=repeats)
    assert list(scores.of("change")) == list(NAMES) and scores.loss is None
    assert str(scores) == "3 blocks by influence, change, over 8 samples"


class Twice(nn.Module):
    """Two kinds of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.up = nn.Linear(4, 6)
        self.second = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.first:
            x = x + layer(x)
        x = self.up(x)
        for layer in self.second:
            x = x + torch.tanh(layer(x))
        return x


def test_one_of_two_repeats() -> None:
    found = repl_fx.capture_parts(Twice().eval(), (torch.randn(2, 4),))
    first, second = repl_fx.find_repeats(found.parts[0].graph_module)
    scores = repl_fx.score_blocks(found, [torch.randn(8, 4)], repeats=[second])
    assert [score.block for score in scores.blocks] == [block.name for block in second.blocks]
    with pytest.raises(BadInput, match=f"no repeat '{first.name}'; the repeats of this model are blocks"):
        repl_fx.score_blocks(_plane(), [X], repeats=[first])


def _once() -> Iterator[Any]:
    yield X, X


@pytest.mark.parametrize(
    ("batches", "options", "said"),
    [
        ([X], {"kinds": "loss"}, "kinds is 'loss'; give some of influence, change, gradient, loss, in a tuple"),
        ([X], {"kinds": ("size",)}, "no score 'size'; known are influence, change, gradient, loss"),
        ([X], {"kinds": ("gradient",)}, r"the score gradient needs a loss; give loss=f\(outputs, targets\)"),
        ([X], {"kinds": ("loss",)}, "the score loss needs a loss"),
        ([X], {"greedy": 1}, "greedy is 1; give 'loss' among the kinds"),
        (_once(), {"loss": mean_square, "kinds": ("loss",), "greedy": 1}, "and a generator can be gone over once"),
        ([X], {"repeats": ["blocks"]}, "score_blocks takes for repeats what repl_fx.find_repeats"),
        ([torch.randn(8, 3)], {}, r"batch 0: argument '.*' has shape \[8, 3\], but was captured as \[any, 2\]"),
        ([X, X * torch.nan], {}, r"batch 1: tensor 0 of its inputs holds nan at \(0, 0\)"),
        ([X * 1e38], {}, "batch 0: blocks.0 makes values that are no finite numbers; give data like"),
        ([], {}, "the data hold too few samples to calibrate on, 0"),
        ([X[:3]], {}, "the data hold too few samples to calibrate on, 3; give 8 or more"),
        ([(X, X / 0)], {"loss": mean_square}, "the loss of batch 0 is nan; give data that have a finite one"),
        (
            [(X, X)],
            {"loss": lambda outputs, targets: outputs.detach().sum(), "kinds": ("gradient",)},
            "the loss of batch 0 has no gradients",
        ),
    ],
)
def test_what_cannot_be_scored_is_a_line(batches: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        repl_fx.score_blocks(_plane(), batches, **options)


def test_models_that_cannot_be_scored_are_a_line() -> None:
    given: Any = Plane()
    with pytest.raises(BadInput, match="score_blocks takes a graph, and Plane is a model; capture it first"):
        repl_fx.score_blocks(given, [X])
    flat = repl_fx.capture(nn.Linear(2, 2), (X,))
    with pytest.raises(NothingToReplace, match="no repeated blocks were found"):
        repl_fx.score_blocks(flat, [X])
    result: Any = repl_fx.transform(MlpNet(3), (tokens(),), surrogate="identity")
    with pytest.raises(BadInput, match=r"this is a TransformResult; give result\.captured_parts"):
        repl_fx.score_blocks(result, [X])


def test_stages_are_told() -> None:
    told: list[str] = []
    data = [(X, torch.zeros(8, 2))]
    repl_fx.score_blocks(_plane(), data, loss=mean_square, kinds=("loss",), greedy=2, progress=told.append)
    assert told == ["score blocks", "skip 2 blocks"]
