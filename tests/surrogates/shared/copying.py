"""Blocks on channels computed by copies, to compare with those that write into the stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from repl_fx.surrogates.shared import channels


@contextmanager
def copying() -> Iterator[None]:
    """As where nothing may be written to."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(channels, "_written", lambda total: False)
        yield
