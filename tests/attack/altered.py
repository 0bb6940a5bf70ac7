"""ONNX files whose weights were altered by a little, which outputs may not show: does verification find each?

    clean file --scale, swap, one element of one initializer, by 1e-4 to 1--> altered file
    verification must fail, and name the initializer;  clean files, as other exporters and tools write them, must pass

The networks are trained on scikit-learn's digits for seconds, and cut: some blocks replaced, and fitted.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from sklearn.datasets import load_digits
from torch import Tensor, fx, nn

import repl_fx
from repl_fx.export import verifying
from repl_fx.export.onnx_model import export_program, quiet
from repl_fx.running.example_inputs import ExampleInputs
from tests.nets import ConvNet, TokenNet

SIZES = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
_SCRATCH = tempfile.TemporaryDirectory(prefix="altered.")
Array = np.ndarray[Any, Any]


class Mixing(nn.Module):
    """A block of an MLP mixer: tokens, then channels."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens1, self.tokens2 = nn.Linear(tokens, 16), nn.Linear(16, tokens)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens2(F.gelu(self.tokens1(self.norm1(x).transpose(1, 2)))).transpose(1, 2)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))  # type: ignore[no-any-return]


class Depthwise(nn.Module):
    """A block as ConvNeXt has them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.gain = nn.Parameter(torch.full((width,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc2(F.gelu(self.fc1(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))))
        return x + (self.gain * y).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class Causal(nn.Module):
    """A block as GPT has them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))  # type: ignore[no-any-return]


class Pixels(nn.Module):
    """A language model of the grey levels of a picture, row by row."""

    def __init__(self, width: int = 24, depth: int = 4) -> None:
        super().__init__()
        self.levels, self.places = nn.Embedding(17, width), nn.Parameter(torch.randn(64, width) * 0.02)
        self.blocks = nn.Sequential(*(Causal(width, 2) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 17, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.levels(ids) + self.places)))  # type: ignore[no-any-return]


class Pooled(nn.Module):
    """Blocks between an embedding and a head that reads the mean over places."""

    def __init__(self, embed: nn.Module, blocks: list[nn.Module], width: int, over: tuple[int, ...]) -> None:
        super().__init__()
        self.embed, self.blocks, self.head, self.over = embed, nn.Sequential(*blocks), nn.Linear(width, 10), over

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x)).mean(self.over))  # type: ignore[no-any-return]


def _pictures() -> tuple[Tensor, Tensor]:
    digits = load_digits()
    return torch.tensor(digits.images, dtype=torch.float32) / 16, torch.tensor(digits.target)


def _colour() -> tuple[Tensor, Tensor]:
    pictures, labels = _pictures()
    return pictures[:, None].repeat(1, 3, 1, 1), labels


def _tokens(width: int) -> tuple[Tensor, Tensor]:
    pictures, labels = _pictures()
    return pictures.reshape(len(pictures), -1, width), labels


def _levels() -> tuple[Tensor, Tensor]:
    ids = (_pictures()[0] * 16).long().flatten(1)
    return ids, ids.roll(-1, 1)


@dataclass(frozen=True)
class Kind:
    """How a network is made, trained and cut."""

    build: Callable[[], nn.Module]
    data: Callable[[], tuple[Tensor, Tensor]]
    surrogate: str


KINDS = {
    "vit": Kind(lambda: TokenNet(depth=4), lambda: _tokens(16), "bottleneck"),
    "resnet": Kind(lambda: ConvNet(depth=4), _colour, "blend"),
    "gpt": Kind(Pixels, _levels, "narrow"),
    "convnext": Kind(
        lambda: Pooled(nn.Conv2d(3, 16, 2, 2), [Depthwise(16) for _ in range(4)], 16, (2, 3)), _colour, "narrow"
    ),
    "mixer": Kind(
        lambda: Pooled(nn.Linear(8, 16), [Mixing(8, 16) for _ in range(4)], 16, (1,)), lambda: _tokens(8), "linear"
    ),
}


@dataclass(frozen=True)
class Subject:
    """A trained network as a graph, its clean file and its fresh export."""

    name: str
    graph: fx.GraphModule
    file: Path
    example: Tensor
    fresh: ir.Model

    def passes(self, file: Path) -> tuple[bool, str]:
        """The verdict on a file, and whether weights have a say in it."""
        try:
            check = verifying.verify_file(
                self.graph, file, ExampleInputs((self.example,)), batches=[4], fresh=self.fresh
            )
        except repl_fx.ReplFxError as refused:
            return False, str(refused)
        return bool(check), check.summary() if check else ("outputs" if not check.same_outputs else "weights")


@cache
def subject(name: str, steps: int = 150) -> Subject:
    """Train a network of `KINDS`, or one that is cut besides (`NAME cut`), and export it."""
    kind = KINDS[name.removesuffix(" cut")]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, (inputs, targets) = kind.build().train(), kind.data()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(steps):
            rows = torch.randint(len(inputs), (64,))
            loss = F.cross_entropy(model(inputs[rows]).flatten(0, -2), targets[rows].flatten())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        model.eval()
        example = inputs[:4]
        if name.endswith(" cut"):
            result = repl_fx.transform(model, (example,), every=2, surrogate=kind.surrogate)
            if kind.surrogate != "blend":
                repl_fx.fit(result, [inputs[:256]])
            graph = result.graph_module.eval()
        else:
            graph = repl_fx.capture(model, (example,))
    file = repl_fx.export_onnx(graph, Path(_SCRATCH.name) / f"{name.replace(' ', '_')}.onnx", (example,))
    fresh = export_program(graph, ExampleInputs((example,))).model
    return Subject(name, graph, file, example, fresh)


def alterations(model: onnx.ModelProto, rng: np.random.Generator) -> Iterator[tuple[str, float, int, Array]]:
    """Each change of each floating initializer: kind, size, number of the initializer, and its other value.

    One element, or all, are scaled by one and the size; or that share of the elements are those of another initializer
    of the same shape. A change that changes nothing is none.
    """
    values = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    for number, value in enumerate(values):
        if value.dtype.kind != "f" or not value.size:
            continue
        same = [
            other
            for other in values
            if other is not value and other.shape == value.shape and other.dtype == value.dtype
        ]
        for size in SIZES:
            one = value.copy()
            # The fill value of a mask may be the lowest number there is.
            with np.errstate(over="ignore"):
                one.reshape(-1)[rng.integers(value.size)] *= value.dtype.type(1 + size)
                made = {"one element": one, "scaled": value * value.dtype.type(1 + size)}
            if same:
                mixed, other = value.copy(), same[rng.integers(len(same))]
                count = max(1, round(size * value.size))
                taken = rng.permutation(value.size)[:count]
                mixed.reshape(-1)[taken] = other.reshape(-1)[taken]
                made["swapped"] = mixed
            for kind, changed in made.items():
                if not np.array_equal(changed, value):
                    yield kind, size, number, changed


@dataclass
class Table:
    """Altered files and clean ones, by what became of them.

    Attributes:
        altered, found, seen: files by kind and size; those that fail; those whose outputs differ.
        clean, passed: files without a change.
        wrong: one line for each file that was judged wrongly.
        seconds: it took.
    """

    altered: Counter[tuple[str, float]] = field(default_factory=Counter)
    found: Counter[tuple[str, float]] = field(default_factory=Counter)
    seen: Counter[tuple[str, float]] = field(default_factory=Counter)
    clean: int = 0
    passed: int = 0
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        total = self.altered.total()
        lines = [f"{'change':<12} {'size':>6} {'altered':>8} {'found':>6} {'outputs alone':>14}"]
        lines += [
            f"{kind:<12} {size:>6g} {count:>8} {self.found[kind, size]:>6} {self.seen[kind, size]:>14}"
            for (kind, size), count in sorted(self.altered.items())
        ]
        lines.append(
            f"{total} altered files, {self.found.total()} found, {self.seen.total()} by their outputs alone; "
            f"{self.clean} clean files, {self.passed} pass; {self.seconds:.0f} s"
        )
        return "\n".join([*lines, *self.wrong])


def run_altered(seed: int, every: int, names: tuple[str, ...] | None = None, clean: bool = True) -> Table:
    """Judge altered files, and clean ones.

    Args:
        seed: of the changes.
        every: take one in so many of the changes of each network.
        names: of the networks; all of `KINDS`, original and cut, by default.
        clean: whether clean files of other exporters are judged, five of each network.
    """
    begin, table = time.perf_counter(), Table()
    target = Path(_SCRATCH.name) / "altered.onnx"
    for place, name in enumerate(names or [one + cut for one in KINDS for cut in ("", " cut")]):
        of = subject(name)
        model = onnx.load(str(of.file))
        changes = alterations(model, np.random.default_rng([seed, place]))
        for count, (kind, size, number, value) in enumerate(changes):
            if (count + seed) % every:
                continue
            tensor = model.graph.initializer[number]
            kept = tensor.SerializeToString()
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
            onnx.save(model, str(target))
            tensor.ParseFromString(kept)
            passed, verdict = of.passes(target)
            table.altered[kind, size] += 1
            table.found[kind, size] += not passed
            table.seen[kind, size] += verdict == "outputs"
            if passed:
                table.wrong.append(f"  {name}, {tensor.name} {kind} by {size:g}: {verdict[:160]}")
        for file in _clean(of) if clean else ():
            passed, verdict = of.passes(file)
            table.clean += 1
            table.passed += passed
            if not passed:
                table.wrong.append(f"  {name}, clean {file.stem}: {verdict} {of.passes(file)}")
    table.seconds = time.perf_counter() - begin
    return table


def _clean(of: Subject) -> Iterator[Path]:
    """The same network in five files: as it is, in another operator set, with its data beside it, and made over."""
    yield of.file
    place = Path(_SCRATCH.name)
    yield repl_fx.export_onnx(of.graph, place / "opset.onnx", (of.example,), opset=21)
    yield repl_fx.export_onnx(of.graph, place / "beside.onnx", (of.example,), external_data=True)
    folded = repl_fx.fold(of.graph).eval()
    plain = place / "plain.onnx"
    names: Any = {"input_names": ["x"], "output_names": ["output"]}
    with quiet():
        torch.onnx.export(folded, (of.example,), str(plain), dynamo=True, verbose=False, **names)
    yield plain
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(place / "optimised.onnx")
    onnxruntime.InferenceSession(str(of.file), options, providers=["CPUExecutionProvider"])
    yield place / "optimised.onnx"
