"""Arrays of a file: what is read, and what each mistake is told."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from repl_fx.errors import BadInput
from repl_fx.training.data.arrays import data_of
from repl_fx.training.data.data_set import Data, Tensors
from repl_fx.training.data.sets import load_data
from repl_fx.training.data.targets import has_targets


def arrays(**changed: Any) -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {
        "train_x": random.integers(0, 256, (12, 5, 4, 3), dtype=np.uint8),
        "train_y": np.arange(12, dtype=np.uint8) % 3,
        "test_x": random.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8),
        "test_y": np.arange(6) % 3,
        **changed,
    }


def saved(path: Path, **changed: Any) -> str:
    kept = {key: value for key, value in arrays(**changed).items() if value is not None}
    np.savez(path / "a.npz", allow_pickle=True, **kept)
    return f"npz:{path / 'a.npz'}"


def read(spec: str) -> Data:
    data = load_data(spec)
    assert isinstance(data, Data)
    return data


def test_pictures(tmp_path: Path) -> None:
    data = read(saved(tmp_path))
    assert str(data) == f"npz:{tmp_path / 'a.npz'}: 12 + 6 of 3x5x4, 3 classes"
    assert isinstance(data.train, Tensors) and isinstance(data.test, Tensors)
    wanted = arrays()
    assert data.train.main.dtype == torch.uint8 and data.train.main.is_contiguous()
    assert np.array_equal(data.train.main.permute(0, 2, 3, 1), wanted["train_x"])
    assert np.array_equal(data.test.targets, wanted["test_y"])
    assert data.mean == data.std == () and not data.augment
    assert data.changes == (f"pictures of {data.name}: (height, width, channels) -> (channels, height, width)",)


def test_pictures_of_one_channel_vectors_and_floats(tmp_path: Path) -> None:
    grey = {name: arrays()[name][..., 0] for name in ("train_x", "test_x")}
    assert read(saved(tmp_path, **grey)).shape == (1, 5, 4)
    vectors = {name: array.astype(float).reshape(len(array), -1) for name, array in grey.items()}
    data = read(saved(tmp_path, **vectors))
    assert data.shape == (20,) and data.mean == () and isinstance(data.train, Tensors)
    assert data.train.main.dtype == torch.float32 and data.changes == (f"inputs of {data.name}: float64 -> float32",)
    floats = {name: arrays()[name].transpose(0, 3, 1, 2).astype(np.float32) for name in ("train_x", "test_x")}
    data = read(saved(tmp_path, **floats))
    assert data.shape == (3, 5, 4) and data.mean == () and data.changes == ()
    assert isinstance(data.train, Tensors) and np.array_equal(data.train.main, floats["train_x"])


NAN = arrays()["test_x"].astype(np.float32).transpose(0, 3, 1, 2)
NAN[4, 1, 0, 2] = np.nan


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"test_y": None}, "a.npz has no test_y, but train_x, train_y, test_x"),
        ({"train_y": np.array([{}] * 12)}, "a.npz is damaged or no .npz file"),
        ({"train_x": np.zeros((12, 4), np.uint8)}, r"train_x is uint8 of shape \(12, 4\); give \(n, height, width"),
        ({"train_x": np.zeros((12, 3, 5, 4, 2), np.uint8)}, "train_x is uint8 of shape"),
        ({"train_x": np.zeros((12, 3, 5, 5), np.uint8)}, r"train_x is uint8 of shape \(12, 3, 5, 5\)"),
        ({"train_x": np.zeros((12, 4), np.int32)}, "train_x is int32; give uint8 pictures or floats"),
        ({"train_x": np.zeros((12, 4, 4))}, r"train_x is float64 of shape \(12, 4, 4\); give \(n, features\)"),
        ({"test_x": np.zeros((0, 5, 4, 3), np.uint8)}, r"test_x is of shape \(0, 5, 4, 3\); give at least one input"),
        ({"train_x": np.zeros((12, 3, 5, 4)), "test_x": NAN}, r"test: inputs hold nan at \(4, 1, 0, 2\)"),
        ({"test_x": np.zeros((6, 4))}, "train_x is torch.uint8, test_x torch.float32"),
        ({"test_x": np.zeros((6, 4, 4, 3), np.uint8)}, r"test: inputs are of shape \(3, 4, 4\)"),
        ({"train_y": np.zeros(12)}, "train_y is float64; give integers from 0"),
        ({"train_y": np.zeros((12, 1), int)}, r"train_y is of shape \(12, 1\); give one label for each input"),
        ({"train_y": np.zeros(0, int)}, "train_y is empty"),
        ({"train_y": np.arange(11)}, "train: 12 inputs but 11 targets"),
        ({"train_y": np.arange(12) - 1}, "train: label -1 is out of range; labels are 0 to 10"),
        ({"test_y": np.arange(6)}, "test: label 5 is out of range; labels are 0 to 2"),
        ({"train_y": np.zeros(12, int)}, "1 class; at least 2"),
    ],
)
def test_arrays_that_cannot_be(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message) as refused:
        load_data(saved(tmp_path, **changed))
    assert "\n" not in str(refused.value) and "a.npz" in str(refused.value)


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"no file {tmp_path / 'none.npz'}"):
        load_data(f"npz:{tmp_path / 'none.npz'}")
    single = tmp_path / "single.npz"
    with single.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(BadInput, match="is a single array"):
        load_data(f"npz:{single}")
    saved(tmp_path)
    whole = (tmp_path / "a.npz").read_bytes()
    # Cut off, emptied, and with bytes of an array that do not fit their checksum.
    middle = len(whole) // 4
    for damaged in (whole[:-60], b"", whole[:middle] + bytes(8) + whole[middle + 8 :]):
        (tmp_path / "a.npz").write_bytes(damaged)
        with pytest.raises(BadInput, match=r"a\.npz is damaged or no \.npz file"):
            load_data(f"npz:{tmp_path / 'a.npz'}")
    assert zipfile.is_zipfile(tmp_path / "a.npz")


def test_errors_begin_with_the_place() -> None:
    with pytest.raises(BadInput, match="the shop: test_y is float64"):
        data_of("made", arrays(test_y=np.zeros(6)), classes=3, where="the shop")


def test_masks_are_for_segmentation(tmp_path: Path) -> None:
    masks = np.arange(12 * 20).reshape(12, 5, 4) % 3
    masks[0, 0] = 255
    data = read(saved(tmp_path, train_y=masks, test_y=masks[:6]))
    assert (data.task, data.classes, data.shape) == ("segmentation", 3, (3, 5, 4))
    assert isinstance(data.train, Tensors) and np.array_equal(data.train.targets, masks)
    with pytest.raises(BadInput, match=r"train: targets are of shape \(12, 4, 5\); wanted is \(12, 5, 4\)"):
        read(saved(tmp_path, train_y=masks.transpose(0, 2, 1), test_y=masks[:6]))
    with pytest.raises(BadInput, match="test: label 3 is out of range; labels are 0 to 2, and 255 for none"):
        read(saved(tmp_path, train_y=masks, test_y=masks[1:7] + 1))
    with pytest.raises(BadInput, match=r"train_y and test_y are of shapes \(12, 5, 4\) and \(6,\); give both labels"):
        read(saved(tmp_path, train_y=masks))
    with pytest.raises(BadInput, match=r"inputs of masks are of shape \(7,\); give pictures"):
        vectors = {name: np.zeros((count, 7)) for name, count in (("train_x", 12), ("test_x", 6))}
        read(saved(tmp_path, train_y=masks, test_y=masks[:6], **vectors))
    with pytest.raises(BadInput, match="0 class; at least 2"):
        read(saved(tmp_path, train_y=np.full((12, 5, 4), 255), test_y=masks[:6]))


def test_inputs_may_have_no_targets(tmp_path: Path) -> None:
    pictures = np.arange(4 * 5 * 4, dtype=np.uint8).reshape(4, 5, 4)
    np.savez(tmp_path / "bare.npz", train_x=pictures, test_x=pictures[:2])
    data = read(f"npz:{tmp_path}/bare.npz")
    assert (data.task, data.classes, data.has_targets, data.shape) == ("classification", 0, False, (1, 5, 4))
    assert isinstance(data.train, Tensors) and not has_targets(data.train.targets) and "no targets" in str(data)
    # Targets of one split alone are a file that is not whole.
    np.savez(tmp_path / "half.npz", train_x=pictures, test_x=pictures[:2], train_y=np.arange(4))
    with pytest.raises(BadInput, match="has no test_y"):
        read(f"npz:{tmp_path}/half.npz")
