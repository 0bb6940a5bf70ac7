"""The data of the benchmark of accuracy: data sets of `repl_fx.training`; the text is that of the running Python."""

from __future__ import annotations

import functools
import shutil
import sysconfig
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from repl_fx.training.data import Data, Tensors, load_data

TEXT = "text"
# Tests are long tables as often as code, and other people's packages differ from machine to machine.
NO_SOURCES = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages"})


# Runs come task by task, so one is enough.
@functools.lru_cache(maxsize=1)
def load(name: str, folder: Path, context: int, *, download: bool = False) -> Data:
    """Read a data set.

    Args:
        name: of a data set of `repl_fx.training`, or `text` for the standard library of the running Python.
        folder: where the files of data sets lie.
        context: bytes in one input of the text.
        download: whether files that are not there may be fetched.

    Raises:
        BadInput: a file is not there, or is not what it should be.
    """
    if name != TEXT:
        found = load_data(name, root=folder, download=download)
    else:
        with tempfile.TemporaryDirectory() as copies:
            sources = Path(copies) / "library"
            copy_sources(Path(sysconfig.get_path("stdlib")), sources)
            found = load_data(f"{TEXT}:{sources}", context=context)
    assert isinstance(found, Data)
    return found


def copy_sources(library: Path, to: Path) -> None:
    """Copy the Python files below a directory, without tests and installed packages."""

    def left_out(folder: str, names: list[str]) -> list[str]:
        return [n for n in names if n in NO_SOURCES or not (n.endswith(".py") or (Path(folder) / n).is_dir())]

    shutil.copytree(library, to, ignore=left_out)


def thinned(data: Data, train: int | None, test: int | None) -> Data:
    """The data with no more than so many inputs to train on and held out, spread evenly; None leaves all."""
    return replace(data, train=_spread(data.train, train), test=_spread(data.test, test))


def _spread(part: object, limit: int | None) -> Tensors:
    assert isinstance(part, Tensors)
    if limit is None or limit >= len(part):
        return part
    kept = torch.linspace(0, len(part) - 1, limit, dtype=torch.float64).long()
    return Tensors(part.main[kept], part.targets[kept])
