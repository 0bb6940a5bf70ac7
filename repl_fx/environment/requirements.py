"""The packages that repl-fx declares, and those that are installed; by its own metadata, without importing any."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution, packages_distributions
from urllib.parse import unquote, urlsplit

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

OWN = "repl-fx"
# A package that brings the same modules as another one.
_INSTEAD = {"onnxruntime-gpu": "onnxruntime"}

# Packages that others import wherever they are installed, and that no command of repl-fx needs.
_NOT_NEEDED = ("torchaudio",)


@dataclass(frozen=True)
class Needed:
    """A package that repl-fx declares.

    Attributes:
        wanted: the versions that fit, such as `>=2.11`; empty where all do.
        version: the installed one; None where the package is missing.
        fits: whether it is among the wanted ones.
    """

    name: str
    wanted: str
    version: str | None
    fits: bool

    def __str__(self) -> str:
        return f"{self.name}{self.wanted}"


@dataclass(frozen=True)
class Extra:
    """An extra of repl-fx, with all of its packages, those of the extras that it names too.

    Attributes:
        command: installs what is missing.
    """

    name: str
    packages: tuple[Needed, ...]
    command: str

    @property
    def missing(self) -> tuple[Needed, ...]:
        """The packages that are missing, or have another version."""
        return tuple(package for package in self.packages if not package.fits)


@dataclass(frozen=True)
class Declared:
    """The requirements of repl-fx.

    Attributes:
        core: the packages without which nothing works.
    """

    core: tuple[Needed, ...]
    extras: tuple[Extra, ...]


def declared(own: Distribution) -> Declared:
    """The requirements that a distribution of repl-fx declares, on this machine and with this Python."""
    requirements = [Requirement(text) for text in own.requires or ()]
    names = own.metadata.get_all("Provides-Extra") or ()
    extras = (Extra(name, tuple(_of_extra(requirements, name)), _install(own, name)) for name in names)
    return Declared(tuple(map(_needed, _applying(requirements, ""))), tuple(extras))


def own_distribution() -> Distribution | None:
    """The installed repl-fx; None where it runs from its sources."""
    return _installed(OWN)


def unmet(module: str) -> str | None:
    """The requirement of a package that torch does not meet, such as `torch==2.13.0`; None where there is none.

    Args:
        module: the name by which the package is imported.
    """
    asked, there = _torch_of(_brought_by(module)), _public("torch")
    return None if asked is None or there is None or _fits(asked.specifier, there) else str(asked)


def mend(module: str) -> str:
    """The command that puts an installed package that cannot be imported in order.

    One that asks for another torch than the one that is here is chosen anew beside that; where its C++ parts do not
    load though it asks for this one, the two came from different places, and are fetched from one.

    Args:
        module: the name by which the package is imported.
    """
    package = _brought_by(module)
    if package in _NOT_NEEDED:
        return f"pip uninstall {package}"
    torch = f"torch=={_public('torch')}"
    if unmet(module) is not None:
        return f"pip install '{torch}' {package}"
    if package != "torch" and _torch_of(package) is not None and _public("torch") is not None:
        return f"pip install --force-reinstall '{torch}' '{package}=={_public(package)}'"
    return f"pip install --force-reinstall {package}"


def _brought_by(module: str) -> str:
    """The package that brings a module; its own name where none does."""
    return module if _installed(module) else _bringing(tuple(sys.path)).get(module, [module])[0]


@cache
def _bringing(path: tuple[str, ...]) -> Mapping[str, list[str]]:
    """The packages that bring each module, for a search path: all that is installed has to be read for it."""
    return packages_distributions()


def _torch_of(package: str) -> Requirement | None:
    """The requirement of a package on torch."""
    found = _installed(package)
    asked = _applying(list(map(Requirement, found.requires or ())), "") if found else ()
    return next((one for one in asked if canonicalize_name(one.name) == "torch"), None)


def _public(package: str) -> str | None:
    """The installed version of a package without what its build adds, such as +cpu; None where it is missing."""
    found = _installed(package)
    return Version(found.version).public if found else None


def modules_of(package: str) -> tuple[str, ...]:
    """The names by which what a package brings is imported, the one like its own name alone if there is one."""
    found = _serving(package)
    if found is None:
        return ()
    tops = {path.parts[0] for path in found.files or () if path.suffix in (".py", ".so", ".pyd")}
    names = {top.partition(".")[0] for top in tops} | set((found.read_text("top_level.txt") or "").split())
    public = sorted(name for name in names if name.isidentifier() and not name.startswith("_"))
    alike = [name for name in public if canonicalize_name(name) == canonicalize_name(package)]
    return tuple(alike or public[:1])


def _of_extra(requirements: Sequence[Requirement], extra: str) -> Iterator[Needed]:
    """The packages of an extra, each once."""
    found: dict[str, Needed] = {}
    waiting, seen = [extra], {extra}
    for name in waiting:
        for requirement in _applying(requirements, name):
            if canonicalize_name(requirement.name) == OWN:
                waiting += [other for other in sorted(requirement.extras) if other not in seen]
                seen |= requirement.extras
            else:
                found.setdefault(str(requirement).partition(";")[0], _needed(requirement))
    yield from found.values()


def _applying(requirements: Sequence[Requirement], extra: str) -> list[Requirement]:
    """The requirements of an extra, or with "" those that always apply."""

    def applies(requirement: Requirement, extra: str) -> bool:
        return requirement.marker is None or requirement.marker.evaluate({"extra": extra})

    return [one for one in requirements if applies(one, extra) and not (extra and applies(one, ""))]


def _needed(requirement: Requirement) -> Needed:
    found, wanted = _serving(requirement.name), requirement.specifier
    fits = found is not None and _fits(wanted, found.version)
    return Needed(requirement.name, str(wanted), found.version if found else None, fits)


def _fits(wanted: SpecifierSet, found: str) -> bool:
    try:
        return wanted.contains(found, prereleases=True)
    except InvalidVersion:
        return False


def _serving(package: str) -> Distribution | None:
    """The installed package, or another one that brings the same; None where there is neither."""
    return _installed(package) or _installed(_INSTEAD.get(package, package))


def _installed(package: str) -> Distribution | None:
    """The installed package of a name; None where there is none."""
    with suppress(PackageNotFoundError):
        return distribution(package)
    return None


def _install(own: Distribution, extra: str) -> str:
    """The command that installs an extra: from where repl-fx was installed, where that is a directory."""
    origin = json.loads(own.read_text("direct_url.json") or "{}")
    place = unquote(urlsplit(origin.get("url", "")).path)
    if "dir_info" not in origin:
        return f"pip install '{OWN}[{extra}]'"
    return f"pip install {'-e ' if origin['dir_info'].get('editable') else ''}'{place}[{extra}]'"
