"""Surrogates, which stand in for replaced blocks. One a file; importing this package registers them all."""

from repl_fx.surrogates import blend, bottleneck, coarse, identity, linear, narrow, reuse, slim
from repl_fx.surrogates.shared.builder import Builder
from repl_fx.surrogates.shared.site import Site
from repl_fx.surrogates.shared.surrogate import (
    Match,
    Surrogate,
    Traits,
    known_surrogates,
    make_surrogate,
    register_surrogate,
)
from repl_fx.surrogates.shared.synthesis import Synthesis, shared_synthesis

__all__ = [
    "Builder",
    "Match",
    "Site",
    "Surrogate",
    "Synthesis",
    "Traits",
    "blend",
    "bottleneck",
    "coarse",
    "identity",
    "known_surrogates",
    "linear",
    "make_surrogate",
    "narrow",
    "register_surrogate",
    "reuse",
    "shared_synthesis",
    "slim",
]
