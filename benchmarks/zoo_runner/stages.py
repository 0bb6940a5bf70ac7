"""The stages of the zoo, in two halves that run in a process each: the second starts from files alone.

First half: captured, eval, train, repeats, replaced, trained, placed. It leaves an artifact and the rewritten model's
outputs.
Second half, in a fresh process: reloaded, folded, exported, verified. It builds the model again for `repl_fx.load`.
"""

from __future__ import annotations

import json
import re
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

import repl_fx
from benchmarks.zoo_models import case_called
from benchmarks.zoo_models.case import Case
from benchmarks.zoo_runner.alive import train
from benchmarks.zoo_runner.exactness import (
    difference,
    fresh,
    require_equal,
    require_equal_training,
    tensors,
)
from benchmarks.zoo_runner.placed import require_same_in_place
from repl_fx.artifact import load_artifact
from repl_fx.environment.files import write_whole
from repl_fx.finding.blocks import Block, Repeat
from repl_fx.finding.node_table import node_table
from repl_fx.passes.fold_surrogates import is_synthesis
from repl_fx.pipeline import rewrite
from repl_fx.planning.options import Options
from repl_fx.rewriting.result import TransformResult
from repl_fx.rewriting.settling import Form
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.untouched import seed_everything
from repl_fx.surrogates.shared.site import surrogate_path
from repl_fx.tracing.check import compare_modes
from repl_fx.tracing.parts.capture_parts import Part, qualified_name

FIRST = ("captured", "eval", "train", "repeats", "replaced", "trained", "placed")
SECOND = ("reloaded", "folded", "exported", "verified")
STAGES = (*FIRST, *SECOND)
_ROOT = Path(__file__).resolve().parent.parent.parent
_LIBRARY_PATH = re.compile(rf"/[^\s\"']*/site-packages/|{re.escape(str(_ROOT))}/")


@dataclass
class Record:
    """What became of one model; written after every stage, so that a process that dies leaves what it got to.

    Attributes:
        name, family, note: of the case.
        commit: of repl-fx, when the model was run; empty where it is not known.
        passed: stages that were passed, in order.
        failed: the stage that failed; None where none did.
        reason: why it failed, or why there was nothing to replace, in one line.
        nothing_repeats: no block could be replaced because nothing repeats three times.
        parameters: elements of the source's parameters.
        removed: how many fewer the rewritten model has.
        repeats: name, copies, whether only similar, parameters of each repeat.
        replaced: blocks that were replaced.
        surrogates: how many of them by each surrogate that `auto` took.
        not_in_place: replaced blocks without a place in the source's own tree, with the reason.
        in_place: how many blocks are replaced in place, where need be without those.
        refused: blocks or repeats that were asked for and stayed, with the reason.
        parts: path, tracer, obstacles, mode switches of each graph; one with an empty path where the model is a graph.
        eager: what could not be captured, and why.
        dimensions: what `repl_fx.graph.axes.dimensions_of` says of each, where other sizes are tried.
        trials: the outcome of each form at other sizes: see `zoo_runner.sizing.Trial`.
        seconds: of building and of each stage.
        peak_mib: peak resident memory of the larger process.
    """

    name: str
    family: str
    note: str = ""
    commit: str = ""
    passed: list[str] = field(default_factory=list)
    failed: str | None = None
    reason: str = ""
    nothing_repeats: bool = False
    parameters: int = 0
    removed: int = 0
    repeats: list[dict[str, Any]] = field(default_factory=list)
    replaced: int = 0
    surrogates: dict[str, int] = field(default_factory=dict)
    not_in_place: list[str] = field(default_factory=list)
    in_place: int = 0
    refused: list[str] = field(default_factory=list)
    parts: list[dict[str, Any]] = field(default_factory=list)
    eager: list[str] = field(default_factory=list)
    dimensions: list[dict[str, Any]] = field(default_factory=list)
    trials: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_mib: float = 0.0

    def write(self, place: Path) -> None:
        """Write the record as `record.json`, whole or not at all."""
        write_whole(place / "record.json", json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, place: Path) -> Record:
        """The record that a process left."""
        return cls(**json.loads((place / "record.json").read_text()))


class _Stop(Exception):
    """The last stage that was asked for, or one that failed."""


def _note_failure(record: Record, place: Path, stage: str, problem: Exception) -> None:
    record.failed, record.reason = stage, _one_line(problem)
    (place / "traceback.txt").write_text(traceback.format_exc())


def stop() -> None:
    """End the stages of a model, which is no failure."""
    raise _Stop from None


@contextmanager
def stage(record: Record, place: Path, stage: str, last: str) -> Iterator[None]:
    begin = time.perf_counter()
    try:
        yield
    except _Stop:
        raise
    except Exception as problem:
        _note_failure(record, place, stage, problem)
        raise _Stop from problem
    finally:
        record.seconds[stage] = round(time.perf_counter() - begin, 3)
        record.peak_mib = max(record.peak_mib, _peak_mib())
        if record.failed is None and not record.nothing_repeats:
            record.passed.append(stage)
        record.write(place)
    if stage == last:
        raise _Stop


def run_half(half: Callable[..., None], name: str, place: str, last: str, heavy: Any) -> None:
    """Entry of a process: run one half of the stages of one case, noting every stage in its record.

    Args:
        half: `first_half` or `second_half`.
        name: of the case.
        place: directory for the record and what the halves exchange.
        last: the stage to stop after.
        heavy: a lock that models of which two would not fit into memory hold.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder = Path(place)
    case = case_called(name)
    record = Record.read(folder)
    with suppress(_Stop):
        half(case, record, folder, last, heavy)


# More elements than this, and the model runs beside no other of its kind.
HEAVY = 120_000_000


def first_half(case: Case, record: Record, place: Path, last: str, heavy: Any) -> None:
    """Capture, compare, find, replace, take a few training steps, save."""
    model, args, kwargs = built(case, record, place, "build")
    record.parameters = sum(p.numel() for p in model.parameters())
    record.write(place)
    with alone(record, heavy):
        with stage(record, place, "captured", last):
            captured = repl_fx.capture_parts(model, args, kwargs)
            record.parts = [part_of_record(part) for part in captured.parts]
            record.eager = [str(eager) for eager in captured.eager]
        with stage(record, place, "eval", last):
            checks = compare_modes(model, captured.module, ExampleInputs(args, kwargs), seed=1)
            require_equal(next(checks))
        with stage(record, place, "train", last):
            learns = require_equal_training(next(checks), model)
            checks.close()
        with stage(record, place, "repeats", last):
            repeats = [repeat for part in captured.parts for repeat in repl_fx.find_repeats(part.graph_module)]
            record.repeats = [_described(repeat) for repeat in repeats]
        with stage(record, place, "replaced", last):
            try:
                # What `repl_fx.transform` does after the capture.
                result = rewrite(captured, Options())
            except repl_fx.NothingToReplace as nothing:
                if any(len(repeat) > 2 and not repeat.shared and not repeat.similar for repeat in repeats):
                    raise
                record.nothing_repeats, record.reason = True, why_nothing(captured.parts, repeats, nothing)
                raise _Stop from None
            rewritten = result.module
            record.replaced = len(result.plan.replacements)
            record.surrogates = dict(Counter(replacement.surrogate for replacement in result.plan.replacements))
            record.refused = [str(refusal) for refusal in result.plan.refusals]
            record.removed = record.parameters - sum(p.numel() for p in rewritten.parameters())
        with stage(record, place, "trained", last):
            train(rewritten, args, kwargs, _untrained(result, learns), model)
            torch.save(_outputs(rewritten.eval(), args, kwargs), place / "outputs.pt")
            repl_fx.save(result, place / "artifact", force=True)
        with stage(record, place, "placed", last):
            record.not_in_place = [str(refusal) for refusal in result.in_place.refusals]
            if result.in_place.model is None:
                # Without the blocks that have no place the others are tried in theirs.
                with suppress(repl_fx.NothingToReplace):
                    result = rewrite(captured, Options(), form=Form(in_place=True))
            if result.in_place.model is not None:
                record.in_place = len(result.plan.replacements)
                require_same_in_place(result, args, kwargs)


def second_half(case: Case, record: Record, place: Path, last: str, heavy: Any) -> None:
    """Load what the first half saved, fold it, export it and verify the file."""
    model, args, kwargs = built(case, record, place, "rebuild")
    with alone(record, heavy), torch.no_grad():
        expected = torch.load(place / "outputs.pt")
        with stage(record, place, "reloaded", last):
            artifact = load_artifact(place / "artifact", model)
            del model
            _require_equal(artifact.module, args, kwargs, expected)
        with stage(record, place, "folded", last):
            folded = repl_fx.fold(artifact.module)
            graphs = [module for module in folded.modules() if isinstance(module, fx.GraphModule)]
            left = [node.name for gm in graphs for node in gm.graph.nodes if is_synthesis(gm, node)]
            assert graphs and not left, f"{len(left)} syntheses are left, e.g. {left}"
            _require_equal(folded, args, kwargs, expected)
            del folded, graphs
        parts = artifact.result.parts
        with stage(record, place, "exported", last):
            for index, part in enumerate(parts):
                repl_fx.export_onnx(part.graph_module, place / f"{index}.onnx", *_inputs(part, args, kwargs))
        with stage(record, place, "verified", last):
            for index, part in enumerate(parts):
                check = repl_fx.verify_onnx(part.graph_module, place / f"{index}.onnx", *_inputs(part, args, kwargs))
                assert check, f"{part.path}: {check.summary()}".removeprefix(": ")


def built(case: Case, record: Record, place: Path, stage: str) -> Any:
    begin = time.perf_counter()
    try:
        return case.build()
    except Exception as problem:
        _note_failure(record, place, stage, problem)
        raise _Stop from problem
    finally:
        record.seconds[stage] = round(time.perf_counter() - begin, 3)
        record.write(place)


@contextmanager
def alone(record: Record, heavy: Any) -> Iterator[None]:
    if record.parameters < HEAVY:
        yield
        return
    with heavy:
        yield


def _untrained(result: TransformResult, trained: frozenset[str]) -> frozenset[str]:
    """Paths of the surrogates of blocks that the source itself does not train, as before an output that is rounded."""
    own = {block.name: block.parameters for repeat in result.repeats for block in _blocks_of(repeat)}
    found = set()
    for replacement in result.plan.replacements:
        if trained.isdisjoint(own[replacement.block]):
            path = next(
                part.path for part in result.parts if replacement.block.startswith(qualified_name(part.path, ""))
            )
            inside = replacement.block.removeprefix(qualified_name(path, ""))
            found.add(qualified_name(path, surrogate_path(inside)))
    return frozenset(found)


def _blocks_of(repeat: Repeat) -> Iterator[Block]:
    yield from repeat.blocks
    for child in repeat.children:
        yield from _blocks_of(child)


def part_of_record(part: Part) -> dict[str, Any]:
    info = part.graph_module.meta["capture"]
    return {"path": part.path, "tracer": info.tracer, "obstacles": info.obstacles, "switches": info.switches}


def _inputs(part: Part, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Inputs of a part; the whole model gets those of the case, whose values mean something to it."""
    return (part.args, part.kwargs) if part.path else (args, kwargs)


def _described(repeat: Any) -> dict[str, Any]:
    return {
        "name": repeat.name,
        "copies": len(repeat),
        "similar": bool(getattr(repeat, "similar", False)),
        "shared": bool(repeat.shared),
        "parameters": repeat.size,
        "children": [_described(child) for child in repeat.children],
    }


def why_nothing(parts: Sequence[Part], repeats: Sequence[Repeat], nothing: repl_fx.NothingToReplace) -> str:
    """Why nothing repeats three times, argued from the graph."""
    if any(repeat.shared for repeat in repeats):
        return "one set of weights is used by all blocks"
    if repeats:
        return "; ".join(nothing.reasons)
    tables = [node_table(part.graph_module) for part in parts]
    labels = [int(label) for table in tables for label in table.labels[table.mixing]]
    return f"its {len(labels)} layers with weights are of {len(set(labels))} kinds and sizes, in no order that repeats"


def _outputs(module: nn.Module, args: Any, kwargs: Any) -> list[torch.Tensor]:
    seed_everything(1)
    a, k = fresh(args, kwargs)
    with torch.no_grad():
        return tensors(module(*a, **k))


def _require_equal(module: nn.Module, args: Any, kwargs: Any, expected: list[torch.Tensor]) -> None:
    problem = difference(_outputs(module, args, kwargs), expected)
    assert problem is None, problem


def anywhere(text: str) -> str:
    """A text without where on this machine the libraries and this repository lie."""
    return _LIBRARY_PATH.sub("", text)


def _one_line(problem: BaseException) -> str:
    message = anywhere(" ".join(str(problem).split()))
    kind = type(problem).__name__
    text = message if isinstance(problem, AssertionError) else f"{kind}: {message}"
    return text[:400] or kind


def _peak_mib() -> float:
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
