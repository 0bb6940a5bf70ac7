"""The zoo benchmark itself: that its comparisons can fail, and that its report counts every model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.zoo_models.weights import wake
from benchmarks.zoo_runner.exactness import compare_evaluation, compare_training, tensors
from benchmarks.zoo_runner.report import write_report
from benchmarks.zoo_runner.stages import STAGES, Record


class Net(nn.Module):
    """Dropout, a norm with statistics, and a switch for what is to differ."""

    def __init__(self, change: Callable[[Tensor, nn.Module], Tensor] = lambda x, net: x) -> None:
        super().__init__()
        self.fc, self.norm, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.drop(self.norm(self.fc(x))), self)


class OtherGradient(torch.autograd.Function):
    """Identity whose gradient is twice what it should be."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


def doubled(x: Tensor, net: nn.Module) -> Tensor:
    apply: Any = OtherGradient.apply
    changed: Tensor = apply(x)
    return changed


def moved(x: Tensor, net: nn.Module) -> Tensor:
    if net.training:
        with torch.no_grad():
            net.get_buffer("norm.num_batches_tracked").add_(1)
    return x


def nets(change: Callable[[Tensor, nn.Module], Tensor] | None) -> tuple[Net, Net]:
    torch.manual_seed(0)
    model = Net()
    other = copy.deepcopy(model)
    if change is not None:
        other.change = change
    return model, other


X = torch.linspace(-1, 1, 24).reshape(6, 4)


def test_equal_modules_pass_and_keep_their_buffers() -> None:
    model, other = nets(None)
    compare_evaluation(model, other, (X,), {})
    compare_training(model, other, (X,), {})
    assert int(model.get_buffer("norm.num_batches_tracked")) == 0


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda x, net: x + 1e-6, "output 0 differs by up to"),
        (doubled, "of 4 gradients differ"),
        (moved, "1 buffers differ after a step, e.g. norm.num_batches_tracked"),
        (lambda x, net: x.detach() + net.norm.bias * 0 if net.training else x, "gradients"),
    ],
)
def test_what_differs_in_training_is_named(change: Callable[[Tensor, nn.Module], Tensor], problem: str) -> None:
    with pytest.raises(AssertionError, match=problem):
        compare_training(*nets(change), (X,), {})


def test_what_differs_in_evaluation_is_named() -> None:
    model, other = nets(lambda x, net: x if net.training else x * 1.0001)
    with pytest.raises(AssertionError, match="output 0 differs"):
        compare_evaluation(model, other, (X,), {})
    compare_training(model, other, (X,), {})


def test_tensors_are_found_inside_plain_objects() -> None:
    class Cache:
        def __init__(self) -> None:
            self.layers = [{"keys": X}, self]

    assert [t is X for t in tensors({"cache": Cache(), "n": 1})] == [True]


def test_wake_touches_only_weights_that_hide_something() -> None:
    torch.manual_seed(0)
    net = nn.ModuleDict({"head": nn.Linear(3, 3), "norm": nn.LayerNorm(3), "other": nn.Linear(3, 3)})
    for parameter in net["head"].parameters():
        nn.init.zeros_(parameter)
    scale = nn.Parameter(torch.full((3,), 1e-6))
    net.register_parameter("scale", scale)
    before = copy.deepcopy(net.state_dict())
    wake(net)
    after = net.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["scale", "head.weight"]
    assert scale.detach().min() >= 0.4


def test_the_report_counts_all_models(tmp_path: Path) -> None:
    whole = [{"path": "", "rung": "torch.export", "obstacles": [], "switches": 0}]
    repeat = {"name": "blocks", "copies": 6, "similar": False, "shared": False, "parameters": 10, "children": []}
    done = Record("timm:a", "a", passed=list(STAGES), parameters=200, removed=50, repeats=[repeat], parts=whole)
    flat = Record(
        "timm:b", "b", passed=list(STAGES[:4]), reason="its 9 layers are of 9 kinds", nothing_repeats=True, parts=whole
    )
    bad = Record("hf:c", "c", failed="captured", reason="cannot | be (at /home/me/lib/site-packages/timm/a.py, line 3)")
    write_report([asdict(r) for r in (done, flat, bad)], ["timm:a", "timm:b", "hf:c", "hf:d"], tmp_path)
    text = (tmp_path / "zoo.md").read_text()
    for line in (
        "| models | 2 | 2 | 4 |",
        "| captured | 2 | 0 | 2 |",
        "| no repeated blocks, the end | 1 | 0 | 1 |",
        "| verified | 1 | 0 | 1 |",
        "| failed at some stage | 0 | 1 | 1 |",
        "| not run | 0 | 1 | 1 |",
        "| `a` | a | 200 | verified | 6 | 50 (25.0 %) | 0 |  |",
        "| `c` | c | 0 | **failed: captured** |  |  | 0 | cannot \\| be (at timm/a.py, line 3) |",
    ):
        assert line in text.splitlines(), line
    assert "cannot" in (tmp_path / "zoo.json").read_text()
