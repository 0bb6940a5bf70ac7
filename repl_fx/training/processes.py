"""The processes of a run: how they start, meet, agree, and end together.

Under torchrun they are there already. Else `--devices N` starts N copies of this command here, and waits for them.
All talk through one key-value store, before and beside the collectives of torch:

    facts/ROUND/RANK    what a process is about to train; all compare them
    failed              the first error of any process; a thread in each looks for it, as collectives wait for long
    told                the first process has printed that error
    done, left          the first process has written all; how many have seen it
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

import __main__
from repl_fx.errors import BadInput, Stopped, first_line, not_ours
from repl_fx.training.config import TrainConfig

LOOK = 0.3  # Seconds between two looks at the store.
_GRACE = 3.0  # Seconds in which the others notice an error.
# Longer than any capture: an error ends the wait sooner.
_LONG = timedelta(days=7)
_BAD, _INTERRUPTED = 2, 130
_HOST = "127.0.0.1"
# What gloo and NCCL say where a process is gone.
_GONE = re.compile(r"gloo/transport|Connection (closed|reset) by (remote )?peer|NCCL (error|communicator)|ncclRemote")
# Its stubs do not name the stores.
_dist: Any = dist


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
        store: shared by all; None for one process alone.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    store: Any = field(default=None, repr=False, compare=False)
    _stopped: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)
    _rounds: list[int] = field(default_factory=lambda: [0], repr=False, compare=False)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.size == 1

    @property
    def nodes(self) -> int:
        """How many machines."""
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
        hashes = {what: hashlib.sha256("\n".join(lines).encode()).hexdigest() for what, lines in facts.items()}
        found = self._exchange(hashes)
        for what in facts:
            others = [rank for rank in range(self.size) if found[rank].get(what) != found[0].get(what)]
            if others:
                texts = self._exchange(list(facts[what]), [0, others[0]])
                named = f"process {others[0]}" if len(others) == 1 else f"processes {', '.join(map(str, others))}"
                raise Disagreement(
                    f"{what} of {named} are not those of process 0: "
                    f"{_difference(others[0], texts[others[0]], texts[0])}; "
                    "start all with the same files, settings and versions"
                )

    def _exchange(self, own: Any, ranks: Sequence[int] | None = None) -> dict[int, Any]:
        """The values that the processes give, by rank."""
        place, self._rounds[0] = f"facts/{self._rounds[0]}", self._rounds[0] + 1
        self.store.set(f"{place}/{self.rank}", json.dumps(own))
        return {rank: json.loads(self.store.get(f"{place}/{rank}")) for rank in ranks or range(self.size)}


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
# Who hears of the errors of other processes that this one prints.
_listeners: list[Callable[[str, int], None]] = []


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
        BadInput: torchrun started another number, there are fewer GPUs, or the port is in use.
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
        if (config.devices or 1) == 1:
            return ALONE
        assert config.devices is not None
        require_devices(config.device, config.devices)
        raise Ended(_start(config.devices, stdout))
    found = _met(config, resume=resume)
    if not found.alone:
        _joined.append(found)
        threading.Thread(target=_watch, args=(found, found.store.clone()), daemon=True).start()
    return found


def on_cuda(device: str) -> bool:
    """Whether a run on a device, which may be `auto`, is on a GPU."""
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
    except dist.DistNetworkError as problem:
        if "EADDRINUSE" in str(problem):
            raise BadInput(f"the port of {where} is in use; give another one (torchrun --master-port)") from problem
        raise BadInput(f"process {rank} does not reach {where}: {first_line(problem)}") from problem
    except (RuntimeError, ValueError) as problem:
        raise BadInput(f"process {rank} does not reach {where}: {first_line(problem)}") from problem
    store.set_timeout(_LONG)
    dist.init_process_group(store=_dist.PrefixStore("torch", store), rank=rank, world_size=size, **own)
    return Processes(rank, size, local_rank, local_size, _words(store))


def _words(store: Any) -> Any:
    """The part of a store for what the processes tell each other."""
    # A restart of torchrun's uses the same store.
    return _dist.PrefixStore(f"repl_fx/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _start(count: int, stdout: int | None) -> int:
    """Start copies of this command, and wait for them; returns the exit code."""
    # Its connections end with this process, at which the others end.
    store = _dist.TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)
    shared = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": _HOST,
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    threads = (
        {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // count))}
    )
    command = _own_command()
    environment = {**threads, **os.environ, **shared}
    started = [
        subprocess.Popen(command, env={**environment, "RANK": str(i), "LOCAL_RANK": str(i)}, stdout=stdout)
        for i in range(count)
    ]
    try:
        return _code(started, _words(store))
    except KeyboardInterrupt:
        # Those that have a terminal were interrupted by it too.
        _end(started, signal.SIGINT)
        return _INTERRUPTED
    finally:
        _end(started, signal.SIGTERM)


def _own_command() -> list[str]:
    spec = __main__.__spec__
    script = [os.path.abspath(sys.argv[0])] if spec is None else ["-m", spec.name.removesuffix(".__main__")]
    return [sys.executable, *script, *sys.argv[1:]]


def _code(started: Sequence[subprocess.Popen[bytes]], store: Any) -> int:
    """The exit code: the first that is none of success; the others have some time to end by themselves."""
    while True:
        codes = [process.poll() for process in started]
        failed = next((rank for rank, code in enumerate(codes) if code), None)
        if failed is not None:
            code = codes[failed]
            assert code is not None
            line = ""
            if code < 0:
                name = signal.Signals(-code).name
                why = "; there may be too little memory" if -code == signal.SIGKILL else ""
                line, code = f"process {failed} of {len(started)} was ended by {name}{why}", _BAD
                # The first process prints it, where it is there.
                store.compare_set("failed", "", json.dumps({"rank": failed, "line": line, "code": code}))
            limit = time.monotonic() + 2 * _GRACE
            while any(process.poll() is None for process in started) and time.monotonic() < limit:
                time.sleep(0.05)
            if line and not store.check(["told"]):
                _tell(line, code)
            return code
        if all(code == 0 for code in codes):
            return 0
        time.sleep(0.1)


def _end(started: Sequence[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    running = [process for process in started if process.poll() is None]
    for process in running:
        process.send_signal(number)
    for process in running:
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _watch(processes: Processes, store: Any) -> None:
    """End this process when another one has failed: it may wait in a collective for what never comes."""
    while not processes._stopped.wait(LOOK):
        try:
            if not store.check(["failed"]):
                continue
            failed = json.loads(store.get("failed"))
            if failed["rank"] == processes.rank:
                return
            line = failed["line"] if processes.first else ""
        except RuntimeError:
            if processes._stopped.is_set():
                return
            failed, line = {"code": _BAD}, f"process {processes.rank} of {processes.size} lost the others"
        if line:
            _tell(line, failed["code"])
        if processes.first:
            store.set("told", "")
            # The store may end with this process, and who waits for the word has to hear it.
            time.sleep(LOOK)
        os._exit(failed["code"])


def _tell(line: str, code: int) -> None:
    # A bar of progress may have hidden the cursor.
    shown = "\n\x1b[?25h" if sys.stderr.isatty() else ""
    print(f"{shown}repl-fx: error: {line}", file=sys.stderr, flush=True)
    for listen in _listeners:
        listen(line, code)


@contextmanager
def ending_together(listen: Callable[[str, int], None] = lambda line, code: None) -> Iterator[None]:
    """End all processes of the run with the first error of one of them, which is printed once.

    Args:
        listen: called with an error of another process, which this one has printed, and its exit code.

    Raises:
        Ended: the first process has printed the error of this one.
    """
    _listeners.append(listen)
    try:
        yield
        if _joined:
            _leave(_joined[0])
    except Ended:
        raise
    except BaseException as error:
        if not _joined:
            raise
        _fail(_joined[0], error)
        raise
    finally:
        for processes in _joined:
            processes._stopped.set()
        if _joined and dist.is_initialized():
            dist.destroy_process_group()
        _joined.clear()
        _listeners.remove(listen)


def _leave(processes: Processes) -> None:
    """Wait until the first process has written all; it waits until all have seen that."""
    store = processes.store
    if processes.first:
        store.set("done", "")
    store.wait(["done"], _LONG)
    processes._stopped.set()
    left, limit = store.add("left", 1), time.monotonic() + _GRACE
    while processes.first and left < processes.size and time.monotonic() < limit:
        time.sleep(0.02)
        left = store.add("left", 0)


def _fail(processes: Processes, error: BaseException) -> None:
    """Tell the others of an error, or end because another one was first."""
    error = lost_peer(error) or error
    said = not_ours(error)
    ours = said is not None
    code = _INTERRUPTED if isinstance(error, KeyboardInterrupt) else _BAD
    code = 128 + error.number if isinstance(error, Stopped) else code
    if not ours or isinstance(error, LostPeer):
        # A lost connection is the end of another process, whose word, or end by torchrun, comes now.
        time.sleep(_GRACE / 2)
    where = "" if isinstance(error, Disagreement) else f"process {processes.rank} of {processes.size}: "
    own = {"rank": processes.rank, "line": where + (said or "") if ours else "", "code": code}
    store = processes.store
    try:
        first = json.loads(store.compare_set("failed", "", json.dumps(own)))
        if first["rank"] != processes.rank:
            # The thread that watches ends this process.
            time.sleep(_GRACE)
            raise Ended(code)
        if ours and not processes.first:
            store.wait(["told"], timedelta(seconds=_GRACE))
            raise Ended(code) from error
        if processes.first and "TORCHELASTIC_USE_AGENT_STORE" not in os.environ:
            # The store is in this process.
            time.sleep(3 * LOOK)
    except RuntimeError:
        # Nobody listens any more, or the first process does not: this one prints.
        return
