"""Small networks that several tests use, each with the kinds of block it is made of."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import repl_fx
from repl_fx.passes.fold_surrogates import is_synthesis
from repl_fx.surrogates import make_surrogate
from repl_fx.tracing.parts.capture_parts import CapturedParts
from tests.exporting import Exported


def seeded_call(module: nn.Module, seed: int, *args: Any) -> Any:
    """The result of a module where torch's generator begins at a seed."""
    torch.manual_seed(seed)
    return module(*args)


class Attention(nn.Module):
    """Multi-head self-attention over (batch, tokens, width)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, width))  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    """Attention and MLP, with the norm before or after."""

    def __init__(self, width: int, heads: int = 2, dropout: float = 0.0, post_norm: bool = False) -> None:
        super().__init__()
        self.post_norm = post_norm
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads, dropout)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        if self.post_norm:
            x = self.norm1(x + self.attn(x))
            return self.norm2(x + self.drop(self.fc2(F.gelu(self.fc1(x)))))  # type: ignore[no-any-return]
        x = x + self.attn(self.norm1(x))
        return x + self.drop(self.fc2(F.gelu(self.fc1(self.norm2(x)))))  # type: ignore[no-any-return]


class MlpBlock(nn.Module):
    """Norm and MLP around a residual addition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))  # type: ignore[no-any-return]


class LevelledBlock(MlpBlock):
    """Divides by a level that no gradient goes through."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        with torch.no_grad():
            level = x.abs().mean()
        return x / (1 + level)


class MixedHalves(nn.Module):
    """Two residual halves over (batch, tokens, 8), of which the second alone is the same in all blocks."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.mix = nn.Linear(8, 8) if number % 2 else nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        hidden = self.norm1(x)
        x = x + self.mix(hidden if mask is None else hidden * mask[..., None])
        return x + self.fc2(self.fc1(self.norm2(x)).relu())  # type: ignore[no-any-return]


class ConvBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around a residual addition."""

    def __init__(self, width: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, kernel, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel, padding=kernel // 2, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class PlainBlock(nn.Module):
    """A convolution without a way around it: no spine."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


class ConvNet(nn.Module):
    """Images (batch, 3, 8, 8) to ten classes, through `depth` blocks; `without` leaves some of them out."""

    def __init__(
        self, depth: int = 5, width: int = 8, kernel: int = 3, plain: bool = False, without: Collection[int] = ()
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        every = [PlainBlock(width) if plain else ConvBlock(width, kernel) for _ in range(depth)]
        self.blocks = nn.Sequential(*(block for i, block in enumerate(every) if i not in without))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


class Counts(nn.Module):
    """No single graph, as it keeps a number in Python."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.calls = body, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.body(x)  # type: ignore[no-any-return]


class TokenNet(nn.Module):
    """Sequences (batch, tokens, width) to ten classes, through `depth` transformer blocks."""

    def __init__(
        self,
        depth: int = 5,
        width: int = 16,
        heads: int = 2,
        dropout: float = 0.0,
        post_norm: bool = False,
        without: Collection[int] = (),
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(width, width)
        every = [TransformerBlock(width, heads, dropout, post_norm) for _ in range(depth)]
        self.blocks = nn.Sequential(*(block for i, block in enumerate(every) if i not in without))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x)).mean(1))  # type: ignore[no-any-return]


class MlpNet(nn.Module):
    """What `TokenNet` is without attention, and quicker to trace."""

    def __init__(self, depth: int = 3, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Linear(width, width)
        self.blocks = nn.Sequential(*(MlpBlock(width) for _ in range(depth)))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x)).mean(1))  # type: ignore[no-any-return]


class TwoStreams(nn.Module):
    """Fine tokens of width 8 and coarse ones of width 6; in each block the coarse ones read the fine ones.

    Takes (batch, 4); `without` leaves some blocks out.
    """

    def __init__(self, depth: int = 4, without: Collection[int] = ()) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.coarse = nn.Linear(8, 6)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"fine": nn.Linear(8, 8), "cross": nn.Linear(8, 6), "own": nn.Linear(6, 6)})
            for _ in range(depth)
        )
        self.head = nn.Linear(14, 3)
        self.without = without

    def forward(self, x: Tensor) -> Tensor:
        fine = self.stem(x)
        coarse = self.coarse(fine)
        for number, block in enumerate(self.blocks):
            if number in self.without:
                continue
            fine = fine + F.relu(block["fine"](fine))  # type: ignore[index]
            coarse = coarse + block["cross"](fine)  # type: ignore[index]
            coarse = coarse + F.relu(block["own"](coarse))  # type: ignore[index]
        return self.head(torch.cat([fine, coarse], 1))  # type: ignore[no-any-return]


class RawNet(nn.Module):
    """Blocks of raw parameters, which are no modules."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(8, 8) / 4) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = x + torch.tanh(x @ weight)
        return x


class Row(nn.Module):
    """Blocks one behind another, each of which is handed what the row is."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, given)
        return x


def training_step(model: nn.Module, x: Tensor, training: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
    """The output in a mode, under one seed, and the gradients of its mean square, by name."""
    model.train(training)
    model.zero_grad()
    torch.manual_seed(3)
    out = model(x)
    torch.autograd.backward(out.square().mean())
    return out.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def images(batch: int = 2) -> Tensor:
    """Inputs for `ConvNet`."""
    return torch.randn(batch, 3, 8, 8)


def tokens(batch: int = 2, length: int = 6, width: int = 16) -> Tensor:
    """Inputs for `TokenNet`."""
    return torch.randn(batch, length, width)


def as_after_training(gm: nn.Module) -> None:
    """Give the parameters of surrogates random values, for those that start at zero hide what follows them."""
    with torch.no_grad():
        for name, parameter in gm.named_parameters():
            if "surrogate" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)


def rewritten(
    model: nn.Module, x: Tensor, surrogate: str, settings: Mapping[str, Any] | None = None
) -> repl_fx.TransformResult:
    """What `repl_fx.transform` makes of a model. The results share their parameters with it, and with each other.

    One capture serves for all of a model on one input, until the model changes.
    """
    make_surrogate(surrogate, settings)
    return repl_fx.transform(model, (x,), surrogate=surrogate, settings=settings, captured=captured(model, x))


@lru_cache(maxsize=2)
def captured(model: nn.Module, x: Tensor) -> CapturedParts:
    """The capture of a model on an input; of the last two that were asked for it is the same one again."""
    return repl_fx.capture_parts(model, (x,))


def check_starts_as_if_pruned_and_folds(
    model: nn.Module, gm: fx.GraphModule, x: Tensor, file: Path | None, *, layer_scale: bool
) -> dict[str, Tensor | None]:
    """A rewritten net begins as the depth-pruned one, trains, folds without a difference, and exports to `file`.

    Args:
        model: what it was made from.
        gm: the rewritten net.
        x: its input.
        file: of the ONNX model; None to leave it out.
        layer_scale: whether one sets how its branches begin, near the pruned net and not like it.

    Returns:
        The gradients at the start of the surrogates' own parameters, by name.
    """
    pruned = rewritten(model, x, "identity").graph_module.train()
    made = gm.train()(x)
    if layer_scale:
        assert not torch.equal(made, pruned(x)) and (made - pruned(x)).abs().max() < made.abs().max()
    else:
        torch.testing.assert_close(made, pruned(x))
    made.square().sum().backward()
    own = {n: p.grad for n, p in gm.named_parameters() if n.startswith("surrogates")}
    as_after_training(gm.eval())
    with torch.no_grad():
        wanted = gm(x)
        folded = repl_fx.fold(gm)
        torch.testing.assert_close(folded(x), wanted, rtol=0, atol=0)
        assert not any(is_synthesis(folded, node) for node in folded.graph.nodes)
        assert not torch.allclose(wanted, pruned.eval()(x))
    if file is not None:
        assert Exported(gm, file, (x,)).verify()
    return own
