"""The state of a compression on disk: which stages are done, and what came out of each.

    DIR/compression/settings.yaml    the settings, and the model
    DIR/compression/scores.json      scored
    DIR/compression/result.json      figures of each model, the fit, costs: what is known so far
    DIR/manifest.json                cut and fitted: the artifact
    DIR/train_state                  healing, which goes on from its own checkpoint
    DIR/verify.json                  exported and verified

Each file appears whole, by a rename; a run that was stopped goes on behind the last stage whose file is there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from repl_fx.artifact.places import COMPRESSION, RESULT as RESULT, SCORES
from repl_fx.environment.files import write_whole, writing
from repl_fx.errors import BadInput, one_line
from repl_fx.planning.scoring.scores import Scores
from repl_fx.training.data.content import require_content
from repl_fx.training.data.data_set import Data, UserData
from repl_fx.training.train_config import CompressConfig, require_said

SETTINGS = "settings.yaml"


class SettingsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file of settings.

    Attributes:
        data: see `content_of`; empty in one of before it was known.
    """

    spec: str
    settings: CompressConfig
    data: str = ""


@dataclass(frozen=True)
class CompressionState:
    """The state in a directory.

    Attributes:
        directory: of the compression, in which the artifact comes to lie.
    """

    directory: Path

    @property
    def place(self) -> Path:
        """The directory of the files."""
        return self.directory / COMPRESSION

    @property
    def begun(self) -> bool:
        """Tell whether a compression began here."""
        return (self.place / SETTINGS).is_file()

    def begin(self, spec: str, config: CompressConfig, data: str = "") -> None:
        """Write the settings of a new run, and the hash of its data; of one before nothing stays.

        Raises:
            OutputError: the directory cannot be written.
        """
        self.discard()
        self._write(SETTINGS, msgspec.yaml.encode(SettingsFile(spec, config, data)).decode())

    def discard(self) -> None:
        """Let nothing stay of a run, nor its directories where they are empty."""
        for name in (SETTINGS, SCORES, RESULT):
            (self.place / name).unlink(missing_ok=True)
        for folder in (self.place, self.directory):
            with suppress(OSError):
                folder.rmdir()

    def require_same_data(self, data: Data | UserData) -> None:
        """Refuse to go on with other data than those that the run began with.

        Raises:
            BadInput: they are others; names them.
        """
        require_content(data, self.settings().data, f"the compression in {self.directory}")

    def settings(self) -> SettingsFile:
        """The model, the settings and the data of the run.

        Raises:
            BadInput: no compression began here, or its settings are damaged.
        """
        found: SettingsFile | None = self._read(SETTINGS, msgspec.yaml, SettingsFile)
        if found is None:
            raise BadInput(f"{self.directory} has no compression to go on with; give a model, and -o")
        require_said(self.place / SETTINGS)
        return found

    def scores(self) -> Scores | None:
        """The scores; None where they are not known yet.

        Raises:
            BadInput: the file is damaged.
        """
        file = self.place / SCORES
        return Scores.from_json(file.read_text()) if file.is_file() else None

    def write_scores(self, scores: Scores) -> None:
        """Keep the scores.

        Raises:
            OutputError: the directory cannot be written.
        """
        self._write(SCORES, scores.to_json() + "\n")

    def result(self) -> dict[str, Any]:
        """The results that are known, by name.

        Raises:
            BadInput: the file is damaged.
        """
        return self._read(RESULT, msgspec.json, dict[str, Any]) or {}

    def figures(self) -> dict[str, Any]:
        """The figures that are known, by the name of the model."""
        return dict(self.result().get("figures", {}))

    def add(self, **known: Any) -> None:
        """Keep more results; the figures of a model beside those of the others.

        Raises:
            OutputError: the directory cannot be written.
        """
        result = self.result()
        for name, value in known.items():
            before = result.get(name)
            result[name] = {**before, **value} if isinstance(before, Mapping) and isinstance(value, Mapping) else value
        self._write(RESULT, json.dumps(result, indent=2) + "\n")

    def _read(self, name: str, form: Any, kind: Any) -> Any:
        """The content of a file; None where there is none."""
        file = self.place / name
        try:
            return form.decode(file.read_bytes(), type=kind)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as problem:
            raise BadInput(f"{file} cannot be read: {one_line(problem)}; begin anew with --force") from problem

    def _write(self, name: str, text: str) -> None:
        with writing(self.place):
            self.place.mkdir(parents=True, exist_ok=True)
        write_whole(self.place / name, text)
