"""Prove that an ONNX file computes what a module computes: ONNX Runtime against PyTorch, on the CPU."""

from __future__ import annotations

import copy
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, fx, nn

from repl_fx.errors import BadInput, ExportError, ReplFxError
from repl_fx.export.onnx_model import export_onnx, first_line, quiet
from repl_fx.export.tensors import FlatInputs, batch_size, evaluating, flatten_inputs, name_outputs


@dataclass(frozen=True)
class Tolerance:
    """How far two numbers may lie apart: |onnx - torch| <= atol * scale + rtol * |torch|.

    Attributes:
        rtol: relative to each number.
        atol: relative to the scale of its output (see `_scale`): a sum that cancels to nearly 0 keeps the rounding of
            its terms, so the error of a small number goes with the size of its neighbours, not with its own.
    """

    rtol: float
    atol: float


# Ten times the largest difference measured, as a fraction of the output's scale, at three batch sizes each, with random
# weights: ResNet-18/50/152, ViT of 12 and 24 layers, MobileNetV3, EfficientNet-B2, ConvNeXt, BERT, GPT-2, Llama and T5
# in float32; linear layers in float64, as ONNX Runtime has little more of it on the CPU; ResNet-18 and ViT in float16.
#     float64 1.2e-15    float32 1.4e-6    float16 1.6e-3
# Both runtimes sum in the same precision but in another order, so a difference is some tens of roundings and grows
# slowly with depth; the relative part only allows for the last rounding. Integers and bools have none and must be
# equal. ONNX Runtime has no bfloat16 on the CPU.
TOLERANCES: Mapping[torch.dtype, Tolerance] = {
    torch.float64: Tolerance(rtol=1e-15, atol=1.5e-14),
    torch.float32: Tolerance(rtol=1e-6, atol=1.5e-5),
    torch.float16: Tolerance(rtol=1e-3, atol=1.5e-2),
}

# Further from the middle of an output than this, a number is a mask's fill value (-1e9), not a size that says how large
# the rounding of the others may be.
_FILL_FACTOR = 1e3

# More rows than this say no more about where a difference begins, and every one is an output of the diagnostic export.
_MAX_LAYERS = 256


@dataclass(frozen=True)
class Difference:
    """One output at one batch size: how far ONNX Runtime is from PyTorch.

    Attributes:
        output: name of the output.
        batch: batch size of the inputs.
        dtype: of the output, such as "float32".
        count: how many numbers were compared.
        max_abs, mean_abs, median_abs: of |onnx - torch| over all numbers that are finite in both; inf when none is.
        max_rel: largest |onnx - torch| / |torch|, where |torch| counts as no less than a thousandth of `scale`.
        scale: size of the numbers in the PyTorch output; the absolute tolerance is a fraction of it.
        cosine: of the two outputs as vectors; 1.0 for two zero vectors.
        top1_agreement: share of rows (last dimension) with the same largest entry, ties within the tolerance counted as
            the same; None where there are no classes to choose from.
        finite_torch, finite_onnx: whether all numbers are; equal infinities pass, NaN never does.
        rtol, atol: the tolerance applied, `atol` as a fraction of `scale`; both 0 for integers and bools.
        passed: whether every number is within the tolerance.
    """

    output: str
    batch: int
    dtype: str
    count: int
    max_abs: float
    mean_abs: float
    median_abs: float
    max_rel: float
    scale: float
    cosine: float
    top1_agreement: float | None
    finite_torch: bool
    finite_onnx: bool
    rtol: float
    atol: float
    passed: bool

    def __str__(self) -> str:
        verdict = "equal" if self.passed else "DIFFERS"
        finite = "" if self.finite_torch and self.finite_onnx else ", not all finite"
        return (
            f"{self.output} at batch {self.batch}: {verdict}, max |difference| {self.max_abs:.2e} "
            f"at scale {self.scale:.2e}, cosine {self.cosine:.8f}{finite}"
        )


@dataclass(frozen=True)
class LayerDifference:
    """One inner value of the graph.

    Attributes:
        node: name of the node in the graph.
        module: path of the module it calls; empty for an operator.
        difference: as for an output; `output` is the node's name.
    """

    node: str
    module: str
    difference: Difference

    @property
    def passed(self) -> bool:
        """Whether every number is within the tolerance."""
        return self.difference.passed


@dataclass(frozen=True)
class Verification:
    """What was compared, how, and with what result; true when the file is equivalent to the module.

    Attributes:
        rows: one for each output and batch size.
        layers: one for each inner value, in the order of execution; empty unless asked for.
        settings: runtime, versions, seed and batch sizes: what is needed to repeat the comparison.
        skipped: what could not be compared, with the reason: outputs that are no tensors, batch sizes the file or the
            module itself does not take.
        failures: what is wrong besides numbers: a missing output, another shape or type, a run that ONNX Runtime
            refuses.
        notes: what the comparison of layers and weights found out about a mismatch.
    """

    rows: tuple[Difference, ...]
    layers: tuple[LayerDifference, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        # A comparison of nothing proves nothing.
        compared = any(row.count for row in self.rows)
        return compared and not self.failures and all(row.passed for row in self.rows)

    @property
    def first_difference(self) -> LayerDifference | None:
        """The first layer, in the order of execution, that differs."""
        return next((layer for layer in self.layers if not layer.passed), None)

    def summary(self) -> str:
        """Return the verdict in one line: the worst row, and where the difference begins if that is known."""
        skipped = f"; {len(self.skipped)} skipped" if self.skipped else ""
        if self:
            worst = max(self.rows, key=_badness)
            batches = ", ".join(str(batch) for batch in sorted({row.batch for row in self.rows}))
            outputs = len({row.output for row in self.rows})
            return (
                f"equivalent: {outputs} output{'s' * (outputs != 1)} at batch {batches}; "
                f"max |difference| {worst.max_abs:.2e} at scale {worst.scale:.2e} ({worst.output}){skipped}"
            )
        if self.failures:
            reason = self.failures[0]
        elif not any(row.count for row in self.rows):
            reason = "; ".join(f"{name}: {why}" for name, why in self.skipped.items()) or "no output has any number"
            return f"not equivalent: nothing was compared ({reason})"
        else:
            reason = str(max((row for row in self.rows if not row.passed), key=_badness))
        layer = self.first_difference
        where = f"; begins at {layer.module or layer.node}" if layer else "".join(f"; {note}" for note in self.notes)
        return f"not equivalent: {reason}{where}{skipped}"

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data; numbers that JSON cannot write (inf, nan) become strings."""
        plain: dict[str, Any] = _plain(
            {
                "equivalent": bool(self),
                "summary": self.summary(),
                "rows": [asdict(row) for row in self.rows],
                "layers": [asdict(layer) for layer in self.layers],
                "settings": dict(self.settings),
                "skipped": dict(self.skipped),
                "failures": list(self.failures),
                "notes": list(self.notes),
            }
        )
        return plain


def verify_onnx(
    gm: nn.Module,
    path: str | os.PathLike[str],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    batches: Sequence[int] | None = None,
    seed: int = 0,
    per_layer: bool = False,
    layer_nodes: Iterable[str] | None = None,
) -> Verification:
    """Compare an ONNX file with the module it should be equivalent to.

    Both run on the CPU, in the precision of the model: the module in eval mode without gradients, the file in ONNX
    Runtime with its graph optimisations on. At the batch size of the example inputs they get the example inputs; at
    others, inputs of the same shape and distribution drawn with `seed`.

    Args:
        gm: the module, in any mode, on any device (one that is elsewhere is copied to the CPU); it is not changed.
        path: the ONNX file.
        args: positional example inputs, as for `export_onnx`.
        kwargs: keyword example inputs.
        rtol: relative tolerance for all floating outputs, in place of `TOLERANCES`.
        atol: absolute tolerance for all floating outputs, as a fraction of the output's scale.
        batches: batch sizes to compare at; None takes 1, the example's, and the example's + 3, leaving out, with the
            reason in `skipped`, those that the file or the module does not take.
        seed: for the inputs that are drawn.
        per_layer: also compare inner values. An ONNX file has not the same inner values as the graph, so a copy of the
            graph is exported that returns them; and the weights in the file are compared with those of that export.
        layer_nodes: names of the nodes to compare; None takes the calls of modules. Implies `per_layer`.

    Returns:
        The comparison, true when equivalent.

    Raises:
        BadInput: no such file, inputs that do not fit the module or the file, unknown layer, or `batches` it cannot
            take.
        ExportError: the file is no ONNX model that ONNX Runtime can load.
    """
    file = Path(path)
    session = _open(file)
    override = {"rtol": rtol, "atol": atol}
    module = _on_cpu(gm)
    with evaluating(module), torch.no_grad(), quiet():
        inputs = flatten_inputs(module, args, kwargs)
        inputs = inputs.with_tensors([tensor.detach().cpu() for tensor in inputs.tensors])
        _match_inputs(session, inputs, file)
        traced = batch_size(inputs.tensors)
        wanted = tuple(batches) if batches is not None else _default_batches(traced)
        comparison = _Comparison(session, module, override)
        for batch in wanted:
            obstacle = comparison.run(batch, inputs if batch == traced else _at_batch(inputs, traced, batch, seed))
            if obstacle and (batches is not None or batch == traced):
                raise BadInput(f"batch {batch} cannot be compared: {obstacle}")
            if obstacle:
                comparison.skipped[f"batch {batch}"] = obstacle
        layers: tuple[LayerDifference, ...] = ()
        notes: tuple[str, ...] = ()
        if per_layer or layer_nodes is not None:
            layers = _compare_layers(module, inputs, override, layer_nodes)
            notes = _compare_weights(module, file, inputs)
            wrong = comparison.failures or not all(row.passed for row in comparison.rows)
            if wrong and not notes and all(layer.passed for layer in layers):
                notes = (
                    "layers and weights agree in a fresh export, so the file holds another graph; export it again",
                )
    return Verification(
        rows=tuple(comparison.rows),
        layers=layers,
        settings=_settings(session, file, wanted, traced, seed, override),
        skipped=dict(comparison.skipped),
        failures=tuple(comparison.failures),
        notes=notes,
    )


class _Comparison:
    """Rows, failures and skipped outputs, gathered over batch sizes."""

    def __init__(
        self, session: onnxruntime.InferenceSession, module: nn.Module, override: Mapping[str, float | None]
    ) -> None:
        self.session = session
        self.module = module
        self.override = override
        self.rows: list[Difference] = []
        self.failures: list[str] = []
        self.skipped: dict[str, str] = {}

    def run(self, batch: int, inputs: FlatInputs) -> str | None:
        """Compare all outputs on these inputs; returns why that cannot be done, if it cannot."""
        fixed = _fixed_dimension(self.session, inputs)
        if fixed:
            return fixed
        try:
            args, kwargs = inputs.rebuild([tensor.clone() for tensor in inputs.tensors])
            expected, others = name_outputs(self.module(*args, **kwargs))
        except Exception as error:
            return f"the module itself fails: {first_line(error)}"
        for name, kind in others.items():
            self.skipped[f"output {name}"] = f"a {kind}, not a tensor"
        try:
            names = [value.name for value in self.session.get_outputs()]
            found = dict(zip(names, self.session.run(names, _feed(self.session, inputs)), strict=True))
        except Exception as error:  # the runtime's own exceptions have no common base that it documents
            self.failures.append(f"ONNX Runtime fails at batch {batch}: {first_line(error)}")
            return None
        for name, tensor in expected.items():
            # export_onnx calls an output that has the name of an input so.
            value = found.get(f"{name}_out" if name in inputs.names else name)
            self._compare(name, batch, tensor, value, names)
        return None

    def _compare(self, name: str, batch: int, expected: Tensor, value: Any, names: Sequence[str]) -> None:
        if value is None:
            failure = f"the file has no output {name!r}, it has {', '.join(names)}"
        elif not isinstance(value, np.ndarray):
            failure = f"output {name!r} is a {type(value).__name__} in the file, not a tensor"
        elif tuple(expected.shape) != value.shape:
            ours, theirs = list(expected.shape), list(value.shape)
            failure = f"output {name!r} at batch {batch} is {ours} in PyTorch, {theirs} in ONNX"
        elif expected.dtype.is_floating_point and expected.dtype not in TOLERANCES:
            failure = f"output {name!r} is {_numpy_name(expected.dtype)}, for which there is no tolerance; use float32"
        elif _numpy_name(expected.dtype) != value.dtype.name:
            failure = f"output {name!r} is {_numpy_name(expected.dtype)} in PyTorch, {value.dtype.name} in ONNX"
        else:
            self.rows.append(_difference(name, batch, expected, value, self.override))
            return
        if failure not in self.failures:
            self.failures.append(failure)


def _difference(
    name: str, batch: int, expected: Tensor, value: np.ndarray[Any, Any], override: Mapping[str, float | None]
) -> Difference:
    floating = expected.is_floating_point() or expected.is_complex()
    tolerance = _tolerance(expected.dtype, override) if floating else Tolerance(0.0, 0.0)
    # float16 and integers in float64 lose nothing below 2^53; above, the exact comparison is made on the integers.
    exact = np.complex128 if expected.is_complex() else np.float64
    theirs, ours = value.astype(exact), expected.numpy().astype(exact)
    finite = np.isfinite(theirs) & np.isfinite(ours)
    scale = _scale(np.abs(ours[finite]))
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.where(finite, np.abs(theirs - ours), 0.0)
        size = np.where(finite, np.abs(ours), 0.0)
        allowed = tolerance.atol * scale + tolerance.rtol * size
        within = (gap <= allowed) if floating else (value == expected.numpy())
    # Infinities of the same sign are equal (masks are full of them); NaN equals nothing, itself included.
    passed = bool(np.all(np.where(finite, within, theirs == ours)))
    gaps = gap[finite]
    return Difference(
        output=name,
        batch=batch,
        dtype=str(expected.dtype).removeprefix("torch."),
        count=int(ours.size),
        max_abs=float(gaps.max()) if gaps.size else _nothing(ours.size),
        mean_abs=float(gaps.mean()) if gaps.size else _nothing(ours.size),
        median_abs=float(np.median(gaps)) if gaps.size else _nothing(ours.size),
        max_rel=float((gaps / np.maximum(size[finite], 1e-3 * scale)).max()) if gaps.size else _nothing(ours.size),
        scale=scale,
        cosine=_cosine(theirs[finite], ours[finite]),
        top1_agreement=_top1(theirs, ours, allowed) if floating and not expected.is_complex() else None,
        finite_torch=bool(np.isfinite(ours).all()),
        finite_onnx=bool(np.isfinite(theirs).all()),
        rtol=tolerance.rtol,
        atol=tolerance.atol,
        passed=passed,
    )


def _tolerance(dtype: torch.dtype, override: Mapping[str, float | None]) -> Tolerance:
    real = torch.empty(0, dtype=dtype).abs().dtype
    default = TOLERANCES[real]
    rtol, atol = override["rtol"], override["atol"]
    return Tolerance(default.rtol if rtol is None else rtol, default.atol if atol is None else atol)


def _scale(sizes: np.ndarray[Any, Any]) -> float:
    """The largest absolute value that is no fill value; 1 for an output of zeros, which has no size of its own."""
    nonzero = sizes[sizes > 0]
    if not nonzero.size:
        return 1.0
    return float(nonzero[nonzero <= _FILL_FACTOR * np.median(nonzero)].max())


def _cosine(theirs: np.ndarray[Any, Any], ours: np.ndarray[Any, Any]) -> float:
    # Divided first, or the squares of float32's largest values would overflow even float64's sums of them.
    largest = max(float(np.abs(theirs).max(initial=0.0)), float(np.abs(ours).max(initial=0.0)))
    if largest == 0.0:
        return 1.0
    theirs, ours = theirs / largest, ours / largest
    norms = float(np.linalg.norm(theirs) * np.linalg.norm(ours))
    return min(1.0, float(np.abs(np.vdot(theirs, ours))) / norms) if norms else 0.0


def _top1(theirs: np.ndarray[Any, Any], ours: np.ndarray[Any, Any], allowed: np.ndarray[Any, Any]) -> float | None:
    if not ours.ndim or ours.shape[-1] < 2 or not ours.size:
        return None
    chosen = theirs.argmax(-1, keepdims=True)
    best = ours.argmax(-1, keepdims=True)
    # Two entries may each move by the tolerance, towards each other.
    slack = np.take_along_axis(allowed, chosen, -1) + np.take_along_axis(allowed, best, -1)
    with np.errstate(invalid="ignore"):
        gap = np.take_along_axis(ours, best, -1) - np.take_along_axis(ours, chosen, -1)
    return float(np.mean((chosen == best) | (gap <= slack)))


def _open(file: Path) -> onnxruntime.InferenceSession:
    if not file.is_file():
        raise BadInput(f"there is no ONNX file {file}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal only: what goes wrong comes as an exception too
    try:
        # By path, so that external data is found next to the file.
        return onnxruntime.InferenceSession(str(file), sess_options=options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own exceptions have no common base that it documents
        # Valid ONNX in a precision the CPU has no kernels for: float64 convolutions, bfloat16.
        hint = "; export the model in float32" if "NOT_IMPLEMENTED" in str(error) else ""
        raise ExportError(f"ONNX Runtime cannot load {file}: {first_line(error)}{hint}") from error


def _match_inputs(session: onnxruntime.InferenceSession, inputs: FlatInputs, file: Path) -> None:
    # An exporter may drop an input that the graph does not use, so the file may have fewer, but no others.
    names = [value.name for value in session.get_inputs()]
    if not set(names) <= set(inputs.names):
        raise BadInput(
            f"{file} takes the inputs {', '.join(names)}, the module {', '.join(inputs.names)}; "
            "pass the example inputs the file was exported with"
        )
    shapes = dict(zip(inputs.names, inputs.tensors, strict=True))
    for value in session.get_inputs():
        if len(value.shape) != shapes[value.name].ndim:
            raise BadInput(
                f"input {value.name!r} has {len(value.shape)} dimensions in {file}, "
                f"{shapes[value.name].ndim} in the example inputs"
            )


def _fixed_dimension(session: onnxruntime.InferenceSession, inputs: FlatInputs) -> str | None:
    tensors = dict(zip(inputs.names, inputs.tensors, strict=True))
    for value in session.get_inputs():
        for position, (size, given) in enumerate(zip(value.shape, tensors[value.name].shape, strict=True)):
            if isinstance(size, int) and size != given:
                place = f"dimension {position} of input {value.name!r}"
                return f"{place} is fixed to {size} in the file, the inputs have {given}"
    return None


def _feed(session: onnxruntime.InferenceSession, inputs: FlatInputs) -> dict[str, np.ndarray[Any, Any]]:
    wanted = {value.name for value in session.get_inputs()}
    return {
        name: tensor.contiguous().numpy()
        for name, tensor in zip(inputs.names, inputs.tensors, strict=True)
        if name in wanted
    }


def _on_cpu(gm: nn.Module) -> nn.Module:
    elsewhere = any(tensor.device.type != "cpu" for tensor in (*gm.parameters(), *gm.buffers()))
    return copy.deepcopy(gm).cpu() if elsewhere else gm


def _default_batches(traced: int) -> tuple[int, ...]:
    return tuple(dict.fromkeys((1, traced, traced + 3))) if traced else (0,)


def _at_batch(inputs: FlatInputs, traced: int, batch: int, seed: int) -> FlatInputs:
    generator = torch.Generator().manual_seed(seed)
    return inputs.with_tensors(
        [
            _draw(tensor, batch, generator) if tensor.ndim and tensor.shape[0] == traced else tensor
            for tensor in inputs.tensors
        ]
    )


def _draw(example: Tensor, batch: int, generator: torch.Generator) -> Tensor:
    """Draw values like the example's for another batch; what looks like a mask is repeated: its pattern matters."""
    repeated = example[torch.arange(batch) % max(example.shape[0], 1)]
    if example.dtype == torch.bool or not example.numel():
        return repeated
    if example.is_floating_point():
        finite = example[torch.isfinite(example)].double()
        if finite.numel() < example.numel() or bool(((finite == finite.min()) | (finite == finite.max())).all()):
            return repeated
        noise = torch.randn(repeated.shape, generator=generator, dtype=torch.float64)
        return (noise * finite.std() + finite.mean()).to(example.dtype)
    if example.is_complex() or bool(((example == 0) | (example == 1)).all()):
        return repeated
    # Only values that were seen: an id, a position or an index out of range has no meaning.
    seen = example.flatten()
    return seen[torch.randint(seen.numel(), repeated.shape, generator=generator)]


def _compare_layers(
    gm: nn.Module, inputs: FlatInputs, override: Mapping[str, float | None], wanted: Iterable[str] | None
) -> tuple[LayerDifference, ...]:
    if not isinstance(gm, fx.GraphModule):
        raise BadInput(f"layers can only be compared in a graph, and {type(gm).__name__} is none; capture it first")
    args, kwargs = inputs.rebuild(inputs.tensors)
    probe, names = _probe(gm, _choose_nodes(gm, wanted))
    with tempfile.TemporaryDirectory() as scratch:
        file = export_onnx(probe, Path(scratch) / "layers.onnx", args, kwargs)
        comparison = _Comparison(_open(file), probe, override)
        obstacle = comparison.run(batch_size(inputs.tensors), inputs)
    problem = obstacle or next(iter(comparison.failures), None)
    if problem:
        raise ExportError(f"the layers cannot be compared: {problem}")
    targets = {node.name: str(node.target) if node.op == "call_module" else "" for node in gm.graph.nodes}
    rows = {row.output: row for row in comparison.rows}
    found = [(names[output], row) for output, row in rows.items() if output in names]
    return tuple(LayerDifference(node, targets[node], row) for node, row in found)


def _choose_nodes(gm: fx.GraphModule, wanted: Iterable[str] | None) -> list[str]:
    every = {node.name: node for node in gm.graph.nodes if node.op not in ("placeholder", "get_attr", "output")}
    if wanted is not None:
        chosen = list(wanted)
        unknown = [name for name in chosen if name not in every]
        if unknown:
            raise BadInput(f"the graph has no inner value {unknown[0]!r}; its values are {', '.join(every)}")
        return chosen
    calls = [name for name, node in every.items() if node.op == "call_module"]
    # Evenly thinned: where a difference begins is then known to within a few layers.
    step = math.ceil(len(calls) / _MAX_LAYERS) or 1
    return calls[::step]


def _probe(gm: fx.GraphModule, nodes: Sequence[str]) -> tuple[fx.GraphModule, dict[str, str]]:
    """A copy of the graph that returns the values of these nodes; and which of its outputs is which node."""
    graph = copy.deepcopy(gm.graph)
    # What the original returns, and how it is packed, does not matter here.
    graph.set_codegen(fx.graph.CodeGen())
    named = {node.name: node for node in graph.nodes}
    output = next(node for node in graph.nodes if node.op == "output")
    output.args = ({f"layer_{name}": named[name] for name in nodes},)
    probe = fx.GraphModule(gm, graph)
    probe.train(gm.training)
    return probe, {f"layer_{name}": name for name in nodes}


def _compare_weights(gm: nn.Module, file: Path, inputs: FlatInputs) -> tuple[str, ...]:
    """Names of the weights in the file that are not the module's: a file of another checkpoint looks like this."""
    args, kwargs = inputs.rebuild(inputs.tensors)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            fresh = _weights(export_onnx(gm, Path(scratch) / "fresh.onnx", args, kwargs))
        stored = _weights(file)
    except ReplFxError as error:
        return (f"the weights cannot be compared: {first_line(error)}",)
    other = [
        name
        for name, value in fresh.items()
        if name in stored and not np.array_equal(stored[name], value, equal_nan=value.dtype.kind == "f")
    ]
    if not other:
        return ()
    listed = ", ".join(other[:3]) + (f" and {len(other) - 3} more" if len(other) > 3 else "")
    return (f"weights in the file that are not the module's: {listed}",)


def _weights(file: Path) -> dict[str, np.ndarray[Any, Any]]:
    model = onnx.load(str(file))
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _settings(
    session: onnxruntime.InferenceSession,
    file: Path,
    batches: Sequence[int],
    traced: int,
    seed: int,
    override: Mapping[str, float | None],
) -> dict[str, Any]:
    return {
        "file": file.name,
        "provider": session.get_providers()[0],
        "graph_optimization_level": session.get_session_options().graph_optimization_level.name,
        "onnxruntime": onnxruntime.__version__,
        "torch": torch.__version__,
        "torch_device": "cpu",
        "batches": list(batches),
        "traced_batch": traced,
        "seed": seed,
        "rtol": override["rtol"],
        "atol": override["atol"],
    }


def _numpy_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _nothing(size: int) -> float:
    """What stands for a difference that cannot be computed: none for an empty output, no bound for NaN."""
    return math.inf if size else 0.0


def _badness(row: Difference) -> float:
    return row.max_abs / row.scale if row.finite_torch and row.finite_onnx else math.inf


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
