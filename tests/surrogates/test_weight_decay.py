"""The usual ways to group parameters for weight decay leave out the gains and biases of every surrogate."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from tests.nets import rewritten
from tests.surrogates.nets import NETS

# The weights in the proper sense that a surrogate has of its own; all else that it has is thin.
_REWRITES: list[tuple[str, str, Mapping[str, Any], tuple[str, ...]]] = [
    ("tokens", "identity", {}, ()),
    ("tokens", "bottleneck", {}, ()),
    ("tokens", "bottleneck", {"weights": "own"}, ("weight_in", "weight_out")),
    ("tokens", "blend", {}, ()),
    ("tokens", "blend", {"per": "tensor"}, ()),
    ("tokens", "coarse", {}, ()),
    ("tokens", "reuse", {}, ("weight_out",)),
    ("batch norm", "bottleneck", {}, ()),
    ("batch norm", "blend", {}, ()),
    ("batch norm", "coarse", {}, ()),
    ("batch norm", "slim", {}, ()),
    ("tokens", "narrow", {}, ("weight_0", "weight_1")),
    ("batch norm", "slim", {"weights": "own"}, ("weight_0", "weight_1")),
    ("layer scale", "bottleneck", {}, ()),
    ("layer scale", "slim", {}, ()),
    ("bare weights", "blend", {}, ()),
]
_IDS = [" ".join((net, surrogate, *settings.values())) for net, surrogate, settings, _ in _REWRITES]


@pytest.fixture
def timm_optim() -> ModuleType:
    """The grouping of timm."""
    pytest.importorskip("timm")
    return importlib.import_module("timm.optim")


def _own_weights(module: nn.Module, parameters: Iterable[nn.Parameter]) -> set[str]:
    """Those of the surrogates' own parameters that are among the given ones, by their last names."""
    given = {id(parameter) for parameter in parameters}
    own = [(name, p) for name, p in module.named_parameters() if name.startswith("surrogates.")]
    return {name.rpartition(".")[2] for name, p in own if id(p) in given}


@pytest.mark.parametrize(("net", "surrogate", "settings", "weights"), _REWRITES, ids=_IDS)
def test_only_what_has_two_dimensions_decays(
    net: str, surrogate: str, settings: Mapping[str, Any], weights: tuple[str, ...]
) -> None:
    model, x = NETS[net]()
    gm = rewritten(model, x, surrogate, settings).graph_module
    assert surrogate == "identity" or any(n.startswith("surrogates.") for n, _ in gm.named_parameters())
    decayed = [p for n, p in gm.named_parameters() if p.ndim > 1 and not n.endswith(".bias")]
    assert _own_weights(gm, decayed) == set(weights)


@pytest.mark.parametrize(("net", "surrogate", "settings", "weights"), _REWRITES, ids=_IDS)
def test_timm_groups_likewise(
    net: str, surrogate: str, settings: Mapping[str, Any], weights: tuple[str, ...], timm_optim: ModuleType
) -> None:
    model, x = NETS[net]()
    gm = rewritten(model, x, surrogate, settings).graph_module
    groups = timm_optim.param_groups_weight_decay(gm, weight_decay=0.1)
    assert _own_weights(gm, next(g["params"] for g in groups if g["weight_decay"])) == set(weights)
    optimizer = timm_optim.create_optimizer_v2(gm, opt="adamw", lr=1e-3, weight_decay=0.1)
    assert _own_weights(gm, next(g["params"] for g in optimizer.param_groups if g["weight_decay"])) == set(weights)
    gm(x).square().mean().backward()
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in gm.parameters())
