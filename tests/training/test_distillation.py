"""Learning from the original model: losses, what is taught, and what cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import repl_fx
from repl_fx.errors import BadInput
from repl_fx.graph.recording import watched
from repl_fx.running.holders import ORIGIN
from repl_fx.training.distillation import Distillation, places_in
from repl_fx.training.run import train_once
from repl_fx.training.tasks import Classification
from repl_fx.training.tasks.detection import Detection
from repl_fx.training.tasks.language_modelling import LanguageModelling
from repl_fx.training.tasks.semantic_segmentation import Segmentation
from repl_fx.training.train_config import TrainConfig
from tests.training.runs import Net, Spots, SpottedPictures, pictures, spots, spots_net

BATCH = (torch.randn(4, 1, 4, 4), torch.tensor([0, 1, 2, 0]))


def _pair(classes: int = 3) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    teacher = Net(classes)
    student = repl_fx.transform(Net(classes), (BATCH[0][:2],), surrogate="blend").model
    return teacher, student.eval()


def _step(student: nn.Module, teacher: nn.Module, **settings: float) -> torch.Tensor:
    config = TrainConfig().changed(teacher="original", **settings)
    return Distillation(teacher, student, Classification(3), config).step(student, BATCH)[1]


def test_logits_are_taught_at_a_temperature() -> None:
    teacher, student = _pair()
    with torch.no_grad():
        ours, theirs = student(BATCH[0]), teacher.eval()(BATCH[0])
    for heat in (1.0, 3.0):
        expected = F.kl_div((ours / heat).log_softmax(-1), (theirs / heat).softmax(-1), reduction="batchmean") * heat**2
        torch.testing.assert_close(_step(student, teacher, temperature=heat), expected)
    assert float(_step(student, student).detach()) == pytest.approx(0, abs=1e-7)


class _AsTheyAre(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize("task", [LanguageModelling(5), Segmentation(5)], ids=lambda task: str(task.key))
def test_what_targets_leave_out_is_not_taught(task: LanguageModelling | Segmentation) -> None:
    teacher, student = nn.Softmax(task.class_dimension), _AsTheyAre()
    shape = (2, 3, 5) if task.class_dimension == -1 else (2, 5, 3, 3)
    x = torch.randn(shape)
    targets = torch.zeros(x.movedim(task.class_dimension, -1).shape[:-1], dtype=torch.long)
    targets[1:] = task.ignored or 0
    taught = Distillation(teacher, student, task, TrainConfig().changed(teacher="original"))
    expected = taught.step(student, (x[:1], targets[:1]))[1]
    torch.testing.assert_close(taught.step(student, (x, targets))[1], expected)
    assert taught.step(student, (x[1:], targets[1:]))[1] == 0


def test_values_behind_replaced_blocks_are_taught() -> None:
    teacher, student = _pair()
    found = _step(student, teacher, teacher_logits=0.0, teacher_values=2.0)
    seen: dict[str, torch.Tensor] = {}
    for name, model in (("student", student), ("teacher", teacher)):
        block = model.get_submodule("blocks.1")
        handle = block.register_forward_hook(lambda module, args, result, name=name: seen.update({name: result}))
        model(BATCH[0])
        handle.remove()
    apart = (seen["student"] - seen["teacher"]).square().mean() / seen["teacher"].square().mean()
    torch.testing.assert_close(found, 2 * apart)
    found.backward()  # type: ignore[no-untyped-call]
    assert student.get_parameter("blocks.0.fc1.weight").grad is not None
    # What comes behind the block learns nothing from it, and the teacher nothing at all.
    assert student.get_parameter("head.weight").grad is None
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any(module._forward_hooks for model in (student, teacher) for module in model.modules())


def test_values_are_what_blocks_return_though_they_are_written_over() -> None:
    def write(module: nn.Module, args: Any) -> None:
        args[0].relu_()

    models = _pair()
    teacher, student = models
    wanted = _step(student, teacher, teacher_logits=0.0, teacher_values=2.0)
    for model in models:
        model.get_submodule("blocks.2").register_forward_pre_hook(write)
    torch.testing.assert_close(_step(student, teacher, teacher_logits=0.0, teacher_values=2.0), wanted)


def test_a_teacher_without_a_replaced_block_is_no_original() -> None:
    teacher, student = _pair()
    teacher.blocks = nn.Sequential()
    with pytest.raises(BadInput, match=r"the teacher has no module blocks\.1, behind .*; give the original"):
        _step(student, teacher, teacher_values=1.0)


def test_a_block_that_a_batch_skips_teaches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = _pair()
    last: Any = student.get_submodule("blocks.2")
    monkeypatch.setattr(student.get_submodule("blocks"), "forward", last.forward)
    assert float(_step(student, teacher, teacher_logits=0.0, teacher_values=2.0).detach()) == 0


@pytest.mark.parametrize("settings", [{}, {"merged": True}], ids=str)
def test_values_are_taught_to_a_graph_as_they_are_in_place(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    teacher = Net(3)
    result = repl_fx.transform(Net(3), (BATCH[0][:2],), surrogate="linear", settings=settings)
    graph: Any = result.module
    (place,) = places_in(result.model if settings else with_record(result))
    assert (place.path, place.leaf) == ("blocks.1", 0) and place.node is not None
    code = graph.code
    found = _step(graph, teacher, teacher_logits=0.0, teacher_values=2.0)
    # By hand: what the block behind takes, and what the teacher's block returns.
    seen: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        watched(graph, {place.node: lambda value: seen.update(student=value.clone())})(BATCH[0])
        handle = teacher.blocks[1].register_forward_hook(lambda module, args, made: seen.update(teacher=made))
        teacher(BATCH[0])
        handle.remove()
    apart = (seen["student"] - seen["teacher"]).square().mean() / seen["teacher"].square().mean()
    torch.testing.assert_close(found.detach(), 2 * apart)
    if not settings:
        torch.testing.assert_close(found, _step(result.model, teacher, teacher_logits=0.0, teacher_values=2.0))
    found.backward()  # type: ignore[no-untyped-call]
    own = [parameter for name, parameter in graph.named_parameters() if "surrogates" in name]
    assert own and all(parameter.grad is not None for parameter in own)
    assert graph.get_parameter("head.weight").grad is None
    # The graph is as it was.
    assert graph.code == code and "forward" not in vars(graph)


def with_record(result: repl_fx.TransformResult) -> torch.nn.Module:
    """The graph of a result, which knows where it is from."""
    vars(result.module)[ORIGIN] = result.origin_of(result.module)
    return result.module


@pytest.mark.slow
def test_a_run_learns_from_a_teacher_alone(tmp_path: Path) -> None:
    data = pictures()
    torch.manual_seed(0)
    teacher = Net()
    base = TrainConfig(epochs=12, batch_size=8, lr=0.02, device="cpu", augment=False)
    taught = train_once(teacher, data, base, tmp_path / "teacher")
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    torch.manual_seed(5)
    student = repl_fx.transform(Net(), (BATCH[0][:2],), surrogate="bottleneck").model
    config = base.changed(teacher="original", target_weight=0.0, teacher_values=0.1)
    made = train_once(student, data, config, tmp_path / "student", teacher=teacher)
    assert taught.figures["accuracy"] > 0.8 and made.figures["accuracy"] > 0.7
    assert all(torch.equal(value, teacher.state_dict()[name]) for name, value in before.items())


def test_what_cannot_be_taught_is_a_line(tmp_path: Path) -> None:
    teacher, student = _pair()
    config = TrainConfig(teacher="original", teacher_values=1.0, batch_size=8, device="cpu")
    with pytest.raises(BadInput, match="Net has no replaced block that is a module of the original"):
        train_once(Net(), pictures(), config, tmp_path, teacher=teacher)
    with pytest.raises(BadInput, match=r"the teacher returns logits of shape \(16, 5\), and the model \(16, 3\)"):
        train_once(student, pictures(), config, tmp_path, teacher=Net(5))
    with pytest.raises(BadInput, match="teaches nothing"):
        TrainConfig().changed(teacher="original", teacher_logits=0.0)


@pytest.mark.slow
def test_a_detection_model_learns_the_values_behind_its_surrogates_alone() -> None:
    torch.manual_seed(0)
    teacher, student = Spots(), spots_net()
    healed = repl_fx.heal(student, spots(8, 4), original=teacher, device="cpu", steps=1, batch_size=4)
    assert healed.trained.figures.keys() == healed.before.keys() >= {"map"}
    config = TrainConfig().changed(teacher="original", teacher_values=1.0)
    data = [SpottedPictures(0, 4)[index] for index in range(4)]
    batch = [image for image, _ in data], [target for _, target in data]
    taught = Distillation(teacher, student.train(), Detection(3), config)
    outputs, loss = taught.step(student, batch)
    assert outputs.keys() == {"boxes", "labels"} and 0 < float(loss.detach()) < 10
    loss.backward()  # type: ignore[no-untyped-call]
    # Nothing of the head is taught.
    assert student.get_parameter("stem.weight").grad is not None and student.get_parameter("box.weight").grad is None
    with pytest.raises(BadInput, match="none of Spots are compared; use repl-fx train, without --teacher"):
        Distillation(teacher, Spots(), Detection(3), config.changed(teacher_values=0.0))


def test_values_of_other_sizes_than_the_originals_are_refused() -> None:
    teacher, student = _pair()
    config = TrainConfig().changed(teacher="original", teacher_values=1.0, teacher_logits=0.0)
    taught = Distillation(teacher, student, Classification(3), config)
    teacher.register_forward_pre_hook(lambda module, args: (args[0][:2],))
    with pytest.raises(BadInput, match=r"behind blocks.1 have shape \(4, .*, and those of the original \(2, "):
        taught.step(student, BATCH)
