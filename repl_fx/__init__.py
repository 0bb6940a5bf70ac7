"""repl-fx: Replacement Learning for any PyTorch model, as a graph compiler.

The names in `__init__.pyi` are imported when they are first asked for: `repl-fx --help` need not wait for torch.
From here on, torchvision and torchaudio, and with them timm and transformers, can be imported where their C++ parts do
not fit the torch that is installed.
"""

from __future__ import annotations

import lazy_loader

from repl_fx._foreign_libraries import make_importable

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
make_importable()
