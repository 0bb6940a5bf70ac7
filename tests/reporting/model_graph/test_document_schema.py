"""The JSON schema of the document: current, and kept to by documents."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from tests.model_graphs import small_document

DOCS = Path(__file__).parents[3] / "docs"
FILE = DOCS / "report.schema.json"
_WRITER = runpy.run_path(str(DOCS / "write_report_schema.py"))
json_schema, schema_text = _WRITER["json_schema"], _WRITER["schema_text"]


def test_the_schema_in_the_documents_is_current() -> None:
    assert FILE.read_text() == schema_text(), "run python docs/write_report_schema.py"


def test_rows_name_their_places() -> None:
    rows = json_schema()["$defs"]
    assert [item["title"] for item in rows["Box"]["prefixItems"]] == ["x", "y", "width", "height"]
    assert [item["title"] for item in rows["Node"]["prefixItems"]][:3] == ["name", "label", "kind"]


def test_documents_keep_to_it() -> None:
    jsonschema: Any = pytest.importorskip("jsonschema", reason="jsonschema, which altair brings, is not installed")
    validator = jsonschema.Draft202012Validator(json_schema())
    document = json.loads(small_document().to_json())
    validator.validate(document)
    document["views"]["before"]["graphs"][0]["nodes"][0][2] = "lair"
    assert [error.message for error in validator.iter_errors(document)]
