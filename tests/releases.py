"""A mark for tests of what torch itself can only do in newer releases than the oldest that repl-fx takes."""

from __future__ import annotations

import pytest
import torch
from packaging.version import Version

OLD = Version(torch.__version__) < Version("2.13")


def fails_on_old_torch(reason: str) -> pytest.MarkDecorator:
    """Expect a test to fail on torch 2.11 and 2.12, for a reason that says what they lack."""
    return pytest.mark.xfail(OLD, reason=reason, strict=False)
