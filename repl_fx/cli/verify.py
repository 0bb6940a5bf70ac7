"""`repl-fx verify`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from repl_fx.cli import common
from repl_fx.cli.flags import SpecFlags, Switch
from repl_fx.errors import BadInput, CaptureError, close_matches
from repl_fx.planning.settings import ModelSettings

if TYPE_CHECKING:
    from torch import nn

    from repl_fx.running.example_inputs import ExampleInputs


class VerifyFlags(SpecFlags, frozen=True, kw_only=True):
    """Flags of the command.

    Attributes:
        rtol: Relative tolerance; by default it depends on the precision.
        atol: Absolute tolerance, as a fraction of the size of the output.
        part: The part of DIR to compare; by default the one FILE is named for, or the model.
        batch: Batch sizes, such as 1,2,5; by default three of them.
        per_layer: Compare inner values too, layer by layer.
        with_cache: The file is a step of a decoder with its cache, as export --with-cache writes it.
    """

    rtol: float | None = None
    atol: float | None = None
    part: Annotated[str, "PATH"] | None = None
    batch: Annotated[str, "LIST"] | None = None
    per_layer: Switch = False
    with_cache: Switch = False


@common.command(VerifyFlags, ModelSettings, without=("fixed",))
def verify_command(
    terminal: common.Terminal,
    flags: VerifyFlags,
    spec: common.AnySpecArgument,
    onnx: Annotated[Path, common.argument("ONNX", "The ONNX file.")],
    **given: Any,
) -> None:
    """Compare an ONNX file with a model or a directory, per output and per layer; exit 1 when they differ.

    Examples:
        repl-fx verify out out/model.onnx --per-layer
        repl-fx verify model.py model.onnx --weights trained.safetensors
    """
    from repl_fx import capture, verify_onnx
    from repl_fx.artifact.exporting import digest_of, step_of
    from repl_fx.planning.written_options import parse_sizes
    from repl_fx.reporting.tables import layers_table, verification_table
    from repl_fx.tracing.capture import widen_batch

    batches = None if flags.batch is None else parse_sizes(flags.batch, "--batch")
    terminal.stage("load")
    settings = ModelSettings().changed(**given)
    target = common.load_target(spec, flags, settings)
    if not flags.with_cache:
        module, example, path = _subject(target, flags.part, onnx)
    elif target.artifact is None or flags.part is not None:
        raise BadInput("--with-cache compares the whole model of a directory; give DIR, and leave out --part")
    else:
        terminal.stage("capture a step")
        step = step_of(target.artifact)
        module, example, path = step.graph_module, step.inputs, step.path
    inputs = widen_batch(module, example)
    if flags.per_layer and target.artifact is None:
        terminal.stage("capture")
        module = capture(module, inputs.args, inputs.kwargs)
    terminal.stage("verify")
    asked = flags.some("rtol", "atol", "seed", "per_layer")
    result = verify_onnx(module, onnx, inputs.args, inputs.kwargs, batches=batches, **asked)
    terminal.show(*common.note_lines(target.notes))
    if result.layers:
        terminal.show(layers_table(result))
    terminal.show(verification_table(result))
    known = None if target.artifact is None else target.artifact.manifest.verified.get(path)
    is_exported = None if known is None else known == digest_of(onnx)
    if is_exported is not None:
        terminal.show(f"{onnx} is {'' if is_exported else 'not '}the file that export verified")
    notes = [*target.notes, *result.notes]
    terminal.document({"spec": spec, "onnx": str(onnx), "is_exported": is_exported, **result.to_json(), "notes": notes})
    common.show_verified(terminal, {"": result})


def _subject(target: common.Target, part: str | None, onnx: Path) -> tuple[nn.Module, ExampleInputs, str]:
    """The module to compare the file with, its inputs and its path: the model, or one part of an artifact.

    Of a model in parts, a file that has the name of none is of the whole model in evaluation mode.
    """
    if target.artifact is None or target.artifact.result.captured_parts.whole:
        if part is not None:
            raise BadInput("--part names a part of a model that was captured in parts; this one is whole, leave it out")
        return target.module, target.inputs, ""
    from repl_fx.export.evaluating import captured_in_evaluation

    parts = {found.path: found for found in target.artifact.result.parts}
    name = onnx.name.removesuffix(".onnx") if part is None else part
    if part is None and name not in parts:
        with suppress(CaptureError):
            whole = captured_in_evaluation(target.module, target.inputs)
            return whole.graph_module, whole.inputs, whole.path
    if name not in parts:
        close = close_matches(name, parts)
        raise BadInput(
            f"the model was captured in parts, and {name!r} is none{close}; say which with --part {'|'.join(parts)}"
        )
    return parts[name].graph_module, parts[name].inputs, name
