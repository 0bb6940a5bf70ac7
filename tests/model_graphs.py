"""The document of a small transformed model, which tests of reports share: building it once is most of a test."""

from __future__ import annotations

from functools import cache

import torch

from repl_fx.report.model_graph.building import document_of_result
from repl_fx.report.model_graph.document import Document
from tests.captures import transformed
from tests.nets import TokenNet

TOKENS = torch.zeros(2, 4, 16)


@cache
def small_document() -> Document:
    """The document of three transformer blocks, of which `blocks.1` is replaced by `bottleneck`."""
    torch.manual_seed(0)
    return document_of_result(transformed(TokenNet(depth=3), (TOKENS,), surrogate="bottleneck"), "net.py")
