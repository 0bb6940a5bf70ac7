"""Processes that train networks under FSDP2 together.

python -m tests.surrogates.fully_sharded DIRECTORY PROCESSES

    DIRECTORY/tasks.pt  a list of `Task` -> DIRECTORY/outcomes_RANK.pt, by name, the fields of an `Outcome` or an error

They are copies of one, for imports and the reading of the tasks are half of the work of each.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

import repl_fx
from repl_fx.errors import BadInput, WeightsChanged

EVALUATED = 1  # Before this step it is evaluated, and at the end.


@dataclass
class Task:
    """A network to train.

    Attributes:
        name: of the outcome.
        module: a rewritten graph, or any other module.
        units: paths of the modules that are sharded on their own, beside the whole.
        batches: (steps, examples, …); each process takes its part of the examples.
        half: whether it computes in bfloat16.
        mesh: how many processes hold the same, and over how many of them it is sharded; all of these by default.
        reshard: whether a unit's parameters go behind its forward.
    """

    name: str
    module: nn.Module
    units: tuple[str, ...]
    batches: Tensor
    half: bool = False
    mesh: tuple[int, int] | None = None
    reshard: bool = True


@dataclass
class Outcome:
    """The course of a training.

    Attributes:
        losses: of this process, at each step.
        gradients: of the first step, by name.
        parameters: at the end, likewise.
        evaluated: outputs for the first batch, before step `EVALUATED` and at the end.
    """

    losses: list[float] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    evaluated: list[Tensor] = field(default_factory=list)


def trained(task: Task, parts: Sequence[int], processes: int, whole: Callable[[Tensor], Tensor]) -> Outcome:
    """Train on some parts of each batch.

    Args:
        task: its module is trained.
        parts: those of the batch that this process gets.
        processes: how many parts a batch has.
        whole: gives a parameter or its gradient with all its values.
    """
    module, outcome = task.module.train(), Outcome()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.07, momentum=0.9)
    for step, batch in enumerate(task.batches):
        if step == EVALUATED:
            outcome.evaluated.append(_evaluated(module, task.batches[0]))
        losses = [module(batch.chunk(processes)[part]).square().mean() for part in parts]
        loss = torch.stack(losses).mean()
        torch.autograd.backward(loss)
        if step == 0:
            outcome.gradients = {n: whole(p.grad).clone() for n, p in module.named_parameters() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
        outcome.losses.append(float(loss.detach()))
    # Without a backward pass behind it, an evaluation leaves the parameters of the whole gathered.
    outcome.parameters = {name: whole(p.detach()).clone() for name, p in module.named_parameters()}
    outcome.evaluated.append(_evaluated(module, task.batches[0]))
    return outcome


def _evaluated(module: nn.Module, batch: Tensor) -> Tensor:
    # The mode stays as it is, so that no change of it tells that weights may be others.
    with torch.no_grad():
        made: Tensor = module(batch).clone()
    return made


def _shard(task: Task, processes: int) -> None:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16) if task.half else MixedPrecisionPolicy()
    sizes = task.mesh or (processes,)
    mesh = init_device_mesh("cpu", sizes, mesh_dim_names=("replicas", "shards")[-len(sizes) :])
    settings: Any = {"mesh": mesh, "mp_policy": policy}
    for path in task.units:
        fully_shard(task.module.get_submodule(path), reshard_after_forward=task.reshard, **settings)
    fully_shard(task.module, **settings)


def _refusal(module: nn.Module) -> str:
    """The reason why what is synthesised of a sharded module is not shared."""
    try:
        with repl_fx.shared_synthesis(module):
            return ""
    except BadInput as error:
        return str(error)


def _whole(tensor: Tensor) -> Tensor:
    assert isinstance(tensor, DTensor)
    made: Tensor = tensor.full_tensor()
    return made


def _process(rank: int, directory: Path, tasks: Sequence[Task], processes: int) -> None:
    """Run tasks as one of the processes, and write what comes out."""
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=processes)
    outcomes: dict[str, Any] = {}
    for task in tasks:
        try:
            _shard(task, processes)
            outcomes[task.name] = vars(trained(task, [rank], processes, _whole))
        except (RuntimeError, WeightsChanged) as error:
            outcomes[task.name] = str(error)
    outcomes["refused"] = _refusal(task.module)
    torch.save(outcomes, directory / f"outcomes_{rank}.pt")
    dist.destroy_process_group()


def main(directory: Path, processes: int) -> None:
    """Run the tasks of a directory in several processes."""
    # Copies have no threads of a pool.
    torch.set_num_threads(1)
    # What optimizers import when they are made.
    importlib.import_module("torch._dynamo")
    tasks = torch.load(directory / "tasks.pt", weights_only=False)
    # Searches for reference cycles would copy every page.
    gc.freeze()
    untyped: Any = torch.multiprocessing
    untyped.start_processes(_process, (directory, tasks, processes), processes, start_method="fork")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
