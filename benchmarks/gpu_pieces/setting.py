"""What a piece of the run on a GPU is told, and the records that pieces leave."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Record = dict[str, Any]
DONE, FAILED, LATE, CUT = "done", "failed", "late", "cut"
GPU, TOY = "gpu", "toy"
SCALES = (GPU, TOY)


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


@dataclass(frozen=True)
class Piece:
    """One measurement, in a process of its own.

    Attributes:
        key: its name, the same in each run.
        work: measures, and returns plain data.
        seconds: that it takes on a GPU, roughly; it is ended after twice as many.
        beside: whether others may run at the same time, as it measures no time.
    """

    key: str
    work: Callable[[Setting], Record]
    seconds: int
    beside: bool = False


def read_records(file: Path) -> list[Record]:
    """The records of a file, the last of each piece; a line that a killed run left half written is skipped."""
    found: dict[str, Record] = {}
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        # Behind those of other pieces, as it is newer.
        found.pop(record["key"], None)
        found[record["key"]] = record
    return list(found.values())


def add_record(file: Path, record: Record) -> None:
    """Write a record behind the others, at once."""
    torn = file.exists() and file.stat().st_size and not file.read_bytes().endswith(b"\n")
    with file.open("a") as lines:
        lines.write(("\n" if torn else "") + json.dumps(record) + "\n")
