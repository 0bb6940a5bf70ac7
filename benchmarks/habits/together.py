"""Runs habits in several processes with a process group."""

from __future__ import annotations

import datetime
import json
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from benchmarks.habits.subject import HANDED, Subject

# A process that waits for another which has failed gives up after this.
PATIENCE = datetime.timedelta(seconds=60)


def run_together(habit: str, subjects: Sequence[Subject], processes: int) -> list[tuple[str, str, float]]:
    """Try a habit in several processes; for each subject why it fails, a remark, and seconds."""
    with tempfile.TemporaryDirectory() as directory:
        # Made here: the others would all do the same work.
        torch.save({subject: subject.model() for subject in subjects}, f"{directory}/models")
        start: Any = spawn
        start(_work, (habit, tuple(subjects), processes, directory), nprocs=processes)
        ranks = [json.loads((Path(directory) / f"{rank}.json").read_text()) for rank in range(processes)]
    return [
        next((tuple(result) for result in results if result[0]), tuple(results[0]))
        for results in zip(*ranks, strict=True)
    ]


def _work(rank: int, habit: str, subjects: Sequence[Subject], processes: int, directory: str) -> None:
    from benchmarks.ecosystem import attempt
    from benchmarks.habits.registry import habits

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    HANDED.update(torch.load(f"{directory}/models", weights_only=False))
    known = next(each for each in habits() if each.name == habit)
    results = []
    for number, subject in enumerate(subjects):
        store = f"file://{directory}/store-{number}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=processes, timeout=PATIENCE)
        results.append(attempt(known, subject))
        dist.destroy_process_group()
    (Path(directory) / f"{rank}.json").write_text(json.dumps(results))
