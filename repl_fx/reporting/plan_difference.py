"""How two plans or artifacts differ: in which blocks, options, parameters and weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import RenderableType
from safetensors import SafetensorError, safe_open

from repl_fx.artifact.manifest import Manifest, read_manifest
from repl_fx.artifact.store import PLAN, written_file, written_weights
from repl_fx.display.columns import Table, words
from repl_fx.display.numbers import change, count
from repl_fx.errors import ArtifactError, BadInput, one_line
from repl_fx.plan import Plan
from repl_fx.planning.written_options import read_plan

# Names of tensors that a line tells.
_NAMED = 3
_STATUS, _SURROGATE = "status", "surrogate"
_KEPT: Mapping[str, Any] = {_STATUS: "kept"}


@dataclass(frozen=True)
class ChangedFact:
    """One fact that differs.

    Attributes:
        what: such as `surrogate`, `settings.ratio`, `reason` or `seed`.
        one, other: plain data; None where a side has nothing of the kind.
    """

    what: str
    one: Any
    other: Any

    def __str__(self) -> str:
        before, after = ("nothing" if value is None else str(value) for value in (self.one, self.other))
        return f"{self.what}: {before} -> {after}"


@dataclass(frozen=True)
class BlockDifference:
    """A block of which two plans say different things."""

    block: str
    changes: tuple[ChangedFact, ...]


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
    model: tuple[ChangedFact, ...]
    options: tuple[ChangedFact, ...]
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

    @property
    def parameters(self) -> int | None:
        """Those of the rewritten model."""
        return None if self.manifest is None else self.manifest.parameters


def compare(one: Path, other: Path) -> PlansDifference:
    """Compare two artifacts, two plans, or one with the other; no model is built.

    Args:
        one, other: directory of an artifact, or file of a plan.

    Raises:
        ArtifactError: a directory is no artifact, or is damaged.
        BadInput, PlanMismatch: a file cannot be read, or is no plan.
    """
    sides = _side(one), _side(other)
    models = [_model(side) for side in sides]
    first, second = (_blocks(side.plan) for side in sides)
    named = dict.fromkeys((*first, *second))
    compared = {block: _changes(_flat(first.get(block, _KEPT)), _flat(second.get(block, _KEPT))) for block in named}
    differences = tuple(BlockDifference(block, changes) for block, changes in compared.items() if changes)
    return PlansDifference(
        one=str(one),
        other=str(other),
        # A plan alone does not say which class it is for.
        model=tuple(change for change in _changes(*models) if all(change.what in model for model in models)),
        options=_changes(*(_flat(_options(side.plan)) for side in sides)),
        blocks=differences,
        alike=len(named) - len(differences),
        parameters=(sides[0].parameters, sides[1].parameters),
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
    """The words of a plan on each block that it names."""
    blocks: dict[str, Mapping[str, Any]] = {}
    for replacement in plan.replacements:
        blocks[replacement.block] = {
            _STATUS: "replaced",
            _SURROGATE: replacement.surrogate,
            "settings": replacement.settings,
            # Empty where the surrogate has no neighbour.
            "before": replacement.before or None,
            "after": replacement.after or None,
            "reason": replacement.why or None,
        }
    for refusal in plan.refusals:
        blocks.setdefault(refusal.block, {_STATUS: "refused", "reason": refusal.reason})
    return blocks


def _model(side: _Side) -> dict[str, Any]:
    # The fingerprint of a plan for any model is empty.
    known: dict[str, Any] = {"structure": side.plan.fingerprint or None}
    if side.manifest is not None and side.manifest.model is not None:
        known |= {"class": side.manifest.model.kind, "spec": side.manifest.model.spec}
    return known


def _options(plan: Plan) -> dict[str, Any]:
    timed_on = plan.timed_on or None
    return {"seed": plan.seed, "parts": list(plan.parts), "expected": plan.expected, "timed_on": timed_on}


def _flat(facts: Mapping[str, Any], around: str = "") -> dict[str, Any]:
    """Facts with those of nested mappings beside the others, as `settings.ratio`."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{around}{name}.")
        else:
            flat[f"{around}{name}"] = value
    return flat


def _changes(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[ChangedFact, ...]:
    facts = ((name, one.get(name), other.get(name)) for name in dict.fromkeys((*one, *other)))
    return tuple(ChangedFact(name, first, second) for name, first, second in facts if first != second)


def _weights(one: _Side, other: _Side) -> WeightsDifference | None:
    """Compare the tensors of two artifacts, one at a time: they may not fit into memory together."""
    if one.manifest is None or other.manifest is None:
        return None
    sides = (one.path, one.manifest), (other.path, other.manifest)
    try:
        with ExitStack() as opened:
            first, second = (_tensors(*side, opened) for side in sides)
            both = [name for name in first if name in second]
            different = [n for n in both if not _same(first[n].get_tensor(n), second[n].get_tensor(n))]
            only_one = tuple(name for name in first if name not in second)
            only_other = tuple(name for name in second if name not in first)
    except (SafetensorError, OSError) as problem:
        raise ArtifactError(f"{one.path} and {other.path} cannot be compared: {one_line(problem)}") from problem
    return WeightsDifference(len(both) - len(different), tuple(different), only_one, only_other)


def _tensors(directory: Path, manifest: Manifest, opened: ExitStack) -> dict[str, Any]:
    """The file of each tensor of an artifact, by its name."""
    opened_files = [opened.enter_context(safe_open(file, "pt")) for file in written_weights(directory, manifest)]
    return {name: file for file in opened_files for name in sorted(file.keys())}


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    # The bits: a NaN is equal to itself.
    bits = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(*bits)


def difference_lines(difference: PlansDifference) -> list[RenderableType]:
    """All that differs: the model, options, blocks, parameters and weights; one line where nothing does."""
    alike = difference.alike
    if not difference:
        return [f"{difference.one} and {difference.other} are equal: {alike} {_blocks_are(alike)} the same"]
    lines: list[RenderableType] = [f"- {difference.one}", f"+ {difference.other}"]
    lines += [f"model: {fact}" for fact in difference.model]
    lines += [f"options: {fact}" for fact in difference.options]
    if difference.blocks:
        lines += [_blocks_table(difference), *([f"{alike} other {_blocks_are(alike)} the same"] if alike else [])]
    before, after = difference.parameters
    if before is not None and after is not None:
        lines.append(f"parameters: {count(before)} -> {count(after)} ({change(before, after)})")
    if difference.weights is not None:
        lines.append(f"weights: {_weights_line(difference.weights)}")
    return lines


def _blocks_table(difference: PlansDifference) -> Table:
    """A row for each block: what one side says of it that the other does not."""
    rows = []
    for block in difference.blocks:
        one = [_said(change.what, change.one) for change in block.changes if change.one is not None]
        other = [_said(change.what, change.other) for change in block.changes if change.other is not None]
        rows.append((block.block, ", ".join(one) or "-", ", ".join(other) or "-"))
    return Table("Blocks that differ", words("block", "-", "+"), rows)


def _said(what: str, value: Any) -> str:
    return str(value) if what in (_STATUS, _SURROGATE) else f"{what.removeprefix('settings.')} {value}"


def _blocks_are(number: int) -> str:
    return "block is" if number == 1 else "blocks are"


def _weights_line(weights: WeightsDifference) -> str:
    parts = [f"{weights.equal} equal"]
    named = {"different": weights.different, "on the - side alone": weights.only_one}
    for what, names in {**named, "on the + side alone": weights.only_other}.items():
        if names:
            more = ", …" if len(names) > _NAMED else ""
            parts.append(f"{len(names)} {what} ({', '.join(names[:_NAMED])}{more})")
    return "; ".join(parts)
