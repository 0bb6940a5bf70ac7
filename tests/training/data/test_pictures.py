"""Pictures in folders: classes, splits, sizes, and files that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("torchvision")

from PIL import Image

from repl_fx.errors import BadInput
from repl_fx.training.data.data_set import Data, length
from repl_fx.training.data.loaders import BatchLoader
from repl_fx.training.data.pictures import Pictures
from repl_fx.training.data.sets import load_data

RED, BLUE = (255, 0, 0), (0, 0, 255)


def draw(folder: Path, name: str, colour: tuple[int, int, int], size: tuple[int, int] = (12, 8)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(folder / name)
    return folder / name


def read(path: Path, **options: int) -> tuple[Data, Pictures, Pictures]:
    data = load_data(f"folder:{path}", size=options.get("size"))
    assert isinstance(data, Data) and isinstance(data.train, Pictures) and isinstance(data.test, Pictures)
    return data, data.train, data.test


@pytest.mark.parametrize("held", ["val", "test"])
def test_folders_for_both_splits(tmp_path: Path, held: str) -> None:
    draw(tmp_path / "train" / "a", "1.png", RED)
    draw(tmp_path / "train" / "b", "2.png", BLUE, (20, 40))
    # A class without a picture held out: the other one keeps its number.
    draw(tmp_path / held / "b", "3.png", BLUE)
    data, train, test = read(tmp_path, size=8)
    assert (data.classes, data.shape, len(train), len(test)) == (2, (3, 8, 8), 2, 1)
    picture, label = train[1]
    assert label == 1 and picture.dtype == torch.uint8
    assert torch.equal(picture, torch.tensor(BLUE, dtype=torch.uint8)[:, None, None].expand(3, 8, 8))
    assert test[0][1] == 1
    assert data.mean == ()
    assert read(tmp_path, size=5)[0].shape == (3, 5, 5)


@pytest.mark.parametrize("below", ["", "train"])
def test_one_folder_is_split_in_each_class(tmp_path: Path, below: str) -> None:
    for i in range(20):
        draw(tmp_path / below / "a", f"{i}.png", RED)
    draw(tmp_path / below / "b", "1.png", BLUE)
    draw(tmp_path / below / "b", "2.png", BLUE)
    draw(tmp_path / below / "c", "1.png", BLUE)
    _, train, test = read(tmp_path)
    files = [{path for path, _ in split.samples} for split in (train, test)]
    assert not files[0] & files[1]
    count = [[sum(label == c for _, label in split.samples) for c in range(3)] for split in (train, test)]
    assert count == [[18, 1, 1], [2, 1, 0]]
    assert read(tmp_path)[1].samples == train.samples


def test_pictures_are_as_they_are_unless_a_size_is_asked_for(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for i in range(3):
            path = draw(tmp_path / name, f"{i}.png", RED, (16, 10))
            Image.linear_gradient("L").resize((16, 10)).convert("RGB").save(path)
    data, train, _ = read(tmp_path)
    assert data.shape == (3, 10, 16)
    assert [line.partition(": in ")[2] for line in data.changes] == [
        "RGB of 8 bits; grey in three equal channels, and no transparency"
    ]
    with Image.open(train.samples[0][0]) as picture:
        wanted = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    assert torch.equal(train[0][0], wanted)
    sized, _, _ = read(tmp_path, size=8)
    assert sized.shape == (3, 8, 8) and "the shorter side brought to 8 pixels" in sized.changes[1]
    Image.new("RGB", (12, 12), RED).save(train.samples[1][0])
    with pytest.raises(BadInput, match="3x10x16 and 3x12x12; bring them to one size, with --size"):
        list(BatchLoader(train, 4, workers=0))


@pytest.mark.parametrize(
    ("kind", "ending"), [(np.uint16, "png"), (np.uint16, "tif"), (np.int32, "tif"), (np.float32, "tif")]
)
def test_numbers_that_eight_bits_would_cut_off_are_refused(tmp_path: Path, kind: type, ending: str) -> None:
    for i in range(4):
        file = tmp_path / "ab"[i % 2] / f"{i}.{ending}"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray((1000 * np.arange(16).reshape(4, 4)).astype(kind)).save(file)
    with pytest.raises(
        BadInput, match=rf"picture .*{ending} cannot be read .* mode (I|I;16|F), which 8 bits cut off; give arr"
    ):
        load_data(f"folder:{tmp_path}")


def test_a_picture_that_cannot_be_read(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for i in range(2):
            draw(tmp_path / name, f"{i}.png", RED)
    _, train, _ = read(tmp_path)
    broken = Path(train.samples[1][0])
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(BadInput, match=f"picture {broken} cannot be read") as refused:
        train[1]
    assert "\n" not in str(refused.value)
    with pytest.raises(BadInput, match=f"picture {broken} cannot be read"):
        load_data(f"folder:{tmp_path}", normalise="data")


def test_folders_that_hold_no_classes(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no folder .*none"):
        load_data(f"folder:{tmp_path / 'none'}")
    with pytest.raises(BadInput, match="is no folder of pictures by class: Couldn't find any class folder"):
        load_data(f"folder:{tmp_path}")
    draw(tmp_path / "a", "1.png", RED)
    with pytest.raises(BadInput, match="test is empty; give at least two pictures of a class"):
        load_data(f"folder:{tmp_path}")
    (tmp_path / "b").mkdir()
    with pytest.raises(BadInput, match="Found no valid file for the classes b"):
        load_data(f"folder:{tmp_path}")


def test_classes_that_training_does_not_know(tmp_path: Path) -> None:
    draw(tmp_path / "train" / "a", "1.png", RED)
    draw(tmp_path / "val" / "z", "1.png", RED)
    with pytest.raises(BadInput, match=r"val has the class 'z', unknown to .*train"):
        load_data(f"folder:{tmp_path}")


def test_pictures_may_have_no_classes(tmp_path: Path) -> None:
    for number in range(20):
        draw(tmp_path, f"{number}.png", RED)
    (tmp_path / "notes.txt").write_text("no picture")
    data = load_data(f"folder:{tmp_path}")
    assert isinstance(data, Data) and not data.has_targets and data.classes == 0
    assert length(data.train) + length(data.test) == 20 and length(data.test) > 0
    for split in ("train", "val"):
        for number in range(2):
            draw(tmp_path / "both" / split, f"{number}.png", RED)
    both = load_data(f"folder:{tmp_path / 'both'}")
    assert isinstance(both, Data) and (length(both.train), length(both.test)) == (2, 2)
    draw(tmp_path / "both" / "val" / "red", "1.png", RED)
    with pytest.raises(BadInput, match="has pictures by class, one has none"):
        load_data(f"folder:{tmp_path / 'both'}")
