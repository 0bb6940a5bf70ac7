"""Questions of a forward that a trace answers otherwise than a run would.

Some models ask `torch.compiler.is_exporting()` and compute otherwise then: with a mask of ones where they use none when
they run, for instance, which other kernels answer for. A graph of that is not the model, to the last bit. Likewise
with `torch.compiler.is_compiling()`, where a graph of the one answer is tried before the other.

Some ask for a setting of torch that the caller makes: whether gradients are enabled, the default dtype. The trace has
one answer; the graph then refuses calls under the other, unless model and graph compute the same there.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from repl_fx._torch import import_dynamo
from repl_fx.graph.captured import copy_graph
from repl_fx.graph.runtime import SETTINGS, check_setting
from repl_fx.passes.driver import Result
from repl_fx.running.collection import collection_paused
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.meanwhile import set_by
from repl_fx.running.untouched import device_of, no_autocast, outcome_of
from repl_fx.tracing.asking import asking_code, line_of
from repl_fx.tracing.side_by_side import SideBySide, are_close


@contextmanager
def answering(owner: Any, **functions: Any) -> Iterator[None]:
    """Put functions of one's own in the place of torch's for a while.

    Dynamo knows torch's functions by identity, from when it is imported, which a trace does: functions that stand there
    meanwhile it would take for torch's, and refuse to compile calls of torch's own ever after.
    """
    with collection_paused():
        import_dynamo()
    with patch.multiple(owner, **functions):
        yield


class Told:
    """Answers code of the model's what it asks torch.compiler about the trace that goes on.

    Args:
        question: a function of torch.compiler, such as `is_exporting`.
        answer: None for torch's own.

    Attributes:
        asked: the line of the model that asks; empty where none does.
    """

    def __init__(self, question: str, answer: bool | None) -> None:
        self.asked = ""
        self._question, self._answer = question, answer

    @contextmanager
    def answered(self) -> Iterator[None]:
        """Answer all code but torch's own and this package's."""
        own: Callable[[], bool] = getattr(torch.compiler, self._question)

        def tell() -> bool:
            if (frame := asking_code()) is None:
                return own()
            self.asked = self.asked or line_of(frame)
            return own() if self._answer is None else self._answer

        with answering(torch.compiler, **{self._question: tell}):
            yield


@contextmanager
def autocast_cache_as_outside() -> Iterator[None]:
    """Have autocast regions that a trace meets keep casts as they would outside of it.

    A trace switches that off, and regions that do not say whether to keep casts note what is set when they are made.
    """
    own = torch.is_autocast_cache_enabled()
    answers: Any = {"is_autocast_cache_enabled": lambda: own, "set_autocast_cache_enabled": lambda enabled: None}
    with set_by(torch.set_autocast_cache_enabled, False, own), answering(torch, **answers):
        yield


# Settings of torch that a model asked for, by name and arguments, each with the answer and the place that asks.
Settings = dict[tuple[str, tuple[str, ...]], tuple[Any, str]]
_OF_A_DEVICE = ("is_autocast_enabled", "get_autocast_dtype")


@contextmanager
def settings_asked(asked: Settings) -> Iterator[None]:
    """Note in `asked` the settings of torch that the model's own code asks for.

    Answers that a region of the model's own makes, such as `torch.no_grad`, are none of the caller's.
    """
    autocast = {kind: torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")}
    before = {name: function() for name, function in SETTINGS.items() if name not in _OF_A_DEVICE}

    def callers(name: str, given: tuple[str, ...], found: Any) -> bool:
        if name not in _OF_A_DEVICE:
            return bool(found == before[name])
        kind = given[0] if given else "cuda"
        return torch.is_autocast_enabled(kind) is autocast.get(kind, False)

    def noting(name: str) -> Any:
        def answer(*given: str) -> Any:
            found = SETTINGS[name](*given)
            if (frame := asking_code()) is not None and callers(name, given, found):
                asked.setdefault((name, given), (found, f" at {line_of(frame)}"))
            return found

        return answer

    with answering(torch, **{name: noting(name) for name in SETTINGS}):
        yield


def require_settings_(gm: fx.GraphModule, model: nn.Module, inputs: ExampleInputs, asked: Settings) -> Result:
    """Let a graph refuse other settings of torch that its model asked for, where it computes otherwise under them.

    Args:
        gm: the graph captured from the model, changed in place.
        model: it runs on copies of the example inputs, and is not changed.
        asked: from `settings_asked`.
    """
    added = []
    device = device_of(model, inputs).type
    for (setting, given), (answer, place) in asked.items():
        if setting in _OF_A_DEVICE and given != (device,):
            continue
        if not _same_under(partial(_OTHERWISE[setting], *given), gm, model, inputs):
            first = next(node for node in gm.graph.nodes if node.op != "placeholder")
            with gm.graph.inserting_before(first):
                node = gm.graph.call_function(check_setting, (setting, given, answer, place))
            node.meta["val"] = None
            added.append(node.name)
    return Result(gm, tuple(added))


def _same_under(
    setting: Callable[[], AbstractContextManager[object]], gm: fx.GraphModule, model: nn.Module, inputs: ExampleInputs
) -> bool:
    if device_of(model, inputs).type == "meta":
        return False
    trial, trials = copy_graph(gm), SideBySide(model, gm, setting)
    # Where the model itself does not run, its graph cannot be wrong.
    return all(trials.same(trial, inputs, training) is not False for training in (True, False))


# Settings that a function sets: the function, and another value than one that it has.
_SET: Mapping[str, tuple[Callable[[Any], object], Callable[[Any], Any]]] = {
    "are_deterministic_algorithms_enabled": (torch.use_deterministic_algorithms, operator.not_),
    "get_default_dtype": (torch.set_default_dtype, lambda d: torch.float32 if d is torch.float64 else torch.float64),
    "get_num_threads": (torch.set_num_threads, lambda count: 2 if count == 1 else 1),
    "get_float32_matmul_precision": (
        torch.set_float32_matmul_precision, lambda precision: "high" if precision == "highest" else "highest"
    ),
}  # fmt: skip


def _set_otherwise(setting: str) -> AbstractContextManager[None]:
    """Another setting of torch for the time of a context."""
    (make, other), now = _SET[setting], SETTINGS[setting]()
    return set_by(make, other(now), now)


# Contexts in which a setting has another answer than outside.
_OTHERWISE: Mapping[str, Callable[..., AbstractContextManager[object]]] = {
    "is_grad_enabled": torch.no_grad,
    "is_inference_mode_enabled": torch.inference_mode,
    **{setting: partial(_set_otherwise, setting) for setting in _SET},
    "is_autocast_enabled": partial(torch.autocast, dtype=torch.bfloat16),
    "get_autocast_dtype": lambda device: torch.autocast(
        device, torch.float16 if torch.get_autocast_dtype(device) is torch.bfloat16 else torch.bfloat16
    ),
}


def computes_the_same(gm: fx.GraphModule, model: nn.Module, inputs: ExampleInputs) -> bool:
    """Tell whether a graph returns the same as its model in evaluation mode, to the bit, or the model does not run."""
    return SideBySide(model, gm).same(copy_graph(gm), inputs, training=False) is not False


def computes_alike(gm: fx.GraphModule, model: nn.Module, inputs: ExampleInputs, training: bool = False) -> bool:
    """Tell whether a graph returns the same as its model in one mode, but for the rounding of other kernels."""
    trial = copy_graph(gm)
    if SideBySide(model, gm).returned(trial, inputs, training) is not None:
        return True
    # In a lower precision other kernels round to other values than these bounds allow.
    with no_autocast(device_of(model, inputs)):
        return are_close(outcome_of(model, inputs, training), outcome_of(trial, inputs, training), 1e-3, 1e-4)


def stops_alike(gm: fx.GraphModule, model: nn.Module, inputs: ExampleInputs) -> bool:
    """Tell whether a graph stops at inputs, such as of other sizes, at which its model stops."""
    trial = copy_graph(gm)
    return (
        SideBySide(model, gm).returned(trial, inputs) is not None
        or outcome_of(model, inputs, False).problem is None
        or outcome_of(trial, inputs, False).problem is not None
    )


def is_bounded(program: ExportedProgram) -> bool:
    """Tell whether a trace went a way that only sizes up to a limit go, such as a text shorter than a window."""
    ranges = program.range_constraints.values()
    return any(bounds.upper.is_Integer and bounds.lower != bounds.upper for bounds in ranges)
