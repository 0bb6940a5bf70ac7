"""Ctrl-C while a model file runs, and a KeyboardInterrupt of the file itself."""

from __future__ import annotations

import signal
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from repl_fx.errors import SourceError
from repl_fx.sources import load_source
from repl_fx.sources.interrupts import interrupts
from tests.sources.model_file import MODEL, Write, run


@pytest.fixture
def _interrupts() -> Iterator[None]:
    """Python's own handler of Ctrl-C, which a process that a shell started in the background has not."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("_interrupts")
@pytest.mark.parametrize("where", ["import", "model"])
def test_ctrl_c_still_interrupts(write: Write, where: str) -> None:
    press = "import signal\nsignal.raise_signal(signal.SIGINT)\n"
    body = textwrap.indent(press, "    ")
    code = (
        press + MODEL if where == "import" else MODEL.replace("def model(width=8):\n", f"def model(width=8):\n{body}")
    )
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        load_source(str(write(code)))
    assert signal.getsignal(signal.SIGINT) is handler
    # A KeyboardInterrupt that the file raises later is not taken for it.
    with pytest.raises(SourceError, match="KeyboardInterrupt"):
        load_source(str(write("raise KeyboardInterrupt\n")))


def test_a_file_may_be_loaded_in_another_thread(write: Write) -> None:
    good, bad = str(write(MODEL)), str(write("raise KeyboardInterrupt\n", "bad.py"))
    with ThreadPoolExecutor(1) as pool:
        assert run(pool.submit(load_source, good).result()).shape == (2, 8)
        assert isinstance(pool.submit(load_source, bad).exception(), SourceError)


def test_a_handler_of_the_file_stays(write: Write) -> None:
    handler = signal.getsignal(signal.SIGINT)
    try:
        load_source(str(write(f"import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n{MODEL}")))
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("_interrupts")
def test_ctrl_c_is_told_from_a_keyboard_interrupt_that_is_raised() -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupts() as raised:
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), interrupts() as pressed:
        signal.raise_signal(signal.SIGINT)
    assert (raised(), pressed()) == (False, True)
    assert signal.getsignal(signal.SIGINT) is handler
