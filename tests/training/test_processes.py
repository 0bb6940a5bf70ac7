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
from repl_fx.training.processes import ALONE, Disagreement, ending_together, join, require_devices
from repl_fx.training.train_config import TrainConfig
from tests.training.two_processes import ROOT, ended, started

CPU = TrainConfig(device="cpu")

# Each process does one thing by its rank, inside of what ends all together.
_SCRIPT = """
import os, signal, sys, time
import torch.distributed as dist
from repl_fx.cli.group import stopping
from repl_fx.errors import ReplFxError
from repl_fx.training.train_config import TrainConfig
from repl_fx.training.processes import Ended, ending_together, join
def main():
    try:
        with stopping(), ending_together():
            group = join(TrainConfig(device="cpu", devices=2), stdout=2 if "2" in sys.argv[1:] else None)
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
if __name__ == "__main__":
    main()
"""


def _ended(first: str, other: str) -> list[tuple[int, str, str]]:
    """Exit code and output of each of two processes that are started from elsewhere."""
    return ended(started(["-c", _SCRIPT.format(first=first, other=other)]), limit=60)


def _ended_here(directory: Path, first: str, other: str, *arguments: str) -> tuple[int, str, str]:
    """Exit code and output of a command that starts two processes."""
    script = directory / "script.py"
    script.write_text(_SCRIPT.format(first=first, other=other))
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


_SAME = "group.agree({'plans': ['a', 'b']})"


@pytest.mark.slow
def test_all_end_when_all_is_written() -> None:
    assert [(code, out.strip()) for code, out, _ in _ended(_SAME, _SAME)] == [(0, "all is written"), (0, "")]


@pytest.mark.slow
def test_processes_that_would_not_train_the_same_end_with_one_line() -> None:
    found = _ended(_SAME, "group.agree({'plans': ['a', 'c']})")
    assert [code for code, _, _ in found] == [2, 2]
    lines = [line for _, _, errors in found for line in errors.splitlines() if "error:" in line]
    assert len(lines) == 1 and lines[0] in found[0][2]
    assert "plans of process 1 are not those of process 0: process 1 has c, process 0 has b; start all" in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("first", ["dist.barrier()", "time.sleep(60)", "raise ReplFxError('no such file')"])
def test_an_error_in_one_process_ends_the_other_one(tmp_path: Path, first: str) -> None:
    begin = time.monotonic()
    # Where both fail, one of them tells.
    found = _ended_here(tmp_path, first, "time.sleep(0.2); raise ReplFxError('no such file')")
    assert time.monotonic() - begin < 40
    where = "" if "raise" in first else "process 1 of 2: "
    assert found == (2, "", f"error: {where}no such file\n")


@pytest.mark.slow
def test_an_error_in_the_first_process_ends_the_other_one(tmp_path: Path) -> None:
    found = _ended_here(tmp_path, "raise ReplFxError('no such file')", "dist.barrier()")
    assert found == (2, "", "error: no such file\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "line"),
    [("SIGKILL", "was ended by SIGKILL; there may be too little memory"), ("SIGTERM", "was ended by SIGTERM")],
)
def test_a_process_that_was_ended_by_a_signal_is_a_line(tmp_path: Path, number: str, line: str) -> None:
    found = _ended_here(tmp_path, "dist.barrier()", f"os.kill(os.getpid(), signal.{number}); time.sleep(60)")
    assert found == (2, "", f"error: process 1 of 2 {line}\n")


@pytest.mark.slow
def test_processes_that_are_interrupted_as_they_begin_end_in_silence(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    # What a process imports first is this script. Interrupts are ignored in what is started with &, such as tests.
    heard = "import os, signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    press = "if __name__ != '__main__': os.kill(os.getpid(), signal.SIGINT)\n"
    script.write_text(heard + press + _SCRIPT.format(first="pass", other="pass"))
    done = subprocess.run([sys.executable, script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the end of a parent is told to its children on Linux alone")
@pytest.mark.parametrize("ignored", [False, True])
def test_processes_do_not_outlive_the_one_that_started_them(tmp_path: Path, ignored: bool) -> None:
    """Interrupts are ignored in what a script starts with &."""
    script, seen = tmp_path / "script.py", tmp_path / "seen"
    seen.mkdir()
    # By no destructor, such as that of an open file: what interrupts Python inside of one is lost.
    said = f"dist.barrier(); os.mkdir({str(seen)!r} + f'/{{os.getpid()}}'); time.sleep(600)"
    script.write_text(_SCRIPT.format(first=said, other=said))
    command = ["sh", "-c", f"trap {chr(39) * 2 if ignored else '-'} INT; exec {sys.executable} {script}"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as running:
        while len(list(seen.iterdir())) < 2:
            time.sleep(0.1)
            assert running.poll() is None
        running.kill()
    limit = time.monotonic() + 60
    for process in (int(one.name) for one in seen.iterdir()):
        while Path(f"/proc/{process}/stat").exists() and "Z" not in Path(f"/proc/{process}/stat").read_text().split():
            assert time.monotonic() < limit
            time.sleep(0.1)


@pytest.mark.slow
def test_processes_write_where_they_are_told(tmp_path: Path) -> None:
    assert _ended_here(tmp_path, "pass", "pass", "2") == (0, "", "all is written\n")


_KILLED_ONCE = """
import os
import torch.distributed as dist
from repl_fx.training.processes import join, restarts
from repl_fx.training.train_config import TrainConfig

processes = join(TrainConfig(device="cpu"))
if processes.rank == 1 and not restarts():
    os.kill(os.getpid(), 9)
processes.agree({})
open(f"met_again_{processes.rank}", "x").close()  # lines of two processes can run into each other
# Threads of a group that is left open may abort a process that ends.
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_processes_that_torchrun_starts_again_meet_again(tmp_path: Path) -> None:
    (tmp_path / "killed_once.py").write_text(_KILLED_ONCE)
    restarted = ("--standalone", "--nproc-per-node", "2", "--max-restarts", "1", "killed_once.py")
    command = [sys.executable, "-m", "torch.distributed.run", *restarted]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    assert sorted(path.name for path in tmp_path.glob("met_*")) == ["met_again_0", "met_again_1"]


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
