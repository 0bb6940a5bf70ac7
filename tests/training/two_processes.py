"""A process of several that train networks, as `repl-fx train` does.

python -m tests.training.two_processes DIRECTORY CASE …, with what torchrun sets in the environment

    DIRECTORY/models.pt   networks with surrogates in place, by surrogate
    -> DIRECTORY/CASE     the run, and in it weights.pt from the first process
"""

from __future__ import annotations

import copy
import csv
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn

import repl_fx
from repl_fx.training.data.data_set import Data, Tensors
from repl_fx.training.processes import Ended, ending_together, join
from repl_fx.training.run import CHECKPOINT, LOGS, STATE, train_once
from repl_fx.training.safe_checkpoints import Checkpoints, before, part_of
from repl_fx.training.train_config import TrainConfig
from tests.nets import TokenNet
from tests.surrogates.nets import GRID

PROCESSES = 2
# 24 steps, and an evaluation whose last batch has one row for two processes.
LONG = TrainConfig(
    epochs=2, batch_size=8, optimizer="sgd", lr=0.1, device="cpu", log_every=1, augment=False, weight_decay=0.01
)
# Surrogate and settings, by name.
CASES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "ddp auto": ("auto", {}),
    "ddp bottleneck": ("bottleneck", {"mixup": 0.2, "accumulate": 2, "epochs": 4}),
    "ddp blend": ("blend", {"ema": 0.9}),
    "fsdp2 auto": ("auto", {"strategy": "fsdp2"}),
    "fsdp2 bottleneck": ("bottleneck", {"strategy": "fsdp2", "mixup": 0.2, "accumulate": 2, "epochs": 4}),
    "fsdp2 blend": ("blend", {"strategy": "fsdp2"}),
}
# The sharded run that is broken off and goes on too.
SHARDED = "fsdp2 blend"
# Runs that are broken off in the second epoch, behind so many batches: their case.
BROKEN: Mapping[str, str] = {"ddp broken": "ddp auto", "fsdp2 broken": SHARDED}
BEHIND, SAVE_EVERY = 19, 5


def samples() -> Data:
    """Sequences whose class is their largest mean."""
    drawn = torch.Generator().manual_seed(0)
    inputs = torch.randn(113, GRID, 16, generator=drawn)
    targets = inputs[:, :, :10].mean(1).argmax(1)
    train, test = Tensors(inputs[:96], targets[:96]), Tensors(inputs[96:], targets[96:])
    return Data("sequences", "classification", 10, (GRID, 16), train, test, (), ())


def rewritten(surrogate: str) -> nn.Module:
    """A small transformer with two surrogates in place."""
    torch.manual_seed(0)
    return repl_fx.transform(TokenNet(depth=5), (torch.randn(2, GRID, 16),), surrogate=surrogate).model


def trained(
    case: str, models: Mapping[str, nn.Module], directory: Path, *, resume: bool = False, **changed: Any
) -> dict[str, Tensor]:
    """Train a case on a copy of its network, with some settings changed; returns the weights behind it."""
    surrogate, settings = CASES[case]
    settings = {**settings, **changed}
    model = copy.deepcopy(models[surrogate])
    train_once(model, samples(), LONG.changed(**settings), directory, resume=resume)
    return model.state_dict()


class _BrokenOff(Exception):
    pass


def break_off(name: str, models: Mapping[str, nn.Module], directory: Path) -> None:
    """Train the case of one of `BROKEN` up to the batch."""
    own, count = Checkpoints.on_train_batch_end, 0

    def on_train_batch_end(self: Checkpoints, *args: Any) -> None:
        nonlocal count
        own(self, *args)
        count += 1
        if count == BEHIND:
            raise _BrokenOff

    with patch.object(Checkpoints, "on_train_batch_end", on_train_batch_end), suppress(_BrokenOff):
        trained(BROKEN[name], models, directory, save_every=SAVE_EVERY)


def trajectory(directory: Path) -> dict[str, list[float]]:
    """The figures that a run logged, by name: of all steps, and of all evaluations."""
    found: dict[str, list[float]] = {}
    with (directory / STATE / LOGS / "from_step_0" / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name in ("loss", "test_loss", "test_accuracy"):
                    found.setdefault(name, []).append(float(value))
    return found


def environments() -> list[dict[str, str]]:
    """What torchrun sets in the environment of each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size = str(PROCESSES)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(PROCESSES)]


def main(directory: Path, cases: Sequence[str]) -> None:
    """Train cases one after the other, in the same processes; the runs that are broken off behind them."""
    torch.set_num_threads(1)
    with ending_together():
        first, models = join(LONG).first, torch.load(directory / "models.pt", weights_only=False)
        for case in cases:
            weights = trained(case, models, directory / case)
            if first:
                torch.save(weights, directory / case / "weights.pt")
        for name in (name for name, case in BROKEN.items() if case in cases):
            break_off(name, models, directory / name)
        if SHARDED not in cases:
            return
        # As a kill leaves it that comes when the checkpoint before has made way for the next.
        broken = directory / "fsdp2 broken"
        place = broken / STATE / CHECKPOINT
        if first:
            shutil.copytree(place, part_of(place))
            place.rename(before(place))
        dist.barrier()
        weights = trained(SHARDED, models, broken, resume=True, save_every=SAVE_EVERY)
        if first:
            torch.save(weights, broken / "weights.pt")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2:])
    except Ended as end:
        sys.exit(end.code)
