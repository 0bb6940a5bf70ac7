"""benchmarks/step_cost.py: what it counts, whose turn it is, when it ends, and what its verdicts follow from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import step_cost
from benchmarks.step_cost import Bench, Budget, all_variants, main
from benchmarks.training import cost_tables as tables
from benchmarks.training.cost_tables import Group, Row
from benchmarks.training.models import Network
from benchmarks.training.step import compile_, cross_entropy, trainer_of
from benchmarks.training.variants import (
    CHECKPOINTED,
    FULL,
    SometimesSkipped,
    Variant,
    by_hand,
    in_place,
    pruned,
    rewritten,
)
from repl_fx.benchmarking.training import PARTS, Trainer, kept_bytes
from repl_fx.running.timing import order
from tests.nets import TokenNet

ABOUT: dict[str, Any] = {
    "device": "a GPU",
    "cpu": "a CPU",
    "cores": 2,
    "threads": 1,
    "python": "3",
    "torch": "2",
    "repl_fx": "1",
    "clock": "CUDA events",
    "command": "python -m benchmarks.step_cost --models vit_base",
}


def _layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def _batch(rows: int = 5) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 4), torch.zeros(rows, dtype=torch.long)


NETWORK = Network("layers", _layers, lambda rows: _batch(rows)[0], 3)


def _row(variant: str, seconds: list[float], peak: int | None = None, floor: str | None = None) -> Row:
    steps = [{part: one / 4 if part == "forward" else 3 * one / 8 for part in PARTS} for one in seconds]
    return Row(variant, floor, None, 10, 20, 30, peak, 0, steps)


def _group(ours: float, peak: int | None = 100, model: str = "vit_base", **changes: Any) -> Group:
    rows = [
        _row(FULL.name, [2.0, 2.0], 200),
        _row(CHECKPOINTED.name, [2.5, 2.5], 120),
        _row(pruned(2).name, [1.0, 1.0], 100),
        _row(rewritten("auto", 2).name, [ours, ours], peak, pruned(2).name),
    ]
    return replace(Group(model, "eager", "bfloat16", 128, ABOUT, rows), **changes)


# --- the recipe -----------------------------------------------------------------------------------------------------


def test_the_recipe_is_cross_entropy_in_autocast() -> None:
    x, targets = _batch()
    model = _layers()
    logits = model(x)
    assert torch.equal(cross_entropy((x, targets), None)(model), F.cross_entropy(logits, targets))
    # In bfloat16: the input, what the first layer made, the weight of the second; the rest is float32: the logits in
    # log-softmax, the targets, and the weight of the loss.
    two = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    trainer = trainer_of(two, False, torch.bfloat16, _batch())
    assert kept_bytes(trainer.module, trainer.loss) == 2 * (5 * 4 + 5 * 8 + 8 * 3) + 4 * 5 * 3 + 8 * 5 + 4


def test_a_model_whose_blocks_are_skipped_is_compiled_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **settings: compiled.append(self))
    whole, skipped = _layers(), nn.Sequential(*(SometimesSkipped(layer, 0.5) for layer in _layers()))
    compile_(whole)
    assert compiled == [whole]
    compile_(skipped)
    assert compiled[1:] == [layer.block for layer in skipped]


@pytest.mark.slow
def test_checkpointed_blocks_compile_in_one_graph() -> None:
    model = CHECKPOINTED.build(TokenNet(depth=3), (torch.randn(2, 6, 16),))
    torch.compiler.reset()
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 6, 16)
    torch.testing.assert_close(compiled(x), model(x))
    torch.compiler.reset()


# --- rounds ---------------------------------------------------------------------------------------------------------


def _measure(
    monkeypatch: pytest.MonkeyPatch, variants: list[Variant], budget: Budget, took: list[str]
) -> tuple[Group, list[int]]:
    """Measure three rounds with a timer that notes whom it timed; the rounds there were each time it was saved."""
    names: dict[int, str] = {}
    saved: list[int] = []
    real = Trainer.load
    group = Group("layers", "eager", "float32", 5, ABOUT)

    def load(self: Trainer) -> None:
        names.setdefault(id(self), group.rows[-1].variant)
        real(self)

    def timed(step: Any) -> list[float]:
        took.append(names[id(step.__self__)])
        return [1.0] * len(PARTS)

    monkeypatch.setattr(Trainer, "load", load)
    monkeypatch.setattr(step_cost, "Timer", lambda device, clock: timed)

    def save(group: Group) -> None:
        saved.append(len(group.rows[0].steps))

    Bench(NETWORK, 5, torch.device("cpu"), "wall", 3, budget, save).measure(group, variants)
    return group, saved


@pytest.mark.slow
def test_variants_take_turns_and_one_that_fails_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    took: list[str] = []
    variants = [FULL, Variant("broken", surrogate="no such"), Variant("again")]
    group, saved = _measure(monkeypatch, variants, Budget(None), took)
    assert took == [name for number in range(6) for name in order(["full", "again"], number)]
    assert [len(row.steps) for row in group.rows] == [3, 0, 3]
    assert group.rows[1].error is not None and group.rows[1].error.startswith("UnknownSurrogate: ")
    assert group.rows[0].error is None and group.rows[0].kept_bytes == 344
    assert saved == [0, 0, 0, 1, 2, 3]


@pytest.mark.slow
def test_a_run_ends_with_its_budget_and_keeps_whole_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    took: list[str] = []
    # Time passes with the turns; it is over in the middle of the second round that counts.
    budget = Budget(9, now=lambda: float(len(took)))
    group, saved = _measure(monkeypatch, [FULL, Variant("again")], budget, took)
    assert len(took) == 9
    assert [len(row.steps) for row in group.rows] == [1, 1]
    assert saved[-1] == 1


def test_a_run_keeps_time_for_what_it_has_made() -> None:
    at = iter([0.0, 5.9, 5.9, 6.1, 6.1, 9.1, 9.1])
    budget = Budget(9, now=lambda: next(at))
    assert [(budget.late, budget.over) for _ in range(3)] == [(False, False), (True, False), (True, True)]


def test_a_budget_that_is_spent_before_the_start_measures_nothing(tmp_path: Path) -> None:
    path = tmp_path / "cost.json"
    assert main(["--device", "cpu", "--models", "vit", "--budget-s", "0", "--json", str(path)]) == 0
    assert tables.read_json(path) == []


@pytest.mark.slow
def test_a_small_run_from_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "cost.json"
    which = ["--models", "vit", "--variants", "ful?", "--dtypes", "float32", "--batch", "2", "--steps", "2"]
    which += ["--evaluated", "3"]
    assert main(["--device", "cpu", *which, "--json", str(path), "--docs", str(tmp_path)]) == 0
    group, evaluated = tables.read_json(path)
    assert (group.model, group.mode, group.dtype, group.batch) == ("vit", "eager", "float32", 2)
    (row,) = group.rows
    assert row.variant == "full" and len(row.steps) == 2 and row.peak_bytes is None
    assert row.parameters == 1_018_762 and row.optimizer_bytes is not None and row.optimizer_bytes > 8 * row.parameters
    assert group.about["command"].startswith("python -m benchmarks.step_cost --device cpu --models vit")
    assert "| full | " in (tmp_path / "step_cost.md").read_text()
    assert (evaluated.mode, evaluated.batch, [row.variant for row in evaluated.rows]) == ("evaluation", 3, ["full"])
    assert [list(step) for step in evaluated.rows[0].steps] == [["forward"]] * 2


def test_an_evaluation_is_timed_without_gradients_and_folded_beside_unfolded() -> None:
    def build() -> nn.Module:
        return TokenNet(depth=3)

    network = Network("tokens", build, lambda rows: torch.randn(rows, 6, 16), 10)
    bench = Bench(network, 5, torch.device("cpu"), "wall", 2, Budget(None), lambda group: None)
    group = Group("tokens", "evaluation", "float32", 4, ABOUT)
    bench.evaluate(group, [FULL, pruned(2), rewritten("blend", 2), in_place("blend", 2)])
    names = ["full", "depth-pruned", "depth-pruned, folded", "blend", "blend, folded", "blend in place"]
    assert [row.variant.replace(", every=2", "") for row in group.rows] == names
    assert all(row.error is None and len(row.steps) == 2 for row in group.rows)
    assert [row.floor for row in group.rows] == [None, *[pruned(2).name] * 5]
    assert tables.cells(group, group.rows[0])[4] == "–" != tables.cells(group, group.rows[0])[3]


def test_every_surrogate_has_its_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        step_cost,
        "known_surrogates",
        lambda: ("auto", "blend", "coarse", "bottleneck", "identity", "newer", "reuse", "slim"),
    )
    names = [variant.name for variant in all_variants()]
    assert len(set(names)) == len(names)
    for every in (2, 3):
        at = {name for name in names if name.endswith(f"every={every}")}
        graphs = ("depth-pruned", "auto", "auto (weights=own)", "blend", "newer")
        names_at = (*graphs, "auto in place", "blocks taken out by hand")
        assert at == {f"{name}, every={every}" for name in names_at}
    assert {"full", "full, checkpointed", "stochastic depth"} <= set(names)


def test_the_forms_of_a_variant_compute_the_same() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 16)
    for forms in ((rewritten("auto", 2), in_place("auto", 2)), (pruned(2), by_hand(2))):
        model = TokenNet(depth=5)
        graph, other = (variant.build(model, (x,)) for variant in forms)
        assert torch.equal(graph.eval()(x), other.eval()(x))
        assert (type(graph) is TokenNet, type(other) is TokenNet) == (False, True)


# --- figures --------------------------------------------------------------------------------------------------------


def test_a_ratio_of_times_is_the_median_over_rounds() -> None:
    group = Group("m", "eager", "float32", 1, ABOUT, [_row("a", [2.0, 30.0, 4.0]), _row("b", [1.0, 10.0, 4.0, 9.0])])
    assert group.time_ratio("a", "b") == pytest.approx(2.0)
    assert group.time_ratio("a", "absent") is None and group.time_ratio("a", None) is None


def test_memory_is_the_peak_and_where_there_is_none_what_is_kept() -> None:
    group = _group(1.0)
    cells = dict(zip(tables.head(group), tables.cells(group, group.rows[-1]), strict=True))
    assert (cells["time/floor"], cells["time/full"], cells["peak/floor"], cells["peak/full"]) == (
        "1.000",
        "0.500",
        "1.000",
        "0.500",
    )
    assert (cells["step ms"], cells["forward"], cells["optimizer"]) == ("1000.0", "250.0", "375.0")
    for row in group.rows:
        row.peak_bytes = None
    assert "kept/floor" in tables.head(group) and "peak/floor" not in tables.head(group)


@pytest.mark.parametrize(
    ("ours", "peak", "expected"),
    [
        (1.05, 105, ["PASS", "PASS", "PASS", "PASS"]),
        (1.06, 106, ["MISSED", "MISSED", "PASS", "PASS"]),
        (2.5, 120, ["MISSED", "MISSED", "MISSED", "MISSED"]),
        (1.0, None, ["PASS", "not measured", "PASS", "not measured"]),
    ],
)
def test_targets(ours: float, peak: int | None, expected: list[str]) -> None:
    assert [target.status for target in tables.targets([_group(ours, peak)], ["auto"])] == expected


def test_targets_concern_two_models_in_bfloat16_and_the_recommended_surrogates() -> None:
    others = [_group(9.0, model="gpt12"), _group(9.0, dtype="float32")]
    assert tables.targets(others, ["auto"]) == []
    assert {target.status for target in tables.targets([_group(1.0)], ["blend"])} == {"not measured"}
    (first, *_) = tables.targets([_group(1.25)], ["auto"])
    assert str(first) == (
        "MISSED step time of vit_base, eager, bfloat16: auto, every=2, against depth-pruned, every=2: "
        "1.250 times, target at most 1.05"
    )


def test_files_are_merged_by_whole_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = _group(9.0)
    for row in short.rows:
        del row.steps[1:]
    older, elsewhere = _group(1.0), _group(1.0, about=ABOUT | {"device": "another GPU"})
    other = _group(1.06, model="resnet50")
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    tables.write_json(first, [older, elsewhere])
    tables.write_json(second, [short, other])
    assert tables.read_json(first) == [older, elsewhere]
    both = tmp_path / "both.json"
    command = ["--merge", str(first), str(second), "--json", str(both), "--docs", str(tmp_path)]
    assert main(command) == 0
    assert tables.read_json(both) == [older, elsewhere, other]
    assert main([*command, "--strict"]) == 1
    # As many steps, later: taken.
    tables.write_json(second, [_group(1.04)])
    assert main([*command, "--strict"]) == 0
    text = (tmp_path / "step_cost.md").read_text()
    assert text.count("## vit_base, eager, bfloat16 autocast, batch 128, 2 rounds") == 2
    assert "another GPU; a CPU, 2 cores" in text and "1.040 times" in text
    assert "PASS step time of vit_base" in capsys.readouterr().out


def test_a_device_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert main(["--device", "cuda"]) == 2
    assert "device cuda is not there" in capsys.readouterr().err
