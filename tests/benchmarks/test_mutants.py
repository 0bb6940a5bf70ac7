"""Tests for benchmarks.mutants: what is mutated and how a sample is drawn; nothing is judged here."""

from __future__ import annotations

import pytest

pytest.importorskip("cosmic_ray")

from benchmarks.mutants import (
    MUTATED,
    ROOT,
    Mutant,
    mirrored_tests,
    mutants_of,
    mutated,
    report,
    sample,
    statement_around,
)

SOURCE = """
def double(x: int | None, *, strict: bool = False) -> int | None:
    if x is None:
        raise ValueError("no " * 2)
    assert x > -1
    pairs = list(zip([x], [x], strict=True))
    return len(pairs) * 2 * x
"""


def test_every_module_has_tests() -> None:
    modules = [p.relative_to(ROOT) for glob in MUTATED for p in ROOT.glob(glob) if p.name != "__init__.py"]
    assert len(modules) > 40
    for module in modules:
        assert all((ROOT / test).is_file() for test in mirrored_tests(str(module))), module


def test_words_and_annotations_are_not_mutated() -> None:
    found = list(mutants_of("a.py", SOURCE))
    # The default of `strict`, the question for None, and the product.
    assert {mutant.line for mutant in found} == {2, 3, 7}
    changed = {mutated(SOURCE, mutant) for mutant in found}
    assert all("int | None" in code and "strict=True" in code and '"no " * 2' in code for code in changed)
    assert SOURCE not in changed and len(changed) == len(found)


def test_a_sample_is_seeded_and_takes_a_place_once() -> None:
    found = list(mutants_of("a.py", SOURCE))
    drawn = sample(found, 4, seed=1)
    assert drawn == sample(reversed(list(reversed(found))), 4, seed=1)
    assert len({(m.line, m.column) for m in drawn}) == len(drawn) == 4
    assert len(sample(found, 100, seed=1)) == len({(m.line, m.column) for m in found}) < len(found)


def test_a_sample_stays_while_other_lines_change() -> None:
    before = sample(mutants_of("a.py", SOURCE), 3, seed=1)
    after = sample(mutants_of("a.py", "\n\n# A comment.\n" + SOURCE), 3, seed=1)
    assert [(m.words, m.operator) for m in after] == [(m.words, m.operator) for m in before]
    assert {m.line for m in after} == {m.line + 3 for m in before}


def test_the_statement_around_a_line() -> None:
    code = "if (\n    x\n    and y\n):\n    z = [\n        1,\n    ]\n"
    assert statement_around(code, 3) == range(1, 5)
    assert statement_around(code, 6) == range(5, 8)


@pytest.mark.parametrize(("survivors", "enough"), [(1, True), (2, False)])
def test_the_report_counts_and_shows_survivors(survivors: int, enough: bool) -> None:
    entries: list[dict[str, object]] = [
        {
            **vars(Mutant("a.py", "op", i, i, 0, "")),
            "outcome": "survived" if i < survivors else "killed",
            "diff": f"<{i}>",
        }
        for i in range(4)
    ]
    text, passed = report(entries, 0.75)
    assert passed is enough
    assert "<0>" in text and "<3>" not in text
