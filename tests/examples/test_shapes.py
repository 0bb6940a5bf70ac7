"""examples/shapes.py: one seed gives one data set, and the same scenes in both layouts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples import shapes


def test_a_seed_fixes_every_pixel() -> None:
    first, again, other = shapes.scene(3), shapes.scene(3), shapes.scene(3, seed=1)
    assert np.array_equal(first.picture, again.picture) and np.array_equal(first.mask, again.mask)
    assert not np.array_equal(first.picture, other.picture)
    numbers = {int(value) for number in range(8) for value in np.unique(shapes.scene(number).mask)}
    assert numbers == {0, 1, 2, 255}


def test_both_layouts_hold_the_scenes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes.main([str(tmp_path), "--train", "3", "--test", "2", "--size", "32"])
    assert f"--data masks:{tmp_path}" in capsys.readouterr().out
    assert len(list((tmp_path / "train" / "masks").iterdir())) == 3
    found = json.loads((tmp_path / "annotations" / "instances_val2017.json").read_text())
    assert [category["id"] for category in found["categories"]] == [10, 20] and len(found["images"]) == 2
    for image in found["images"]:
        wanted = shapes.scene(3 + image["id"], 32)
        assert np.array_equal(np.asarray(Image.open(tmp_path / "val2017" / image["file_name"])), wanted.picture)
        own = [one for one in found["annotations"] if one["image_id"] == image["id"]]
        for one, (kind, *_) in zip(own, wanted.shapes, strict=True):
            x, y, width, height = (round(place) for place in one["bbox"])
            inside = wanted.mask[y : y + height, x : x + width]
            assert one["category_id"] == 10 * kind and (inside == kind).mean() > 0.5
            assert (wanted.mask == kind).sum() == (inside == kind).sum()
