"""The strategies of a run in several processes, and what these compare before it begins."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy
from torch import nn

from repl_fx.artifact.provenance import versions
from repl_fx.errors import BadInput
from repl_fx.running.holders import ORIGIN
from repl_fx.training.data.data_set import Data, UserData, length
from repl_fx.training.processes import Processes, on_cuda
from repl_fx.training.safe_checkpoints import WholeCheckpoints
from repl_fx.training.sharding import ShardedStrategy
from repl_fx.training.train_config import TrainConfig

# Files may lie elsewhere on another node.
_OF_A_NODE = ("data_dir",)


def require_possible(config: TrainConfig, processes: Processes) -> None:
    """Refuse settings that do not go together in several processes.

    Raises:
        BadInput: names the setting.
    """
    sharded = config.strategy == "fsdp2"
    if processes.alone:
        if sharded:
            raise BadInput("fsdp2 shards over several processes, and there is one; give --devices, or start torchrun")
        return
    for setting, wrong, instead in (
        ("ema", config.ema > 0, "--strategy ddp"),
        ("sync_batchnorm", config.sync_batchnorm, "--strategy ddp"),
        ("find_unused", config.find_unused, "--strategy ddp"),
        ("teacher", config.teacher is not None, "--strategy ddp"),
        ("precision float16", config.precision == "float16", "--precision bfloat16"),
    ):
        if sharded and wrong:
            raise BadInput(f"{setting} does not go with fsdp2; leave it out, or give {instead}")
    for setting, several in (
        ("compare", config.compare),
        ("seeds", config.seeds > 1),
        ("a schedule (replace_at, restore_at, neighbours)", config.is_scheduled),
    ):
        if several:
            raise BadInput(f"{setting} trains its models in one process; leave it out, or devices and torchrun")
    if config.sync_batchnorm and not on_cuda(config.device):
        raise BadInput("sync_batchnorm is for GPUs; leave it out, or give --device cuda")


def trainer_settings(config: TrainConfig, processes: Processes) -> dict[str, Any]:
    """The arguments of a Trainer that are about processes."""
    if processes.alone:
        return {"devices": 1, "plugins": [WholeCheckpoints()]}
    # Ours are started as torchrun starts them.
    shared = {"devices": processes.local_size, "num_nodes": processes.nodes, "plugins": [TorchElasticEnvironment()]}
    if config.strategy == "fsdp2":
        # Tensors of the inference mode cannot be gathered weights.
        return {**shared, "strategy": ShardedStrategy(processes.size), "inference_mode": False}
    return {
        **shared,
        "strategy": DDPStrategy(find_unused_parameters=config.find_unused),
        "sync_batchnorm": config.sync_batchnorm,
        "plugins": [WholeCheckpoints(), TorchElasticEnvironment()],
    }


def facts(
    model: nn.Module, data: Data | UserData, config: TrainConfig, step: int | None
) -> Mapping[str, Sequence[str]]:
    """All that the processes of a run have to have alike, as lines of text by what they are.

    Args:
        step: that the run goes on from; None where it begins.
    """
    settings = [line for line in config.to_yaml().splitlines() if not line.startswith(_OF_A_NODE)]
    return {
        "versions": [f"{package} {version}" for package, version in versions().items()],
        "settings": settings,
        "blocks of the plan": plan_lines(model),
        "parameters": parameter_lines(model),
        "data": [data.name, *_sizes(data)],
        "steps in the checkpoint": [f"step {step}"],
    }


def _sizes(data: Data | UserData) -> list[str]:
    """Samples in a data set; the length of a user's loaders shows in their batches alone."""
    return [f"{length(split)} samples" for split in (data.train, data.test)] if isinstance(data, Data) else []


def plan_lines(model: nn.Module) -> list[str]:
    """The plan of a rewritten model, readable lines first; none of any other model."""
    plan = getattr(vars(model).get(ORIGIN), "plan", None)
    return [] if plan is None else [*str(plan).splitlines(), *plan.to_json().splitlines()]


def parameter_lines(model: nn.Module) -> list[str]:
    """Names, shapes and types of the parameters and buffers of a model."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in tensors]


def fingerprint(model: nn.Module) -> str:
    """A hash of the plan and of the names and shapes of what is trained."""
    return hashlib.sha256("\n".join([*plan_lines(model), *parameter_lines(model)]).encode()).hexdigest()


def unused_parameters(problem: RuntimeError) -> BadInput | None:
    """The line for DDP's error on parameters without gradients; None for another error."""
    if "find_unused_parameters" not in str(problem):
        return None
    return BadInput("some parameters take no part in the loss, and others wait for their gradients; give --find-unused")


def device_of(processes: Processes, accelerator: str) -> torch.device:
    """The device of this process."""
    if accelerator != "gpu":
        return torch.device("cpu")
    return torch.device("cuda") if processes.alone else torch.device("cuda", processes.local_rank)
