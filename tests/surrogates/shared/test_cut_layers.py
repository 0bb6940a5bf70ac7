"""Layers without some of the units between them."""

from __future__ import annotations

import torch
from torch import Tensor

from repl_fx.surrogates.shared.cut_layers import StayingUnits, cut_layers, laid_out, longest, readers_of
from repl_fx.surrogates.shared.fitted_starts import CutLayer, KeptUnits, UnitsOf

FIRST = CutLayer("weight_0", "bias_0", "up.weight", "up.bias", transposed=False, rows=0, columns=None)
LAST = CutLayer("weight_1", "bias_1", "down.weight", "down.bias", transposed=True, rows=None, columns=0)
TAPS = CutLayer("weight_1", "bias_1", "conv.weight", "down.bias", transposed=False, rows=None, columns=0)
START = KeptUnits((UnitsOf("h", -1, 4, 2),), (FIRST, LAST))
UNITS = torch.tensor([1, 3])


def _tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    sizes = {
        "up.weight": (4, 3),
        "up.bias": (4,),
        "down.weight": (4, 2),
        "down.bias": (2,),
        "conv.weight": (2, 4, 3, 3),
    }
    return {name: torch.randn(size) for name, size in sizes.items()}


def test_rows_and_columns_go() -> None:
    given = _tensors()
    made = cut_layers(START.layers, given.__getitem__, [StayingUnits(UNITS)])
    assert torch.equal(made["weight_0"], given["up.weight"][UNITS])
    assert torch.equal(made["bias_0"], given["up.bias"][UNITS])
    # Stored as the one that it is cut from.
    assert torch.equal(made["weight_1"], given["down.weight"][UNITS])
    assert torch.equal(made["bias_1"], given["down.bias"])


def test_units_that_others_say_are_said() -> None:
    given = _tensors()
    spread, shift = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    readers = readers_of(START, 0, given.__getitem__).double()
    made = cut_layers(START.layers, given.__getitem__, [StayingUnits(UNITS, readers @ spread, readers @ shift)])
    few = torch.randn(7, 2)
    every = few @ spread.float().t() + shift.float()
    wanted = every @ given["down.weight"] + given["down.bias"]
    torch.testing.assert_close(few @ made["weight_1"] + made["bias_1"], wanted)


def test_all_taps_of_a_kernel_say_them_alike() -> None:
    given = _tensors()
    spread, shift = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    # The units have several readers, and each takes its own rows.
    start = KeptUnits(START.hidden, (LAST, TAPS))
    readers = readers_of(start, 0, given.__getitem__).double()
    made = cut_layers([LAST, TAPS], given.__getitem__, [StayingUnits(UNITS, readers @ spread, readers @ shift)])
    few = torch.randn(2, 2, 5, 5)
    every = torch.einsum("nrhw,ir->nihw", few, spread.float()) + shift.float()[:, None, None]
    wanted = torch.conv2d(every, given["conv.weight"], given["down.bias"])
    torch.testing.assert_close(torch.conv2d(few, made["weight_1"], made["bias_1"]), wanted, rtol=1e-4, atol=1e-4)


def test_the_longest_units_stay() -> None:
    given = _tensors()
    given["up.weight"][2] *= 100
    given["down.weight"][0] *= 100
    assert longest(START, 0, given.__getitem__).units.tolist() == [0, 2]
    meta = {name: value.to("meta") for name, value in given.items()}
    assert longest(START, 0, meta.__getitem__).units.tolist() == [0, 1]


def test_readers_have_a_row_for_each_output_and_tap() -> None:
    given = _tensors()
    assert torch.equal(readers_of(START, 0, given.__getitem__), given["down.weight"].t())
    rows = readers_of(KeptUnits(START.hidden, (FIRST, TAPS)), 0, given.__getitem__)
    assert rows.shape == (18, 4)
    torch.testing.assert_close(rows.square().sum(0), given["conv.weight"].square().sum((0, 2, 3)))
    assert laid_out(LAST, given.__getitem__).shape == (2, 4)
