"""The report of a run of the zoo: docs/zoo.md to read, docs/zoo.json with everything that was measured."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from benchmarks.zoo_runner.reading import READING
from benchmarks.zoo_runner.sizes_report import sizes_section
from benchmarks.zoo_runner.stages import STAGES, anywhere
from repl_fx.benchmarking.hardware import installed
from repl_fx.environment.machine import cpu_model

Row = Mapping[str, Any]

_HEAD = """# The zoo

What repl-fx does with every model of a list, stage by stage. `python -m benchmarks.zoo` runs it, and says what each
stage proves; its `--report-only` writes this file and `zoo.json`, which has the seconds of each stage. Weights are
random, inputs small, dropout and drop path on. All models of the list count.

"""
_LIBRARIES = {"timm": "timm", "torchvision": "torchvision", "hf": "Hugging Face"}
_PACKAGES = (
    *("repl-fx", "torch", "timm", "torchvision", "transformers", "diffusers", "torchaudio"),
    *("onnx", "onnxruntime", "onnxscript"),
)
_WORDS = {
    "placed": "tried in place",
    "eval": "exact in evaluation",
    "train": "exact in training",
    "repeats": "repeats looked for",
}


def write_report(records: Sequence[Row], names: Sequence[str], place: Path) -> None:
    """Write zoo.md and zoo.json.

    Args:
        records: of the models that were run.
        names: of all models of the zoo; those without a record count as not run.
        place: the directory to write to.
    """
    known = {record["name"]: record for record in records}
    place.mkdir(parents=True, exist_ok=True)
    before = json.loads((place / "zoo.json").read_text()) if (place / "zoo.json").exists() else {}
    facts = {
        "versions": installed(_PACKAGES),
        "processor": f"{cpu_model()}, one thread a model",
        "models": [known[n] for n in names if n in known],
    }
    facts["not run"] = [name for name in names if name not in known]
    _write({**facts, **{key: before[key] for key in ("sizes", "data") if key in before}}, place)


def write_sizes(records: Sequence[Row], place: Path) -> None:
    """Write what models do at other sizes into the zoo.md and zoo.json of a directory; the rest stays as it is."""
    facts = json.loads((place / "zoo.json").read_text())
    commits = ", ".join(dict.fromkeys(record["commit"] for record in records))
    packages = (*_PACKAGES, "segmentation-models-pytorch", "monai")
    # By its own word: it comes in packages of several names.
    versions = {**installed(packages), "onnxruntime": onnxruntime.__version__}
    about = {"versions": versions, "processor": f"{cpu_model()}, one thread a model"}
    facts["sizes"] = {**about, "commits": f"Commits of repl-fx: {commits}.", "models": list(records)}
    _write(facts, place)


def write_reading(records: Sequence[Row], total: int, place: Path) -> None:
    """Write what the commands that read data do with models into the zoo.md and zoo.json of a directory.

    Args:
        records: of the models that were run.
        total: how many models of the zoo have data of their kind.
        place: the directory; the rest of the files stays as it is.
    """
    facts = json.loads((place / "zoo.json").read_text())
    commits = ", ".join(dict.fromkeys(record["commit"] for record in records))
    about = {"versions": installed(_PACKAGES), "processor": f"{cpu_model()}, one thread a model", "total": total}
    facts["data"] = {**about, "commits": f"Commits of repl-fx: {commits}.", "models": list(records)}
    _write(facts, place)


def _write(facts: Row, place: Path) -> None:
    known = {record["name"]: record for record in facts["models"]}
    (place / "zoo.json").write_text(anywhere(json.dumps(facts, indent=1) + "\n"))
    pages = _pages(known, [*known, *facts["not run"]], facts)
    (place / "zoo.md").write_text(anywhere("\n".join(pages).rstrip() + "\n"))


def _pages(known: Mapping[str, Row], names: Sequence[str], facts: Row) -> Iterator[str]:
    yield _HEAD + f"Versions: {', '.join(f'{k} {v}' for k, v in facts['versions'].items())}. {facts['processor']}.\n"
    commits = Counter(record["commit"] for record in known.values() if record.get("commit"))
    if commits:
        counts = (f"{count} at {commit}" for commit, count in commits.most_common())
        yield f"Models that were run, by the commit of repl-fx: {', '.join(counts)}.\n"
    yield from _summary(known, names)
    for library in dict.fromkeys(name.partition(":")[0] for name in names):
        of_library = [known[name] for name in names if name.startswith(f"{library}:") and name in known]
        yield f"\n## {_LIBRARIES.get(library, library)}\n"
        yield from _table(
            ("model", "filed under", "parameters", "reached", "repeats", "surrogates", "removed", "seconds", "remarks"),
            ([_name(r), r["family"], _count(r["parameters"]), *_outcome(r)] for r in of_library),
            numbers=(2, 6, 7),
        )
    if "sizes" in facts:
        yield ""
        yield from sizes_section(facts["sizes"]["models"], facts["sizes"])
    if "data" in facts:
        yield from _reading_section(facts["data"])


def _reading_section(facts: Row) -> Iterator[str]:
    records = facts["models"]
    yield "\n## Commands that read data\n"
    yield (
        "`python -m benchmarks.zoo --data` runs five commands on each decoder, encoder and vision model of the zoo,\n"
        f"{facts['total']} in all, with data of its kind at toy size: `benchmarks/zoo_runner/reading.py` says how. "
        f"Versions:\n{', '.join(f'{k} {v}' for k, v in facts['versions'].items())}. {facts['processor']}. "
        f"{facts['commits']}\n"
    )
    libraries = dict.fromkeys(record["name"].partition(":")[0] for record in records)
    columns = [[r for r in records if r["name"].startswith(f"{library}:")] for library in libraries] + [records]
    rows = [["models that were run", *(str(len(column)) for column in columns)]]
    rows += [[stage, *(str(sum(stage in r["passed"] for r in column)) for column in columns)] for stage in READING]
    rows.append(
        ["no repeated blocks, the end", *(str(sum(r["nothing_repeats"] for r in column)) for column in columns)]
    )
    rows.append(["failed at some stage", *(str(sum(r["failed"] is not None for r in column)) for column in columns)])
    yield from _table(("command", *(_LIBRARIES.get(library, library) for library in libraries), "all"), rows)
    failures = [(f"`{r['name']}`", r["failed"], r["reason"]) for r in records if r["failed"]]
    if failures:
        yield "\nWhat failed:\n"
        yield from _table(("model", "at", "why"), failures)


def _summary(known: Mapping[str, Row], names: Sequence[str]) -> Iterator[str]:
    libraries = dict.fromkeys(name.partition(":")[0] for name in names)
    columns = {lib: [name for name in names if name.startswith(f"{lib}:")] for lib in libraries}
    columns["all"] = list(names)
    rows = [["models", *(str(len(column)) for column in columns.values())]]
    for stage in STAGES:
        passed = (sum(stage in known[n]["passed"] for n in column if n in known) for column in columns.values())
        rows.append([_WORDS.get(stage, stage), *map(str, passed)])
        if stage == "captured":
            parts = (sum(_in_parts(known[n]) for n in column if n in known) for column in columns.values())
            rows.append(["of these in parts, the rest eager", *map(str, parts)])
        if stage == "placed":
            for words, of in _PLACES.items():
                places = (sum(of(known[n]) for n in column if n in known) for column in columns.values())
                rows.append([words, *map(str, places)])
        if stage == "repeats":
            none = (sum(known[n]["nothing_repeats"] for n in column if n in known) for column in columns.values())
            rows.append(["no repeated blocks, the end", *map(str, none)])
    failed = (sum(bool(known[n]["failed"]) for n in column if n in known) for column in columns.values())
    rows.append(["failed at some stage", *map(str, failed)])
    missing = [sum(n not in known for n in column) for column in columns.values()]
    if any(missing):
        rows.append(["not run", *map(str, missing)])
    heads = ("stage", *(_LIBRARIES.get(lib, lib) for lib in columns))
    yield from _table(heads, rows, numbers=range(1, len(heads)))


# Models by what has a place in their own tree; records from before the stage `placed` have nothing.
_PLACES: Mapping[str, Callable[[Row], bool]] = {
    "of these with all replaced blocks in place": lambda r: r.get("in_place", 0) == r["replaced"] > 0,
    "of these with some in place, where the others stay": lambda r: 0 < r.get("in_place", 0) < r["replaced"],
    "of these in graphs alone": lambda r: "placed" in r["passed"] and not r.get("in_place", 0),
}


def _in_parts(record: Row) -> bool:
    return "captured" in record["passed"] and [part["path"] for part in record["parts"]] != [""]


def _outcome(record: Row) -> list[str]:
    if record["failed"]:
        reached = f"**failed: {record['failed']}**"
    elif record["nothing_repeats"]:
        reached = "no repeated blocks"
    else:
        reached = record["passed"][-1] if record["passed"] else "not run"
    removed = ""
    if "replaced" in record["passed"] and record["parameters"]:
        removed = f"{_count(record['removed'])} ({100 * record['removed'] / record['parameters']:.1f} %)"
    remarks = [record["note"]] if record["note"] else []
    paths = [part["path"] for part in record["parts"]]
    remarks += [f"{len(paths)} parts captured: {', '.join(paths[:3])}"] if paths not in ([], [""]) else []
    if record["failed"] or record["nothing_repeats"]:
        remarks.append(record["reason"])
    without = record.get("not_in_place", [])
    remarks += [f"{len(without)} not in place, e.g. {without[0]}"] if without else []
    remarks += [f"{len(record['refused'])} refused, e.g. {record['refused'][0]}"] if record["refused"] else []
    seconds = sum(s for stage, s in record["seconds"].items() if stage != "all")
    # Records from before the surrogates were counted have none.
    surrogates = ", ".join(f"{key} {count}" for key, count in record.get("surrogates", {}).items())
    return [reached, _repeats(record), surrogates, removed, f"{seconds:.0f}", "; ".join(remarks)]


def _repeats(record: Row) -> str:
    """Copies of each repeat; those that are only similar in brackets behind a tilde."""
    return ", ".join(
        f"~({repeat['copies']})" if repeat["similar"] else str(repeat["copies"]) + "s" * repeat["shared"]
        for repeat in record["repeats"]
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> Iterator[str]:
    numbers = set(numbers)
    yield f"| {' | '.join(head)} |"
    yield "|" + "|".join("--:" if i in numbers else "---" for i in range(len(head))) + "|"
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"


def _name(record: Row) -> str:
    return f"`{record['name'].partition(':')[2]}`"


def _count(number: int) -> str:
    """A number of parameters with three figures: 12.3 M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
