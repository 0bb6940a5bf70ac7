"""Detection: losses of the model, precision over all pictures, classes of heads, and what does not fit."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repl_fx.errors import BadInput
from repl_fx.training.tasks.detection import Detection
from tests.training.forks import Forks, Request
from tests.training.runs import Net, Spots
from tests.training.two_processes import environments

BOX, FAR = [2.0, 2, 6, 8], [10.0, 10, 16, 18]
PICTURE = torch.zeros(3, 20, 20)


def _target(*boxes: list[float], label: int = 1) -> dict[str, Tensor]:
    labels = torch.full((len(boxes),), label)
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": labels}


def _found(*boxes: list[float], score: float = 0.9, label: int = 1) -> dict[str, Tensor]:
    return {**_target(*boxes, label=label), "scores": torch.full((len(boxes),), score)}


def test_the_loss_is_the_sum_of_those_of_the_model() -> None:
    task, batch = Detection(3), ([PICTURE], [_target(BOX)])
    assert float(task.loss({"a": torch.tensor(1.5), "b": torch.tensor(2.0)}, batch)) == 3.5
    model = Spots()
    assert set(task.outputs(model.train(), batch)) == {"boxes", "labels"}
    assert set(task.outputs(model.eval(), batch)[0]) == {"boxes", "labels", "scores"}
    with pytest.raises(BadInput, match="the model returns a list in training; wanted is a dict of losses"):
        task.loss([torch.tensor(1.0)], batch)


def _figures(*pictures: tuple[dict[str, Tensor], dict[str, Tensor]]) -> dict[str, float]:
    task = Detection(3)
    for found, target in pictures:
        task.update([found], ([PICTURE], [target]))
    return {name: round(float(value), 3) for name, value in task.compute().items()}


def test_figures_are_over_all_pictures_and_begin_anew() -> None:
    assert _figures((_found(BOX), _target(BOX)), (_found(FAR), _target(FAR))) == {"map": 1, "map_50": 1}
    # One of two boxes is found: half of the recalls, 51 of 101, have a precision.
    assert _figures((_found(BOX), _target(BOX)), (_found(), _target(FAR))) == {"map": 0.505, "map_50": 0.505}
    # Of the other class: nothing is found of the first.
    assert _figures((_found(BOX, label=2), _target(BOX)))["map"] == 0
    # An overlap of 20 / 28, which is enough for five of ten thresholds.
    close = [2.0, 2, 6, 7]
    assert _figures((_found([2.0, 2, 6, 9]), _target(close))) == {"map": 0.5, "map_50": 1}
    task = Detection(3)
    for found in (_found(), _found(BOX)):
        task.update([found], ([PICTURE], [_target(BOX)]))
        assert float(task.compute()["map"]) == float(len(found["boxes"]))
    with pytest.raises(BadInput, match="no held-out picture has a box"):
        _figures((_found(BOX), _target()))


_PROCESS = """
import torch.distributed as dist
from tests.training.tasks.test_detection import BOX, FAR, PICTURE, Detection, _found, _masked, _target

dist.init_process_group("gloo")
for of_rank in (([BOX], [FAR, BOX]), ([BOX], [])):
    task = Detection(3)
    for box in of_rank[dist.get_rank()]:
        task.update([_masked(_found(BOX), 0.6)], ([PICTURE], [_masked(_target(box))]))
    print([round(float(value), 3) for value in task.compute().values()])
"""


def _masked(found: dict[str, Tensor], value: float = 1.0) -> dict[str, Tensor]:
    """With a mask for each box, which fills it."""
    masks = torch.zeros(len(found["boxes"]), 1, 20, 20)
    for mask, (left, top, right, bottom) in zip(masks, found["boxes"].int().tolist(), strict=True):
        mask[:, top:bottom, left:right] = value
    return {**found, "masks": masks if value < 1 else masks[:, 0].to(torch.uint8)}


def test_figures_are_those_of_the_pictures_of_all_processes_however_many_each_has(tmp_path: Path) -> None:
    pairs = [(_masked(_found(BOX), 0.6), _masked(_target(box))) for box in (BOX, FAR, BOX)]
    three = list(_figures(*pairs).values())
    assert 0 < three[0] < 1
    script = tmp_path / "script.py"
    script.write_text(_PROCESS)
    with Forks(__name__) as forks:
        said = forks.ended(Request(str(script), environments=environments()))
    assert [(code, out) for code, out, _ in said] == [(0, f"{three}\n{[1.0] * 4}\n")] * 2, said


def test_crowds_and_masks_count_too() -> None:
    crowd = {**_target(BOX, FAR), "iscrowd": torch.tensor([0, 1])}
    assert _figures((_found(BOX), crowd))["map"] == 1
    mask = torch.zeros(1, 20, 20)
    mask[:, 2:8, 2:6] = 1
    target = {**_target(BOX), "masks": mask.to(torch.uint8)}
    figures = _figures(({**_found(FAR), "masks": 0.6 * mask[:, None]}, target))
    assert figures == {"map": 0, "map_50": 0, "mask_map": 1, "mask_map_50": 1}


def test_masks_count_in_pictures_with_none() -> None:
    mask = torch.zeros(1, 20, 20, dtype=torch.uint8)
    mask[:, 2:8, 2:6] = 1
    one, none = {**_target(BOX), "masks": mask}, {**_target(), "masks": mask[:0]}
    found, nothing = {**_found(BOX), "masks": mask[:, None]}, {**_found(), "masks": mask[:0, None]}
    by_mistake = {**_found(BOX, score=0.95), "masks": mask[:, None]}
    assert _figures((found, one), (by_mistake, none))["mask_map"] == pytest.approx(0.5, abs=1e-3)
    assert _figures((nothing, one))["mask_map"] == 0


class _Fixed(nn.Module):
    """Finds the same in each picture, and knows three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.head = FastRCNNPredictor()


class FastRCNNPredictor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_score = nn.Linear(2, 3)


def test_what_does_not_fit_is_a_line() -> None:
    batch = ([PICTURE], [_target(BOX)])
    Detection(3).require_fit(_Fixed(), [_found()], batch, "mine")
    with pytest.raises(BadInput, match="_Fixed tells 3 classes apart, and mine has 4, with the background"):
        Detection(4).require_fit(_Fixed(), [_found()], batch, "mine")
    Detection(4).require_fit(Spots(), [_found()], batch, "mine")
    for outputs, said in ((torch.zeros(1, 3), "a tensor"), ([_target(BOX)], "a list"), ([], "a list")):
        with pytest.raises(BadInput, match=f"Net returns {said}; wanted is a list with a dict of boxes"):
            Detection(3).require_fit(Net(), outputs, batch, "mine")
    for kind in ("masks", "keypoints"):
        with pytest.raises(BadInput, match=f"_Fixed finds {kind}, and mine has none to learn from"):
            Detection(3).require_fit(_Fixed(), [_found() | {kind: PICTURE}], batch, "mine")
        with_them = ([PICTURE], [_target(BOX) | {kind: PICTURE}])
        Detection(3).require_fit(_Fixed(), [_found() | {kind: PICTURE}], with_them, "mine")


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ((torch.zeros(1, 3, 20, 20), [_target(BOX)]), "mine is a tensor and a list; give a list of pictures and"),
        (([PICTURE, PICTURE], [_target(BOX)]), "mine is a list and a list; .* of the same length"),
        (([PICTURE] * 2, [_target(BOX), _target(BOX, label=3)]), "mine: sample 1: label 3 is out of range"),
        (([PICTURE], [_target([2.0, 2, 2, 8])]), r"mine: sample 0: box \[2.0, 2.0, 2.0, 8.0\] has no extent"),
        (([PICTURE[0]], [_target(BOX)]), r"mine: sample 0: the picture is of shape \(20, 20\)"),
    ],
)
def test_targets_that_cannot_be_are_a_line(batch: Any, said: str) -> None:
    Detection(3).require_targets(([PICTURE], [_target(BOX)]), "mine")
    with pytest.raises(BadInput, match=said):
        Detection(3).require_targets(batch, "mine")


@pytest.mark.zoo
@pytest.mark.parametrize(
    "name", ["fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large", "retinanet_resnet50_fpn"]
)
def test_models_of_torchvision_say_how_many_classes_they_have(detection: ModuleType, name: str) -> None:
    with torch.device("meta"):
        model = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=7)
    assert Detection(0).classes_in(model, None) == 7
