"""Blocks of random networks: branches with norms, drops, joins and state around them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tests.attack import hooks, pictures, state, tokens
from tests.attack.attention import Attention
from tests.attack.parts import DROPS, PICTURE_NORMS, TOKEN_NORMS, drop, picture_norm, token_norm

JOINS = (
    "add", "add", "add", "iadd", "imul", "alpha", "gamma", "scalar", "gate", "mean", "norm", "none", "view", "zeroed",
    "stack", "lerp", "relu_", "relu", "clone", "sub",
)  # fmt: skip
_ADDITIONS = ("add", "iadd", "imul", "gamma", "alpha", "clone", "sub")
VECTOR_BRANCHES = ("mlp", "gated", "plain", "parametrized", "lazy", "scripted", "dropconnect", "direct_matmul")
LOOSE_BRANCHES = ("mlp", "gated", "plain", "attention", "attention", "dropconnect")
TOKEN_BRANCHES = ("attention", "attention", "attention", "mlp", "mlp", "mixer", "layer", *tokens.BRANCHES)


@dataclass(frozen=True)
class BranchSpec:
    """One branch: what it does and how it is joined to the stream."""

    kind: str
    seed: int
    place: str
    norm: str
    join: str
    drop: str
    autocast: bool = False

    @property
    def prunable(self) -> bool:
        """Whether without it nothing is left but what enters it."""
        return self.place in ("pre", "none", "sandwich") and self.join in _ADDITIONS


@dataclass(frozen=True)
class BlockSpec:
    """What all copies of a block have in common.

    Attributes:
        stream: `tokens`, `vectors`, `loose` (tokens without a batch) or `pictures`.
        width, length: channels, and tokens or the side of a picture.
        branches: in their order.
        extras: names of further features: state of `tests.attack.state`, `tensor_hook…`, `map_kept`, `side`.
    """

    stream: str
    width: int
    length: int
    branches: tuple[BranchSpec, ...]
    extras: frozenset[str] = field(default_factory=frozenset)

    @property
    def channel(self) -> int:
        """The dimension of the channels."""
        return 1 if self.stream == "pictures" else -1

    @property
    def prunable(self) -> bool:
        """Whether without its branches nothing is left of the block but what enters it."""
        more = self.extras & {*state.KINDS, "tensor_hook", "tensor_hook_counts", "no_grad"}
        return not more and all(branch.prunable for branch in self.branches)

    def labels(self) -> list[str]:
        """The features, for sorting what is found."""
        found = [f"extra:{name}" for name in sorted(self.extras)]
        for branch in self.branches:
            found += [f"branch:{branch.kind}", f"join:{branch.join}", f"norm:{branch.place}/{branch.norm}"]
            found += [f"drop:{branch.drop}"] * (branch.drop != "none") + ["autocast"] * branch.autocast
        return found


def draw_block(rng: random.Random, stream: str, width: int, length: int, extras: frozenset[str]) -> BlockSpec:
    """A random block for a stream."""
    plain = rng.random() < 0.35
    branches = []
    kinds = {
        "tokens": TOKEN_BRANCHES,
        "vectors": VECTOR_BRANCHES,
        "loose": LOOSE_BRANCHES,
        "pictures": tuple(pictures.BRANCHES),
    }[stream]
    norms = PICTURE_NORMS if stream == "pictures" else TOKEN_NORMS if stream == "tokens" else ("layer", "rms", "none")
    place, norm = rng.choice(["pre", "pre", "post", "none", "sandwich"]), rng.choice(norms)
    usual = "add" if plain else rng.choice(JOINS)
    for number in range(rng.choice([1, 1, 1, 2] if stream == "pictures" else [1, 1, 1, 1, 1, 1, 2, 2, 2, 3])):
        kind = rng.choice(kinds)
        if kind == "scripted" and rng.random() < 0.6:
            kind = "mlp"
        if extras & {"map_kept", "side"} and number == 0:
            kind = "attention"
        join = usual if rng.random() < 0.7 else "add"
        if join in ("view", "zeroed") and stream == "vectors":
            join = "add"
        branches.append(
            BranchSpec(
                kind,
                rng.randrange(1 << 30),
                "pre" if plain else place,
                ("batch" if stream == "pictures" else "layer") if plain else norm,
                join,
                "none" if plain else rng.choice(DROPS),
                autocast="autocast" in extras and number == 0,
            )
        )
    return BlockSpec(stream, width, length, tuple(branches), extras)


def _inner(spec: BlockSpec, branch: BranchSpec) -> nn.Module:
    rng = random.Random(branch.seed)
    if branch.kind == "attention":
        return Attention(rng, spec.width, spec.length, "side" in spec.extras, "map_kept" in spec.extras)
    if branch.kind == "layer":
        return nn.TransformerEncoderLayer(
            spec.width, 2, 2 * spec.width, rng.choice([0.0, 0.1]), batch_first=True, norm_first=rng.random() < 0.5
        )
    if branch.kind == "mixer":
        return tokens.Mixer(rng, spec.width, spec.length)
    if branch.kind == "direct_matmul":
        made = tokens.DirectWeights(rng, spec.width)
        made.kind = "matmul"
        return made
    if spec.stream == "pictures":
        return pictures.BRANCHES[branch.kind](rng, spec.width)
    return tokens.BRANCHES[branch.kind](rng, spec.width)


class Branch(nn.Module):
    """A branch and its residual addition; the addition's form is part of the spec.

    Args:
        spec: of the block.
        branch: of this branch.
        p: probability of the drop, which may grow with depth.
    """

    def __init__(self, spec: BlockSpec, branch: BranchSpec, p: float) -> None:
        super().__init__()
        self.place, self.join, self.autocast = branch.place, branch.join, branch.autocast
        self.prunable = branch.prunable
        self.takes_side = "side" in spec.extras and branch.kind == "attention"
        picture = spec.stream == "pictures"
        shape = (spec.width, 1, 1) if picture else (spec.width,)
        make = picture_norm if picture else token_norm
        self.norm = make(branch.norm, spec.width) if branch.place != "none" else nn.Identity()
        self.norm2 = make(branch.norm, spec.width) if branch.place == "sandwich" else None
        self.inner = _inner(spec, branch)
        self.drop = drop(branch.drop, p)
        if branch.join == "gamma":
            self.gamma = nn.Parameter(torch.full(shape, 0.4))
        elif branch.join in ("gate", "lerp"):
            self.gate = nn.Parameter(torch.linspace(-1, 1, spec.width).reshape(shape))
        elif branch.join == "scalar":
            self.alpha = nn.Parameter(torch.tensor(0.8))

    def forward(self, x: Tensor, side: Tensor | None = None) -> Tensor:
        h = self.norm(x) if self.place in ("pre", "sandwich") else x
        if self.autocast:
            with torch.autocast(x.device.type, torch.bfloat16):
                y = self.inner(h, side) if self.takes_side else self.inner(h)
            y = y.to(x.dtype)
        else:
            y = self.inner(h, side) if self.takes_side else self.inner(h)
        if self.norm2 is not None:
            y = self.norm2(y)
        x = self.joined(x, self.drop(y))
        return self.norm(x) if self.place == "post" else x

    def joined(self, x: Tensor, y: Tensor) -> Tensor:
        """The stream behind the branch."""
        kind = self.join
        if kind == "iadd":
            y += x
            return y
        if kind == "imul":
            y.mul_(0.5)
            return x + y
        if kind == "view":
            x = x + y
            x[:, :1] += 1.0
            return x
        if kind == "zeroed":
            x = x + y
            x[..., 0].mul_(0.5)
            return x
        if kind == "relu_":
            return (x + y).relu_()
        if kind == "clone":
            return x.clone().add_(y)
        return self.added(x, y)

    def added(self, x: Tensor, y: Tensor) -> Tensor:
        """The stream behind a branch that writes to nothing."""
        kind = self.join
        if kind == "alpha":
            return torch.add(x, y, alpha=0.5)
        if kind == "gamma":
            return x + self.gamma * y
        if kind == "scalar":
            return x * self.alpha + y
        if kind == "gate":
            gate: Tensor = torch.sigmoid(self.gate)
            return x.add(gate * (y - x))
        if kind == "lerp":
            return x.lerp(y, torch.sigmoid(self.gate).expand_as(x))
        if kind == "mean":
            return x + y + x.mean()
        if kind == "norm":
            return x.mul(3).div(x.norm() + 1e-3).add(y)
        if kind == "none":
            return y
        if kind == "stack":
            return torch.stack([x, y]).sum(0)
        if kind == "relu":
            return torch.relu(x + y)
        if kind == "sub":
            return x - y
        return x + y


class Block(nn.Module):
    """Branches one after the other, and what else the spec asks for.

    Args:
        spec: the same for all copies.
        p: probability of drops.
    """

    def __init__(self, spec: BlockSpec, p: float = 0.1) -> None:
        super().__init__()
        self.branches = nn.ModuleList(Branch(spec, branch, p) for branch in spec.branches)
        self.prunable = spec.prunable
        kind = next((name for name in sorted(spec.extras) if name in state.KINDS), None)
        self.state = state.KINDS[kind](spec.width, spec.channel) if kind else None
        counts = "tensor_hook_counts" in spec.extras
        self.tensor_hook = hooks.TensorHook(not counts, counts) if counts or "tensor_hook" in spec.extras else None
        self.stopped = "no_grad" in spec.extras

    def forward(self, x: Tensor, side: Tensor | None = None) -> Tensor:
        for branch in self.branches:
            x = branch(x, side)
        if self.state is not None:
            x = self.state(x)
        if self.tensor_hook is not None:
            x = self.tensor_hook(x)
        if self.stopped:
            with torch.no_grad():
                level = x.abs().mean()
            x = x / (1 + level)
        return x


class LastOf(nn.Module):
    """Without parameters: the last of all earlier values."""

    def forward(self, values: list[Tensor]) -> Tensor:
        return values[-1]


class AddFrom(nn.Module):
    """Without parameters: adds one of all earlier values, as detectors' configuration files have it."""

    def __init__(self, back: int) -> None:
        super().__init__()
        self.back = back

    def forward(self, x: Tensor, values: list[Tensor]) -> Tensor:
        return x + values[-self.back] if len(values) >= self.back else x


class Between(nn.Module):
    """Without parameters: a scale that control flow on the configuration decides."""

    def __init__(self, scale: float | None) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x if self.scale is None else x * self.scale
