"""Layers without some of the hidden units between them (see `repl_fx.surrogates.narrow`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from repl_fx.surrogates.shared.fitted_starts import CutLayer, KeptUnits

Read = Callable[[str], Tensor]


@dataclass(frozen=True, eq=False)
class StayingUnits:
    """The hidden units that stay.

    Attributes:
        units: their numbers, (count), from the least.
        readers: the weights that read them, with the rows of `readers_of`, (rows, count); None for the columns of old.
        shift: what each of those rows adds, (rows).
    """

    units: Tensor
    readers: Tensor | None = None
    shift: Tensor | None = None


def laid_out(layer: CutLayer, read: Read) -> Tensor:
    """The weight that a layer is cut from, as (out, in, …)."""
    weight = read(layer.of_weight)
    return weight.t() if layer.transposed else weight


@torch.no_grad()
def cut_layers(layers: Iterable[CutLayer], read: Read, chosen: Sequence[StayingUnits]) -> dict[str, Tensor]:
    """The parameters of layers by name, stored as those that they are cut from.

    Args:
        layers: of a `KeptUnits`.
        read: the tensor at a path.
        chosen: for each of its hidden units.
    """
    made: dict[str, Tensor] = {}
    behind = [0] * len(chosen)
    for layer in layers:
        weight, bias = laid_out(layer, read), None if layer.of_bias is None else read(layer.of_bias)
        if layer.columns is not None:
            given = chosen[layer.columns]
            if given.readers is None:
                weight = weight.index_select(1, given.units)
            else:
                begin = behind[layer.columns]
                behind[layer.columns] += weight[:, 0].numel()
                rows = slice(begin, behind[layer.columns])
                if bias is not None and given.shift is not None:
                    # As in the middle of a picture; at its edges a convolution sees less of the shift.
                    bias = (bias.to(given.shift) + given.shift[rows].view(len(weight), -1).sum(1)).to(bias)
                again = given.readers[rows].t().reshape(-1, len(weight), *weight.shape[2:])
                weight = again.transpose(0, 1).to(weight)
        if layer.rows is not None:
            units = chosen[layer.rows].units
            weight, bias = weight.index_select(0, units), None if bias is None else bias.index_select(0, units)
        made[layer.weight] = (weight.t() if layer.transposed else weight).contiguous()
        if layer.bias is not None and bias is not None:
            made[layer.bias] = bias
    return made


def readers_of(start: KeptUnits, number: int, read: Read) -> Tensor:
    """The weights that read some hidden units, (rows, size), with a row for each output and tap of a kernel."""
    weights = [laid_out(layer, read) for layer in start.layers if layer.columns == number]
    return torch.cat([weight.detach().transpose(0, 1).flatten(1).t() for weight in weights])


def longest(start: KeptUnits, number: int, read: Read) -> StayingUnits:
    """The units whose rows and columns are longest: a choice without data."""
    size, count = start.hidden[number].size, start.hidden[number].count
    made = [laid_out(layer, read).detach() for layer in start.layers if layer.rows == number]
    if made[0].is_meta:
        return StayingUnits(torch.arange(count))
    rows = torch.stack([_lengths(weight.flatten(1), 1) for weight in made]).prod(0)
    worth = rows * _lengths(readers_of(start, number, read), 0)
    assert worth.shape == (size,)
    group = start.hidden[number].group
    return StayingUnits(whole_groups(worth.view(-1, group).sum(1).topk(count // group).indices.sort().values, group))


def _lengths(weight: Tensor, axis: int) -> Tensor:
    # A copy in double precision takes longer than the norm.
    lengths: Tensor = weight.to(torch.promote_types(weight.dtype, torch.float32)).norm(dim=axis)
    return lengths.double()


def whole_groups(groups: Tensor, group: int) -> Tensor:
    """The numbers of the units of groups, by the numbers of these."""
    return (groups[:, None] * group + torch.arange(group, device=groups.device)).flatten()
