"""Paths in commands that a message tells to type."""

from __future__ import annotations

import os
import shlex


def typed(path: str | os.PathLike[str]) -> str:
    """A path as it is typed in a shell: quoted where it has to be, and no flag where it begins with a dash."""
    words = os.fspath(path)
    return shlex.quote(f"./{words}" if words.startswith("-") else words)
