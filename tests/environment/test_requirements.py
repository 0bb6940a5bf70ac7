"""Declared packages and installed ones, by metadata alone."""

from __future__ import annotations

from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from repl_fx.environment import requirements
from repl_fx.environment.requirements import Declared, declared, mend, modules_of, own_distribution, unmet
from tests.environment.installed import install

LINES = (
    "Provides-Extra: small",
    "Provides-Extra: large",
    "Requires-Dist: first-one>=2",
    "Requires-Dist: second-one<2",
    "Requires-Dist: elsewhere; sys_platform == 'nowhere'",
    "Requires-Dist: third-one; extra == 'small'",
    "Requires-Dist: repl-fx[small]; extra == 'large'",
    "Requires-Dist: no-such-package>=3; extra == 'large'",
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("first-one", "second-one", "third-one"):
        install(tmp_path, name, "2.5")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def of(place: Path, origin: object = None) -> Declared:
    install(place / "own", "repl-fx", "0.1", lines=LINES, origin=origin)
    return declared(PathDistribution(place / "own" / "repl_fx-0.1.dist-info"))


def test_what_is_declared_is_compared_with_what_is_installed(place: Path) -> None:
    found = of(place)
    assert [(p.name, p.wanted, p.version, p.fits) for p in found.core] == [
        ("first-one", ">=2", "2.5", True),
        ("second-one", "<2", "2.5", False),
    ]
    small, large = found.extras
    assert [p.name for p in small.packages] == ["third-one"] and small.missing == ()
    assert {p.name for p in large.packages} == {"no-such-package", "third-one"}
    assert [str(p) for p in large.missing] == ["no-such-package>=3"]


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "pip install 'repl-fx[large]'"),
        ({"url": "https://example.org/repl-fx.whl", "archive_info": {}}, "pip install 'repl-fx[large]'"),
        ({"url": "file:///a%20b/c", "dir_info": {"editable": True}}, "pip install -e '/a b/c[large]'"),
        ({"url": "file:///a/c", "dir_info": {}}, "pip install '/a/c[large]'"),
    ],
)
def test_the_command_installs_from_where_repl_fx_came(place: Path, origin: object, command: str) -> None:
    assert of(place, origin).extras[1].command == command


def test_the_modules_of_a_package(place: Path) -> None:
    assert modules_of("first-one") == ("first_one",)
    assert modules_of("torch") == ("torch",) and modules_of("no-such-package") == ()
    install(place, "stubs", "1.0", code=None)
    assert modules_of("stubs") == ()


def test_a_package_that_brings_the_same_serves_as_well(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "_INSTEAD", {"no-such-package": "third-one"})
    missing = of(place).extras[1].missing
    assert [(p.name, p.version) for p in missing] == [("no-such-package", "2.5")]
    assert modules_of("no-such-package") == ("third_one",)


def test_a_version_that_is_none_does_not_fit(place: Path) -> None:
    install(place, "no-such-package", "unknown")
    assert [(p.version, p.fits) for p in of(place).extras[1].missing] == [("unknown", False)]


def test_what_is_not_installed_has_no_requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "OWN", "no-such-package")
    assert own_distribution() is None


@pytest.mark.parametrize(
    ("asked", "missing", "command"),
    [
        ("torch==2.13.0", "torch==2.13.0", "pip install 'torch==2.15.1' repl-fx-test-vision"),
        ("torch>=2.14", None, "pip install --force-reinstall 'torch==2.15.1' 'repl-fx-test-vision==2.5'"),
        ("torch==2.13.0; extra == 'more'", None, "pip install --force-reinstall repl-fx-test-vision"),
    ],
)
def test_the_command_that_mends_a_package_built_for_a_torch(
    place: Path, asked: str, missing: str | None, command: str
) -> None:
    install(place, "torch", "2.15.1+cpu", code=None)
    install(place, "repl-fx-test-vision", "2.5+cu132", lines=(f"Requires-Dist: {asked}",))
    assert unmet("repl_fx_test_vision") == missing
    assert mend("repl_fx_test_vision").replace("_", "-") == command


def test_a_package_of_another_name_than_its_module_is_mended_by_its_own(place: Path) -> None:
    install(place, "torchaudio", "2.11")
    assert mend("torchaudio") == "pip uninstall torchaudio"
    assert mend("sklearn") == "pip install --force-reinstall scikit-learn"
    assert mend("no_such_module") == "pip install --force-reinstall no_such_module" and unmet("no_such_module") is None
