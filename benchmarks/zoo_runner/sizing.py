"""A model at other sizes than those it is captured with: which it takes, what each form computes, what is refused.

    captured    as in the other stages, as one graph
    same        the captured graph and its ONNX file compute what the source does: an identity plan; the graph in
                training mode, too: two steps with outputs, gradients and buffers, at the sizes within the limits
    replaced    as in the other stages; a model in which nothing repeats ends here
    alike       the rewritten graph, the folded one, the model in place and the ONNX file of `auto` compute the same

Sizes are five within the limits of the graph that the source takes, of batch 1 and others, odd where that is taken,
smaller, larger and not square; for each limit a size on either side of it; and for each dimension that is fixed another
size. The source is the judge: where it stops, no form may have an answer; where it runs, a form computes the same or
refuses in one line.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

import repl_fx
from benchmarks.zoo_models.case import Case
from benchmarks.zoo_models.weights import wake
from benchmarks.zoo_runner.exactness import difference, tensors
from benchmarks.zoo_runner.stages import Record, alone, anywhere, built, part_of_record, stage, stop, why_nothing
from repl_fx.errors import ReplFxError
from repl_fx.export.comparison import ModelComparison
from repl_fx.export.session import OnnxSession
from repl_fx.export.tensors import FlatInputs, at_shapes, flatten_inputs
from repl_fx.graph.axes import VARYING, captured_axes, checks_by_name, dimensions_of, short_place
from repl_fx.pipeline import rewrite
from repl_fx.planning.options import Options
from repl_fx.rewriting.result import TransformResult
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.untouched import Outcome, in_mode, outcome_of
from repl_fx.tracing.check import check_of
from repl_fx.tracing.dynamic_shapes import CACHES

SIZING = ("captured", "same", "replaced", "alike")
WITHIN = 5
# The form that is compared in training mode.
TRAINED = "graph in training"
# Sizes to try, as factors of the example's; batches as they are.
_FACTORS = (0.5, 1.7, 1.25, 0.8, 2.1)
_BATCHES = (1, 3, 5, 4, 7)
_MOST_LIMITS = 8
_FURTHEST = 600
# Of the largest number of an output: the same operators on tensors of other strides may round in another order.
_ROUNDING = 2e-5
Sizes = Mapping[str, int]


@dataclass
class Trial:
    """What became of one combination of sizes.

    Attributes:
        sizes: in words.
        why: `within`, `edge` (within, next to a limit), `beyond` (a limit) or `fixed` (another size of a fixed one).
        limit: the condition that is tried, or the reason why the dimension is fixed.
        source: `runs`, or how the source stops.
        forms: the outcome of each form: `right`, `refused: …`, `stops` (as the source does), or else what is wrong.
    """

    sizes: str
    why: str
    limit: str
    source: str = ""
    forms: dict[str, str] = field(default_factory=dict)


def wrong(trial: Mapping[str, Any], forms: Iterable[str] | None = None) -> list[str]:
    """What is wrong with forms at some sizes, all by default; those that the source takes have to be right within."""
    good: tuple[str, ...] = ("right", "close")
    if trial["source"] != "runs" or trial["why"] not in ("within", "edge"):
        good += ("refused", "stops")
    outcomes = {form: trial["forms"][form] for form in forms or trial["forms"] if form in trial["forms"]}
    return [
        f"{trial['sizes']}, {form}: {outcome}" for form, outcome in outcomes.items() if not outcome.startswith(good)
    ]


def sized(case: Case, record: Record, place: Path, last: str, heavy: Any) -> None:
    """Capture, replace, and run every form at other sizes."""
    model, args, kwargs = built(case, record, place, "build")
    record.parameters = sum(parameter.numel() for parameter in model.parameters())
    inputs = ExampleInputs(args, kwargs)
    with alone(record, heavy), torch.no_grad():
        with stage(record, place, "captured", last), torch.enable_grad():
            captured = repl_fx.capture_parts(model, args, kwargs)
            record.parts = [part_of_record(part) for part in captured.parts]
            assert captured.whole, "it is captured in parts"
            record.dimensions = [asdict(dimension) for dimension in dimensions_of(captured.parts[0].graph_module)]
        graph, flat = captured.parts[0].graph_module, flatten_inputs(captured.parts[0].graph_module, inputs)
        with stage(record, place, "same", last):
            forms = {"graph": graph, "file": _file(graph, flat, place / "captured.onnx")}
            trials = list(_chosen(graph, model, flat))
            for trial, given, source in trials:
                trial.source = _words(source.problem) if source.problem else "runs"
                trial.forms |= _judged(forms, given, source)
                if trial.why == "within" and source.problem is None:
                    trial.forms |= trained(model, graph, given)
            record.trials = [asdict(trial) for trial, _, _ in trials]
            count = sum(trial.why == "within" and trial.source == "runs" for trial, _, _ in trials)
            assert count == WITHIN, f"{count} of {WITHIN} sizes within the limits are taken by the source"
            _require_good(trials, [*forms, TRAINED])
        with stage(record, place, "replaced", last), torch.enable_grad():
            try:
                result = rewrite(captured, Options())
            except repl_fx.NothingToReplace as nothing:
                record.nothing_repeats = True
                record.reason = why_nothing(captured.parts, repl_fx.find_repeats(graph), nothing)
                stop()
            record.replaced = len(result.plan.replacements)
            # Surrogates that are silent at first would hide what they compute.
            wake(result.module)
            if result.in_place.model is None:
                record.not_in_place = [str(refusal) for refusal in result.in_place.refusals]
        with stage(record, place, "alike", last):
            rewritten, folded = result.graph_module, repl_fx.fold(result.graph_module)
            others: dict[str, Any] = {"folded": folded}
            if result.in_place.model is not None:
                others["in place"] = result.in_place.model
            others["file of auto"] = _file(folded, flat, place / "auto.onnx")
            for trial, given, source in trials:
                ours = _run(rewritten, given)
                trial.forms["auto"] = _without_reference(ours, source)
                trial.forms |= _judged(others, given, ours if source.problem is None else source)
                if trial.forms.get("in place") == "alone":
                    trial.forms["in place"] = _own_way(model, result, given)
            record.trials = [asdict(trial) for trial, _, _ in trials]
            _require_good(trials, ["auto", *others])


def _require_good(trials: Sequence[tuple[Trial, FlatInputs, Outcome]], forms: Iterable[str]) -> None:
    """Accept what the forms did.

    Raises:
        AssertionError: one that is wrong, with the sizes.
    """
    problem = next((one for trial, _, _ in trials for one in wrong(asdict(trial), forms)), None)
    assert problem is None, problem


def _file(module: nn.Module, flat: FlatInputs, path: Path) -> Callable[[FlatInputs, Outcome], str]:
    """Export a graph, and judge what ONNX Runtime makes of inputs against an outcome."""
    repl_fx.export_onnx(module, path, flat.given.args, flat.given.kwargs)
    session = OnnxSession(path)
    session.check_inputs(flat)

    def judge(given: FlatInputs, expected: Outcome) -> str:
        if fixed := session.fixed_dimension(given):
            return f"refused: {fixed}"
        with in_mode(module, False):
            if expected.problem is None and _run(module, given).problem is None:
                comparison = ModelComparison(session, module)
                if obstacle := comparison.run(given.tensors[0].shape[0], given):
                    return f"wrong: {obstacle}"
                if comparison.passed:
                    return "right"
                rows = (str(row) for row in comparison.rows if not row.passed)
                words = next(iter((*comparison.failures, *rows)))
                rounded = ModelComparison(session, module, atol=_ROUNDING)
                rounded.run(given.tensors[0].shape[0], given)
                return f"close: {words}" if rounded.passed else f"wrong: {words}"
        if expected.problem is not None and (signal := _dies(path, flat, given)):
            return f"stops: ONNX Runtime dies of signal {signal}"
        try:
            found = [torch.as_tensor(value) for value in session.run(given).values()]
        except Exception as problem:
            return "stops" if expected.problem is not None else f"refused: {_words(problem)}"
        floats = [value for value in found if value.is_floating_point()]
        if floats and all(bool(value.isnan().all()) for value in floats):
            return "refused: NaN"
        return "answers" if expected.problem is not None else _compared(tensors(expected.outputs), found)

    return judge


def _dies(path: Path, flat: FlatInputs, given: FlatInputs) -> int:
    """The signal that ends a process which runs a file on inputs at which the source stops; 0 where none does."""
    process = os.fork()
    if process == 0:
        with suppress(Exception):
            session = OnnxSession(path, threads=1)
            session.check_inputs(flat)
            session.run(given)
        os._exit(0)
    return os.WTERMSIG(os.waitpid(process, 0)[1])


def _run(module: nn.Module, given: FlatInputs) -> Outcome:
    return outcome_of(module, given.given, training=False, within=torch.no_grad)


def trained(model: nn.Module, graph: nn.Module, given: FlatInputs) -> dict[str, str]:
    """The outcome of two steps in training mode; none where the source takes none: batch norms need several values."""
    with torch.enable_grad():
        if outcome_of(model, given.given, training=True).problem is not None:
            return {}
        try:
            checked = check_of(model, graph, given.given, [True])
        except Exception as problem:
            return {TRAINED: f"fails: {_words(problem)}"}
    return {TRAINED: "right" if checked.training else f"wrong: {checked.differences[0]}"}


def _judged(forms: Mapping[str, Any], given: FlatInputs, expected: Outcome) -> dict[str, str]:
    """The outcome of each form on inputs, next to that of the source, or of the rewritten graph."""
    return {
        name: _without_reference(_run(form, given), expected, compare=True)
        if isinstance(form, nn.Module)
        else form(given, expected)
        for name, form in forms.items()
    }


def _without_reference(found: Outcome, expected: Outcome, *, compare: bool = False) -> str:
    if found.problem is not None:
        if isinstance(found.problem, ReplFxError):
            lines = str(found.problem).count("\n")
            return f"refused: {_words(found.problem)}" if not lines else f"wrong: refused in {lines + 1} lines"
        return "stops" if expected.problem is not None else f"fails: {_words(found.problem)}"
    if expected.problem is not None:
        return "alone" if isinstance(expected.problem, ReplFxError) else "answers"
    return _compared(_made(expected), _made(found)) if compare else "right"


def _own_way(model: nn.Module, result: TransformResult, given: FlatInputs) -> str:
    """Whether the model in place, whose own code goes another way than the graph, computes what a graph of it does."""
    blocks = [replacement.block for replacement in result.plan.replacements]
    found = _made(_run(result.model, given))
    try:
        with torch.enable_grad():
            again = repl_fx.transform(model, given.given.args, given.given.kwargs, blocks=blocks)
        again.module.load_state_dict(result.module.state_dict())
    except (ReplFxError, RuntimeError) as problem:
        # Where that way leads past the replaced blocks, the source itself is the judge.
        past = _compared(_made(_run(model, given)), found)
        return past if past == "right" else f"alone: {_words(problem)}"
    return _compared(_made(_run(again.module, given)), found)


def _made(outcome: Outcome) -> list[Tensor]:
    """The tensors of an outcome; of removed blocks a cache has what the surrogate keeps, and other forms nothing."""
    kept = [
        {key: value for key, value in made.items() if key not in CACHES} if isinstance(made, Mapping) else made
        for made in outcome.outputs
    ]
    return tensors(kept)


def _compared(expected: Sequence[Tensor], found: Sequence[Tensor]) -> str:
    problem = difference(found, expected)
    if problem is None:
        return "right"
    alike = len(expected) == len(found) and all(
        a.shape == b.shape
        and a.is_floating_point()
        and torch.allclose(a, b, rtol=0, atol=_ROUNDING * float(a.nan_to_num().abs().max()), equal_nan=True)
        for a, b in zip(expected, found, strict=True)
    )
    return f"close: {problem}" if alike else f"wrong: {problem}"


def _words(problem: BaseException | None) -> str:
    return anywhere(" ".join(str(problem).split()))[:300]


def _chosen(graph: fx.GraphModule, model: nn.Module, flat: FlatInputs) -> Iterator[tuple[Trial, FlatInputs, Outcome]]:
    """The combinations of sizes to try, with the inputs and what the source makes of them."""
    sizes = Combinations(graph, flat)
    seen = {tuple(sizes.own.values())}

    def tried(why: str, wanted: Sizes, limit: str = "") -> tuple[Trial, FlatInputs, Outcome] | None:
        if tuple(wanted.values()) in seen or any(size < 1 for size in wanted.values()):
            return None
        seen.add(tuple(wanted.values()))
        given = at_shapes(flat, sizes.shapes(wanted), seed=0)
        words = ", ".join(f"{sizes.names[key]} {size}" for key, size in wanted.items())
        return Trial(words, why, limit), given, _run(model, given)

    within = 0
    for number in range(4 * WITHIN):
        found = tried("within", sizes.within(number))
        if found is not None and within < WITHIN:
            within += found[2].problem is None
            yield found
    for condition, beyond, edge in sizes.limits():
        for why, wanted in (("beyond", beyond), ("edge", edge)):
            if wanted is not None and (found := tried(why, wanted, condition)):
                yield found
    for key, reason in sizes.fixed.items():
        own = sizes.own[key]
        # One that the source takes, where there is one among these.
        every = (tried("fixed", {**sizes.own, key: size}, reason) for size in (2 * own, own // 2, own + 1, 1))
        several = [found for found in every if found is not None]
        yield from sorted(several, key=lambda found: found[2].problem is not None)[:1]


class Combinations:
    """The sizes of the inputs of a graph that may be tried.

    Attributes:
        own: those of the example inputs, by symbol, or by name where they are fixed.
        names: of the dimensions.
        fixed: why a dimension has one size alone.
    """

    def __init__(self, graph: fx.GraphModule, flat: FlatInputs) -> None:
        self.graph, self.flat = graph, flat
        reasons = graph.meta["capture"].fixed
        self.own: dict[str, int] = {}
        self.names: dict[str, str] = {}
        self.fixed: dict[str, str] = {}
        self.keys: dict[tuple[str, int], str] = {}
        for axis in captured_axes(graph):
            place, reason = (axis.input, axis.number), reasons.get(f"{axis.input}.{axis.number}", "")
            if axis.symbol is None and axis.name not in VARYING and not short_place(reason).startswith(" ("):
                continue
            key = self.keys[place] = axis.symbol or f"{axis.name} alone {axis.size}"
            if key.isidentifier() or axis.symbol is None:
                self.own[key], self.names[key] = axis.size or 0, axis.name
            if axis.symbol is None:
                self.fixed[key] = reason.strip(" ,") or self.fixed.get(key, "")

    def shapes(self, sizes: Sizes) -> list[tuple[int, ...]]:
        """The shapes of the inputs; a size that is an expression of others is computed."""
        known = {"Max": max, "Min": min, "floor": math.floor, **sizes}

        def size(name: str, dim: int, example: int) -> int:
            key = self.keys.get((name, dim))
            if key is None:
                return example
            return sizes[key] if key in sizes else int(eval(key, {}, known))

        pairs = zip(self.flat.names, self.flat.tensors, strict=True)
        return [tuple(size(name, dim, n) for dim, n in enumerate(tensor.shape)) for name, tensor in pairs]

    def failing(self, sizes: Sizes) -> list[str]:
        """The conditions of the graph that sizes do not meet."""
        if any(size < 1 for size in sizes.values()):
            return ["nothing"]
        shapes = dict(zip(self.flat.names, self.shapes(sizes), strict=True))
        empty = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        return [c.words for c, names in checks_by_name(self.graph.graph) if not c.holds(*map(empty.__getitem__, names))]

    def within(self, number: int) -> Sizes:
        """Sizes near some factors of the example's, within the limits; another combination for each number."""
        sizes = dict(self.own)
        for place, key in enumerate(self.own):
            if key in self.fixed or sizes[key] != self.own[key]:
                continue
            turn = (number + place * (1 + number // 5)) % 5
            wanted = _BATCHES[turn] if self.names[key] == "batch" else int(self.own[key] * _FACTORS[turn]) | 1
            sizes = self.nearest(sizes, key, wanted) or sizes
        return sizes

    def nearest(self, sizes: Sizes, key: str, wanted: int) -> dict[str, int] | None:
        """These sizes with another one for a dimension, and for those that follow it, near the one that is wanted."""
        kind = self.names[key].rpartition("_")[2]
        alike = [k for k, own in self.own.items() if own == self.own[key] and self.names[k].endswith(kind)]
        for by in range(_FURTHEST):
            for size in (wanted + by, wanted - by):
                for following in (alike, (key,)):
                    changed = {**sizes, **dict.fromkeys(following, size)}
                    if changed != self.own and not self.failing(changed):
                        return changed
        return None

    def limits(self) -> Iterator[tuple[str, Sizes, Sizes | None]]:
        """For each limit sizes that break it, and no other where that can be, and the nearest ones that do not."""
        known: dict[tuple[str, ...], str] = {}
        for check, inputs in checks_by_name(self.graph.graph):
            keys = [k for _, n, dim in check.sizes if (k := self.keys.get((inputs[n], dim), "")) in self.own]
            found: list[tuple[int, int, str, int]] = []
            for key in dict.fromkeys(keys):
                near = (self.own[key] + sign * by for by in range(1, _FURTHEST) for sign in (-1, 1))
                for size in (size for size in near if size > 0):
                    failing = self.failing({**self.own, key: size})
                    if check.words in failing:
                        found.append((len(failing), abs(size - self.own[key]), key, size))
                    if failing == [check.words]:
                        break
            if not found:
                continue
            _, _, key, size = min(found)
            if known.setdefault((key, str(size)), check.words) != check.words or len(known) > _MOST_LIMITS:
                continue
            yield check.words, {**self.own, key: size}, self.nearest(self.own, key, size)
