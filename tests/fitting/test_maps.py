"""Maps in a rewritten graph, by least squares and by the cosine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import repl_fx
from repl_fx.fitting.maps import MapFit, require_objective
from repl_fx.graph.recording import watched
from tests.nets import MlpNet

X = torch.randn(8, 4, 16)


@pytest.mark.parametrize("settings", [{}, {"rank": 4}, {"form": "scale"}, {"merged": True}], ids=str)
def test_by_the_cosine_the_stream_has_the_direction_of_the_originals(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net: Any = MlpNet(depth=4).eval()
    batches = [torch.randn(8, 4, 16) for _ in range(5)]
    result = repl_fx.transform(net, (X,), surrogate="linear", blocks=[3], settings=settings)
    squares = repl_fx.fit(result, batches)
    assert squares.surrogates[0].cosine_after is None and squares.surrogates[0].objective == "least-squares"
    found = repl_fx.fit(result, batches, objective="cosine")
    (one,) = found.surrogates
    assert one.cosine_before is not None and one.cosine_after is not None and one.cosine_after < one.cosine_before
    assert one.objective == "cosine" and "cosine distance" in str(found)
    # By the rows themselves.
    x = torch.cat(batches)
    seen: list[Any] = []
    rewritten: Any = result.graph_module.eval()
    last = next(node for node in rewritten.graph.nodes if node.target == "blocks.3.norm")
    with torch.no_grad():
        watched(rewritten, {last.args[0]: seen.append})(x)
        wanted = net.blocks[:3](net.embed(x))
    distance = 1 - F.cosine_similarity(seen[0], wanted, dim=-1).mean()
    assert float(distance) == pytest.approx(one.cosine_after, rel=1e-2)
    assert repl_fx.fit(result, batches, objective="cosine") == found


def test_an_unknown_objective_is_a_line() -> None:
    with pytest.raises(repl_fx.BadInput, match="objective is 'sine'; it can be least-squares or cosine"):
        require_objective("sine")


@pytest.mark.parametrize("merged", [False, True])
def test_the_values_that_a_map_needs(merged: bool) -> None:
    result = repl_fx.transform(MlpNet(depth=3), (X,), surrogate="linear", settings={"merged": merged})
    graph = result.one_by_one[""]
    node = next(node for node in graph.graph.nodes if str(node.target).endswith(".linear"))
    sums = MapFit(graph, node, merged, "least-squares")
    assert sums.given == MapFit.places(node, merged)
    assert (sums.stream is sums.value) is not merged
