"""The benchmark of accuracy: its data, its recipe, that variants are comparable, and that it resumes."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import accuracy
from benchmarks.training import runs
from benchmarks.training.accuracy_report import document, summarise
from benchmarks.training.data import (
    RAW,
    Images,
    Text,
    is_held_out,
    load_images,
    load_text,
    shift_and_flip,
    split_sources,
)
from benchmarks.training.recipe import Recipe, evaluate
from benchmarks.training.runs import Run, build, parse_variant, perform
from benchmarks.training.tasks import tasks
from repl_fx.errors import BadInput, UnknownSurrogate


def _text() -> Text:
    source = torch.arange(200, dtype=torch.uint8)
    return Text(source, source, context=8, windows=6, files=(1, 1))


def _images(n: int = 12) -> Images:
    pictures = torch.randint(1, 256, (n, 6, 6, 3), dtype=torch.uint8)
    return Images(pictures, torch.arange(n), pictures[:5], torch.arange(5), padding=2)


def _sources(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"# {name}\n" * 5)
    return root


# --- data -----------------------------------------------------------------------------------------------------------


def test_the_split_by_file_is_disjoint_and_stable(tmp_path: Path) -> None:
    names = [f"package/module_{i}.py" for i in range(60)]
    train, test = split_sources(_sources(tmp_path / "few", *names))
    assert sorted([*train, *test]) == sorted(tmp_path / "few" / name for name in names)
    assert not set(train) & set(test) and 1 <= len(test) <= 15
    # Other files elsewhere move none of these; a second look sees the same.
    more = split_sources(_sources(tmp_path / "more", *names, "a.py", "z/b.py"))
    assert {f.name for f in test} <= {f.name for f in more[1]} and {f.name for f in train} <= {f.name for f in more[0]}
    # By the hash alone, the same on every machine.
    names = ["abc.py", "ast.py", "json/decoder.py", "os.py", "types.py"]
    assert [name for name in names if is_held_out(name)] == ["ast.py", "types.py"]


def test_tests_and_installed_packages_are_no_source_text(tmp_path: Path) -> None:
    root = _sources(tmp_path / "test", "a.py", "test/b.py", "x/tests/c.py", "site-packages/d.py", "testing.py")
    assert {file.name for part in split_sources(root) for file in part} == {"a.py", "testing.py"}


def test_held_out_files_are_not_trained_on(tmp_path: Path) -> None:
    root = _sources(tmp_path, *(f"{i}.py" for i in range(40)))
    text = load_text(8, 4, tmp_path, "cpu", root)
    train, test = (bytes(part.numpy()).decode() for part in (text.train_bytes, text.test_bytes))
    for i in range(40):
        assert (f"# {i}.py\n" in test, f"# {i}.py\n" in train) == (is_held_out(f"{i}.py"), not is_held_out(f"{i}.py"))
    assert train.count("\0") == text.files[0]
    with pytest.raises(BadInput, match="too few"):
        load_text(10_000, 4, tmp_path, "cpu", root)


def test_the_windows_of_the_evaluation_are_fixed_and_shifted_by_one() -> None:
    first, second = (list(_text().test(4)) for _ in range(2))
    assert [len(x) for x, _ in first] == [4, 2]
    for (x, y), (again, _) in zip(first, second, strict=True):
        assert torch.equal(x, again) and torch.equal(y, x + 1)
    assert first[0][0][0, 0] == 0 and first[-1][1][-1, -1] == 199


def test_shifting_and_flipping_is_all_that_augmentation_does() -> None:
    pictures = torch.randint(1, 256, (40, 5, 6, 3), dtype=torch.uint8)
    for flip in (True, False):
        changed = shift_and_flip(pictures, torch.Generator().manual_seed(0), 2, flip)
        assert changed.shape == pictures.shape and changed.dtype == torch.uint8
        ways: list[tuple[int, int, bool]] = []
        for one, padded in zip(changed, nn.functional.pad(pictures, (0, 0, 2, 2, 2, 2)), strict=True):
            crops = {(i, j): padded[i : i + 5, j : j + 6] for i in range(5) for j in range(5)}
            found = [(*at, False) for at, crop in crops.items() if torch.equal(crop, one)]
            found += [(*at, True) for at, crop in crops.items() if torch.equal(crop.flip(1), one)]
            assert len(found) == 1
            ways += found
        assert {way[2] for way in ways} == ({True, False} if flip else {False})
        assert len(set(ways)) > 10


def test_an_epoch_has_each_picture_once_in_an_order_of_the_seed_alone() -> None:
    data = _images()

    def order(seed: int, disturbance: int) -> list[int]:
        torch.manual_seed(disturbance)
        batches = data.train(4, 6, torch.Generator().manual_seed(seed))
        return [int(label) for _, y in batches for label in y]

    first = order(1, 0)
    assert sorted(first[:12]) == sorted(first[12:]) == list(range(12)) and first[:12] != first[12:]
    assert first == order(1, 5) != order(2, 0)


def test_pictures_are_normalised_by_the_training_set_and_halved_by_means() -> None:
    data = _images(50)
    x = torch.cat([x for x, _ in Images(data.train_x, data.train_y, data.train_x, data.train_y).test(7)])
    assert x.shape == (50, 3, 6, 6)
    assert torch.allclose(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(x.std((0, 2, 3)), torch.ones(3), atol=1e-3)
    half = data.halved()
    assert half.train_x.shape == (50, 3, 3, 3) and half.padding == 1
    assert abs(float(half.train_x[0, 0, 0, 0]) - float(data.train_x[0, :2, :2, 0].float().mean())) <= 0.5


def test_fashion_mnist_is_read_from_its_files(tmp_path: Path) -> None:
    (tmp_path / RAW).parent.mkdir(parents=True)
    pictures = np.arange(3 * 28 * 28).astype(np.uint8)
    for part in ("train", "t10k"):
        (tmp_path / RAW.format(part, "images-idx3")).write_bytes(bytes(16) + pictures.tobytes())
        (tmp_path / RAW.format(part, "labels-idx1")).write_bytes(bytes(8) + bytes([7, 8, 9]))
    data = load_images("fashion-mnist", 2, False, tmp_path, "cpu")
    assert data.train_x.shape == (2, 28, 28, 1) and data.test_y.tolist() == [7, 8, 9] and not data.flip
    assert data.train_x[1, 0, 0, 0] == pictures[28 * 28]
    (tmp_path / RAW.format("t10k", "images-idx3")).write_bytes(bytes(20))
    with pytest.raises(BadInput, match=r"fashion-mnist in .* cannot be read"):
        load_images("fashion-mnist", 2, False, tmp_path, "cpu")


# --- recipe ---------------------------------------------------------------------------------------------------------


class Uniform(nn.Module):
    """Nothing is likelier than anything else, unless the byte after is told."""

    def __init__(self, told: float = 0.0) -> None:
        super().__init__()
        self.told = told

    def forward(self, ids: Tensor) -> Tensor:
        return self.told * nn.functional.one_hot(ids + 1, 256)


def test_a_uniform_model_has_eight_bits_per_byte() -> None:
    assert evaluate(Uniform(), _text(), 4, "cpu")["bits"] == pytest.approx(8, abs=1e-5)
    known = evaluate(Uniform(100.0), _text(), 4, "cpu")
    assert known["bits"] == pytest.approx(0, abs=1e-6) and known["accuracy"] == 1


def test_batches_of_unequal_size_count_by_their_size() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 12))
    data = _images()
    whole, parts = (evaluate(model, data, batch, "cpu") for batch in (5, 2))
    assert whole == pytest.approx(parts) and whole["bits"] == pytest.approx(whole["loss"] / math.log(2))


def test_the_rate_rises_and_falls_to_zero() -> None:
    factors = [Recipe(100, 1, 1.0).factor(step) for step in range(101)]
    assert factors[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert factors[10] == 1 and factors[100] == pytest.approx(0)
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))


def test_weights_decay_and_gains_norms_and_biases_do_not() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    model.gain = nn.Parameter(torch.ones(4, 1, 1, 1))
    decayed, free = Recipe(10, 1, 1.0).optimizer(model).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0.0)
    assert [p.shape for p in decayed["params"]] == [(4, 3, 3, 3), (2, 4)]
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))


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
    with pytest.raises(UnknownSurrogate, match="'blnd'; known are"):
        parse_variant("blnd@2")


def test_what_variants_share_begins_with_the_same_values() -> None:
    task, example = tasks("smoke")["text/gpt"], torch.zeros(2, 16, dtype=torch.long)

    def state(variant: str, seed: int = 3) -> tuple[dict[str, Tensor], list[str]]:
        model, replaced = build(task, parse_variant(variant), example, seed)
        assert model.training
        return {name: p.detach().clone() for name, p in model.named_parameters()}, replaced

    full, none = state("full")
    assert none == []
    for variant in ("blend@3", "bottleneck:weights=own"):
        shared, replaced = state(variant)
        common = full.keys() & shared.keys()
        assert len(replaced) == 1 and {name for name in full if "blocks.0." in name} <= common
        assert all(torch.equal(full[name], shared[name]) for name in common)
    other, _ = state("full", seed=4)
    assert not torch.equal(other["tokens.weight"], full["tokens.weight"])


@pytest.fixture
def small_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A library of forty files in place of the standard one."""
    root = _sources(tmp_path / "library", *(f"{i}.py" for i in range(40)))
    monkeypatch.setattr("benchmarks.training.data.sysconfig.get_path", lambda name: str(root))
    runs._load.cache_clear()
    yield
    runs._load.cache_clear()


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
def performed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
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
        (("--tasks", "cifar10/vit"), "has no cifar10.npz; .* uint8 arrays train_x"),
        (("--tasks", "fashion-mnist/vit"), "has no FashionMNIST/raw/train-images-idx3-ubyte, "),
        (("--tasks", "svhn/*"), "--tasks 'svhn/.*' is none of scale smoke, which has cifar10/"),
        (("--variants", "blend@0"), "variant 'blend@0'"),
    ],
)
def test_what_is_missing_is_one_line(
    arguments: tuple[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--scale", "smoke", "--data", str(tmp_path), "--out", str(tmp_path / "out"), *arguments]
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
