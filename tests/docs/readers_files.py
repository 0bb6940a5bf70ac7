"""The files of a reader that the commands of a page name: small ones, made where a command names one that is not there.

Models and weights, data sets, artifacts, and caches of the libraries that pretrained weights come from.
"""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from collections.abc import Callable, Sequence
from functools import cached_property
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
from tests.caches import Caches, save_tokenizer, save_transformers

ROOT = Path(__file__).parents[2]
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
_SENTENCE = "whether tis nobler in the mind to suffer the slings and arrows of outrageous fortune"


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
            **dict.fromkeys(("bert/config.json", "bert"), _transformers("BertForMaskedLM")),
            **dict.fromkeys(("llama/config.json", "path/to/llama"), _transformers("LlamaForCausalLM")),
            "path/to/directory": _transformers("BertForMaskedLM"),
        }
        self._hub: dict[str, Callable[[Path], None]] = {
            "ORG/NAME": _decoder("LlamaForCausalLM"),
            "ORG/LLAMA": _decoder("LlamaForCausalLM"),
            "ORG/GEMMA3": _decoder("Gemma3ForCausalLM", num_hidden_layers=3),
        }

    @cached_property
    def _caches(self) -> Caches:
        return Caches(self.directory.parent / "caches", self._patches)

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
                if name in self._hub:
                    self._caches.add(name, self._hub[name])
        for spec in words if "--pretrained" in words else ():
            kind, _, name = spec.partition(":")
            if kind == "timm":
                self._caches.add_timm(name)
            elif kind == "torchvision":
                self._caches.add_torchvision(name)

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
    random = np.random.default_rng(0)
    for number in range(4):
        (path / f"{number}.txt").write_text(" ".join(random.choice(_SENTENCE.split(), 1500)))


def _picture(path: Path, size: int = 64) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(path))).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def _pictures(path: Path) -> None:
    for label in ("cat", "dog"):
        for number in range(16):
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


def _transformers(name: str) -> Callable[[Path], None]:
    """Saves a small random model of a class, of which the path is the directory, or the config."""
    return lambda path: save_transformers(path.parent if path.suffix else path, name)


def _decoder(name: str, **sizes: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        save_transformers(path, name, **sizes)
        save_tokenizer(path, [_SENTENCE])

    return write
