"""Names of devices and versions of packages."""

from __future__ import annotations

import importlib.metadata

import torch

from repl_fx.benchmarking import hardware
from repl_fx.environment.machine import cpu_model


def test_the_name_of_a_cpu() -> None:
    assert hardware.device_name(torch.device("cpu")) == cpu_model()


def test_what_is_not_installed_has_no_version() -> None:
    assert hardware.installed(["torch", "no-such-package"]) == {"torch": importlib.metadata.version("torch")}


def test_the_environment_in_a_line() -> None:
    about = hardware.of_device(torch.device("cpu"))
    assert about["cuda"] is None and about["threads"] == torch.get_num_threads()
    line = hardware.in_a_line(about)
    assert line.startswith(f"{about['cpu']}, ") and f"torch {torch.__version__}, repl-fx " in line
    alone = hardware.in_a_line(about | {"cores": 1, "threads": 1})
    assert f"{about['cpu']}, 1 core, 1 thread; Python" in alone
    on_gpu = hardware.in_a_line(about | {"device": "a GPU, 80 GiB", "cuda": "13.0", "cudnn": 9})
    assert on_gpu.startswith("a GPU, 80 GiB; ") and "CUDA 13.0, cuDNN 9" in on_gpu
