"""What a machine without a network lacks for `benchmarks.gpu`, in files of at most 60 MiB.

    python -m benchmarks.gpu_carry pack --data DATA --out build/carry        wheels and data sets, with a network
    python -m benchmarks.gpu_carry unpack build/carry --to build/carried     what has come so far, without one

The machine has Python 3.12 on x86-64 Linux, pip, torch 2.11 with its torchvision, transformers, onnx, onnxruntime and
pytorch-lightning. The wheels are of all other packages that are needed; where the machine has a package in a version
that repl-fx takes, it stays. They are pure Python but for hypothesis, msgspec and safetensors, which are not to be had
so. `--more onnxruntime-gpu` brings the providers of ONNX Runtime for a GPU, 200 MiB and more. The data are
`cifar10.npz` (uint8 arrays train_x, train_y, test_x, test_y) and `FashionMNIST/raw`, those of the two that are in DATA.
Files may come one at a time, as what is larger than one is cut, and `unpack` says what is still missing: DIR/site is
for PYTHONPATH, DIR/data for `--data`. A clone of the repository comes besides.

Exit status: 0; 2 where nothing is there, a file is broken, or pip fails.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    *("lazy-loader", "msgspec", "networkx", "onnx-ir", "onnxscript", "packaging", "rich", "safetensors", "typer"),
    *("markdown-it-py", "mdurl", "pygments", "shellingham", "annotated-doc", "timm", "torch-pruning"),
    *("torchmetrics", "lightning-utilities", "tensorboardX"),
    *("pytest", "iniconfig", "pluggy", "hypothesis", "sortedcontainers"),
)
PLATFORM = ("--python-version", "3.12", "--implementation", "cp")
PLATFORMS = tuple(f"--platform=manylinux{tag}_x86_64" for tag in ("_2_28", "_2_17", "2014"))
DATA = ("cifar10.npz", "FashionMNIST/raw/*-ubyte")
MIB = 2**20
# Of a member of an archive, at most, beside its content; what cannot be made smaller grows a little.
OVERHEAD = 2**16
JOINED = ".part-{number}-of-{count}"


class Broken(Exception):
    """What is carried cannot be made or used; the message says why."""


def fetch(place: Path, more: Sequence[str] = ()) -> None:
    """Write the wheels of repl-fx, of `PACKAGES` and of more to a directory."""
    _pip("wheel", "--no-deps", "-w", str(place), str(ROOT))
    _pip("download", "--no-deps", "--only-binary=:all:", *PLATFORM, *PLATFORMS, "-d", str(place), *PACKAGES, *more)


def pack(wheels: Path, data: Path | None, out: Path, most: int) -> list[Path]:
    """Write the files.

    Args:
        wheels: directory of the wheels.
        data: directory of the data sets; None for none.
        out: a directory; files of an earlier call are replaced.
        most: bytes of a file.

    Returns:
        The files.
    """
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("carried-*.zip"):
        old.unlink()
    files: list[Path] = []
    room = 0
    for name, content in _pieces(wheels, data, most - 2 * OVERHEAD):
        if len(content) + OVERHEAD > room:
            files.append(out / f"carried-{len(files):02}.zip")
            room = most
        with zipfile.ZipFile(files[-1], "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, content)
        room -= len(content) + OVERHEAD
    return files


def _pieces(wheels: Path, data: Path | None, size: int) -> Iterator[tuple[str, bytes]]:
    """The names and contents of the members: wheels, and pieces of what is larger than a member may be."""
    sets = [file for pattern in DATA for file in data.glob(pattern)] if data is not None else []
    named = {f"wheels/{wheel.name}": wheel for wheel in wheels.glob("*.whl")}
    named |= {f"data/{file.relative_to(data)}": file for file in sets if data is not None}
    for name, file in sorted(named.items(), reverse=True):
        content = file.read_bytes()
        count = -(-len(content) // size)
        for number in range(count):
            suffix = JOINED.format(number=number, count=count) if count > 1 else ""
            yield f"{name}{suffix}", content[number * size : (number + 1) * size]


def unpack(source: Path, to: Path) -> list[str]:
    """Unpack the files that are there, install wheels and join data.

    Returns:
        What is still missing, a line for each file.
    """
    archives = sorted(source.glob("carried-*.zip"))
    if not archives:
        raise Broken(f"no carried-*.zip in {source}; `pack` writes them")
    for file in archives:
        try:
            with zipfile.ZipFile(file) as archive:
                archive.extractall(to)
        except zipfile.BadZipFile as problem:
            raise Broken(f"{file} is not whole ({problem}); bring it again") from problem
    missing = list(_join(to))
    wheels = [str(file) for file in sorted((to / "wheels").glob("*.whl")) if _is_needed(file)]
    if wheels:
        _pip("install", "--no-index", "--no-deps", "--no-compile", "--upgrade", "--target", str(to / "site"), *wheels)
    return missing


def _join(folder: Path) -> Iterator[str]:
    """Join the pieces of each file of which all have come; the others are told of."""
    for name in sorted({str(part).rpartition(".part-")[0] for part in folder.rglob("*.part-*")}):
        joined = Path(name)
        parts = {int(part.name.split("-")[-3]): part for part in joined.parent.glob(f"{joined.name}.part-*")}
        count = int(parts[min(parts)].name.rpartition("-")[2])
        if len(parts) < count:
            yield f"{joined.relative_to(folder)}: {len(parts)} of {count} pieces are here"
        elif not joined.exists():
            written = joined.with_name(f".{joined.name}")
            written.write_bytes(b"".join(parts[number].read_bytes() for number in range(count)))
            written.replace(joined)


def _is_needed(wheel: Path) -> bool:
    """Tell whether the machine lacks a package, or has it in a version that repl-fx does not take."""
    name = parse_wheel_filename(wheel.name)[0]
    try:
        installed = metadata.version(name)
    except metadata.PackageNotFoundError:
        return True
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = (project["dependencies"], *project["optional-dependencies"].values())
    wanted = [Requirement(text) for texts in lists for text in texts]
    # repl-fx itself is wanted as it is here.
    return name == "repl-fx" or not all(
        installed in one.specifier for one in wanted if canonicalize_name(one.name) == name
    )


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Broken(f"pip {arguments[0]} failed: {' '.join((done.stderr or done.stdout).split())[-300:]}")


def main(argv: Sequence[str] | None = None) -> int:
    """Pack or unpack; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="write the files; needs a network")
    packing.add_argument("--data", type=Path, help="directory of the data sets; none by default")
    packing.add_argument("--out", type=Path, default=ROOT / "build" / "carry", help="where the files go")
    packing.add_argument("--more", nargs="+", default=[], metavar="PACKAGE", help="such as onnxruntime-gpu==1.30.0")
    packing.add_argument("--most", type=int, default=60, metavar="MIB", help="of a file (60)")
    unpacking = commands.add_parser("unpack", help="use the files; needs none")
    unpacking.add_argument("source", type=Path, help="where the files lie")
    unpacking.add_argument("--to", type=Path, default=ROOT / "build" / "carried", metavar="DIR", help="where all goes")
    given = parser.parse_args(argv)
    try:
        if given.command == "pack":
            with tempfile.TemporaryDirectory() as place:
                fetch(Path(place), given.more)
                for file in pack(Path(place), given.data, given.out, given.most * MIB):
                    print(f"{file}  {file.stat().st_size / MIB:.1f} MiB")
        else:
            print("\n".join(unpack(given.source, given.to) or ["all that was packed is here"]))
            print(f"PYTHONPATH={given.to / 'site'}; --data {given.to / 'data'}")
    except Broken as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
