"""Buffers that a forward rebinds move in the graph as they do in the source."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.errors import CaptureError, ExportError, NothingToReplace
from repl_fx.tracing.capture import capture, check_capture
from tests.exporting import Exported


class Counter(nn.Module):
    """A child with a buffer; what its forward does with it is given."""

    def __init__(self, update: Callable[[Counter, Tensor], None]) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.update = update
        self.m: Tensor
        self.other: Tensor
        self.register_buffer("m", torch.zeros(8))
        self.register_buffer("other", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        self.update(self, x)
        return self.fc(x) + self.m  # type: ignore[no-any-return]


def average(module: Counter, x: Tensor) -> None:
    module.m = 0.9 * module.m + x.detach().mean(0)


def average_without_gradient(module: Counter, x: Tensor) -> None:
    with torch.no_grad():
        module.m = 0.9 * module.m + x.mean(0)


def average_in_training(module: Counter, x: Tensor) -> None:
    if module.training:
        module.m = 0.9 * module.m + x.detach().mean(0)


def average_in_evaluation(module: Counter, x: Tensor) -> None:
    if not module.training:
        module.m = 0.9 * module.m + x.detach().mean(0)


def twice(module: Counter, x: Tensor) -> None:
    module.m = module.m + x.detach().mean(0)
    module.m = module.m * 0.5


def the_input(module: Counter, x: Tensor) -> None:
    module.m = x.detach()[0]


def swapped(module: Counter, x: Tensor) -> None:
    module.m, module.other = module.other, module.m


def in_place(module: Counter, x: Tensor) -> None:
    module.m.mul_(0.9).add_(x.detach().mean(0))


UPDATES = [
    average,
    average_without_gradient,
    average_in_training,
    average_in_evaluation,
    twice,
    the_input,
    swapped,
    in_place,
]


def nested(update: Callable[[Counter, Tensor], None]) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.Sequential(Counter(update), nn.Linear(8, 8)))


@pytest.mark.parametrize("build", [nested, Counter], ids=["in a child", "in the model itself"])
@pytest.mark.parametrize("update", UPDATES, ids=lambda update: update.__name__)
def test_a_buffer_moves_as_in_the_source(
    update: Callable[[Counter, Tensor], None], build: Callable[[Callable[[Counter, Tensor], None]], nn.Module]
) -> None:
    torch.manual_seed(0)
    model, x = build(update), torch.randn(3, 8)
    gm = capture(model, (x,))
    assert check_capture(model, gm, (x,))
    source, graph = copy.deepcopy(model), copy.deepcopy(gm)
    for training in (True, False, True):
        source.train(training)
        graph.train(training)
        for _ in range(2):
            x = torch.randn(3, 8)
            assert torch.equal(graph(x), source(x))
            buffers = dict(graph.named_buffers())
            assert all(torch.equal(buffers[name], value) for name, value in source.named_buffers())


def test_gradients_flow_through_the_steps_before() -> None:
    def with_history(module: Counter, x: Tensor) -> None:
        module.m = 0.9 * module.m + x.mean(0)

    torch.manual_seed(0)
    model = nested(with_history)
    gm = copy.deepcopy(capture(model, (torch.randn(3, 8),)))
    first, second = torch.randn(3, 8), torch.randn(3, 8)
    grads = []
    for module in (model, gm):
        module(first)
        module(second).sum().backward()
        grads.append(module.get_parameter("0.weight").grad)
    assert grads[0] is not None and grads[1] is not None and torch.equal(grads[0], grads[1])


def test_a_captured_graph_that_rebinds_buffers_is_captured_again() -> None:
    model, x = nested(average_in_training), torch.randn(3, 8)
    assert check_capture(model, capture(capture(model, (x,)), (x,)), (x,))


def refuses(update: Callable[[Counter, Tensor], None], words: str) -> None:
    model = nested(update)
    with pytest.raises(CaptureError, match=words):
        capture(model, (torch.randn(3, 8),))
    assert set(dict(model.named_buffers())) == {"1.0.m", "1.0.other"}


def test_another_shape_is_refused() -> None:
    def longer(module: Counter, x: Tensor) -> None:
        module.other = torch.cat([module.other, module.other])

    refuses(longer, r"changes the shape or type of its buffer other, from float32\[8\] to float32\[16\]")


def test_a_table_that_the_first_forward_makes_may_have_another_shape() -> None:
    def table(module: Counter, x: Tensor) -> None:
        if module.other.shape[0] != 16:
            module.other = torch.arange(16.0)
        module.m = module.other[:8] * 0.5

    model, x = nested(table), torch.randn(3, 8)
    gm = capture(model, (x,))
    assert check_capture(model, gm, (x,))
    gm(x)
    assert gm.get_buffer("1.0.other").shape == (16,)


def test_no_value_is_refused() -> None:
    def nothing(module: Counter, x: Tensor) -> None:
        module.other = None  # type: ignore[assignment]

    refuses(nothing, "sets its buffer other to None")


def test_a_new_buffer_is_refused() -> None:
    refuses(lambda module, x: module.register_buffer("late", x[0]), "registers or deletes a buffer")


def test_a_buffer_of_a_leaf_is_refused() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(8)

        def forward(self, x: Tensor) -> Tensor:
            assert self.norm.running_mean is not None
            self.norm.running_mean = self.norm.running_mean * 0.5
            return self.norm(x)  # type: ignore[no-any-return]

    with pytest.raises(CaptureError, match="the forward around norm replaces a buffer"):
        capture(Around(), (torch.randn(3, 8),))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)
        self.m: Tensor
        self.register_buffer("m", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        self.m = 0.9 * self.m + x.detach().mean(0)
        return x + self.fc2(self.fc1(x - self.m).relu())  # type: ignore[no-any-return]


def test_a_replaced_block_takes_its_updates_with_it() -> None:
    model, x = nn.Sequential(nn.Linear(8, 8), *(Block() for _ in range(3))), torch.randn(3, 8)
    result = repl_fx.transform(model, (x,), surrogate="identity")
    assert [r.block for r in result.plan.replacements] == ["2"]
    assert [name for name in result.module.state_dict() if name.endswith(".m")] == ["1.m", "3.m"]
    pruned = copy.deepcopy(nn.Sequential(model[0], model[1], model[3]))
    for _ in range(2):
        assert torch.equal(result.module(x), pruned(x))


@pytest.mark.parametrize("surrogate", ["blend", "bottleneck"])
def test_a_surrogate_that_would_freeze_a_buffer_is_refused(surrogate: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8), *(Block() for _ in range(3)))
    with pytest.raises(NothingToReplace, match=r"updates buffer 2\.m"):
        repl_fx.transform(model, (torch.randn(3, 8),), surrogate=surrogate)


class AverageInTraining(Block):
    """Rebinds its buffer in training alone."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.m = 0.9 * self.m + x.detach().mean(0)
        return x + self.fc2(self.fc1(x - self.m).relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize("surrogate", ["blend", "bottleneck", "narrow"])
def test_a_switch_that_rebinds_a_buffer_reads_no_weights_of_the_block(surrogate: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), *(AverageInTraining() for _ in range(3)))
    result = repl_fx.transform(model, (torch.randn(3, 8),), surrogate=surrogate, blocks=["2"])
    graph, in_place = copy.deepcopy(result.module), copy.deepcopy(result.model)
    for training in (True, False):
        x = torch.randn(3, 8)
        assert torch.equal(graph.train(training)(x), in_place.train(training)(x))
        assert torch.equal(graph.get_buffer("2.m"), in_place.get_buffer("2.m"))
        assert graph.get_buffer("2.m").any()


class Fresh(Block):
    """Keeps a value that it makes anew in each forward."""

    def forward(self, x: Tensor) -> Tensor:
        self.m = x.detach().mean(0)
        return x + self.fc2(self.fc1(x - self.m).relu())  # type: ignore[no-any-return]


def test_a_buffer_that_is_made_anew_each_time_goes_with_its_block() -> None:
    model, x = nn.Sequential(nn.Linear(8, 8), *(Fresh() for _ in range(3))), torch.randn(3, 8)
    result = repl_fx.transform(model, (x,), surrogate="bottleneck")
    assert [r.block for r in result.plan.replacements] == ["2"]
    assert [name for name in result.module.state_dict() if name.endswith(".m")] == ["1.m", "3.m"]
    with pytest.raises(NothingToReplace, match=r"updates buffer 2\.m, which blend would leave as it is"):
        repl_fx.transform(model, (x,), surrogate="blend")


@pytest.mark.parametrize("update", [average, in_place, average_in_evaluation], ids=lambda update: update.__name__)
def test_outputs_that_depend_on_a_moving_buffer_are_not_exported(
    update: Callable[[Counter, Tensor], None], tmp_path: Path
) -> None:
    x = torch.randn(3, 8)
    gm = capture(nested(update), (x,))
    with pytest.raises(ExportError, match=r"outputs depend on buffer 1\.0\.m"):
        repl_fx.export_onnx(gm, tmp_path / "net.onnx", (x,))


def test_a_buffer_that_no_output_depends_on_is_left_out_of_the_file(tmp_path: Path) -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)
            self.calls: Tensor
            self.also: Tensor
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("also", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls = self.calls + 1
            self.also += 1
            return self.fc(x)  # type: ignore[no-any-return]

    x = torch.randn(3, 8)
    gm = capture(Counts(), (x,)).eval()
    assert Exported(gm, tmp_path / "net.onnx", (x,)).verify()
    assert gm.get_buffer("calls").item() == gm.get_buffer("also").item() == 0
