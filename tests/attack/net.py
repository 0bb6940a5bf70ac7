"""The frame of a random network: stem, repeats in a container, head, and forms of inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from tests.attack import state
from tests.attack.blocks import AddFrom, Between, Block, BlockSpec, LastOf

_NORMS = (nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d, nn.RMSNorm)


@dataclass(frozen=True)
class RepeatSpec:
    """Copies of a block in a container, with another block before the copy at `place` sometimes."""

    block: BlockSpec
    depth: int
    container: str
    other: BlockSpec | None
    place: int


@dataclass(frozen=True)
class NetSpec:
    """A network; see `tests.attack.networks.draw` for the values."""

    stream: str
    width: int
    length: int
    batch: int
    repeats: tuple[RepeatSpec, ...]
    inputs: str
    outputs: str
    stem: str
    head: str
    features: frozenset[str] = field(default_factory=frozenset)
    state: str | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of parameters and floating inputs."""
        for name, dtype in (("double", torch.float64), ("half", torch.float16), ("bfloat16", torch.bfloat16)):
            if name in self.features:
                return dtype
        return torch.float32


@dataclass
class Result:
    """An output with names."""

    logits: Tensor
    features: Tensor
    note: str | None = None


class Pair(NamedTuple):
    """Inputs or outputs by place and by name."""

    first: Tensor
    second: Tensor


class Repeat(nn.Module):
    """Copies of a block in one of the usual containers."""

    def __init__(self, spec: RepeatSpec, features: frozenset[str]) -> None:
        super().__init__()
        self.container = spec.container
        p = [0.1 * (1 + i) / spec.depth if "drop_grows" in spec.block.extras else 0.1 for i in range(spec.depth)]
        blocks: list[nn.Module] = [Block(spec.block, p[i]) for i in range(spec.depth)]
        if "shared_norm" in features:
            for block in blocks[1:]:
                for mine, first in zip(block.branches, blocks[0].branches, strict=True):  # type: ignore[arg-type]
                    mine.norm = first.norm
        if "shared_block" in features:
            blocks[-1] = blocks[0]
        if spec.other is not None:
            blocks.insert(spec.place, Block(spec.other))
        if spec.container == "between":
            blocks = [piece for i, block in enumerate(blocks) for piece in (block, Between(None if i % 2 else 0.9))]
        self.count = len(blocks)
        if spec.container in ("sequential", "between"):
            self.blocks: Any = nn.Sequential(*blocks)
        elif spec.container == "dict":
            self.blocks = nn.ModuleDict({f"stage_{i}": block for i, block in enumerate(blocks)})
        elif spec.container == "attributes":
            for i, block in enumerate(blocks):
                setattr(self, f"block{i}", block)
        else:
            self.blocks = nn.ModuleList(blocks)
        if spec.container == "history":
            self.last = LastOf()
        if spec.container == "add_from":
            self.shortcuts = nn.ModuleList(AddFrom(2) for _ in blocks)

    def forward(self, x: Tensor, side: Tensor | None = None) -> Tensor:
        kind = self.container
        if kind in ("sequential", "between"):
            return self.blocks(x)  # type: ignore[no-any-return]
        if kind == "dict":
            for block in self.blocks.values():
                x = block(x)
        elif kind == "attributes":
            for i in range(self.count):
                x = getattr(self, f"block{i}")(x)
        elif kind == "enumerate":
            for i, block in enumerate(self.blocks):
                x = block(x)
                if i % 2 == 5:
                    x = x.relu()
        elif kind == "history":
            values = [x]
            for block in self.blocks:
                values.append(block(self.last(values)))
            x = values[-1]
        elif kind == "add_from":
            values = []
            for block, shortcut in zip(self.blocks, self.shortcuts, strict=True):
                values.append(x)
                x = shortcut(block(x), values) * 0.7
        else:
            for block in self.blocks:
                x = block(x) if side is None else block(x, side)
        return x


class Net(nn.Module):
    """Stem, repeats, head.

    Args:
        spec: see `NetSpec`.
    """

    VOCABULARY = 11
    CLASSES = 3

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        self.spec = spec
        width, features = spec.width, spec.features
        if spec.stem == "ids":
            self.stem: nn.Module = nn.Embedding(self.VOCABULARY, width)
            self.places = nn.Parameter(0.1 * torch.randn(spec.length, width))
        elif spec.stream == "pictures":
            self.stem = nn.Conv2d(3, width, 3, padding=1)
        else:
            self.stem = nn.Linear(5, width)
        self.repeats = nn.ModuleList(Repeat(repeat, features) for repeat in spec.repeats)
        channel = 1 if spec.stream == "pictures" else -1
        self.state = state.KINDS[spec.state](width, channel) if spec.state else None
        picture = spec.stream == "pictures"
        several = spec.length * spec.length if picture else spec.length
        flat = width * several if spec.head == "flat" and spec.stream != "vectors" else width
        self.outs = self.VOCABULARY if self._tied() else self.CLASSES
        self.head = nn.Linear(width if self._tied() else flat, self.outs)
        if "aux_in_training" in features:
            self.aux = nn.Linear(width, 2)
        if "unused" in features:
            self.unused = nn.Linear(2, 2)
        if self._tied():
            self.head.weight = self.stem.weight
        if "transposed_buffer" in features:
            self.square = nn.Parameter(torch.randn(width, width) / width)
            self.register_buffer("turned", self.square.detach().t())
        self.to(spec.dtype)
        self._freeze()

    def _tied(self) -> bool:
        return "tied_head" in self.spec.features and self.spec.stem == "ids"

    def _freeze(self) -> None:
        features = self.spec.features
        first: Any = self.repeats[0]
        blocks = [module for module in first.modules() if isinstance(module, Block)]
        if "frozen_stem" in features:
            self.stem.requires_grad_(False)
        if "frozen_block" in features:
            blocks[len(blocks) // 2].requires_grad_(False)
        if "frozen_norms" in features:
            for module in first.modules():
                if isinstance(module, _NORMS):
                    module.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; norms that are pinned stay in evaluation."""
        super().train(mode)
        if "pinned" in self.spec.features:
            for module in self.modules():
                if isinstance(module, _NORMS):
                    module.eval()
        return self

    @staticmethod
    def arguments(form: str, x: Tensor, other: Tensor, mask: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments in one of the forms of inputs."""
        forms: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
            "plain": ((x,), {}),
            "optional": ((x, None), {}),
            "dict": (({"x": x, "other": other},), {}),
            "tuple": (((x, other),), {}),
            "named": ((Pair(x, other),), {}),
            "keyword": ((x,), {"other": other}),
            "scale": ((x,), {"scale": 0.5}),
            "side": ((x,), {"side": mask}),
        }
        return forms[form]

    def forward(self, x: Any, other: Tensor | None = None, *, side: Tensor | None = None, scale: float = 1.0) -> Any:
        if isinstance(x, dict):
            x, other = x["x"], x["other"]
        elif isinstance(x, tuple):
            x, other = x
        features = self.spec.features
        if "no_grad_stem" in features:
            with torch.no_grad():
                h = self.stem(x)
        else:
            h = self.stem(x)
        if self.spec.stem == "ids":
            h = h + self.places
        if other is not None:
            h = h + (other[..., None, None] if h.ndim == 4 else other.unsqueeze(-2) if h.ndim > other.ndim else other)
        if self.state is not None:
            h = self.state(h)
        if scale != 1.0:
            h = h * scale
        if "transposed_buffer" in features:
            turned = h.movedim(1, -1) if h.ndim == 4 else h
            turned = turned @ self.square + turned @ self.turned
            h = turned.movedim(-1, 1) if h.ndim == 4 else turned
        for number, repeat in enumerate(self.repeats):
            h = repeat(h, side)
            if number == 0 and "detach" in features:
                h = h + h.detach().abs()
        if "training_scale" in features and self.training:
            h = h * 1.5
        return self.wrapped(self.head(self.pooled(h)), h)

    def pooled(self, h: Tensor) -> Tensor:
        """What the head reads: (…, features)."""
        kind = self.spec.head
        if self.spec.stream == "pictures":
            if kind == "flat" and not self._tied():
                return h.flatten(1)
            if kind == "first":
                return h[:, :, -1, -1]
            return h.mean((2, 3)) if kind == "pool" else h.movedim(1, -1)
        if self.spec.stream == "vectors" or kind == "each":
            return h
        if kind == "flat" and not self._tied():
            return h.flatten(-2)
        return h[..., 0, :] if kind == "first" else h.mean(-2)

    def wrapped(self, y: Tensor, h: Tensor) -> Any:
        """The result in the form that the spec asks for."""
        if "aux_in_training" in self.spec.features:
            level = self.aux(h.movedim(1, -1) if h.ndim == 4 else h)
            if self.training:
                y = y + level.sum()
        forms: dict[str, Any] = {
            "tuple": (y, h),
            "dict": {"logits": y, "features": h},
            "dataclass": Result(y, h),
            "named": Pair(y, h),
            "list": [y, h.detach()],
            "nested": (y, {"inner": [h, (y * 2,)]}),
            "with_none": (y, None),
            "number": (y, 3),
        }
        return forms.get(self.spec.outputs, y)
