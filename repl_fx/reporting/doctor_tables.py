"""Tables and lines of `repl-fx doctor`; they come without torch, which may be what is broken."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import RenderableType

from repl_fx import __version__
from repl_fx.display.columns import Table, words
from repl_fx.display.numbers import several
from repl_fx.environment.examination import Examination, Package
from repl_fx.environment.requirements import Extra


def doctor_lines(found: Examination) -> list[RenderableType]:
    """All that was found: the machine, packages, extras, settings, notes."""
    tables = [packages_table(found.packages)] if found.packages else []
    if found.declared:
        tables.append(extras_table(found.declared.extras))
    return [*_machine_lines(found), *tables, *(f"note: {note}" for note in found.notes)]


def packages_table(packages: Iterable[Package]) -> Table:
    """The packages that the commands use, with their versions and why one cannot be used."""
    rows = []
    for package in packages:
        state = "fine" if package.imported else "installed, not tried"
        if not package.fits:
            state = "missing" if package.version is None else "another version is needed"
        rows.append((package.name, package.wanted, package.version or "-", package.problem or state))
    return Table("Packages", words("package", "wanted", "installed", "state"), rows)


def extras_table(extras: Iterable[Extra]) -> Table:
    """The extras, with what is missing of each and the command for it."""
    missing = [(extra, ", ".join(map(str, extra.missing))) for extra in extras]
    rows = [(extra.name, names or "nothing", extra.command if names else "") for extra, names in missing]
    return Table("Extras", words("extra", "missing", "command"), rows)


def _machine_lines(found: Examination) -> list[RenderableType]:
    machine = found.machine
    threads = "" if machine["threads"] is None else f", {several(machine['threads'], 'thread')}"
    gpus = [f"GPU:           {gpu['name']}, {_size(gpu['memory'])}" for gpu in machine["gpus"]]
    built = f"torch was built for CUDA {machine['cuda']}" if machine["cuda"] else "torch was built without CUDA"
    driver = f"driver {machine['driver']}" if machine["driver"] else "no driver"
    problem = found.compile_problem
    lines = [
        f"repl-fx:       {__version__}",
        f"Python:        {machine['python']}, {machine['executable']}, {machine['system']}",
        f"CPU:           {machine['cpu']}, {several(machine['cores'], 'core')}{threads}, {_size(machine['memory'])}",
        *(gpus or ["GPU:           none that torch can use"]),
        f"CUDA:          {built}, {driver}",
        f"ONNX Runtime:  {', '.join(found.providers) or 'no providers'}",
        f"torch.compile: {f'not usable on the CPU: {problem}' if problem else 'usable on the CPU'}",
        *(f"variable:      {name}={value}" for name, value in found.variables.items()),
    ]
    return list(lines)


def _size(number: int | None) -> str:
    return "unknown memory" if number is None else f"{number / 2**30:.0f} GiB"
