"""Names of devices and versions of packages."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from repl_fx.benchmarking import machine


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


def test_the_environment_in_a_line() -> None:
    about = machine.of_device(torch.device("cpu"))
    assert about["cuda"] is None and about["threads"] == torch.get_num_threads()
    line = machine.in_a_line(about)
    assert line.startswith(f"{about['cpu']}, ") and f"torch {torch.__version__}, repl-fx " in line
    on_gpu = machine.in_a_line(about | {"device": "a GPU, 80 GiB", "cuda": "13.0", "cudnn": 9})
    assert on_gpu.startswith("a GPU, 80 GiB; ") and "CUDA 13.0, cuDNN 9" in on_gpu
