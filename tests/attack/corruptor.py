"""Faults in ONNX files: which of them does verification find?

    clean file --fault--> faulty file;   ONNX Runtime on both, on inputs of the judge's:   do they differ?
    verify_onnx(faulty file)             must fail, or be refused, where they do; else its outputs must pass

The judge asks none of repl-fx's own checks whether two files differ: some faults change no output, such as an operand
of a product with zero. A weight that has other numbers must fail even so.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor, fx, nn

import repl_fx
from tests.nets import ConvNet, TokenNet, tokens

# Differences, as a fraction of an output's scale: below the first a file is the same, above the second another; what
# lies between is near the tolerance of verification and not judged.
_SAME, _OTHER = 2e-6, 1e-4
# Faults of weights.
_OF_WEIGHTS = (
    *("element", "row", "scale", "transposed", "half", "no bias", "mirrored", "swapped", "all half", "other weights"),
)


class Mixed(nn.Module):
    """Operators of many kinds: clamps, comparisons, pooling, softmax, slices, and a second output of whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.norm = nn.GroupNorm(2, 8)
        self.square = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = F.relu6(3 * self.bn(self.conv(x)))
        z = F.hardswish(self.down(y))
        y = y - torch.sigmoid(self.up(z)) * F.elu(y)
        y = torch.where(y > 0.5, y, 0.25 * y.abs())
        y = F.leaky_relu(self.norm(y), 0.1)
        pooled = F.max_pool2d(y, 2).flatten(2).mean(-1) + F.avg_pool2d(y, 3, 2, 1).amax((2, 3)) / 2
        mixed = torch.cat([pooled[:, 4:], pooled[:, :4]], 1) - pooled.softmax(-1)
        mixed = F.gelu(self.square(mixed)) + F.gelu(mixed, approximate="tanh") + torch.tanh(mixed).floor().clamp(-1, 1)
        logits = self.head(mixed).log_softmax(-1)
        return {"logits": logits, "features": mixed}


class Plain(nn.Module):
    """Linear layers with a batch norm between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(self.norm(self.first(x)))
        return self.second(y) / (1 + y.square()), torch.sin(self.third(y)) ** 2


def _images() -> Tensor:
    return torch.randn(2, 3, 8, 8)


def _rows() -> Tensor:
    return torch.randn(3, 12)


SUBJECTS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "plain": (Plain, _rows),
    "mixed": (Mixed, _images),
    "convolutions": (lambda: ConvNet(depth=3), _images),
    "tokens": (lambda: TokenNet(depth=3), tokens),
}


@dataclass(frozen=True)
class Subject:
    """A network as a graph, and its clean file.

    Attributes:
        name: key of `SUBJECTS`.
        graph: in evaluation mode.
        file: the clean ONNX file.
        example: what it was exported with.
    """

    name: str
    graph: fx.GraphModule
    file: Path
    example: Tensor

    def inputs(self, seed: int) -> Iterator[Tensor]:
        """The example, and inputs like it at its batch and at another."""
        yield self.example
        generator = torch.Generator().manual_seed(seed)
        for batch in (len(self.example), len(self.example) + 1, len(self.example)):
            yield torch.randn(batch, *self.example.shape[1:], generator=generator)


_SCRATCH = tempfile.TemporaryDirectory(prefix="corruptor.")


def make(name: str, seed: int) -> Subject:
    """Capture and export a network with random weights, and norms that are not trivial."""
    build, example = SUBJECTS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, x = build(), example()
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)):
                nn.init.normal_(module.weight, 1.0, 0.2)
                nn.init.normal_(module.bias, 0.0, 0.2)
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(0.0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
        graph = repl_fx.capture(model.eval(), (x,))
        file = repl_fx.export_onnx(graph, Path(_SCRATCH.name) / f"{name}{seed}.onnx", (x,))
    return Subject(name, graph, file, x)


@cache
def subject(name: str) -> Subject:
    """The network of a name that faults are put into; exported once."""
    return make(name, 0)


Fault = Callable[[onnx.ModelProto, random.Random], str | None]


def _weights(model: onnx.ModelProto, rng: random.Random) -> list[onnx.TensorProto]:
    """The floating initializers, shuffled."""
    found = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and np.prod(t.dims) > 0]
    rng.shuffle(found)
    return found


def _set(tensor: onnx.TensorProto, value: np.ndarray[Any, Any]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), tensor.name))


def _edited(change: Callable[[np.ndarray[Any, Any], random.Random], np.ndarray[Any, Any] | None]) -> Fault:
    """A fault of one weight."""

    def fault(model: onnx.ModelProto, rng: random.Random) -> str | None:
        for tensor in _weights(model, rng):
            value = change(numpy_helper.to_array(tensor).copy(), rng)
            if value is not None:
                _set(tensor, value.astype(np.float32))
                return str(tensor.name)
        return None

    return fault


def _element(value: np.ndarray[Any, Any], rng: random.Random) -> np.ndarray[Any, Any]:
    flat = value.reshape(-1)
    flat[rng.randrange(flat.size)] += rng.choice([0.5, -0.3, 0.05])
    return value


def _row(value: np.ndarray[Any, Any], rng: random.Random) -> np.ndarray[Any, Any] | None:
    if value.ndim < 1:
        return None
    value[rng.randrange(len(value))] *= rng.choice([0.0, 1.1, -1.0])
    return value


def _scale(value: np.ndarray[Any, Any], rng: random.Random) -> np.ndarray[Any, Any]:
    return value * np.float32(rng.choice([1.01, 0.5, 1.001]))


def _transpose(value: np.ndarray[Any, Any], rng: random.Random) -> np.ndarray[Any, Any] | None:
    square = value.ndim >= 2 and value.shape[0] == value.shape[1] > 1
    return np.swapaxes(value, 0, 1) if square else None


def _half(value: np.ndarray[Any, Any], rng: random.Random) -> np.ndarray[Any, Any]:
    return value.astype(np.float16)


def _no_bias(value: np.ndarray[Any, Any], rng: random.Random) -> np.ndarray[Any, Any] | None:
    return np.zeros_like(value) if value.ndim == 1 else None


def _mirror(value: np.ndarray[Any, Any], rng: random.Random) -> np.ndarray[Any, Any] | None:
    return value[..., ::-1] if value.ndim == 4 else None


def swapped_weights(model: onnx.ModelProto, rng: random.Random) -> str | None:
    """Two weights of one shape take each other's place."""
    found = _weights(model, rng)
    for a in found:
        for b in found:
            if a.name < b.name and a.dims == b.dims:
                first, second = numpy_helper.to_array(a).copy(), numpy_helper.to_array(b).copy()
                _set(a, second)
                _set(b, first)
                return f"{a.name}, {b.name}"
    return None


def all_half(model: onnx.ModelProto, rng: random.Random) -> str | None:
    """All weights lose precision."""
    for tensor in _weights(model, rng):
        _set(tensor, numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32))
    return "all weights"


def other_weights(model: onnx.ModelProto, rng: random.Random) -> str | None:
    """The weights of another step of training, as stale data beside a new file has them."""
    generator = np.random.default_rng(rng.randrange(2**31))
    for tensor in _weights(model, rng):
        value = numpy_helper.to_array(tensor)
        noise = generator.standard_normal(value.shape) * (0.01 * np.abs(value).mean())
        _set(tensor, (value + noise).astype(np.float32))
    return "all weights"


def constant(model: onnx.ModelProto, rng: random.Random) -> str | None:
    """A scalar or a list of sizes in the graph is another."""
    tensors = [
        a.t for node in model.graph.node if node.op_type == "Constant" for a in node.attribute if a.name == "value"
    ]
    tensors += [t for t in model.graph.initializer if np.prod(t.dims) <= 4]
    tensors = [t for t in tensors if np.prod(t.dims) >= 1]
    if not tensors:
        return None
    tensor = rng.choice(tensors)
    value = numpy_helper.to_array(tensor).copy()
    if value.dtype == np.bool_:
        _set(tensor, ~value)
    else:
        _set(tensor, (value + rng.choice([1, -1])).astype(value.dtype))
    return str(tensor.name)


def attribute(model: onnx.ModelProto, rng: random.Random) -> str | None:
    """An attribute of a node is another: an axis, a permutation, pads, strides, an epsilon, a mode."""
    pairs = [(n, a) for n in model.graph.node if n.op_type != "Constant" for a in n.attribute]
    rng.shuffle(pairs)
    for node, a in pairs:
        if a.type == onnx.AttributeProto.INT:
            a.i = rng.choice([1 - a.i if a.i in (0, 1) else a.i + 1, a.i + 1, a.i - 1])
        elif a.type == onnx.AttributeProto.INTS and len(a.ints):
            values = list(a.ints)
            if a.name == "perm":
                i, j = rng.sample(range(len(values)), 2) if len(values) > 1 else (0, 0)
                values[i], values[j] = values[j], values[i]
            else:
                values[rng.randrange(len(values))] += rng.choice([1, -1])
            a.ints[:] = values
        elif a.type == onnx.AttributeProto.FLOAT:
            a.f = a.f * rng.choice([10.0, 0.5]) + rng.choice([0.0, 1e-3])
        elif a.type == onnx.AttributeProto.STRING:
            other = {b"tanh": b"none", b"none": b"tanh", b"NOTSET": b"SAME_UPPER", b"add": b"none"}.get(a.s)
            if other is None:
                continue
            a.s = other
        else:
            continue
        return f"{node.op_type} {node.name}.{a.name}"
    return None


def operands(model: onnx.ModelProto, rng: random.Random) -> str | None:
    """Two operands of a node take each other's place."""
    kinds = ("Sub", "Div", "MatMul", "Concat", "Pow", "Less", "Greater", "Where", "Gemm", "Mul", "Add")
    nodes = [n for n in model.graph.node if n.op_type in kinds and len(n.input) > 1]
    if not nodes:
        return None
    node = rng.choice(nodes)
    first = 1 if node.op_type == "Where" else 0
    node.input[first], node.input[first + 1] = node.input[first + 1], node.input[first]
    return f"{node.op_type} {node.name}"


def removed(model: onnx.ModelProto, rng: random.Random) -> str | None:
    """A node passes its first input on."""
    nodes = [n for n in model.graph.node if n.input and len(n.output) == 1 and n.op_type != "Constant"]
    node = rng.choice(nodes)
    what = f"{node.op_type} {node.name}"
    node.CopyFrom(helper.make_node("Identity", [node.input[0]], list(node.output), name=node.name))
    return what


_OTHERS: dict[str, Sequence[str]] = {
    "Relu": ("LeakyRelu", "Elu", "Abs", "Softplus"),
    "LeakyRelu": ("Relu", "Elu"),
    "Elu": ("Selu", "Relu", "Celu"),
    "Floor": ("Ceil", "Round"),
    "Ceil": ("Floor",),
    "ReduceMean": ("ReduceMax", "ReduceSum", "ReduceMin"),
    "ReduceMax": ("ReduceMin", "ReduceMean"),
    "Max": ("Min",),
    "Min": ("Max",),
    "Sigmoid": ("HardSigmoid", "Tanh"),
    "HardSigmoid": ("Sigmoid",),
    "Tanh": ("Sigmoid", "Erf", "Softsign"),
    "Erf": ("Tanh",),
    "Softmax": ("LogSoftmax", "Hardmax"),
    "LogSoftmax": ("Softmax",),
    "Sin": ("Cos",),
    "Sqrt": ("Abs",),
    "Add": ("Sub", "Mul", "Max"),
    "Sub": ("Add",),
    "Mul": ("Add", "Div"),
    "Div": ("Mul",),
    "Greater": ("GreaterOrEqual", "Less"),
    "Less": ("LessOrEqual", "Greater"),
    "HardSwish": ("Relu", "Identity"),
    "Abs": ("Neg", "Relu"),
    "GlobalAveragePool": ("GlobalMaxPool",),
    "AveragePool": ("LpPool",),
}


def operator(model: onnx.ModelProto, rng: random.Random) -> str | None:
    """A node computes something similar."""
    nodes = [n for n in model.graph.node if n.op_type in _OTHERS]
    if not nodes:
        return None
    node = rng.choice(nodes)
    what = f"{node.op_type} {node.name}"
    node.op_type = rng.choice(_OTHERS[node.op_type])
    if node.op_type not in ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Softmax", "LogSoftmax"):
        del node.attribute[:]
    return f"{what} as {node.op_type}"


def fixed_batch(model: onnx.ModelProto, rng: random.Random) -> str | None:
    """The file takes one batch size."""
    dim = model.graph.input[0].type.tensor_type.shape.dim[0]
    dim.Clear()
    dim.dim_value = rng.choice([2, 3])
    return f"batch {dim.dim_value}"


def exchanged_outputs(model: onnx.ModelProto, rng: random.Random) -> str | None:
    """Two outputs take each other's name."""
    if len(model.graph.output) < 2:
        return None
    a, b = model.graph.output[0].name, model.graph.output[1].name
    names = {a: b, b: a}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    return f"{a}, {b}"


def wrong_input(model: onnx.ModelProto, rng: random.Random) -> str | None:
    """A node reads another value of the same shape."""
    inferred = onnx.shape_inference.infer_shapes(model)
    shapes = {v.name: v.type.SerializeToString() for v in (*inferred.graph.value_info, *inferred.graph.input)}
    made = list(shapes)
    nodes = [(n, i) for n in model.graph.node for i, name in enumerate(n.input) if name in shapes]
    rng.shuffle(nodes)
    order = {name: k for k, n in enumerate(model.graph.node) for name in n.output}
    for node, i in nodes:
        own = order[node.output[0]]
        same = [m for m in made if shapes[m] == shapes[node.input[i]] and m != node.input[i] and order.get(m, -1) < own]
        if same:
            other = rng.choice(same)
            what = f"{node.op_type} {node.name} reads {other} for {node.input[i]}"
            node.input[i] = other
            return what
    return None


FAULTS: dict[str, Fault] = {
    "element": _edited(_element),
    "row": _edited(_row),
    "scale": _edited(_scale),
    "transposed": _edited(_transpose),
    "half": _edited(_half),
    "no bias": _edited(_no_bias),
    "mirrored": _edited(_mirror),
    "swapped": swapped_weights,
    "all half": all_half,
    "other weights": other_weights,
    "constant": constant,
    "attribute": attribute,
    "operands": operands,
    "removed": removed,
    "operator": operator,
    "fixed batch": fixed_batch,
    "exchanged": exchanged_outputs,
    "wrong input": wrong_input,
}


@dataclass
class Counts:
    """What became of faulty and of clean files.

    Attributes:
        seed: of the first file.
        faulty: files that compute something else than the clean one, or have other weights.
        found: of them, those that verification fails or refuses.
        harmless: files with a fault that changes no result.
        near: files that differ by about the tolerance, or on one runtime's rounding; not judged.
        clean: files without a fault, verified per layer.
        wrong: one line for each file that was judged wrongly.
        seconds: it took.
    """

    seed: int = 0
    faulty: int = 0
    found: int = 0
    harmless: int = 0
    near: int = 0
    clean: int = 0
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        lines = [
            f"faults from seed {self.seed}: {self.faulty} faulty files, {self.found} found; "
            f"{self.harmless} with a fault that changes nothing; {self.near} near the tolerance; "
            f"{self.clean} clean files per layer; {len(self.wrong)} judged wrongly; {self.seconds:.0f} s"
        ]
        return "\n".join([*lines, *self.wrong])


def apart(clean: Path, faulty: Path, inputs: Iterator[Tensor]) -> float:
    """The largest difference of two files, as a fraction of the scale of an output; inf where one does not run."""
    ours = onnxruntime.InferenceSession(clean, _quiet(), providers=["CPUExecutionProvider"])
    try:
        theirs = onnxruntime.InferenceSession(faulty, _quiet(), providers=["CPUExecutionProvider"])
    except Exception:  # the runtime's own exceptions have no common base that it documents
        return float("inf")
    worst, first = 0.0, True
    for x in inputs:
        feed = {ours.get_inputs()[0].name: x.numpy()}
        size = theirs.get_inputs()[0].shape[0]
        if isinstance(size, int) and size != len(x):
            if first:
                return float("inf")
            continue
        first = False
        names = [value.name for value in ours.get_outputs()]
        try:
            found = theirs.run(names, feed)
        except Exception:  # likewise
            return float("inf")
        for a, b in zip(ours.run(names, feed), found, strict=True):
            if a.shape != b.shape or a.dtype != b.dtype or not np.isfinite(b).all():
                return float("inf")
            worst = max(worst, float(np.abs(a - b).max()) / max(float(np.abs(a).max()), 1e-6))
    return worst


def _quiet() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return options


def corrupt(of: Subject, seed: int, target: Path) -> str:
    """Write a copy of a clean file with one fault; returns what it is."""
    rng = random.Random(seed)
    while True:
        name = rng.choice([*FAULTS, "truncated"])
        if name == "truncated":
            content = of.file.read_bytes()
            target.write_bytes(content[: rng.randrange(len(content) // 2, len(content) - 1)])
            return name
        model = onnx.load(str(of.file))
        what = FAULTS[name](model, rng)
        if what is not None:
            onnx.save(model, str(target))
            return f"{name}: {what}"


def judge(of: Subject, faulty: Path, what: str, seed: int, counts: Counts) -> None:
    """Verify a file with a fault, and count what became of it."""
    distance = apart(of.file, faulty, of.inputs(seed))
    try:
        check = repl_fx.verify_onnx(of.graph, faulty, (of.example,))
        passed, harmless, verdict = bool(check), check.same_outputs, check.summary()
    except repl_fx.ReplFxError as error:
        passed = harmless = False
        verdict = f"refused: {error}"
    line = f"  seed {seed}, {of.name}, {what}: differs by {distance:.2g}; {verdict[:160]}"
    if distance > _OTHER or (what.split(":")[0] in _OF_WEIGHTS and _weights_differ(of.file, faulty)):
        counts.faulty += 1
        counts.found += not passed
        if passed:
            counts.wrong.append(line)
    elif distance <= _SAME:
        counts.harmless += 1
        if not harmless:
            # A fault that these inputs do not reach, such as the bound of a clamp, may be seen on wider ones.
            wider = apart(of.file, faulty, (16 * x for x in of.inputs(seed)))
            smaller = apart(of.file, faulty, (x / 16 for x in of.inputs(seed)))
            if max(wider, smaller) <= _SAME:
                counts.wrong.append(line)
    else:
        counts.near += 1


def _weights_differ(clean: Path, faulty: Path) -> bool:
    ours, theirs = (
        {t.name: numpy_helper.to_array(t) for t in onnx.load(str(file)).graph.initializer} for file in (clean, faulty)
    )
    return any(not np.array_equal(value, theirs[name]) for name, value in ours.items())


def run_corruptor(seed: int, count: int, clean: int | None = None) -> Counts:
    """Judge files with faults, and clean ones.

    Args:
        seed: of the first fault is 100,000 times this.
        count: files with a fault.
        clean: files without, each of a network of its own; None takes a third as many.
    """
    begin = time.perf_counter()
    counts = Counts(seed=100_000 * seed)
    names = list(SUBJECTS)
    for number in range(count):
        of = subject(names[number % len(names)])
        faulty = Path(_SCRATCH.name) / "faulty.onnx"
        what = corrupt(of, counts.seed + number, faulty)
        judge(of, faulty, what, counts.seed + number, counts)
    for number in range(-(-count // 3) if clean is None else clean):
        of = make(names[number % len(names)], counts.seed + number + 1)
        check = repl_fx.verify_onnx(of.graph, of.file, (of.example,), per_layer=True)
        counts.clean += 1
        if not check or not check.layers or check.first_difference is not None:
            counts.wrong.append(f"  clean {of.name} of seed {counts.seed + number + 1}: {check.summary()}")
        of.file.unlink()
    counts.seconds = time.perf_counter() - begin
    return counts
