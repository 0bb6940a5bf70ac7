"""Running libraries that say more than users can act on."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def hushed(
    packages: Sequence[str], loggers: Sequence[str], messages: Sequence[str] = (), least: int = logging.ERROR
) -> Iterator[None]:
    """Drop warnings and log lines of libraries that users cannot act on, and nobody else's.

    Args:
        packages: whose warnings are dropped, with those of their modules.
        loggers: that tell of errors alone.
        messages: patterns of warnings that are dropped whoever gives them.
        least: level of log lines that are kept.
    """
    named = [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in named]
    try:
        for logger in named:
            logger.setLevel(least)
        with warnings.catch_warnings():
            for package in packages:
                warnings.filterwarnings("ignore", module=rf"{package}(\.|$)")
            for message in messages:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(named, levels, strict=True):
            logger.setLevel(level)
