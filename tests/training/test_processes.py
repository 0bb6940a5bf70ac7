"""Processes of a run meet, agree, and end together with the first error."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import repl_fx
from repl_fx.training.processes import ALONE, Disagreement, ending_together, join, require_devices
from repl_fx.training.train_config import TrainConfig
from tests.training.forks import Forks, Request
from tests.training.two_processes import environments

CPU = TrainConfig(device="cpu")

# Each process does one thing by its rank, inside of what ends all together.
_SCRIPT = """
import os, signal, sys, time
import torch.distributed as dist
from repl_fx.cli.group import stopping
from repl_fx.errors import ReplFxError
from repl_fx.training import processes
from repl_fx.training.train_config import TrainConfig
from repl_fx.training.processes import Ended, ending_together, join
# Half of the time that others are given, in which nothing happens here.
processes._GRACE = 1.5
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


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    """What processes are copies of."""
    with Forks("repl_fx.cli.group", "torch.distributed.run") as forks:
        yield forks


def _script(directory: Path, first: str, other: str, before: str = "") -> str:
    script = directory / "script.py"
    script.write_text(before + _SCRIPT.format(first=first, other=other))
    return str(script)


_SAME = "group.agree({'plans': ['a', 'b']})"


@pytest.mark.slow
def test_all_end_when_all_is_written(forks: Forks, tmp_path: Path) -> None:
    found = forks.ended(Request(_script(tmp_path, _SAME, _SAME), environments=environments()))
    assert [(code, out.strip()) for code, out, _ in found] == [(0, "all is written"), (0, "")]


@pytest.mark.slow
def test_processes_that_would_not_train_the_same_end_with_one_line(forks: Forks, tmp_path: Path) -> None:
    script = _script(tmp_path, _SAME, "group.agree({'plans': ['a', 'c']})")
    found = forks.ended(Request(script, environments=environments()))
    assert [code for code, _, _ in found] == [2, 2]
    lines = [line for _, _, errors in found for line in errors.splitlines() if "error:" in line]
    assert len(lines) == 1 and lines[0] in found[0][2]
    assert "plans of process 1 are not those of process 0: process 1 has c, process 0 has b; start all" in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("first", ["dist.barrier()", "time.sleep(60)", "raise ReplFxError('no such file')"])
def test_an_error_in_one_process_ends_the_other_one(forks: Forks, tmp_path: Path, first: str) -> None:
    begin = time.monotonic()
    # Where both fail, one of them tells.
    found = forks.ended(Request(_script(tmp_path, first, "time.sleep(0.2); raise ReplFxError('no such file')")))
    assert time.monotonic() - begin < 40
    where = "" if "raise" in first else "process 1 of 2: "
    assert found == [(2, "", f"error: {where}no such file\n")]


@pytest.mark.slow
def test_an_error_in_the_first_process_ends_the_other_one(forks: Forks, tmp_path: Path) -> None:
    script = _script(tmp_path, "raise ReplFxError('no such file')", "dist.barrier()")
    assert forks.ended(Request(script)) == [(2, "", "error: no such file\n")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "line"),
    [("SIGKILL", "was ended by SIGKILL; there may be too little memory"), ("SIGTERM", "was ended by SIGTERM")],
)
def test_a_process_that_was_ended_by_a_signal_is_a_line(forks: Forks, tmp_path: Path, number: str, line: str) -> None:
    script = _script(tmp_path, "dist.barrier()", f"os.kill(os.getpid(), signal.{number}); time.sleep(60)")
    assert forks.ended(Request(script)) == [(2, "", f"error: process 1 of 2 {line}\n")]


@pytest.mark.slow
def test_processes_that_are_interrupted_as_they_begin_end_in_silence(forks: Forks, tmp_path: Path) -> None:
    # What a process imports first is this script. Interrupts are ignored in what is started with &, such as tests.
    heard = "import os, signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    press = "if __name__ != '__main__': os.kill(os.getpid(), signal.SIGINT)\n"
    script = _script(tmp_path, "pass", "pass", before=heard + press)
    assert forks.ended(Request(script, spawned=True)) == [(130, "", "")]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the end of a parent is told to its children on Linux alone")
@pytest.mark.parametrize("ignored", [False, True])
def test_processes_do_not_outlive_the_one_that_started_them(forks: Forks, tmp_path: Path, ignored: bool) -> None:
    """Interrupts are ignored in what a script starts with &."""
    seen = tmp_path / "seen"
    seen.mkdir()
    # By no destructor, such as that of an open file: what interrupts Python inside of one is lost.
    said = f"dist.barrier(); os.mkdir({str(seen)!r} + f'/{{os.getpid()}}'); time.sleep(600)"
    script = _script(tmp_path, said, said)
    (running,) = forks.start(Request(script, spawned=not ignored, uninterrupted=ignored))
    try:
        limit = time.monotonic() + 50
        while len(list(seen.iterdir())) < 2:
            time.sleep(0.1)
            assert time.monotonic() < limit, (tmp_path / "0.err").read_text()
    finally:
        os.kill(running, signal.SIGKILL)
        assert forks.codes() == [-signal.SIGKILL]
    limit = time.monotonic() + 60
    for process in (int(one.name) for one in seen.iterdir()):
        while Path(f"/proc/{process}/stat").exists() and "Z" not in Path(f"/proc/{process}/stat").read_text().split():
            assert time.monotonic() < limit
            time.sleep(0.1)


@pytest.mark.slow
def test_processes_write_where_they_are_told(forks: Forks, tmp_path: Path) -> None:
    request = Request(_script(tmp_path, "pass", "pass"), ("2",), spawned=True)
    assert forks.ended(request) == [(0, "", "all is written\n")]


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
def test_processes_that_torchrun_starts_again_meet_again(forks: Forks, tmp_path: Path) -> None:
    (tmp_path / "killed_once.py").write_text(_KILLED_ONCE)
    script = tmp_path / "torchrun.py"
    script.write_text(f"import os, torch.distributed.run as torchrun; os.chdir({str(tmp_path)!r}); torchrun.main()")
    restarted = ("--standalone", "--nproc-per-node", "2", "--max-restarts", "1", "killed_once.py")
    ((code, _, errors),) = forks.ended(Request(str(script), restarted, limit=300))
    assert code == 0, errors
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
