"""Tests for repl_fx.tracing.asking: whose code asks."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from repl_fx.tracing.asking import asking_code, first_argument, is_machinery, is_models_code, line_of, outwards


def _asked() -> Any:
    return asking_code()


def _watch() -> Any:
    """A function with the name of a mode's."""
    return _asked()


def _function_in(module: str) -> Any:
    """A function of another module's that asks."""
    made: dict[str, Any] = {"__name__": module, "ask": _asked}
    exec("def forward(x):\n    return ask()", made)
    return made["forward"]


def test_the_code_that_called_asks_past_the_modes_of_a_trace() -> None:
    watch = _watch
    watch.__code__ = watch.__code__.replace(co_name="watch")
    for ask in (_asked, watch):
        frame = ask()
        assert frame is sys._getframe()
        assert line_of(frame).startswith(f"{__file__}, line ")


def test_torch_answers_for_itself_and_a_models_module_does_not() -> None:
    assert _function_in("torch.nn.modules.linear")(0) is None
    assert _function_in("repl_fx.tracing.capture")(0) is None
    assert _function_in("timm.models.vit")(0).f_globals["__name__"] == "timm.models.vit"


def test_a_models_code_stands_in_a_file_of_neither_torch_nor_python() -> None:
    frame = sys._getframe()
    assert is_models_code(frame)
    assert not is_machinery(frame)
    assert not is_machinery(None)
    # Code that is in no file, such as a notebook's deleted cell, has no line to name.
    assert not is_models_code(_function_in("cell")(0))


def test_frames_are_followed_to_the_outermost_and_know_their_module() -> None:
    class Net(nn.Module):
        def forward(self, x: int) -> Any:
            return sys._getframe()

    net = Net()
    frame = net.forward(1)
    assert first_argument(frame) is net
    assert list(outwards(frame))[:2] == [frame, sys._getframe()]
