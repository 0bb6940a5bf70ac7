"""The hash of data: of each sample, its target and its place; not of where the files lie."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from repl_fx.errors import BadInput
from repl_fx.training.data import content
from repl_fx.training.data.content import content_of, require_content
from repl_fx.training.data.data_set import Data, Tensors, UserData
from repl_fx.training.data.pictures import Pictures
from repl_fx.training.data.sets import load_data


def _folder(top: Path) -> Path:
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in "ab":
            (top / split / label).mkdir(parents=True)
            for number in range(3):
                pixels = generator.integers(0, 255, (4, 4, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(top / split / label / f"{number}.bmp")
    return top


def test_rows_of_an_npz_file_count(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "train_x": generator.random((20, 5), dtype=np.float32),
        "train_y": np.arange(20) % 2,
        "test_x": generator.random((6, 5), dtype=np.float32),
        "test_y": np.arange(6) % 2,
    }
    file = tmp_path / "rows.npz"
    np.savez(file, **arrays)
    known = content_of(load_data(f"npz:{file}"))
    np.savez_compressed(file, **arrays)
    assert content_of(load_data(f"npz:{file}")) == known
    for name, row in (("train_x", (3, 1)), ("test_x", (5, 0)), ("train_y", 7)):
        other = {key: value.copy() for key, value in arrays.items()}
        other[name][row] = 1 - other[name][row]
        np.savez(file, **other)
        data = load_data(f"npz:{file}")
        assert content_of(data) != known
        with pytest.raises(
            BadInput, match=r"npz:.*rows.npz has other samples, or another order, than when the run began"
        ):
            require_content(data, known, "the run")


def test_each_byte_of_a_text_counts(tmp_path: Path) -> None:
    text = bytearray(b"The quick brown fox jumps over the lazy dog. " * 20)
    found = set()
    for place in (None, 0, 100, 799):
        changed = bytearray(text)
        if place is not None:
            changed[place] ^= 1
        (tmp_path / "text").write_bytes(changed)
        found.add(content_of(load_data(f"text:{tmp_path / 'text'}", context=8)))
    assert len(found) == 4


def test_pictures_count_and_not_where_they_lie(tmp_path: Path) -> None:
    top = _folder(tmp_path / "one")
    known = content_of(load_data(f"folder:{top}"))
    shutil.copytree(top, tmp_path / "two")
    assert content_of(load_data(f"folder:{tmp_path / 'two'}")) == known
    # Of the same size.
    picture = top / "train" / "a" / "1.bmp"
    picture.write_bytes(picture.read_bytes()[:-1] + b"\x07")
    assert content_of(load_data(f"folder:{top}")) != known
    shutil.move(tmp_path / "two" / "train" / "a" / "0.bmp", tmp_path / "two" / "train" / "b" / "9.bmp")
    assert content_of(load_data(f"folder:{tmp_path / 'two'}")) != known


def test_of_many_files_some_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = _folder(tmp_path / "one")
    size = (top / "train" / "a" / "0.bmp").stat().st_size
    monkeypatch.setattr(content, "_MOST_BYTES", 3 * size)
    known = content_of(load_data(f"folder:{top}"))
    read: list[Path] = []
    own = Path.read_bytes

    def noted(path: Path) -> bytes:
        read.append(path)
        return own(path)

    monkeypatch.setattr(Path, "read_bytes", noted)
    assert content_of(load_data(f"folder:{top}")) == known
    assert len(read) == 6 and read[0].name == "0.bmp"
    longer = top / "train" / "b" / "1.bmp"
    longer.write_bytes(own(longer) + b" ")
    assert content_of(load_data(f"folder:{top}")) != known


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: Path) -> bytes:
        raise OSError(5, "Input/output error")

    data = load_data(f"folder:{_folder(tmp_path / 'one')}")
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(BadInput, match=r"0\.bmp cannot be read \(\[Errno 5\] Input/output error\); mend or remove it"):
        content_of(data)


def test_pictures_without_files_are_decoded() -> None:
    def data(shade: int) -> Data:
        split = Pictures([(0, 0), (1, 1)], lambda handle: Image.new("RGB", (4, 4), (shade * handle, 0, 0)))
        return Data("pictures", "classification", 2, (3, 4, 4), split, split)

    assert content_of(data(3)) == content_of(data(3)) != content_of(data(4))


def test_loaders_of_a_user_say_nothing(tmp_path: Path) -> None:
    data = UserData("net.py", [torch.zeros(1)], [torch.zeros(1)])
    assert content_of(data) == ""
    require_content(data, "abc", "the run")
    split = Tensors(torch.zeros(3, 2), torch.tensor([0, 1, 0]))
    require_content(Data("rows", "classification", 2, (2,), split, split), "", "the run")
