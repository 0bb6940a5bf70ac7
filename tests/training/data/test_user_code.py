"""Data of a user's own code: what a function may return, and what each mistake is told."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from repl_fx.errors import BadInput
from repl_fx.training.data.data_set import Data, UserData
from repl_fx.training.data.sets import load_data
from repl_fx.training.train_config import names_python_file

CODE = """
    import torch
    from torch.utils.data import DataLoader, TensorDataset
    from repl_fx.training.data import Data, Tensors
    from beside import SIZE

    def part(n):
        return Tensors(torch.zeros(n, SIZE), torch.arange(n) % 2)

    def data():
        return Data("mine", "classification", 2, (SIZE,), part(4), part(2))

    def loaders():
        return [DataLoader(TensorDataset(torch.zeros(n, SIZE), torch.zeros(n))) for n in (4, 2)]

    class Module:
        def train_dataloader(self):
            return loaders()[0]

    def three():
        return 1, 2, 3

    def numbers():
        return 1, 2

    def nothing():
        return None

    def fails():
        raise RuntimeError("no disk")

    def needs(path):
        return path
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "beside.py").write_text("SIZE = 3\n")
    path = tmp_path / "mine.py"
    path.write_text(dedent(CODE))
    return str(path)


def test_data_loaders_and_modules_come_back_as_they_are(file: str) -> None:
    for spec in (file, f"{file}:data"):
        data = load_data(spec)
        assert isinstance(data, Data) and data.name == "mine" and data.shape == (3,)
    pair = load_data(f"{file}:loaders")
    assert isinstance(pair, UserData) and pair.name == f"{file}:loaders" and pair.module is None
    assert pair.train is not None and pair.test is not None
    assert (len(list(pair.train)), len(list(pair.test))) == (4, 2)
    module = load_data(f"{file}:Module")
    assert isinstance(module, UserData) and type(module.module).__name__ == "Module" and module.train is None


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("three", "mine.py:three returned 3 values .*; return Data, a pair of DataLoaders"),
        ("numbers", r"mine.py:numbers returned 2 values \(.*, .*\); return"),
        ("nothing", "mine.py:nothing returned .*None"),
        ("fails", r"mine.py:fails raised RuntimeError: no disk \(.*mine.py, line 30\)"),
        ("needs", "mine.py:needs raised TypeError: needs.. missing 1 required positional argument"),
        ("loader", r"has no function 'loader'; did you mean loaders\?; define loader\(\)"),
        ("", "names no function behind the colon; write .*mine.py:FUNCTION"),
    ],
)
def test_functions_that_return_no_data(file: str, function: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as refused:
        load_data(f"{file}:{function}")
    assert "\n" not in str(refused.value)


def test_files_that_are_missing_or_cannot_run(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no file .*none\.py"):
        load_data(str(tmp_path / "none.py"))
    (tmp_path / "bad.py").write_text("x = (\n")
    with pytest.raises(BadInput, match=r"bad\.py could not be executed: SyntaxError"):
        load_data(f"{tmp_path / 'bad.py'}:data")


def test_which_specifications_are_files() -> None:
    assert names_python_file("a.py") and names_python_file("text/a.py:f")
    assert not names_python_file("digits") and not names_python_file("text:a.txt")
