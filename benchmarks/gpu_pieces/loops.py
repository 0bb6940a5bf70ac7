"""The pieces about training as it is run: `repl-fx train` next to a bare loop, and wrappers of torch.distributed."""

from __future__ import annotations

import copy
import tempfile
import time
from dataclasses import replace
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import repl_fx
from benchmarks import throughput
from benchmarks.gpu_pieces.networks import network
from benchmarks.gpu_pieces.setting import Record, Setting
from benchmarks.training.step import cross_entropy
from repl_fx.training.data import Data, Tensors, load_data
from repl_fx.training.train_config import TrainConfig

STEPS, TIMED = 6, 10


def beside_a_bare_loop(setting: Setting) -> Record:
    """Inputs a second of `repl-fx train` on CIFAR-10 with ResNet-110, and of a loop that has nothing else."""
    data = load_data("cifar10", root=setting.data)
    assert isinstance(data, Data) and isinstance(data.train, Tensors) and isinstance(data.test, Tensors)
    samples, batch, epochs, rounds = (32, 16, 1, 1) if setting.toy else (12800, 256, 2, 3)
    part = Tensors(data.train.main[:samples], data.train.targets[:samples])
    # The evaluation at the end of each epoch is not measured.
    few = Tensors(data.test.main[:64], data.test.targets[:64])
    config = TrainConfig(batch_size=batch, epochs=epochs, device=setting.device.type, augment=True)
    model = "vit" if setting.toy else "resnet110"
    with setting.alone():
        return throughput.measure(model, replace(data, train=part, test=few), config, rounds)


def wrapped(setting: Setting, name: str) -> Record:
    """Losses and seconds of steps of the model in place: alone, with DDP and with FSDP2, all in one process."""
    own = network(name, setting.scale)
    torch.manual_seed(0)
    result = repl_fx.transform(own.build(), (own.inputs(2),), every=2)
    model = result.model.train()
    inputs = own.inputs(4 if setting.toy else 64).to(setting.device)
    loss = cross_entropy((inputs, own.targets(inputs)), None)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place, setting.alone():
        backend = "nccl" if setting.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{place}/store", rank=0, world_size=1)
        try:
            for wrapper in ("alone", "DDP", "FSDP2"):
                module = _wrapped(copy.deepcopy(model).to(setting.device), wrapper, setting.device)
                found[wrapper] = _steps(module, loss, setting.device, 2 if setting.toy else TIMED)
        finally:
            dist.destroy_process_group()
    for row in found.values():
        pairs = zip(row["losses"], found["alone"]["losses"], strict=True)
        row["apart"] = max(abs(one - other) / abs(other) for one, other in pairs)
    return {"wrappers": found}


def _wrapped(module: nn.Module, wrapper: str, device: torch.device) -> nn.Module:
    if wrapper == "DDP":
        return DistributedDataParallel(module)
    if wrapper == "FSDP2":
        mesh = init_device_mesh(device.type, (1,))
        for block in module.get_submodule("blocks").children():
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
    return module


def _steps(module: nn.Module, loss: Any, device: torch.device, timed: int) -> dict[str, Any]:
    """The losses of the first steps, and the median seconds of those behind them."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
    losses, seconds = [], []
    torch.manual_seed(0)
    for number in range(STEPS + timed):
        begin = time.perf_counter()
        made = loss(module)
        torch.autograd.backward(made)
        optimizer.step()
        optimizer.zero_grad()
        # Waits for the device.
        value = float(made)
        if number < STEPS:
            losses.append(value)
        else:
            seconds.append(time.perf_counter() - begin)
    return {"losses": losses, "seconds": median(seconds)}
