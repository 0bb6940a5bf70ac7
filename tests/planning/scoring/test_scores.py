"""Scores as text, as numbers for a budget, and as JSON."""

from __future__ import annotations

import json

import pytest

from repl_fx.errors import BadInput
from repl_fx.planning.scoring.scores import BlockScore, Scores, StretchScore

SCORES = Scores(
    (
        BlockScore("b.0", "b", 0.5, loss=2.5),
        BlockScore("b.1", "b", 0.125, loss=1.75, greedy_rank=2, greedy_loss=3.0),
        BlockScore("b.2", "b", None, loss=2.25, greedy_rank=1, greedy_loss=2.25, reasons={"influence": "it is odd"}),
    ),
    (StretchScore("b", "b.0", "b.1", 2, 0.75),),
    256,
    ("influence", "loss"),
    2.0,
)


def test_of_gives_a_number_for_each_block_that_has_one() -> None:
    assert SCORES.of("influence") == {"b.0": 0.5, "b.1": 0.125}
    assert SCORES.of("loss") == {"b.0": 0.5, "b.1": -0.25, "b.2": 0.25}
    assert SCORES.greedy == ("b.2", "b.1")


def test_of_refuses_what_was_not_scored() -> None:
    with pytest.raises(BadInput, match=r"no change was scored, but influence, loss; give .*kinds=\('change',\)"):
        SCORES.of("change")
    with pytest.raises(BadInput, match="no score 'size'; known are influence, change, gradient, loss"):
        SCORES.of("size")


def test_text() -> None:
    assert str(SCORES) == "3 blocks by influence, loss, over 256 samples; loss 2"
    assert SCORES.details().splitlines()[1:] == [
        "  b.0: influence 0.5, loss 2.5",
        "  b.1: influence 0.125, loss 1.75, goes as number 2, loss 3 then",
        "  b.2: loss 2.25, goes as number 1, loss 2.25 then, no influence: it is odd",
        "  b.0 to b.1: influence 0.75",
    ]


def test_json_and_back() -> None:
    text = SCORES.to_json()
    assert Scores.from_json(text) == SCORES
    assert json.loads(text)["schema"] == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "not scores: JSONDecodeError"),
        ("{}", "not scores: KeyError"),
        ('{"schema": 2}', "the scores have schema 2; this version reads 1; install a matching repl-fx"),
        ('{"schema": 1, "blocks": 3}', r"not scores: ValidationError: Expected `array`, got `int` - at `\$.blocks`"),
    ],
)
def test_what_is_no_scores_is_a_line(text: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Scores.from_json(text)
