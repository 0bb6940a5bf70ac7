"""The pieces that train: accuracy from scratch, and trained networks that are cut, on the benchmarks' own tasks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from benchmarks import trained
from benchmarks.compression import methods
from benchmarks.compression.originals import original
from benchmarks.gpu_pieces.setting import Record, Setting
from benchmarks.training.runs import Run, perform
from benchmarks.training.tasks import Task, tasks

# The tasks at the scale `smoke` of the benchmark of accuracy, in the place of the large ones.
_SMALL = {
    "cifar10/resnet110": "cifar10/resnet26",
    "cifar10/vit-small": "cifar10/vit",
    "cifar10/resnet56": "cifar10/resnet26",
    "cifar10/vit": "cifar10/vit",
    "text/gpt": "text/gpt",
    "fashion-mnist/vit-small": "fashion-mnist/vit",
}
# In the place of the tasks' own epochs, so that a run is over in minutes.
EPOCHS = {
    "cifar10/resnet110": 20,
    "cifar10/vit-small": 30,
    "cifar10/resnet56": 20,
    "cifar10/vit": 20,
    "text/gpt": 3,
    "fashion-mnist/vit-small": 15,
}
OURS = ("trained", "linear", "narrow, as light")
THEIRS = {"FLOPs": "Torch-Pruning", "time": "Torch-Pruning, as fast"}
SHARES, HEALING = (0.75, 0.5), (0.1,)


def accuracy(setting: Setting, task: str, variants: Sequence[str], seed: int) -> Record:
    """The figures of variants of one task, each trained from scratch under one seed."""
    scale, own, epochs = ("smoke", _SMALL[task], None) if setting.toy else ("gpu", task, EPOCHS[task])
    runs: list[Record] = []
    for variant in variants:
        with setting.beside():
            record = perform(Run(scale, own, variant, seed, setting.device.type, epochs), setting.data)
        if "error" in record:
            raise RuntimeError(record["error"])
        # In a toy run another stands in for the task.
        runs.append({"task": task, "variant": variant, "seed": seed, **record})
        setting.save({"runs": runs})
    return {"runs": runs}


def compression(setting: Setting, task: str, seed: int) -> Record:
    """The figures of one trained network, and of what each method cuts it to."""
    own = _task(setting, task)
    data = own.load(setting.data)
    rows: list[dict[str, Any]] = []
    shares, healing = ((0.9,), (1.0,)) if setting.toy else (SHARES, HEALING)
    # Few steps of the pruner, each of which exports a network to time it.
    few = patch.multiple(methods, STEPS=4) if setting.toy else nullcontext()
    with few, setting.beside():
        network = original(own, data, seed, setting.kept / "weights")
        result = {"original": trained.evaluated(network, network.model), "rows": rows, "healing": healing[-1]}
        result |= {"better": "higher" if network.higher_is_better else "lower", "figure": network.best}
        for share in shares:
            for method in (*OURS[: 1 if setting.toy else None], *THEIRS.values()):
                rows.append({"method": method, "share": share} | trained.run(network, method, share, seed, healing))
                setting.save(result)
    return result


def _task(setting: Setting, name: str) -> Task:
    if setting.toy:
        return tasks("smoke")[_SMALL[name]]
    own = tasks("gpu")[name]
    return replace(own, config=own.config.changed(epochs=EPOCHS[name], precision="bfloat16"))
