"""Libraries that say too much, and others that may."""

from __future__ import annotations

import logging
import warnings

import pytest

from repl_fx.running.hushed import hushed


def test_hushed_libraries_say_nothing_and_others_do(caplog: pytest.LogCaptureFixture) -> None:
    noisy, mine = logging.getLogger("noisy_library"), logging.getLogger("mine")
    level = noisy.level
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with hushed(["noisy_library"], ["noisy_library"], ["soon gone"]):
            noisy.warning("of itself")
            mine.warning("of the user")
            warnings.warn_explicit("old", UserWarning, "file.py", 1, module="noisy_library.inner")
            warnings.warn("soon gone", stacklevel=1)
            warnings.warn("kept", stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["kept"]
    assert caplog.messages == ["of the user"]
    assert noisy.level == level
