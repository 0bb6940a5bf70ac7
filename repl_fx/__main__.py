"""`python -m repl_fx` is `repl-fx`."""

from __future__ import annotations

from repl_fx.cli import main

if __name__ == "__main__":
    main()
