"""Files that are whole, whatever cuts their writing short."""

from __future__ import annotations

from pathlib import Path

import pytest

from repl_fx.environment.files import replacing, write_whole, writing
from repl_fx.errors import OutputError


def test_a_file_that_is_cut_short_stays_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_whole(file, "one")
    with pytest.raises(RuntimeError, match="cut"), replacing(file) as written:
        written.write_text("tw")
        raise RuntimeError("cut")
    assert file.read_text() == "one" and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("durable", [False, True])
def test_what_is_written_beside_a_file_comes_before_it(tmp_path: Path, durable: bool) -> None:
    file = tmp_path / "model.onnx"
    seen: list[list[str]] = []
    with replacing(file, prefix=".part-", durable=durable) as written:
        written.write_text("model")
        written.with_name("model.onnx.data").write_text("weights")
        seen.append([path.name[:6] for path in tmp_path.iterdir()])
    assert seen == [[".part-"]]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "model.onnx": "model",
        "model.onnx.data": "weights",
    }


def test_data_is_in_place_where_its_file_cannot_be(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.mkdir()
    with pytest.raises(OutputError, match=r"model\.onnx cannot be written: "), writing(file), replacing(file) as part:
        part.write_text("model")
        part.with_name("data").write_text("weights")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "model.onnx"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"none/a\.json cannot be written: No such file or directory"):
        write_whole(tmp_path / "none" / "a.json", "one")
