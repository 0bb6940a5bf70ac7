"""The pieces that pass or fail: the checks of `benchmarks.gpu_smoke`, and the tests that are marked `gpu`."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.gpu_pieces.setting import Record, Setting
from benchmarks.gpu_smoke import CHECKS, Subject, run_check

ROOT = Path(__file__).resolve().parents[2]
# The pieces of a step compile at scale toy; this check takes a minute of a CPU.
NOT_TOY = "compile"


def smoke(setting: Setting, model: str) -> Record:
    """The checks of one example model."""
    subject = Subject(model, setting.device)
    rows = []
    for key in CHECKS:
        if setting.toy and key == NOT_TOY:
            continue
        with setting.beside():
            rows.append(asdict(run_check(subject, key)))
        setting.save({"rows": rows})
    return {"rows": rows}


def marked_tests(setting: Setting) -> Record:
    """The outcomes of the tests that are marked `gpu`, which skip where there is none."""
    files = [str(file) for file in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in file.read_text()]
    if setting.toy:
        # Most of the time goes into reading them; without a GPU they skip.
        del files[1:]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files]
    with setting.beside():
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    counts = {name: int(number) for number, name in re.findall(r"(\d+) (passed|failed|skipped|errors?)", done.stdout)}
    if not counts:
        raise RuntimeError(f"pytest ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-300:]}")
    return {"files": len(files), "counts": counts, "failed": re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.M)}
