"""What is carried to a machine without a network comes out there as it was, whichever file comes first."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu_carry
from benchmarks.gpu_carry import Broken, pack, unpack

MOST = 2**18


def wheel(folder: Path, name: str, size: int) -> bytes:
    """A wheel of one module that holds bytes which cannot be made smaller."""
    noise = np.random.default_rng(0).bytes(size)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{name}/__init__.py", "")
        archive.writestr(f"{name}/noise", noise)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return noise


@pytest.fixture
def carried(tmp_path: Path) -> tuple[list[Path], bytes, bytes]:
    """Files with two wheels, one of them larger than a file, and a data set; and the contents of these two."""
    wheel(tmp_path / "wheels", "carried_little", 64)
    noise = wheel(tmp_path / "wheels", "carried_much", 2 * MOST)
    pictures = np.random.default_rng(1).bytes(2 * MOST)
    (tmp_path / "sets" / "FashionMNIST" / "raw").mkdir(parents=True)
    (tmp_path / "sets" / "cifar10.npz").write_bytes(pictures)
    (tmp_path / "sets" / "FashionMNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(b"labels")
    (tmp_path / "sets" / "other.npz").write_bytes(b"of something else")
    return pack(tmp_path / "wheels", tmp_path / "sets", tmp_path / "carry", MOST), noise, pictures


@pytest.mark.slow
def test_all_comes_out_as_it_was(carried: tuple[list[Path], bytes, bytes], tmp_path: Path) -> None:
    files, noise, pictures = carried
    assert len(files) > 3 and all(file.stat().st_size <= MOST for file in files)
    to = tmp_path / "carried"
    # One at a time, the last one first: the one before is not there any more.
    for file in reversed(files):
        (tmp_path / "came").mkdir()
        file.rename(tmp_path / "came" / file.name)
        missing = unpack(tmp_path / "came", to)
        (tmp_path / "came" / file.name).unlink()
        (tmp_path / "came").rmdir()
    # The end: all is here.
    assert missing == []
    assert (to / "site" / "carried_little" / "__init__.py").is_file()
    assert (to / "site" / "carried_much" / "noise").read_bytes() == noise
    assert (to / "data" / "cifar10.npz").read_bytes() == pictures
    assert (to / "data" / "FashionMNIST" / "raw" / "train-labels-idx1-ubyte").read_bytes() == b"labels"
    assert not (to / "data" / "other.npz").exists()


def test_what_has_not_come_is_named(carried: tuple[list[Path], bytes, bytes], tmp_path: Path) -> None:
    files, *_ = carried
    for file in files[:-2]:
        file.unlink()
    (line,) = unpack(tmp_path / "carry", tmp_path / "carried")
    assert line.startswith("data/cifar10.npz: ") and line.endswith("pieces are here")
    assert not (tmp_path / "carried" / "data" / "cifar10.npz").exists()


def test_a_package_that_the_machine_has_stays(tmp_path: Path) -> None:
    # Of numpy any version does that repl-fx takes; what is in the wheel would break it.
    wheel(tmp_path / "wheels", "numpy", 64)
    pack(tmp_path / "wheels", None, tmp_path / "carry", MOST)
    assert unpack(tmp_path / "carry", tmp_path / "carried") == []
    assert not (tmp_path / "carried" / "site").exists()


def test_a_broken_file_is_named(
    carried: tuple[list[Path], bytes, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, *_ = carried
    files[1].write_bytes(files[1].read_bytes()[:1000])
    with pytest.raises(Broken, match=f"{files[1].name} is not whole .*; bring it again"):
        unpack(tmp_path / "carry", tmp_path / "carried")
    assert gpu_carry.main(["unpack", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
