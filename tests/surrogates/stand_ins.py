"""Blocks that read the weights of other blocks from the network, as a rewritten network of modules does."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repl_fx.surrogates.shared.blended_weights import BlendSynthesis
from repl_fx.surrogates.shared.synthesis import Synthesis
from repl_fx.surrogates.shared.thin_block import SlimSynthesis, WeightCut
from tests.nets import MlpNet

WEIGHTS = ("fc1.weight", "fc2.weight")


class Means(Synthesis):
    """A synthesis of somebody's own, of whole weights: the means of both neighbours'."""

    def __init__(self) -> None:
        super().__init__(train_neighbours=True)
        self.gain = nn.Parameter(torch.ones(1))

    def synthesise(self, *weights: Tensor) -> tuple[Tensor, ...]:
        """Compute weights from weights."""
        return tuple(self.gain * (weights[i] + weights[i + 1]) / 2 for i in (0, 2))


class StandIn(nn.Module):
    """x + W_out gelu(W_in s), added to the first of its channels, with s the first channels of x.

    Args:
        net: the network that it is in.
        paths: of the weights that are read from it.
        synthesis: what makes W_in and W_out of them.
    """

    def __init__(self, net: nn.Module, paths: tuple[str, ...], synthesis: Synthesis) -> None:
        super().__init__()
        # In a list, as the network is no part of its block.
        self.net, self.paths, self.synthesis = [net], paths, synthesis

    def forward(self, x: Tensor) -> Tensor:
        weight_in, weight_out = self.synthesis(*map(self.net[0].get_parameter, self.paths))
        change = F.linear(F.gelu(F.linear(x[..., : weight_in.shape[1]], weight_in)), weight_out)
        return x + F.pad(change, (0, x.shape[-1] - change.shape[-1]))


def _blend(removed: list[Tensor], given: list[Tensor]) -> Synthesis:
    pairs = [(given[0], given[1]), (given[2], given[3])]
    return BlendSynthesis(removed, pairs, [0, 1], train_neighbours=True)


def _slim(removed: list[Tensor], given: list[Tensor]) -> Synthesis:
    # Slices that end in the rows of the second of two processes, and in those of the first.
    cuts = [WeightCut(20, 15, False, False, False), WeightCut(7, 20, False, False, False)]
    return SlimSynthesis(cuts, given, removed, train_neighbours=True)


KINDS: dict[str, Callable[[list[Tensor], list[Tensor]], Synthesis]] = {
    "blend": _blend,
    "slices": _slim,
    "of its own": lambda removed, given: Means(),
}


def with_stand_in(kind: str) -> MlpNet:
    """A network of three blocks of odd sizes, of which the second is made from the others."""
    net = MlpNet(depth=3, width=15)
    paths = tuple(f"blocks.{i}.{weight}" for weight in WEIGHTS for i in (0, 2))
    removed = [net.blocks[1].get_parameter(weight).detach() for weight in WEIGHTS]
    given = [net.get_parameter(path).detach() for path in paths]
    net.blocks[1] = StandIn(net, paths, KINDS[kind](removed, given))
    return net
