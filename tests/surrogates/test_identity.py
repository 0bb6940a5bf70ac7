"""`identity`: the block is taken out, and what went in comes out."""

from __future__ import annotations

import pytest
from torch import fx

from repl_fx.errors import BadInput
from repl_fx.plan import Refusal
from repl_fx.surrogates import make_surrogate
from repl_fx.surrogates.shared.builder import Builder, Rewriting
from tests.sites import layer_site


def test_the_input_is_the_output() -> None:
    site, identity = layer_site(8), make_surrogate("identity")
    match = identity.match(site)
    assert not isinstance(match, Refusal) and match.kept_parameters == ()
    made: tuple[fx.Node, ...] = identity.build(Builder(Rewriting(site.graph_module), site, "identity"), match)
    assert made == site.block.inputs


def test_a_block_that_changes_the_size_is_refused() -> None:
    site = layer_site(16)
    refusal = make_surrogate("identity").match(site)
    # A map behind it may take what it took.
    opening = make_surrogate("identity", {"in_stretch": True})
    assert not isinstance(opening.match(site), Refusal)
    with pytest.raises(BadInput, match="identity: in_stretch is 1; it can be true or false"):
        make_surrogate("identity", {"in_stretch": 1})
    assert refusal == Refusal("net.1", "net", "it turns (2, 8) into (2, 16)", site.block.output.name)
