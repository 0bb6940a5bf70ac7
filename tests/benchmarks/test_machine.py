"""benchmarks/shared/machine.py: names of devices and versions of packages."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from benchmarks.shared import machine


def test_a_cpu_has_a_name_also_where_the_system_does_not_say_it(monkeypatch: pytest.MonkeyPatch) -> None:
    known = machine.cpu_model()
    assert known.strip() == known != ""
    assert machine.device_name(torch.device("cpu")) == known

    def read_text(self: Path) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", read_text)
    assert machine.cpu_model() == platform.processor() or platform.machine()


def test_what_is_not_installed_has_no_version() -> None:
    assert machine.installed(["torch", "no-such-package"]) == {"torch": torch.__version__}
