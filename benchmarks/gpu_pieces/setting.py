"""What a piece of the run on a GPU is told, and the records that pieces leave."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Record = dict[str, Any]
DONE, FAILED, LATE, CUT = "done", "failed", "late", "cut"
# Between the key of a piece and the device that did it before another.
BEFORE = "@"
GPU, TOY = "gpu", "toy"
SCALES = (GPU, TOY)
VIT_BASE, RESNET50, GPT12, SWIN, CONVNEXT, LLAMA = "vit_base", "resnet50", "gpt12", "swin_t", "convnext_t", "llama1b"
# In the order of value.
NAMES = (VIT_BASE, RESNET50, GPT12, SWIN, CONVNEXT, LLAMA)
# Of the variants of a step: the recommended surrogate and what it is compared with, or all other surrogates.
RECOMMENDED, OTHERS = "recommended", "others"
EAGER, COMPILED = "eager", "compile"


@dataclass(frozen=True)
class Setting:
    """The circumstances of one piece.

    Attributes:
        scale: of `SCALES`.
        device: where it computes.
        data: directory of the data sets.
        kept: directory of what later pieces use again, such as trained weights.
        records: the file of records, with those of the pieces before.
        seconds: until the piece is ended.
        save: writes a result that is not whole yet, which stays where the piece is ended.
    """

    scale: str
    device: torch.device
    data: Path
    kept: Path
    records: Path
    seconds: float
    save: Callable[[Record], None]

    @property
    def toy(self) -> bool:
        """Whether figures mean nothing, and all has to be small."""
        return self.scale == TOY

    def beside(self) -> AbstractContextManager[None]:
        """Use the device while other pieces do; waits until none has it alone."""
        return self._using(fcntl.LOCK_SH)

    def alone(self) -> AbstractContextManager[None]:
        """Have the device alone, to measure time; waits until the others have left it."""
        return self._using(fcntl.LOCK_EX)

    @contextmanager
    def _using(self, lock: int) -> Iterator[None]:
        with (self.kept / "device").open("w") as device:
            # One after the other, so that who wants it alone is not overtaken for ever.
            with (self.kept / "turn").open("w") as turn:
                fcntl.flock(turn, fcntl.LOCK_EX)
                fcntl.flock(device, lock)
            yield


@dataclass(frozen=True)
class Piece:
    """One measurement, in a process of its own.

    Attributes:
        key: its name, the same in each run.
        work: `MODULE:FUNCTION` of this package, which takes a setting and arguments, and returns plain data; a name,
            so that a process imports what its own piece needs and no more.
        seconds: that it takes on a GPU, roughly; it is ended after `PATIENCE` times as many.
        arguments: of the function.
        needs: a file below the directory of the data sets; None for none.
    """

    key: str
    work: str
    seconds: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    needs: str | None = None


def read_records(file: Path) -> list[Record]:
    """The records of a file, the last of each piece and device; a line that was left half written is skipped."""
    found: dict[tuple[str, str], Record] = {}
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        # Behind the others, as it is newer.
        which = record["key"], device_of(record)
        found.pop(which, None)
        found[which] = record
    return list(found.values())


def device_of(record: Record) -> str:
    """The name of the device that did a piece; none where the piece did not come so far."""
    return str(record.get("machine", {}).get("device", ""))


def add_record(file: Path, record: Record) -> None:
    """Write a record behind the others, at once."""
    torn = file.exists() and file.stat().st_size and not file.read_bytes().endswith(b"\n")
    with file.open("a") as lines:
        lines.write(("\n" if torn else "") + json.dumps(record) + "\n")
