"""Capture in parts: models whose own code depends on the values of tensors."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

import repl_fx
from repl_fx.artifact import load_artifact
from repl_fx.export import export_onnx
from repl_fx.graph.captured import CapturedModule
from repl_fx.passes.fold_surrogates import is_synthesis
from repl_fx.tracing.parts.capture_parts import capture_as_called
from repl_fx.tracing.parts.part_repeats import find_in_parts
from tests.exporting import Exported
from tests.tracing.parts.nets import sensible

Inputs = tuple[list[Tensor], list[dict[str, Tensor]]]


class ConvBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.up = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.down = nn.Conv2d(2 * width, width, 3, padding=1)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.dropout(self.up(self.norm(x)).relu()))  # type: ignore[no-any-return]


class Body(nn.Module):
    """A backbone whose width the code around it reads."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(ConvBlock(width) for _ in range(3)))
        self.out_channels = width

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x))  # type: ignore[no-any-return]


class Head(nn.Module):
    """A tower, with a loss beside the forward, which the detector calls in training."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.tower = nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(3)))
        self.out = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.tower(x))  # type: ignore[no-any-return]

    def loss(self, x: Tensor, wanted: Tensor) -> Tensor:
        return (x.mean() - wanted) ** 2


class Detector(nn.Module):
    """Finds the places above the mean, as many as there are, and returns losses in training."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body()
        self.head = Head()

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        features = self.body(torch.stack(images))
        assert features.shape[1] == self.body.out_channels
        score = features.mean(1)
        found = (score > score.mean()).nonzero()
        boxes = self.head(features[found[:, 0], :, found[:, 1], found[:, 2]])
        if not self.training:
            owners = found[:, 0].tolist()
            return [{"boxes": boxes[owners.index(i) :][: owners.count(i)]} for i in range(len(images))]
        assert targets is not None
        return {"loss": self.head.loss(boxes, torch.stack([target["size"] for target in targets]).mean())}


def detector_inputs(height: int = 16, width: int = 20, count: int = 2) -> Inputs:
    generator = torch.Generator().manual_seed(3)
    images = [torch.randn(3, height, width, generator=generator) for _ in range(count)]
    return images, [{"size": torch.randn((), generator=generator)} for _ in images]


@pytest.fixture(scope="module")
def result() -> repl_fx.TransformResult:
    """A rewritten detector, shared by tests that may train it."""
    torch.manual_seed(0)
    return repl_fx.transform(Detector(), detector_inputs())


def flat(value: Any) -> list[Tensor]:
    """The tensors of what a detector returns."""
    entries = value if isinstance(value, list) else [value]
    return [tensor for entry in entries for tensor in entry.values()]


def equal(ours: Any, theirs: Any) -> bool:
    return len(flat(ours)) == len(flat(theirs)) and all(map(torch.equal, flat(ours), flat(theirs)))


@pytest.mark.slow
def test_the_largest_modules_that_are_graphs_are_captured() -> None:
    model = Detector()
    before = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs = detector_inputs()
    captured = repl_fx.capture_parts(model, inputs)
    # The head's loss is called too, which a graph has not; its tower is a graph.
    assert [part.path for part in captured.parts] == ["body", "head.tower"]
    assert not captured.whole and bool(captured.check)
    module = captured.module
    assert type(module) is Detector and isinstance(module.body, fx.GraphModule)
    reasons = {eager.path: eager.reason for eager in captured.eager}
    assert set(reasons) == {"", "head"}
    assert reasons["head"] == "the code around it calls its method loss, which a graph has not"
    with pytest.raises(repl_fx.CaptureError) as failed:
        repl_fx.capture(model, inputs)
    assert [reasons[""]] == list(failed.value.obstacles)
    assert __file__ in reasons[""] and "\n" not in str(captured.eager[0])
    # The source is as it was, and every tensor is shared.
    assert {name: id(tensor) for name, tensor in module.state_dict(keep_vars=True).items()} == before
    assert list(module.state_dict()) == list(before)
    assert all(torch.equal(tensor, values[name]) for name, tensor in model.state_dict().items())
    assert type(model.body) is Body and not model.body._forward_pre_hooks and model.training
    # Other sizes than the traced ones.
    for training in (False, True):
        for inputs in (detector_inputs(), detector_inputs(17, 9, 3)):
            results = []
            for candidate in (model, module):
                torch.manual_seed(1)
                results.append(copy.deepcopy(candidate).train(training)(*inputs))
            assert equal(*results)


def test_a_model_that_is_one_graph_is_one_part() -> None:
    model = Body()
    captured = repl_fx.capture_parts(model, (torch.randn(2, 3, 8, 8),))
    assert captured.whole and [part.path for part in captured.parts] == [""] and captured.eager == ()
    assert captured.module is captured.parts[0].graph_module


@pytest.mark.slow
def test_modules_that_are_traced_as_they_were_called_leave_the_model_its_inputs(
    result: repl_fx.TransformResult,
) -> None:
    captured = result.captured_parts
    calls = {part.path: part.inputs for part in captured.parts}
    again = capture_as_called(captured.source, captured.inputs, calls, {})
    assert again.inputs is captured.inputs
    assert [part.path for part in again.parts] == ["body", "head.tower"]


def test_rewritten_parts_train_copy_and_fold(result: repl_fx.TransformResult) -> None:
    images, targets = detector_inputs()
    assert [r.block for r in result.plan.replacements] == ["body.blocks.1", "head.tower.1"]
    assert result.plan.parts == ("body", "head.tower")
    assert [row.block for row in result.report if row.status == "replaced"] == [
        r.block for r in result.plan.replacements
    ]
    module = result.module
    after = sum(p.numel() for p in module.parameters())
    gone = sum(row.parameters_before - row.parameters_after for row in result.report)
    assert after == sum(p.numel() for p in Detector().parameters()) - gone
    with pytest.raises(
        AttributeError, match=r"Detector was captured in parts and is no single graph; use result\.module"
    ):
        _ = result.graph_module
    optimizer = torch.optim.SGD(module.train().parameters(), 0.1)
    losses = []
    for _ in range(4):
        torch.manual_seed(2)
        loss = module(images, targets)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is not None for n, p in module.named_parameters() if ".surrogates." in n)
    module.eval()
    expected = module(images)
    twin = copy.deepcopy(module)
    assert list(twin.state_dict()) == list(module.state_dict()) and equal(twin(images), expected)
    folded = repl_fx.fold(module)
    graphs = [child for child in folded.modules() if isinstance(child, CapturedModule)]
    assert len(graphs) == 2 and not any(is_synthesis(gm, node) for gm in graphs for node in gm.graph.nodes)
    assert equal(folded(images), expected)
    # A copy: the others share their tensors.
    doubled = copy.deepcopy(folded).double()
    assert doubled.get_parameter("body.blocks.0.up.weight").dtype == torch.float64
    assert module.get_parameter("body.blocks.0.up.weight").dtype == torch.float32


@pytest.mark.slow
def test_numbers_and_globs_mean_the_model_and_a_plan_its_parts() -> None:
    inputs = detector_inputs()
    result = repl_fx.transform(Detector(), inputs, blocks=[2, "head.tower.1"], ignore=["head.*"])
    # What stays as it is stays the source's own module.
    assert result.plan.parts == ("body",)
    assert type(result.module.get_submodule("head.tower")) is nn.Sequential
    assert [(r.block, r.reason) for r in result.plan.refusals] == [("head.tower.1", "it matches --ignore head.*")]
    with pytest.raises(repl_fx.UnknownBlock, match=r"the blocks are body\.blocks\.0, .*, head\.tower\.2"):
        repl_fx.transform(Detector(), inputs, blocks=["blocks.2"])
    plan = repl_fx.Plan.from_json(result.plan.to_json())
    again = repl_fx.transform(Detector(), inputs, plan=plan)
    assert again.plan == plan
    assert [part.path for part in again.captured_parts.parts] == ["body"]
    other = Detector()
    other.body.blocks.append(ConvBlock(8))
    with pytest.raises(repl_fx.PlanMismatch, match="another model than this Detector"):
        repl_fx.transform(other, inputs, plan=plan)


@pytest.mark.slow
def test_parts_of_which_one_name_begins_with_the_other() -> None:
    class Two(Detector):
        def __init__(self) -> None:
            super().__init__()
            self.body2 = Body()

        def forward(self, images: list[Tensor], targets: Any = None) -> Any:
            if bool(self.body2(torch.stack(images)).sum() > 1e9):
                return []
            return super().forward(images, targets)

    inputs = detector_inputs()
    result = repl_fx.transform(Two(), inputs, surrogate="blend", ignore=["head.*"])
    assert set(result.plan.parts) == {"body", "body2"}
    assert {r.block for r in result.plan.replacements} == {"body.blocks.1", "body2.blocks.1"}
    made = [name for name, _ in result.module.named_parameters() if ".surrogates." in name]
    assert made and {name.split(".surrogates.")[0] for name in made} == {"body", "body2"}


def test_nothing_to_replace_names_the_parts() -> None:
    model = Detector()
    model.body.blocks = nn.Sequential(ConvBlock(8), ConvBlock(8))
    with pytest.raises(repl_fx.NothingToReplace, match=r"found 2 blocks in body\.blocks, 3 blocks in head\.tower"):
        repl_fx.transform(model, detector_inputs(), ignore=["head.*"])


@pytest.mark.slow
def test_tied_parameters_stay_tied_across_parts() -> None:
    class Twins(Detector):
        def __init__(self) -> None:
            super().__init__()
            self.other = Body()
            self.other.blocks[1].up = self.body.blocks[1].up

        def forward(self, images: list[Tensor], targets: Any = None) -> Any:
            if bool(self.other(torch.stack(images)).sum() > 1e9):
                return []
            return super().forward(images, targets)

    inputs = detector_inputs()
    module = repl_fx.capture_parts(Twins(), inputs).module
    assert module.get_parameter("body.blocks.1.up.weight") is module.get_parameter("other.blocks.1.up.weight")
    assert list(module.state_dict()) == list(Twins().state_dict())


@pytest.mark.slow
def test_an_artifact_reloads_without_running_the_model(
    result: repl_fx.TransformResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, targets = detector_inputs()
    module = result.module.train()
    module(images, targets)["loss"].backward()
    torch.optim.SGD(module.parameters(), 0.1).step()
    repl_fx.save(result, tmp_path / "out")
    expected = module.eval()(images)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [part["path"] for part in manifest["parts"]] == ["body", "head.tower"]
    assert [eager["path"] for eager in manifest["eager"]] == ["", "head"]
    assert (tmp_path / "out" / "graph.txt").read_text().startswith("# body\n")
    fresh = Detector()
    with monkeypatch.context() as patch:
        patch.setattr(Detector, "forward", lambda *_: pytest.fail("the model was run"))
        artifact = load_artifact(tmp_path / "out", fresh)
    assert type(artifact.module) is Detector and type(fresh.body) is Body
    assert equal(artifact.module(images), expected)
    assert [eager.path for eager in artifact.result.captured_parts.eager] == ["", "head"]
    part = artifact.result.parts[1]
    check = Exported(part.graph_module, tmp_path / "tower.onnx", part.args, part.kwargs).verify()
    assert check, check.summary()
    other = Detector()
    other.body.blocks.append(ConvBlock(8))
    with pytest.raises(repl_fx.ArtifactError, match="no longer fits its model"):
        repl_fx.load(tmp_path / "out", other)
    with pytest.raises(repl_fx.ExportError, match=r"captured in parts, export each of them: body, head\.tower"):
        export_onnx(artifact.module, tmp_path / "whole.onnx", (images,))
    assert not (tmp_path / "whole.onnx").exists()


@pytest.mark.slow
def test_a_batch_of_one_is_widened_for_its_parts() -> None:
    captured = repl_fx.capture_parts(Detector(), detector_inputs(count=1))
    assert captured.parts[0].args[0].shape[0] == 2
    assert len(captured.module.eval()(*detector_inputs(count=3))) == 3


def test_inputs_that_the_model_refuses() -> None:
    with pytest.raises(repl_fx.BadInput, match="with the example inputs"):
        repl_fx.capture_parts(Detector(), ([torch.randn(4, 16, 20)] * 2,))
    with pytest.raises(repl_fx.BadInput, match="missing a required argument"):
        repl_fx.capture_parts(Detector(), ())


@pytest.mark.slow
def test_a_model_that_does_not_train_on_its_inputs_is_compared_in_evaluation() -> None:
    images, _ = detector_inputs()
    captured = repl_fx.capture_parts(Detector(), (images,))
    assert captured.check is not None and captured.check.evaluation and not captured.check.training
    assert equal(captured.module.eval()(images), captured.source.eval()(images))


class Kept(nn.Module):
    """Reaches its body by a method and by a list that it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body()
        self.run = self._run
        self.order = [self.body]

    def _run(self, x: Tensor) -> Tensor:
        for module in self.order:
            x = module(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x) if sensible(x) else x


def test_modules_and_methods_kept_in_attributes_lead_to_the_parts() -> None:
    captured = repl_fx.capture_parts(Kept(), (torch.randn(2, 3, 8, 8),))
    assert [part.path for part in captured.parts] == ["body"]
    module: Any = captured.module
    assert module.order == [module.body] and module.run.__self__ is module


def test_repeats_have_the_names_of_the_model(result: repl_fx.TransformResult) -> None:
    repeats = find_in_parts(result.captured_parts).repeats
    assert [repeat.name.split(".")[0] for repeat in repeats] == ["body", "head"]
    assert [len(repeat) for repeat in repeats] == [3, 3]
    assert [repeat.name for repeat in result.repeats] == [repeat.name for repeat in repeats]
    assert repeats[0].blocks[0].parameters[0].startswith("body.blocks.0.norm.")
    assert repeats[0].blocks[0].module_path == "body.blocks.0"


@pytest.mark.slow
@pytest.mark.zoo
def test_a_detection_model(detection: ModuleType) -> None:
    model = detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None,
        weights_backbone=None,
        min_size=64,
        max_size=96,
        rpn_pre_nms_top_n_test=30,
        box_batch_size_per_image=16,
    )
    images = [torch.rand(3, 64, 64), torch.rand(3, 64, 80)]
    targets = [{"boxes": torch.tensor([[4.0, 4, 40, 50]]), "labels": torch.tensor([1])} for _ in images]
    result = repl_fx.transform(model, (images, targets))
    assert [part.path for part in result.captured_parts.parts] == [
        "backbone",
        "rpn.head",
        "roi_heads.box_head",
        "roi_heads.box_predictor",
    ]
    assert bool(result.captured_parts.check)
    assert [part.path for part in result.parts] == ["backbone"]
    losses = result.module.train()(images, targets)
    sum(losses.values()).backward()
    found = result.module.eval()([torch.rand(3, 70, 50)])
    assert found[0].keys() == {"boxes", "labels", "scores"}
    again = pickle.loads(pickle.dumps(result.module))
    for training in (True, False):
        results = []
        for module in (result.module, again):
            torch.manual_seed(0)
            results.append(pytree.tree_leaves(module.train(training)(images, targets)))
        assert results[0] and all(map(torch.equal, *results))


class Entries(dict[str, Tensor]):
    """A mapping of a class that pytree does not know."""


class ReturnsEntries(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))

    def forward(self, x: Tensor) -> Entries:
        return Entries(x=self.body(x))


def test_a_result_that_no_graph_can_return_leaves_the_code_around_it_eager() -> None:
    model, x = ReturnsEntries(), torch.randn(2, 4)
    with pytest.raises(repl_fx.CaptureError, match="Entries"):
        repl_fx.capture(model, (x,))
    captured = repl_fx.capture_parts(model, (x,))
    assert [part.path for part in captured.parts] == ["body"] and captured.check
    assert torch.equal(captured.module(x)["x"], model(x)["x"])


class Skips:
    """Keeps what a module returns, as fastai's `hook_output` does."""

    def __init__(self, module: nn.Module) -> None:
        module.register_forward_hook(self.keep)
        self.stored = torch.empty(0)

    def keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.stored = output.detach()


class Decoder(nn.Module):
    def __init__(self, skips: Skips) -> None:
        super().__init__()
        self.skips = skips
        self.body = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.body(x)
        return made + self.skips.stored


@pytest.mark.parametrize("values", [torch.randn, torch.zeros])
def test_what_a_hook_kept_before_the_capture_is_no_constant(values: Any) -> None:
    encoder, x = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 4)), values(2, 4)
    model = nn.Sequential(encoder, Decoder(Skips(encoder[0])))
    model(x)
    captured = repl_fx.capture_parts(model, (x,))
    assert [part.path for part in captured.parts] == ["1.body"]
    assert "something else for other values in evaluation mode" in str(captured)
    other = torch.randn(3, 4)
    assert torch.equal(captured.module(other), model(other))


class HooksWhileItLives(nn.Sequential):
    """As fastai's DynamicUnet, whose end takes its hooks away."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.handle = layers[0].register_forward_hook(lambda module, args, output: output * 2)

    def __del__(self) -> None:
        self.handle.remove()


def test_the_end_of_a_copy_does_not_reach_the_source() -> None:
    model = HooksWhileItLives(nn.Linear(4, 4), ReturnsEntries())
    with pytest.raises(repl_fx.BadInput, match=r"has a __del__.*\(del HooksWhileItLives.__del__\)"):
        repl_fx.capture_parts(model, (torch.randn(2, 4),))
    assert model[0]._forward_hooks
