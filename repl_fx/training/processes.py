"""The processes of a run: how they start, meet, agree, and end together.

Under torchrun they are there already. Else `--devices N` starts N copies of this command here by torch's spawn, which
ends the others when one has failed, as torchrun's agent does. They compare what they are about to train by a collective
on the CPU. Who fails claims the word in the store by which they met, and tells the error; the others end in silence.
"""

from __future__ import annotations

import os
import re
import runpy
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing import resource_tracker
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessExitedException, spawn

import __main__
from repl_fx._torch import end_with_parent
from repl_fx.errors import BadInput, Stopped, first_line, not_ours
from repl_fx.running.hushed import hushed
from repl_fx.training.train_config import TrainConfig

_GRACE = 3.0  # Seconds in which the others end by themselves when one has failed.
# Longer than any capture.
_LONG = timedelta(days=7)
_BAD, _INTERRUPTED, _SIGNALLED = 2, 130, 128
_HOST = "127.0.0.1"
# What gloo and NCCL say where a process is gone.
_GONE = re.compile(r"gloo/transport|Connection (closed|reset) by (remote )?peer|NCCL (error|communicator)|ncclRemote")
# Stubs do not name the stores, nor annotate what starts processes.
_dist: Any = dist
_spawn: Any = spawn


class Ended(SystemExit):
    """The end of this process where others have said or done all there is to say and do; with their exit code."""


class LostPeer(BadInput):
    """Another process of the run does not answer any more; its own word says more, where there is one."""


class Disagreement(BadInput):
    """Processes that would not train the same; each of them knows."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, as one of them sees them.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are, on all nodes.
        local_rank, local_size: likewise on this node.
        group: of all, on the CPU.
        store: by which they met; None for one process alone, as the group.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    group: Any = field(default=None, repr=False, compare=False)
    store: Any = field(default=None, repr=False, compare=False)

    @property
    def first(self) -> bool:
        """Tell whether this is the process that writes and prints."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Tell whether there is no other."""
        return self.size == 1

    @property
    def nodes(self) -> int:
        """The number of machines."""
        return self.size // self.local_size

    def agree(self, facts: Mapping[str, Sequence[str]]) -> None:
        """Compare with all other processes.

        Args:
            facts: lines of text by what they are, in the plural.

        Raises:
            Disagreement: on each process, where any differs from the first; names them and the first difference.
        """
        if self.alone:
            return
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, {what: list(lines) for what, lines in facts.items()}, self.group)
        for what in facts:
            others = [rank for rank in range(self.size) if found[rank].get(what) != found[0].get(what)]
            if others:
                named = f"process {others[0]}" if len(others) == 1 else f"processes {', '.join(map(str, others))}"
                raise Disagreement(
                    f"{what} of {named} are not those of process 0: "
                    f"{_difference(others[0], found[others[0]].get(what, []), found[0].get(what, []))}; "
                    "start all with the same files, settings and versions"
                )


def lost_peer(problem: BaseException) -> LostPeer | None:
    """The line for a process of the run that does not answer any more; None for another error."""
    backend = isinstance(problem, dist.DistBackendError | dist.DistNetworkError)
    if not backend and not (isinstance(problem, RuntimeError) and _GONE.search(str(problem))):
        return None
    said = first_line(problem)[:200]
    return LostPeer(
        f"another process of the run was ended, or is not reached any more ({said}); start all again, with --resume"
    )


ALONE = Processes()
_joined: list[Processes] = []


def _difference(rank: int, there: Sequence[str], first: Sequence[str]) -> str:
    at = next((i for i in range(max(len(there), len(first))) if there[i : i + 1] != first[i : i + 1]), 0)
    found, wanted = (" ".join("".join(lines[at : at + 1]).split())[:200] or "nothing" for lines in (there, first))
    return f"process {rank} has {found}, process 0 has {wanted}"


def join(config: TrainConfig, *, resume: bool = False, stdout: int | None = None) -> Processes:
    """Meet the other processes of a run, or start them; those met before, where there are.

    Args:
        config: its `devices` and `nodes` are how many.
        resume: whether these are those of the run before, and may be others now.
        stdout: file descriptor where those that it starts write; its own by default.

    Raises:
        BadInput: torchrun started another number, there are fewer GPUs, the port is in use, or a process that this one
            started was ended by a signal.
        Ended: the processes that this one started have ended.
    """
    if _joined:
        return _joined[0]
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        if (config.nodes or 1) > 1:
            raise BadInput(
                f"nodes is {config.nodes}, and processes on several are started by torchrun: run torchrun --nnodes "
                f"{config.nodes} --nproc-per-node {config.devices or 1} --rdzv-backend c10d --rdzv-endpoint HOST:29500 "
                "-m repl_fx train … on each"
            )
        count = config.devices or 1
        if count == 1:
            return ALONE
        require_devices(config.device, count)
        raise Ended(_start(count, stdout))
    found = _met(config, resume=resume)
    if not found.alone:
        _joined.append(found)
    return found


def on_cuda(device: str) -> bool:
    """Tell whether a run on a device, which may be `auto`, is on a GPU."""
    kind = device.partition(":")[0]
    return kind == "cuda" or (kind == "auto" and torch.cuda.is_available())


def require_devices(device: str, count: int) -> None:
    """Refuse more processes than there are GPUs, where they run on these."""
    there = torch.cuda.device_count()
    if on_cuda(device) and 0 < there < count:
        raise BadInput(f"{count} processes on this machine want a GPU each, and it has {there}; give --devices {there}")


def _met(config: TrainConfig, *, resume: bool) -> Processes:
    """The processes that torchrun started."""
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local_rank = int(os.environ.get("LOCAL_RANK", rank))
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    except ValueError as problem:
        raise BadInput(f"RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE are to be integers: {problem}") from problem
    for name, wanted, there in (("devices", config.devices, local_size), ("nodes", config.nodes, size // local_size)):
        if wanted not in (None, there) and not resume:
            raise BadInput(f"{name} is {wanted}, and torchrun started {there}; leave out --{name}, it follows torchrun")
    if size == 1:
        return ALONE
    require_devices(config.device, local_size)
    own: dict[str, Any] = {"backend": "gloo"}
    if on_cuda(config.device) and torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        own = {"backend": "nccl", "device_id": device}
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        store = next(_dist.rendezvous("env://"))[0]
    except (RuntimeError, ValueError) as problem:
        if "EADDRINUSE" in str(problem):
            raise BadInput(f"the port of {where} is in use; give another one (torchrun --master-port)") from problem
        raise BadInput(f"process {rank} does not reach {where}: {first_line(problem)}") from problem
    store.set_timeout(_LONG)
    # A restart of torchrun's uses the same store, in which addresses of processes before are.
    torchs, words = (_dist.PrefixStore(f"{name}/{restarts()}", store) for name in ("torch", "repl_fx"))
    dist.init_process_group(store=torchs, rank=rank, world_size=size, **own)
    group = dist.new_group(backend="gloo", timeout=_LONG)
    return Processes(rank, size, local_rank, local_size, group, words)


def restarts() -> int:
    """The number of times that torchrun has started the processes again (`--max-restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _start(count: int, stdout: int | None) -> int:
    """Start copies of this command, and wait for them; returns the exit code.

    Raises:
        BadInput: one was ended by a signal.
    """
    store = _dist.TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // count)))
    os.environ |= {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": _HOST,
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    module = None if __main__.__spec__ is None else __main__.__spec__.name.removesuffix(".__main__")
    # Interrupts of what they import are tracebacks. The start of the tracker would unblock them.
    resource_tracker.ensure_running()
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        with _stdout_at(stdout):
            started = _spawn(_run_again, (module,), nprocs=count, join=False)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
    number = signal.SIGTERM
    try:
        # It says whom it ends.
        with hushed((), ("torch.multiprocessing.spawn",)):
            while not started.join(grace_period=_GRACE):
                pass
        return 0
    except ProcessExitedException as ended:
        code: int = ended.exit_code
        by = -code if code < 0 else code - _SIGNALLED
        if by <= 0 or code == _INTERRUPTED:
            return code
        why = "; there may be too little memory" if by == signal.SIGKILL else ""
        raise BadInput(f"process {ended.error_index} of {count} was ended by {signal.Signals(by).name}{why}") from ended
    except KeyboardInterrupt:
        # Those that have a terminal were interrupted by it too.
        number = signal.SIGINT
        return _INTERRUPTED
    finally:
        for process in started.processes:
            if process.is_alive():
                os.kill(process.pid, number)
        for process in started.processes:
            process.join(_GRACE)
            process.kill()


def _run_again(rank: int, module: str | None) -> None:
    """Run this command as one of its processes."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # As in what a script starts with &. It is the signal by which torch tells that the parent is gone.
        end_with_parent(signal.SIGTERM)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    except KeyboardInterrupt:
        raise Ended(_INTERRUPTED) from None
    if module is None:
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(module, run_name="__main__", alter_sys=True)


@contextmanager
def _stdout_at(descriptor: int | None) -> Iterator[None]:
    """Let processes that are started meanwhile write to a file descriptor."""
    if descriptor is None:
        yield
        return
    before = os.dup(1)
    os.dup2(descriptor, 1)
    try:
        yield
    finally:
        os.dup2(before, 1)
        os.close(before)


@contextmanager
def ending_together() -> Iterator[None]:
    """End all processes of the run with the first error of one of them, which that one tells.

    Raises:
        Ended: another process, or who ended this one, tells what there is to tell.
    """
    try:
        yield
        for processes in _joined:
            # The first one may write for long yet.
            dist.barrier(processes.group)
    except Ended:
        raise
    except BaseException as error:
        told = _word(_joined[0], error) if _joined else error
        if told is not error:
            raise told from error
        raise
    finally:
        if _joined and dist.is_initialized():
            dist.destroy_process_group()
        _joined.clear()


def _word(processes: Processes, error: BaseException) -> BaseException:
    """An error as this process tells it; or its silent end, where another one was first."""
    if isinstance(error, Stopped):
        return Ended(_SIGNALLED + error.number)
    error = lost_peer(error) or error
    said = not_ours(error)
    try:
        if isinstance(error, LostPeer):
            # The word of another process, or its end by a signal, comes now.
            time.sleep(2 * _GRACE)
        # All know that they disagree, or were interrupted.
        if not (processes.first if isinstance(error, Disagreement | KeyboardInterrupt) else _claimed(processes)):
            # The exit code of the one that tells has to be the first.
            time.sleep(_GRACE)
            return Ended(_INTERRUPTED if isinstance(error, KeyboardInterrupt) else _BAD)
    except Stopped as stopped:
        return Ended(_SIGNALLED + stopped.number)
    if said is None or processes.first or isinstance(error, Disagreement):
        return error
    return BadInput(f"process {processes.rank} of {processes.size}: {said}")


def _claimed(processes: Processes) -> bool:
    """Tell whether this process is the one to tell an error."""
    own = str(processes.rank)
    try:
        return bool(processes.store.compare_set("failed", "", own).decode() == own)
    except RuntimeError:
        # The store has gone with the process that it was in.
        return True
