"""`repl-fx export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from repl_fx.cli import common
from repl_fx.cli.group import CheckFailed

if TYPE_CHECKING:
    from repl_fx.artifact.store import Artifact
    from repl_fx.export import Verification
    from repl_fx.tracing.parts.capture import Part


def export_command(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A directory that transform wrote.", show_default=False)
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
        from repl_fx import export_onnx, verify_onnx
        from repl_fx.artifact import BENCH, CHART, PROOF, changing, load_artifact
        from repl_fx.errors import BadInput
        from repl_fx.export import onnx_name
        from repl_fx.report.tables import verification_table
        from repl_fx.tracing.capture import widen_batch

        if output is not None:
            common.require_free_file(output, force=force)
        terminal.stage("load")
        artifact = load_artifact(directory, model, trust_remote_code=trust)
        parts, whole = artifact.result.parts, artifact.result.captured_parts.whole
        if with_cache:
            terminal.stage("capture a step")
            parts, whole = (_step(artifact),), True
        if output is not None and not whole:
            paths = ", ".join(part.path for part in parts)
            raise BadInput(f"{directory} was captured in parts ({paths}) and gives a file for each; leave out -o")
        if not whole:
            terminal.show(
                "captured in parts: each rewritten part becomes a file; the code around them has no ONNX form"
            )
        names = {part.path: onnx_name(part.path) for part in parts}
        documents: dict[str, dict[str, Any]] = {}
        results: dict[str, Verification] = {}
        with changing(directory) as change:
            change.require_own([PROOF] if output else [PROOF, *names.values()])
            for part in parts:
                # Files that the artifact had stay until all is written that takes their place.
                written = output or change.place / names[part.path]
                inputs = widen_batch(part.graph_module, part.inputs)
                terminal.stage(f"export {part.path}".rstrip())
                export_onnx(part.graph_module, written, inputs.args, inputs.kwargs, opset=opset)
                target = output or directory / names[part.path]
                documents[part.path] = {"onnx": str(target), "bytes": _bytes_of(written), "verification": None}
                if verify:
                    terminal.stage(f"verify {part.path}".rstrip())
                    result = results[part.path] = verify_onnx(part.graph_module, written, inputs.args, inputs.kwargs)
                    documents[part.path]["verification"] = result.to_json()
                    terminal.show(verification_table(result))
            if verify:
                found = {path: document["verification"] for path, document in documents.items()}
                proof = found[""] if whole else {"parts": found}
                (change.place / PROOF).write_text(json.dumps(proof, indent=2) + "\n")
            terminal.stage("save")
            # A proof is about the file that was written last; the ONNX files before go with the new ones alone.
            exported = () if output is None else artifact.manifest.files.keys() - {PROOF}
            change.commit(artifact.manifest, keep={*artifact.own_files, BENCH, CHART, *exported})
        terminal.show(*(f"written: {document['onnx']}" for document in documents.values()))
        document = documents[""] if whole else {"parts": [{"path": path, **d} for path, d in documents.items()]}
        terminal.document({"directory": str(directory), **document})
        summaries = {path: f"{path}: {result.summary()}".removeprefix(": ") for path, result in results.items()}
        for path, result in results.items():
            if not result:
                raise CheckFailed(summaries[path])
        terminal.show(*summaries.values())
        if not verify:
            terminal.show("not verified")


def _step(artifact: Artifact) -> Part:
    """A step of a decoder with its cache."""
    from repl_fx import CachedDecoder, capture
    from repl_fx.errors import BadInput
    from repl_fx.running.example_inputs import ExampleInputs
    from repl_fx.tracing.parts.capture import Part

    given = artifact.result.inputs
    ids = given.kwargs.get("input_ids", given.args[0] if given.args else None)
    if ids is None:
        raise BadInput(
            f"{artifact.directory} has no input_ids among its example inputs, and --with-cache begins with them"
        )
    decoder = CachedDecoder(artifact.model)
    inputs = ExampleInputs(decoder.inputs(ids))
    return Part("", capture(decoder, inputs.args), inputs)


def _bytes_of(file: Path) -> int:
    """Size of an ONNX file with the external data beside it."""
    data = file.with_name(f"{file.name}.data")
    return file.stat().st_size + (data.stat().st_size if data.exists() else 0)
