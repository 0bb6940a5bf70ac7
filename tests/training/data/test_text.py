"""Bytes of files: windows, splits and what is too short."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st

from repl_fx.errors import BadInput
from repl_fx.training.data.data_set import Data, Tensors
from repl_fx.training.data.sets import load_data
from repl_fx.training.data.text import split_by_name


def read(path: Path, context: int = 4, held_out: float = 0.1) -> tuple[Tensors, Tensors]:
    data = load_data(f"text:{path}", context=context, held_out=held_out)
    assert isinstance(data, Data) and isinstance(data.train, Tensors) and isinstance(data.test, Tensors)
    assert (data.task, data.classes, data.shape, data.mean) == ("language-modelling", 256, (context,), ())
    return data.train, data.test


def words(split: Tensors) -> list[tuple[bytes, bytes]]:
    return [(bytes(x), bytes(y)) for x, y in zip(split.main.tolist(), split.targets.tolist(), strict=True)]


def test_of_one_file_the_end_is_held_out(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(bytes(range(97, 97 + 26)) + b"ABCDEFGHIJKLM")
    train, test = read(path, held_out=0.25)
    assert words(train)[0] == (b"abcd", b"bcde") and words(train)[1] == (b"efgh", b"fghi")
    # 40 bytes with the zero: 30 to train on, 10 held out, two windows.
    assert len(train) == 7 and words(test) == [(b"EFGH", b"FGHI"), (b"IJKL", b"JKLM")]
    assert train.main.dtype == train.targets.dtype == torch.int64


def test_a_folder_is_split_by_file_and_zeros_end_files(tmp_path: Path) -> None:
    for i in range(20):
        path = tmp_path / f"d{i % 2}" / f"{i}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes([65 + i]) * 9)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "index").write_bytes(b"!" * 99)
    train, test = read(tmp_path, context=9)
    # 18 files of ten bytes with their zeros, and two; the last window lacks its last target.
    assert len(train) == 19 and len(test) == 2
    seen = [set(torch.cat((part.main, part.targets[:, -1:]), 1).flatten().tolist()) for part in (train, test)]
    assert seen[0] & seen[1] == {0} and not {33} & (seen[0] | seen[1])
    first, second = words(test)
    assert first == (first[0][:1] * 9, first[0][:1] * 8 + b"\0") and second[0][:1] == b"\0"
    again = read(tmp_path, context=9)
    assert torch.equal(again[0].main, train.main)


@given(st.sets(st.text(min_size=1), min_size=2, max_size=30), st.floats(0.01, 0.99))
def test_both_parts_have_names_and_their_order_does_not_matter(names: set[str], held_out: float) -> None:
    train, test = split_by_name(names, held_out)
    assert train and test and sorted(train + test) == sorted(names)
    assert abs(len(test) - held_out * len(names)) <= 1
    assert split_by_name(sorted(names, reverse=True), held_out) == (train, test)


def test_what_is_too_little(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no file or folder"):
        load_data(f"text:{tmp_path / 'none'}")
    with pytest.raises(BadInput, match="has 0 files"):
        load_data(f"text:{tmp_path}")
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 49)
    with pytest.raises(BadInput, match="has 1 files"):
        load_data(f"text:{tmp_path}")
    # 50 bytes, of which 5 are held out: enough for a context of 4.
    assert len(read(path, context=4)[1]) == 1
    with pytest.raises(BadInput, match="the test split has 5 bytes, too little for a context of 5, which takes 6"):
        read(path, context=5)
    with pytest.raises(BadInput, match="the train split has 45 bytes"):
        read(path, context=45)


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x")

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(BadInput, match=r"a\.txt cannot be read \(\[Errno 13\] Permission denied"):
        load_data(f"text:{path}")
