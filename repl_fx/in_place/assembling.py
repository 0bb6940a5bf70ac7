"""The model in place: a copy of the source's module tree with surrogates at the places of the replaced blocks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from repl_fx.graph.captured import CapturedModule
from repl_fx.in_place.inner_values import InnerValues
from repl_fx.in_place.state_elsewhere import StateElsewhere
from repl_fx.tracing.parts.capture import assemble


def with_surrogates(source: nn.Module, pieces: Mapping[str, CapturedModule]) -> nn.Module:
    """A copy of a model's tree with surrogates, by path, in place of modules; parameters and buffers are shared."""
    model = assemble(source, pieces)
    for piece in pieces.values():
        for module in piece.children():
            if isinstance(module, (StateElsewhere, InnerValues)):
                module.belong_to(model)
    return model
