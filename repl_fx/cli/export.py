"""`repl-fx export`."""

from __future__ import annotations

from repl_fx.cli import common
from repl_fx.cli.flags import ArtifactFlags, File, Switch
from repl_fx.errors import BadInput


class ExportFlags(ArtifactFlags, frozen=True, kw_only=True):
    """Flags of the command.

    Attributes:
        output: The file to write.  [default: DIR/model.onnx, or DIR/PART.onnx]
        opset: Version of the ONNX operator set; the exporter's own by default.
        verify: Prove that ONNX Runtime computes what PyTorch computes.
        per_layer: Compare inner values too, layer by layer; `repl-fx report` draws them.
        with_cache: Write a step of a decoder of transformers, with its cache as inputs and outputs.
        force: Replace the FILE of -o if it exists.
    """

    output: File | None = None
    opset: int | None = None
    verify: bool = True
    per_layer: Switch = False
    with_cache: Switch = False
    force: Switch = False


@common.command(ExportFlags)
def export_command(terminal: common.Terminal, flags: ExportFlags, directory: common.DirectoryArgument) -> None:
    """Fold the surrogates, write the model as ONNX, and verify the file; the result goes to DIR/verify.json.

    A model that was captured in parts is written as it computes in evaluation mode. Where that is no graph either,
    each rewritten part is written, as DIR/PART.onnx; the code around the parts has no ONNX form.

    Examples:
        repl-fx export out
        repl-fx export out -o model.onnx --opset 20
    """
    from repl_fx.artifact import load_artifact
    from repl_fx.artifact.exporting import export_artifact, keeps_proof
    from repl_fx.reporting.tables import verification_table

    if flags.per_layer and not flags.verify:
        raise BadInput("--per-layer compares, and --no-verify compares nothing; leave one out")
    if flags.output is not None:
        common.require_free_file(flags.output, force=flags.force, read=directory)
    terminal.stage("load")
    artifact = load_artifact(directory, flags.model, trust_remote_code=flags.trust_remote_code)
    asked = flags.some("opset", "verify", "per_layer", "with_cache")
    found = export_artifact(artifact, flags.output, **asked)
    whole = "" in found
    if not whole:
        terminal.show("captured in parts: each rewritten part is a file; the code around them has no ONNX form")
    elif not artifact.result.captured_parts.whole and not flags.with_cache:
        terminal.show("captured in parts: the file is of evaluation mode, in which the model is one graph")
    results = {path: one.verification for path, one in found.items() if one.verification is not None}
    terminal.show(*(verification_table(result, path) for path, result in results.items()))
    terminal.show(*(f"written: {one.file}" for one in found.values()))
    if flags.verify and not keeps_proof(artifact, flags.output):
        terminal.show(f"{directory} cannot be written, and keeps no verify.json")
    documents = {path: one.to_json() for path, one in found.items()}
    document = documents[""] if whole else {"parts": [{"path": path, **d} for path, d in documents.items()]}
    terminal.document({"directory": str(directory), **document})
    common.show_verified(terminal, results)
    if not flags.verify:
        terminal.show("not verified")
