"""Throughput of `repl-fx train` next to a loop written by hand.

    python -m benchmarks.throughput                                    a small ViT on digits
    python -m benchmarks.throughput --data npz:cifar10.npz --model resnet20
    python -m benchmarks.throughput --data npz:cifar10.npz --model resnet110 --device cuda

Both train the same rewritten model, with the same optimizer, schedule, clipping and batch, on data that lie on the
device and are shifted and mirrored there. The loop has nothing else: no log, no progress, no checkpoint, no position
that could be saved. Its batches are indexed by a permutation. They take turns, round by round, and inputs a second are
those of the median epoch of a round: loading and steps, without evaluation. On a GPU, the share of time in which the
device is busy is that of the loop times the ratio, as both run the same kernels.

Times are of the wall clock; with `--clock cpu`, CPU seconds of the process, which other load on the machine disturbs
less (run it with OMP_NUM_THREADS=1, and not for a GPU).

Exit status: 0; with `--strict` 1 where the median ratio is below 0.95, or 0.90 on a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import nn

import repl_fx
from benchmarks.training.models import resnet, vit
from repl_fx.benchmarking.hardware import device_name, of_device
from repl_fx.training import callbacks
from repl_fx.training.data import CropAndFlip, Data, Tensors, load_data
from repl_fx.training.module import Schedule, optimizer_of
from repl_fx.training.run import train_once
from repl_fx.training.train_config import TrainConfig

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "vit": lambda image, channels: vit(image, channels, patch=2 if image < 16 else 4, width=48, depth=7),
    "resnet20": lambda image, channels: resnet(3, channels),
    "resnet110": lambda image, channels: resnet(18, channels),
}


def by_hand(
    model: nn.Module, data: Data, config: TrainConfig, device: torch.device, clock: Callable[[], float]
) -> float:
    """Inputs a second of the loop, in its median epoch."""
    assert isinstance(data.train, Tensors)
    model = model.to(device).train()
    mean, std = (torch.tensor(scale, device=device)[:, None, None] for scale in (data.mean, data.std))
    inputs, targets = data.train.main.to(device), data.train.targets.to(device)
    batches = len(targets) // config.batch_size
    optimizer = optimizer_of(model.parameters(), config)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, Schedule(config.epochs * batches, config.warmup))
    shift = CropAndFlip(max(1, data.shape[1] // 8), flip=data.shape[0] == 3)
    generator = torch.Generator(device).manual_seed(config.seed)
    rates = []
    for _ in range(config.epochs):
        begin = clock()
        order = torch.randperm(len(targets), device=device)
        for number in range(batches):
            chosen = order[number * config.batch_size : (number + 1) * config.batch_size]
            batch, labels = shift(inputs[chosen], targets[chosen], generator)
            loss = F.cross_entropy(model((batch.float() / 255 - mean) / std), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            optimizer.step()
            schedule.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        rates.append(batches * config.batch_size / (clock() - begin))
    return statistics.median(rates)


def by_command(model: nn.Module, data: Data, config: TrainConfig, clock: Callable[[], float]) -> float:
    """Inputs a second of what `repl-fx train` runs, in its median epoch."""
    with tempfile.TemporaryDirectory() as folder, patch.object(callbacks, "time", SimpleNamespace(perf_counter=clock)):
        made = train_once(model, data, config, Path(folder))
    assert made.inputs_per_second is not None
    return made.inputs_per_second


def measure(model: str, data: Data, config: TrainConfig, rounds: int, clock: str = "wall") -> dict[str, Any]:
    """The rates of both, round by round.

    Args:
        model: a key of `MODELS`.
        rounds: of one run each; the first of all warms up and is left out.
    """
    device = torch.device(config.device)
    torch.manual_seed(config.seed)
    made = repl_fx.transform(
        MODELS[model](data.shape[1], data.shape[0]), (torch.randn(2, *data.shape),), copy=True
    ).model
    start = {name: value.clone() for name, value in made.state_dict().items()}
    rates: dict[str, list[float]] = {"by hand": [], "repl-fx train": []}
    for number in range(rounds + 1):
        for name in sorted(rates, reverse=bool(number % 2)):
            made.load_state_dict(start)
            if name == "by hand":
                rate = by_hand(made, data, config, device, CLOCKS[clock])
            else:
                rate = by_command(made, data, config, CLOCKS[clock])
            if number:
                rates[name].append(rate)
    ratios = [ours / theirs for ours, theirs in zip(rates["repl-fx train"], rates["by hand"], strict=True)]
    return {
        "model": model,
        "data": str(data),
        "clock": clock,
        "batch": config.batch_size,
        "rates": rates,
        "ratios": ratios,
    }


def lines(measured: dict[str, Any]) -> list[str]:
    """The table, in Markdown."""
    unit = "inputs/s" if measured["clock"] == "wall" else "inputs per CPU second"
    rows = [(unit, name, values) for name, values in measured["rates"].items()]
    table = ["| | median | lowest | highest |", "|---|---:|---:|---:|"]
    for unit, name, values in rows:
        table.append(f"| {name}, {unit} | {statistics.median(values):.0f} | {min(values):.0f} | {max(values):.0f} |")
    ratios = measured["ratios"]
    table.append(f"| ratio | {statistics.median(ratios):.3f} | {min(ratios):.3f} | {max(ratios):.3f} |")
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and show the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="digits", help="a data set of pictures (digits)")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--model", choices=MODELS, default="vit")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--samples", type=int, help="training inputs to take; all by default")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of a round (4)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rates there")
    parser.add_argument("--strict", action="store_true")
    given = parser.parse_args(arguments)
    data = load_data(given.data, root=given.data_dir, normalise="data")
    assert isinstance(data, Data) and isinstance(data.train, Tensors)
    # The evaluation at the end of each epoch is not measured.
    few = Tensors(data.test.main[:64], data.test.targets[:64]) if isinstance(data.test, Tensors) else data.test
    part = Tensors(data.train.main[: given.samples], data.train.targets[: given.samples])
    config = TrainConfig(batch_size=given.batch_size, epochs=given.epochs, device=given.device, augment=True)
    measured = measure(given.model, replace(data, train=part, test=few), config, given.rounds, given.clock)
    device = torch.device(given.device)
    print(f"{given.model} on {measured['data']}, batch {given.batch_size}; {device_name(device)}")
    print("\n".join(lines(measured)))
    if given.json is not None:
        given.json.write_text(json.dumps({**measured, "machine": of_device(device)}, indent=1) + "\n")
    wanted = 0.90 if device.type == "cuda" else 0.95
    return int(given.strict and statistics.median(measured["ratios"]) < wanted)


if __name__ == "__main__":
    raise SystemExit(main())
