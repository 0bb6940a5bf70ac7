"""Tables and pictures of the benchmark of accuracy, from the records of its runs."""

from __future__ import annotations

import importlib
import importlib.util
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.training.variants import FULL, pruned

# What is judged: key in a result -> head of its column, factor to what is shown, digits behind the point.
METRICS: dict[str, tuple[str, float, int]] = {
    "accuracy": ("test accuracy, %", 100.0, 2),
    "loss": ("test cross-entropy, nats", 1.0, 4),
    "bits": ("bits per byte", 1.0, 4),
}
INTRODUCTION = """# Accuracy of training from scratch

Written by `python -m benchmarks.accuracy --report-only`; its docstring says what is measured, and how.

Mean ± standard deviation over the seeds. Differences are paired by seed: both runs of a pair begin with the same values
in what they share, and see the same data in the same order. The floor is depth pruning of every k-th block for the same
k. Results are those after the last step.
"""


def metrics(group: dict[str, Any]) -> tuple[str, ...]:
    """What a group is judged by; the first is drawn."""
    return ("bits",) if group["settings"]["task"].startswith("text/") else ("accuracy", "loss")


def summarise(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put together what can be compared: one task, one recipe, one machine, one version of everything.

    Args:
        records: of the runs; of runs with the same settings, the last counts.

    Returns:
        For each group what its runs share, how many `workers` there were, and its `variants`, each with the values and
        the differences of its seeds.
    """
    groups: dict[str, dict[str, Any]] = {}
    runs: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    for record in records:
        shared = {
            "settings": {k: v for k, v in record["settings"].items() if k not in ("variant", "seed")},
            "environment": {k: v for k, v in record["environment"].items() if k != "workers"},
            "data": record["data"],
        }
        key = json.dumps(shared, sort_keys=True)
        group = groups.setdefault(key, shared | {"workers": []})
        group["workers"] = sorted({*group["workers"], record["environment"]["workers"]})
        variant = record["settings"]["variant"]["name"]
        runs.setdefault(key, {}).setdefault(variant, {})[record["settings"]["seed"]] = record
    for key, group in groups.items():
        rows = [_variant(name, runs[key], metrics(group)) for name in runs[key]]
        group["variants"] = sorted(rows, key=lambda row: (row["every"] or 0, not row["floor"]))
    return list(groups.values())


def _variant(name: str, runs: dict[str, dict[int, dict[str, Any]]], judged: Sequence[str]) -> dict[str, Any]:
    """One variant, and its differences from the full network and from the floor."""
    results = {variant: {s: r["result"] for s, r in own.items() if "result" in r} for variant, own in runs.items()}
    own, every = results[name], next(iter(runs[name].values()))["settings"]["variant"]["every"]
    floor = None if every is None else pruned(every).name
    row = {
        "name": name,
        "every": every,
        "floor": name == floor,
        "seeds": list(own),
        "results": list(own.values()),
        "seconds": [runs[name][seed]["seconds"] for seed in own],
        "errors": {seed: record["error"] for seed, record in runs[name].items() if "error" in record},
    }
    for what, base in (("less full", FULL.name), ("less floor", floor)):
        other = {} if base in (None, name) else results.get(str(base), {})
        common = [seed for seed in own if seed in other]
        row[what] = {metric: [own[seed][metric] - other[seed][metric] for seed in common] for metric in judged}
    full = results.get(FULL.name, {})
    row["of full"] = [own[seed]["step_ms"] / full[seed]["step_ms"] for seed in own if seed in full]
    return row


def spread(values: Sequence[float], digits: int, factor: float = 1.0, sign: str = "") -> str:
    """Mean and standard deviation; a dash where there is no value, no deviation where there is one."""
    if not values:
        return "–"
    deviation = f" ± {factor * statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{factor * statistics.mean(values):{sign}.{digits}f}{deviation}"


def document(groups: Sequence[dict[str, Any]], picture: bool) -> str:
    """The report in Markdown."""
    text = [INTRODUCTION]
    text += ["![Accuracy against step time and against parameters](accuracy.svg)", ""] if picture else []
    for group in groups:
        cells = [_cells(group, row) for row in group["variants"] if row["results"]]
        text += [f"## {_title(group)}", "", _about(group), ""]
        if cells:
            lines = [list(cells[0]), ["---"] * len(cells[0]), *(list(row.values()) for row in cells)]
            text += [*("| " + " | ".join(line) + " |" for line in lines), ""]
        errors = [
            f"- {row['name']}, seed {s}: {error}" for row in group["variants"] for s, error in row["errors"].items()
        ]
        text += ["Without a result:", "", *errors, ""] if errors else []
    return "\n".join(text).rstrip() + "\n"


def _title(group: dict[str, Any]) -> str:
    return f"{group['settings']['task']}, scale {group['settings']['scale']}"


def _about(group: dict[str, Any]) -> str:
    settings, environment = group["settings"], group["environment"]
    facts = ", ".join(f"{name} {value}" for name, value in group["data"].items())
    recipe = ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in settings["recipe"].items()
    )
    versions = ", ".join(f"{name} {environment[name]}" for name in ("torch", "repl_fx", "python"))
    compiled = f", torch.compile ({settings['compiled']})" if settings["compiled"] else ""
    shared = " or ".join(map(str, group["workers"]))
    return (
        f"{settings['network']}; {facts}. Recipe: {recipe}. {environment['machine']}; runs at a time: {shared}; "
        f"{versions}{compiled}."
    )


def _cells(group: dict[str, Any], row: dict[str, Any]) -> dict[str, str]:
    """A line of the table by the heads of its columns."""
    results = row["results"]
    cells = {"variant": row["name"], "seeds": str(len(results)), "blocks replaced": str(len(results[0]["replaced"]))}
    cells["parameters"] = f"{results[0]['parameters']:,}"
    for metric in metrics(group):
        head, factor, digits = METRICS[metric]
        cells[head] = spread([result[metric] for result in results], digits, factor)
        for what in ("less full", "less floor"):
            cells[f"{metric} {what}"] = spread(row[what][metric], digits, factor, "+")
    cells["training loss"] = spread([result["train_loss"] for result in results], 3)
    cells["step, ms"] = spread([result["step_ms"] for result in results], 1)
    cells["step, of full"] = spread(row["of full"], 2)
    cells["run, s"] = spread(row["seconds"], 0)
    if results[0]["memory_mib"] is not None:
        cells["peak, MiB"] = spread([result["memory_mib"] for result in results], 0)
    return cells


def draw(groups: Sequence[dict[str, Any]], file: Path) -> None:
    """Draw what each group is judged by against step time and against parameters, a row of two for each."""
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("svg")
    # The same picture for the same numbers, byte for byte.
    matplotlib.rcParams["svg.hashsalt"] = "accuracy"
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure, panels = pyplot.subplots(len(groups), 2, figsize=(11, 3.6 * len(groups)), squeeze=False)
    for group, (left, right) in zip(groups, panels, strict=True):
        metric = metrics(group)[0]
        head, factor, _ = METRICS[metric]
        for row in (row for row in group["variants"] if row["results"]):
            values = [factor * result[metric] for result in row["results"]]
            style = {"marker": "o", "capsize": 2, "label": row["name"]}
            point = (statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None)
            right.errorbar(row["results"][0]["parameters"] / 1e6, *point, **style)
            if row["of full"]:
                left.errorbar(statistics.mean(row["of full"]), *point, **style)
        left.set(xlabel="step time, of full", ylabel=head, title=_title(group))
        right.set(xlabel="million parameters", ylabel=head)
        right.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
        for panel in (left, right):
            panel.grid(True, alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def write_report(records: Sequence[dict[str, Any]], folder: Path) -> str:
    """Write accuracy.md, accuracy.json and, where matplotlib is installed, accuracy.svg; returns the text."""
    groups = summarise(records)
    picture = bool(groups) and importlib.util.find_spec("matplotlib") is not None
    text = document(groups, picture)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "accuracy.md").write_text(text)
    (folder / "accuracy.json").write_text(json.dumps(groups, indent=1) + "\n")
    if picture:
        draw(groups, folder / "accuracy.svg")
    return text if picture or not groups else f"{text}\nThere is no picture, as matplotlib is not installed.\n"
