"""`auto`: for each block the surrogate that did best where it was measured."""

from __future__ import annotations

from typing import Any

import torch

from tests.captures import transformed
from tests.nets import ConvNet, TokenNet, images, tokens
from tests.surrogates.nets import NETS


def test_auto_takes_it_for_sequences_of_patches() -> None:
    chosen = []
    for model, x in (NETS["tokens"](), NETS["batch norm"](), (TokenNet(depth=3), tokens())):
        plan = transformed(model, (x,), surrogate="auto").plan
        chosen.append(plan.replacements[0].surrogate)
    assert chosen == ["coarse", "slim", "reuse"]


def test_auto_hands_its_settings_on() -> None:
    settings: dict[str, Any] = {"width": 3, "heads": 2, "weights": "own", "train_neighbours": False}
    for model, x, key, own in (
        (ConvNet(depth=3), images(), "slim", "width"),
        (TokenNet(depth=3), tokens(), "reuse", "heads"),
    ):
        (replacement,) = transformed(model, (x,), settings=settings).plan.replacements
        assert replacement.surrogate == key
        for name in (own, "weights", "train_neighbours"):
            assert replacement.settings[name] == settings[name]


def test_auto_itself_chooses_once_more_in_a_plan_that_names_it() -> None:
    x = images()
    chosen = transformed(ConvNet(depth=3), (x,)).plan
    (replacement,) = chosen.replacements
    named = type(chosen)(
        (type(replacement)("blocks.1", "blocks", "blocks.0", "blocks.2", "auto"),), (), chosen.fingerprint
    )
    torch.manual_seed(0)
    model = ConvNet(depth=3)
    by_name = transformed(model, (x,), plan=named).graph_module
    by_choice = transformed(model, (x,), plan=chosen).graph_module
    assert list(by_name.state_dict()) == list(by_choice.state_dict())
    assert torch.equal(by_name(x), by_choice(x))
