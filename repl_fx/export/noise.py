"""Messages of the exporter and the runtime beside their results: warnings and log lines."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# The exporter and what it calls warn of their own deprecations and log what they skip; nothing of it is the user's to
# act on, and what is really wrong comes as an exception.
_NOISY = ("torch", "onnxscript", "onnx_ir", "onnx")
_NOISY_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


@contextmanager
def quiet() -> Iterator[None]:
    """Drop the warnings and log lines of the exporter's own packages, and nobody else's."""
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            for package in _NOISY:
                warnings.filterwarnings("ignore", module=rf"{package}(\.|$)")
            # Copying a pytree specification warns in the name of the standard library.
            warnings.filterwarnings("ignore", message=".*treespec, LeafSpec")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
