"""Tables of figures, as data."""

from __future__ import annotations

from repl_fx.display.comparisons import budget_table, figures_table


def test_a_budget_shows_what_is_not_known_as_a_dash() -> None:
    table = budget_table(
        {
            "params": {"limit": 0.7, "expected": 0.69, "reached": 0.69},
            "flops": dict.fromkeys(("limit", "expected", "reached")),
        }
    )
    assert table.rows == [("params", "0.7000", "0.6900", "0.6900"), ("flops", "-", "-", "-")]


def test_figures_of_several_models_share_their_columns() -> None:
    table = figures_table({"original": {"loss": 1.0}, "cut": {"loss": 2.0, "accuracy": 0.5}})
    assert [column.name for column in table.columns] == ["model", "loss", "accuracy"]
    assert table.rows == [("original", "1.0000", ""), ("cut", "2.0000", "0.5000")]
