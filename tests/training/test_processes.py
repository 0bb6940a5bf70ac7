"""Processes of a run meet, agree, and end together with the first error."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import repl_fx
from repl_fx.training.config import TrainConfig
from repl_fx.training.processes import ALONE, Disagreement, ending_together, join, require_devices
from tests.training.two_processes import ROOT, ended, started

CPU = TrainConfig(device="cpu")

# Each process does one thing by its rank, inside of what ends all together.
_SCRIPT = """
import os, signal, sys, time
import torch.distributed as dist
from repl_fx.errors import ReplFxError
from repl_fx.training.config import TrainConfig
from repl_fx.training.processes import Ended, ending_together, join
try:
    with ending_together(lambda line, code: print("heard:", code, line)):
        group = join(TrainConfig(device="cpu", devices=int(sys.argv[1])), stdout=2 if "2" in sys.argv[2:] else None)
        if group.first:
            {first}
        else:
            {other}
        if group.first:
            time.sleep(0.5)
            print("all is written")
except Ended as end:
    sys.exit(end.code)
except ReplFxError as error:
    print(f"error: {{error}}", file=sys.stderr)
    sys.exit(2)
"""


def _ended(first: str, other: str) -> list[tuple[int, str, str]]:
    script = _SCRIPT.format(first=first, other=other)
    return ended(started(["-c", script, "2"]), limit=60)


def test_all_end_when_all_is_written() -> None:
    same = "group.agree({'plans': ['a', 'b']})"
    assert [(code, out.strip()) for code, out, _ in _ended(same, same)] == [(0, "all is written"), (0, "")]


def test_processes_that_would_not_train_the_same_end_with_one_line() -> None:
    found = _ended("group.agree({'plans': ['a', 'b']})", "group.agree({'plans': ['a', 'c']})")
    assert [code for code, _, _ in found] == [2, 2]
    lines = [line for _, _, errors in found for line in errors.splitlines() if "error:" in line]
    assert len(lines) == 1 and lines[0] in found[0][2]
    assert "plans of process 1 are not those of process 0: process 1 has c, process 0 has b; start all" in lines[0]


@pytest.mark.parametrize("first", ["dist.barrier()", "time.sleep(60)"])
def test_an_error_in_one_process_ends_the_other_one(first: str) -> None:
    begin = time.monotonic()
    found = _ended(first, "raise ReplFxError('no such file')")
    assert time.monotonic() - begin < 40
    assert [code for code, _, _ in found] == [2, 2]
    assert found[0][2].strip() == "repl-fx: error: process 1 of 2: no such file" and not found[1][2]
    assert [out for _, out, _ in found] == ["heard: 2 process 1 of 2: no such file\n", ""]


def test_an_error_in_the_first_process_ends_the_other_one() -> None:
    found = _ended("raise ReplFxError('no such file')", "dist.barrier()")
    assert [(code, errors.strip()) for code, _, errors in found] == [(2, "error: no such file"), (2, "")]


@pytest.mark.parametrize(
    ("end", "line"), [("os.kill(os.getpid(), signal.SIGKILL)", "process 1 of 2 was ended by SIGKILL")]
)
def test_processes_that_are_started_here_end_with_each_other(tmp_path: Path, end: str, line: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT.format(first="dist.barrier()", other=end))
    done = subprocess.run(
        [sys.executable, script, "2"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    line = "process 1 of 2 was ended by SIGKILL; there may be too little memory\n"
    assert done.stderr == f"repl-fx: error: {line}" and done.stdout == f"heard: 2 {line}"


def test_processes_write_where_they_are_told(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT.format(first="pass", other="pass"))
    done = subprocess.run(
        [sys.executable, script, "2", "2"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "all is written\n")


def _torchrun(monkeypatch: pytest.MonkeyPatch, **environment: str) -> None:
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "2",
        **environment,
    }.items():
        monkeypatch.setenv(name, value)


def test_numbers_that_do_not_fit_are_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert join(CPU) is ALONE and ALONE.first and ALONE.alone
    with pytest.raises(repl_fx.BadInput, match=r"nodes is 2, .* run torchrun --nnodes 2 --nproc-per-node 4 "):
        join(CPU.changed(nodes=2, devices=4))
    _torchrun(monkeypatch)
    with pytest.raises(repl_fx.BadInput, match="devices is 4, and torchrun started 2; leave out --devices"):
        join(CPU.changed(devices=4))
    with pytest.raises(repl_fx.BadInput, match="nodes is 2, and torchrun started 1"):
        join(CPU.changed(nodes=2))
    _torchrun(monkeypatch, RANK="one")
    with pytest.raises(repl_fx.BadInput, match="are to be integers"):
        join(CPU)
    _torchrun(monkeypatch, WORLD_SIZE="1", LOCAL_WORLD_SIZE="1")
    assert join(CPU) is ALONE


def test_a_port_in_use_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        _torchrun(monkeypatch, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        with pytest.raises(repl_fx.BadInput, match=rf"the port of 127\.0\.0\.1:{port} is in use; give another one"):
            join(CPU)


def test_fewer_gpus_than_processes_are_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    require_devices("auto", 2)
    require_devices("cpu", 8)
    with pytest.raises(repl_fx.BadInput, match="8 processes on this machine want a GPU each, and it has 2"):
        require_devices("auto", 8)


def test_one_process_is_what_it_would_be() -> None:
    with ending_together():
        ALONE.agree({"plans": ["a"]})
    with pytest.raises(Disagreement), ending_together():
        raise Disagreement("as it is")
