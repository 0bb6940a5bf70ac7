"""How plans and artifacts differ."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

import repl_fx
from repl_fx.artifact.manifest import MANIFEST, File, read_manifest
from repl_fx.artifact.store import WEIGHTS
from repl_fx.errors import ArtifactError, BadInput, PlanMismatch
from repl_fx.plan import Plan, Refusal, Replacement
from repl_fx.reporting.plan_difference import (
    BlockDifference,
    ChangedFact,
    PlansDifference,
    WeightsDifference,
    compare,
    difference_lines,
)
from repl_fx.sources.source import hash_file
from tests.model_graphs import TOKENS
from tests.nets import TokenNet

PLAN = Plan(
    (Replacement("b.1", "b", "b.0", "b.2", "slim", {"ratio": 0.25}), Replacement("b.3", "b", "b.2", "b.4", "slim")),
    (Refusal("c.1", "c", "it is odd"),),
    "f00",
)


def _file(directory: Path, name: str, plan: Plan) -> Path:
    file = directory / name
    file.write_text(plan.to_json())
    return file


def test_a_plan_equals_itself(tmp_path: Path) -> None:
    file = _file(tmp_path, "one.json", PLAN)
    found = compare(file, file)
    assert not found
    assert (found.alike, found.blocks, found.parameters, found.weights) == (3, (), (None, None), None)
    assert found.to_json()["equal"] is True


def test_blocks_differ_in_what_stands_in_for_them(tmp_path: Path) -> None:
    first = PLAN.replacements[0]
    other = replace(
        PLAN,
        replacements=(replace(first, settings={"ratio": 0.5}, after="b.4"),),
        refusals=(Refusal("b.3", "b", "it fails"), replace(PLAN.refusals[0], reason="it is even")),
        seed=3,
        fingerprint="f01",
    )
    found = compare(_file(tmp_path, "one.json", PLAN), _file(tmp_path, "other.json", other))
    assert found
    changed = {one.block: one.changes for one in found.blocks}
    assert changed["b.1"] == (ChangedFact("settings.ratio", 0.25, 0.5), ChangedFact("after", "b.2", "b.4"))
    assert changed["b.3"][:2] == (ChangedFact("status", "replaced", "refused"), ChangedFact("surrogate", "slim", None))
    assert ChangedFact("reason", None, "it fails") in changed["b.3"]
    assert changed["c.1"] == (ChangedFact("reason", "it is odd", "it is even"),)
    assert (found.options, found.model) == ((ChangedFact("seed", 0, 3),), (ChangedFact("structure", "f00", "f01"),))
    assert list(map(str, found.blocks[0].changes)) == ["settings.ratio: 0.25 -> 0.5", "after: b.2 -> b.4"]
    json.dumps(found.to_json())


def test_a_block_that_a_plan_does_not_name_is_kept(tmp_path: Path) -> None:
    fewer = replace(PLAN, replacements=PLAN.replacements[:1])
    found = compare(_file(tmp_path, "one.json", PLAN), _file(tmp_path, "other.json", fewer))
    (one,) = found.blocks
    assert (one.block, one.changes[0]) == ("b.3", ChangedFact("status", "replaced", "kept"))


def test_a_surrogate_without_neighbours_has_none_to_differ_in(tmp_path: Path) -> None:
    alone = replace(PLAN, replacements=(Replacement("b.1", "b", "", "", "narrow"),), refusals=())
    found = compare(_file(tmp_path, "one.json", alone), _file(tmp_path, "other.json", replace(alone, replacements=())))
    assert [change.what for change in found.blocks[0].changes] == ["status", "surrogate"]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    result = repl_fx.transform(TokenNet(depth=3), (TOKENS,), surrogate="bottleneck")
    return repl_fx.save(result, tmp_path_factory.mktemp("saved") / "artifact")


def _with_weights(artifact: Path, directory: Path, **changed: torch.Tensor) -> Path:
    """A copy of an artifact with other weights."""
    directory.mkdir()
    for file in artifact.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    weights = load_file(directory / WEIGHTS)
    save_file({**weights, **{name.replace("__", "."): tensor for name, tensor in changed.items()}}, directory / WEIGHTS)
    manifest = read_manifest(directory)
    files = {**manifest.files, WEIGHTS: File(WEIGHTS, hash_file(directory / WEIGHTS))}
    (directory / MANIFEST).write_text(msgspec.structs.replace(manifest, files=files).to_json())
    return directory


def test_artifacts_differ_in_weights(artifact: Path, tmp_path: Path) -> None:
    nan = torch.full((10,), float("nan"))
    one = _with_weights(artifact, tmp_path / "one", head__bias=nan)
    other = _with_weights(
        artifact, tmp_path / "other", head__bias=nan, more=nan[:3].clone(), embed__bias=torch.ones(16)
    )
    found = compare(one, other)
    assert found.weights is not None and found.parameters[0] == found.parameters[1] is not None
    assert (found.weights.different, found.weights.only_one, found.weights.only_other) == (
        ("embed.bias",),
        (),
        ("more",),
    )
    assert found.weights.equal > 10
    assert found and not (found.blocks or found.model or found.options)
    assert not compare(one, one)


def test_an_artifact_and_its_plan(artifact: Path) -> None:
    found = compare(artifact, artifact / "plan.json")
    assert not found
    assert found.weights is None and found.parameters[1] is None


def test_what_cannot_be_compared_is_said(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="gone is neither the directory of an artifact nor the file of a plan"):
        compare(artifact, tmp_path / "gone")
    with pytest.raises(ArtifactError, match="is no artifact"):
        compare(artifact, tmp_path)
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(PlanMismatch, match="not a plan"):
        compare(tmp_path / "plan.json", artifact)
    damaged = _with_weights(artifact, tmp_path / "damaged")
    (damaged / WEIGHTS).write_bytes(b"no")
    with pytest.raises(ArtifactError, match="damaged"):
        compare(artifact, damaged)


EQUAL = PlansDifference("a", "b", (), (), (), 1, (100, 100), WeightsDifference(9, (), (), ()))


def text(found: PlansDifference) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=80, markup=False)
    for line in difference_lines(found):
        console.print(line)
    return [" ".join(line.split()) for line in file.getvalue().splitlines()]


def test_equal_plans_are_one_line() -> None:
    assert text(EQUAL) == ["a and b are equal: 1 block is the same"]


def test_each_difference_has_its_line() -> None:
    block = BlockDifference(
        "blocks.[1]",
        (
            ChangedFact("status", "kept", "replaced"),
            ChangedFact("surrogate", None, "slim"),
            ChangedFact("settings.ratio", None, 0.5),
        ),
    )
    less = BlockDifference("blocks.[2]", (ChangedFact("reason", "none fits", None),))
    weights = WeightsDifference(9, ("w", "x", "y", "z"), ("only",), ())
    found = replace(
        EQUAL,
        model=(ChangedFact("class", "Net", "Other"),),
        options=(ChangedFact("seed", 0, 1),),
        blocks=(block, less),
        alike=2,
        parameters=(100, 50),
        weights=weights,
    )
    lines = text(found)
    assert lines[:4] == ["- a", "+ b", "model: class: Net -> Other", "options: seed: 0 -> 1"]
    assert lines[-5:] == [
        "blocks.[1] kept replaced, slim, ratio 0.5",
        "blocks.[2] reason none fits -",
        "2 other blocks are the same",
        "parameters: 100 -> 50 (-50.0 %)",
        "weights: 9 equal; 4 different (w, x, y, …); 1 on the - side alone (only)",
    ]
    assert not any("other" in line for line in text(replace(found, alike=0)))


def test_a_plan_alone_has_no_weights() -> None:
    found = replace(EQUAL, options=(ChangedFact("seed", 0, 1),), parameters=(None, 100), weights=None)
    assert text(found) == ["- a", "+ b", "options: seed: 0 -> 1"]
