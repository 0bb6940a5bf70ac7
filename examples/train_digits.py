r"""Train a model and its rewritten form on scikit-learn's handwritten digits, with one plain PyTorch loop for both.

    python examples/train_digits.py                     the residual MLP of examples/mlp.py
    python examples/train_digits.py --seeds 0 1 2       three times, to see the spread

    python examples/train_digits.py --model examples/resnet32.py:ResNet --input-shape 2x3x8x8 \
        --options '{"depth": 3}'
    python examples/train_digits.py --model examples/vit.py:VisionTransformer --input-shape 2x3x8x8 \
        --options '{"image": 8, "patch": 2, "width": 64, "depth": 6, "heads": 2}' --epochs 30

Both start from the same seed, see the same batches in the same order, and learn by the same recipe: AdamW with a
one-cycle schedule and label smoothing. The table shows the share of right answers on digits that were held out (a
quarter of 1,797), the number of parameters, and the wall-clock seconds an epoch takes (median, training alone).

Any model specification that `repl-fx transform` takes will do when the model has 10 outputs: one whose example input is
(batch, 64) gets the 64 pixels as features; one whose example input is (batch, channels, height, width) gets the 8×8
images scaled to that size, the same in every channel.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import repl_fx
from repl_fx.sources import load_source

MLP = str(Path(__file__).resolve().parent / "mlp.py")


@dataclass(frozen=True)
class Digits:
    """Inputs (float32) and classes (int64, 0 to 9), for training and held out."""

    train_inputs: Tensor
    train_classes: Tensor
    test_inputs: Tensor
    test_classes: Tensor


@dataclass(frozen=True)
class Outcome:
    """What training one model gave.

    Attributes:
        name: of the row in the table.
        accuracy: share of right answers on held-out digits, 0 to 1.
        parameters: learnable numbers.
        epoch_seconds: median over the epochs.
    """

    name: str
    accuracy: float
    parameters: int
    epoch_seconds: float


def digits_for(example: Tensor) -> Digits:
    """The digits in the form of a model's example input; the split is always the same.

    Args:
        example: (batch, 64), or (batch, channels, height, width).
    """
    pixels, classes = load_digits(return_X_y=True)
    # Pixels are counts from 0 to 16.
    inputs = torch.from_numpy(pixels).float() / 8.0 - 1.0
    if example.ndim == 4:
        channels, height, width = example.shape[1:]
        images = F.interpolate(inputs.reshape(-1, 1, 8, 8), size=(height, width), mode="bilinear")
        inputs = images.repeat(1, channels, 1, 1)
    elif example.ndim != 2 or example.shape[1] != inputs.shape[1]:
        raise SystemExit(f"the model takes inputs of shape {tuple(example.shape)}; (batch, 64) or images are wanted")
    parts = train_test_split(range(len(classes)), test_size=0.25, random_state=0, stratify=classes)
    train, test = (torch.tensor(part) for part in parts)
    answers = torch.from_numpy(classes).long()
    return Digits(inputs[train], answers[train], inputs[test], answers[test])


def train(
    name: str, model: nn.Module, digits: Digits, *, epochs: int, seed: int, lr: float = 2e-3, batch: int = 64
) -> Outcome:
    """Train a model in place and test it.

    Args:
        name: for the table.
        model: maps inputs to (batch, 10) logits.
        digits: what to learn and what to be tested on.
        epochs: passes over the training digits.
        seed: of the order of the digits, of dropout and the like.
        lr: largest learning rate of the schedule.
        batch: digits a step.
    """
    torch.manual_seed(seed)
    count = len(digits.train_classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, epochs=epochs, steps_per_epoch=-(-count // batch))
    seconds = []
    for _ in range(epochs):
        model.train()
        begin = time.perf_counter()
        order = torch.randperm(count)
        for start in range(0, count, batch):
            rows = order[start : start + batch]
            loss = F.cross_entropy(model(digits.train_inputs[rows]), digits.train_classes[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        seconds.append(time.perf_counter() - begin)
    parameters = sum(p.numel() for p in model.parameters())
    return Outcome(name, accuracy(model, digits), parameters, statistics.median(seconds))


@torch.no_grad()
def accuracy(model: nn.Module, digits: Digits) -> float:
    """Share of right answers on the held-out digits, 0 to 1."""
    right = model.eval()(digits.test_inputs).argmax(1) == digits.test_classes
    return float(right.float().mean())


def compare(
    spec: str = MLP,
    *,
    input_shape: str | None = None,
    options: Mapping[str, Any] | None = None,
    every: int = 2,
    surrogate: str = "auto",
    epochs: int = 10,
    seed: int = 0,
) -> tuple[Outcome, Outcome]:
    """Train a model as it is, and rewritten, from the same start.

    Args:
        spec: path to a model.py, or any other model specification.
        input_shape: of the example input, where the model's own does not fit the digits.
        options: keyword arguments of the model.
        every, surrogate: see `repl_fx.transform`.
        epochs: passes over the training digits, for each of the two.
        seed: of the weights, the surrogates, and the training.

    Returns:
        What came of the original and of the rewritten model.
    """
    source = load_source(spec, input_shape=input_shape, seed=seed, options=options)
    digits = digits_for(source.args[0])
    # A copy: otherwise the two would share, and train, the same parameters.
    result = repl_fx.transform(
        source.model, source.args, source.kwargs, every=every, surrogate=surrogate, seed=seed, copy=True
    )
    original = train("original", source.model, digits, epochs=epochs, seed=seed)
    name = f"rewritten, {len(result.plan.replacements)} blocks replaced"
    return original, train(name, result.graph_module, digits, epochs=epochs, seed=seed)


def main(argv: Sequence[str] | None = None) -> None:
    """Train both and print the table."""
    parser = argparse.ArgumentParser(description="A model and its rewritten form on scikit-learn's digits.")
    parser.add_argument("--model", default=MLP, help="a model of 10 outputs (default examples/mlp.py)")
    parser.add_argument("--input-shape", help="of the example input, such as 2x3x8x8")
    parser.add_argument("--options", type=json.loads, help="keyword arguments of the model, as JSON")
    parser.add_argument("--every", type=int, default=2, help="replace every k-th block of a repeat (default 2)")
    parser.add_argument("--surrogate", default="auto", help="what stands in for a block (default auto)")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training digits (default 10)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one training of both for each (default 0)")
    options = parser.parse_args(argv)
    table = Table("seed", "model", title=f"{Path(options.model).name}, {options.epochs} epochs", title_justify="left")
    for column in ("accuracy", "parameters", "s an epoch"):
        table.add_column(column, justify="right")
    for seed in options.seeds:
        pair = compare(
            options.model,
            input_shape=options.input_shape,
            options=options.options,
            every=options.every,
            surrogate=options.surrogate,
            epochs=options.epochs,
            seed=seed,
        )
        for outcome in pair:
            table.add_row(
                str(seed),
                outcome.name,
                f"{100 * outcome.accuracy:.1f} %",
                f"{outcome.parameters:,}",
                f"{outcome.epoch_seconds:.2f}",
                end_section=outcome is pair[1],
            )
    Console().print(table)


if __name__ == "__main__":
    try:
        main()
    except repl_fx.ReplFxError as problem:
        raise SystemExit(f"error: {problem}") from problem
