from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repl_fx
from repl_fx.finding.branches import Split, split_branches
from tests.nets import ConvNet, TokenNet, images, tokens


def _split(model: nn.Module, *inputs: Tensor) -> Split:
    gm = repl_fx.capture(model, inputs)
    return split_branches(gm, repl_fx.find_repeats(gm)[0].blocks[1])


def _ends(split: Split) -> list[tuple[list[str], list[str]]]:
    return [([str(m.node.target) for m in b.entries], [str(m.node.target) for m in b.exits]) for b in split.branches]


@pytest.mark.parametrize("post_norm", [False, True])
def test_transformer_block_has_two_branches(post_norm: bool) -> None:
    split = _split(TokenNet(post_norm=post_norm), tokens())
    assert _ends(split) == [
        (["blocks.1.attn.qkv"], ["blocks.1.attn.proj"]),
        (["blocks.1.fc1"], ["blocks.1.fc2"]),
    ]
    assert len(split.spine) == (4 if post_norm else 2)


def test_residual_convolutions_have_one_branch() -> None:
    split = _split(ConvNet(), images())
    assert _ends(split) == [(["blocks.1.conv1"], ["blocks.1.conv2"])]
    assert [n.name.split("_")[0] for n in split.spine] == ["add", "relu"]


def test_a_block_without_a_way_around_its_operators_has_no_spine() -> None:
    split = _split(ConvNet(plain=True), images())
    assert split.branches == () and split.reason is not None and "it has no spine" in split.reason


def test_a_gate_on_the_spine_is_named() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = x * torch.sigmoid(self.fc(x))
            return out

    split = _split(nn.Sequential(*(Gated() for _ in range(3))), torch.randn(2, 8))
    assert split.reason is not None and "which is no addition" in split.reason


def test_squeeze_and_excite_before_the_addition_belongs_to_the_span() -> None:
    class Excited(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 3, padding=1)
            self.down, self.up = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv2(F.relu(self.conv1(x)))
            gate = torch.sigmoid(self.up(F.relu(self.down(y.mean((2, 3), keepdim=True)))))
            out: Tensor = x + y * gate
            return out

    split = _split(nn.Sequential(*(Excited() for _ in range(3))), torch.randn(2, 8, 4, 4))
    assert _ends(split) == [(["1.conv1"], ["1.conv2"])]
    assert split.branches[0].output is split.branches[0].root


def test_parallel_branches_and_cross_attention() -> None:
    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(8)
            self.a1, self.a2 = nn.Linear(8, 12), nn.Linear(12, 8)
            self.b1, self.b2 = nn.Linear(8, 4), nn.Linear(4, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            out: Tensor = x + self.a2(F.relu(self.a1(y))) + self.b2(F.relu(self.b1(y)))
            return out

    split = _split(nn.Sequential(*(Parallel() for _ in range(3))), torch.randn(2, 8))
    assert _ends(split) == [(["1.a1"], ["1.a2"]), (["1.b1"], ["1.b2"])]

    class Staggered(nn.Module):
        """Its second head reads another value of the stream than its first."""

        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(8)
            self.early, self.late, self.out = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = x + self.out(self.early(x) * self.late(self.norm(x)))
            return out

    split = _split(nn.Sequential(*(Staggered() for _ in range(3))), torch.randn(2, 8))
    assert _ends(split) == [(["1.early"], ["1.out"])]

    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x: Tensor, memory: Tensor) -> Tensor:
            k, v = self.k(memory), self.v(memory)
            out: Tensor = x + self.o(F.scaled_dot_product_attention(self.q(x), k, v))
            return out

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Cross() for _ in range(3))

        def forward(self, x: Tensor, memory: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x, memory)
            return x

    split = _split(Decoder(), torch.randn(2, 5, 8), torch.randn(2, 7, 8))
    assert _ends(split) == [(["layers.1.q"], ["layers.1.o"])]
