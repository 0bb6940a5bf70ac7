"""Kinds of specifications that a user registers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repl_fx.errors import BadInput
from repl_fx.sources import Built, Request, known_sources, load_source, register_source
from repl_fx.sources.registry import _REGISTRY, code_of, is_source


@pytest.mark.parametrize("prefix", ["", "c", "a-b", "two words"])
def test_a_prefix_that_no_specification_can_begin_with(prefix: str) -> None:
    with pytest.raises(BadInput, match="cannot stand before the colon"):
        register_source(prefix)


def test_what_is_registered_builds_its_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_REGISTRY, "shop", (lambda request: Built(nn.Identity()), None))
    monkeypatch.delitem(_REGISTRY, "shop")
    assert not is_source("shop") and code_of("shop") is None

    @register_source("shop", code=lambda name: {})
    def build(request: Request) -> Built:
        return Built(nn.Linear(3, int(request.name)), (torch.ones(2, 3),))

    assert is_source("shop") and "shop" in known_sources() and code_of("shop") is not None
    source = load_source("shop:5")
    assert source.model(*source.args).shape == (2, 5) and source.absolute == "shop:5"
