"""What holds for every test: fixed seeds, and no GPU test without a GPU."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import random
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import settings

import repl_fx
from repl_fx.surrogates.shared import surrogate as registry
from tests.captures import shared

# A terminal is not for the bars of a thousand calls.
os.environ["REPL_FX_PROGRESS"] = "0"
# Lightning has torch ask NVIDIA's library for devices. Where there is none, each operator on fake tensors looks for its
# file again, a tenth of a capture.
if not torch.cuda.is_available():
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# Torch writes a record of each trace, stacks and all, where that logger has handlers, and pytest gives some to loggers
# that do not propagate: a twentieth of a capture.
logging.getLogger("torch.__trace").propagate = True

# The same examples on every run, so that a failure in CI is a failure here; no deadline, as the first capture is slow.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")


def pytest_configure(config: pytest.Config) -> None:
    """Look at everything again last of all: libraries in C++ tell at the end of a process what nobody freed."""
    config.add_cleanup(gc.unfreeze)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let `tests/attack` run for longer than the default suite has time for."""
    parser.addoption("--attack-minutes", type=float, default=0.0, help="judge further random networks for this long")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start every test from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _traces_shared(request: pytest.FixtureRequest) -> Iterator[None]:
    """Trace models that are alike once in a process (`tests.captures`), but in files that say `TRACED_ALONE`."""
    capturing = importlib.import_module("repl_fx.tracing.capture")
    alone = getattr(request.module, "TRACED_ALONE", request.path.is_relative_to(Path(__file__).parent / "tracing"))
    alone = alone or "traces" in request.fixturenames
    patches = request.getfixturevalue("monkeypatch")._setattr if "monkeypatch" in request.fixturenames else ()
    trace = shared(capturing.trace_by_first, patches)
    with nullcontext() if alone else patch.object(capturing, "trace_by_first", trace):
        yield


@pytest.fixture
def own_surrogates() -> Iterator[None]:
    """Forget the surrogates that a test registers, which other tests of the process would meet."""
    known = repl_fx.known_surrogates()
    yield
    for key in set(repl_fx.known_surrogates()) - set(known):
        del registry._REGISTRY[key]


@pytest.fixture
def detection() -> ModuleType:
    """The detection models of torchvision."""
    pytest.importorskip("torchvision")
    return importlib.import_module("torchvision.models.detection")


COLLECTED = pytest.StashKey[tuple[int, int]]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Count the tests, and those marked `slow`, before any are left out."""
    slow = sum(item.get_closest_marker("slow") is not None for item in items)
    config.stash[COLLECTED] = slow, len(items)


@pytest.fixture
def collected(request: pytest.FixtureRequest) -> tuple[int, int]:
    """How many of the tests of this run are marked `slow`, and how many there are with those that are left out."""
    return request.config.stash[COLLECTED]


def pytest_collection_finish() -> None:
    """Leave what was imported out of the searches for reference cycles, which took a tenth of the time."""
    gc.collect()
    gc.freeze()
    # Searches among all that tests keep took most of the rest.
    gc.set_threshold(700, 10, 60)
    if "torch._export.utils" in sys.modules:
        _list_composite_operators_once()


def _list_composite_operators_once() -> None:
    """Make torch look up its composite operators where there are new ones, not 70 times in each export."""
    utils: Any = sys.modules["torch._export.utils"]
    look_up = utils._materialize_cpp_cia_ops
    known: list[str] = []

    def look_up_new() -> None:
        found = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
        if found != known:
            look_up()
            known[:] = found

    utils._materialize_cpp_cia_ops = look_up_new


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `gpu` where there is none."""
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
