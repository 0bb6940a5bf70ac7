"""The manifest: each field is checked, and one of another version is named."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

import repl_fx
from repl_fx.artifact.manifest import MANIFEST, File, Manifest, read_manifest
from repl_fx.sources import load_source
from repl_fx.tracing.parts.inputs import Inputs
from tests.artifact.edits import edit_manifest, set_value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("versions", 3, r"Expected `object`, got `int` - at `\$.versions`"),
        ("model/options/seed", "x", r"Expected `int`, got `str` - at `\$.model.options.seed`"),
        ("aliases/head.weight", 1, r"Expected `str`, got `int`"),
        ("surplus", 1, "unknown field `surplus`"),
        ("inputs/args/0/shape/0", -3, "no example input can be made like int64"),
        ("inputs/args/0/dtype", "save", "is of the dtype 'save'"),
        ("files/plan.json/at", "../plan.json", "lies at '../plan.json', outside the artifact"),
        ("files/plan.json/at", "/etc/passwd", "outside the artifact"),
        ("files/plan.json/at", "plan.json/..", "outside the artifact"),
        ("files/plan.json/at", "graph.txt", "outside the artifact"),
        ("aliases/head.weight", "nowhere", "head.weight should be nowhere, which is no tensor in it"),
        ("aliases/embed.weight", "embed.weight", "embed.weight should be embed.weight, which is a tensor in it, too"),
    ],
)
def test_a_manifest_that_lies(artifact: Path, path: str, value: Any, message: str) -> None:
    edit_manifest(artifact, set_value(path, value))
    with pytest.raises(repl_fx.ArtifactError, match=message):
        repl_fx.load(artifact, None if "inputs" not in path else load_source(str(artifact.parent / "net.py")).model)


def test_newer_schema(artifact: Path) -> None:
    manifest = json.loads((artifact / "manifest.json").read_text())
    (artifact / "manifest.json").write_text(json.dumps({**manifest, "schema": 99}))
    with pytest.raises(repl_fx.ArtifactError, match="has schema 99, this version reads 3"):
        repl_fx.load(artifact)


def test_a_manifest_is_read_as_it_was_written_or_not_at_all(tmp_path: Path) -> None:
    manifest = Manifest(
        versions={"torch": "2"},
        code="",
        model=None,
        parts=(),
        eager=(),
        inputs=Inputs(args=(), kwargs={}),
        aliases={"head.weight": "embed.weight"},
        parameters=3,
        files={"plan.json": File("plan.json", "0")},
    )
    (tmp_path / MANIFEST).write_text(manifest.to_json())
    assert read_manifest(tmp_path) == manifest
    (tmp_path / MANIFEST).write_text(manifest.to_json().replace('"parameters": 3', '"parameters": 4'))
    with pytest.raises(repl_fx.ArtifactError, match="was changed by hand"):
        read_manifest(tmp_path)


def test_a_directory_without_permission_is_refused_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", denied)
    with pytest.raises(repl_fx.ArtifactError, match=r"PermissionError: .*Permission denied"):
        read_manifest(tmp_path)
