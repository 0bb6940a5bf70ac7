"""The files of a reader that the commands of a page name: small ones, made where a command names one that is not there.

Models and weights, data sets, artifacts, and caches of the libraries that pretrained weights come from.
"""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from repl_fx.cli import app
from repl_fx.sources import load_source

ROOT = Path(__file__).parents[2]
COMMIT = "a" * 40
_NET = """
    import torch
    from torch import nn


    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.conv1 = nn.Conv2d(width, 2 * width, 3, padding=1)
            self.conv2 = nn.Conv2d(2 * width, width, 3, padding=1)

        def forward(self, x):
            return x + self.conv2(self.conv1(x).relu())


    def model(depth=7):
        blocks = (Block(8) for _ in range(depth))
        return nn.Sequential(nn.Conv2d(1, 8, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


    def example_inputs():
        return (torch.randn(2, 1, 8, 8),)
"""
_LOADERS = """
    import torch

    def loaders():
        batches = [(torch.randn(8, 1, 8, 8), torch.randn(8, 10)) for _ in range(2)]
        return batches, batches
"""
# Sizes of models of transformers, as small as their types allow.
SIZES: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}


class ReadersFiles:
    """Makes files by name below a directory, and caches of pretrained weights beside it.

    Args:
        directory: of the page.
        patches: of the places of the caches; undone by the test.
    """

    def __init__(self, directory: Path, patches: pytest.MonkeyPatch) -> None:
        self.directory, self._patches = directory, patches
        self._made: dict[str, Callable[[Path], None]] = {
            **dict.fromkeys(("net.py", "model.py"), _text(_NET)),
            "data.py": _text(_LOADERS),
            **dict.fromkeys(("net.pt", "last.pth.tar"), self._checkpoint),
            **dict.fromkeys(("trained.safetensors", "original.safetensors"), self._weights),
            "data.npz": _arrays,
            **dict.fromkeys(("corpus", "CORPUS"), _corpus),
            "PICTURES": _pictures,
            "COCO": _boxed_pictures,
            "data": _cifar,
            "examples": lambda path: path.symlink_to(ROOT / "examples"),
            **dict.fromkeys(("out", "small", "before", "after"), self._artifact),
            **dict.fromkeys(("bert/config.json", "bert"), lambda path: _transformers(path, "Bert", "ForMaskedLM")),
            **dict.fromkeys(
                ("llama/config.json", "path/to/llama"), lambda path: _transformers(path, "Llama", "ForCausalLM")
            ),
            "path/to/directory": lambda path: _transformers(path, "Bert", "ForMaskedLM"),
        }
        self._cached: dict[str, Callable[[Path], None]] = {
            "ORG/NAME": lambda path: _transformers(path, "Llama", "ForCausalLM"),
            "timm/resnet18.a1_in1k": lambda path: _zoo(path, "timm:resnet18"),
        }
        # Weights of torchvision, by the name of their file.
        self._of_torchvision = {"squeezenet1_1.IMAGENET1K_V1": "squeezenet1_1-b8a52dc0.pth"}

    def bring(self, words: Sequence[str]) -> None:
        """Make what the words of a command name and is not there, but for what it writes."""
        for before, word in zip(("", *words), words, strict=False):
            if before in ("-o", ">"):
                continue
            for name in re.split(r"[:=@]", word):
                known = (name, f"{name}/config.json", name.partition("/")[0])
                for one in known:
                    path = self.directory / one
                    if one in self._made and not path.exists():
                        path.parent.mkdir(parents=True, exist_ok=True)
                        self._made[one](path)
                if name in self._of_torchvision:
                    self._torchvision(name.partition(".")[0], self._of_torchvision[name])
                if f"timm/{name}" in self._cached or name in self._cached:
                    self._cache(name if name in self._cached else f"timm/{name}")

    def _cache(self, name: str) -> None:
        constants: Any = pytest.importorskip("huggingface_hub").constants
        place = self.directory.parent / "hub"
        self._patches.setattr(constants, "HF_HUB_CACHE", str(place))
        self._patches.setattr(constants, "HF_HUB_OFFLINE", True)
        add_to_hub(place, name, self._cached[name])

    def _torchvision(self, name: str, file: str) -> None:
        self._patches.setenv("TORCH_HOME", str(self.directory.parent))
        place = self.directory.parent / "hub"
        (place / "checkpoints").mkdir(parents=True, exist_ok=True)
        torch.save(load_source(f"torchvision:{name}", seed=1).model.state_dict(), place / "checkpoints" / file)

    def _artifact(self, path: Path) -> None:
        self.bring(["net.py"])
        run_command(["transform", "net.py", "-o", str(path)])

    def _net(self) -> nn.Module:
        self.bring(["net.py"])
        return load_source(str(self.directory / "net.py"), seed=1).model

    def _weights(self, path: Path) -> None:
        save_file(self._net().state_dict(), path)

    def _checkpoint(self, path: Path) -> None:
        torch.save({"state_dict": self._net().state_dict()}, path)


def run_command(arguments: list[str]) -> Any:
    """The outcome of a command of repl-fx, in this process; it has to succeed."""
    done = CliRunner().invoke(app, arguments, prog_name="repl-fx", env={"COLUMNS": "120"})
    assert done.exit_code == 0, f"repl-fx {shlex.join(arguments)}\n{done.output}"
    return done


def add_to_hub(place: Path, name: str, write: Callable[[Path], None]) -> None:
    """Put a repository into a cache of the Hugging Face hub, unless it is there.

    Args:
        place: of the cache.
        name: ORG/NAME.
        write: writes its files into a directory.
    """
    folder = place / f"models--{name.replace('/', '--')}"
    if not folder.exists():
        snapshot = folder / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(COMMIT)
        write(snapshot)


def _text(code: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(textwrap.dedent(code))

    return write


def _arrays(path: Path) -> None:
    np.savez(path, **_random_arrays((8, 8)))


def _cifar(path: Path) -> None:
    path.mkdir()
    np.savez(path / "cifar10.npz", **_random_arrays((32, 32, 3)))


def _random_arrays(shape: tuple[int, ...], train: int = 64, test: int = 16) -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {
        f"{split}_{name}": array
        for split, count in (("train", train), ("test", test))
        for name, array in (
            ("x", random.integers(0, 256, (count, *shape), dtype=np.uint8)),
            ("y", np.arange(count) % 10),
        )
    }


def _corpus(path: Path) -> None:
    path.mkdir()
    for number in range(4):
        (path / f"{number}.txt").write_text("To be, or not to be, that is the question. " * 60)


def _picture(path: Path, size: int = 64) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(path))).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def _pictures(path: Path) -> None:
    for label in ("cat", "dog"):
        for number in range(8):
            _picture(path / label / f"{number}.png")


def _boxed_pictures(path: Path) -> None:
    for split in ("train2017", "val2017"):
        names = [f"{number}.jpg" for number in range(2)]
        for name in names:
            _picture(path / split / name)
        boxes = [
            {"id": number, "image_id": number, "category_id": 1, "bbox": [4, 4, 30, 30], "area": 900, "iscrowd": 0}
            for number in range(2)
        ]
        images = [{"id": number, "file_name": name, "height": 64, "width": 64} for number, name in enumerate(names)]
        (path / "annotations").mkdir(exist_ok=True)
        described = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
        (path / "annotations" / f"instances_{split}.json").write_text(json.dumps(described))


def _transformers(path: Path, kind: str, head: str) -> None:
    """Save a small random model of a type, of which `path` is the directory, or the config."""
    import transformers

    config = getattr(transformers, f"{kind}Config")()
    for name, value in SIZES.items():
        if hasattr(config, name):
            setattr(config, name, value)
    torch.manual_seed(1)
    model = getattr(transformers, f"{kind}{head}")(config)
    model.save_pretrained(path.parent if path.suffix else path)


def _zoo(path: Path, spec: str) -> None:
    """Save random weights of a model of timm, as its repository has them."""
    save_file(load_source(spec, seed=1).model.state_dict(), path / "model.safetensors")
