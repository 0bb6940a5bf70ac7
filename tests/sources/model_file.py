"""A model file, and what its model computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from repl_fx.sources import Source

Write = Callable[..., Path]

MODEL = """
import torch
from torch import nn

def model(width=8):
    return nn.Linear(4, width)

def example_inputs():
    return (torch.randn(2, 4),)
"""


def run(source: Source) -> Any:
    with torch.no_grad():
        return source.model.eval()(*source.args, **source.kwargs)
