"""The report of the benchmark of trained models."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from textwrap import shorten
from typing import Any

# What draws.
_PICTURE = ("altair", "vl_convert")
# The share of the FLOPs at which methods are told apart.
COMPARED = 0.75
# Costs are the same up to this: neither whole blocks nor eighths of units meet others exactly.
_SAME = 0.03
_HEADS = {"flops": "FLOPs", "time": "time"}
# Characters of a reason in a table: trained.jsonl has all of them.
_REASON = 420
INTRODUCTION = """# Trained models, cut to a budget

Written by `python -m benchmarks.trained --report`; its docstring says what is measured, and how. Mean ± standard
deviation over the seeds; one seed has no ±. "cut" is without any training after the cut, the columns behind it after a
training for so many of the steps of the original's, by one recipe whoever made the cut. Time is that of a call with 32
inputs in ONNX Runtime, as a share of the original's: one thread of a CPU, in seconds of the process.

Networks, methods, shares and seeds that are not in the tables were not run. "linear" is one map in closed form; merged,
it goes into the layer before it. "narrow" keeps the blocks and cuts their hidden units. "trained", the default of
`repl-fx compress`, is "narrow" where that meets the budget; else some blocks go by "linear". Whole blocks leave fewer
FLOPs than a budget allows: "narrow, as light" and "Torch-Pruning" go on to no more FLOPs than depth pruning left, and
"Torch-Pruning, as fast" until a call takes no longer than with its blocks gone: its channels go in any number, and the
kernels of ONNX Runtime are not as fast with each.
"""


def write_report(records: Sequence[dict[str, Any]], place: Path) -> None:
    """Write trained.md, trained.jsonl, and trained.svg where the extra `report` is installed."""
    parts = [INTRODUCTION]
    networks = list(dict.fromkeys((record["scale"], record["network"]) for record in records))
    drawn = bool(networks) and all(importlib.util.find_spec(name) for name in _PICTURE)
    if drawn:
        _draw(records, networks, place / "trained.svg")
        parts.append("![The figure against FLOPs](trained.svg)\n")
    for scale, network in networks:
        own = [record for record in records if (record["scale"], record["network"]) == (scale, network)]
        parts.append(_section(own))
    parts.insert(1, _verdicts(records, networks))
    # The runs themselves go with the tables.
    (place / "trained.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (place / "trained.md").write_text("\n".join(parts))


def _verdicts(records: Sequence[dict[str, Any]], networks: Sequence[tuple[str, str]]) -> str:
    """A table of how far the best closed form is above depth pruning, and the best of all above another pruner."""
    lines = [
        f"At most {COMPARED:g} of the FLOPs; differences of the same seeds, above zero where repl-fx is better, and "
        f"the FLOPs that both left, or the time. Methods that left over {_SAME:g} more than the other are not among "
        "the best:",
        "",
        "| network | seeds | best closed form above depth pruning, without training "
        "| best above Torch-Pruning, healed for 10 % | best above Torch-Pruning that is as fast |",
        "|---|--:|---|---|---|",
    ]
    for scale, network in networks:
        rows = [r for r in records if (r["scale"], r["network"]) == (scale, network)]
        sign = 1 if rows[0]["higher_is_better"] else -1
        rows = [row for row in rows if row["share"] == COMPARED and "reason" not in row]
        closed = [
            method for method in dict.fromkeys(row["method"] for row in rows) if method.startswith(("linear", "narrow"))
        ]
        pairs = [
            (closed, "depth pruning, least influence", "cut", "flops"),
            ([*closed, "auto, fitted"], "Torch-Pruning", "healed 0.1", "flops"),
            ([*closed, "auto, fitted"], "Torch-Pruning, as fast", "healed 0.1", "time"),
        ]
        cells = [_best_above(rows, *pair, sign) for pair in pairs]
        lines.append(f"| {network} | {len({row['seed'] for row in rows})} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _best_above(
    rows: Sequence[dict[str, Any]], methods: Sequence[str], other: str, column: str, cost: str, sign: int
) -> str:
    """How far the best of some methods that cost as little, by the mean, is above another, seed by seed."""
    of = {(row["method"], row["seed"]): sign * row[column] for row in rows if column in row}
    seeds = sorted({seed for method, seed in of if method == other})
    above = {
        method: [of[method, seed] - of[other, seed] for seed in seeds]
        for method in methods
        if seeds and all((method, seed) in of for seed in seeds)
    }
    left = {name: mean(row[cost] for row in rows if row["method"] == name) for name in (*above, other) if above}
    above = {method: some for method, some in above.items() if left[method] <= left[other] + _SAME}
    if not above:
        return ""
    best = max(above, key=lambda method: mean(above[method]))
    return f"{best}: {_spread(above[best])} ({_HEADS[cost]} {left[best]:.3f}, {left[other]:.3f})"


def _section(records: Sequence[dict[str, Any]]) -> str:
    """The tables of a network: one for each share of its FLOPs."""
    whole = [record for record in records if record["method"] == "original"]
    best, steps = whole[0]["best"], whole[0]["steps"]
    seeds = sorted({record["seed"] for record in records})
    lines = [
        f"## {records[0]['network']}",
        "",
        f"{best} of the original: {_spread([record['cut'] for record in whole])}, after {steps:,} steps; "
        f"{len(seeds)} seed{'s' * (len(seeds) > 1)}; " + "; ".join(dict.fromkeys(map(_where, records))),
        "",
    ]
    shares = sorted({record["share"] for record in records} - {1.0}, reverse=True)
    for share in shares:
        rows = [record for record in records if record["share"] == share]
        healing = sorted({name for row in rows for name in row if name.startswith("healed")})
        columns = ["cut", *healing]
        heads = ["cut", *map(_percent, healing)]
        lines += [
            f"At most {share:g} of the FLOPs:",
            "",
            f"| method | seeds | blocks | FLOPs | time | {' | '.join(heads)} |",
            f"|---|--:|--:|--:|--:|{'--:|' * len(heads)}",
        ]
        for method in dict.fromkeys(row["method"] for row in rows):
            lines.append(_row(method, [row for row in rows if row["method"] == method], columns))
        lines.append("")
    return "\n".join(lines)


def _row(method: str, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    known = [row for row in rows if "reason" not in row]
    if not known:
        reason = shorten(rows[0]["reason"], _REASON, placeholder=" …")
        return f"| {method} | | | | | {reason} |" + " |" * (len(columns) - 1)
    blocks = "/".join(dict.fromkeys(str(row["blocks"]) for row in known))
    of = {name: [row[name] for row in known if name in row] for name in ("flops", "time")}
    cells = [str(len(known)), blocks, *(f"{mean(some):.3f}" if some else "" for some in of.values())]
    cells += [_spread([row[name] for row in known if name in row]) for name in columns]
    return f"| {method} | {' | '.join(cells)} |"


def _where(record: dict[str, Any]) -> str:
    """The machine and the versions of a run."""
    return ", ".join([record["machine"], *(f"{name} {found}" for name, found in record["versions"].items())])


def _percent(column: str) -> str:
    """1 % for the column `healed 0.01`."""
    return f"{100 * float(column.split()[1]):g} %"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def _draw(records: Sequence[dict[str, Any]], networks: Sequence[tuple[str, str]], file: Path) -> None:
    """The figures against the share of FLOPs: a column for each network, a row for each stage."""
    altair, convert = (importlib.import_module(name) for name in _PICTURE)
    points = []
    for scale, network in networks:
        own = [r for r in records if (r["scale"], r["network"]) == (scale, network) and "reason" not in r]
        whole = mean(row["cut"] for row in own if row["share"] == 1)
        for method in dict.fromkeys(row["method"] for row in own if row["share"] < 1):
            of_method = [row for row in own if row["method"] == method]
            for column in dict.fromkeys(
                name for row in of_method for name in row if name.split()[0] in ("cut", "healed")
            ):
                stage = column if column == "cut" else f"healed for {_percent(column)}"
                shared = {"network": network, "method": method, "stage": stage}
                points.append({**shared, "FLOPs": 1.0, "figure": whole})
                for share in {row["share"] for row in of_method}:
                    rows = [row for row in of_method if row["share"] == share and column in row]
                    flops, figure = (mean(row[name] for row in rows) for name in ("flops", column))
                    points.append({**shared, "FLOPs": flops, "figure": figure})
    tight = altair.Scale(zero=False)
    lines = altair.Chart(altair.Data(values=points)).mark_line(point=True)
    shown = lines.encode(
        x=altair.X("FLOPs:Q", scale=tight, title="FLOPs, of the original", axis=altair.Axis(tickCount=5)),
        y=altair.Y("figure:Q", scale=tight, title=None),
        color=altair.Color("method:N", sort=None, scale=altair.Scale(scheme="tableau20")),
    )
    panels = shown.properties(width=240, height=180).facet(
        column=altair.Column("network:N", sort=None, title=None), row=altair.Row("stage:N", sort=None, title=None)
    )
    file.write_text(convert.vegalite_to_svg(panels.resolve_scale(y="independent").to_dict()))
