"""Hidden units that stay: those that say the others, and how they do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

import repl_fx
from repl_fx.fitting import units
from repl_fx.fitting.units import UnitMoments
from tests.nets import ConvNet, TokenNet, images


def _moments(rows: Tensor, axis: int = -1) -> UnitMoments:
    made = UnitMoments()
    for part in rows.chunk(2):
        made.add(part, axis)
    return made


@given(seed=st.integers(0, 10**6), size=st.integers(2, 12), rank=st.integers(1, 6), shifted=st.booleans())
@settings(deadline=None, max_examples=40)
def test_units_that_are_functions_of_others_go(seed: int, size: int, rank: int, shifted: bool) -> None:
    drawn = torch.Generator().manual_seed(seed)
    rank = min(rank, size)
    few = torch.randn(200, rank, generator=drawn, dtype=torch.float64)
    rows = few @ torch.randn(rank, size, generator=drawn, dtype=torch.float64) + (3.0 if shifted else 0.0)
    readers = torch.randn(5, size, generator=drawn, dtype=torch.float64)
    chosen = _moments(rows).choose(readers, rank, shifted=shifted)
    assert chosen.readers is not None and chosen.units.tolist() == sorted(set(chosen.units.tolist()))
    said = rows[:, chosen.units] @ chosen.readers.t() + (0 if chosen.shift is None else chosen.shift)
    assert (chosen.shift is not None) == shifted
    wanted = rows @ readers.t()
    assert (said - wanted).norm() < 1e-2 * wanted.norm()


@pytest.mark.parametrize("count", [5, 20])
def test_the_readers_are_those_of_least_squares(count: int) -> None:
    torch.manual_seed(0)
    rows = torch.randn(500, 9, dtype=torch.float64) @ torch.randn(9, 9, dtype=torch.float64)
    readers = torch.randn(count, 9, dtype=torch.float64)
    chosen = _moments(rows).choose(readers, 4, shifted=False)
    assert chosen.readers is not None
    wanted = torch.linalg.lstsq(rows[:, chosen.units], rows @ readers.t()).solution.t()
    torch.testing.assert_close(chosen.readers, wanted, rtol=1e-4, atol=1e-4)


def test_a_unit_that_nobody_reads_goes_however_large_it_is() -> None:
    torch.manual_seed(0)
    rows = torch.randn(300, 4) * torch.tensor([1.0, 100.0, 1.0, 2.0])
    readers = torch.tensor([[1.0, 0.0, 1.0, 1.0]])
    assert _moments(rows).choose(readers, 3, shifted=True).units.tolist() == [0, 2, 3]


def test_a_unit_is_chosen_for_what_others_do_not_say() -> None:
    torch.manual_seed(0)
    rows = torch.randn(300, 3) * torch.tensor([3.0, 0.0, 1.0])
    # The second says nothing that the first does not, and is read more.
    rows[:, 1] = 1.1 * rows[:, 0]
    assert 2 in _moments(rows).choose(torch.eye(3), 2, shifted=False).units


@pytest.mark.parametrize("count", [4, 6])
def test_groups_are_chosen_for_all_that_their_units_say(count: int) -> None:
    torch.manual_seed(0)
    rows = torch.randn(400, 8, dtype=torch.float64)
    # Each unit of the second and the third group says as much as any, and both groups say the same.
    rows[:, 4:6] = rows[:, 2:4] @ torch.tensor([[1.0, 2.0], [-1.0, 1.0]], dtype=torch.float64)
    rows[:, :2] *= 0.7
    readers = torch.eye(8, dtype=torch.float64)
    chosen = _moments(rows).choose(readers, count, shifted=False, group=2)
    twin = [2, 3] if 2 in chosen.units else [4, 5]
    assert chosen.units.tolist() == {4: [*twin, 6, 7], 6: [0, 1, *twin, 6, 7]}[count]
    assert chosen.readers is not None
    said = rows[:, chosen.units] @ chosen.readers.t()
    torch.testing.assert_close(said[:, 2:4], rows[:, 2:4], rtol=1e-4, atol=1e-4)


def test_groups_of_one_are_units() -> None:
    torch.manual_seed(0)
    rows = torch.randn(100, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    moments, readers = _moments(rows), torch.randn(3, 6, dtype=torch.float64)
    whole = torch.kron(rows, torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    pairs = _moments(whole).choose(torch.kron(readers, torch.tensor([[1.0, 1.0]])), 6, shifted=True, group=2)
    assert (pairs.units[::2] // 2).tolist() == moments.choose(readers, 3, shifted=True).units.tolist()


def test_units_of_pictures_are_along_the_channels() -> None:
    rows = torch.randn(6, 3, 4, 4)
    flat = rows.movedim(1, -1).reshape(-1, 3)
    pictures, plain = _moments(rows, 1), _moments(flat)
    assert pictures.rows == plain.rows == 96
    torch.testing.assert_close(pictures._sums.whole(), plain._sums.whole())


def test_of_many_units_several_are_taken_in_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    rows = torch.randn(400, 12) * torch.arange(1, 13)
    one_by_one = _moments(rows).choose(torch.eye(12), 7, shifted=True)
    monkeypatch.setattr(units, "STEPS", 2)
    at_once = _moments(rows).choose(torch.eye(12), 7, shifted=True)
    assert one_by_one.units.tolist() == at_once.units.tolist() == list(range(5, 12))


@pytest.mark.parametrize("owed", [2, 3, 100])
def test_moments_that_are_brought_up_to_date_later_choose_the_same(owed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    rows = (torch.randn(900, 60) @ torch.randn(60, 60)).relu()
    readers = torch.randn(20, 60)
    monkeypatch.setattr(units, "STEPS", 10)
    monkeypatch.setattr(units, "_OWED", 1)
    at_once = _moments(rows).choose(readers, 30, shifted=True)
    monkeypatch.setattr(units, "_OWED", owed)
    later = _moments(rows).choose(readers, 30, shifted=True)
    assert later.units.tolist() == at_once.units.tolist()


def test_units_that_are_always_zero_are_no_reason_to_fail() -> None:
    rows = torch.zeros(50, 5)
    rows[:, 0] = torch.randn(50)
    chosen = _moments(rows).choose(torch.ones(2, 5), 3, shifted=True)
    assert 0 in chosen.units and len(set(chosen.units.tolist())) == 3
    assert chosen.readers is not None and bool(chosen.readers.isfinite().all())


def _redundant_(layers: list[nn.Module]) -> None:
    """Let units come in pairs that are the same, all read."""
    with torch.no_grad():
        for layer in layers:
            for parameter in layer.parameters():
                half = len(parameter) // 2
                parameter[half:] = parameter[:half]


@pytest.mark.slow
def test_a_fit_says_units_that_come_twice_by_one_of_each() -> None:
    torch.manual_seed(0)
    net = TokenNet(depth=4).eval()
    _redundant_([net.get_submodule(f"blocks.{i}.fc1") for i in range(4)])
    x = torch.randn(64, 6, 16)
    result = repl_fx.transform(net, (x[:2],), surrogate="narrow", settings={"ratio": 0.5})
    with torch.no_grad():
        wanted, before = net(x), result.model.eval()(x)
        fitted = repl_fx.fit(result, [x])
        after = result.model(x)
    assert all(one.numbers and (one.after or 0) < 1e-5 < (one.before or 0) for one in fitted.surrogates)
    assert (after - wanted).norm() < 1e-3 * (before - wanted).norm()


def test_a_fit_takes_norms_along() -> None:
    torch.manual_seed(0)
    net = ConvNet(depth=4).train()
    for _ in range(8):
        net(images(16))
    net.eval()
    result = repl_fx.transform(net, (images(),), surrogate="narrow", settings={"ratio": 0.5})
    x = images(64)
    fitted = repl_fx.fit(result, [x])
    assert all(one.numbers and (one.after or 0) < (one.before or 0) for one in fitted.surrogates)
    with torch.no_grad():
        torch.testing.assert_close(result.model.eval()(x), result.graph_module.eval()(x))


class _TwoBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.other = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 48), nn.Tanh(), nn.Linear(48, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.one(x)
        made: Tensor = x + self.other(x)
        return made


class _Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.value, self.gate = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.hidden(x).relu()
        made: Tensor = x + self.value(hidden) * self.gate(hidden).sigmoid()
        return made


def _fitted(block: type[nn.Module]) -> repl_fx.Fit:
    torch.manual_seed(0)
    x = torch.randn(64, 9, 16)
    net = nn.Sequential(*(block() for _ in range(3))).eval()
    return repl_fx.fit(repl_fx.transform(net, (x[:4],), surrogate="narrow", blocks=["1"]), [x])


def test_each_of_two_branches_is_fitted_to_the_sum_behind_it() -> None:
    (one,) = _fitted(_TwoBranches).surrogates
    # Both counts of units, and both last layers with their biases.
    assert one.numbers == 16 + 24 + (16 + 1) * 16 + (24 + 1) * 16 and not one.left


def test_layers_that_read_the_same_units_have_points_of_their_own() -> None:
    (one,) = _fitted(_Gate).surrogates
    assert one.numbers == 16 and one.left and "is not linear" in one.left


def test_a_fit_takes_norms_of_rows_along() -> None:
    def block() -> nn.Module:
        return _Residual(nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16)))

    torch.manual_seed(0)
    x = torch.randn(256, 16)
    net = nn.Sequential(*(block() for _ in range(3)))
    for _ in range(8):
        net(x)
    net.eval()
    whole = repl_fx.transform(net, (x[:4],), surrogate="narrow", blocks=["1"], settings={"ratio": 1.0})
    torch.testing.assert_close(whole.model(x), net(x))
    result = repl_fx.transform(net, (x[:4],), surrogate="narrow", blocks=["1"])
    (one,) = repl_fx.fit(result, [x]).surrogates
    assert one.numbers and (one.after or 0) < (one.before or 0)
    torch.testing.assert_close(result.model.eval()(x), result.graph_module.eval()(x))


def test_complex_values_are_not_fitted() -> None:
    def block() -> nn.Module:
        layers = nn.Linear(16, 32, dtype=torch.cfloat), nn.Tanh(), nn.Linear(32, 16, dtype=torch.cfloat)
        return _Residual(nn.Sequential(*layers))

    x = torch.randn(4, 9, 16, dtype=torch.cfloat) / 8
    net = nn.Sequential(*(block() for _ in range(3))).eval()
    for surrogate in ("narrow", "bottleneck"):
        result = repl_fx.transform(net, (x,), surrogate=surrogate, blocks=["1"])
        with pytest.raises(repl_fx.BadInput, match="complex numbers, for which there is no fit"):
            repl_fx.fit(result, [x])


class _Residual(nn.Module):
    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = x + self.branch(x)
        return made
