r"""Make a small data set to try segmentation and detection on: squares and discs of any colour on a noisy ground.

    python examples/shapes.py shapes

    repl-fx train torchvision:fcn_resnet50 --input-shape 2x3x64x64 --data masks:shapes -o run
    repl-fx train model.py --data coco:shapes -o run

The folder has the same scenes in both layouts: `train/` and `test/` with `images/` and `masks/` (0 is the ground, 1 a
square, 2 a disc, 255 the rim of a shape, which has no class), and `train2017/`, `val2017/` and `annotations/` with
boxes and outlines. A seed fixes every pixel.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

CLASSES = ("ground", "square", "disc")
NO_CLASS = 255
# The outline of a disc has so many corners.
_CORNERS = 24


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture and what is in it.

    Attributes:
        picture: uint8, (size, size, 3).
        mask: uint8, (size, size), an index of `CLASSES` or 255.
        shapes: of each shape the class, the centre x and y, and half of the extent, in pixels.
    """

    picture: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8]
    shapes: tuple[tuple[int, float, float, float], ...]


def scene(number: int, size: int = 64, seed: int = 0) -> Scene:
    """One scene: a square in one half, a disc in the other, and now and then one of them alone."""
    random = np.random.default_rng((seed, number))
    picture = random.integers(0, 90, (size, size, 3), dtype=np.uint8)
    mask = np.zeros((size, size), dtype=np.uint8)
    rows, columns = np.mgrid[:size, :size] + 0.5
    left = int(random.integers(1, 3))
    shapes = []
    for place, kind in enumerate((left, 3 - left)):
        half = float(random.integers(size // 8, size // 5))
        x = size * (0.25 + 0.5 * place)
        y = float(random.integers(int(half) + 1, size - int(half)))
        if random.random() < 0.2:
            continue
        across, down = np.abs(columns - x), np.abs(rows - y)
        distance = np.maximum(across, down) if kind == 1 else np.hypot(across, down)
        picture[distance <= half] = random.integers(150, 256, 3)
        mask[distance <= half + 0.5] = NO_CLASS
        mask[distance <= half - 0.5] = kind
        shapes.append((kind, x, y, half))
    return Scene(picture, mask, tuple(shapes))


def write_masks(folder: Path, scenes: Sequence[Scene]) -> None:
    """Write pictures and masks below `images/` and `masks/`."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(scenes):
        Image.fromarray(one.picture).save(folder / "images" / f"{number:04}.png")
        Image.fromarray(one.mask).save(folder / "masks" / f"{number:04}.png")


def write_coco(folder: Path, split: str, scenes: Sequence[Scene]) -> None:
    """Write pictures and annotations as COCO lays them out, with categories that do not count from 1."""
    for name in (split, "annotations"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, one in enumerate(scenes):
        name = f"{number:012}.png"
        Image.fromarray(one.picture).save(folder / split / name)
        height, width = one.mask.shape
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for shape in one.shapes:
            annotations.append({"id": len(annotations) + 1, "image_id": number, "iscrowd": 0, **_annotation(*shape)})
    categories = [{"id": _category(kind), "name": name} for kind, name in enumerate(CLASSES) if kind]
    found = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(found))


def _category(kind: int) -> int:
    return 10 * kind


def _annotation(kind: int, x: float, y: float, half: float) -> dict[str, Any]:
    corners = [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]
    if kind == 2:
        turns = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
        corners = [(x + half * float(np.cos(turn)), y + half * float(np.sin(turn))) for turn in turns]
    return {
        "category_id": _category(kind),
        "bbox": [x - half, y - half, 2 * half, 2 * half],
        "area": 4 * half * half,
        "segmentation": [[round(place, 2) for corner in corners for place in corner]],
    }


def write(folder: Path, *, train: int = 96, test: int = 24, size: int = 64, seed: int = 0) -> None:
    """Write the whole data set, in both layouts."""
    scenes = [scene(number, size, seed) for number in range(train + test)]
    for part, name, coco in ((scenes[:train], "train", "train2017"), (scenes[train:], "test", "val2017")):
        write_masks(folder / name, part)
        write_coco(folder, coco, part)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the data set that the command line asks for."""
    parser = argparse.ArgumentParser(description="Make a small data set of squares and discs.")
    parser.add_argument("folder", type=Path, help="where it goes")
    parser.add_argument("--train", type=int, default=96, help="scenes to train on")
    parser.add_argument("--test", type=int, default=24, help="scenes held out")
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels")
    parser.add_argument("--seed", type=int, default=0, help="fixes every pixel")
    given = parser.parse_args(arguments)
    write(given.folder, train=given.train, test=given.test, size=given.size, seed=given.seed)
    print(f"{given.train} + {given.test} scenes: --data masks:{given.folder} or --data coco:{given.folder}")


if __name__ == "__main__":
    main()
