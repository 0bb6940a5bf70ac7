"""Imports that fail, and those that end their process, end nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

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


@pytest.mark.slow
def test_libraries_say_what_they_have() -> None:
    found = probe(["torch", "onnxruntime"])
    assert found["torch"].facts["threads"] >= 1 and isinstance(found["torch"].facts["devices"], list)
    assert "CPUExecutionProvider" in found["onnxruntime"].facts["providers"]


def test_the_package_that_is_broken_is_the_one_that_another_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "site-packages"
    place.mkdir()
    (place / "repl_fx_test_outer.py").write_text("import repl_fx_test_inner")
    (place / "repl_fx_test_inner.py").write_text("raise RuntimeError('built for another torch')")
    # As transformers does, which says nothing of the reason.
    late = (
        "try:\n    import repl_fx_test_inner\nexcept RuntimeError as failed:\n    raise ImportError('odd') from failed"
    )
    (place / "repl_fx_test_late.py").write_text(late)
    monkeypatch.syspath_prepend(place)
    found = probe(["repl_fx_test_outer", "repl_fx_test_late"])
    assert list(found.values()) == 2 * [Probe("RuntimeError: built for another torch", {}, "repl_fx_test_inner")]
