"""Models in scripts that hold large, read-only and moving globals: captured or refused, and the script left alone.

Each script has some globals and a forward that names them, or not. A model is right or refused by name, and the globals
hold afterwards what the script put there, and what its threads have added since.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import repl_fx

HEAD = """
import functools, io, mmap, random, sys, tempfile, threading, time, types
import numpy as np
import torch
from torch import nn
import state_of_script as state

class Settings:
    def __init__(self):
        self.scale, self.count, self.images = 2.0, 0, images

    @property
    def next(self):
        self.count += 1
        return self.count

    @classmethod
    def more(cls):
        cls.total += 1
        return cls.total

    total = 0

def counted(x):
    log.append(1)
    return x * len(log)

def scaled(x):
    return x * settings.scale

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)))

    def batches(self):
        log.append(images.sum())
        return images

    def forward(self, x):
        x = self.layers(x)
        {forward}
        return x

images = np.arange(40_000.0)
pixels = np.frombuffer(bytes(range(256)), dtype=np.uint8)
scalar, objects = np.array(1.0), np.array([[1], "a", None], dtype=object)
numbers, words, lists = list(range(50_000)), {{str(i): i for i in range(50_000)}}, [[i] for i in range(20_000)]
log, frozen = [], tuple(range(50_000))
file, lines, view = io.StringIO("a"), (i for i in range(9)), memoryview(bytearray(b"abc"))
lock, mapped = threading.Lock(), mmap.mmap(-1, 16)
COUNT, FLAGS, settings = 0, {{"on": [False]}}, Settings()
table = {{"counted": functools.partial(counted)}}
space = types.SimpleNamespace(scale=2.0, images=images, calls=0)
"""
STATE = "counter = 0\ntable = [0]\ndef count(x):\n    global counter\n    counter += 1\n    return x * counter\n"

# By what the forward does: whether it is right, or else which state the refusal names.
KINDS: dict[str, tuple[str, str | None]] = {
    "names none": ("pass", None),
    "attributes of the names of globals": ("x = x + x.data.numpy().images if hasattr(x, 'images') else x", None),
    "reads a list": ("x = x * numbers[3] + len(numbers)", None),
    "reads an array": ("x = x * float(images[3]) + torch.from_numpy(images)[:4].to(x)", None),
    "reads a read-only array": ("x = x * torch.tensor(pixels)[:4]", None),
    "reads a dict": ("x = x * words.get('3')", None),
    "reads a tuple": ("x = x + frozen[2]", None),
    "reads an object": ("x = scaled(x) * space.scale", None),
    "holds a lock": ("with lock:\n            x = x + 1", None),
    "looks at a scalar array": ("x = x * float(scalar)", None),
    "has objects in an array": ("x = x * len(objects)", None),
    "global": ("global COUNT; COUNT += 1; x = x * COUNT", "COUNT"),
    "made name": ("globals()['CO' + 'UNT'] += 1; x = x * COUNT", "COUNT"),
    "constant name": ("setattr(settings, 'count', settings.count + 1); x = x * settings.count", "count"),
    "object": ("settings.count += 1; x = x * settings.count", "count"),
    "property": ("x = x * settings.next", "count"),
    "class": ("x = x * Settings.more()", "total"),
    "function in a dict": ("x = table['counted'](x)", "log"),
    "function that is defined within": ("add = lambda: log.append(1); add(); x = x * len(log)", "log"),
    "namespace": ("space.calls += 1; x = x * space.calls", "calls"),
    "nested list": ("FLAGS['on'][0] = not FLAGS['on'][0]; x = x * (1 + FLAGS['on'][0])", "FLAGS"),
    "item under a name": ("on = FLAGS['on']; on.append(1); x = x * len(on)", "FLAGS"),
    "grows a large list": ("numbers.append(1); x = x * len(numbers)", "numbers"),
    "writes a large list": ("numbers[0] += 1; x = x * numbers[0]", "numbers"),
    "writes a list in a large one": ("lists[7].append(1); x = x * len(lists[7])", "lists"),
    "writes a large dict": ("words['3'] += 1; x = x * words['3']", "words"),
    "writes a large array": ("images[3] += 1; x = x * float(images[3])", "images"),
    "writes by a view": ("row = images[2:4]; row += 1; x = x * float(images[3])", "images"),
    "writes by a tensor": ("torch.from_numpy(images).add_(1); x = x * float(images[3])", "images"),
    "writes a scalar array": ("scalar[...] = scalar + 1; x = x * float(scalar)", "scalar"),
    "writes an array of objects": ("objects[1] = object(); x = x * (id(objects[1]) % 7)", "objects"),
    "binds a large tuple": ("global frozen; frozen = (*frozen, 1); x = x * len(frozen)", "frozen"),
    "another file": ("state.counter += 1; x = x * state.counter", "counter"),
    "a list of another file": ("state.table[0] += 1; x = x * state.table[0]", "table"),
    "a function of another file": ("x = state.count(x)", "counter"),
    "imports in the forward": ("import state_of_script as s; s.counter += 1; x = x * s.counter", "counter"),
    "draws from a generator": ("x = x * next(lines)", "lines"),
}


@pytest.fixture
def script(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """The script as a module; the file that it imports beside it."""
    forward = request.param
    with pytest.MonkeyPatch.context() as patch:
        for name, text in {"state_of_script": STATE, "script": HEAD.format(forward=forward)}.items():
            (tmp_path / f"{name}.py").write_text(text)
            spec = importlib.util.spec_from_file_location(name, tmp_path / f"{name}.py")
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            patch.setitem(sys.modules, name, module)
            spec.loader.exec_module(module)
        yield module


def content(script: Any) -> list[str]:
    """All that the globals hold."""
    held = {name: value for name, value in vars(script).items() if not name.startswith("__")}
    held |= (
        {"total": script.Settings.total}
        | vars(script.settings)
        | vars(script.space)
        | {"state": (script.state.counter, script.state.table)}
    )
    return [f"{n}: {v.tobytes() if hasattr(v, 'tobytes') else v}" for n, v in held.items()]


@pytest.mark.parametrize(("script", "state"), list(KINDS.values()), ids=list(KINDS), indirect=["script"])
def test_a_script_is_left_alone(script: Any, state: str | None) -> None:
    model, x = script.Net(), torch.randn(3, 4)
    before = content(script)
    if state is None:
        gm = repl_fx.capture(model, (x,))
        assert repl_fx.check_capture(model, gm, (x,))
        assert next(script.lines) == 0
    else:
        with pytest.raises(repl_fx.CaptureError, match=rf"Python state .*: .*{state}"):
            repl_fx.capture(model, (x,))
    assert content(script) == before
    assert script.file.read() == "a" and not script.lock.locked()


@pytest.mark.parametrize("script", ["pass", "x = x * (1 + len(images))"], indirect=True)
def test_threads_go_on_meanwhile(script: Any) -> None:
    """Nothing that a thread adds is taken back, and it is no state of a model that does not name it."""
    done = threading.Event()

    def work() -> None:
        for number in range(10**9):
            script.log.append(number)
            script.COUNT, script.settings.count, script.images[0] = number, number, number
            if done.wait(0.001):
                return

    thread = threading.Thread(target=work)
    thread.start()
    try:
        model, x = script.Net(), torch.randn(3, 4)
        result = repl_fx.transform(model, (x,), surrogate="identity")
        assert result.plan.replacements
        time.sleep(0.01)
    finally:
        done.set()
        thread.join()
    assert script.log == list(range(len(script.log))) and len(script.log) > 10
    assert script.COUNT == script.settings.count == script.images[0] == script.log[-1]


@pytest.mark.parametrize(
    "script", ["time.sleep(0.003)\n        for value in log[-2:]:\n            x = x + value"], indirect=True
)
def test_what_a_forward_reads_and_a_thread_moves_is_refused_and_not_taken_back(script: Any) -> None:
    done = threading.Event()

    def work() -> None:
        while not done.wait(0.0005):
            script.log.append(len(script.log))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        with pytest.raises(repl_fx.CaptureError, match=r"Python state .*\.log"):
            repl_fx.capture(script.Net(), (torch.randn(3, 4),))
    finally:
        done.set()
        thread.join()
    assert script.log == list(range(len(script.log)))


@pytest.mark.parametrize("script", ["pass"], indirect=True)
def test_what_hooks_do_to_a_script_is_taken_back(script: Any) -> None:
    model, x = script.Net(), torch.randn(3, 4)
    layer, weight = model.layers[0][0], model.layers[1][0].weight
    layer.register_forward_hook(lambda module, args, result: (script.counted(result), None)[1])
    model.layers[1][0].register_full_backward_hook(lambda module, given, taken: script.numbers.append(1))
    weight.register_hook(lambda gradient: script.words.pop("3", None) and None)
    before = content(script)
    gm = repl_fx.capture(model, (x,))
    assert repl_fx.check_capture(model, gm, (x,))
    assert content(script) == before
    model(x).sum().backward()
    assert script.log and script.numbers[-1] == 1 and "3" not in script.words


@pytest.mark.parametrize("script", ["x = x * float(images[3]) * numbers[3]", "pass"], indirect=True)
def test_what_is_large_and_not_written_is_not_copied(script: Any) -> None:
    script.images = script.pixels = script.np.zeros(4_000_000)
    script.numbers = list(range(1_000_000))
    model, x = script.Net(), torch.randn(3, 4)
    repl_fx.capture(script.Net(), (x,))
    tracemalloc.start()
    try:
        repl_fx.capture(model, (x,))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A copy of the list alone takes 8 MB.
    assert peak < 6e6, peak
