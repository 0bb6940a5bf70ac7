"""The benchmark of accuracy: its data, that variants are comparable, and that it resumes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import accuracy
from benchmarks.training.accuracy_report import document, summarise
from benchmarks.training.data import copy_sources, load, thinned
from benchmarks.training.runs import Run, build, parse_variant, perform
from benchmarks.training.tasks import tasks
from repl_fx.errors import BadInput, UnknownSurrogate
from repl_fx.training.data import Data, Tensors


def _sources(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"# {name}\n" * 5)
    return root


@pytest.fixture
def small_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A library of forty files in place of the standard one."""
    root = _sources(tmp_path / "library", *(f"{i}.py" for i in range(40)))
    monkeypatch.setattr("benchmarks.training.data.sysconfig.get_path", lambda name: str(root))
    load.cache_clear()
    yield
    load.cache_clear()


# --- data -----------------------------------------------------------------------------------------------------------


def test_tests_and_installed_packages_are_no_source_text(tmp_path: Path) -> None:
    names = ("a.py", "test/b.py", "x/tests/c.py", "x/y.py", "site-packages/d.py", "testing.py", "z.so")
    copy_sources(_sources(tmp_path / "test", *names), tmp_path / "copy")
    copied = {file.relative_to(tmp_path / "copy").as_posix() for file in tmp_path.glob("copy/**/*.py")}
    assert copied == {"a.py", "x/y.py", "testing.py"} and not list(tmp_path.glob("copy/*.so"))


@pytest.mark.usefixtures("small_text")
def test_the_text_is_the_same_each_time(tmp_path: Path) -> None:
    first = load("text", tmp_path, 8)
    load.cache_clear()
    again = load("text", tmp_path, 8)
    assert isinstance(first.test, Tensors) and isinstance(again.test, Tensors)
    assert torch.equal(first.test.main, again.test.main) and first.shape == (8,)


def test_limits_spread_over_the_data() -> None:
    part = Tensors(torch.arange(18.0)[:, None], torch.arange(18) % 2)
    few = thinned(Data("d", "classification", 2, (1,), part, part), 3, None)
    assert isinstance(few.train, Tensors) and few.test is part
    assert few.train.main.flatten().tolist() == [0, 8, 17] and few.train.targets.tolist() == [0, 0, 1]


# --- variants and runs ----------------------------------------------------------------------------------------------


def test_variants_are_read_from_their_specifications() -> None:
    assert parse_variant("full").surrogate is None and parse_variant("stochastic-depth").blocks == "stochastic depth"
    assert parse_variant("identity@3").name == "depth-pruned, every=3"
    blend = parse_variant("blend:per=tensor,train_neighbours=false@4")
    assert (blend.surrogate, blend.every) == ("blend", 4)
    assert blend.settings == {"per": "tensor", "train_neighbours": False}
    assert parse_variant("bottleneck:ratio=0.5").settings == {"ratio": 0.5} and parse_variant("bottleneck").every == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("blend@", "ends in @"),
        ("blend@1", "a number of 2 or more"),
        ("blend@two", "ends in @two"),
        ("blend:per", "'per' is no setting"),
        ("blend:", "'' is no setting"),
        ("blend:per=tensor,per=channel", "'per=channel' is no setting"),
        ("blend:colour=red", "has no setting 'colour'"),
        ("blend:per=row", "per is 'row'"),
    ],
)
def test_a_specification_that_is_none_is_bad_input(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        parse_variant(text)


def test_an_unknown_surrogate_is_named_with_the_known_ones() -> None:
    with pytest.raises(UnknownSurrogate, match=r"'blnd'; did you mean blend\?; known are"):
        parse_variant("blnd@2")


def test_what_variants_share_begins_with_the_same_values() -> None:
    task, example = tasks("smoke")["text/gpt"], torch.zeros(2, 16, dtype=torch.long)

    def state(variant: str, seed: int = 3) -> tuple[dict[str, Tensor], list[str]]:
        model, replaced = build(task, parse_variant(variant), example, seed)
        assert model.training
        return {name: p.detach().clone() for name, p in model.named_parameters()}, replaced

    full, none = state("full")
    assert none == []
    shared, replaced = state("bottleneck:weights=own@3")
    common = full.keys() & shared.keys()
    assert len(replaced) == 1 and {name for name in full if "blocks.0." in name} <= common
    assert all(torch.equal(full[name], shared[name]) for name in common)
    other, _ = state("full", seed=4)
    assert not torch.equal(other["tokens.weight"], full["tokens.weight"])


def test_the_variant_has_no_influence_on_batches() -> None:
    full, other = (Run("cpu", "cifar10/vit", variant, 4, "cpu", epochs=2) for variant in ("full", "stochastic-depth"))
    assert full.config == other.config
    assert (full.config.seed, full.config.epochs, full.config.label_smoothing) == (4, 2, 0.1)


def test_half_the_size_is_means_of_squares() -> None:
    with torch.device("meta"):
        model = tasks("cpu")["cifar10/resnet20"].build()
    assert isinstance(model, torch.nn.Sequential)
    assert model[0](torch.zeros(2, 3, 32, 32, device="meta")).shape == (2, 3, 16, 16)


@pytest.mark.usefixtures("small_text")
def test_a_run_repeats_and_a_refusal_is_recorded(tmp_path: Path) -> None:
    first, second = (perform(Run("smoke", "text/gpt", "full", 1, "cpu"), tmp_path) for _ in range(2))
    assert min(record["result"].pop("step_ms") for record in (first, second)) > 0
    assert first["result"] == second["result"] and first["settings"] == second["settings"]
    refused = perform(Run("smoke", "text/gpt", "identity@5", 1, "cpu"), tmp_path)
    assert refused["error"].startswith("NothingToReplace: nothing to replace") and "result" not in refused


@pytest.mark.usefixtures("small_text")
def test_a_network_is_trained_recorded_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--scale", "smoke", "--tasks", "text/*", "--variants", "full", "--seeds", "1", "--out", str(tmp_path)]
    assert accuracy.main(given) == 0
    assert "text/gpt full seed 0" in capsys.readouterr().out
    assert accuracy.main(["--out", str(tmp_path), "--report-only", "--docs", str(tmp_path / "docs")]) == 0
    assert "## text/gpt, scale smoke" in (tmp_path / "docs" / "accuracy.md").read_text()
    (group,) = json.loads((tmp_path / "docs" / "accuracy.json").read_text())
    assert 7 < group["variants"][0]["results"][0]["bits"] < 9


SMOKE = ("--scale", "smoke", "--tasks", "text/*", "--variants", "full", "identity")


@pytest.fixture
def performed(monkeypatch: pytest.MonkeyPatch, small_text: None) -> list[tuple[str, int]]:
    """Runs take a minute each and no time; the list of what was run."""
    performed: list[tuple[str, int]] = []

    def fake(run: Run, *rest: Any) -> dict[str, Any]:
        performed.append((run.variant, run.seed))
        return _record(run.variant, run.seed, 0.5, settings=run.settings(), seconds=60.0)

    monkeypatch.setattr(accuracy, "perform", fake)
    return performed


def test_what_was_run_is_not_run_again(
    tmp_path: Path, performed: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", str(tmp_path))
    assert accuracy.main([*SMOKE, *out, "--seeds", "1"]) == 0
    file = tmp_path / "accuracy.jsonl"
    # As a run that is killed leaves it.
    file.write_text(file.read_text() + '{"settings": {"sca')
    assert accuracy.main([*SMOKE, *out, "--seeds", "2"]) == 0
    assert performed == [("full", 0), ("identity", 0), ("full", 1), ("identity", 1)]
    assert accuracy.main([*SMOKE, *out, "--seeds", "2"]) == 0 and len(performed) == 4
    assert "4 of 4 runs are in" in capsys.readouterr().out
    # Another length is another run.
    assert accuracy.main([*SMOKE, *out, "--seeds", "1", "--epochs", "2"]) == 0 and len(performed) == 6


def test_a_run_that_failed_is_run_again(tmp_path: Path, performed: list[tuple[str, int]]) -> None:
    settings = Run("smoke", "text/gpt", "full", 0, "cpu").settings()
    failed = _record("full", 0, 0.0, settings=settings, error="RuntimeError: out of memory")
    (tmp_path / "accuracy.jsonl").write_text(json.dumps(failed) + "\n")
    for _ in range(2):
        assert accuracy.main([*SMOKE, "--out", str(tmp_path), "--seeds", "1"]) == 0
    assert performed == [("full", 0), ("identity", 0)]


def test_a_run_that_would_outlast_the_budget_is_not_started(
    tmp_path: Path, performed: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    # How long the first takes, nobody knows; after it, that another minute is too long.
    assert accuracy.main([*SMOKE, "--out", str(tmp_path), "--budget-s", "50"]) == 0
    assert len(performed) == 1 and "5 runs are left" in capsys.readouterr().out
    assert accuracy.main([*SMOKE, "--out", str(tmp_path), "--budget-s", "50"]) == 0 and len(performed) == 1
    assert accuracy.main([*SMOKE, "--out", str(tmp_path), "--budget-s", "1000"]) == 0 and len(performed) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tasks", "cifar10/vit"), "cifar10: no .* or cifar10.npz in .*; say with --data-dir"),
        (("--tasks", "fashion-mnist/vit"), "fashion-mnist: no FashionMNIST/raw/train-images-idx3-ubyte and 3 more in "),
        (("--tasks", "svhn/*"), "--tasks 'svhn/.*' is none of scale smoke, which has cifar10/"),
        (("--variants", "blend@0"), "variant 'blend@0'"),
    ],
)
def test_what_is_missing_is_one_line(
    arguments: tuple[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--scale", "smoke", "--data-dir", str(tmp_path), "--out", str(tmp_path / "out"), *arguments]
    assert accuracy.main(given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    with pytest.raises(BadInput, match=message):
        raise BadInput(line)


# --- report ---------------------------------------------------------------------------------------------------------


def _record(variant: str, seed: int, accuracy: float, step: float = 1.0, **changes: Any) -> dict[str, Any]:
    settings = Run("cpu", "cifar10/vit", variant, seed, "cpu").settings()
    result = {"accuracy": accuracy, "loss": 1.0, "bits": 1.4, "train_loss": 1.0, "step_ms": step, "parameters": 10}
    return {
        "settings": settings,
        "environment": {"machine": "M", "python": "3", "torch": "2", "repl_fx": "0", "workers": 1},
        "data": {},
        "result": result | {"replaced": [], "memory_mib": None},
        "seconds": 5.0,
    } | changes


def test_differences_are_paired_by_seed() -> None:
    records = [
        _record("full", 0, 0.5),
        _record("full", 1, 0.7),
        _record("identity", 1, 0.6),
        _record("identity", 0, 0.3),
    ]
    records += [_record("blend", 0, 0.45, step=2.0), _record("blend", 1, 0.65, step=3.0), _record("blend", 2, 0.9)]
    # A second result of a run takes the place of the first; blend@3 has no floor among these.
    records += [_record("full", 0, 0.4), _record("blend@3", 0, 0.8)]
    (group,) = summarise(records)
    rows = {row["name"]: row for row in group["variants"]}
    assert list(rows) == ["full", "depth-pruned, every=2", "blend, every=2", "blend, every=3"]
    assert rows["blend, every=2"]["less full"]["accuracy"] == pytest.approx([0.05, -0.05])
    assert rows["blend, every=2"]["less floor"]["accuracy"] == pytest.approx([0.15, 0.05])
    assert rows["blend, every=2"]["of full"] == [2.0, 3.0]
    assert rows["blend, every=3"]["less floor"]["accuracy"] == rows["full"]["less full"]["accuracy"] == []
    text = document([group], picture=False)
    assert "| depth-pruned, every=2 | 2 | 0 | 10 | 45.00 ± 21.21 | -10.00 ± 0.00 | – |" in text
    assert "+10.00 ± 7.07" in text and "accuracy.svg" not in text


def test_other_machines_are_not_compared_and_failures_are_told() -> None:
    elsewhere = _record("full", 0, 0.5)
    elsewhere["environment"] = elsewhere["environment"] | {"machine": "N"}
    failed = _record("blend", 0, 0.0)
    del failed["result"]
    groups = summarise([_record("identity", 0, 0.4), elsewhere, failed | {"error": "FloatingPointError: nan"}])
    assert [len(group["variants"]) for group in groups] == [2, 1]
    assert groups[0]["variants"][0]["less full"]["accuracy"] == []
    assert "- blend, every=2, seed 0: FloatingPointError: nan" in document(groups, picture=True)
