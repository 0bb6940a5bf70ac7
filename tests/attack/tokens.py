"""Branches of blocks on sequences (batch, tokens, width): what stands between a norm and a residual addition."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.attack.parts import ACTIVATIONS, activation

HEADS = 2


class Mlp(nn.Module):
    """Two linear layers."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        hidden = 2 * rng.choice([width, width // 2 + 1, width + 1])
        self.fc1 = nn.Linear(width, hidden, bias=rng.random() < 0.8)
        self.act = activation(rng.choice(ACTIVATIONS))
        self.drop = nn.Dropout(rng.choice([0.0, 0.1]))
        self.fc2 = nn.Linear(hidden, width, bias=rng.random() < 0.8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.drop(self.act(self.fc1(x))))  # type: ignore[no-any-return]


class Gated(nn.Module):
    """A gated MLP on one fused layer or two."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.fused = rng.random() < 0.5
        self.up = nn.Linear(width, (2 if self.fused else 1) * 2 * width, bias=False)
        self.gate = None if self.fused else nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            a, b = self.up(x).chunk(2, -1)
            return self.down(F.silu(a) * b)  # type: ignore[no-any-return]
        return self.down(F.silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]


class Plain(nn.Module):
    """One linear layer and an activation."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)
        self.act = activation(rng.choice(ACTIVATIONS[:4]))

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.fc(x))  # type: ignore[no-any-return]


class Parametrized(nn.Module):
    """An MLP whose weights are computed by parametrizations."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        kind: Any = rng.choice(
            [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal]
        )
        self.fc1 = kind(nn.Linear(width, width))
        self.fc2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class Lazy(nn.Module):
    """An MLP whose first layer learns its size at the first call."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.fc1 = nn.LazyLinear(width + 1)
        self.fc2 = nn.Linear(width + 1, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.tanh(self.fc1(x)))  # type: ignore[no-any-return]


class Scripted(nn.Module):
    """An MLP compiled by torch.jit."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.inner = torch.jit.script(nn.Sequential(nn.Linear(width, width), nn.ReLU()))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)  # type: ignore[no-any-return]


class DropConnect(nn.Module):
    """Dropout on weights, by a layer or by the functional form."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)
        self.drop = nn.Dropout(0.2)
        self.functional = rng.random() < 0.5

    def forward(self, x: Tensor) -> Tensor:
        weight = F.dropout(self.a.weight, 0.2, self.training) if self.functional else self.drop(self.a.weight)
        return self.b(F.relu(F.linear(x, weight, self.a.bias)))  # type: ignore[no-any-return]


class DirectWeights(nn.Module):
    """Products with parameters of the module's own: matmul, einsum, baddbmm; (in, out) or (out, in)."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.kind = rng.choice(["matmul", "einsum", "transposed"])
        self.w1 = nn.Parameter(torch.randn(width, width) / math.sqrt(width))
        self.w2 = nn.Parameter(torch.randn(width, width) / math.sqrt(width))
        self.scale = nn.Parameter(torch.full((), 0.7))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "einsum":
            y = torch.einsum("btd,de->bte", x, self.w1)
        else:
            y = x @ (self.w1.t() if self.kind == "transposed" else self.w1)
        return torch.relu(y) @ self.w2 * self.scale


class Mixer(nn.Module):
    """Linear layers over the tokens."""

    def __init__(self, rng: random.Random, width: int, tokens: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(tokens, 2 * tokens), nn.Linear(2 * tokens, tokens)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x.transpose(1, 2)))).transpose(1, 2)  # type: ignore[no-any-return]


class Fourier(nn.Module):
    """Mixing by a Fourier transform: complex values inside."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)
        self.weight = nn.Parameter(torch.randn(width // 2 + 1, 2)) if rng.random() < 0.5 else None

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is None:
            return self.fc(torch.fft.fft(x, dim=-1).real)  # type: ignore[no-any-return]
        spectrum = torch.fft.rfft(x, dim=-1) * torch.view_as_complex(self.weight)
        return self.fc(torch.fft.irfft(spectrum, n=x.shape[-1], dim=-1))  # type: ignore[no-any-return]


class Conv1d(nn.Module):
    """A convolution over the tokens, with channels turned to the second place."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, padding=1, groups=rng.choice([1, width]))
        self.norm = nn.BatchNorm1d(width)
        self.fc = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.silu(self.norm(self.conv(x.transpose(1, 2)))).transpose(1, 2))  # type: ignore[no-any-return]


class Indexed(nn.Module):
    """Tensor operators at the edges: topk, gather, cumsum, where, squeeze, expand, slices, flips, rolls."""

    KINDS = (
        "topk",
        "gather",
        "cumsum",
        "where",
        "squeeze",
        "expand",
        "slices",
        "flip",
        "roll",
        "masked",
        "sort",
        "pad",
    )

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.kind = rng.choice(self.KINDS)
        self.fc = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.randn(1, 1, width))

    def mixed(self, y: Tensor) -> Tensor:
        """What the kind makes of a value."""
        if self.kind == "topk":
            values, places = y.topk(2, dim=-1)
            return torch.zeros_like(y).scatter(-1, places, values.softmax(-1)) * y
        if self.kind == "gather":
            return y.gather(1, y.detach().argsort(1))
        if self.kind == "cumsum":
            return y.cumsum(1) / torch.arange(1, y.shape[1] + 1, device=y.device, dtype=y.dtype)[:, None]
        if self.kind == "where":
            return torch.where(y > 0, y, self.bias.expand_as(y))
        if self.kind == "squeeze":
            return (y.unsqueeze(1) + self.bias.unsqueeze(0)).squeeze(1).squeeze(-2)
        if self.kind == "expand":
            return y + self.bias.expand(y.shape[0], -1, -1)
        if self.kind == "slices":
            return torch.cat([y[..., 1:99], y[..., :1]], -1) + y[:, -1:]
        if self.kind == "flip":
            return y.flip(1) + y.flip(-1)
        if self.kind == "roll":
            return torch.roll(y, (1, -1), (1, 2))
        if self.kind == "masked":
            return y.masked_fill(y < -0.5, -0.5).clamp(min=-0.4, max=0.9)
        if self.kind == "sort":
            return y.sort(-1).values
        return F.pad(y, (1, 1, 1, 0))[:, :-1, 2:]

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.mixed(self.fc(x)))  # type: ignore[no-any-return]


class Multihead(nn.Module):
    """`nn.MultiheadAttention` in its forms."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.first = rng.random() < 0.7
        self.weights = rng.random() < 0.4
        self.mha = nn.MultiheadAttention(width, HEADS, dropout=rng.choice([0.0, 0.1]), batch_first=self.first)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.first else x.transpose(0, 1)
        y = self.mha(x, x, x, need_weights=self.weights)[0]
        return y if self.first else y.transpose(0, 1)  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """A recurrent layer and a projection."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.both = rng.random() < 0.3
        kind: type[nn.LSTM | nn.GRU] = rng.choice([nn.LSTM, nn.GRU])
        self.rnn = kind(width, width, batch_first=True, bidirectional=self.both)
        self.proj = nn.Linear(2 * width if self.both else width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.rnn(x)[0])  # type: ignore[no-any-return]


class Experts(nn.Module):
    """A soft mixture of two experts, and a count of tokens as int values."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, 2)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        gates = self.gate(x).softmax(-1)
        y = torch.stack([expert(x) for expert in self.experts], dim=-1)
        busy = F.one_hot(gates.argmax(-1), 2).to(x.dtype).mean((0, 1))
        return (y * (gates * (1 + busy)).unsqueeze(-2)).sum(-1)  # type: ignore[no-any-return]


Factory = Callable[[random.Random, int], nn.Module]
BRANCHES: dict[str, Factory] = {
    "mlp": Mlp,
    "gated": Gated,
    "plain": Plain,
    "parametrized": Parametrized,
    "lazy": Lazy,
    "scripted": Scripted,
    "dropconnect": DropConnect,
    "direct": DirectWeights,
    "fourier": Fourier,
    "conv1d": Conv1d,
    "indexed": Indexed,
    "mha": Multihead,
    "recurrent": Recurrent,
    "experts": Experts,
}
