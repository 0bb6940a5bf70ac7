"""Rewritten networks under tensor parallelism: each process has the gradients that one process alone has."""

from __future__ import annotations

import copy
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from tests.nets import TokenNet, as_after_training, tokens

PROCESSES = 2


def _gradients(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    torch.autograd.backward(module(x).square().mean())
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def _process(rank: int, directory: Path, model: nn.Module, x: Tensor) -> None:
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    torch.set_num_threads(1)
    init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=PROCESSES)
    kinds = {"fc1": ColwiseParallel, "fc2": RowwiseParallel}
    layers = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name[-3:] in kinds]
    parallelize_module(model, init_device_mesh("cpu", (PROCESSES,)), {name: kinds[name[-3:]]() for name in layers})
    found = {n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in _gradients(model, x).items()}
    torch.save(found, directory / f"gradients_{rank}.pt")
    destroy_process_group()
    # Threads of gloo may outlive Python and abort the process then (seen once, on a machine with other work).
    os._exit(0)


@pytest.mark.slow
def test_each_process_has_the_gradients_of_one_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = tokens().double()
    result = repl_fx.transform(TokenNet(depth=5).double(), (x,), surrogate="bottleneck")
    as_after_training(result.graph_module)
    assert result.in_place.model is not None
    wanted = _gradients(copy.deepcopy(result.model), x)
    # Both are copies of a process that has imported what they need.
    multiprocessing.set_forkserver_preload([__name__, "torch._dynamo", "torch.distributed.tensor.parallel"])
    untyped: Any = torch.multiprocessing
    given = tmp_path, copy.deepcopy(result.model), x
    untyped.start_processes(_process, given, PROCESSES, start_method="forkserver")
    for rank in range(PROCESSES):
        found = torch.load(tmp_path / f"gradients_{rank}.pt")
        assert found.keys() == wanted.keys()
        torch.testing.assert_close(found, wanted)
