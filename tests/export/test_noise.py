"""What is dropped of the exporter's words, and of nobody else's."""

from __future__ import annotations

import logging
import warnings

import pytest

from repl_fx.export.noise import quiet


def test_log_levels_are_what_they_were(caplog: pytest.LogCaptureFixture) -> None:
    exporter, other = logging.getLogger("torch.onnx"), logging.getLogger("a user's")
    before = exporter.level
    exporter.setLevel(logging.DEBUG)
    try:
        with pytest.raises(ValueError, match="wrong"), quiet():
            exporter.warning("skipped")
            exporter.error("failed")
            other.warning("mine")
            raise ValueError("wrong")
        assert exporter.level == logging.DEBUG
        assert caplog.messages == ["failed", "mine"]
    finally:
        exporter.setLevel(before)


def test_warnings_of_others_are_heard() -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with quiet():
            warnings.warn_explicit("old", DeprecationWarning, "core.py", 1, module="torch.onnx.core")
            warnings.warn_explicit("kept", UserWarning, "torchless.py", 1, module="torchless")
    assert [str(warning.message) for warning in heard] == ["kept"]
