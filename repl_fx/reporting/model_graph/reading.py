"""What an artifact's directory says besides its model: scores, learning curves and figures, verification, benchmark.

DIR/compression/scores.json              Scores
DIR/train_state/logs/*/metrics.csv       learning curves, and those of other runs in train_state/others
DIR/compression/result.json, DIR/train_state/{healing,comparison,result}.json    figures
DIR/verify.json, DIR/bench.json          as they were written
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from repl_fx.artifact import places
from repl_fx.artifact.manifest import read_manifest
from repl_fx.artifact.store import written_file
from repl_fx.benchmarking.results import KIND
from repl_fx.errors import BadInput, one_line
from repl_fx.graph.grouping import grouped
from repl_fx.planning.scoring.scores import Scores
from repl_fx.reporting.model_graph.document import Curve, TrainingFacts, VariantOutcome, Verified

_T = TypeVar("_T")
_NO_FIGURE = frozenset({"epoch", "step"})
_SINCE = "from_step_"


def read_evidence(directory: Path) -> dict[str, Any]:
    """The fields of a document that lie in the directory of an artifact; None where there is nothing of the kind.

    Raises:
        ArtifactError: the directory is no artifact, or a file is not the one that was written.
        BadInput: a file is damaged.
    """
    manifest = read_manifest(directory)

    def of_artifact(name: str, read: Callable[[Path], _T]) -> _T | None:
        return read(written_file(directory, manifest, name)) if name in manifest.files else None

    scores = directory / places.COMPRESSION / places.SCORES
    return {
        "scores": read_score_document(scores) if scores.is_file() else None,
        "training": _training(directory),
        "verify": of_artifact(places.PROOF, read_verifications),
        "bench": of_artifact(places.BENCH, read_benchmark),
    }


def read_score_document(file: Path) -> Mapping[str, Any]:
    """The scores in a file of `Scores.to_json`, or in the document of `repl-fx inspect --data --json`.

    Raises:
        BadInput: the file holds no scores.
    """
    document = _read(file, dict[str, Any])
    held = document.get("scores", document)
    try:
        # Read as scores, so that what is none is said here.
        Scores.from_json(msgspec.json.encode(held).decode())
    except BadInput as problem:
        raise BadInput(f"{file}: {problem}") from problem
    return dict(held)


def read_verifications(file: Path) -> tuple[Verified, ...]:
    """The results of `repl-fx export` in a file, one for each part.

    Raises:
        BadInput: the file holds none.
    """
    document = _read(file, dict[str, Any])
    parts = document.get("parts", {"": document})
    try:
        return tuple(_verified(path, of) for path, of in parts.items())
    except (KeyError, TypeError, AttributeError, msgspec.ValidationError) as problem:
        raise BadInput(f"{file} is damaged, or no result of a verification: {one_line(problem)}") from problem


def _verified(part: str, of: Mapping[str, Any]) -> Verified:
    layers = [{**layer["difference"], "node": layer["node"], "module": layer["module"]} for layer in of["layers"]]
    return msgspec.convert({"part": part, **of, "outputs": of["rows"], "layers": layers}, Verified)


def read_benchmark(file: Path) -> Mapping[str, Any]:
    """The result of `repl-fx bench` in a file.

    Raises:
        BadInput: the file holds none.
    """
    document = _read(file, dict[str, Any])
    if document.get("kind") != KIND:
        raise BadInput(f"{file} is no result of `repl-fx bench`: it is of kind {document.get('kind')!r}")
    return document


def _training(directory: Path) -> TrainingFacts | None:
    state, compressing = directory / places.STATE, directory / places.COMPRESSION
    runs = {
        "": state,
        **{folder.name: folder for folder in sorted((state / places.OTHERS).glob("*")) if folder.is_dir()},
    }
    curves = [curve for name, folder in runs.items() for curve in _curves(folder / places.LOGS, name)]
    files = state / places.RESULT, state / places.FIGURES, compressing / places.RESULT
    trained, healed, compressed = (_read_if_there(file, dict[str, Any]) or {} for file in files)
    figures: dict[str, Mapping[str, float]] = {}
    # What healed or compressed knows the names of its models.
    of_trained = {"trained": trained.get("figures", {})} if trained else {}
    for file, models in zip(files, (of_trained, healed, compressed.get("figures")), strict=True):
        if models:
            figures = {name: _figures_in(file, of) for name, of in models.items()}
    rows = _read_if_there(state / places.COMPARISON, list[VariantOutcome])
    if not (curves or figures or rows):
        return None
    return TrainingFacts(tuple(curves), figures, None if rows is None else tuple(rows))


def _figures_in(file: Path, figures: Any) -> dict[str, float]:
    try:
        return msgspec.convert(figures, dict[str, float])
    except msgspec.ValidationError as problem:
        raise BadInput(f"{file} is damaged: {one_line(problem)}") from problem


def _curves(logs: Path, run: str) -> Iterator[Curve]:
    """The figures of a run by step; what was logged again where it went on takes the place of what was there."""
    figures: list[tuple[int, str, float]] = []
    for since, file in sorted((_since(file), file) for file in logs.glob("*/metrics.csv")):
        figures = [*(figure for figure in figures if figure[0] < since), *_logged(file)]
    for name, points in grouped((name, (step, value)) for step, name, value in figures).items():
        # More points say no more in a picture.
        yield Curve(name, tuple(sorted(dict(points).items())), run).thinned(2000)


def _since(file: Path) -> int:
    number = file.parent.name.removeprefix(_SINCE)
    if not number.isdecimal():
        raise BadInput(f"{file.parent} is no log of a run: its name says not from which step on; remove it")
    return int(number)


def _logged(file: Path) -> Iterator[tuple[int, str, float]]:
    """Step, name and value of each finite figure in a log."""
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines, strict=True):
                step = int(row["step"])
                for name, text in row.items():
                    if name not in _NO_FIGURE and text:
                        value = float(text)
                        if math.isfinite(value):
                            yield step, name, value
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as problem:
        raise BadInput(f"the log {file} cannot be read: {one_line(problem)}") from problem


def _read_if_there(file: Path, kind: type[_T]) -> _T | None:
    return _read(file, kind) if file.is_file() else None


def _read(file: Path, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise BadInput(f"{file} cannot be read: {one_line(problem)}") from problem
