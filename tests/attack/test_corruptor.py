"""Files with faults are found, clean ones pass; `python -m benchmarks.attack --corrupt N` runs more of them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import onnx
import pytest
from torch import nn

import repl_fx
from repl_fx.export import onnx_model, verifying
from repl_fx.export.onnx_model import export_program
from repl_fx.running.example_inputs import ExampleInputs
from tests.attack import corruptor
from tests.attack.corruptor import FAULTS, Counts, apart, corrupt, run_corruptor, subject


@pytest.mark.slow
def test_faulty_files_are_found_and_clean_ones_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    # The networks stay as they are: one export of each is what all of its files are compared with, the first its own.
    programs: list[tuple[nn.Module, Any]] = []

    def exported_once(module: nn.Module, given: ExampleInputs, opset: int | None = None) -> Any:
        for known, program in programs:
            if known is module and opset == program.model.opset_imports[""]:
                return program
        programs.append((module, export_program(module, given, opset)))
        return programs[-1][1]

    for place in (onnx_model, verifying):
        monkeypatch.setattr(place, "export_program", exported_once)
    counts = run_corruptor(0, 36, clean=1)
    assert counts.wrong == [], str(counts)
    assert counts.faulty >= 18 and counts.found == counts.faulty and counts.clean == 1
    assert counts.faulty + counts.harmless + counts.near == 36


def test_a_verification_that_passes_everything_is_judged_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Always:
        layers = ()
        first_difference = None
        same_outputs = True

        def __bool__(self) -> bool:
            return True

        def summary(self) -> str:
            return "equivalent"

    monkeypatch.setattr(repl_fx, "verify_onnx", lambda *args, **kwargs: Always())
    counts = run_corruptor(0, 8, clean=0)
    assert len(counts.wrong) == counts.faulty > 0 and counts.found == 0
    assert "differs by" in str(counts)


def test_two_files_are_compared_by_their_results(tmp_path: Path) -> None:
    of = subject("plain")
    assert apart(of.file, of.file, of.inputs(0)) == 0.0
    (tmp_path / "no.onnx").write_bytes(of.file.read_bytes()[:100])
    assert apart(of.file, tmp_path / "no.onnx", of.inputs(0)) == float("inf")
    # One seed is one fault.
    first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
    assert corrupt(of, 3, first) == corrupt(of, 3, second)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_changes_some_file(name: str) -> None:
    for key in corruptor.SUBJECTS:
        model = onnx.load(str(subject(key).file))
        before = model.SerializeToString()
        if FAULTS[name](model, random.Random(1)) is not None:
            assert model.SerializeToString() != before
            return
    raise AssertionError(f"no subject takes the fault {name}")


def test_counts_read_as_a_line() -> None:
    assert "5 faulty files, 4 found" in str(Counts(faulty=5, found=4))
