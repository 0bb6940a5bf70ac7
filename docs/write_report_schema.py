"""Write the JSON schema of the documents of reports into docs/report.schema.json."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import msgspec

from repl_fx.reporting.model_graph.document import SCHEMA, Box, Document, Node, Route

FILE = Path(__file__).with_name("report.schema.json")


def json_schema() -> dict[str, Any]:
    """The schema of the document, in the dialect of 2020-12; places in rows have the names of their fields."""
    schema = msgspec.json.schema(Document)
    for known in schema["$defs"].values():
        if "description" in known:
            known["description"] = inspect.cleandoc(known["description"])
    for row in (Node, Box, Route):
        items = schema["$defs"][row.__name__]["prefixItems"]
        for item, name in zip(items, row.__struct_fields__, strict=True):
            item["title"] = name
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": SCHEMA, **schema}


def schema_text() -> str:
    """The schema as the text of `docs/report.schema.json`."""
    return json.dumps(json_schema(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(schema_text())
