"""Packages as pip lays them out, in a folder of the path."""

from __future__ import annotations

import json
from pathlib import Path


def install(
    place: Path, name: str, version: str, code: str | None = "", *, lines: tuple[str, ...] = (), origin: object = None
) -> None:
    """Put a package with one module of its name there.

    Args:
        code: of the module; None for a package that brings none.
        lines: of its metadata, such as Requires-Dist.
        origin: what direct_url.json says.
    """
    module = name.replace("-", "_")
    info = place / f"{module}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines, ""])
    )
    if origin is not None:
        (info / "direct_url.json").write_text(json.dumps(origin))
    if code is not None:
        (place / f"{module}.py").write_text(code)
        (info / "RECORD").write_text(f"{module}.py,,\n{info.name}/METADATA,,\n")
