"""The benchmark of trained models, at a size that says nothing."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import trained
from benchmarks.compression.methods import Cut, methods
from benchmarks.compression.originals import Original, original
from benchmarks.compression.trained_report import write_report
from benchmarks.training.models import vit
from benchmarks.training.tasks import Task
from repl_fx.planning.budgets import NoPlan
from repl_fx.training.train_config import TrainConfig

TASK = Task(
    "digits/vit",
    "",
    lambda: vit(8, 1, patch=4, width=16, depth=6, heads=2),
    TrainConfig(epochs=1, batch_size=32, device="cpu", log_every=1),
    (128, 64),
)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Original:
    return original(TASK, TASK.load(Path()), 0, tmp_path_factory.mktemp("weights"))


def test_a_network_is_trained_once(own: Original, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = original(TASK, own.data, 0, tmp_path)
    monkeypatch.setattr("benchmarks.compression.originals.train_once", None)
    again = original(TASK, own.data, 0, tmp_path)
    assert first.steps == again.steps == 4 and own.best == "accuracy" and own.higher_is_better
    for model in (again.model, again.copy(), own.model):
        assert all(torch.equal(value, first.model.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["depth pruning, random blocks", "linear", "auto, fitted", "ReplaceMe's map"])
def test_each_method_cuts_to_the_budget(own: Original, method: str) -> None:
    before = {name: value.clone() for name, value in own.model.state_dict().items()}
    share = 0.9 if method.startswith("auto") else 0.8
    found = trained.run(own, method, share, 0, (0.5,))
    assert "reason" not in found, found
    assert found["flops"] <= share and found["blocks"] >= 1 and found["time"] > 0
    assert 0 <= found["cut"] <= 1 and 0 <= found["healed 0.5"] <= 1
    # Healing trains a network of its own.
    assert all(torch.equal(value, own.model.state_dict()[name]) for name, value in before.items())


def test_what_cannot_be_cut_says_why(own: Original) -> None:
    assert "no plan has flops at or below 0.01" in trained.run(own, "linear", 0.01, 0, ())["reason"]


@pytest.mark.skipif(importlib.util.find_spec("torch_pruning") is None, reason="the extra bench is not installed")
# It says along which dimension it prunes parameters that are in no layer.
@pytest.mark.filterwarnings("ignore:Unwrapped parameters:UserWarning")
def test_channels_go_to_the_budget_itself_where_no_blocks_meet_it(
    own: Original, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*given: Any, **settings: Any) -> Cut:
        raise NoPlan("no plan")

    monkeypatch.setattr("benchmarks.compression.methods._by_budget", none)
    assert 0.75 < trained.run(own, "Torch-Pruning", 0.8, 0, ())["flops"] <= 0.8
    assert "there is no time to meet" in trained.run(own, "Torch-Pruning, as fast", 0.8, 0, ())["reason"]


def test_a_tool_that_is_not_here_is_named(own: Original, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'repl-fx[bench]'" in trained.run(own, "Torch-Pruning", 0.8, 0, ())["reason"]


def test_runs_that_are_there_are_not_done_again(
    own: Original, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def run(own: Original, method: str, *rest: Any) -> dict[str, Any]:
        asked.append(method)
        return {"flops": 0.7, "blocks": 2, "parameters": 9, "cut": 0.5, "time": 0.8, "healed 0.1": 0.6}

    monkeypatch.setattr(trained, "run", run)
    monkeypatch.setattr(trained, "tasks", lambda scale: {TASK.name: TASK})
    given = ["--scale", "cpu", "--seeds", "2", "--shares", "0.75", "--out", str(tmp_path), "--methods", "lin*"]
    assert trained.main(given) == 0
    assert sorted(set(asked)) == [name for name in sorted(methods()) if name.startswith("lin")] and len(asked) == 8
    # Nor is a network trained for them, where their weights are not at hand.
    monkeypatch.setattr(trained, "original", None)
    assert trained.main(given) == 0 and len(asked) == 8
    assert "digits/vit 0.75 linear, seed 0: FLOPs 0.700, cut 0.5000, healed 0.1 0.6000" in capsys.readouterr().out
    # In the order of the methods, whichever ran first.
    lines = (tmp_path / "trained.jsonl").read_text().splitlines()
    (tmp_path / "trained.jsonl").write_text("\n".join(reversed(lines)))
    assert trained.main(["--report", "--out", str(tmp_path), "--docs", str(tmp_path)]) == 0
    text = (tmp_path / "trained.md").read_text()
    assert text.index("| linear, a scale |") < text.index("| linear |") < text.index("| linear, every k |")
    assert "| linear | 2 | 2 | 0.700 | 0.800 | 0.5000 ± 0.0000 | 0.6000 ± 0.0000 |" in text and "2 seeds" in text


def test_a_method_that_failed_has_its_reason_in_the_table(tmp_path: Path) -> None:
    facts = {"scale": "cpu", "network": "a/b", "seed": 0, "machine": "m", "versions": {"torch": "2"}}
    whole = {"method": "original", "share": 1.0, "cut": 0.9, "best": "accuracy", "steps": 10, "higher_is_better": True}
    write_report([{**facts, **whole}, {**facts, "method": "x", "share": 0.5, "reason": "no budget"}], tmp_path)
    assert "| x | | | | | no budget |" in (tmp_path / "trained.md").read_text()
    write_report(
        [{**facts, **whole}, {**facts, "method": "x", "share": 0.5, "reason": "no plan: " + "a block; " * 99}], tmp_path
    )
    (row,) = (line for line in (tmp_path / "trained.md").read_text().splitlines() if line.startswith("| x |"))
    assert "| no plan: a block;" in row and "… |" in row and len(row) < 500
    assert json.dumps("accuracy of the original: 0.9000")[1:-1] in (tmp_path / "trained.md").read_text()


def test_the_report_says_how_far_the_best_method_is_above_others(tmp_path: Path) -> None:
    facts = {"scale": "cpu", "machine": "none", "versions": {}, "network": "text/net", "flops": 0.7, "blocks": 1}
    whole = {"method": "original", "share": 1.0, "best": "bits", "higher_is_better": False, "steps": 10, "cut": 2.0}
    figures = {
        "depth pruning, least influence": (3.0, 2.5),
        "linear": (2.5, 2.4),
        "linear, merged": (2.75, 2.2),
        "Torch-Pruning": (9.0, 2.3),
    }
    records = [{**facts, **whole, "time": 1.0, "seed": seed} for seed in range(2)]
    for method, (cut, healed) in figures.items():
        for seed in range(2):
            found = {"cut": cut + (seed if method == "linear" else 0) * 0.5, "healed 0.1": healed, "time": 1.0}
            records.append({**facts, "method": method, "share": 0.75, "seed": seed, **found})
    write_report(records, tmp_path)
    (row,) = (line for line in (tmp_path / "trained.md").read_text().splitlines() if line.startswith("| text/net |"))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    # Of equal means the first; fewer bits are better, seed by seed.
    assert cells[1:3] == ["2", "linear: 0.2500 \u00b1 0.3536 (FLOPs 0.700, 0.700)"]
    assert cells[3:] == ["linear, merged: 0.1000 \u00b1 0.0000 (FLOPs 0.700, 0.700)", ""]
    assert [json.loads(line) for line in (tmp_path / "trained.jsonl").read_text().splitlines()] == records


def test_what_costs_more_is_not_among_the_best(tmp_path: Path) -> None:
    facts = {"scale": "cpu", "versions": {"torch": "2"}, "network": "image/net", "blocks": 1, "seed": 0}
    whole = {"method": "original", "share": 1.0, "best": "accuracy", "higher_is_better": True, "steps": 10, "cut": 0.9}
    records = [{**facts, **whole, "machine": "one", "flops": 1.0, "time": 1.0}]
    # Method, what is left of FLOPs and time, and the accuracy.
    for method, flops, time, accuracy in [
        ("depth pruning, least influence", 0.65, 0.65, 0.5),
        ("linear", 0.67, 0.66, 0.6),
        ("narrow", 0.7, 0.7, 0.8),
        ("Torch-Pruning", 0.7, 0.9, 0.7),
        ("Torch-Pruning, as fast", 0.5, 0.66, 0.3),
    ]:
        found = {"flops": flops, "time": time, "cut": accuracy, "healed 0.1": accuracy}
        records.append({**facts, "machine": "two", "method": method, "share": 0.75, **found})
    write_report(records, tmp_path)
    text = (tmp_path / "trained.md").read_text()
    (row,) = (line for line in text.splitlines() if line.startswith("| image/net |"))
    assert [cell.strip() for cell in row.split("|")[3:-1]] == [
        "linear: 0.1000 (FLOPs 0.670, 0.650)",
        "narrow: 0.1000 (FLOPs 0.700, 0.700)",
        "linear: 0.3000 (time 0.660, 0.660)",
    ]
    # Runs of several machines are told apart, and a method says how many seeds it has.
    assert "; 1 seed; one, torch 2; two, torch 2\n" in text
    assert "| linear | 1 | 1 | 0.670 | 0.660 | 0.6000 | 0.6000 |" in text
