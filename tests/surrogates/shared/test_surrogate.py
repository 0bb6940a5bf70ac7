from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

import repl_fx
from repl_fx.errors import BadInput
from repl_fx.surrogates import make_surrogate, register_surrogate
from repl_fx.surrogates.blend import Blend, BlendConfig


def test_known_surrogates_and_settings() -> None:
    assert {"identity", "blend", "bottleneck", "auto"} <= set(repl_fx.known_surrogates())
    blend = make_surrogate("blend", {"per": "tensor"})
    assert isinstance(blend, Blend) and blend.config == BlendConfig(per="tensor")
    assert blend.settings() == {"per": "tensor", "train_neighbours": True}


def test_a_setting_without_default_cannot_be_registered() -> None:
    @dataclass(frozen=True)
    class Needy:
        factor: float

    with pytest.raises(repl_fx.BadInput, match="every setting of Needy needs a default"):
        register_surrogate("needy", Needy)
    assert "needy" not in repl_fx.known_surrogates()


def test_settings_of_the_wrong_type_or_value() -> None:
    with pytest.raises(
        repl_fx.BadInput, match=r"ratio is 'abc' and width is None; they must be a number and a whole one"
    ):
        make_surrogate("bottleneck", {"ratio": "abc"})
    with pytest.raises(repl_fx.BadInput, match="ratio is 2; it must be above 0"):
        make_surrogate("auto", {"ratio": 2})
    with pytest.raises(repl_fx.BadInput, match="blend: train_neighbours is 'no'; it can be true or false"):
        make_surrogate("blend", {"train_neighbours": "no"})


def test_an_unknown_setting_is_named_with_the_known_ones() -> None:
    message = "surrogate 'blend' has no setting 'colour'; its settings are per, train_neighbours"
    with pytest.raises(BadInput, match=re.escape(message)):
        make_surrogate("blend", {"per": "tensor", "colour": "red"})
