"""Tests for repl_fx.export.lowering: checks and choices of a graph in a file."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import repl_fx
from repl_fx.export.lowering import lower_
from repl_fx.export.session import OnnxSession
from repl_fx.export.tensors import flatten_inputs
from repl_fx.graph.decisions import Condition, choose
from repl_fx.graph.runtime import check_condition, check_layout
from repl_fx.passes.driver import run_passes
from repl_fx.running.example_inputs import ExampleInputs
from tests.exporting import Exported
from tests.releases import fails_on_old_torch


def test_conditions_become_a_choice_of_values() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    skip = graph.call_function(Condition(False), (graph.call_function(torch.sum, (x,)),))
    graph.output(graph.call_function(choose, (skip, x, graph.call_function(torch.neg, (x,)))))
    gm = fx.GraphModule(nn.Module(), graph)
    assert run_passes(gm, lower_).results[0].changed == ("skip_unless", "choose")
    assert not lower_(gm).modified
    for value in (torch.tensor([0.0, 0.0]), torch.tensor([1.0, 2.0])):
        assert torch.equal(gm(value), -value if value.any() else value)


def test_where_a_check_would_refuse_the_inputs_outputs_are_not_a_number() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    high = graph.call_function(torch.any, (graph.call_function(torch.gt, (x, 5)),))
    graph.call_function(check_condition, (high, False, "a condition"))
    y = graph.call_function(torch.neg, (x,))
    y.meta["val"] = torch.empty(2)
    z = graph.call_function(torch.abs, (y,))
    z.meta["val"] = torch.empty(2)
    graph.output((y, {"z": z}))
    gm = fx.GraphModule(nn.Module(), graph)
    assert run_passes(gm, lower_).results[0].changed == ("check_condition",)
    assert not lower_(gm).modified
    kept, named = gm(torch.tensor([1.0, 2.0]))
    assert torch.equal(kept, torch.tensor([-1.0, -2.0]))
    assert torch.equal(named["z"], torch.tensor([1.0, 2.0]))
    kept, named = gm(torch.tensor([1.0, 6.0]))
    assert bool(kept.isnan().all() and named["z"].isnan().all())


class Loss(nn.Module):
    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(x.flatten(0, 1), targets.flatten())


class _Dimmed(nn.Module):
    """Writes into a view of what it returns, after it was made."""

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, list[Tensor]]]:
        y = x + x.flip(0)
        y[..., 0].mul_(0.5)
        return y.mean(-1), {"inner": [y]} if x.shape[1] > 2 else {"inner": [x]}


def test_values_that_may_be_no_number_are_as_they_were_written_last(tmp_path: Path) -> None:
    given = (torch.randn(2, 4, 5),)
    gm = repl_fx.capture(_Dimmed(), given)
    verified = Exported(gm, tmp_path / "net.onnx", given).verify()
    assert verified, verified.summary()


@pytest.mark.slow
@fails_on_old_torch("a trace asks nothing of the numbers of targets and of values")
def test_a_loss_of_more_targets_than_values_is_not_a_number(tmp_path: Path) -> None:
    args = torch.randn(2, 6, 4), torch.zeros(2, 6, dtype=torch.int64)
    gm = repl_fx.capture(Loss(), args)
    repl_fx.export_onnx(gm, tmp_path / "loss.onnx", args)
    session = OnnxSession(tmp_path / "loss.onnx")
    for targets in (6, 5):
        given = flatten_inputs(gm, ExampleInputs((args[0], args[1][:, :targets])))
        session.check_inputs(given)
        assert np.isnan(session.run(given)["output"]) == (targets != 6)


def test_a_check_of_strides_is_left_out() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(torch.neg, (graph.call_function(check_layout, (x, None, [2, 1], "")),)))
    gm = fx.GraphModule(nn.Module(), graph)
    assert lower_(gm).modified
    assert [node.target for node in gm.graph.nodes if node.op == "call_function"] == [torch.neg]


class _Squeezed(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.squeeze(0) + 1, x.mean(1, keepdim=True).squeeze(1)


def test_a_file_has_no_values_where_a_dimension_would_go_that_the_example_keeps(tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    gm = repl_fx.capture(_Squeezed(), (x,))
    lowered = copy.deepcopy(gm)
    assert len(lower_(lowered).changed) == 1 and not lower_(lowered).modified
    repl_fx.export_onnx(gm, tmp_path / "m.onnx", (x,))
    session = OnnxSession(tmp_path / "m.onnx")
    for rows in (3, 2, 1):
        found = session.run(flatten_inputs(gm, ExampleInputs((x[:rows],)))).values()
        assert all(bool(np.isnan(value).all()) == (rows == 1) for value in found)


class _Merged(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(1, 0, 2).reshape(-1, x.shape[1]) * 2


def test_a_file_has_no_values_where_sizes_differ_that_are_alike_in_the_example(tmp_path: Path) -> None:
    x = torch.randn(2, 8, 8)
    gm = repl_fx.capture(_Merged().eval(), (x,))
    path = repl_fx.export_onnx(gm, tmp_path / "m.onnx", (x,))
    session = OnnxSession(path)
    for shape, alike in (((2, 5, 5), True), ((2, 3, 8), False)):
        other = torch.randn(shape)
        (found,) = session.run(flatten_inputs(gm, ExampleInputs((other,)))).values()
        if alike:
            np.testing.assert_array_equal(found, gm(other).numpy())
        else:
            assert np.isnan(found).all()
