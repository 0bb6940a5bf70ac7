"""What makes real models hard to capture, each in a model of a few small layers, through every stage."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils import _pytree as pytree

import repl_fx
from repl_fx.pipeline import rewrite
from repl_fx.planning.options import Options
from repl_fx.running.opaque_outputs import open_objects
from tests.exporting import Exported

WIDTH = 16
DEPTH = 3


class Layer(nn.Module):
    """A residual layer; the hard cases derive from it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.dropout(self.down(torch.relu(self.up(self.norm(x)))), 0.2, self.training)


class Stack(nn.Module):
    """Layers and a head."""

    def __init__(self, layer: Callable[[], nn.Module] = Layer) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer() for _ in range(DEPTH))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Any:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class DropsLayers(Stack):
    """Skips layers in training, by a number of torch's or of Python's generator."""

    def __init__(self, draw: str) -> None:
        super().__init__()
        self.draw = draw

    def skips(self) -> bool:
        if self.draw == "tensor":
            return self.training and bool(torch.rand([]) < 0.4)
        if self.draw == "item":
            return not (not self.training or torch.rand(1).item() >= 0.4)
        drawn = random.uniform(0, 1)
        return self.training and drawn < 0.4

    def forward(self, x: Tensor) -> Any:
        for layer in self.layers:
            if self.skips():
                continue
            x = layer(x)
        return self.head(x)


class Clamps(Layer):
    """Looks at its values in training."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        if self.training and not (x.abs() < 1.5).all():
            x = torch.clamp(x, -1.5, 1.5)
        return x


class Entry:
    """One layer's part of a cache."""

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys
        self.dtype = keys.dtype
        self.length = 0


class Cache:
    """An object that pytree knows nothing of."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []


class Caches(Stack):
    """Returns an object that holds a tensor of each layer."""

    def forward(self, x: Tensor) -> Any:
        cache = Cache()
        for layer in self.layers:
            cache.entries.append(Entry(layer.up(x)))  # type: ignore[operator]
            x = layer(x)
        return {"logits": self.head(x), "cache": cache}


class Counts(Layer):
    """Changes buffers in training."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.calls: Tensor
        self.mean: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            self.mean.lerp_(x.detach().mean((0, 1)), 0.1)
        return super().forward(x - self.mean)


class Normalised(Layer):
    """Has a weight that is computed from others."""

    def __init__(self) -> None:
        super().__init__()
        self.up = parametrizations.weight_norm(self.up)


class Fourier(Layer):
    """Mixes tokens by complex numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.fft.fft2(self.norm(x)).real / WIDTH)


class InPlace(Layer):
    """Overwrites its own values."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.norm(x)).mul_(0.5)
        y[..., 0] = 0.0
        y = torch.relu(y)
        return x.clone().add_(torch.dropout(self.down(y), 0.2, self.training))


class Experts(Layer):
    """Sends each row to one of two experts."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 2)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        rows = x.reshape(-1, WIDTH)
        weights, chosen = self.router(rows).softmax(-1).max(-1)
        mixed = torch.zeros_like(rows)
        for index, expert in enumerate(self.experts):
            (mine,) = torch.where(chosen == index)
            mixed.index_add_(0, mine, expert(rows[mine]) * weights[mine, None])
        return x + mixed.reshape(x.shape)


class Scan(Layer):
    """Goes through the sequence step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.rand(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros_like(x[:, 0])
        states = []
        for step in range(4):
            state = state * torch.sigmoid(self.decay) + x[:, step]
            states.append(state)
        return super().forward(x + torch.stack(states, 1))


CASES: dict[str, Callable[[], nn.Module]] = {
    "layer drop by a tensor": lambda: DropsLayers("tensor"),
    "layer drop by an item": lambda: DropsLayers("item"),
    "layer drop by Python": lambda: DropsLayers("python"),
    "values looked at": lambda: Stack(Clamps),
    "cache": Caches,
    "mutable buffers": lambda: Stack(Counts),
    "parametrised weight": lambda: Stack(Normalised),
    "complex numbers": lambda: Stack(Fourier),
    "in place": lambda: Stack(InPlace),
    "experts": lambda: Stack(Experts),
    "scan": lambda: Stack(Scan),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_stage(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CASES[name]()
    x = torch.randn(2, 4, WIDTH)
    captured = repl_fx.capture_parts(model, (x,))
    _check_exact(model, captured.module, x)
    result = rewrite(captured, Options())
    assert [len(repeat) for repeat in result.repeats] == [DEPTH]
    assert len(result.plan.replacements) == 1
    rewritten = result.graph_module
    rewritten.train()
    _first(rewritten(x)).square().sum().backward()  # type: ignore[no-untyped-call]
    rewritten.eval()
    with torch.no_grad():
        expected = _leaves(rewritten(x))
        repl_fx.save(result, tmp_path / "artifact")
        again = repl_fx.load(tmp_path / "artifact", CASES[name]())
        assert _same(_leaves(again(x)), expected)
        folded = repl_fx.fold(rewritten)
        assert _same(_leaves(folded(x)), expected)
    check = Exported(rewritten, tmp_path / "model.onnx", (x,)).verify()
    assert check, check.summary()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_exact_and_exported(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Stack().to(dtype)
    x = torch.randn(2, 4, WIDTH, dtype=dtype)
    captured = repl_fx.capture_parts(model, (x,))
    _check_exact(model, captured.module, x)
    rewritten = rewrite(captured, Options()).graph_module.eval()
    exported = Exported(rewritten, tmp_path / "model.onnx", (x,))
    if dtype is torch.bfloat16:
        # A valid file, which ONNX Runtime has no CPU kernels for.
        with pytest.raises(repl_fx.ExportError, match=r"ONNX Runtime cannot load .*MatMul"):
            exported.verify()
        return
    check = exported.verify()
    assert check, check.summary()


def test_a_replaced_layer_has_no_part_of_the_cache() -> None:
    x = torch.randn(2, 4, WIDTH)
    cache = repl_fx.transform(Caches(), (x,)).graph_module.eval()(x)["cache"]
    assert type(cache) is Cache
    assert [entry.keys is None for entry in cache.entries] == [False, True, False]


@pytest.mark.slow
def test_a_decision_inside_a_layer_that_may_be_skipped_is_refused() -> None:
    model = DropsLayers("tensor")
    model.layers = nn.ModuleList(Clamps() for _ in range(DEPTH))
    with pytest.raises(repl_fx.CaptureError, match="how often the forward decides depends on what it decided before"):
        repl_fx.capture(model, (torch.randn(2, 4, WIDTH),))


def _check_exact(model: nn.Module, gm: nn.Module, x: Tensor) -> None:
    """Outputs, gradients and buffers, to the bit; several seeds, so that layers are dropped and are not."""
    start = {name: buffer.clone() for name, buffer in model.named_buffers()}
    results = []
    for module in (model, gm):
        rows: list[Any] = []
        for name, buffer in module.named_buffers():
            if name in start:
                buffer.data.copy_(start[name])
        for seed in range(6):
            module.train()
            module.zero_grad()
            torch.manual_seed(seed)
            random.seed(seed)
            out = module(x)
            _first(out).square().sum().backward()  # type: ignore[no-untyped-call]
            grads = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
            buffers = {name: b.clone() for name, b in module.named_buffers() if name in start}
            rows.append((_leaves(out), grads, buffers, _leaves(module.eval()(x))))
        results.append(rows)
    for ours, theirs in zip(*results, strict=True):
        assert _same(ours[0], theirs[0])
        assert ours[1].keys() == theirs[1].keys()
        assert _same(list(ours[1].values()), list(theirs[1].values()))
        assert _same(list(ours[2].values()), list(theirs[2].values()))
        assert _same(ours[3], theirs[3])


def _leaves(out: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(open_objects(out)) if isinstance(leaf, Tensor)]


def _first(out: Any) -> Tensor:
    return _leaves(out)[0]


def _same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
