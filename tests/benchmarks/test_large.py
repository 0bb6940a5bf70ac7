"""The benchmark of a large model, on a small one."""

from __future__ import annotations

import pytest

from benchmarks import large

pytest.importorskip("transformers")


@pytest.mark.slow
def test_all_stages_run_and_say_what_they_took(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [
        "--layers",
        "4",
        "--width",
        "32",
        "--hidden",
        "64",
        "--vocabulary",
        "50",
        "--samples",
        "8",
        "--tokens",
        "8",
    ]
    assert large.main([*sizes, "--budget", "0.9"]) == 0
    shown = capsys.readouterr().out
    assert all(stage in shown for stage in ("build", "capture", "score", "plan and cut", "fit"))
    assert "4 blocks by influence" in " ".join(shown.split()) and large.peak_gib() > 0.1
