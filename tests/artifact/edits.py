"""Copies of an artifact, and changes to one that its hashes do not notice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from repl_fx.artifact.manifest import MANIFEST, sealed
from repl_fx.sources.source import hash_file


def edit_manifest(directory: Path, edit: Callable[[str], str]) -> None:
    """Change the text of a manifest, and seal it again."""
    file = directory / MANIFEST
    data = json.loads(edit(file.read_text()))
    del data["sha256"]
    for name, entry in data["files"].items():
        if (directory / name).is_file():
            entry["sha256"] = hash_file(directory / name)
    file.write_text(sealed(data))


def copy_artifact(made: Path, to: Path) -> Path:
    """Copy `made/artifact` and what lies beside it; the model file that the copy names is the copied one."""
    shutil.copytree(made, to, dirs_exist_ok=True)
    edit_manifest(to / "artifact", lambda text: text.replace(str(made), str(to)))
    return to / "artifact"


def set_value(path: str, value: Any) -> Callable[[str], str]:
    """An edit of a manifest: the value at a path of keys and numbers."""

    def edit(text: str) -> str:
        data = json.loads(text)
        *steps, last = (int(step) if step.isdecimal() else step for step in path.split("/"))
        inner = data
        for step in steps:
            inner = inner[step]
        inner[last] = value
        return json.dumps(data)

    return edit
