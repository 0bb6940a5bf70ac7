"""Everything around repl-fx that it depends on, looked at together."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from repl_fx import __version__
from repl_fx.config import check_passes
from repl_fx.display.progress import stage
from repl_fx.environment.machine import compiler, cpu_model, driver_version, memory_bytes, python_headers
from repl_fx.environment.probes import Probe, probe
from repl_fx.environment.requirements import OWN, Declared, Needed, declared, mend, modules_of, own_distribution, unmet
from repl_fx.errors import BadInput

# Extras of those who work on repl-fx: no command imports their packages.
_NOT_IMPORTED = ("bench", "dev", "docs", "test")
# Beginnings of variables that change what repl-fx or torch does.
_VARIABLES = ("REPL_FX_", "TORCH", "PYTORCH_", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "CXX")


@dataclass(frozen=True)
class Package(Needed):
    """A package that repl-fx declares, and the outcome of its import.

    Attributes:
        imported: whether that was tried; not for tools, which no command imports.
        problem: why it cannot be imported, in one line.
        core: whether nothing works without it.
    """

    imported: bool
    problem: str | None
    core: bool

    @property
    def fine(self) -> bool:
        return self.fits and self.problem is None


@dataclass(frozen=True)
class Examination:
    """The result of `examine`.

    Attributes:
        packages: those of the core, and those of the extras that are installed; each once.
        declared: None where repl-fx is not installed, and its requirements are unknown.
        machine: CPU, cores, threads, memory, GPUs, driver; None for what is unknown.
        compile_problem: why torch.compile cannot be used on the CPU; None where it can.
        variables: debug variables that are set.
        notes: what does not work, though repl-fx does.
    """

    packages: tuple[Package, ...]
    declared: Declared | None
    machine: Mapping[str, Any]
    providers: tuple[str, ...]
    compile_problem: str | None
    variables: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def problems(self) -> list[str]:
        """List the packages of the core that are broken, a line each."""
        lines = []
        for package in (package for package in self.packages if package.core and not package.fine):
            state = "is missing" if package.version is None else f"is {package.version}"
            why = state if package.problem is None or not package.fits else f"cannot be imported ({package.problem})"
            again = "" if not package.fits else "--force-reinstall "
            lines.append(f"{package.name} {why}; pip install {again}'{package}'")
        return lines

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        extras = self.declared.extras if self.declared else ()
        return {
            "fine": not self.problems,
            "problems": self.problems,
            "notes": list(self.notes),
            "version": __version__,
            "packages": list(map(asdict, self.packages)),
            "extras": [
                {
                    "name": extra.name,
                    "complete": not extra.missing,
                    "missing": [str(package) for package in extra.missing],
                    "command": extra.command,
                }
                for extra in extras
            ],
            "machine": dict(self.machine),
            "onnxruntime_providers": list(self.providers),
            "torch_compile": {"usable": self.compile_problem is None, "problem": self.compile_problem},
            "variables": dict(self.variables),
        }


def examine() -> Examination:
    """Look at versions, packages, machine and settings; every package of the commands is imported, elsewhere."""
    own = own_distribution()
    known = None if own is None else declared(own)
    core, extras = (known.core, known.extras) if known else ((), ())
    others = {str(needed): needed for extra in extras for needed in extra.packages if needed.version is not None}
    used = {str(needed) for extra in extras if extra.name not in _NOT_IMPORTED for needed in extra.packages}
    modules = {needed: modules_of(needed.name) for needed in (*core, *others.values())}
    wanted = [name for needed, names in modules.items() if needed in core or str(needed) in used for name in names]
    probes = probe(wanted or ["torch"], stage)
    packages = tuple(_package(needed, needed in core, modules[needed], probes) for needed in modules)
    torch = probes.get("torch", Probe("it is missing"))
    providers = probes.get("onnxruntime", Probe()).facts.get("providers", ())
    variables = {name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)}
    notes = tuple(_notes(known, probes))
    return Examination(packages, known, _machine(torch), tuple(providers), _compile_problem(), variables, notes)


def _package(needed: Needed, core: bool, modules: Iterable[str], probes: Mapping[str, Probe]) -> Package:
    tried = [probes[name] for name in modules if name in probes]
    problem = next((probe.problem for probe in tried if probe.problem), None)
    return Package(**vars(needed), imported=bool(tried), problem=problem, core=core)


def _machine(torch: Probe) -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.facts.get("threads"),
        "memory": memory_bytes(),
        "gpus": torch.facts.get("devices", []),
        "cuda": torch.facts.get("cuda"),
        "driver": driver_version(),
    }


def _compile_problem() -> str | None:
    if compiler() is None:
        named = os.environ.get("CXX")
        return f"CXX is {named}, which is no program" if named else "no C++ compiler; install g++, or name one with CXX"
    return None if python_headers() else "the headers of Python are missing; install its package of them (python3-dev)"


def _notes(known: Declared | None, probes: Mapping[str, Probe]) -> Iterator[str]:
    if known is None:
        yield f"{OWN} is not installed, so that its requirements are unknown; pip install it"
    try:
        check_passes()
    except BadInput as problem:
        yield str(problem)
    # Several packages may fail by one that they import.
    broken = {found.broken: found.problem for found in probes.values() if found.broken}
    for name, why in broken.items():
        yield f"{name} cannot be imported ({why}); {mend(name)}"
    for name in (name for name in probes if name not in broken):
        if (asked := unmet(name)) is not None:
            yield f"{name} asks for {asked}, and another torch is installed; {mend(name)}"
    for name, found in probes.items():
        yield from (f"{name}: {line}" for line in found.facts.get("warnings", ()))
