"""Running libraries that say more than users can act on."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager


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
    with ExitStack() as stack:
        for logger in map(logging.getLogger, loggers):
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(least)
        stack.enter_context(warnings.catch_warnings())
        for package in packages:
            warnings.filterwarnings("ignore", module=rf"{package}(\.|$)")
        for message in messages:
            warnings.filterwarnings("ignore", message=message)
        yield
