"""The machine, as far as it is known without torch: CPU, memory, driver of a GPU, the compiler for torch.compile."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def cpu_model() -> str:
    """Name of the CPU as its maker gives it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def memory_bytes() -> int | None:
    """Bytes of main memory; None where the system does not say."""
    with suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def driver_version() -> str | None:
    """Version of NVIDIA's driver; None where there is none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.TimeoutExpired):
        found = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
        if found.returncode == 0 and found.stdout.strip():
            return found.stdout.split()[0]
    return None


def compiler() -> str | None:
    """Path of the C++ compiler that torch.compile takes on a CPU; None where there is none."""
    return shutil.which(os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++"))


def python_headers() -> bool:
    """Tell whether the headers of Python, which compiled code includes, are there."""
    return Path(sysconfig.get_paths()["include"], "Python.h").is_file()


def installed(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed, by name."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
