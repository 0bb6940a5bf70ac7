"""Data sets of the library `datasets`, in the place of which a small one stands here: it need not be installed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("huggingface_hub")

from huggingface_hub import constants
from PIL import Image as Pillow

from repl_fx.errors import BadInput
from repl_fx.training.data.data_set import Data, Tensors
from repl_fx.training.data.pictures import Pictures
from repl_fx.training.data.sets import load_data


class Image:
    pass


class ClassLabel:
    num_classes = 2


class Value:
    pass


class Table(list[dict[str, Any]]):
    """Rows, that give a column for its name, as tables of `datasets` do."""

    def __init__(self, rows: list[dict[str, Any]], features: dict[str, Any]) -> None:
        super().__init__(rows)
        self.features = features

    def __getitem__(self, key: Any) -> Any:
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)

    def train_test_split(self, test_size: float, seed: int) -> dict[str, Table]:
        held = round(len(self) * test_size)
        parts = {"train": list(self)[held:], "test": list(self)[:held]}
        return {name: Table(rows, self.features) for name, rows in parts.items()}


class Library(ModuleType):
    """Stands for `datasets`, and keeps what was asked of it."""

    def __init__(self, found: dict[str, Table] | Exception) -> None:
        super().__init__("datasets")
        self.found = found
        self.asked: dict[str, Any] = {}
        self.config = SimpleNamespace(HF_HUB_OFFLINE=False)

    def DownloadConfig(self, **options: Any) -> dict[str, Any]:
        return options

    def load_dataset(self, name: str, **options: Any) -> dict[str, Table]:
        self.asked = {"name": name, "offline": (self.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE), **options}
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def put(found: dict[str, Table] | Exception) -> Library:
        library = Library(found)
        monkeypatch.setitem(sys.modules, "datasets", library)
        return library

    return put


def texts(n: int) -> Table:
    return Table([{"text": f"line {i}"} for i in range(n)], {"text": Value()})


def pictures(n: int) -> Table:
    features = {"id": Value(), "img": Image(), "label": ClassLabel()}
    rows = [{"id": i, "img": Pillow.new("L", (6, 4), 40 * i), "label": i % 2} for i in range(n)]
    return Table(rows, features)


def test_pictures_are_read_one_by_one(install: Any, tmp_path: Path) -> None:
    library = install({"train": pictures(4), "validation": pictures(2)})
    data = load_data("hf:shop/things", root=tmp_path)
    assert isinstance(data, Data) and isinstance(data.train, Pictures) and isinstance(data.test, Pictures)
    assert (data.shape, data.classes, len(data.train), len(data.test)) == ((3, 4, 6), 2, 4, 2)
    picture, label = data.train[3]
    assert label == 1 and torch.equal(picture, torch.full((3, 4, 6), 120, dtype=torch.uint8))
    assert library.asked["name"] == "shop/things" and library.asked["offline"] == (True, True)
    assert not library.config.HF_HUB_OFFLINE and not constants.HF_HUB_OFFLINE
    assert Path(library.asked["cache_dir"]).is_relative_to(tmp_path)
    load_data("hf:shop/things", root=tmp_path, download=True)
    assert library.asked["offline"] == (False, False)


def test_text_without_a_test_split_is_split(install: Any, tmp_path: Path) -> None:
    install({"train": texts(9)})
    data = load_data("hf:lines", root=tmp_path, context=6, held_out=1 / 3)
    assert isinstance(data, Data) and isinstance(data.train, Tensors) and isinstance(data.test, Tensors)
    assert bytes(data.test.main[0].tolist()) == b"line 0" and bytes(data.test.targets[0].tolist()) == b"ine 0\0"
    assert (len(data.train), len(data.test)) == (6, 3)


def test_what_cannot_be_read(install: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for found, message in (
        (ConnectionError("not\nthere"), r"hf:x cannot be read \(ConnectionError: not\); .*--download"),
        ({"all": texts(3)}, "hf:x has the splits all; train is needed"),
        ({"train": Table([{}], {"a": Value()}), "test": texts(1)}, r"hf:x has the columns a \(Value\); needed are"),
    ):
        install(found)
        with pytest.raises(BadInput, match=message):
            load_data("hf:x", root=tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BadInput, match="hf:x needs the library datasets; pip install datasets"):
        load_data("hf:x", root=tmp_path)


def labelled(labels: list[Any], text: Any = "line") -> Table:
    return Table([{"text": text, "label": label} for label in labels], {"text": Value(), "label": ClassLabel()})


def test_a_test_split_without_classes_is_left_for_another(install: Any, tmp_path: Path) -> None:
    for test in (labelled([-1, -1]), texts(2)):
        install({"train": labelled([0, 1, 1]), "validation": labelled([1, 0]), "test": test})
        data = load_data("hf:contest", root=tmp_path)
        assert isinstance(data, Data) and isinstance(data.test, Tensors) and data.test.targets.tolist() == [1, 0]
    install({"train": labelled([0, 1, 1]), "test": labelled([-1])})
    data = load_data("hf:contest", root=tmp_path, held_out=1 / 3)
    assert isinstance(data, Data) and isinstance(data.test, Tensors) and data.test.targets.tolist() == [0]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (Table([{"text": None}], {"text": Value()}), "hf:x: train: row 0 has None for text; give each row"),
        (labelled([0, 1, None]), "hf:x: train: row 2 has None for label"),
        (labelled([0, 2]), "hf:x: train: row 1 has 2 for label"),
        (Table([*pictures(1), {"label": -1}], pictures(1).features), "hf:x: train: row 1 has -1 for label"),
    ],
)
def test_rows_without_a_text_or_a_class_are_refused(install: Any, tmp_path: Path, train: Table, message: str) -> None:
    install({"train": train, "validation": train})
    with pytest.raises(BadInput, match=message):
        load_data("hf:x", root=tmp_path)


def test_a_split_that_cannot_be_divided(install: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Table, **options: Any) -> None:
        raise ValueError("the resulting train set will be empty")

    monkeypatch.setattr(Table, "train_test_split", refuse)
    install({"train": texts(1)})
    with pytest.raises(BadInput, match=r"hf:x cannot be divided \(the resulting train set will be empty\)"):
        load_data("hf:x", root=tmp_path)
