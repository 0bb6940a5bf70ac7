"""What is aimed at on a GPU, and whether the records of a run say that it holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev

from benchmarks.gpu_pieces.setting import BEFORE, DONE, RECOMMENDED, Record
from benchmarks.gpu_pieces.table import CUT, MODES, SEEDS, SMOKE, TARGET_NETWORKS, TASKS
from benchmarks.gpu_pieces.trainings import OURS, THEIRS
from benchmarks.training.cost_tables import TARGET_EVERY, TO_FLOOR, Group, Row
from benchmarks.training.variants import CHECKPOINTED, FULL, pruned, rewritten

NOT_MEASURED = "not measured"
LARGER_BATCH, BUSY, TASKS_ABOVE, EXACT, DRIFT = 1.5, 0.9, 3, 1e-3, 1e-2
# FLOPs and times of two methods are the same up to this share of the original's.
SAME = 0.03
WORKING = ("capture, moved", "capture, there", "train bfloat16", "compile", "fold", "export and verify")
ALWAYS = rewritten("auto", TARGET_EVERY).name
FLOOR = pruned(TARGET_EVERY).name


@dataclass(frozen=True)
class Target:
    """One aim.

    Attributes:
        text: what is aimed at.
        measured: what was; None where nothing was.
        held: whether that is enough; None where too little was measured to tell.
    """

    text: str
    measured: str | None = None
    held: bool | None = None

    @property
    def status(self) -> str:
        """`yes`, `no`, `not measured`, or that it takes more."""
        if self.measured is None:
            return NOT_MEASURED
        return {True: "yes", False: "no", None: "too few to tell"}[self.held]


def targets(records: Mapping[str, Record]) -> list[Target]:
    """The targets, in their order.

    Args:
        records: by key, the newest last; that of a step which another device did before ends in `BEFORE` and its name.
    """
    return [*_costs(records), *_accuracies(records), *_training(records), *_cuts(records), *_works(records)]


# --- costs ----------------------------------------------------------------------------------------------------------


def group_of(record: Record | None) -> Group | None:
    """The costs of steps in a record."""
    found = (record or {}).get("result", {}).get("group")
    return found and Group(**found | {"rows": [Row(**row) for row in found["rows"]]})


def _costs(records: Mapping[str, Record]) -> Iterator[Target]:
    for name in TARGET_NETWORKS:
        for mode in MODES:
            key = f"step/{name}/{mode}/{TARGET_EVERY}/{RECOMMENDED}"
            known = [records[one] for one in reversed(list(records)) if one.partition(BEFORE)[0] == key]
            groups = [group for record in known if (group := group_of(record)) is not None]
            where = f"{name}, {mode}, bfloat16, every={TARGET_EVERY}"
            time = _first(group.time_ratio(ALWAYS, FLOOR) for group in groups)
            checkpointed = _first(group.time_ratio(ALWAYS, CHECKPOINTED.name) for group in groups)
            peak = _first(group.memory_ratio(ALWAYS, FLOOR, "peak") for group in groups)
            yield _ratio(f"{where}: time of a step, at most {TO_FLOOR:g} times the depth-pruned", time, TO_FLOOR)
            yield _ratio(f"{where}: peak memory, at most {TO_FLOOR:g} times the depth-pruned", peak, TO_FLOOR)
            yield _ratio(f"{where}: time of a step, below the full model's with checkpoints", checkpointed, 1, False)
        found = records.get(f"largest/{name}/{TARGET_EVERY}/{RECOMMENDED}", {}).get("result", {}).get("largest", {})
        ours, full = found.get(ALWAYS), found.get(FULL.name)
        text = f"{name}, every={TARGET_EVERY}: largest batch, at least {LARGER_BATCH:g} times the full model's"
        both = isinstance(ours, int) and isinstance(full, int) and full > 0
        yield Target(text, f"{ours} to {full}", ours >= LARGER_BATCH * full) if both else Target(text)


def _first(values: Iterable[float | None]) -> float | None:
    """The first figure, of the newest record that has one."""
    return next((value for value in values if value is not None), None)


def _ratio(text: str, value: float | None, limit: float, reach: bool = True) -> Target:
    if value is None:
        return Target(text)
    return Target(text, f"{value:.3f} times", value < limit or (reach and value == limit))


# --- accuracy -------------------------------------------------------------------------------------------------------


def figures(records: Mapping[str, Record]) -> dict[str, dict[str, dict[int, float]]]:
    """Of each task and variant the figures by seed: accuracy, or bits per byte below zero, so that more is better."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for record in records.values():
        for run in record.get("result", {}).get("runs", ()) if record["key"].startswith("accuracy/") else ():
            result = run["result"]
            value = -result["bits"] if "bits" in result else result["accuracy"]
            found.setdefault(run["task"], {}).setdefault(run["variant"], {})[run["seed"]] = value
    return found


def differences(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """Of each seed that both have, how far one is above the other."""
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def spread_of(values: Sequence[float]) -> str:
    """Mean and standard deviation, with a sign."""
    behind = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
    return f"{mean(values):+.4f}{behind} ({len(values)} seed{'s' if len(values) > 1 else ''})"


def _accuracies(records: Mapping[str, Record]) -> Iterator[Target]:
    known = figures(records)
    above = []
    for task in TASKS:
        apart = differences(*(known.get(task, {}).get(one, {}) for one in (f"auto@{TARGET_EVERY}", "identity@2")))
        above.append(_of_seeds(f"{task}, every=2: above the depth-pruned by more than the spread of seeds", apart, 1))
        yield above[-1]
    held = [one.held for one in above if one.held is not None]
    text = f"every=2: so on at least {TASKS_ABOVE} of the {len(TASKS)}"
    # Whatever the others give, where that is sure.
    sure = sum(held) >= TASKS_ABOVE or held.count(False) > len(TASKS) - TASKS_ABOVE
    yield (
        Target(text, f"{sum(held)} of {len(held)}", sum(held) >= TASKS_ABOVE if sure else None)
        if held
        else Target(text)
    )
    for task in TASKS:
        apart = differences(*(known.get(task, {}).get(one, {}) for one in ("auto@3", "full")))
        yield _of_seeds(f"{task}, every=3: equal to the full model or better, within the spread of seeds", apart, -1)


def _of_seeds(text: str, apart: Sequence[float], spreads: int) -> Target:
    """A target that a mean of differences is above so many of their standard deviations."""
    if not apart:
        return Target(text)
    enough = len(apart) >= len(SEEDS)
    return Target(text, spread_of(apart), mean(apart) > spreads * stdev(apart) if enough else None)


# --- training as it is run, and trained networks ----------------------------------------------------------------------


def _training(records: Mapping[str, Record]) -> Iterator[Target]:
    ratios = records.get("train", {}).get("result", {}).get("ratios")
    text = f"`repl-fx train`, CIFAR-10, ResNet-110: as busy as a bare loop for at least {BUSY:.0%} of the time"
    yield Target(text, f"{median(ratios):.1%}", median(ratios) >= BUSY) if ratios else Target(text)


def _cuts(records: Mapping[str, Record]) -> Iterator[Target]:
    for task in CUT:
        found = [
            records[key]["result"] for seed in SEEDS if "result" in records.get(key := f"compress/{task}/{seed}", {})
        ]
        for cost in THEIRS:
            text = f"{task}, cut and healed: above Torch-Pruning at equal {cost}, within {SAME:.0%}"
            by_share = _ahead(found, cost)
            if any(not share for share in by_share.values()):
                yield Target(text, f"none of ours has so little {cost}", False)
                continue
            # The network decides at the share where it is least ahead.
            least = min(by_share.values(), key=mean, default=None)
            yield Target(text) if least is None else Target(text, spread_of(least), mean(least) > 0)


def _ahead(results: Sequence[Record], cost: str) -> dict[float, list[float]]:
    """Of each share and each seed that has both, how far the best of ours that costs no more is above Torch-Pruning."""
    found: dict[float, list[float]] = {}
    for result in results:
        sign, healed = 1 if result["better"] == "higher" else -1, f"healed {result['healing']:g}"
        for theirs in (row for row in result["rows"] if row["method"] == THEIRS[cost] and healed in row):
            ours = [
                row[healed] * sign
                for row in result["rows"]
                if row["method"] in OURS and row["share"] == theirs["share"] and healed in row
                and row[cost.lower()] <= theirs[cost.lower()] + SAME
            ]  # fmt: skip
            apart = found.setdefault(theirs["share"], [])
            apart += [max(ours) - sign * theirs[healed]] if ours else []
    return found


# --- what works -------------------------------------------------------------------------------------------------------


def _works(records: Mapping[str, Record]) -> Iterator[Target]:
    tests = records.get("tests", {}).get("result", {})
    counts = tests.get("counts", {})
    passed, all_of_them = counts.get("passed", 0), sum(counts.values())
    # Where there is no GPU they skip.
    ran = all_of_them > counts.get("skipped", 0)
    text = "all tests that are marked `gpu` pass"
    yield Target(text, f"{passed} of {all_of_them}", passed == all_of_them) if ran else Target(text)
    rows = [row for model in SMOKE for row in records.get(f"smoke/{model}", {}).get("result", {}).get("rows", ())]
    for check in WORKING:
        states = [row["status"] for row in rows if row["check"] == check and row["status"] != "skip"]
        text = f"works with {', '.join(SMOKE)}: {check}"
        passes = states.count("pass")
        held = passes == len(states) if len(states) == len(SMOKE) or passes < len(states) else None
        yield Target(text, f"{passes} of {len(states)} pass", held) if states else Target(text)
    wrappers: Record = next(
        (one["result"]["wrappers"] for key, one in records.items() if _done(key, one, "processes/")), {}
    )
    for wrapper in ("DDP", "FSDP2"):
        text = f"{wrapper} with one process: losses as without, within {DRIFT:.0%}"
        apart = wrappers.get(wrapper, {}).get("apart")
        yield Target(text) if apart is None else Target(text, f"{apart:.1e} apart", apart <= DRIFT)
    for name in TARGET_NETWORKS:
        made = records.get(f"runtimes/{name}", {}).get("result", {}).get("rows", ())
        gaps = [row["difference"] for row in made if row["runtime"] == "CUDA" and "difference" in row]
        text = f"{name}: ONNX Runtime on CUDA computes what PyTorch does on a CPU, within {EXACT:.1%} of the largest"
        yield Target(text, f"{max(gaps):.1e}", max(gaps) <= EXACT) if gaps else Target(text)


def _done(key: str, record: Record, prefix: str) -> bool:
    return key.startswith(prefix) and record["status"] == DONE
