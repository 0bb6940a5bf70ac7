"""Tests for repl_fx.errors: errors in one line, those of code that is not repl-fx's, and defects of repl-fx."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import fx, nn

import repl_fx
from repl_fx.errors import BadInput, ForeignError, close_matches, first_line, foreign_code, listed, not_ours, one_line
from repl_fx.export.layers import choose_nodes
from repl_fx.planning.budgets import Budget
from repl_fx.sources.input_shapes import parse_input_shape
from repl_fx.surrogates import make_surrogate
from repl_fx.training.tasks import task_of
from repl_fx.training.train_config import TrainConfig
from tests.planning.scoring.test_scores import SCORES


def test_the_first_line_of_an_error_that_says_something() -> None:
    assert first_line(ValueError("\n  \x1b[31mred\x1b[0m  \nmore")) == "red"
    assert one_line(ValueError("\n  \x1b[31mred\x1b[0m  \nmore")) == "ValueError: red"


def test_a_model_of_many_blocks_that_stay_has_a_line_that_can_be_read() -> None:
    problem = repl_fx.NothingToReplace("found 9 blocks in layers", [f"layers.{i}: it reads a mask" for i in range(9)])
    assert str(problem).endswith("; layers.5: it reads a mask and 3 more") and len(problem.reasons) == 9


@pytest.mark.parametrize("folder", ["site-packages", "mine"])
def test_an_import_of_an_installed_package_that_fails_is_told_as_one(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "repl_fx_test_broken.py").write_text("raise RuntimeError('no operator')")
    monkeypatch.syspath_prepend(tmp_path / folder)
    with pytest.raises(RuntimeError) as raised:
        importlib.import_module("repl_fx_test_broken")
    line = str(not_ours(raised.value))
    if folder == "mine":
        assert line.startswith("code of yours raised RuntimeError: no operator")
    else:
        assert line == (
            "repl_fx_test_broken cannot be imported (RuntimeError: no operator); "
            "`repl-fx doctor` names the command that mends it"
        )


def test_names_that_are_close_are_asked_about() -> None:
    assert close_matches("widht", ["width", "depth"]) == "; did you mean width?"
    assert close_matches("Colour", ["width", "colour"]) == "; did you mean colour?"
    assert close_matches(7, ["width", "depth"]) == ""


_MISSPELT: Any = {"surogate": "x"}


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        (
            lambda: make_surrogate("botleneck"),
            "unknown surrogate 'botleneck'; did you mean bottleneck?; known are auto",
        ),
        (lambda: make_surrogate("bottleneck", {"raito": 1}), "no setting 'raito'; did you mean ratio?; its settings"),
        (lambda: repl_fx.transform(nn.ReLU(), **_MISSPELT), "argument 'surogate'; did you mean surrogate?"),
        (lambda: Budget({"parms": 0.5}), "no cost 'parms'; did you mean params?; the costs are params"),
        (lambda: task_of("clasification", 2), "no task 'clasification'; did you mean classification?; known are"),
        (lambda: TrainConfig().changed(epoch=3), "no setting 'epoch'; did you mean epochs?; the settings are weights"),
        (
            lambda: TrainConfig().changed(optimizer="adam"),
            "optimizer is 'adam'; did you mean adamw?; it can be adamw, sgd",
        ),
        (lambda: parse_input_shape("2x3:flaot32"), "no type 'flaot32'; did you mean float32"),
        (lambda: SCORES.of("influnce"), "no score 'influnce'; did you mean influence?; known are"),
        (
            lambda: choose_nodes(fx.symbolic_trace(nn.ReLU()).graph, ["rleu"]),
            "no inner value 'rleu'; did you mean relu?",
        ),
    ],
)
def test_every_misspelt_name_is_asked_about(misspelt: Callable[[], object], meant: str) -> None:
    with pytest.raises((repl_fx.ReplFxError, TypeError), match=re.escape(meant)):
        misspelt()


def test_a_misspelt_block_is_asked_about() -> None:
    assert "no block 'layer.1'; did you mean layers.1, layers.0?; the blocks" in str(
        repl_fx.UnknownBlock("layer.1", ["layers.0", "layers.1"])
    )


def test_a_message_is_one_line_whatever_names_are_in_it() -> None:
    assert str(BadInput("a\nb\x00 \udc80 \u2028 größe")) == r"a\nb\x00 \udc80 \u2028 größe"


def test_an_error_without_a_message_is_its_class() -> None:
    assert first_line(KeyError()) == one_line(KeyError()) == "KeyError"


@pytest.mark.parametrize("problem", [ValueError("not\nhere"), AssertionError(""), BadInput("of another call")])
def test_what_foreign_code_raises(problem: Exception) -> None:
    with pytest.raises(ForeignError) as caught, foreign_code():
        raise problem
    assert caught.value.problem is problem and caught.value.__cause__ is problem
    assert str(caught.value) == one_line(problem)


def test_an_assertion_of_repl_fx_stays_one() -> None:
    ours = {"__name__": "repl_fx.passes.some_pass"}
    exec("def fail(kind): raise kind('a defect')", ours)
    with pytest.raises(AssertionError, match="a defect"), foreign_code():
        ours["fail"](AssertionError)  # type: ignore[operator]
    # Any other may be about what repl-fx calls for that code.
    with pytest.raises(ForeignError, match="TypeError: a defect"), foreign_code():
        ours["fail"](TypeError)  # type: ignore[operator]


def test_a_foreign_error_is_told_once() -> None:
    problem = ValueError("no such shape")
    with pytest.raises(ForeignError) as caught, foreign_code(), foreign_code():
        raise problem
    assert caught.value.problem is problem


def test_interrupts_are_no_errors() -> None:
    with pytest.raises(KeyboardInterrupt), foreign_code():
        raise KeyboardInterrupt


def test_lists_name_the_first_and_count_the_rest() -> None:
    assert listed("abc") == "a, b, c"
    assert listed("abcde") == "a, b, c and 2 more"


def test_the_blocks_of_a_deep_model_do_not_fill_the_screen() -> None:
    names = [f"layers.{number}" for number in range(36)]
    line = str(repl_fx.UnknownBlock("99", names))
    assert line == f"no block '99'; the blocks are {', '.join(names[:6])} and 30 more"
    assert "did you mean layers.30" in str(repl_fx.UnknownBlock("layer.30", names))
