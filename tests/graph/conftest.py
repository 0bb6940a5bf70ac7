"""A captured graph for the tests of this folder."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from repl_fx.tracing.capture import capture
from tests.graph.nets import Model


@pytest.fixture
def gm() -> fx.GraphModule:
    return capture(Model(), (torch.randn(3, 8),))
