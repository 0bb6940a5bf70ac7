"""Compile time: what repl-fx adds to the time torch.export takes, pass by pass.

    python -m benchmarks.compile_time                          all four models, 5 runs each
    python -m benchmarks.compile_time --models vit_base --runs 3 --json compile_time.json

For each model, in a fresh process, after a warm-up on a small model:

- the reference: one plain `torch.export.export` of the model, in training mode, with the same dynamic dimensions and
  without repl-fx;
- one `repl_fx.transform` with its default settings, the time of each of its functions taken by a stopwatch around it:
  the two exports inside capture (one per mode), and every pass.

The two alternate in order from run to run, with torch's cache of fake-tensor results emptied and the garbage collected
before each. Times are wall-clock seconds, median and range over the runs; with `--clock cpu`, CPU seconds of the
process, which other load on the machine disturbs less (run it with OMP_NUM_THREADS=1). A pass is charged with what it
calls, except what has a row of its own that is not indented, and with the garbage collections that fall into it.

Two claims are checked, on the median of the ratios of the single runs:

    all passes together        under 10 % of the time of torch.export
    find_repeats               under  2 % of it

Of models with weights it also takes the time of `repl_fx.load` of the artifact, with the model built before: with the
graphs that the artifact holds, and without, as where the model's code has changed.

For the verdict, "the time of torch.export" is what the exports of the same transform took: two, because a graph that is
right in both modes needs both. The ratio to the plain reference, one export in one mode without repl-fx, is printed
beside it. Building models is not timed. Memory is the peak resident size of the process in MiB: after the imports and
the warm-up, after the model was built, after the first plain export, and after all runs. Models on the meta device have
no weights, so initialising surrogates costs no arithmetic there; the first two models are on the CPU with real weights.

    python -m benchmarks.compile_time --compile                torch.compile of a GPT-2, flat and by blocks

compiles the first training step (forward and backward, inductor, nothing from its caches) of five forms of a GPT-2 of
48 layers and width 64 on the CPU: the captured graph and the rewritten one (`auto`, every second block), each flat and
with its blocks outlined and compiled one by one, and the model in place as `repl-fx train --compile` compiles it. CPU
seconds are those of the step, with the compilers that it starts, less those of the next step.

    python -m benchmarks.compile_time --profile --runs 3 [--models resnet50 bert_base]

says where the CPU seconds of one `repl_fx.capture` go, for the models of `benchmarks.find_speed`, beside one plain
non-strict export with a dynamic batch: the model's forward on fake tensors, what make_fx and torch.export add to that,
lifting, passes, trials at other sizes and settings, and the rest (snapshots of the model, checks). Each is that of the
fastest run.

Exit status: 0; with `--strict` 1 where a claim does not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import importlib
import inspect
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

import torch
import torch.compiler.config
from rich.console import Console
from rich.table import Table
from torch import nn

import repl_fx
from benchmarks.find_speed import MODELS, build
from repl_fx._torch import FakeTensorMode
from repl_fx.benchmarking.hardware import environment
from repl_fx.passes.outline_blocks import outline_blocks
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.untouched import in_mode
from repl_fx.tracing.dynamic_shapes import auto_shapes
from repl_fx.training.compiling import compile_

ROOT = Path(__file__).resolve().parent.parent
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
PASSES_SHARE = 0.10
REPEATS_SHARE = 0.02

EXPORT, REST = "torch.export in repl-fx", "rest of capture"
# Function -> row; what the rest of `capture_compared` and of `transform` take is what their parts leave over.
PARTS = {
    ("torch.export", "export"): EXPORT,
    ("repl_fx.tracing.tracers", "lift_modules"): "lift_modules",
    ("repl_fx.tracing.tracers", "join_branches"): "join_branches",
    ("repl_fx.tracing.capture", "merge_modes_"): "merge_modes",
    ("repl_fx.tracing.capture", "follow_device_"): "follow_device",
    ("repl_fx.pipeline", "capture_compared"): REST,
    ("repl_fx.tracing.parts.finders", "find_repeats"): "find_repeats",
    ("repl_fx.pipeline", "plan_by"): "make_plan",
    ("repl_fx.rewriting.apply", "replace_blocks"): "replace_blocks",
}
# A share of the pass that calls it, shown below it and not counted twice.
SPLIT = ("repl_fx.surrogates.shared.site", "split_branches")
SPLIT_ROW = "  of which split_branches"
REPORT = "rest of transform"
ROWS = (
    "lift_modules",
    "join_branches",
    "merge_modes",
    "follow_device",
    REST,
    "find_repeats",
    "make_plan",
    "make_plan" + SPLIT_ROW,
    "replace_blocks",
    "replace_blocks" + SPLIT_ROW,
    REPORT,
)


# Rows of the profile of a capture, in order; the functions that are timed, and the row of each.
FORWARD, MAKE_FX = "forward", "make_fx"
PROFILED = {
    ("torch.export", "export"): "torch.export",
    ("repl_fx.tracing.tracers", "lift_modules"): "lifting",
    ("repl_fx.tracing.capture", "run_passes"): "passes",
    ("repl_fx.tracing.capture", "try_checks_"): "trials",
    ("repl_fx.tracing.capture", "computes_alike"): "trials",
    ("repl_fx.tracing.capture", "stops_alike"): "trials",
    ("repl_fx.tracing.capture", "other_sizes_of"): "trials",
}
# wav2vec2 draws from numpy's generator, which no graph can.
PROFILE_MODELS = tuple(name for name in MODELS if name != "wav2vec2_base")
PROFILE_ROWS = (FORWARD, MAKE_FX, *dict.fromkeys(PROFILED.values()))


# --- models ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A model to compile.

    Attributes:
        text: what it is, for the table.
        device: where it is built.
        build: makes the model and its keyword inputs, on that device.
    """

    text: str
    device: str
    build: Callable[[], tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]


def _timm(name: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    import timm

    return timm.create_model(name), (torch.randn(2, 3, 224, 224),), {}


def _gpt2() -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    import transformers

    config = transformers.GPT2Config(n_embd=1600, n_head=25, n_layer=48, use_cache=False)
    return transformers.GPT2LMHeadModel(config), (), {"input_ids": torch.zeros(2, 64, dtype=torch.long)}


def _llama() -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=8192,
        num_attention_heads=64,
        num_key_value_heads=8,
        intermediate_size=28672,
        num_hidden_layers=80,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config), (), {"input_ids": torch.zeros(2, 64, dtype=torch.long)}


CASES = {
    # To see that it runs; not in the table.
    "resnet18": Case("timm resnet18", "cpu", functools.partial(_timm, "resnet18")),
    "resnet50": Case("timm resnet50", "cpu", functools.partial(_timm, "resnet50")),
    "vit_base": Case("timm vit_base_patch16_224", "cpu", functools.partial(_timm, "vit_base_patch16_224")),
    "gpt2_48": Case("transformers GPT-2, 48 layers, width 1600", "meta", _gpt2),
    "llama_80": Case("transformers Llama, 80 layers, width 8192 (the shape of 70B)", "meta", _llama),
}
TABLE = ("resnet50", "vit_base", "gpt2_48", "llama_80")


# --- measuring, in a process of its own -----------------------------------------------------------------------------


@dataclass
class Stopwatch:
    """Time of nested functions.

    Attributes:
        now: the clock to read, in seconds.
        inclusive: seconds by row, with everything called inside.
        exclusive: seconds by row, without rows called inside.
        calls: how often each was called.
        nested: seconds of the rows that are shown below their callers, by (caller, row).
    """

    now: Callable[[], float]
    inclusive: dict[str, float] = field(default_factory=dict)
    exclusive: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    nested: dict[tuple[str, str], float] = field(default_factory=dict)
    _open: list[tuple[str, list[float]]] = field(default_factory=list)

    def around(self, row: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` with its time added to `row`."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            inside = [0.0]
            self._open.append((row, inside))
            begin = self.now()
            try:
                return function(*args, **kwargs)
            finally:
                spent = self.now() - begin
                self._open.pop()
                self.inclusive[row] = self.inclusive.get(row, 0.0) + spent
                self.exclusive[row] = self.exclusive.get(row, 0.0) + spent - inside[0]
                self.calls[row] = self.calls.get(row, 0) + 1
                if self._open:
                    self._open[-1][1][0] += spent

        return timed

    def below(self, row: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` with its time noted for whichever row called it, which keeps it."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = self.now()
            try:
                return function(*args, **kwargs)
            finally:
                key = (self._open[-1][0] if self._open else "", row)
                self.nested[key] = self.nested.get(key, 0.0) + self.now() - begin

        return timed


@contextlib.contextmanager
def stopwatch(
    now: Callable[[], float], parts: Mapping[tuple[str, str], str] = MappingProxyType({**PARTS, SPLIT: SPLIT_ROW})
) -> Iterator[Stopwatch]:
    """Put a stopwatch around every part of `repl_fx.transform`, or other functions, for a while."""
    watch = Stopwatch(now)
    before: list[tuple[Any, str, Any]] = []
    try:
        for (module_name, name), row in parts.items():
            module = importlib.import_module(module_name)
            function = getattr(module, name)
            before.append((module, name, function))
            wrap = watch.below if (module_name, name) == SPLIT else watch.around
            setattr(module, name, wrap(row, function))
        yield watch
    finally:
        for module, name, function in before:
            setattr(module, name, function)


@dataclass(frozen=True)
class Run:
    """One run: seconds of the plain export, of the whole transform, and of each row."""

    plain: float
    whole: float
    exports: float
    rows: dict[str, float]

    @property
    def passes(self) -> float:
        """Seconds that repl-fx takes outside torch.export."""
        return self.whole - self.exports


def plain_export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], now: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of one torch.export of a model as it is, in training mode."""
    with in_mode(model, True), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = auto_shapes(ExampleInputs(args, kwargs))
        begin = now()
        torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
        return now() - begin


def rewrite(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], now: Callable[[], float] = time.perf_counter
) -> tuple[float, Stopwatch, repl_fx.TransformResult]:
    """Seconds of one transform, whole and in parts, and its result."""
    with stopwatch(now) as watch:
        begin = now()
        result = repl_fx.transform(model, args, kwargs)
        whole = now() - begin
    return whole, watch, result


def load_seconds(
    result: repl_fx.TransformResult, model: nn.Module, now: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Seconds of `repl_fx.load` into a model, by whether the artifact holds graphs or has the model traced."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("stored", "traced"):
            if kind == "traced":
                # Without a mark a capture is not written.
                for part in result.captured_parts.parts:
                    part.graph_module.meta["capture"] = replace(part.graph_module.meta["capture"], mark="")
                vars(result).pop("stored", None)
            directory = repl_fx.save(result, Path(folder) / kind)
            _clear_caches()
            begin = now()
            repl_fx.load(directory, model)
            found[kind] = now() - begin
    return found


def measure(name: str, runs: int, clock: str) -> dict[str, Any]:
    """Measure one model in this process."""
    case, now = CASES[name], CLOCKS[clock]
    _warm_up()
    # Importing a model's library is no part of building it.
    importlib.import_module("timm" if case.device == "cpu" else "transformers")
    memory = {"imported": peak_memory()}
    torch.manual_seed(0)
    with torch.device(case.device):
        model, args, kwargs = case.build()
    memory["built"] = peak_memory()
    rows: list[Run] = []
    for number in range(runs):
        plain = whole = 0.0
        watch = Stopwatch(now)
        # The memory of one is not that of the next.
        result: Any = None
        for part in ("plain", "repl-fx") if number % 2 == 0 else ("repl-fx", "plain"):
            _clear_caches()
            if part == "plain":
                plain = plain_export(model, args, kwargs, now)
                memory.setdefault("exported", peak_memory())
            else:
                whole, watch, result = rewrite(model, args, kwargs, now)
        rows.append(Run(plain, whole, watch.inclusive.get(EXPORT, 0.0), _rows(whole, watch)))
        print(f"{name}: run {number + 1} of {runs}", file=sys.stderr)
    memory["all"] = peak_memory()
    facts = {
        "nodes": len(result.captured.graph.nodes),
        "tracer": result.captured.meta["capture"].tracer,
        "repeats": [f"{len(repeat)} in {repeat.name}" for repeat in result.repeats],
        "replaced": len(result.plan.replacements),
    }
    if case.device != "meta":
        facts["load"] = load_seconds(result, model, now)
    facts["exports"] = watch.calls.get(EXPORT, 0)
    facts["parameters"] = sum(p.numel() for p in model.parameters())
    return {
        "model": name,
        "text": case.text,
        "device": case.device,
        **facts,
        "memory_mib": memory,
        "runs": [asdict(run) | {"passes": run.passes} for run in rows],
    }


def _rows(whole: float, watch: Stopwatch) -> dict[str, float]:
    rows = {row: watch.exclusive.get(row, 0.0) for row in PARTS.values() if row != EXPORT}
    rows[REPORT] = whole - watch.inclusive.get(EXPORT, 0.0) - sum(rows.values())
    for caller in ("make_plan", "replace_blocks"):
        rows[caller + SPLIT_ROW] = watch.nested.get((caller, SPLIT_ROW), 0.0)
    return {row: rows[row] for row in ROWS}


def _warm_up() -> None:
    """Make torch.export import what it imports on its first call."""
    layers = [nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.1)) for _ in range(3)]
    model, args = nn.Sequential(*layers), (torch.randn(2, 8),)
    plain_export(model, args, {})
    repl_fx.transform(model, args, surrogate="blend")


def _clear_caches() -> None:
    FakeTensorMode.cache_clear()
    gc.collect()


def peak_memory() -> float:
    """Peak resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts KiB, macOS bytes.
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


# --- torch.compile, flat and block by block ---------------------------------------------------------------------------

FORMS = ("captured, flat", "captured, outlined", "rewritten, flat", "rewritten, outlined", "in place, by blocks")


def compiled_steps(
    layers: int, forms: Sequence[str] = FORMS, backend: Callable[..., Any] | None = None
) -> list[dict[str, Any]]:
    """Compile the forms of a GPT-2, by inductor or by another backend.

    Returns:
        For each form the CPU seconds of the first step without those of the next, and how many graphs were compiled.
    """
    import transformers

    if backend is None:
        from torch._inductor.compile_fx import compile_fx

        backend = compile_fx
    chosen = backend
    torch.manual_seed(0)
    sizes = {"n_embd": 64, "n_head": 2, "n_layer": layers, "vocab_size": 512, "use_cache": False}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    inputs = (torch.zeros(2, 64, dtype=torch.long),)
    result = repl_fx.transform(model, inputs)
    made: list[Any] = []

    def counted(gm: Any, example_inputs: Any) -> Any:
        made.append(gm)
        return chosen(gm, example_inputs)

    settings: Any = torch.compiler.config
    found = []
    # Each outlined block is a graph of its own, which torch.compile takes for one more version of one call.
    with settings.patch(force_disable_caches=True, recompile_limit=4 * layers):
        for form in forms:
            torch.compiler.reset()
            made.clear()
            compiled = _form(form, result, counted)
            first, second = (_step_seconds(compiled, inputs) for _ in range(2))
            found.append({"form": form, "seconds": first - second, "graphs": len(made)})
            print(found[-1], file=sys.stderr)
    return found


def compiled_rows(found: Sequence[dict[str, Any]]) -> str:
    """The rows of the table in docs/results.md."""
    rows = [f"| {one['form']} | {one['graphs']} | {one['seconds']:.0f} |" for one in found]
    return "\n".join(["| form | graphs compiled | CPU seconds |", "|---|--:|--:|", *rows])


def _form(form: str, result: repl_fx.TransformResult, backend: Callable[..., Any]) -> nn.Module:
    if form.startswith("in place"):
        compile_(result.model, backend=backend)
        return result.model
    captured = form.startswith("captured")
    model: nn.Module = result.captured if captured else result.graph_module
    if form.endswith("flat"):
        model.compile(backend=backend)
        return model
    outlined = outline_blocks(model, result.repeats if captured else None)  # type: ignore[arg-type]
    for path in outlined.changed:
        outlined.graph_module.get_submodule(path).compile(backend=backend)
    return outlined.graph_module


def _step_seconds(model: nn.Module, inputs: Sequence[torch.Tensor]) -> float:
    begin = _cpu_seconds()
    outputs = model(*inputs)
    logits = outputs["logits"] if isinstance(outputs, dict) else getattr(outputs, "logits", outputs)
    logits.float().mean().backward()
    model.zero_grad()
    return _cpu_seconds() - begin


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


# --- reporting ------------------------------------------------------------------------------------------------------


def shares(measured: dict[str, Any]) -> dict[str, list[float]]:
    """For each claim, the share of the time of torch.export in each run, against either reference."""
    runs = measured["runs"]
    return {
        "passes": [run["passes"] / run["exports"] for run in runs],
        "find_repeats": [run["rows"]["find_repeats"] / run["exports"] for run in runs],
        "passes, of a plain export": [run["passes"] / run["plain"] for run in runs],
        "find_repeats, of a plain export": [run["rows"]["find_repeats"] / run["plain"] for run in runs],
    }


def verdicts(measured: dict[str, Any]) -> dict[str, bool]:
    """Whether the claims hold against the exports of the same transform."""
    found = shares(measured)
    return {
        "passes": statistics.median(found["passes"]) < PASSES_SHARE,
        "find_repeats": statistics.median(found["find_repeats"]) < REPEATS_SHARE,
    }


def report(console: Console, measured: dict[str, Any]) -> None:
    """Print the table of one model and its verdicts."""
    runs = measured["runs"]
    table = Table(
        title=f"{measured['text']}, on {measured['device']}: {measured['parameters'] / 1e6:,.1f} M parameters, "
        f"{measured['nodes']} nodes, found {'; '.join(measured['repeats'])}, replaced {measured['replaced']}",
        title_justify="left",
    )
    table.add_column("what")
    for column in ("median s", "min – max s", "% of plain export"):
        table.add_column(column, justify="right")

    def row(what: str, values: Sequence[float], section: bool = False) -> None:
        share = statistics.median(v / run["plain"] for v, run in zip(values, runs, strict=True))
        spread = f"{min(values):.3f} – {max(values):.3f}"
        table.add_row(what, f"{statistics.median(values):.3f}", spread, f"{100 * share:.1f}", end_section=section)

    row("plain torch.export, one mode", [run["plain"] for run in runs])
    row(f"torch.export inside repl-fx, {measured['exports']} calls", [run["exports"] for run in runs], section=True)
    for name in ROWS:
        own = name.removeprefix("make_plan").removeprefix("replace_blocks") or name
        row(own, [run["rows"][name] for run in runs], section=name == ROWS[-1])
    row("all passes", [run["passes"] for run in runs])
    row("whole transform", [run["whole"] for run in runs])
    console.print(table)
    if load := measured.get("load"):
        console.print(
            f"load: {load['stored']:.2f} s with the graphs of the artifact, {load['traced']:.2f} s traced anew"
        )
    memory = measured["memory_mib"]
    console.print(
        f"peak memory, MiB: {memory['imported']:,.0f} imported, {memory['built']:,.0f} built, "
        f"{memory['exported']:,.0f} after the first plain export, {memory['all']:,.0f} in all"
    )
    found, held = shares(measured), verdicts(measured)
    for claim, limit in (("passes", PASSES_SHARE), ("find_repeats", REPEATS_SHARE)):
        inside, plain = found[claim], found[f"{claim}, of a plain export"]
        console.print(
            f"{'met   ' if held[claim] else 'MISSED'} {claim}: {100 * statistics.median(inside):.1f} % "
            f"({100 * min(inside):.1f} – {100 * max(inside):.1f}) of the {measured['exports']} exports in repl-fx, "
            f"target under {100 * limit:.0f} %; {100 * statistics.median(plain):.1f} % of one plain export",
            style="green" if held[claim] else "red",
            highlight=False,
        )
    console.print()


def capture_profile(name: str, runs: int) -> dict[str, Any]:
    """Measure in this process where the CPU seconds of one capture go, and what one plain export takes."""
    model, inputs = build(name)
    wider = tuple(torch.cat([tensor, tensor]) for tensor in inputs)
    sizes: Any = tuple({0: torch.export.Dim.AUTO} for _ in wider)
    taken = [p.kind for p in inspect.signature(model.forward).parameters.values()]
    shapes = (sizes,) if taken == [inspect.Parameter.VAR_POSITIONAL] else sizes
    found: list[dict[str, float]] = []
    for _ in range(runs):
        _clear_caches()
        begin = time.process_time()
        with in_mode(model, True), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.export(model, wider, dynamic_shapes=shapes, strict=False)
        plain = time.process_time() - begin
        _clear_caches()
        with stopwatch(time.process_time, PROFILED) as watch, _forward_timed(watch):
            begin = time.process_time()
            gm = repl_fx.capture(model, inputs)
            whole = time.process_time() - begin
        rows = {row: watch.exclusive.get(row, 0.0) for row in PROFILE_ROWS}
        found.append({"plain": plain, "capture": whole, **rows, "rest": whole - sum(rows.values())})
    best = min(found, key=lambda one: one["capture"])
    traces = watch.calls["torch.export"]
    copies = gm.meta["capture"].copies
    return {"model": name, **best, "plain": min(one["plain"] for one in found), "traces": traces, "copies": copies}


@contextlib.contextmanager
def _forward_timed(watch: Stopwatch) -> Iterator[None]:
    """Time what torch.export traces, and the tracing of it."""
    tracing: Any = importlib.import_module("torch.export._trace")
    own = tracing.make_fx

    def make_fx(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
        return watch.around(MAKE_FX, own(watch.around(FORWARD, function), **settings))

    with patch.object(tracing, "make_fx", make_fx):
        yield


def profile_table(found: Sequence[dict[str, Any]]) -> str:
    """The profiles of several models as a table of Markdown."""
    rows = ("plain", "capture", "ratio", "traces", "copies", *PROFILE_ROWS, "rest")
    lines = [f"| model | {' | '.join(rows)} |", "|---" + "|--:" * len(rows) + "|"]
    for one in found:
        cells = {**one, "ratio": one["capture"] / one["plain"]}
        numbers = (str(cells[row]) if isinstance(cells[row], int) else f"{cells[row]:.2f}" for row in rows)
        lines.append(f"| {one['model']} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def run_worker(name: str, runs: int, clock: str) -> dict[str, Any]:
    """Measure one model in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "measured.json"
        command = [sys.executable, "-m", "benchmarks.compile_time", "--worker", name, "--runs", str(runs)]
        subprocess.run([*command, "--clock", clock, "--json", str(answer)], cwd=ROOT, check=True)
        measured: dict[str, Any] = json.loads(answer.read_text())
    return measured


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; returns the exit status."""
    parser = argparse.ArgumentParser(description="Compile time of repl-fx next to torch.export.")
    known = dict.fromkeys((*CASES, *PROFILE_MODELS))
    parser.add_argument("--models", nargs="+", choices=known, help="which models; those of the table by default")
    parser.add_argument("--runs", type=int, default=5, help="runs of each model (default 5)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="wall-clock (default) or CPU seconds")
    parser.add_argument("--json", type=Path, help="write the measurements to this file")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where a claim does not hold")
    parser.add_argument("--compile", action="store_true", help="torch.compile of a GPT-2, flat and by blocks, instead")
    parser.add_argument("--layers", type=int, default=48, help="of that GPT-2 (default 48)")
    parser.add_argument("--profile", action="store_true", help="where the seconds of a capture go, instead")
    parser.add_argument("--worker", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.runs < 1:
        parser.error("--runs must be 1 or more")
    if options.profile:
        torch.set_num_threads(1)
        capture_profile("resnet18", 1)
        found = [capture_profile(name, options.runs) for name in options.models or PROFILE_MODELS]
        print(profile_table(found))
        return 0
    if options.worker:
        options.json.write_text(json.dumps(measure(options.worker, options.runs, options.clock)))
        return 0
    console = Console()
    about = environment()
    console.print(
        f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads; Python {about['python']}, "
        f"torch {about['torch']}, repl-fx {about['repl_fx']}; {options.runs} runs, {options.clock} time",
        highlight=False,
    )
    if options.compile:
        console.print(compiled_rows(compiled_steps(options.layers)), highlight=False)
        return 0
    measured = []
    for name in options.models or TABLE:
        measured.append(run_worker(name, options.runs, options.clock))
        report(console, measured[-1])
        if options.json:
            held = [{**one, "verdicts": verdicts(one)} for one in measured]
            options.json.write_text(
                json.dumps({"environment": about, "clock": options.clock, "models": held}, indent=2) + "\n"
            )
    missed = not all(all(verdicts(one).values()) for one in measured)
    return 1 if options.strict and missed else 0


if __name__ == "__main__":
    sys.exit(main())
