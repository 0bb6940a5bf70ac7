r"""Blends of slices of weights that are sharded over processes, as by FSDP2: each process blends the rows it has.

    process 0     gains * rows 0 … k of A, C   ->  rows 0 … k of the blend   \
    process 1     gains * rows k … n of A, C   ->  rows k … n of the blend   -> the blend, on every process

Only what is made goes from process to process: not A and C. A weight that is not sharded along its first axis is
gathered first, and so are all where FSDP2 shards no module: with tensor parallelism nothing reduces the gradients of
gains, and each process needs those of all rows.

The loss that trains is the mean over processes, and each has one of its own. So a process makes the gradient of the sum
of all losses for the rows it has; a shard divides it by the number of processes, as FSDP2 does with the gradients that
it reduces itself, and gains that FSDP2 has gathered are averaged by it later. Where several processes have the same
rows, each takes its part of that sum.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from repl_fx._torch import applied, constant_when_compiled
from repl_fx.surrogates.shared.weight_slices import SliceBlend, WeightSlice, blend_one, blend_slices


def is_sharded(tensor: Tensor) -> bool:
    """Tell whether a tensor is one of `torch.distributed.tensor`."""
    if type(tensor) in (Tensor, nn.Parameter):
        return False
    # Not imported here, which takes a second: where nobody has, there is no such tensor.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_fully_sharded(module: nn.Module) -> bool:
    """Tell whether a module itself went through `fully_shard`."""
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    return kind is not None and isinstance(module, kind)


# Asked once when code is compiled: torch.compile of torch 2.11 cannot trace the list of subclasses.
@constant_when_compiled
def is_fully_sharded_anywhere() -> bool:
    """Tell whether any module of this process went through `fully_shard`.

    The weights that FSDP2 gathers come back in the same tensors with other values, and with no trace of the change.
    """
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    return kind is not None and bool(kind.__subclasses__())


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its values on every process; one that is not sharded, itself."""
    if not is_sharded(tensor):
        return tensor
    sharded: Any = tensor
    return _averaging(_gathered(sharded, sharded.device_mesh), sharded.device_mesh.size())


def blend_all(blends: Sequence[SliceBlend]) -> list[Tensor]:
    """The sums, one for each blend, sharded weights or not, on every process.

    What is made of shards has the precision of the gains: a module that FSDP2 runs in another precision has its own
    parameters in that, and the shards of its neighbours in theirs.
    """
    sharded = [any(is_sharded(weight) for weight in blend.weights) for blend in blends]
    if not any(sharded):
        return blend_slices(blends)
    some = iter(_blend_shards([blend for blend, is_one in zip(blends, sharded, strict=True) if is_one]))
    others = iter(blend_slices([blend for blend, is_one in zip(blends, sharded, strict=True) if not is_one]))
    return [next(some if is_one else others) for is_one in sharded]


def _blend_shards(blends: Sequence[SliceBlend]) -> list[Tensor]:
    made: dict[int, Tensor] = {}
    parts: dict[int, tuple[Any, Tensor]] = {}
    for number, blend in enumerate(blends):
        rows = _rows_of(blend)
        if rows is None:
            gathered = SliceBlend(blend.units, blend.gains, tuple(map(whole, blend.weights)))
            made[number] = blend_one(gathered).to(blend.gains[0].dtype)
        elif rows.all:
            made[number] = rows.gather(_blend_of(rows, blend))
        else:
            parts[number] = rows.mesh, rows.placed(_blend_of(rows, blend))
    # Slices are small, and go together.
    kinds: dict[tuple[Any, torch.dtype], list[int]] = {}
    for number, (mesh, part) in parts.items():
        kinds.setdefault((mesh, part.dtype), []).append(number)
    for (mesh, _), numbers in kinds.items():
        some = [parts[number][1] for number in numbers]
        total: Tensor = applied(_SumOverShards, mesh, torch.cat([part.flatten() for part in some]))
        pieces = torch.split(total, [part.numel() for part in some])
        made.update((n, piece.view_as(part)) for n, piece, part in zip(numbers, pieces, some, strict=True))
    return [made[number] for number in range(len(blends))]


class _SumOverShards(torch.autograd.Function):
    """The sum of a tensor over the processes that have shards of one whole.

    Its gradient is that of the sum of all losses, in equal parts for the processes that have the same shard.
    """

    @staticmethod
    def forward(ctx: Any, mesh: Any, part: Tensor) -> Tensor:
        ctx.mesh = mesh
        return _summed(part, mesh, mesh.ndim - 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, _summed(gradient, ctx.mesh, *range(ctx.mesh.ndim)) / _replicas(ctx.mesh)


def _summed(part: Tensor, mesh: Any, *axes: int) -> Tensor:
    """The sum of a tensor over the processes along some axes of a mesh."""
    total = part.clone()
    for axis in axes:
        torch.distributed.all_reduce(total, group=mesh.get_group(axis))
    return total


def _replicas(mesh: Any) -> int:
    """The number of processes with the same shard."""
    return int(mesh.size() // mesh.size(mesh.ndim - 1))


def _gathered(sharded: Any, mesh: Any) -> Tensor:
    kind: Any = sys.modules["torch.distributed.tensor"]
    made: Tensor = sharded.full_tensor(grad_placements=[kind.Partial()] * mesh.ndim)
    return made


def _averaging(tensor: Tensor, processes: int) -> Tensor:
    """A tensor that is new here, whose gradient is divided by a number of processes."""

    def divide(gradient: Tensor) -> Tensor:
        if gradient.is_cuda:
            # The gradients that FSDP2 itself reduces are added to the same shards on a stream of its own.
            torch.cuda.synchronize(gradient.device)
        return gradient / processes

    if tensor.requires_grad:
        untyped: Any = tensor
        untyped.register_hook(divide)
    return tensor


@dataclass(frozen=True)
class _Rows:
    """The rows of a blend that this process makes.

    Attributes:
        mesh, placements: of the weights.
        sizes: of the whole blend.
        skip: how many rows of the weights' local parts are before the first one that the blend has.
        start: the place of that row in the blend.
        count: how many rows there are.
        all: whether the blend has all rows of the weights.
    """

    mesh: Any
    placements: tuple[Any, ...]
    sizes: tuple[int, ...]
    skip: int
    start: int
    count: int
    all: bool

    def gather(self, made: Tensor) -> Tensor:
        """The blend, of the rows of each process."""
        stride = torch.empty(self.sizes, device="meta").stride()
        kind: Any = sys.modules["torch.distributed.tensor"]
        shape = torch.Size(self.sizes)
        rows = made.contiguous()
        sharded = kind.DTensor.from_local(rows, self.mesh, self.placements, run_check=False, shape=shape, stride=stride)
        made = _gathered(sharded, self.mesh)
        return made if self.mesh.ndim == 1 else _averaging(made, _replicas(self.mesh))

    def placed(self, made: Tensor) -> Tensor:
        """The rows among zeros for those of the other processes."""
        before, behind = self.start, self.sizes[0] - self.start - self.count
        return torch.cat([made.new_zeros(before, *self.sizes[1:]), made, made.new_zeros(behind, *self.sizes[1:])])


def _rows_of(blend: SliceBlend) -> _Rows | None:
    """The part that this process has in a blend; None where the weights are to be gathered first."""
    one: Any = blend.weights[0]
    if not (is_fully_sharded_anywhere() and all(is_sharded(weight) for weight in blend.weights)):
        return None
    mesh, placements = one.device_mesh, one.placements
    shared: list[Any] = [(w.device_mesh, w.placements, w.shape[0]) for w in blend.weights]  # type: ignore[attr-defined]
    kinds = [type(placement).__name__ for placement in placements]
    # Replicas of shards are those of FSDP2 on a mesh of two axes.
    if shared.count(shared[0]) != len(shared) or kinds not in (["Shard"], ["Replicate", "Shard"]):
        return None
    if placements[-1].dim != 0:
        return None
    units, size = blend.units, one.shape[0]
    first, count = (units.start, units.count) if units.axis == 0 else (0, units.across or size)
    each = -(-size // mesh.size(mesh.ndim - 1))
    begin = min(mesh.get_local_rank(mesh.ndim - 1) * each, size)
    end = min(begin + each, size)
    low, high = max(first, begin), min(first + count, end)
    start, have = (low - first, high - low) if low < high else (0, 0)
    sizes = tuple(units.of(torch.empty(one.shape, device="meta")).shape)
    return _Rows(mesh, placements, sizes, max(0, low - begin) if have else 0, start, have, count == size)


def _blend_of(rows: _Rows, blend: SliceBlend) -> Tensor:
    """The rows of a blend that this process has."""
    units = blend.units
    gains = [row for gain in blend.gains for row in gain.reshape(-1, blend.numbers)]
    if units.axis == 0 and blend.numbers > 1:
        gains = [row.narrow(0, rows.start, rows.count) for row in gains]
    terms = []
    for row, weight in zip(gains, blend.weights, strict=True):
        sharded: Any = weight
        local = _averaging(sharded.to_local(), rows.mesh.size(rows.mesh.ndim - 1)).narrow(0, rows.skip, rows.count)
        if units.axis == 1:
            local = local.narrow(1, units.start, units.count)
        elif units.across is not None:
            local = local.narrow(1, 0, units.across)
        terms.append(WeightSlice(units.axis, 0, 0).scales(row, local.ndim) * local)
    total: Tensor = functools.reduce(torch.add, terms)
    return total.to(gains[0].dtype)
