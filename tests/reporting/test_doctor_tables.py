"""The lines and tables of the doctor."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from repl_fx.environment.examination import Examination, Package
from repl_fx.environment.requirements import Declared, Extra, Needed
from repl_fx.reporting.doctor_tables import doctor_lines

FINE = Needed("one", ">=1", "1.2", fits=True)
ABSENT = Needed("two", ">=2", None, fits=False)
OLD = Needed("three", ">=3", "1.0", fits=False)
MACHINE = {
    "system": "Linux",
    "python": "3.13.1",
    "executable": "/bin/python",
    "cpu": "a CPU",
    "cores": 8,
    "threads": 4,
    "memory": 32 * 2**30,
    "gpus": [],
    "cuda": None,
    "driver": None,
}
FOUND = Examination(
    (
        Package(**vars(FINE), imported=True, problem=None, core=True),
        Package(**vars(FINE), imported=False, problem=None, core=False),
        Package(**vars(FINE), imported=True, problem="it raises", core=True),
        Package(**vars(OLD), imported=True, problem=None, core=True),
    ),
    Declared((FINE,), (Extra("zoo", (FINE, ABSENT), "pip install 'repl-fx[zoo]'"), Extra("dev", (FINE,), "pip"))),
    MACHINE,
    ("CPUExecutionProvider",),
    None,
    {"REPL_FX_CHECK": "1"},
    ("one thing",),
)


def text(found: Examination) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=80, markup=False)
    for line in doctor_lines(found):
        console.print(line)
    return [" ".join(line.split()) for line in file.getvalue().splitlines()]


def test_each_package_and_each_extra_has_its_line() -> None:
    lines = text(FOUND)
    assert "Python: 3.13.1, /bin/python, Linux" in lines
    assert "CPU: a CPU, 8 cores, 4 threads, 32 GiB" in lines and "GPU: none that torch can use" in lines
    assert "CUDA: torch was built without CUDA, no driver" in lines
    assert "torch.compile: usable on the CPU" in lines and "variable: REPL_FX_CHECK=1" in lines
    states = ["one >=1 1.2 fine", "one >=1 1.2 installed, not tried", "one >=1 1.2 it raises"]
    assert [line for line in lines if line.startswith("one ")] == states
    assert "three >=3 1.0 another version is needed" in lines
    assert "zoo two>=2 pip install 'repl-fx[zoo]'" in lines and "dev nothing" in lines
    assert lines[-1] == "note: one thing"


def test_a_gpu_and_a_machine_that_says_little() -> None:
    gpu = {"name": "a GPU", "memory": 80 * 2**30}
    machine = {**MACHINE, "gpus": [gpu], "cuda": "13.0", "driver": "570.1", "memory": None, "threads": None}
    found = replace(FOUND, machine=machine, declared=None, packages=(), providers=(), compile_problem="no compiler")
    lines = text(found)
    assert "GPU: a GPU, 80 GiB" in lines and "CUDA: torch was built for CUDA 13.0, driver 570.1" in lines
    assert "CPU: a CPU, 8 cores, unknown memory" in lines and "ONNX Runtime: no providers" in lines
    assert "torch.compile: not usable on the CPU: no compiler" in lines
    assert not {"Packages", "Extras"} & set(lines)
