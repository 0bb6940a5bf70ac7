"""How fast repeats are found: next to other tools that read a model's structure, and against the size of the graph.

    python -m benchmarks.find_speed                     everything, 5 runs, about half an hour
    python -m benchmarks.find_speed --models resnet18 vit_base --runs 3 --growth none
    python -m benchmarks.find_speed --docs docs         the same, and write docs/find_speed.md and docs/find_speed.svg

Three tools work on the same models with the same inputs, each in a process of its own, because NNCF patches torch:

- repl-fx: `capture`, of both modes, is its tracing, `find_repeats` its search;
- Torch-Pruning: `DependencyGraph.build_dependency` and all of `get_all_groups`. Its tracing, a forward pass and a walk
  of the autograd graph, is the part of `build_dependency` that `_trace` takes; the rest is its search;
- NNCF 2.19 on its older tracing, as later versions have no search for building blocks: `wrap_model` is its tracing,
  `get_building_blocks` its search, with its defaults; and once more with `hw_fused_ops=False`, which is faster.

They do not answer one question: repl-fx finds runs of equal blocks, Torch-Pruning the layers whose channels have to be
pruned together, NNCF blocks that can be skipped because what goes in has the shape of what comes out. What is compared
is the time each takes to read the structure of a model.

The runs of the tools alternate, in another order each time. Every run builds what it needs anew, on one thread, after
one run on a small model that is not counted. Building models and copying them is not timed. Times are wall-clock
seconds, median and range; with `--clock cpu` CPU seconds of the process, which other load disturbs less. A run that
takes longer than `--limit` wall-clock seconds, building the model included, is given up. Totals are over the models on
which every tool came through.

The growth is that of `find_repeats` alone, on graphs of several shapes that are built without tracing, up to 100,000
nodes, and on captured graphs of a small Llama; the exponent is fitted to the logarithms.

Torch-Pruning, NNCF and matplotlib are needed for this only: `pip install torch-pruning nncf==2.19.0 matplotlib`, best
in an environment of its own, because NNCF wants older versions of numpy and networkx. What is missing is left out.

Exit status: 0; 2 where there is no such model.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import importlib
import json
import math
import multiprocessing
import operator
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

import repl_fx
from benchmarks.zoo_runner.stages import anywhere
from repl_fx.benchmarking.hardware import installed
from repl_fx.environment.machine import cpu_model
from repl_fx.graph.captured import CapturedModule

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
INSTALL = "pip install torch-pruning nncf==2.19.0 matplotlib"


# --- models ---------------------------------------------------------------------------------------------------------


class _Plain(nn.Module):
    """A model of transformers as the tools can all take it: tensors in order in, the first output out."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def forward(self, *values: Tensor) -> Tensor:
        result: Tensor = self.model(**dict(zip(self.names, values, strict=True)), return_dict=False)[0]
        return result


Built = tuple[nn.Module, tuple[Tensor, ...]]


def _torchvision(name: str) -> Built:
    return importlib.import_module("torchvision.models").get_model(name), (torch.randn(1, 3, 64, 64),)


def _timm(name: str, **options: Any) -> Built:
    model: nn.Module = importlib.import_module("timm").create_model(name, **options)
    size = options.get("img_size", 224 if "mixer" in name else 64)
    return model, (torch.randn(1, 3, size, size),)


def _hugging_face(name: str, inputs: dict[str, Tensor], **settings: Any) -> Built:
    library = importlib.import_module("transformers")
    kind = getattr(library, name)
    config = kind.config_class(**settings)
    # A cache is no tensor, and not what is looked for.
    config.use_cache = False
    return _Plain(kind(config), tuple(inputs)), tuple(inputs.values())


def _tokens() -> Tensor:
    return torch.randint(3, 100, (1, 16))


MODELS: dict[str, Callable[[], Built]] = {
    "resnet18": lambda: _torchvision("resnet18"),
    "resnet50": lambda: _torchvision("resnet50"),
    "densenet121": lambda: _torchvision("densenet121"),
    "efficientnet_b0": lambda: _torchvision("efficientnet_b0"),
    "mobilenet_v3_large": lambda: _torchvision("mobilenet_v3_large"),
    "regnet_y_400mf": lambda: _torchvision("regnet_y_400mf"),
    "convnext_tiny": lambda: _torchvision("convnext_tiny"),
    "vit_base": lambda: _timm("vit_base_patch16_224", img_size=64),
    "swin_tiny": lambda: _timm("swin_tiny_patch4_window7_224", img_size=224),
    "coat_tiny": lambda: _timm("coat_tiny", img_size=64),
    "tnt_s": lambda: _timm("tnt_s_patch16_224", img_size=64),
    "mixer_b16": lambda: _timm("mixer_b16_224"),
    "hrnet_w18_small": lambda: _timm("hrnet_w18_small"),
    "mobilevit_s": lambda: _timm("mobilevit_s"),
    "bert_base": lambda: _hugging_face("BertModel", {"input_ids": _tokens()}),
    "gpt2": lambda: _hugging_face("GPT2Model", {"input_ids": _tokens()}),
    "llama_16": lambda: _hugging_face(
        "LlamaModel",
        {"input_ids": _tokens()},
        vocab_size=1000,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=16,
        num_attention_heads=8,
        num_key_value_heads=4,
    ),
    "t5_small": lambda: _hugging_face("T5Model", {"input_ids": _tokens(), "decoder_input_ids": _tokens()}),
    "wav2vec2_base": lambda: _hugging_face("Wav2Vec2Model", {"input_values": torch.randn(1, 4000)}, layerdrop=0.0),
    "whisper_tiny": lambda: _hugging_face(
        "WhisperModel", {"input_features": torch.randn(1, 80, 3000), "decoder_input_ids": _tokens()}
    ),
}


def build(name: str) -> Built:
    """A model of the table in evaluation mode, with example inputs."""
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    return model.eval(), inputs


def _small() -> Built:
    """What a tool is run on first, so that it has imported what it imports late."""
    layers = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(3)]
    return nn.Sequential(*layers).eval(), (torch.randn(1, 4, 8, 8),)


# --- tools ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One run of a tool on a model.

    Attributes:
        trace: seconds until the tool has its graph.
        search: seconds that it searches the graph.
        found: what it found, in words.
        nodes: nodes in its graph.
        fast: seconds of the search with the tool's faster settings, where it has any.
    """

    trace: float
    search: float
    found: str
    nodes: int
    fast: float | None = None


def describe(repeats: Sequence[repl_fx.Repeat]) -> str:
    """The copies of each repeat: `12 + 5 similar`; totals where there are many."""
    if len(repeats) > 5:
        return f"{sum(map(len, repeats))} in {len(repeats)} repeats"
    return " + ".join(f"{len(r)} similar" if r.similar else str(len(r)) for r in repeats) or "none"


def _run_repl_fx(model: nn.Module, inputs: tuple[Tensor, ...], now: Callable[[], float]) -> Run:
    start = now()
    gm = repl_fx.capture(model, inputs)
    gc.collect()
    captured = now()
    repeats = repl_fx.find_repeats(gm)
    return Run(captured - start, now() - captured, describe(repeats), len(gm.graph.nodes))


def _run_torch_pruning(model: nn.Module, inputs: tuple[Tensor, ...], now: Callable[[], float]) -> Run:
    graph = importlib.import_module("torch_pruning").DependencyGraph()
    tracing, plain = 0.0, graph._trace

    def trace(*args: Any, **kwargs: Any) -> Any:
        nonlocal tracing
        start = now()
        traced = plain(*args, **kwargs)
        tracing += now() - start
        return traced

    graph._trace = trace
    start = now()
    graph.build_dependency(model, inputs, verbose=False)
    groups = sum(1 for _ in graph.get_all_groups())
    return Run(tracing, now() - start - tracing, f"{groups} groups", len(graph.module2node))


def _run_nncf(model: nn.Module, inputs: tuple[Tensor, ...], now: Callable[[], float]) -> Run:
    wrap = importlib.import_module("nncf.torch").wrap_model
    search = importlib.import_module("nncf.experimental.torch.search_building_blocks.search_blocks")
    # NNCF turns the model itself into something else.
    model = copy.deepcopy(model)
    gc.collect()
    start = now()
    network = wrap(model, inputs)
    traced = now()
    blocks, _ = search.get_building_blocks(network)
    searched = now()
    search.get_building_blocks(network, hw_fused_ops=False)
    fast = now() - searched
    nodes = network.nncf.get_original_graph().get_nodes_count()
    return Run(traced - start, searched - traced, f"{len(blocks)} blocks", nodes, fast)


@dataclass(frozen=True)
class Tool:
    """One of the tools.

    Attributes:
        package: what has to be installed, None for repl-fx itself.
        run: traces and searches a model.
    """

    package: str | None
    run: Callable[[nn.Module, tuple[Tensor, ...], Callable[[], float]], Run]


TOOLS = {
    "repl-fx": Tool(None, _run_repl_fx),
    "Torch-Pruning": Tool("torch-pruning", _run_torch_pruning),
    "NNCF": Tool("nncf", _run_nncf),
}


def version(package: str | None) -> str | None:
    """The installed version of a package, None where it is not installed."""
    return repl_fx.__version__ if package is None else installed([package]).get(package)


def _serve(connection: Connection, tool: str, clock: str) -> None:
    """Answer the names of models with runs of one tool, in a process of its own."""
    sink = open(os.devnull, "w")  # noqa: SIM115, it stays open as long as the process
    sys.stdout = sys.stderr = sink
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if tool == "NNCF":
        # The tracing that its search for building blocks was written for; it patches torch as it is imported.
        os.environ["NNCF_TORCH_LEGACY_TRACING"] = "1"
        with contextlib.suppress(Exception):
            importlib.import_module("nncf.torch")
    with contextlib.suppress(Exception):
        TOOLS[tool].run(*_small(), CLOCKS[clock])
    connection.send("ready")
    known: tuple[str, Built] | None = None
    while (name := connection.recv()) is not None:
        try:
            if known is None or known[0] != name:
                known = (name, build(name))
            gc.collect()
            connection.send(asdict(TOOLS[tool].run(*known[1], CLOCKS[clock])))
        except Exception as error:
            said = anywhere(" ".join(str(error).split()))
            connection.send({"error": f"{type(error).__name__}: {said[:200]}"})


class _Worker:
    """The process of a tool; started again after a run that was given up."""

    def __init__(self, tool: str, clock: str, limit: float) -> None:
        self.tool, self.clock, self.limit = tool, clock, limit
        self.ready = False
        self._start()

    def run(self, model: str) -> dict[str, Any]:
        """A `Run` as a dictionary, or why there is none under `error`."""
        try:
            if not self.ready:
                # Sent after the imports, which are no part of a run.
                self.ready = self.connection.recv() == "ready"
            self.connection.send(model)
            if self.connection.poll(self.limit):
                answer: dict[str, Any] = self.connection.recv()
                return answer
            reason = f"more than {self.limit:.0f} s"
        except (EOFError, BrokenPipeError):
            reason = "its process ended"
        self.close()
        self._start()
        return {"error": reason}

    def close(self) -> None:
        self.process.kill()
        self.process.join()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.tool, self.clock), daemon=True)
        self.process.start()
        theirs.close()
        self.ready = False


def compare(names: Sequence[str], tools: Sequence[str], runs: int, clock: str, limit: float) -> list[dict[str, Any]]:
    """Run the tools on models in turn.

    Returns:
        For each model its name, and for each tool a list of runs or one entry with `error`.
    """
    workers = [_Worker(tool, clock, limit) for tool in tools]
    measured = []
    try:
        for name in names:
            results: dict[str, list[dict[str, Any]]] = {tool: [] for tool in tools}
            for number in range(runs):
                turn = number % len(workers)
                for worker in workers[turn:] + workers[:turn]:
                    done = results[worker.tool]
                    if not done or "error" not in done[-1]:
                        done.append(worker.run(name))
            for done in results.values():
                # A tool that fails once has no time to show.
                done[:] = [one for one in done if "error" in one] or done
            measured.append({"model": name, "tools": results})
            print(line(measured[-1]), flush=True)
    finally:
        for worker in workers:
            worker.close()
    return measured


# --- growth ---------------------------------------------------------------------------------------------------------


class Synthetic:
    """A graph in normal form, built node by node without a trace."""

    def __init__(self) -> None:
        self.graph, self.root, self.layers = fx.Graph(), nn.Module(), 0
        self.last = self._valued(self.graph.placeholder("x"), 8)

    def linear(self, x: fx.Node, width: int = 8) -> fx.Node:
        name = f"layer_{self.layers}"
        self.layers += 1
        self.root.add_module(name, nn.Linear(x.meta["val"].shape[-1], width, device="meta"))
        return self._valued(self.graph.call_module(name, (x,)), width)

    def call(self, function: Callable[..., object], *args: fx.Node) -> fx.Node:
        return self._valued(self.graph.call_function(function, args), args[0].meta["val"].shape[-1])

    def unit(self, x: fx.Node, inner: int = 2) -> fx.Node:
        """A residual block with some linear layers."""
        y = x
        for _ in range(inner):
            y = self.call(torch.relu, self.linear(y, x.meta["val"].shape[-1]))
        return self.call(operator.add, x, y)

    def done(self, result: fx.Node) -> fx.GraphModule:
        self.graph.output(result)
        return CapturedModule(self.root, self.graph)

    def _valued(self, node: fx.Node, width: int) -> fx.Node:
        node.meta["val"] = torch.empty(2, width, device="meta")
        return node


def _short_blocks(graph: Synthetic, x: fx.Node, nodes: int) -> fx.Node:
    for _ in range(nodes // 5):
        x = graph.unit(x)
    return x


def _two_halves(graph: Synthetic, x: fx.Node, nodes: int) -> fx.Node:
    for _ in range(2):
        x = graph.unit(x, inner=nodes // 4)
    return x


def _long_blocks(graph: Synthetic, x: fx.Node, nodes: int) -> fx.Node:
    for _ in range(max(2, nodes // 401)):
        x = graph.unit(x, inner=200)
    return x


def _ten_stages(graph: Synthetic, x: fx.Node, nodes: int) -> fx.Node:
    for _ in range(10):
        for _ in range(nodes // 50):
            x = graph.unit(x)
        x = graph.call(torch.tanh, x)
    return x


def _many_stages(graph: Synthetic, x: fx.Node, nodes: int) -> fx.Node:
    for stage in range(nodes // 91):
        x = graph.linear(x, 8 * (stage % 13 + 1))
        for _ in range(18):
            x = graph.unit(x)
    return x


def _shared_input(graph: Synthetic, x: fx.Node, nodes: int) -> fx.Node:
    side = x
    for _ in range(nodes // 4):
        x = graph.call(operator.add, x, graph.call(torch.relu, graph.call(operator.mul, graph.linear(x), side)))
    return x


@dataclass(frozen=True)
class Shape:
    """A shape of graph to let grow.

    Attributes:
        text: what it is.
        fill: adds about so many nodes behind a value.
    """

    text: str
    fill: Callable[[Synthetic, fx.Node, int], fx.Node]


SHAPES = {
    "short blocks": Shape("residual blocks of 5 nodes; more and more of them", _short_blocks),
    "long blocks": Shape("residual blocks of 401 nodes; more and more of them", _long_blocks),
    "two halves": Shape("two equal blocks, each half of the graph", _two_halves),
    "ten stages": Shape("ten runs of residual blocks with another operator between them", _ten_stages),
    "many stages": Shape("runs of 18 residual blocks in thirteen widths in turn", _many_stages),
    "shared input": Shape("residual blocks of 4 nodes that all read one early value", _shared_input),
}
SIZES = {"none": (), "quick": (1_000, 3_162), "full": (1_000, 3_162, 10_000, 31_623, 100_000)}
LLAMA = "captured Llama"
DEPTHS = {"none": (), "quick": (2, 4), "full": (4, 12, 36)}


def synthetic(shape: str, nodes: int) -> fx.GraphModule:
    """A graph of about so many nodes."""
    graph = Synthetic()
    return graph.done(graph.linear(SHAPES[shape].fill(graph, graph.linear(graph.last), nodes), 3))


def _llama(depth: int) -> fx.GraphModule:
    sizes = dict(vocab_size=100, hidden_size=32, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2)
    tokens = {"input_ids": torch.zeros(1, 8, dtype=torch.long)}
    model, inputs = _hugging_face("LlamaModel", tokens, num_hidden_layers=depth, **sizes)
    return repl_fx.capture(model.eval(), inputs)


def _graphs(growth: str) -> Iterator[tuple[str, Callable[[], fx.GraphModule]]]:
    for nodes in SIZES[growth]:
        for shape in SHAPES:
            yield shape, lambda shape=shape, nodes=nodes: synthetic(shape, nodes)  # type: ignore[misc]
    for depth in DEPTHS[growth]:
        yield LLAMA, lambda depth=depth: _llama(depth)  # type: ignore[misc]


def grow(growth: str, runs: int, clock: str) -> list[dict[str, Any]]:
    """Time `find_repeats` on graphs of growing size; an entry for each graph."""
    now = CLOCKS[clock]
    measured: list[dict[str, Any]] = []
    for shape, build in _graphs(growth):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gm = build()
        if not measured:
            repl_fx.find_repeats(gm)
        seconds: list[float] = []
        repeats: tuple[repl_fx.Repeat, ...] = ()
        for _ in range(runs):
            gc.collect()
            start = now()
            repeats = repl_fx.find_repeats(gm)
            seconds.append(now() - start)
        nodes = len(gm.graph.nodes)
        measured.append({"shape": shape, "nodes": nodes, "seconds": seconds, "found": describe(repeats)})
        middle = statistics.median(seconds)
        print(f"{shape:15} {nodes:8,} nodes {middle:8.3f} s  {1e6 * middle / nodes:6.1f} µs a node", flush=True)
    return measured


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """The slope of a straight line through the logarithms: 1 for proportional, 2 for quadratic.

    Args:
        points: nodes and seconds; two different numbers of nodes at least.
    """
    xs, ys = [math.log(x) for x, _ in points], [math.log(y) for _, y in points]
    return statistics.linear_regression(xs, ys).slope


def curves(growth: Sequence[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """For each shape its nodes and median seconds."""
    found: dict[str, list[tuple[int, float]]] = {}
    for one in growth:
        found.setdefault(one["shape"], []).append((one["nodes"], statistics.median(one["seconds"])))
    return found


# --- reporting ------------------------------------------------------------------------------------------------------


def medians(measured: dict[str, Any], tool: str) -> dict[str, float] | None:
    """Median seconds of a tool on a model: `search`, `both` and `fast`; None where it failed."""
    done = measured["tools"].get(tool)
    if not done or "error" in done[0]:
        return None
    searches = [run["search"] for run in done]
    both = [run["trace"] + run["search"] for run in done]
    fast = [run["search"] if run["fast"] is None else run["fast"] for run in done]
    return {"search": statistics.median(searches), "both": statistics.median(both), "fast": statistics.median(fast)}


def totals(measured: Sequence[dict[str, Any]], tools: Sequence[str]) -> tuple[int, dict[str, dict[str, float]]]:
    """Sums of the medians over the models on which every tool came through, and how many those are."""
    rows = [{tool: medians(one, tool) for tool in tools} for one in measured]
    common = [row for row in rows if all(row.values())]
    sums = {tool: {"search": 0.0, "both": 0.0, "fast": 0.0} for tool in tools}
    for row in common:
        for tool, values in row.items():
            for key, value in (values or {}).items():
                sums[tool][key] += value
    return len(common), sums


def spread(values: Sequence[float]) -> str:
    """Median and range, in milliseconds."""
    middle, low, high = (f"{1000 * v:,.0f}" for v in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low}–{high})"


def cell(done: Sequence[dict[str, Any]]) -> tuple[str, str, str]:
    """What a tool found on a model, and its times: search, tracing and search."""
    if "error" in done[0]:
        return "failed", "–", "–"
    both = [run["trace"] + run["search"] for run in done]
    return done[0]["found"], spread([run["search"] for run in done]), spread(both)


def line(measured: dict[str, Any]) -> str:
    """One model on one line."""
    parts = []
    for tool, done in measured["tools"].items():
        found, search, both = cell(done)
        parts.append(f"{tool}: {done[0]['error']}" if "error" in done[0] else f"{tool}: {found}, {search}, {both} ms")
    return f"{measured['model']:20}" + " | ".join(parts)


def document(report: dict[str, Any], picture: bool) -> str:
    """The report in Markdown."""
    about, measured, growth = report["environment"], report["models"], report["growth"]
    tools = list(about["tools"])
    text = [
        "# How fast repeats are found",
        "",
        "Written by `python -m benchmarks.find_speed --docs docs`; its docstring says what is measured, and how.",
        "",
        f"{about['cpu']}, {about['cores']} cores, one thread; Python {about['python']}, torch {about['torch']}, "
        + ", ".join(f"{tool} {number}" for tool, number in about["tools"].items())
        + f". {about['runs']} runs, median (smallest–largest), milliseconds of {about['clock']} time. "
        f"{about['load']:.1f} programs wanted the processor on average when the run began.",
        "",
    ]
    for tool in about["missing"]:
        text += [f"{tool} was not installed and is left out: `{INSTALL}`.", ""]
    if measured:
        text += [*_table(measured, tools), *_summary(measured, tools)]
    if growth:
        text += ["## Against the size of the graph", ""]
        if picture:
            text += ["![Seconds of find_repeats against nodes](find_speed.svg)", ""]
        text += _growth_table(growth)
    return "\n".join(text) + "\n"


def _table(measured: Sequence[dict[str, Any]], tools: Sequence[str]) -> list[str]:
    head = ["model", "nodes"]
    for tool in tools:
        head += [f"{tool} found", "search", "with tracing"]
    text = ["## Next to other tools", "", _row(head), _row(["---"] * len(head))]
    failures = []
    for one in measured:
        ours = one["tools"]["repl-fx"][0]
        row = [one["model"], str(ours.get("nodes", "–"))]
        for tool in tools:
            done = one["tools"][tool]
            row += cell(done)
            if "error" in done[0]:
                failures.append(f"- {tool} on {one['model']}: {done[0]['error']}")
        text.append(_row(row))
    text += ["", "Nodes are those of repl-fx's graph; for repl-fx, what was found is the copies of each repeat.", ""]
    return text + (["What failed:", "", *failures, ""] if failures else [])


def _summary(measured: Sequence[dict[str, Any]], tools: Sequence[str]) -> list[str]:
    common, sums = totals(measured, tools)
    if not common:
        return ["There is no model on which every tool came through.", ""]
    text = [f"Sums over the {common} models of {len(measured)} on which every tool came through, seconds:", ""]
    text += [_row(["", "search alone", "with tracing"]), _row(["---"] * 3)]
    for tool in tools:
        text.append(_row([tool, f"{sums[tool]['search']:.2f}", f"{sums[tool]['both']:.2f}"]))
        if sums[tool]["fast"] != sums[tool]["search"]:
            whole = sums[tool]["both"] - sums[tool]["search"] + sums[tool]["fast"]
            text.append(_row([f"{tool}, `hw_fused_ops=False`", f"{sums[tool]['fast']:.2f}", f"{whole:.2f}"]))
    fastest = {tool: 0 for tool in tools}
    for one in measured:
        times = {tool: found["fast"] for tool in tools if (found := medians(one, tool))}
        if times:
            fastest[min(times, key=lambda tool: times[tool])] += 1
    counts = ", ".join(f"{tool} on {number}" for tool, number in fastest.items())
    return [*text, "", f"Shortest search, the faster settings of NNCF counted: {counts}.", ""]


def _growth_table(growth: Sequence[dict[str, Any]]) -> list[str]:
    text = [_row(["shape", "nodes", "found", "seconds", "µs a node"]), _row(["---"] * 5)]
    for one in sorted(growth, key=lambda one: [*SHAPES, LLAMA].index(one["shape"])):
        middle, low, high = (f(one["seconds"]) for f in (statistics.median, min, max))
        cells = [one["shape"], f"{one['nodes']:,}", one["found"], f"{middle:.3f} ({low:.3f}–{high:.3f})"]
        text.append(_row([*cells, f"{1e6 * middle / one['nodes']:.0f}"]))
    text += ["", "Fitted exponents; 1 is proportional to the nodes:", ""]
    for name, points in curves(growth).items():
        what = SHAPES[name].text if name in SHAPES else "with 2 to 36 layers, as it comes out of `repl_fx.capture`"
        text.append(f"- {name}, {exponent(points):.2f}: {what}")
    return [*text, f"- all together, {exponent([p for c in curves(growth).values() for p in c]):.2f}"]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def draw(growth: Sequence[dict[str, Any]], file: Path) -> None:
    """Draw the growth, with a line of what is proportional to the nodes."""
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("svg")
    # The same picture for the same numbers, byte for byte.
    matplotlib.rcParams["svg.hashsalt"] = "find_speed"
    figure, axes = importlib.import_module("matplotlib.pyplot").subplots(figsize=(7, 4.5))
    for name, points in curves(growth).items():
        axes.loglog(*zip(*points, strict=True), marker="o", label=f"{name}, exponent {exponent(points):.2f}")
    nodes = [one["nodes"] for one in growth]
    rate = statistics.median(statistics.median(one["seconds"]) / one["nodes"] for one in growth)
    ends = (min(nodes), max(nodes))
    axes.loglog(ends, [rate * n for n in ends], "k--", linewidth=1, label=f"{1e6 * rate:.0f} µs a node")
    axes.set(xlabel="nodes", ylabel="seconds", title="find_repeats against the size of the graph")
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def environment(tools: Sequence[str], missing: Sequence[str], runs: int, clock: str) -> dict[str, Any]:
    """What a reader needs to compare numbers."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "tools": {tool: version(TOOLS[tool].package) for tool in tools},
        "missing": list(missing),
        "runs": runs,
        "clock": clock,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; returns the exit status."""
    parser = argparse.ArgumentParser(description="Speed of finding repeats, next to other tools and against size.")
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS), help="which models (default all)")
    parser.add_argument("--growth", choices=SIZES, default="full", help="sizes of the growing graphs (default full)")
    parser.add_argument("--runs", type=int, default=5, help="runs of everything (default 5)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="wall-clock (default) or CPU seconds")
    parser.add_argument("--limit", type=float, default=120, help="seconds after which a run is given up (default 120)")
    parser.add_argument("--docs", type=Path, help="write find_speed.md and find_speed.svg to this directory")
    parser.add_argument("--json", type=Path, help="write the measurements to this file")
    options = parser.parse_args(argv)
    if options.docs:
        options.docs.mkdir(parents=True, exist_ok=True)
    if options.runs < 1:
        parser.error("--runs must be 1 or more")
    torch.set_num_threads(1)
    tools = [tool for tool, kind in TOOLS.items() if version(kind.package)]
    missing = [tool for tool in TOOLS if tool not in tools]
    for tool in missing:
        print(f"{tool} is not installed and is left out: {INSTALL}")
    report: dict[str, Any] = {"environment": environment(tools, missing, options.runs, options.clock)}
    report["models"] = compare(options.models, tools, options.runs, options.clock, options.limit)
    report["growth"] = grow(options.growth, options.runs, options.clock)
    picture = bool(report["growth"]) and version("matplotlib") is not None
    if report["growth"] and not picture:
        print(f"matplotlib is not installed, so there is no picture: {INSTALL}")
    print()
    print(document(report, picture))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    if options.docs:
        (options.docs / "find_speed.md").write_text(document(report, picture))
        if picture:
            draw(report["growth"], options.docs / "find_speed.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
