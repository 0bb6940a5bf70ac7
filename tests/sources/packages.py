"""Marks of tests that need a package which makes models."""

from __future__ import annotations

import importlib.util

import pytest


def needs(package: str) -> list[pytest.MarkDecorator]:
    """The `pytestmark` of a file whose tests build models of a package."""
    missing = importlib.util.find_spec(package) is None
    return [pytest.mark.zoo, pytest.mark.skipif(missing, reason=f"{package} is not installed")]
