"""The ONNX files of an artifact, and the proof of them: all of them at one moment, or none."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import onnx_ir as ir

from repl_fx.artifact.changing import DirectoryChange, changing
from repl_fx.artifact.places import BENCH, CHART, PROOF
from repl_fx.artifact.store import Artifact
from repl_fx.display.progress import stage
from repl_fx.errors import BadInput, CaptureError
from repl_fx.export import CachedDecoder, Verification, onnx_name
from repl_fx.export.evaluating import captured_in_evaluation
from repl_fx.export.onnx_model import export_program, write_program
from repl_fx.export.verifying import verify_file
from repl_fx.export.weights import read_model
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.sources.source import hash_file
from repl_fx.tracing.capture import widen_batch
from repl_fx.tracing.parts.capture_parts import Part


@dataclass(frozen=True)
class OnnxFile:
    """One ONNX file.

    Attributes:
        file: where it lies.
        bytes: its size, with the external data beside it.
        verification: the comparison with PyTorch; None where none was asked for.
    """

    file: Path
    bytes: int
    verification: Verification | None

    def to_json(self) -> dict[str, Any]:
        """A document."""
        proof = None if self.verification is None else self.verification.to_json()
        return {"onnx": str(self.file), "bytes": self.bytes, "verification": proof}


def export_artifact(
    artifact: Artifact,
    output: Path | None = None,
    *,
    opset: int | None = None,
    verify: bool = True,
    per_layer: bool = False,
    with_cache: bool = False,
) -> dict[str, OnnxFile]:
    """Write the model of an artifact as ONNX, its surrogates folded, and verify the file.

    A model in parts that is no graph in evaluation mode, either, gives a file for each part that was rewritten.

    The result of the verification goes into the artifact, as verify.json, whether it is good or bad; of a file that was
    found equivalent the manifest keeps the digest. One that cannot be written (`keeps_proof`) stays as it is.

    Args:
        output: the file to write; by default the artifact gets `model.onnx`, or one named for each part.
        opset: version of the operator set; the exporter's own by default.
        verify: whether to compare the files with PyTorch.
        per_layer: whether to compare inner values, too.
        with_cache: write a step of a decoder of transformers, with its cache as inputs and outputs.

    Returns:
        The files, by the path of their part, which is empty for that of the whole model.

    Raises:
        BadInput: one file for a model that gives several, or a cache where no decoder is.
        ExportError, OutputError: see `export_onnx`.
    """
    directory, parts = artifact.directory, _parts(artifact, with_cache)
    whole = [part.path for part in parts] == [""]
    if output is not None and not whole:
        paths = ", ".join(part.path for part in parts)
        raise BadInput(f"{directory} was captured in parts ({paths}) and gives a file for each; leave out -o")
    names = {part.path: onnx_name(part.path) for part in parts}
    found: dict[str, OnnxFile] = {}
    digests: dict[str, str] = {}
    kept = keeps_proof(artifact, output)
    with changing(directory) if kept else _nothing_kept(directory) as change:
        manifest = artifact.manifest_now()
        change.require_own([PROOF] if output else [PROOF, *names.values()])
        for part in parts:
            # Files that the artifact had stay until all is written that takes their place.
            written = output or change.place / names[part.path]
            inputs = widen_batch(part.graph_module, part.inputs)
            stage(f"export {part.path}".rstrip())
            program = export_program(part.graph_module, inputs, opset)
            write_program(program, written)
            proof = None
            if verify:
                stage(f"verify {part.path}".rstrip())
                proof = verify_file(part.graph_module, written, inputs, per_layer=per_layer, fresh=program.model)
                if proof:
                    digests[part.path] = digest_of(written)
            found[part.path] = OnnxFile(output or directory / names[part.path], _bytes_of(written), proof)
        if verify:
            proofs = {path: one.to_json()["verification"] for path, one in found.items()}
            document = proofs[""] if whole else {"parts": proofs}
            (change.place / PROOF).write_text(json.dumps(document, indent=2) + "\n")
        if not kept:
            return found
        stage("save")
        # A proof is about the file that was written last; the ONNX files before go with the new ones alone.
        exported = () if output is None else manifest.files.keys() - {PROOF}
        manifest = msgspec.structs.replace(manifest, verified=digests)
        change.commit(manifest, keep={*artifact.own_files, BENCH, CHART, *exported})
    return found


def keeps_proof(artifact: Artifact, output: Path | None) -> bool:
    """Tell whether the artifact gets the proof of a file: one that nobody can write does not, of a file elsewhere."""
    return output is None or os.access(artifact.directory, os.W_OK)


@contextmanager
def _nothing_kept(directory: Path) -> Iterator[DirectoryChange]:
    """A change of an artifact that it gets nothing of."""
    with TemporaryDirectory() as place:
        yield DirectoryChange(directory, Path(place))


def digest_of(file: Path) -> str:
    """SHA-256 of an ONNX file, together with the external data that it names."""
    tensors = (value.const_value for value in read_model(file).graph.initializers.values())
    data = {file.parent / tensor.location for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
    return hashlib.sha256("".join(map(hash_file, (file, *sorted(data)))).encode()).hexdigest()


def _parts(artifact: Artifact, with_cache: bool) -> tuple[Part, ...]:
    """The graphs to write: of the whole model, where it has one, else of the parts that were rewritten."""
    if with_cache:
        stage("capture a step")
        return (step_of(artifact),)
    if not artifact.result.captured_parts.whole:
        stage("capture in evaluation mode")
        with suppress(CaptureError):
            return (captured_in_evaluation(artifact.module, artifact.inputs),)
    return artifact.result.parts


def step_of(artifact: Artifact) -> Part:
    """A step of a decoder of transformers, with its cache as inputs and outputs.

    Raises:
        BadInput: the model of the artifact is no such decoder.
    """
    given = artifact.result.inputs
    ids = given.kwargs.get("input_ids", given.args[0] if given.args else None)
    if ids is None:
        raise BadInput(
            f"{artifact.directory} has no input_ids among its example inputs, and --with-cache begins with them"
        )
    decoder = CachedDecoder(artifact.model)
    return captured_in_evaluation(decoder, ExampleInputs(decoder.inputs(ids)))


def _bytes_of(file: Path) -> int:
    """Size of an ONNX file with the external data beside it."""
    data = file.with_name(f"{file.name}.data")
    return file.stat().st_size + (data.stat().st_size if data.exists() else 0)
