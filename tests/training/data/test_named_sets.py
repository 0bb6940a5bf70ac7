"""Data sets with a name, from files in torchvision's layouts made here; nothing is downloaded."""

from __future__ import annotations

import hashlib
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("sklearn")

from torchvision import datasets

from repl_fx.errors import BadInput
from repl_fx.training.data.data_set import Data, Tensors
from repl_fx.training.data.named_sets import FILES
from repl_fx.training.data.sets import load_data

RANDOM = np.random.default_rng(0)


def read(name: str, root: Path | None = None) -> tuple[Data, Tensors, Tensors]:
    data = load_data(name, root=root)
    assert isinstance(data, Data) and isinstance(data.train, Tensors) and isinstance(data.test, Tensors)
    assert (data.name, data.task, data.classes) == (name, "classification", 10)
    return data, data.train, data.test


def drawn(*shape: int) -> Any:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def digest(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def test_digits_are_the_same_always() -> None:
    data, train, test = read("digits")
    assert (len(train), len(test), data.shape) == (1437, 360, (1, 8, 8))
    assert train.main.dtype == torch.uint8 and train.main.max() == 255 and train.main.min() == 0
    for split in (train, test):
        # Stratified: every class has nearly a tenth of each split.
        assert (torch.bincount(split.targets) / len(split) - 0.1).abs().max() < 0.005
    assert torch.equal(read("digits")[2].main, test.main)
    assert isinstance(load_data(), Data)


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(BadInput, match=r"needs scikit-learn, which is not installed; pip install 'repl-fx\[train\]'"):
        load_data("digits")


def test_cifar10_of_one_file(tmp_path: Path) -> None:
    pictures, labels = drawn(20, 32, 32, 3), np.arange(20) % 10
    np.savez(tmp_path / "cifar10.npz", train_x=pictures, train_y=labels, test_x=pictures[:10], test_y=labels[:10])
    data, train, test = read("cifar10", tmp_path)
    assert data.shape == (3, 32, 32) and (len(train), len(test)) == (20, 10)
    assert np.array_equal(train.main.permute(0, 2, 3, 1), pictures)
    np.savez(tmp_path / "cifar10.npz", train_x=pictures, train_y=labels + 1, test_x=pictures[:10], test_y=labels[:10])
    with pytest.raises(BadInput, match=r"cifar10: train: label 10 is out of range"):
        load_data("cifar10", root=tmp_path)


def test_cifar10_of_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = {file: drawn(4, 3072) for file in FILES["cifar10"]}
    for file, picture in pictures.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        names = {"label_names": [str(i) for i in range(10)]}
        (tmp_path / file).write_bytes(
            pickle.dumps(names if "meta" in file else {"data": picture, "labels": [0, 1, 2, 9]})
        )
    digests = [[Path(file).name, digest(tmp_path / file)] for file in FILES["cifar10"]]
    with pytest.raises(BadInput, match=f"cifar10 in {tmp_path} cannot be read .*corrupted.*--download"):
        load_data("cifar10", root=tmp_path)
    monkeypatch.setattr(datasets.CIFAR10, "train_list", digests[:5])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", digests[5:6])
    monkeypatch.setattr(
        datasets.CIFAR10, "meta", {"filename": digests[6][0], "key": "label_names", "md5": digests[6][1]}
    )
    _, train, test = read("cifar10", tmp_path)
    assert (len(train), len(test), int(train.targets[3])) == (20, 4, 9)
    # The files hold the channels first.
    assert np.array_equal(train.main[0], pictures[FILES["cifar10"][0]][0].reshape(3, 32, 32))


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    io = pytest.importorskip("scipy.io")
    pictures = drawn(32, 32, 3, 5)
    files = {}
    for split in ("train", "test"):
        path = tmp_path / f"{split}_32x32.mat"
        # The label of the digit zero is 10 in these files.
        io.savemat(path, {"X": pictures, "y": np.array([[1], [2], [10], [9], [5]], dtype=np.uint8)})
        files[split] = ["", path.name, digest(path)]
    monkeypatch.setattr(datasets.SVHN, "split_list", files)
    data, train, _ = read("svhn", tmp_path)
    assert data.shape == (3, 32, 32) and train.targets.tolist() == [1, 2, 0, 9, 5]
    assert np.array_equal(train.main[1].permute(1, 2, 0), pictures[..., 1])


def test_stl10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stl10_binary").mkdir()
    pictures = drawn(2, 3, 96, 96)
    for file in FILES["stl10"]:
        (tmp_path / file).write_bytes((np.array([1, 10], np.uint8) if "_y" in file else pictures).tobytes())
    digests = [[Path(file).name, digest(tmp_path / file)] for file in FILES["stl10"]]
    monkeypatch.setattr(datasets.STL10, "train_list", digests[:3])
    monkeypatch.setattr(datasets.STL10, "test_list", digests[3:])
    data, train, test = read("stl10", tmp_path)
    assert data.shape == (3, 96, 96) and train.targets.tolist() == test.targets.tolist() == [0, 9]
    # The files hold columns before rows.
    assert np.array_equal(train.main[0].transpose(1, 2), pictures[0])


def idx(path: Path, array: Any) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(header + array.tobytes())


def test_fashion_mnist(tmp_path: Path) -> None:
    (tmp_path / "FashionMNIST" / "raw").mkdir(parents=True)
    pictures = drawn(10, 28, 28)
    for file in FILES["fashion-mnist"]:
        idx(tmp_path / file, pictures if "images" in file else np.arange(10, dtype=np.uint8))
    data, train, _ = read("fashion-mnist", tmp_path)
    assert data.shape == (1, 28, 28) and np.array_equal(train.main[:, 0], pictures)
    assert train.targets.tolist() == list(range(10))
    path = tmp_path / FILES["fashion-mnist"][0]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadInput, match=f"fashion-mnist in {tmp_path} cannot be read"):
        load_data("fashion-mnist", root=tmp_path)


@pytest.mark.parametrize("name", sorted(FILES))
def test_missing_files_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"{name}: no {FILES[name][0]} and .* more.* in {tmp_path}") as refused:
        load_data(name, root=tmp_path)
    assert "--data-dir" in str(refused.value) and "--download" in str(refused.value) and "\n" not in str(refused.value)


def test_a_download_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any) -> None:
        raise OSError("no way to the network")

    monkeypatch.setattr(datasets.SVHN, "download", refuse)
    with pytest.raises(BadInput, match=r"svhn in .* cannot be read \(OSError: no way to the network\)"):
        load_data("svhn", root=tmp_path, download=True)
