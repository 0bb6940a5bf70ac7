"""Files of checkpoints: each kind is read, and what is none is refused in one line."""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from repl_fx.errors import BadInput
from repl_fx.sources.checkpoints.weight_files import describe_weights, read_weights

STATE = {"first.weight": torch.arange(6.0).reshape(2, 3), "second.weight": torch.ones(2)}


def _same(found: Mapping[str, Any]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)


def _shards(place: Path, ending: str) -> None:
    names = {name: f"part-{number}.{ending}" for number, name in enumerate(STATE)}
    for name, file in names.items():
        one = {name: STATE[name]}
        save_file(one, place / file) if ending == "safetensors" else torch.save(one, place / file)
    stem = "model" if ending == "safetensors" else "pytorch_model"
    (place / f"{stem}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def test_a_state_dict_is_what_it_is() -> None:
    assert read_weights(STATE) is STATE
    assert describe_weights(STATE) == "the given state" and describe_weights("a.pt") == "a.pt"


@pytest.mark.parametrize("name", ["weights.safetensors", "blob"])
def test_safetensors_are_known_by_their_content(tmp_path: Path, name: str) -> None:
    save_file(STATE, tmp_path / name)
    assert _same(read_weights(tmp_path / name)) and _same(read_weights(str(tmp_path / name)))


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch(tmp_path: Path, zipped: bool) -> None:
    torch.save(STATE, tmp_path / "weights.pt", _use_new_zipfile_serialization=zipped)
    assert _same(read_weights(tmp_path / "weights.pt"))


def test_the_options_of_a_training_script_are_no_code(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE, "args": argparse.Namespace(lr=0.1)}, tmp_path / "last.pth.tar")
    assert _same(read_weights(tmp_path / "last.pth.tar")["state_dict"])


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards_by_their_directory_and_by_their_index(tmp_path: Path, ending: str) -> None:
    _shards(tmp_path, ending)
    (index,) = tmp_path.glob("*.index.json")
    assert _same(read_weights(tmp_path)) and _same(read_weights(index))


def test_a_directory_with_one_file(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "pytorch_model.bin")
    save_file(STATE, tmp_path / "model.safetensors")
    assert _same(read_weights(tmp_path))


class _Evil:
    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return setattr, (_Evil, "ran", True)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("content", [nn.Linear(2, 2), {"state_dict": STATE, "more": _Evil()}])
def test_a_pickle_of_more_than_weights_is_not_loaded(tmp_path: Path, content: object, zipped: bool) -> None:
    file = tmp_path / "model.pt"
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(BadInput, match=r"is a pickle of more than weights.*could run code and is not loaded") as caught:
        read_weights(file)
    # Torch tells the classes of its present format alone.
    named = "torch.nn.modules.linear.Linear" if isinstance(content, nn.Module) else "setattr"
    assert (named in str(caught.value)) == zipped
    assert "\n" not in str(caught.value) and not _Evil.ran


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "neither safetensors nor a whole file of torch.save: EOFError"),
        (b"hello", "neither safetensors nor a whole file of torch.save"),
        (pickle.dumps(STATE), "is a pickle of more than weights"),
        (b"PK\x03\x04 and no more", "neither safetensors nor a whole file of torch.save"),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path: Path, content: bytes, line: str) -> None:
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(BadInput, match=line) as caught:
        read_weights(tmp_path / "weights")
    assert "\n" not in str(caught.value)


def test_a_damaged_safetensors_file(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(STATE, file)
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(BadInput, match=r"cannot be read: SafetensorError.*copy it again"):
        read_weights(file)


def test_things_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no file .*none\.pt; give a \.safetensors file, a file of torch\.save"):
        read_weights(tmp_path / "none.pt")
    with pytest.raises(BadInput, match="a file, a directory or a state dict, and this is a Linear"):
        read_weights(nn.Linear(1, 1))  # type: ignore[arg-type]
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(BadInput, match=r"holds a list; save a state_dict"):
        read_weights(tmp_path / "list.pt")


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("other.txt", "", "has no model.safetensors, model.safetensors.index.json, pytorch_model.bin, "),
        ("adapter_config.json", "{}", "holds an adapter"),
        (".metadata", "", r"distributed checkpoint; make one file of it: python -m .*dcp_to_torch .* weights\.pt"),
        ("model.safetensors.index.json", "[]", "is no index of shards: TypeError"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "../b.safetensors"}}', "does not lie beside it"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "b.safetensors"}}', r"names b\.safetensors beside it"),
    ],
)
def test_directories_without_weights(tmp_path: Path, name: str, content: str, line: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(BadInput, match=line):
        read_weights(tmp_path)


def test_an_index_of_more_than_its_shards_hold(tmp_path: Path) -> None:
    _shards(tmp_path, "safetensors")
    index = tmp_path / "model.safetensors.index.json"
    named = json.loads(index.read_text())
    named["weight_map"]["third"] = "part-0.safetensors"
    index.write_text(json.dumps(named))
    with pytest.raises(BadInput, match="weights that its shards do not hold: third; copy"):
        read_weights(tmp_path)
