"""Each surrogate is asked once for each block, in planning, in the training check and in building together."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import fx, nn

import repl_fx
from repl_fx.pipeline import Options, rewrite
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.surrogates.auto import AutoConfig
from repl_fx.surrogates.shared.matching import Matches
from tests.nets import ConvNet, TokenNet, images, tokens

CANDIDATES = [type(candidate) for candidate in AutoConfig().candidates()]


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
    model, x = (ConvNet(depth=5), images()) if kind is ConvNet else (TokenNet(depth=5), tokens())
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


def test_one_capture_serves_for_several_rewrites_and_stays_as_it_is() -> None:
    captured = repl_fx.capture_parts(TokenNet(depth=5), (tokens(),))
    (part,) = captured.parts
    before = part.graph_module.print_readable(print_output=False)
    inputs = ExampleInputs((tokens(),))
    results = [rewrite(captured, Options(surrogate=key), inputs) for key in ("reuse", "blend", "reuse")]
    assert part.graph_module.print_readable(print_output=False) == before
    first, _, again = (result.graph_module for result in results)
    assert str(first.graph) == str(again.graph)
    torch.testing.assert_close(first.state_dict(), again.state_dict(), rtol=0, atol=0)


def test_a_refusal_names_block_repeat_and_node() -> None:
    gm = repl_fx.capture(ConvNet(), (images(),))
    repeats = repl_fx.find_repeats(gm)
    matches = Matches(gm, repeats)
    site = matches.site("blocks.1", "blocks.0", "blocks.2")
    assert matches.site("blocks.1", "blocks.0", "blocks.2") is site
    reuse = next(candidate for candidate in AutoConfig().candidates() if candidate.key == "reuse")
    refusal = matches.of(reuse, site)
    assert isinstance(refusal, repl_fx.Refusal)
    assert (refusal.block, refusal.repeat) == ("blocks.1", "blocks")
    assert refusal.node in {node.name for node in site.block.nodes}
    with pytest.raises(repl_fx.PlanMismatch, match="the plan names block layer9, which this model does not have"):
        matches.site("layer9", "blocks.0", "blocks.2")


def test_auto_itself_chooses_once_more_in_a_plan_that_names_it() -> None:
    x = images()
    chosen = repl_fx.transform(ConvNet(depth=3), (x,)).plan
    (replacement,) = chosen.replacements
    named = type(chosen)(
        (type(replacement)("blocks.1", "blocks", "blocks.0", "blocks.2", "auto"),), (), chosen.fingerprint
    )
    torch.manual_seed(0)
    model = ConvNet(depth=3)
    by_name = repl_fx.transform(model, (x,), plan=named).graph_module
    by_choice = repl_fx.transform(model, (x,), plan=chosen).graph_module
    assert list(by_name.state_dict()) == list(by_choice.state_dict())
    assert torch.equal(by_name(x), by_choice(x))
