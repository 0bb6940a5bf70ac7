"""Data come to the model as they lie in the files: each kind of source, on the way of each command, bit for bit.

`train` and `heal` read training batches and evaluate on held-out ones, `compress` and `inspect --data` read calibration
batches too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("torchvision")

from PIL import Image
from torch import Tensor, nn

from repl_fx.training.calibration import calibration
from repl_fx.training.loading import changes_of, loaders, read_data
from repl_fx.training.train_config import TrainConfig

CPU = torch.device("cpu")
RANDOM = np.random.default_rng(0)
FLOATS = RANDOM.normal(3.0, 5.0, (6, 3, 4, 5)).astype(np.float32)
PIXELS = RANDOM.integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
LABELS = np.arange(6) % 2
AS_FLOATS = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float() / 255

CODE = """
import numpy as np, torch
from pathlib import Path
from torch.utils.data import DataLoader, Dataset, TensorDataset
from repl_fx.training.data import Data, Tensors

x = torch.from_numpy(np.load(Path(__file__).parent / "x.npy"))
y = torch.arange(6) % 2


class Own(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return x[index], int(y[index])


def tensors():
    return Data("own", "classification", 2, tuple(x.shape[1:]), Tensors(x, y), Tensors(x, y))


def dataset():
    return Data("own", "classification", 2, tuple(x.shape[1:]), Own(), Own())


def loaders():
    return DataLoader(TensorDataset(x, y), 6), DataLoader(TensorDataset(x, y), 6)


def one_loader():
    return DataLoader(TensorDataset(x, y), 6)


def batches():
    return [(x[:3], y[:3]), (x[3:], y[3:])]


def pairs():
    yield x, y


def inputs_alone():
    yield x
"""


def _saved(folder: Path, array: Any) -> str:
    np.savez(folder / "a.npz", train_x=array, train_y=LABELS, test_x=array, test_y=LABELS)
    return f"npz:{folder / 'a.npz'}"


def _code(folder: Path, name: str, array: Any) -> str:
    np.save(folder / "x.npy", array)
    (folder / "own.py").write_text(CODE)
    return f"{folder / 'own.py'}:{name}"


def _folder(folder: Path) -> str:
    for split in ("train", "val"):
        for number, picture in enumerate(PIXELS):
            place = folder / split / "ab"[int(number > 2)]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(place / f"{number}.png")
    return f"folder:{folder}"


def _masks(folder: Path) -> str:
    for split in ("train", "test"):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
        for number, picture in enumerate(PIXELS):
            Image.fromarray(picture).save(folder / split / "images" / f"{number}.png")
            Image.fromarray(picture[..., 0] % 3).save(folder / split / "masks" / f"{number}.png")
    return f"masks:{folder}"


SOURCES: dict[str, tuple[Callable[[Path], str], Tensor]] = {
    "npz of floats": (lambda folder: _saved(folder, FLOATS), torch.from_numpy(FLOATS)),
    "npz of vectors": (lambda folder: _saved(folder, FLOATS.reshape(6, -1)), torch.from_numpy(FLOATS.reshape(6, -1))),
    "npz of pixels": (lambda folder: _saved(folder, PIXELS), AS_FLOATS),
    "folder": (_folder, AS_FLOATS),
    "masks": (_masks, AS_FLOATS),
    "tensors": (lambda folder: _code(folder, "tensors", FLOATS), torch.from_numpy(FLOATS)),
    "dataset": (lambda folder: _code(folder, "dataset", FLOATS), torch.from_numpy(FLOATS)),
    "tokens": (
        lambda folder: _code(folder, "tensors", np.arange(24).reshape(6, 4)),
        torch.arange(24).reshape(6, 4),
    ),
    "loaders": (lambda folder: _code(folder, "loaders", FLOATS), torch.from_numpy(FLOATS)),
    **{
        name: (lambda folder, name=name: _code(folder, name, FLOATS), torch.from_numpy(FLOATS))  # type: ignore[misc]
        for name in ("one_loader", "batches", "pairs", "inputs_alone")
    },
    "loaders of pixels": (lambda folder: _code(folder, "loaders", PIXELS), torch.from_numpy(PIXELS)),
}


def _rows(batches: Any) -> Tensor:
    return torch.cat(list(batches))


def _sorted(rows: Tensor) -> list[Any]:
    return sorted(rows.flatten(1).tolist())


@pytest.mark.parametrize("source", SOURCES)
def test_data_come_as_they_are(tmp_path: Path, source: str) -> None:
    write, wanted = SOURCES[source]
    config = TrainConfig(data=write(tmp_path), batch_size=3, device="cpu")
    data = read_data(config)
    train, test = loaders(data, config, CPU)
    held_out = _rows(inputs for inputs, _ in test)
    assert held_out.dtype == wanted.dtype and torch.equal(held_out, wanted)
    # Training batches come in an order of their own.
    assert _sorted(_rows(inputs for inputs, _ in train)) == _sorted(wanted)
    batches, _ = calibration(nn.Flatten(), data, config, 6, with_loss=False)
    seen = _rows(given for (given,), _ in batches())
    assert seen.dtype == wanted.dtype and _sorted(seen) == _sorted(wanted)
    # A change is said; these have none, but for pixels that become floats.
    scaled = wanted is AS_FLOATS
    said = [line for line in changes_of(data, config) if not line.startswith(("batches of", "pictures of"))]
    assert said == [f"pixels of {data.name}: uint8 -> float32, divided by 255"] * scaled


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"normalise": "data"}, ["channels of"]),
        ({"augment": True}, ["training inputs of"]),
        ({"mixup": 0.2, "cutmix": 1.0}, ["training inputs of", "training inputs of"]),
    ],
)
def test_changes_that_are_asked_for_are_made_and_said(
    tmp_path: Path, settings: dict[str, Any], said: list[str]
) -> None:
    config = TrainConfig(data=_saved(tmp_path, FLOATS), batch_size=3, device="cpu").changed(**settings)
    data = read_data(config)
    lines = changes_of(data, config)
    assert [line[: len(begin)] for line, begin in zip(lines, said, strict=True)] == said
    assert _sorted(_rows(inputs for inputs, _ in loaders(data, config, CPU)[0])) != _sorted(torch.from_numpy(FLOATS))
