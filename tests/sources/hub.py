"""A cache of the Hugging Face hub, filled by hand; nothing is asked of the network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Hub:
    """A cache.

    Attributes:
        place: its directory.
    """

    place: Path

    def add(self, name: str, commit: str) -> Path:
        """The directory for the files of a repository at a commit, which is that of its branch `main`."""
        folder = self.place / f"models--{name.replace('/', '--')}"
        snapshot = folder / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(commit)
        return snapshot
