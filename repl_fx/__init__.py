"""repl-fx: Replacement Learning for any PyTorch model, as a graph compiler.

The names and modules in `__init__.pyi` are imported when they are first asked for: `repl-fx --help` need not wait for
torch.
"""

from __future__ import annotations

from pkgutil import iter_modules

import lazy_loader

__version__ = "0.1.0"
__getattr__, _, _names = lazy_loader.attach_stub(__name__, __file__)
# What `*` and `dir` lead to is the names: some modules need the libraries of an extra.
__all__ = sorted({*_names}.difference(module.name for module in iter_modules(__path__)))


def __dir__() -> list[str]:
    return __all__
