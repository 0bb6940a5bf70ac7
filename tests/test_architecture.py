"""The map of the code: names mean one thing, and what docs/architecture.md points to is there."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLACE = re.compile(r"^\| [^|]+ \| `(?P<file>[\w./]+)` \| `(?P<name>\w+)` \|$", re.MULTILINE)


def classes() -> dict[str, list[str]]:
    """The files of the package that define each class, by its name without a leading underscore."""
    found: dict[str, list[str]] = defaultdict(list)
    for file in (*ROOT.glob("repl_fx/**/*.py"), *ROOT.glob("passes/*.py")):
        if "passes" not in file.relative_to(ROOT).parts[1:-1]:
            for node in ast.parse(file.read_text("utf-8")).body:
                if isinstance(node, ast.ClassDef):
                    found[node.name.lstrip("_")].append(str(file.relative_to(ROOT)))
    return found


def test_no_two_classes_share_a_name() -> None:
    found = classes()
    assert len(found) > 300
    assert {name: files for name, files in found.items() if len(files) > 1} == {}


def test_each_place_that_the_map_names_is_there() -> None:
    page = (ROOT / "docs/architecture.md").read_text("utf-8")
    places = PLACE.findall(page.partition("## To change")[2])
    assert len(places) >= 25
    for file, name in places:
        body = ast.parse((ROOT / file).read_text("utf-8")).body
        defined = {node.name for node in body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
        for node in body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            defined.update(target.id for target in targets if isinstance(target, ast.Name))
        assert name in defined, f"{file} defines no {name}"


def test_one_test_of_ten_is_slow_at_most(collected: tuple[int, int]) -> None:
    slow, all_of_them = collected
    if all_of_them < 4000:
        pytest.skip("a part of the tests")
    assert 0 < slow <= all_of_them / 10
