"""What pyproject.toml, constraints.txt and the pages say of versions is the same."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
PINS: dict[str, str] = {
    str(canonicalize_name(name)): version for name, _, version in (line.partition("==") for line in LINES)
}


def _declared() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    requirements = map(Requirement, lines)
    return {str(canonicalize_name(one.name)): one for one in requirements if one.name != "repl-fx"}


DECLARED = _declared()


def _minor(package: str) -> str:
    return ".".join(PINS[package].split(".")[:2])


def _is_installed(package: str) -> bool:
    try:
        return metadata(package)["Version"] == PINS[package]
    except PackageNotFoundError:
        return False


def _least(package: str) -> str:
    return str(DECLARED[package].specifier).removeprefix(">=")


def test_every_package_that_is_declared_is_pinned_within_its_bounds() -> None:
    pinned = {
        name for name, one in DECLARED.items() if PINS.get(name) is not None and one.specifier.contains(PINS[name])
    }
    assert DECLARED.keys() - pinned == set()
    assert len(PINS) == len(LINES)


def test_the_bounds_are_the_least_releases_alone() -> None:
    # `make test-oldest` installs exactly these.
    assert [str(one) for one in DECLARED.values() if not str(one.specifier).startswith(">=") or "," in str(one)] == []


def test_the_pins_install_on_the_oldest_python() -> None:
    # The first release of a Python is what a distribution may have; Debian 12 has 3.11.2.
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    wanted = {name: metadata(name).get_all("Requires-Python") or [""] for name in PINS if _is_installed(name)}
    admitted = {name: SpecifierSet(*versions) for name, versions in wanted.items()}
    assert len(admitted) > len(DECLARED) / 2
    assert [name for name, specifier in admitted.items() if f"{oldest}.0" not in specifier] == []


@pytest.mark.parametrize("page", ["README.md", "docs/start.md"])
def test_the_pages_name_the_versions(page: str) -> None:
    text = " ".join((ROOT / page).read_text().split())
    assert f"torch {_least('torch')} or newer" in text
    if page == "README.md":
        assert f"transformers {_least('transformers')} or newer" in text
        tested = (
            f"torch {_minor('torch')}, torchvision {_minor('torchvision')} and transformers {_minor('transformers')}"
        )
        assert f"tested on {tested}" in text
