"""`repl-fx export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from repl_fx.cli.common import JsonOption, QuietOption, VerboseOption, running, write_text
from repl_fx.cli.group import CheckFailed


def export_command(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A directory that transform wrote.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="The file to write.  [default: DIR/model.onnx]"),
    ] = None,
    opset: Annotated[
        int | None, typer.Option("--opset", help="Version of the ONNX operator set; the exporter's own by default.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Prove that ONNX Runtime computes what PyTorch computes.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace the FILE of -o if it exists.")] = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Fold the surrogates, write the model as ONNX, and verify the file; the result goes to DIR/verify.json."""
    with running(as_json, verbose, quiet) as terminal:
        from repl_fx import export_onnx, verify_onnx
        from repl_fx.artifact import load_artifact
        from repl_fx.errors import OutputError
        from repl_fx.report import verification_table

        if output is not None and output.exists() and not force:
            raise OutputError(f"{output} exists; choose another place with -o, or replace it with --force")
        terminal.stage("load")
        artifact = load_artifact(directory)
        target = directory / "model.onnx" if output is None else output
        proof = directory / "verify.json"
        # What it says is about the file before.
        proof.unlink(missing_ok=True)
        terminal.stage("export")
        export_onnx(artifact.graph_module, target, artifact.args, artifact.kwargs, opset=opset)
        document = {"directory": str(directory), "onnx": str(target), "bytes": _bytes_of(target), "verification": None}
        result = None
        if verify:
            terminal.stage("verify")
            result = verify_onnx(artifact.graph_module, target, artifact.args, artifact.kwargs)
            document["verification"] = result.to_json()
            write_text(proof, json.dumps(result.to_json(), indent=2) + "\n")
            terminal.show(verification_table(result))
        terminal.show(f"written: {target}")
        terminal.document(document)
        if result is not None and not result:
            raise CheckFailed(result.summary())
        terminal.show("not verified" if result is None else result.summary())


def _bytes_of(file: Path) -> int:
    """Size of an ONNX file with the external data beside it."""
    data = file.with_name(f"{file.name}.data")
    return file.stat().st_size + (data.stat().st_size if data.exists() else 0)
