"""All that is measured on a GPU, by one command that may be killed at any moment and goes on.

    python -m benchmarks.gpu --data DIR --out OUT --seconds 540        what is not done yet, in the order of value
    python -m benchmarks.gpu --data DIR --only 'step/vit_base/*'       a part; --list names the pieces
    python -m benchmarks.gpu --device cpu --scale toy                  some of each kind, at a size that says nothing
    python -m benchmarks.gpu_report OUT/gpu.jsonl --docs docs          docs/gpu.md from what was measured

    smoke, tests      what works: `benchmarks.gpu_smoke`, and the tests that are marked `gpu`
    largest           the largest batch that a step of each variant takes in a quarter of the memory, found by trial
                      within an eighth
    step              time and memory of a step in bfloat16, by the machinery of `benchmarks.step_cost`: the full model,
                      with checkpoints, depth-pruned, each surrogate
    kernels           the ten kernels that a step of the full model, the depth-pruned and the recommended spends most of
                      its time in, by torch.profiler
    train             `repl-fx train` next to a bare loop, by `benchmarks.throughput`
    accuracy          trained from scratch, by `benchmarks.accuracy` at its scale `gpu` with fewer epochs
    compress          trained networks cut by what `repl-fx compress` does and by Torch-Pruning, by `benchmarks.trained`
    processes         DDP and FSDP2 with one process: losses as without, and the time of a step
    runtimes          ONNX Runtime's providers: latency, and the difference from PyTorch on the CPU

Each piece runs in a process of its own, which ends with this one, and leaves one line in OUT/gpu.jsonl: its result, the
machine, and a `status`. What is `done` is not done again. A piece that `failed`, or was `late` (ended after four times
its seconds), is left with its error and what it had, and tried again with `--again`; one that was `cut` off by the end
of `--seconds` is tried again by itself. A piece begins where its usual time is left. `--workers` run at a time; what is
timed has the device alone, and the others wait. DIR has `cifar10.npz` and `FashionMNIST/raw`;
pieces whose data set is not there wait for it, and a toy run makes pictures of noise.

`benchmarks.gpu_carry` brings what a machine without a network needs.

Exit status: 0; 1 where a piece of this run failed; 2 where the device is not there, or all that is left waits for data.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_pieces.setting import (
    CUT,
    DONE,
    FAILED,
    GPU,
    LATE,
    SCALES,
    TOY,
    Piece,
    Record,
    add_record,
    read_records,
)
from benchmarks.gpu_pieces.table import pieces
from benchmarks.gpu_pieces.toy_data import write_toy_data

ROOT = Path(__file__).resolve().parent.parent
RECORDS = "gpu.jsonl"
# A piece that takes longer than this many times its usual seconds, waiting for the device included, is ended.
PATIENCE = 4
# Of the output of a piece that failed.
LAST_LINES = 8
# A toy piece takes seconds, and most of them to import.
TOY_SECONDS = 20


@dataclass
class Session:
    """A run of this command.

    Attributes:
        scale, device: of all pieces.
        data, out: directories of the data sets and of the results.
        ends: the moment at which all is ended; None for none.
    """

    scale: str
    device: str
    data: Path
    out: Path
    ends: float | None
    _writing: threading.Lock = field(default_factory=threading.Lock)
    _running: set[subprocess.Popen[str]] = field(default_factory=set)
    _stopped: bool = False

    def left(self) -> float:
        """Seconds until the end."""
        return float("inf") if self.ends is None else self.ends - time.monotonic()

    def perform(self, piece: Piece) -> Record | None:
        """Do a piece in a process of its own, and keep its record; None where too little time is left."""
        usual = TOY_SECONDS if self.scale == TOY else piece.seconds
        if self._stopped or self.left() < usual:
            return None
        limit = min(PATIENCE * usual * (6 if self.scale == TOY else 1), self.left())
        begin = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            result = Path(scratch) / "result.json"
            status, said = self._run(piece, limit, result)
            found = json.loads(result.read_text()) if result.exists() else {}
        record = {"key": piece.key, "scale": self.scale, "device": self.device, "status": status}
        record |= {"seconds": round(time.monotonic() - begin, 1), "ended": round(time.time())} | found
        if (status == LATE and self.left() <= 0) or (status == FAILED and self._stopped):
            record["status"] = CUT
        if status != DONE:
            record["error"] = f"ended after {limit:.0f} s" if status == LATE else said
        with self._writing:
            add_record(self.out / RECORDS, record)
            print(told(record), flush=True)
        return record

    def _run(self, piece: Piece, limit: float, result: Path) -> tuple[str, str]:
        """Run a process until it ends or its time is over; its status, and the last lines that it wrote."""
        places = {"data": str(self.data), "kept": str(self.out / "kept"), "records": str(self.out / RECORDS)}
        settings = json.dumps({"key": piece.key, "scale": self.scale, "device": self.device, "seconds": limit} | places)
        # To a file: a pipe that a process of the piece's own holds open would be waited for.
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.gpu_pieces", settings, str(result)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                process_group=0,
            )
            self._running.add(process)
            if self._stopped:
                process.kill()
            try:
                status = DONE if process.wait(limit) == 0 else FAILED
            except subprocess.TimeoutExpired:
                status = LATE
            finally:
                # What the piece started may outlive it.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                self._running.discard(process)
            output.seek(0)
            return status, " | ".join(output.read().strip().splitlines()[-LAST_LINES:])

    def stop(self) -> None:
        """End the pieces that are running, and begin no more."""
        self._stopped = True
        for process in list(self._running):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def told(record: Record) -> str:
    """A record on one line."""
    problem = f": {record['error'][-300:]}" if "error" in record else ""
    return f"{record['key']} {record['status']} after {record['seconds']:.0f} s{problem}"


def left_to_do(known: Sequence[Piece], records: Sequence[Record], *, scale: str, again: bool) -> list[Piece]:
    """The pieces that have no result yet; those that failed too, where they are tried again."""
    finished = {DONE} if again else {DONE, FAILED, LATE}
    done = {record["key"] for record in records if record["scale"] == scale and record["status"] in finished}
    return [piece for piece in known if piece.key not in done]


def carry_out(session: Session, chosen: Sequence[Piece], workers: int) -> Iterator[Record]:
    """Do pieces, some at a time; those that measure time wait until they have the device alone."""
    pool = ThreadPoolExecutor(workers)
    try:
        yield from (record for record in pool.map(session.perform, chosen) if record is not None)
    except BaseException:
        session.stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is not measured yet; returns the exit status."""
    options = _options(argv)
    known = [piece for piece in pieces(options.scale) if any(fnmatch.fnmatch(piece.key, one) for one in options.only)]
    if options.list or not known:
        print(
            "\n".join(piece.key for piece in known) or f"error: no piece is named {' or '.join(options.only)}; --list"
        )
        return 0 if known else 2
    problem = _no_device(options.device)
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    ends = None if options.seconds is None else time.monotonic() + options.seconds
    out = options.out.resolve()
    (out / "kept").mkdir(parents=True, exist_ok=True)
    data = write_toy_data(out / "kept" / "pictures") if options.scale == TOY else options.data.resolve()
    left = left_to_do(known, read_records(out / RECORDS), scale=options.scale, again=options.again)
    print(f"{len(known) - len(left)} of {len(known)} pieces are in {out / RECORDS} already", flush=True)
    missing = sorted({one.needs for one in left if one.needs is not None and not (data / one.needs).is_file()})
    chosen = [one for one in left if one.needs not in missing]
    if missing:
        said = f"{len(left) - len(chosen)} pieces wait for {' and '.join(missing)} in {data}"
        print(f"{said}; say with --data where that is", file=sys.stderr, flush=True)
        if not chosen:
            return 2
    session = Session(options.scale, options.device, data, out, ends)
    # So that a signal ends the pieces too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    made = list(carry_out(session, chosen, options.workers))
    if len(made) < len(chosen):
        print(f"{len(chosen) - len(made)} pieces are left for want of time")
    return 1 if any(record["status"] in (FAILED, LATE) for record in made) else 0


def _options(argv: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "build" / "data", help="directory of the data sets")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu", help="directory of gpu.jsonl")
    parser.add_argument("--seconds", type=float, help="end after so many; by default when all is done")
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:1, cpu")
    parser.add_argument("--scale", choices=SCALES, default=GPU, help="gpu (default), or toy to try it")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="GLOB", help="keys of pieces; all by default")
    parser.add_argument("--again", action="store_true", help="try what failed again")
    parser.add_argument("--workers", type=int, help="pieces at a time (6, or 2 at scale toy)")
    parser.add_argument("--list", action="store_true", help="name the pieces, in order, and run none")
    options = parser.parse_args(argv)
    options.workers = options.workers or (2 if options.scale == TOY else 6)
    if options.workers < 1:
        parser.error("--workers must be 1 or more")
    return options


def _no_device(name: str) -> str | None:
    """Why there is no such device; None where there is."""
    try:
        device = torch.device(name)
    except RuntimeError:
        return f"{name} is no device; give cuda, cuda:1 or cpu"
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        return f"device {name} is not there; try it with --device cpu --scale toy"
    return None


if __name__ == "__main__":
    sys.exit(main())
