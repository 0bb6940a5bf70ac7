"""The benchmark of throughput: both sides train, in turns, and the table says by how much they differ."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks import throughput
from benchmarks.training.models import vit
from repl_fx.training.data import Data, Tensors, load_data
from repl_fx.training.train_config import TrainConfig


@pytest.mark.slow
def test_both_sides_are_measured_from_the_same_start(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_data("digits")
    assert isinstance(data, Data) and isinstance(data.train, Tensors)
    few = Tensors(data.train.main[:64], data.train.targets[:64])
    starts = []
    own = throughput.by_hand

    def by_hand(model: torch.nn.Module, *rest: object) -> float:
        starts.append(float(next(model.parameters()).detach().sum()))
        return own(model, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(throughput, "by_hand", by_hand)
    monkeypatch.setitem(throughput.MODELS, "vit", partial(vit, patch=4, depth=3))
    config = TrainConfig(epochs=1, batch_size=32, device="cpu")
    measured = throughput.measure("vit", replace(data, train=few, test=few), config, 1, "cpu")
    assert starts[0] == starts[1]
    assert {name: len(rates) for name, rates in measured["rates"].items()} == {"by hand": 1, "repl-fx train": 1}
    ours, theirs = measured["rates"]["repl-fx train"][0], measured["rates"]["by hand"][0]
    assert measured["ratios"] == [pytest.approx(ours / theirs)]
    table = throughput.lines(measured)
    assert "by hand, inputs per CPU second" in table[2]
    assert table[-1].startswith(f"| ratio | {ours / theirs:.3f}")
