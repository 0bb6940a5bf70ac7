"""docs/gpu.md from the lines that `benchmarks.gpu` wrote.

    python -m benchmarks.gpu_report build/gpu/gpu.jsonl --docs docs
    python -m benchmarks.gpu_report build/gpu/gpu.jsonl --scale toy --docs build      of a toy run, to try the way

Of a run at scale `gpu` only what was measured on CUDA is told; whatever else is said to be not measured. Several files,
such as of several machines, become one page. Of a piece that two devices did, the last counts, and for a target that it
has no figure for, the one before; of steps the tables of both are shown. docs/gpu.md is made of docs/gpu.jsonl.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from benchmarks import throughput
from benchmarks.gpu_pieces.setting import BEFORE, DONE, GPU, SCALES, TOY, Record, device_of, read_records
from benchmarks.gpu_pieces.targets import NOT_MEASURED, differences, figures, group_of, spread_of, targets
from benchmarks.training.cost_tables import cells, head, title
from repl_fx.benchmarking.hardware import in_a_line
from repl_fx.environment.files import write_whole

COMMAND = "python -m benchmarks.gpu_report"
TOY_NOTE = "**A toy run on {devices}: no figure of it means anything.**"
INTRODUCTION = f"""# On a GPU

Written by `{COMMAND}` from what `python -m benchmarks.gpu` measured; the docstrings of the two say what
that is, and how. Whatever has not been measured on a GPU is "{NOT_MEASURED}": no figure of a CPU stands in for one."""
METHOD = """## To measure

<!-- not run: it needs a GPU -->
```sh
# Where there is a network: wheels and data, in files of at most 60 MiB.
python -m benchmarks.gpu_carry pack --data DATA --out build/carry
# On the machine with the GPU, which needs none, with the files in build/carry there.
python -m benchmarks.gpu_carry unpack build/carry --to build/carried
PYTHONPATH=build/carried/site python -m benchmarks.gpu --data build/carried/data --out build/gpu --seconds 540
python -m benchmarks.gpu_report build/gpu/gpu.jsonl --docs docs
```

`benchmarks.gpu`, again, goes on with what is left: with the same `build/gpu/gpu.jsonl` on another machine, too. It may
be killed at any moment. `--device cpu --scale toy` runs some pieces of each kind in minutes, with no figure of worth.
The oldest torch that repl-fx takes is 2.11; `make test-oldest` runs the tests of the engine on it, in an environment of
its own."""


def write_report(records: Sequence[Record], place: Path, scale: str = GPU) -> None:
    """Write gpu.md.

    Args:
        records: of pieces; those of other scales are left out, and at scale `gpu` those of other devices.
        place: a directory.
        scale: of `SCALES`.
    """
    own: dict[str, Record] = {}
    for record in records:
        if record["scale"] == scale and (scale == TOY or record["device"].startswith("cuda")):
            key = record["key"]
            older = own.pop(key, record)
            if key.startswith("step/") and device_of(older) != device_of(record):
                own[f"{key}{BEFORE}{device_of(older)}"] = older
            own[key] = record
    sections = (
        _targets,
        _steps,
        _largest,
        _accuracy,
        _compress,
        _train,
        _wrappers,
        _runtimes,
        _kernels,
        _checks,
        _failed,
    )
    parts = [INTRODUCTION]
    if scale == TOY:
        parts.append(
            TOY_NOTE.format(devices=" and ".join(sorted({record["device"] for record in own.values()})) or "none")
        )
    machines = dict.fromkeys(in_a_line(record["machine"]) for record in own.values() if "machine" in record)
    parts += [f"Measured on {machine}." for machine in machines]
    for section in sections:
        made = list(section(own))
        # A heading alone.
        parts += [*made, f"{NOT_MEASURED.capitalize()}."] if len(made) == 1 else made
    write_whole(place / "gpu.md", "\n\n".join((*parts, METHOD)) + "\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown, numbers from its second column on."""
    lines = [columns, ["---", *["--:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _results(records: Mapping[str, Record], kind: str) -> Iterator[tuple[str, Record]]:
    """The rest of the key and the result of each piece of a kind that has one."""
    for key, record in records.items():
        if key.partition("/")[0] == kind and "result" in record:
            yield key.partition("/")[2], record["result"]


def _targets(records: Mapping[str, Record]) -> Iterator[str]:
    yield "## Targets"
    yield table(
        ("target", "measured", "held"), [(one.text, one.measured or "", one.status) for one in targets(records)]
    )


def _steps(records: Mapping[str, Record]) -> Iterator[str]:
    yield "## What a step costs"
    for key, _ in _results(records, "step"):
        group = group_of(records[f"step/{key}"])
        if group is not None:
            which = key.partition(BEFORE)[0].split("/")
            yield f"### {title(group)}: {which[3]}, every={which[2]}"
            yield f"{group.about['device']}; times by {group.about['clock']}."
            rate = [[*cells(group, row), _per_second(group.batch, row.seconds())] for row in group.rows]
            yield table([*head(group), "inputs/s"], rate)
            yield from (f"{row.variant}: {row.error}." for row in group.rows if row.error)


def _per_second(batch: int, seconds: Sequence[float]) -> str:
    return f"{batch / median(seconds):,.0f}" if seconds else "–"


def _largest(records: Mapping[str, Record]) -> Iterator[str]:
    yield "## The largest batch"
    for key, result in _results(records, "largest"):
        memory = f" in {result['GiB']:.0f} GiB" if "GiB" in result else ""
        yield f"{key.split('/')[0]}{memory}, within an eighth:"
        full = result["largest"].get("full")
        rows = []
        for name, size in result["largest"].items():
            times = f"{size / full:.2f}" if isinstance(size, int) and isinstance(full, int) and full else ""
            rows.append((name, size, times))
        yield table(("variant", "inputs", "times the full model's"), rows)


def _accuracy(records: Mapping[str, Record]) -> Iterator[str]:
    yield "## Accuracy, trained from scratch"
    for task, variants in figures(records).items():
        rows = []
        for name, values in variants.items():
            own = [abs(value) for value in values.values()]
            floor = f"identity@{name.rpartition('@')[2]}"
            less = (differences(values, variants.get(other, {})) for other in ("full", floor) if other != name)
            shown = f"{mean(own):.4f}{f' ± {stdev(own):.4f}' if len(own) > 1 else ''}"
            rows.append((name, len(own), shown, *(spread_of(apart) if apart else "" for apart in less)))
        figure = "bits per byte" if task.startswith("text/") else "test accuracy"
        yield f"{task}, {figure} ({_recipe(records, task)}); differences of the same seeds, above zero where better:"
        columns = ("variant", "seeds", "figure", "less the full model's", "less the depth-pruned one's")
        yield table(columns, [[*row, *[""] * (len(columns) - len(row))] for row in rows])


def _recipe(records: Mapping[str, Record], task: str) -> str:
    """The inputs and epochs of a task's runs."""
    runs = [run for _, result in _results(records, "accuracy") for run in result["runs"] if run["task"] == task]
    told = {
        f"{run['data']['training inputs']:,} inputs, {run['data']['held-out inputs']:,} held out, "
        f"{run['settings']['recipe']['epochs']} epochs"
        for run in runs
    }
    return "; ".join(sorted(told))


def _compress(records: Mapping[str, Record]) -> Iterator[str]:
    yield "## Trained networks, cut"
    for key, result in _results(records, "compress"):
        task, _, seed = key.rpartition("/")
        yield f"{task}, seed {seed}; {result['figure']} of the original {result['original']:.4f}:"
        healed = f"healed {result['healing']:g}"
        columns = ("share of FLOPs", "method", "FLOPs", "time on one CPU thread", "cut", healed)
        yield table(columns, [_cut(row, healed) for row in result["rows"]])


def _cut(row: Record, healed: str) -> Sequence[str]:
    costs = [f"{row[name]:.3f}" for name in ("flops", "time") if name in row]
    made = [f"{row[name]:.4f}" for name in ("cut", healed) if name in row]
    return [f"{row['share']:g}", row["method"], *(costs + made or [row["reason"], "", "", ""])]


def _train(records: Mapping[str, Record]) -> Iterator[str]:
    yield "## `repl-fx train` next to a bare loop"
    for _, result in _results(records, "train"):
        what = f"{result['model']}, {result['data']}, batch {result['batch']}"
        yield f"{what}; the ratio is that of the same turn:"
        yield "\n".join(throughput.lines(result))


def _wrappers(records: Mapping[str, Record]) -> Iterator[str]:
    yield "## Wrappers of torch.distributed, one process"
    for key, result in _results(records, "processes"):
        rows = [(one, f"{1e3 * row['seconds']:.2f}", f"{row['apart']:.1e}") for one, row in result["wrappers"].items()]
        yield f"{key}, every second block replaced:"
        yield table(("", "step ms", "losses apart from those without"), rows)


def _runtimes(records: Mapping[str, Record]) -> Iterator[str]:
    yield "## ONNX Runtime"
    for key, result in _results(records, "runtimes"):
        yield f"{key}, batch {result['batch']}, float32; median, lowest and highest of a call:"
        rows = []
        for row in result["rows"]:
            gap = f"{row['difference']:.1e}" if "difference" in row else ""
            times = [f"{one:.3f}" for one in row.get("ms") or ()] or [row.get("reason", ""), "", ""]
            rows.append((f"{row['model']}, {row['runtime']}", *times, gap))
        yield table(("", "ms", "lowest", "highest", "difference from PyTorch on a CPU"), rows)


def _kernels(records: Mapping[str, Record]) -> Iterator[str]:
    yield "## The most expensive kernels of a step"
    for key, result in _results(records, "kernels"):
        for variant, rows in result["kernels"].items():
            yield f"{key}, {variant}, batch {result['batch']}:"
            yield (
                rows
                if isinstance(rows, str)
                else table(
                    ("kernel", "calls", "ms", "share"),
                    [
                        (f"`{row['name'][:90]}`", f"{row['calls']:g}", f"{row['ms']:.3f}", f"{row['share']:.1%}")
                        for row in rows
                    ],
                )
            )


def _checks(records: Mapping[str, Record]) -> Iterator[str]:
    yield "## Checks"
    rows = [row for _, result in _results(records, "smoke") for row in result["rows"]]
    if rows:
        columns = ("model", "check", "", "measured")
        yield table(columns, [(row["model"], row["check"], row["status"], row["detail"]) for row in rows])
    for _, result in _results(records, "tests"):
        counts = ", ".join(f"{number} {name}" for name, number in result["counts"].items())
        yield f"Tests marked `gpu`: {counts}{''.join(f'; {name} failed' for name in result['failed'])}."


def _failed(records: Mapping[str, Record]) -> Iterator[str]:
    ended = [(key, one["status"], one.get("error", "")) for key, one in records.items() if one["status"] != DONE]
    if ended:
        yield "## Pieces that did not come to their end"
        yield table(("piece", "", "last lines"), ended)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="gpu.jsonl of runs; none for a page that says so")
    parser.add_argument("--docs", type=Path, required=True, metavar="DIR", help="write DIR/gpu.md")
    parser.add_argument("--scale", choices=SCALES, default=GPU)
    given: Any = parser.parse_args(argv)
    for file in given.files:
        if not file.is_file():
            print(f"error: no file {file}; it is what `python -m benchmarks.gpu` writes", file=sys.stderr)
            return 2
    given.docs.mkdir(parents=True, exist_ok=True)
    write_report([record for file in given.files for record in read_records(file)], given.docs, given.scale)
    return 0


if __name__ == "__main__":
    sys.exit(main())
