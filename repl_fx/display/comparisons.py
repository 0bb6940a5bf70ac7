"""Tables of figures: of several models, and of what is left of the costs of one."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter

from repl_fx.display.columns import Table, numbers, words


def budget_table(shares: Mapping[str, Mapping[str, float | None]]) -> Table:
    """The table of a budget, from `budget_shares`."""
    shown = itemgetter("limit", "expected", "reached")
    rows = [(name, *("-" if one is None else f"{one:.4f}" for one in shown(found))) for name, found in shares.items()]
    return Table("Budget, of the original", (*words(""), *numbers("budget", "expected", "reached")), rows)


def figures_lines(figures: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The figures of several models, a line for each."""
    return [
        f"{model}: {', '.join(f'{name} {value:.4f}' for name, value in found.items())}"
        for model, found in figures.items()
    ]


def figures_table(figures: Mapping[str, Mapping[str, float]], title: str = "Figures", form: str = ".4f") -> Table:
    """The figures of several models, such as loss and accuracy, by the names of both."""
    names = list(dict.fromkeys(name for found in figures.values() for name in found))
    rows = [
        (model, *(f"{found[name]:{form}}" if name in found else "" for name in names))
        for model, found in figures.items()
    ]
    return Table(title, (*words("model"), *numbers(*names)), rows)
