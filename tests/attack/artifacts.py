"""Damaged artifacts: is any loaded as another model, or met with an error that repl-fx did not mean?

    artifact --damage--> another directory;   repl_fx.load:   refused in one line, or the outputs of the artifact

Damage is done to bytes, to whole files (gone, cut, a directory, a link, another artifact's) and to fields of the
manifest and the plan. Where fields change, the hashes over them are made to fit in half of the cases: then nothing but
the schema, and what a field means, stands in the way. A plan that is changed so is another plan, and a file of
weights that is exchanged so is another file; of these it is asked alone that no other error than repl-fx's own escapes.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

import repl_fx
from repl_fx.artifact.manifest import sealed
from repl_fx.sources import load_source
from repl_fx.sources.source import hash_file
from tests.artifact import tied_net
from tests.artifact.edits import copy_artifact

MODEL = tied_net.MODEL.replace("range(5)", "range(3)")
IDS = torch.arange(6).reshape(3, 2)
# In place of a value of a field.
_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**70, 1.5, float("nan"), "", "x", "../x", "/etc/passwd", "\x00", [], [1], {}, {"x": 1},
    [["x"]], "blocks.0", "embed.weight",
)  # fmt: skip


@dataclass
class Counts:
    """What became of damaged artifacts.

    Attributes:
        kinds: how many of each kind of damage there were.
        refused: with one line.
        same: loaded, and computing what they did.
        other: loaded, and computing what they say now, by hashes that were made to fit.
        wrong: by seed: loaded and computing something else, or met with an error that is not repl-fx's.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    same: int = 0
    other: int = 0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        total = sum(self.kinds.values())
        harmless = f"{self.same} loaded as they were, {self.other} are others by right"
        return "\n".join(
            [f"{total} damaged artifacts: {self.refused} refused, {harmless}, {len(self.wrong)} wrong", *self.wrong]
        )


def run_damages(first: int, count: int) -> Counts:
    """Damage artifacts by the seeds from `first` on, and load them."""
    counts = Counts()
    with tempfile.TemporaryDirectory(prefix="artifacts.") as folder:
        place = Path(folder)
        for name in ("a", "b"):
            copy_artifact(_made(name), place / name)
        wanted = repl_fx.load(place / "a" / "artifact")(IDS)
        before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
        for seed in range(first, first + count):
            damaged = place / "a" / "damaged"
            shutil.copytree(place / "a" / "artifact", damaged)
            kind, other_output = damage(damaged, place / "b" / "artifact", random.Random(seed))
            counts.kinds[kind] += 1
            try:
                made = repl_fx.load(damaged)(IDS)
            except repl_fx.ReplFxError as problem:
                if "\n" in str(problem):
                    counts.wrong.append(f"{seed} {kind}: refused in more than one line: {problem}")
                counts.refused += 1
            except Exception as problem:
                counts.wrong.append(f"{seed} {kind}: {type(problem).__name__}: {problem}")
            else:
                if made.shape == wanted.shape and torch.equal(made, wanted):
                    counts.same += 1
                elif other_output:
                    counts.other += 1
                else:
                    counts.wrong.append(f"{seed} {kind}: another output")
            shutil.rmtree(damaged)
            after = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
            if after != before:
                counts.wrong.append(f"{seed} {kind}: files beside the artifact changed")
    return counts


def damage(directory: Path, other: Path, chance: random.Random) -> tuple[str, bool]:
    """Damage an artifact; the kind, and whether the artifact is now another one by right."""
    kind = chance.choice(list(_DAMAGES))
    return kind, bool(_DAMAGES[kind](directory, other, chance))


_SCRATCH = tempfile.TemporaryDirectory(prefix="artifacts.")


@cache
def _made(name: str) -> Path:
    """A model file and its artifact, other ones for each name; made once."""
    place = Path(_SCRATCH.name) / name
    place.mkdir()
    (place / "net.py").write_text(MODEL)
    source = load_source(str(place / "net.py"), seed=len(name) + ord(name))
    result = repl_fx.transform(source.model, source.args, surrogate="bottleneck")
    repl_fx.save(result, place / "artifact", source=source)
    return place


def _any_file(directory: Path, chance: random.Random) -> Path:
    return chance.choice(sorted(directory.iterdir()))


def _flip(directory: Path, other: Path, chance: random.Random) -> None:
    file = _any_file(directory, chance)
    data = bytearray(file.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    file.write_bytes(data)


def _cut(directory: Path, other: Path, chance: random.Random) -> None:
    file = _any_file(directory, chance)
    os.truncate(file, chance.randrange(file.stat().st_size))


def _grow(directory: Path, other: Path, chance: random.Random) -> None:
    with _any_file(directory, chance).open("ab") as stream:
        stream.write(chance.choice([b"\n", b" ", b"\x00", b"{}"]))


def _lose(directory: Path, other: Path, chance: random.Random) -> None:
    _any_file(directory, chance).unlink()


def _nest(directory: Path, other: Path, chance: random.Random) -> None:
    file = chance.choice([directory / "manifest.json", directory / "plan.json"])
    file.write_text(chance.choice(["[", '{"a":']) * 10**5)


def _make_directory(directory: Path, other: Path, chance: random.Random) -> None:
    file = _any_file(directory, chance)
    file.unlink()
    file.mkdir()


def _link(directory: Path, other: Path, chance: random.Random) -> None:
    file = _any_file(directory, chance)
    file.unlink()
    to = [directory / "nowhere", directory, file, other / file.name, *(p for p in directory.iterdir())]
    file.symlink_to(chance.choice(to))


def _swap(directory: Path, other: Path, chance: random.Random) -> None:
    first, second = chance.sample(sorted(directory.iterdir()), 2)
    first.rename(directory / "kept")
    second.rename(first)
    (directory / "kept").rename(second)


def _exchange(directory: Path, other: Path, chance: random.Random) -> bool:
    """Files of another artifact of the same model; with its manifest and weights it is that one."""
    names = chance.sample(sorted(path.name for path in directory.iterdir()), chance.randint(1, 3))
    for name in names:
        shutil.copyfile(other / name, directory / name)
    return {"manifest.json", "model.safetensors"} <= set(names)


def _edit_manifest(directory: Path, other: Path, chance: random.Random) -> bool:
    file = directory / "manifest.json"
    data = json.loads(file.read_text())
    digest = data.pop("sha256")
    _edit(data, chance)
    file.write_text(sealed(data) if chance.random() < 0.5 else json.dumps({**data, "sha256": digest}))
    return False


def _edit_plan(directory: Path, other: Path, chance: random.Random) -> bool:
    file = directory / "plan.json"
    data = json.loads(file.read_text())
    _edit(data, chance)
    file.write_text(json.dumps(data))
    return _reseal(directory, chance)


def _exchange_sealed(directory: Path, other: Path, chance: random.Random) -> bool:
    name = chance.choice(["plan.json", "model.safetensors", "constants.safetensors", "graph.txt", "source.txt"])
    shutil.copyfile(chance.choice([other, directory]) / chance.choice([name, "graph.txt"]), directory / "kept")
    (directory / "kept").rename(directory / name)
    return _reseal(directory, chance, always=True)


def _reseal(directory: Path, chance: random.Random, *, always: bool = False) -> bool:
    if not always and chance.random() < 0.5:
        return False
    file = directory / "manifest.json"
    data = json.loads(file.read_text())
    del data["sha256"]
    for name, entry in data["files"].items():
        entry["sha256"] = hash_file(directory / name)
    file.write_text(sealed(data))
    return True


def _edit(data: Any, chance: random.Random) -> None:
    """Change a field, drop it, or add one."""
    *path, last = chance.choice(list(_fields(data)))
    inner = data
    for step in path:
        inner = inner[step]
    how = chance.random()
    if how < 0.15:
        del inner[last]
    elif how < 0.3 and isinstance(inner, dict):
        inner[chance.choice(["surplus", "", "blocks.0.fc1.weight"])] = chance.choice([*_VALUES, inner[last]])
    else:
        inner[last] = chance.choice(_VALUES)


def _fields(data: Any) -> Iterator[tuple[Any, ...]]:
    """Paths of all fields and items, the outer ones too."""
    for key in data if isinstance(data, dict) else range(len(data)):
        yield (key,)
        if isinstance(data[key], (dict, list)):
            yield from ((key, *rest) for rest in _fields(data[key]))


_DAMAGES: dict[str, Callable[[Path, Path, random.Random], bool | None]] = {
    "a bit flipped": _flip,
    "a file cut short": _cut,
    "a file grown": _grow,
    "a file gone": _lose,
    "a file nested deeply": _nest,
    "a file that is a directory": _make_directory,
    "a file that is a link": _link,
    "two files swapped": _swap,
    "files of another artifact": _exchange,
    "a field of the manifest": _edit_manifest,
    "a field of the manifest, too": _edit_manifest,
    "a field of the plan": _edit_plan,
    "a file of another artifact, sealed": _exchange_sealed,
}
