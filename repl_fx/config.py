"""Settings of the environment: debug variables (table in docs/debugging.md), and packages that extend repl-fx.

A package extends repl-fx by entry points (docs/extending.md). Its modules are imported when they are first asked for by
name.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from repl_fx.errors import BadInput, foreign_code, one_line


def check_passes() -> bool:
    """`REPL_FX_CHECK`: 1 checks the graph between passes and names the pass that broke it; 0 or unset does not.

    Raises:
        BadInput: any other value.
    """
    return _is_on("REPL_FX_CHECK", "0")


def stamp_calls() -> bool:
    """`REPL_FX_STAMP`: 0 traces every call of a model; 1 or unset traces one of those that are alike.

    Raises:
        BadInput: any other value.
    """
    return _is_on("REPL_FX_STAMP", "1")


def show_progress() -> bool:
    """`REPL_FX_PROGRESS`: 0 shows no progress of calls in Python; 1 or unset does, in the first of several processes.

    Raises:
        BadInput: any other value.
    """
    wanted = _is_on("REPL_FX_PROGRESS", "1")
    # As torchrun, Lightning and SLURM number the processes of one run.
    ranks = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))
    return wanted and all(rank in ("", "0") for rank in ranks) and _is_first()


def _is_on(name: str, default: str) -> bool:
    """Tell whether a variable is 1, and not 0."""
    value = os.environ.get(name, default)
    if value not in ("0", "1"):
        raise BadInput(f"{name} is {value!r}; set it to 1 or 0")
    return value == "1"


def _is_first() -> bool:
    """Tell whether this process is no other than the first of torch's group; torch is not imported for that."""
    distributed: Any = sys.modules.get("torch.distributed")
    grouped = distributed is not None and distributed.is_available() and distributed.is_initialized()
    return not grouped or distributed.get_rank() == 0


def offered(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group, by name: what installed packages offer."""
    return {point.name: point for point in entry_points(group=group)}


def load_offered(group: str, name: str) -> Any:
    """Import what a package offers under a name of `offered(group)`; it may fail, or not have that."""
    point = offered(group)[name]
    package = point.dist.name if point.dist is not None else "an installed package"
    fails = f"{package} offers {name!r} ({group}: {point.value}), which fails"
    with foreign_code(lambda problem: BadInput(f"{fails}: {one_line(problem)}; mend or remove it")):
        return point.load()
