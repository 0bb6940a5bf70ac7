"""The machine and the packages behind a figure."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

from repl_fx import __version__
from repl_fx.display.numbers import several
from repl_fx.environment.machine import cpu_model, installed as installed


def device_name(device: torch.device) -> str:
    """Name of a device as its maker gives it, and the memory of a GPU."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return cpu_model()


def environment() -> dict[str, Any]:
    """The facts that a reader needs to compare numbers: CPU, cores, threads, versions."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "repl_fx": __version__,
    }


def of_device(device: torch.device) -> dict[str, Any]:
    """The environment with the name of a device, and the versions of CUDA where it is one of its."""
    cuda = device.type == "cuda"
    cudnn: Any = torch.backends.cudnn
    return environment() | {
        "device": device_name(device),
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": cudnn.version() if cuda else None,
    }


def in_a_line(about: dict[str, Any]) -> str:
    """Hardware and versions in a line, as `of_device` tells them."""
    cuda = f", CUDA {about['cuda']}, cuDNN {about['cudnn']}" if about.get("cuda") else ""
    device = f"{about['device']}; " if about["device"] != about["cpu"] else ""
    processors = f"{several(about['cores'], 'core')}, {several(about['threads'], 'thread')}"
    return (
        f"{device}{about['cpu']}, {processors}; Python {about['python']}, "
        f"torch {about['torch']}{cuda}, repl-fx {about['repl_fx']}"
    )
