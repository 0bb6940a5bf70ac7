"""Imports that fail, and those that end their process, end nothing else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from repl_fx.environment import probes
from repl_fx.environment.probes import Probe, probe

BROKEN = {
    "repl_fx_test_noisy": "print('a line'); import os; os.write(1, b'another')",
    "repl_fx_test_fails": "raise ImportError('libmissing.so: cannot open\\nmore')",
    "repl_fx_test_killed": "import os, signal; os.kill(os.getpid(), signal.SIGILL)",
    "repl_fx_test_exits": "import sys; print('no licence', file=sys.stderr); sys.exit(3)",
}


def test_each_module_is_imported_whatever_became_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, code in BROKEN.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    stages: list[str] = []
    found = probe([*BROKEN, "repl_fx_test_absent", "msgspec"], stages.append)
    assert found["repl_fx_test_noisy"] == found["msgspec"] == Probe()
    assert found["repl_fx_test_fails"].problem == "ImportError: libmissing.so: cannot open"
    assert found["repl_fx_test_killed"].problem == "its import ends the process (SIGILL)"
    assert found["repl_fx_test_exits"].problem == "its import ends the process (exit code 3): no licence"
    assert found["repl_fx_test_absent"].problem == "ModuleNotFoundError: No module named 'repl_fx_test_absent'"
    assert stages == [f"import {name}" for name in (*BROKEN, "repl_fx_test_absent", "msgspec")]


def test_modules_beside_that_of_the_child_are_not_in_its_way() -> None:
    # repl_fx/environment/machine.py is no module "machine".
    assert probe(["machine"])["machine"].problem == "ModuleNotFoundError: No module named 'machine'"


def test_libraries_say_what_they_have() -> None:
    found = probe(["torch", "onnxruntime"])
    assert found["torch"].facts["threads"] >= 1 and isinstance(found["torch"].facts["devices"], list)
    assert "CPUExecutionProvider" in found["onnxruntime"].facts["providers"]


def test_operators_of_torchvision() -> None:
    def missing(*given: object) -> None:
        raise RuntimeError("Could not load it. Then more")

    def asked(nms: object) -> dict[str, object]:
        return probes._of_torchvision(SimpleNamespace(ops=SimpleNamespace(nms=nms)))

    assert asked(lambda *given: None) == {"operators": True}
    assert asked(missing) == {"operators": False, "reason": "Could not load it"}
