"""Tests for repl_fx.tracing.data_dependent: what a trace is told when it asks for the truth of a number it has not."""

from __future__ import annotations

import importlib
import os
import random
import secrets
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import mktemp
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import default_rng
from torch import Tensor, nn

import repl_fx
from repl_fx.errors import BadInput, Untraceable
from repl_fx.running.alone import alone
from repl_fx.tracing.data_dependent import DECISION, DataDependentBranches, recorded
from tests.nets import seeded_call

_SYSTEM = random.SystemRandom()


class Asks(nn.Module):
    """Asks twice about one tensor, once about another."""

    def forward(self, x: Tensor) -> Tensor:
        high = x.sum() > 1
        if high:
            x = x + 1
        if high:
            x = x + 2
        if x.mean() > 0:
            x = x * 3
        return x


def _trace(model: nn.Module, branches: DataDependentBranches) -> list[str]:
    with recorded(branches):
        program = torch.export.export(model, (torch.randn(2, 3),), strict=False)
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def test_answers_come_in_the_order_of_the_questions_and_one_tensor_has_one_answer() -> None:
    branches = DataDependentBranches([True, False], {}, lambda: False)
    targets = _trace(Asks(), branches)
    assert branches.asked == [None, None]
    assert targets.count(str(DECISION)) == 2
    assert targets.count("aten.add.Tensor") == 2
    assert "aten.mul.Tensor" not in targets


class AsksAgain(nn.Module):
    """Asks, turns the condition round in place, and asks again."""

    def forward(self, x: Tensor) -> Tensor:
        high = x.sum() > 1
        if high:
            x = x + 1
        high.logical_not_()
        return x * 3 if high else x


def test_a_condition_that_changed_in_place_is_another_question() -> None:
    branches = DataDependentBranches([True, False], {}, lambda: False)
    targets = _trace(AsksAgain(), branches)
    assert branches.asked == [None, None]
    assert "aten.add.Tensor" in targets and "aten.mul.Tensor" not in targets


def test_no_answer_means_no() -> None:
    assert "aten.add.Tensor" not in _trace(Asks(), DataDependentBranches([], {}, lambda: False))


class States(nn.Module):
    """States what holds of a tensor, and then asks."""

    def forward(self, x: Tensor) -> Tensor:
        torch._check_tensor_all((x * 0).sum() == 0)
        return x + 1 if x.any().item() else x


def test_a_check_of_a_tensor_is_no_question() -> None:
    branches = DataDependentBranches([True], {}, lambda: False)
    assert "aten.add.Tensor" in _trace(States(), branches)
    assert branches.asked == [None]


class Samples(nn.Module):
    """Makes distributions of values, whose arguments torch checks."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        drawn = torch.distributions.Normal(self.layer(x), x.square())
        kind = torch.distributions.Categorical(logits=self.layer(x))
        sample = kind.sample()  # type: ignore[no-untyped-call]
        return drawn.log_prob(x), kind.log_prob(sample)  # type: ignore[no-untyped-call]


def test_distributions_are_followed_and_what_they_check_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first torch.compile of a process switches it off.
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)
    model, x = Samples(), torch.rand(3, 4) + 1
    gm = repl_fx.capture(model, (x,))
    for given in (x, torch.rand(5, 4) + 1):
        both = [seeded_call(module, 0, given) for module in (gm, model)]
        assert all(map(torch.equal, *both))
    with pytest.raises(ValueError, match="scale"):
        model(x * 0)
    with pytest.raises(BadInput, match="a condition of the model"):
        gm(x * 0)


class Compares(nn.Module):
    """Asks about a number of Python's generator."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if random.uniform(0, 2) < 0.5 else x


def test_numbers_of_python_are_compared_without_being_drawn() -> None:
    branches = DataDependentBranches([True], {}, lambda: False)
    before = random.getstate()
    assert "aten.add.Tensor" in _trace(Compares(), branches)
    assert random.getstate() == before
    (asked,) = branches.asked
    assert asked is not None
    assert (asked.args, asked.other) == ((0, 2), 0.5)
    assert asked.function == random.uniform


def test_numbers_that_are_used_otherwise_are_refused() -> None:
    with (
        pytest.raises(Untraceable, match="takes numbers from Python's random generator"),
        recorded(DataDependentBranches([], {}, lambda: False)),
    ):
        random.randint(0, 5)


class SkipsBy(nn.Module):
    """Skips a layer in training by what it asks of a number that is drawn."""

    def __init__(self, skips: Callable[[], Any]) -> None:
        super().__init__()
        self.skips, self.layer = skips, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.skips():
            return x
        return x + self.layer(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "skips",
    [
        lambda: torch.randint(0, 2, (1,)).item() == 1,
        lambda: torch.randint(0, 2, (1,)).item() != 1,
        lambda: torch.randint(0, 2, (1,)).item(),
        lambda: not torch.randint(0, 2, (1,)).item(),
    ],
    ids=["equal", "other", "truth", "no truth"],
)
def test_a_number_that_is_drawn_decides_by_what_it_equals_and_its_truth(skips: Callable[[], Any]) -> None:
    model, x = SkipsBy(skips).train(), torch.randn(2, 4)
    gm = repl_fx.capture(model, (x,))
    skipped = 0
    for seed in range(12):
        expected = seeded_call(model, seed, x)
        assert torch.equal(seeded_call(gm, seed, x), expected)
        skipped += torch.equal(expected, x)
    assert 0 < skipped < 12


class Noisy(nn.Module):
    """Scales its input by a number that is drawn."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand(1).item()


def test_a_number_that_is_drawn_and_computed_with_is_drawn_at_each_call() -> None:
    model, x = Noisy(), torch.randn(2, 4)
    gm = repl_fx.capture(model, (x,))
    for seed in range(2):
        expected = seeded_call(model, seed, x)
        assert torch.equal(seeded_call(gm, seed, x), expected)


class Fits(nn.Module):
    """Stops at lengths that its text has not, and takes another way for short ones."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        assert 0 < lengths.max().item() <= x.shape[1], "too long"
        if lengths.float().mean().item() < 2:
            x = x * 2
        return x + 1


def test_a_number_of_the_input_that_is_compared_decides() -> None:
    model, x = Fits(), torch.randn(2, 3, 4)
    gm = repl_fx.capture(model, (x, torch.tensor([2, 3])))
    for text, lengths in ((x, [2, 3]), (torch.randn(2, 5, 4), [5, 1]), (x, [1, 1])):
        assert torch.equal(gm(text, torch.tensor(lengths)), model(text, torch.tensor(lengths)))
    for lengths in ([4, 2], [0, 0]):
        with pytest.raises(repl_fx.BadInput, match="a condition of the model"):
            gm(x, torch.tensor(lengths))


def test_a_number_that_is_compared_and_used_otherwise_is_refused() -> None:
    class Cuts(nn.Module):
        def forward(self, x: Tensor, length: Tensor) -> Tensor:
            end: Any = length.item()
            return x[:, :end] if end < 4 else x

    with pytest.raises(repl_fx.CaptureError, match="a number that is drawn or computed is compared, or used otherwise"):
        repl_fx.capture(Cuts(), (torch.randn(2, 4), torch.tensor(3)))


def test_what_the_forward_takes_out_of_a_tensor_and_does_not_compare_is_a_number_all_the_same() -> None:
    class Parts(nn.Module):
        def forward(self, x: Tensor, length: Tensor) -> Tensor:
            if torch.rand(1).item() < 0.5:
                x = x * 2
            if length.item() > 2:
                x = x + 1
            end: Any = length.item()
            return x[:, :end] * length.item()

    model, x = Parts(), torch.randn(2, 4)
    gm = repl_fx.capture(model, (x, torch.tensor(3)))
    for seed in range(8):
        given = x, torch.tensor(seed % 4 + 1)
        expected = seeded_call(model, seed, *given)
        assert torch.equal(seeded_call(gm, seed, *given), expected)


class Seeds(nn.Module):
    """Draws from numpy's generator, which it seeds: before that, behind it, or with another seed each time."""

    def __init__(self, when: str) -> None:
        super().__init__()
        self.when = when

    def forward(self, x: Tensor) -> Tensor:
        first = np.random.permutation(4) if self.when == "behind" else np.arange(4)
        np.random.seed(None if self.when == "anew" else 3)
        return x[:, torch.tensor(first)][:, torch.tensor(np.random.permutation(4))]


def test_numbers_of_a_generator_that_the_forward_seeds_are_constants() -> None:
    model = Seeds("before")
    before = np.random.get_state()[1].copy()  # type: ignore[index]
    gm = repl_fx.capture(model, (torch.randn(2, 4),))
    assert np.array_equal(np.random.get_state()[1], before)  # type: ignore[index]
    x = torch.randn(3, 4)
    assert torch.equal(gm(x), model(x))


@pytest.mark.parametrize("when", ["behind", "anew"])
def test_other_numbers_of_a_generator_are_refused(when: str) -> None:
    with pytest.raises(repl_fx.CaptureError, match="takes numbers from numpy's random generator"):
        repl_fx.capture(Seeds(when), (torch.randn(2, 4),))


class Spans(nn.Module):
    """Hides one place of each row, drawn anew each time, as SpecAugment does."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        lengths = np.array([n - np.random.randint(1, 3) for n in mask.sum(-1).tolist()])
        hidden = np.zeros(tuple(x.shape), dtype=bool)
        np.put_along_axis(hidden, lengths[:, None], True, -1)
        return x.masked_fill(torch.tensor(hidden), 0)


def test_the_numbers_are_the_reason_where_numpy_fails_on_what_a_trace_makes_of_them() -> None:
    inputs = torch.randn(2, 4), torch.ones(2, 4, dtype=torch.long)
    assert (Spans()(*inputs) == 0).sum() == 2
    with pytest.raises(repl_fx.CaptureError, match="takes numbers from numpy's random generator"):
        repl_fx.capture(Spans(), inputs)


class Generates(nn.Module):
    """Makes a generator of numpy's in each call, with a seed or without."""

    def __init__(self, seed: int | None) -> None:
        super().__init__()
        self.seed = seed

    def forward(self, x: Tensor) -> Tensor:
        return x * np.random.default_rng(self.seed).random()


class Around(nn.Module):
    """Has the former inside, with a weight."""

    def __init__(self, seed: int | None, whole: bool) -> None:
        super().__init__()
        self.fc, self.inside = nn.Linear(4, 4), Generates(seed)
        self.whole = whole

    def forward(self, x: Tensor) -> Tensor:
        y = self.inside(x) if self.whole else Generates.forward(self.inside, x)
        return self.fc(y)  # type: ignore[no-any-return]


def test_a_generator_made_without_a_seed_is_refused_but_in_a_layer() -> None:
    x, seeded, layer = torch.randn(2, 4), Around(3, whole=False), Around(None, whole=True)
    assert torch.equal(repl_fx.capture(seeded, (x,))(x), seeded(x))
    gm = repl_fx.capture(layer, (x,))
    assert not torch.equal(gm(x), gm(x))
    with pytest.raises(repl_fx.CaptureError, match="takes random numbers that no seed decides"):
        repl_fx.capture(Around(None, whole=False), (x,))


class Scales(nn.Linear):
    """Scales by a number that is another one in each call, and holds a generator of the system."""

    def __init__(self, number: Callable[[], float]) -> None:
        super().__init__(4, 4)
        self.number, self.system = number, random.SystemRandom()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.number()


@pytest.mark.parametrize(
    "number",
    [
        lambda: secrets.randbelow(2**30),
        lambda: uuid.uuid4().int % 2**30,
        lambda: os.urandom(1)[0],
        lambda: _SYSTEM.random(),
        lambda: random.Random().random(),
        lambda: float(default_rng().random()),
        lambda: np.random.RandomState().rand(),
    ],
)
def test_numbers_that_no_seed_decides_are_refused(number: Callable[[], float]) -> None:
    with pytest.raises(repl_fx.CaptureError, match="takes random numbers that no seed decides"):
        repl_fx.capture(Scales(number), (torch.randn(2, 4),))


@pytest.mark.parametrize("number", [lambda: random.Random(3).random(), lambda: len(mktemp()) > 0])
def test_generators_that_are_seeded_or_held_or_for_names_of_files_are_captured(number: Callable[[], float]) -> None:
    model, x = Scales(number), torch.randn(2, 4)
    assert torch.equal(repl_fx.capture(model, (x,))(x), model(x))


def test_libraries_name_what_they_make_by_random_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site-packages").mkdir()
    code = "import uuid\ndef names(): return {uuid.uuid4().hex: 2.0}"
    (tmp_path / "site-packages" / "namer_of_axes.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    namer = importlib.import_module("namer_of_axes")
    model, x = Scales(lambda: sum(namer.names().values())), torch.randn(2, 4)
    assert torch.equal(repl_fx.capture(model, (x,))(x), model(x))


def test_another_thread_draws_and_seeds_for_itself() -> None:
    def draw() -> list[float]:
        state = random.getstate(), np.random.get_state()
        random.seed(3)
        found = [random.random(), np.random.uniform(1, 2), np.random.default_rng().random()]
        random.setstate(state[0])
        np.random.set_state(state[1])
        return found

    with ThreadPoolExecutor(1) as threads, alone():
        with recorded(DataDependentBranches([], {}, lambda: False)):
            assert all(type(number) is float for number in threads.submit(draw).result())
        with pytest.raises(Untraceable), recorded(DataDependentBranches([], {}, lambda: False)):
            threads.submit(draw).result()
            random.randint(0, 5)
