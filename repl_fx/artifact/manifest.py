"""The manifest of an artifact: what it is made of, by a schema that each field is checked against."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from repl_fx.artifact.inputs import Inputs
from repl_fx.errors import ArtifactError, one_line
from repl_fx.tracing.parts.search import Eager

SCHEMA = 3
KIND = "repl-fx artifact"
MANIFEST = "manifest.json"
# The config of a model of transformers, which `save_pretrained` writes beside the manifest.
CONFIG = "config.json"
# Where files lie that are on their way into an artifact.
UNSETTLED = ".repl-fx-"


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a manifest; a field that it does not know is an error."""


class File(_Strict, frozen=True):
    """A file of an artifact.

    Attributes:
        at: where it lies, from the artifact's directory: under its own name, or on its way there.
    """

    at: str
    sha256: str


class Options(_Strict, frozen=True):
    """Keyword arguments of `load_source`."""

    input_shape: str | None
    seed: int
    options: dict[str, Any]


class Weights(_Strict, frozen=True):
    """The weights that a model had when it was transformed; an artifact does not hold those of replaced blocks.

    Attributes:
        file: the file or directory they were loaded from; None for those that the specification alone leads to.
        sha256: see `repl_fx.checkpoints.digest`; empty for weights without values.
    """

    file: str | None
    sha256: str


class Model(_Strict, frozen=True, rename={"kind": "class"}):
    """How the source model is built.

    Attributes:
        spec: see `repl_fx.sources`; the path of a file is absolute, but for that of the config beside the manifest.
        options: the other arguments of `load_source`.
        kind: name of its class.
        files: the files that it was made from, each with the SHA-256 of what was read.
        weights: those of the model before; None where they are not known.
    """

    spec: str
    options: Options
    kind: str
    files: dict[str, str]
    weights: Weights | None = None

    @property
    def is_beside(self) -> bool:
        """Whether the model is built from the config beside the manifest alone, which is no code."""
        return self.spec == f"hf:{CONFIG}:{self.kind}" and self.files.keys() == {CONFIG}


class Captured(_Strict, frozen=True, rename={"kind": "class"}):
    """A captured part that holds what was replaced.

    Attributes:
        path: of the module; empty where the whole model is one graph.
        kind: name of its class.
        dynamic: for each tensor argument, the dimensions that stayed dynamic.
        refused_sizes: the conditions under which the graph takes inputs of other sizes.
    """

    path: str
    kind: str
    tracer: str
    dynamic: dict[str, tuple[int, ...]]
    inputs: Inputs
    refused_sizes: tuple[str, ...]


class Manifest(_Strict, frozen=True, kw_only=True):
    """All that `manifest.json` says, but for its own hash.

    Attributes:
        versions: of the packages that have a say in the graph.
        code: hash of the code of the user's own classes in the model.
        model: how the source is built; None where it was given in Python.
        parts: the captured parts that hold what was replaced.
        eager: modules that were tried and are no parts.
        fixed: names of the dimensions of inputs that stay as in the example, because they were asked to.
        in_place: whether the artifact holds the model in place, under the names of whose tensors the weights are.
        checkpoint_blocks: whether the model in place computes its kept blocks again in the backward pass.
        aliases: other names of tied tensors, and the name under which each is in the weights.
        gone: files of what was there before, which have not been removed yet.
        verified: by the path of its part, the digest of each ONNX file that export found equivalent, wherever it was
            written; see `repl_fx.artifact.exporting.digest_of`.
    """

    schema: int = SCHEMA
    kind: str = KIND
    versions: dict[str, str]
    code: str
    model: Model | None
    parts: tuple[Captured, ...]
    eager: tuple[Eager, ...]
    inputs: Inputs
    fixed: tuple[str, ...] = ()
    in_place: bool = False
    checkpoint_blocks: bool = False
    aliases: dict[str, str]
    parameters: int
    files: dict[str, File] = {}
    gone: tuple[File, ...] = ()
    verified: dict[str, str] = {}

    def to_json(self) -> str:
        """The text of the file, which holds a hash of all the rest of it."""
        return sealed(msgspec.to_builtins(self))


def read_manifest(directory: str | Path) -> Manifest:
    """Read `manifest.json`, of which an `ArtifactError` says why it is not that of an artifact of this version."""
    directory = Path(directory)
    file = directory / MANIFEST
    if not directory.is_dir():
        raise ArtifactError(f"{directory} is no directory; give the directory a transform wrote")
    if not file.is_file():
        raise ArtifactError(f"{directory} is no artifact: it has no {MANIFEST}; give the directory a transform wrote")
    try:
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
