"""`repl-fx export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from repl_fx.cli import common
from repl_fx.cli.completion import complete_artifact
from repl_fx.cli.group import CheckFailed


def export_command(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="A directory that transform wrote.",
            show_default=False,
            autocompletion=complete_artifact,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="The file to write.  [default: DIR/model.onnx, or DIR/PART.onnx]"
        ),
    ] = None,
    opset: Annotated[
        int | None, typer.Option("--opset", help="Version of the ONNX operator set; the exporter's own by default.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Prove that ONNX Runtime computes what PyTorch computes.")
    ] = True,
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="Compare inner values too, layer by layer; `repl-fx report` draws them.")
    ] = False,
    with_cache: Annotated[
        bool,
        typer.Option(
            "--with-cache", help="Write a step of a decoder of transformers, with its cache as inputs and outputs."
        ),
    ] = False,
    model: common.ModelOption = None,
    trust: common.TrustOption = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the FILE of -o if it exists.")] = False,
    as_json: common.JsonOption = False,
    verbose: common.VerboseOption = False,
    quiet: common.QuietOption = False,
) -> None:
    """Fold the surrogates, write the model as ONNX, and verify the file; the result goes to DIR/verify.json.

    Of a model that was captured in parts, each rewritten part is written, as DIR/PART.onnx; the code around the parts
    has no ONNX form.
    """
    with common.running(as_json, verbose, quiet) as terminal:
        from repl_fx.artifact import load_artifact
        from repl_fx.artifact.exporting import export_artifact
        from repl_fx.errors import BadInput
        from repl_fx.report.tables import verification_table

        if per_layer and not verify:
            raise BadInput("--per-layer compares, and --no-verify compares nothing; leave one out")
        if output is not None:
            common.require_free_file(output, force=force)
        terminal.stage("load")
        artifact = load_artifact(directory, model, trust_remote_code=trust)
        whole = artifact.result.captured_parts.whole or with_cache
        if not whole:
            terminal.show(
                "captured in parts: each rewritten part becomes a file; the code around them has no ONNX form"
            )
        found = export_artifact(
            artifact,
            output,
            opset=opset,
            verify=verify,
            per_layer=per_layer,
            with_cache=with_cache,
            progress=terminal.stage,
        )
        results = {path: one.verification for path, one in found.items() if one.verification is not None}
        terminal.show(*map(verification_table, results.values()))
        terminal.show(*(f"written: {one.file}" for one in found.values()))
        documents = {path: one.to_json() for path, one in found.items()}
        document = documents[""] if whole else {"parts": [{"path": path, **d} for path, d in documents.items()]}
        terminal.document({"directory": str(directory), **document})
        summaries = {path: f"{path}: {result.summary()}".removeprefix(": ") for path, result in results.items()}
        for path, result in results.items():
            if not result:
                raise CheckFailed(summaries[path])
        terminal.show(*summaries.values())
        if not verify:
            terminal.show("not verified")
