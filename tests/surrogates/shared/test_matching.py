"""Each surrogate is asked once for each block, in planning, in the training check and in building together."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from torch import fx, nn

import repl_fx
from repl_fx.planning.policies import policy_of
from repl_fx.surrogates.shared.matching import Matches
from tests.nets import ConvNet, TokenNet, images, tokens

CANDIDATES = [type(candidate) for candidate in policy_of("auto").candidates]


def count_matches(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """How often each surrogate was asked for each block, from now on."""
    asked: Counter[tuple[str, str]] = Counter()
    for kind in CANDIDATES:

        def counted(self: Any, site: repl_fx.Site, match: Any = kind.match) -> Any:
            asked[self.key, site.block.name] += 1
            return match(self, site)

        monkeypatch.setattr(kind, "match", counted)
    return asked


def fail_to_build(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """Let one surrogate match, and then fail."""

    def broken(self: Any, site: Any, match: Any) -> tuple[fx.Node, ...]:
        raise IndexError("tuple index out of range")

    kind = next(kind for kind in CANDIDATES if kind.key == key)
    monkeypatch.setattr(kind, "build", broken)


@pytest.mark.parametrize("kind", [ConvNet, TokenNet])
def test_match_runs_once_a_block_and_candidate(kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = (ConvNet(depth=3), images()) if kind is ConvNet else (TokenNet(depth=3), tokens())
    asked = count_matches(monkeypatch)
    first = repl_fx.transform(model, (x,)).plan
    assert {asked[r.surrogate, r.block] for r in first.replacements} == {1} and set(asked.values()) == {1}
    # The training check goes on to the next choice.
    asked.clear()
    fail_to_build(monkeypatch, first.replacements[0].surrogate)
    second = repl_fx.transform(model, (x,)).plan
    assert second.replacements and first.replacements[0].surrogate not in {r.surrogate for r in second.replacements}
    assert set(asked.values()) == {1}
    # A plan from JSON knows no matches.
    asked.clear()
    repl_fx.transform(model, (x,), plan=repl_fx.Plan.from_json(second.to_json()))
    assert asked == {(r.surrogate, r.block): 1 for r in second.replacements}


def test_a_refusal_names_block_repeat_and_node() -> None:
    gm = repl_fx.capture(ConvNet(), (images(),))
    repeats = repl_fx.find_repeats(gm)
    matches = Matches(gm, repeats)
    site = matches.site("blocks.1", "blocks.0", "blocks.2")
    assert matches.site("blocks.1", "blocks.0", "blocks.2") is site
    reuse = next(candidate for candidate in policy_of("auto").candidates if candidate.key == "reuse")
    refusal = matches.of(reuse, site)
    assert isinstance(refusal, repl_fx.Refusal)
    assert (refusal.block, refusal.repeat) == ("blocks.1", "blocks")
    assert refusal.node in {node.name for node in site.block.nodes}
    with pytest.raises(repl_fx.PlanMismatch, match="the plan names block layer9, which this model does not have"):
        matches.site("layer9", "blocks.0", "blocks.2")
