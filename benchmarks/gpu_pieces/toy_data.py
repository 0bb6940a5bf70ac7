"""Pictures of noise in the files of CIFAR-10 and Fashion-MNIST, for a run that tries the way."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

COUNT, CLASSES = 64, 10


def write_toy_data(folder: Path) -> Path:
    """Write the files where they are not there yet; returns the directory."""
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    drawn = np.random.default_rng(0)
    labels = np.arange(COUNT, dtype=np.uint8) % CLASSES
    arrays = {f"{part}_x": drawn.integers(0, 256, (COUNT, 32, 32, 3), np.uint8) for part in ("train", "test")}
    if not (folder / "cifar10.npz").exists():
        np.savez(folder / "cifar10.npz", allow_pickle=False, **arrays, train_y=labels, test_y=labels)
    for part in ("train", "t10k"):
        pictures = drawn.integers(0, 256, (COUNT, 28, 28), np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, COUNT, 28, 28) + pictures.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, COUNT) + labels.tobytes())
    return folder
