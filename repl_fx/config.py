"""Debug variables, read from the environment and validated in one place (table in docs/debugging.md)."""

from __future__ import annotations

import os

from repl_fx.errors import BadInput


def check_passes() -> bool:
    """`REPL_FX_CHECK`: 1 checks the graph between passes and names the pass that broke it; 0 or unset does not.

    Raises:
        BadInput: any other value.
    """
    value = os.environ.get("REPL_FX_CHECK", "0")
    if value not in ("0", "1"):
        raise BadInput(f"REPL_FX_CHECK is {value!r}; set it to 1 or 0")
    return value == "1"
