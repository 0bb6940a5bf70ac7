"""The manifest of an artifact: what it is made of, by a schema that each field is checked against."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from repl_fx.errors import ArtifactError, one_line
from repl_fx.tracing.parts.origin import Described, Strict

SCHEMA = 3
KIND = "repl-fx artifact"
MANIFEST = "manifest.json"
# Where files lie that are on their way into an artifact.
UNSETTLED = ".repl-fx-"


class File(Strict, frozen=True):
    """A file of an artifact.

    Attributes:
        at: where it lies, from the artifact's directory: under its own name, or on its way there.
    """

    at: str
    sha256: str


class Manifest(Described, frozen=True, kw_only=True):
    """All that `manifest.json` says, but for its own hash.

    Attributes:
        versions: of the packages that have a say in the graph.
        aliases: other names of tied tensors, and the name under which each is in the weights.
        gone: files of what was there before, which have not been removed yet.
        verified: by the path of its part, the digest of each ONNX file that export found equivalent, wherever it was
            written; see `repl_fx.artifact.exporting.digest_of`.
    """

    schema: int = SCHEMA
    kind: str = KIND
    versions: dict[str, str]
    aliases: dict[str, str]
    parameters: int
    files: dict[str, File] = msgspec.field(default_factory=dict)
    gone: tuple[File, ...] = ()
    verified: dict[str, str] = msgspec.field(default_factory=dict)

    def to_json(self) -> str:
        """The text of the file, which holds a hash of all the rest of it."""
        return sealed(msgspec.to_builtins(self))


def read_manifest(directory: str | Path) -> Manifest:
    """Read `manifest.json`, of which an `ArtifactError` says why it is not that of an artifact of this version."""
    directory = Path(directory)
    file = directory / MANIFEST
    if not directory.is_dir():
        raise ArtifactError(f"{directory} is no directory; give the directory a transform wrote")
    try:
        if not file.is_file():
            raise ArtifactError(
                f"{directory} is no artifact: it has no {MANIFEST}; give the directory a transform wrote"
            )
        data = json.loads(file.read_bytes().decode())
    except (OSError, ValueError, RecursionError) as problem:
        raise ArtifactError(f"{file} is damaged or of another program: {one_line(problem)}") from problem
    if not isinstance(data, dict) or "kind" not in data or "schema" not in data:
        raise ArtifactError(f"{file} is of another program, or damaged: it names no kind and schema of an artifact")
    if data["kind"] != KIND:
        raise ArtifactError(f"{directory} was written by another program ({_short(data['kind'])})")
    if data["schema"] != SCHEMA:
        found = _short(data["schema"])
        raise ArtifactError(f"{directory} has schema {found}, this version reads {SCHEMA}; install a matching repl-fx")
    if data.pop("sha256", None) != _hash(data):
        raise ArtifactError(
            f"{file} is damaged or was changed by hand: it is not as it was written; copy the directory again, or "
            "transform the model again (a plan.json of your own goes with --plan)"
        )
    try:
        manifest = msgspec.convert(data, Manifest)
    except (msgspec.ValidationError, RecursionError) as problem:
        raise ArtifactError(f"{file} is damaged: {one_line(problem)}") from problem
    for name, entry in manifest.files.items():
        _require_inside(file, name, entry.at)
    for entry in manifest.gone:
        _require_inside(file, entry.at, entry.at)
    return manifest


def sealed(data: Mapping[str, Any]) -> str:
    """The text of a manifest's file, with a hash of its data."""
    return json.dumps({**data, "sha256": _hash(data)}, indent=2) + "\n"


def _hash(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _require_inside(manifest: Path, name: str, at: str) -> None:
    """Refuse a file that does not lie in its artifact, under its own name or in a directory of files on their way."""
    *folders, last = PurePosixPath(at).parts or ("",)
    settled = not folders and last == at
    on_its_way = len(folders) == 1 and folders[0].startswith(UNSETTLED) and f"{folders[0]}/{last}" == at
    if not (settled or on_its_way) or last != name.rpartition("/")[2] or last in ("", ".", "..") or "\\" in at:
        raise ArtifactError(f"{manifest} is damaged: the file {name!r} lies at {at!r}, outside the artifact")


def _short(value: object) -> str:
    """A value of a file of others, which may be anything."""
    text = " ".join(str(value).split())
    return text if len(text) <= 40 else f"{text[:40]}…"
