"""How two plans or artifacts differ: in which blocks, options, parameters and weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from repl_fx.artifact.manifest import Manifest, read_manifest
from repl_fx.artifact.store import CONSTANTS, PLAN, weights_name, written_file
from repl_fx.errors import ArtifactError, BadInput, one_line
from repl_fx.plan import Plan
from repl_fx.planning.written_options import read_plan

_STATUS = "status"
_KEPT: Mapping[str, Any] = {_STATUS: "kept"}


@dataclass(frozen=True)
class Change:
    """One fact that differs.

    Attributes:
        what: such as `surrogate`, `settings.ratio`, `reason` or `seed`.
        one, other: plain data; None where a side has nothing of the kind.
    """

    what: str
    one: Any
    other: Any

    def __str__(self) -> str:
        return f"{self.what}: {_shown(self.one)} -> {_shown(self.other)}"


@dataclass(frozen=True)
class BlockDifference:
    """A block of which two plans say different things."""

    block: str
    changes: tuple[Change, ...]

    def __str__(self) -> str:
        return f"{self.block}: {'; '.join(map(str, self.changes))}"


@dataclass(frozen=True)
class WeightsDifference:
    """Two sets of tensors.

    Attributes:
        equal: number of tensors that are the same under one name, bit for bit.
        different: names of those that differ in values, shape or type.
        only_one, only_other: names of those that one side alone has.
    """

    equal: int
    different: tuple[str, ...]
    only_one: tuple[str, ...]
    only_other: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.different or self.only_one or self.only_other)


@dataclass(frozen=True)
class PlansDifference:
    """The difference of two plans or artifacts; true where there is any.

    Attributes:
        one, other: the paths that were given.
        model: what differs in the models that they are for: class, specification, structure.
        options: what differs in seed, parts and budget.
        blocks: those of which the plans say different things; a block that a plan does not name is kept.
        alike: number of blocks that the plans name and treat alike.
        parameters: of the rewritten models; None for a plan without an artifact.
        weights: None where one side is a plan without an artifact.
    """

    one: str
    other: str
    model: tuple[Change, ...]
    options: tuple[Change, ...]
    blocks: tuple[BlockDifference, ...]
    alike: int
    parameters: tuple[int | None, int | None]
    weights: WeightsDifference | None

    def __bool__(self) -> bool:
        return bool(self.model or self.options or self.blocks or self.weights)

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {"equal": not self, **asdict(self)}


@dataclass(frozen=True)
class _Side:
    path: Path
    plan: Plan
    manifest: Manifest | None


def compare(one: Path, other: Path) -> PlansDifference:
    """Compare two artifacts, two plans, or one with the other; no model is built.

    Args:
        one, other: directory of an artifact, or file of a plan.

    Raises:
        ArtifactError: a directory is no artifact, or is damaged.
        BadInput, PlanMismatch: a file cannot be read, or is no plan.
    """
    sides = _side(one), _side(other)
    manifests = tuple(side.manifest for side in sides)
    first, second = (_blocks(side.plan) for side in sides)
    differences = []
    named = dict.fromkeys((*first, *second))
    for block in named:
        changes = _changes(_flat(first.get(block, _KEPT)), _flat(second.get(block, _KEPT)))
        if changes:
            differences.append(BlockDifference(block, changes))
    return PlansDifference(
        one=str(one),
        other=str(other),
        model=_changes(*_known_to_both(*(_model(side) for side in sides))),
        options=_changes(*(_flat(_options(side.plan)) for side in sides)),
        blocks=tuple(differences),
        alike=len(named) - len(differences),
        parameters=(_parameters(manifests[0]), _parameters(manifests[1])),
        weights=_weights(*sides),
    )


def _side(path: Path) -> _Side:
    if not path.is_dir():
        if not path.exists():
            raise BadInput(f"{path} is neither the directory of an artifact nor the file of a plan; it does not exist")
        return _Side(path, read_plan(path), None)
    manifest = read_manifest(path)
    return _Side(path, read_plan(written_file(path, manifest, PLAN)), manifest)


def _blocks(plan: Plan) -> dict[str, Mapping[str, Any]]:
    """What a plan says of each block that it names."""
    found: dict[str, Mapping[str, Any]] = {}
    for one in plan.replacements:
        found[one.block] = {
            _STATUS: "replaced",
            "surrogate": one.surrogate,
            "settings": one.settings,
            "before": one.before,
            "after": one.after,
            "reason": one.why or None,
        }
    for refusal in plan.refusals:
        found.setdefault(refusal.block, {_STATUS: "refused", "reason": refusal.reason})
    return found


def _model(side: _Side) -> dict[str, Any]:
    # The fingerprint of a plan for any model is empty.
    known: dict[str, Any] = {"structure": side.plan.fingerprint or None}
    if side.manifest is not None and side.manifest.model is not None:
        known |= {"class": side.manifest.model.kind, "spec": side.manifest.model.spec}
    return known


def _known_to_both(one: dict[str, Any], other: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    # A plan alone does not say which class it is for.
    return {name: one[name] for name in one if name in other}, {name: other[name] for name in other if name in one}


def _options(plan: Plan) -> dict[str, Any]:
    return {
        "seed": plan.seed,
        "parts": list(plan.parts),
        "expected": plan.expected,
        "timed_on": plan.timed_on or None,
    }


def _flat(facts: Mapping[str, Any], around: str = "") -> dict[str, Any]:
    """Facts with those of nested mappings beside the others, as `settings.ratio`."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{around}{name}.")
        else:
            flat[f"{around}{name}"] = value
    return flat


def _changes(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[Change, ...]:
    found = ((name, one.get(name), other.get(name)) for name in dict.fromkeys((*one, *other)))
    return tuple(Change(name, first, second) for name, first, second in found if first != second)


def _parameters(manifest: Manifest | None) -> int | None:
    return None if manifest is None else manifest.parameters


def _weights(one: _Side, other: _Side) -> WeightsDifference | None:
    if one.manifest is None or other.manifest is None:
        return None
    equal = 0
    different: list[str] = []
    alone: tuple[list[str], list[str]] = [], []
    sides = [(side.path, side.manifest) for side in (one, other) if side.manifest is not None]
    weights = [written_file(path, manifest, weights_name(manifest)) for path, manifest in sides]
    for files in (weights, [written_file(*side, CONSTANTS) for side in sides]):
        same, differ, only_one, only_other = _compared(*files)
        equal += same
        different += differ
        alone[0].extend(only_one)
        alone[1].extend(only_other)
    return WeightsDifference(equal, tuple(different), tuple(alone[0]), tuple(alone[1]))


def _compared(one: Path, other: Path) -> tuple[int, list[str], list[str], list[str]]:
    """Compare two files of tensors, one tensor at a time: they may not fit into memory together."""
    try:
        with safe_open(one, "pt") as first, safe_open(other, "pt") as second:
            names, others = set(first.keys()), set(second.keys())
            both = sorted(names & others)
            different = [name for name in both if not _same(first.get_tensor(name), second.get_tensor(name))]
            return len(both) - len(different), different, sorted(names - others), sorted(others - names)
    except (SafetensorError, OSError) as problem:
        raise ArtifactError(f"{one} and {other} cannot be compared: {one_line(problem)}") from problem


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    # The bits: a NaN is equal to itself.
    bits = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(*bits)


def _shown(value: Any) -> str:
    return "nothing" if value is None else str(value)
