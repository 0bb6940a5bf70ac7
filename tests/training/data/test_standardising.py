"""Standardisation: asked for, or of data sets with a name, and never of what has no channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from repl_fx.errors import BadInput
from repl_fx.training.data.data_set import Data, Tensors, UserData
from repl_fx.training.data.sets import load_data
from repl_fx.training.data.standardising import channel_scale, standardised


def _npz(path: Path) -> str:
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (12, 5, 4, 3), dtype=np.uint8)
    np.savez(path / "a.npz", train_x=x, train_y=np.arange(12) % 3, test_x=x[:6] // 2, test_y=np.arange(6) % 3)
    return f"npz:{path / 'a.npz'}"


def test_scale_is_that_of_the_training_part_where_it_is_asked_for(tmp_path: Path) -> None:
    spec = _npz(tmp_path)
    data = load_data(spec, normalise="data")
    assert isinstance(data, Data) and isinstance(data.train, Tensors)
    pixels = data.train.main.double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert data.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist())
    for left in (None, "none"):
        plain = load_data(spec, normalise=left)
        assert isinstance(plain, Data) and plain.mean == plain.std == ()


def test_data_sets_with_a_name_are_standardised_unless_told_not_to() -> None:
    pytest.importorskip("sklearn")
    digits, plain = load_data("digits"), load_data("digits", normalise="none")
    assert isinstance(digits, Data) and isinstance(plain, Data)
    assert len(digits.mean) == 1 and digits.augment
    assert plain.mean == () and plain.augment


def test_what_has_no_channels_is_refused() -> None:
    table = Tensors(torch.rand(4, 3), torch.tensor([0, 1, 0, 1]))
    data = Data("table", "classification", 2, (3,), table, table)
    with pytest.raises(BadInput, match=r"--normalise is for pictures, and inputs of table are of shape \(3,\)"):
        standardised(data, "data")
    loaders = UserData("mine", [1], [1])
    with pytest.raises(BadInput, match="--normalise is for data sets, and mine gives batches"):
        standardised(loaders, "data")
    assert standardised(loaders, "none") is loaders


def test_the_scale_of_a_channel_that_is_the_same_everywhere() -> None:
    mean, std = channel_scale(torch.full((5000, 1, 2, 2), 51, dtype=torch.uint8))
    assert mean == pytest.approx((0.2,)) and 0 < std[0] < 1e-3
