"""Changes to an artifact that its hashes do not notice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

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
