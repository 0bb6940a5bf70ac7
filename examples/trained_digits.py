r"""Weights to compress: the network of `examples/digits.py`, trained by a plain PyTorch loop on loaders of one's own.

python examples/trained_digits.py digits.safetensors    # and a number of epochs, in place of 8
repl-fx compress examples/digits.py --weights digits.safetensors --data examples/trained_digits.py:data \
        --budget flops=0.7 --heal -o small
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_model
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

Loader = DataLoader[tuple[Tensor, ...]]


def data() -> tuple[Loader, Loader]:
    """Batches of pictures (64, 1, 8, 8), from -1 to 1, and classes: to train on, and held out (a quarter)."""
    found: Any = load_digits()
    pictures = torch.from_numpy(found.images).float()[:, None] / 8 - 1
    classes = torch.from_numpy(found.target).long()
    parts = train_test_split(pictures, classes, test_size=0.25, random_state=0, stratify=classes)
    train, test = TensorDataset(parts[0], parts[2]), TensorDataset(parts[1], parts[3])
    return DataLoader(train, 64, shuffle=True, drop_last=True), DataLoader(test, 64)


def train(model: nn.Module, epochs: int = 8) -> float:
    """Train a model in place; the share of right answers on what is held out."""
    batches, held_out = data()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, epochs * len(batches))
    for _ in range(epochs):
        for pictures, classes in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(pictures), classes).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        right = [(model(pictures).argmax(1) == classes).float() for pictures, classes in held_out]
    return float(torch.cat(right).mean())


def main(file: Path, epochs: int = 8) -> None:
    """Train from one seed, and write the weights."""
    from examples.digits import model

    torch.manual_seed(0)
    trained = model()
    print(f"accuracy {train(trained, epochs):.4f}")
    save_model(trained, str(file))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
