"""Write the JSON schema of the documents of reports into docs/report.schema.json."""

from __future__ import annotations

from pathlib import Path

from repl_fx.reporting.model_graph.schema import schema_text

FILE = Path(__file__).with_name("report.schema.json")

if __name__ == "__main__":
    FILE.write_text(schema_text())
