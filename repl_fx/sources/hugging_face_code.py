"""Code that lies beside a config.json, and runs only where the user permits it.

A config says in its `auto_map` which class of which file stands for an auto class: `{"AutoModel": "modeling_net.Net"}`.
As in transformers, classes of its own are used for a model that it knows, and code with permission alone. transformers
copies the code into a cache of modules, and imports it from there.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from repl_fx.errors import SourceError
from repl_fx.sources.interrupts import code_of_users
from repl_fx.sources.source import describe, hash_file

OPTION = "--trust-remote-code (trust_remote_code=True in Python)"
_REFERENCE = re.compile(r"(?:\w[\w-]*/)*\w[\w-]*\.\w+")


@dataclass(frozen=True)
class Code:
    """The code that a config names.

    Attributes:
        directory: where config.json lies, resolved.
        config: reference to the class of the config, `file.Class`; None where transformers has it.
        model: reference to the class of the model that was asked for.
        classes: the names under which models can be asked for.
    """

    directory: Path
    config: str | None
    model: str | None
    classes: tuple[str, ...]
    permitted: bool

    @classmethod
    def named_by(cls, values: Mapping[str, Any], directory: Path, class_name: str | None, permitted: bool) -> Code:
        """The code that a config names for a class: an auto class, or a class of the code by its own name."""
        auto_map = values.get("auto_map")
        named = {k: v for k, v in auto_map.items() if isinstance(v, str)} if isinstance(auto_map, dict) else {}
        wanted = class_name or "AutoModel"
        own = (reference for reference in named.values() if reference.rpartition(".")[2] == wanted)
        models = tuple(name for name in named if name.startswith("AutoModel"))
        return cls(directory, named.get("AutoConfig"), named.get(wanted) or next(own, None), models, permitted)

    @property
    def unused(self) -> bool:
        """Tell whether the class that was asked for has code, which may not run."""
        return not self.permitted and (self.config is not None or self.model is not None)

    @cached_property
    def files(self) -> dict[Path, str]:
        """The files that may run, with all that they import from beside them, each with its SHA-256."""
        from transformers.dynamic_module_utils import get_relative_import_files

        found: dict[Path, str] = {}
        for reference in (self.config, self.model):
            if reference is None or not self.permitted:
                continue
            file = self.directory / _file_of(reference, self.directory)
            try:
                files = [file, *sorted(Path(other) for other in get_relative_import_files(file))]
                found |= {other: hash_file(other) for other in files}
            except (OSError, ValueError) as error:
                raise SourceError(f"the code of {self.directory} cannot be read: {describe(error)}") from error
        return found

    def load(self, reference: str) -> Any:
        """Run the code and return the class that `config` or `model` names, of the versions that `files` tells."""
        if not self.permitted:
            raise SourceError(
                f"the model brings code of its own, in {self.directory}, which runs only where you trust it; "
                f"read it, and add {OPTION}"
            )
        dynamic: Any = importlib.import_module("transformers.dynamic_module_utils")
        name = _file_of(reference, self.directory)
        failed = f"{self.directory / name} could not be run:"
        with code_of_users(failed, self.directory):
            at = dynamic.get_cached_module_file(str(self.directory), name, local_files_only=True)
            copies = Path(dynamic.HF_MODULES_CACHE, at).parents[name.count("/")]
            read = self.directory / name, *map(Path, dynamic.get_relative_import_files(self.directory / name))
            changed = [f for f in read if hash_file(copies / f.relative_to(self.directory)) != self.files.get(f)]
        if changed:
            raise SourceError(f"{changed[0]} changed while it was read; try again")
        with code_of_users(failed, self.directory):
            return dynamic.get_class_in_module(reference.rpartition(".")[2], at)


def _file_of(reference: str, directory: Path) -> str:
    if "--" in reference:
        repository = reference.partition("--")[0]
        raise SourceError(
            f"the code of the model is in another place, {repository}, and nothing is downloaded; put it into "
            f"{directory}, and its name without {repository}-- into the auto_map of config.json"
        )
    if not _REFERENCE.fullmatch(reference):
        raise SourceError(f"{reference!r} in the auto_map of config.json is no class of a file in {directory}")
    return f"{reference.rpartition('.')[0]}.py"
