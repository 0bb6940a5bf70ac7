"""Training with FSDP2: parameters are sharded over processes, block by block, and so are checkpoints.

A checkpoint is a directory, `last.ckpt`, to which each process writes its shards:

    .last.ckpt.part     while it is written
    .last.ckpt.before   the one before, from when the new one is whole until it has its place

A run that was killed in between goes on from the one that is whole. Needs a file system that all nodes share.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from lightning_fabric.utilities.apply_func import move_data_to_device
from pytorch_lightning.strategies.model_parallel import ModelParallelStrategy
from torch import fx, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard

from repl_fx.errors import first_line
from repl_fx.rewriting.in_place.surrogate_block import SurrogateBlock
from repl_fx.surrogates.shared.synthesis import Synthesis
from repl_fx.training.processes import Processes
from repl_fx.training.safe_checkpoints import before, discard, part_of, unwritten
from repl_fx.training.train_config import TrainConfig


def units_of(model: nn.Module) -> tuple[str, ...]:
    """The paths of the modules to shard, or to compile, one by one.

    Of a model in place its blocks: surrogates, and modules of the classes that these stand for. Of a graph the layers
    and syntheses that it calls. None of any other model.
    """
    if isinstance(model, fx.GraphModule):
        return tuple(_called(model))
    surrogates = [path for path, module in model.named_modules() if isinstance(module, SurrogateBlock)]
    classes = {model.get_submodule(path)._source for path in surrogates}
    found: list[str] = []
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{block}.") for block in found)
        if inside or not (type(module) in classes or isinstance(module, SurrogateBlock)):
            continue
        # A class such as Sequential may hold the blocks too.
        if not any(other != path and f"{other}.".startswith(f"{path}." if path else "") for other in surrogates):
            found.append(path)
    return tuple(found)


def _called(gm: fx.GraphModule) -> Iterator[str]:
    for path in dict.fromkeys(str(node.target) for node in gm.graph.nodes if node.op == "call_module"):
        module = gm.get_submodule(path)
        if isinstance(module, Synthesis) or any(weight.ndim > 1 for weight in module.parameters()):
            yield path


def shard_(model: nn.Module, mesh: Any, device: torch.device) -> None:
    """Shard a model over the processes of a mesh, each unit on its own; the values are those of the first process."""
    for tensor in (*model.parameters(), *model.buffers()):
        with torch.no_grad():
            sent = tensor.detach().to(device)
            dist.broadcast(sent, 0)
            tensor.copy_(sent)
    for path in units_of(model):
        fully_shard(model.get_submodule(path), mesh=mesh)
    fully_shard(model, mesh=mesh)


class Sharding:
    """The model of a run, and the one that its steps work on: with FSDP2, whose shards stay shards, a copy.

    Attributes:
        wanted: whether parameters are sharded over the processes.
        model: to train.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, processes: Processes) -> None:
        self.wanted = config.strategy == "fsdp2" and not processes.alone
        self._whole, self._processes = model, processes
        # The weights of the first process are those that everything ends with.
        self.model = copy.deepcopy(model) if self.wanted and processes.first else model

    def to_try(self, batch: Any) -> Any:
        """A batch to try the model on: on the CPU where one GPU may not hold the model."""
        return move_data_to_device(batch, torch.device("cpu")) if self.wanted else batch

    def begin(self, module: pl.LightningModule) -> None:
        """Let a LightningModule shard its model when Lightning asks for it."""
        any_module: Any = module

        def configure_model() -> None:
            # Lightning asks again before an evaluation of its own.
            if not isinstance(self.model, FSDPModule):
                shard_(self.model, any_module.device_mesh["data_parallel"], module.trainer.strategy.root_device)

        if self.wanted:
            any_module.configure_model = configure_model

    def end(self) -> None:
        """Give the model its trained weights; of all processes, in the first one, on the CPU."""
        if self.wanted:
            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            weights = get_model_state_dict(self.model, options=options)
            if self._processes.first:
                self._whole.load_state_dict(weights)


class FullySharded(pl.Callback):
    """Makes evaluations the same on all processes, and lets weights go behind them."""

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give all the buffers of the first process: statistics of batch norms are of each process alone."""
        for buffer in pl_module.buffers():
            dist.broadcast(buffer, 0)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let go of weights that a pass without gradients left gathered."""
        for module in pl_module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all processes, with checkpoints that are whole or not there.

    Args:
        processes: how many there are.
    """

    def __init__(self, processes: int) -> None:
        super().__init__(data_parallel_size=processes, tensor_parallel_size=1)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; called by all processes.

        Raises:
            OutputError: the place cannot be written; the checkpoint before stays.
        """
        place = Path(self.broadcast(filepath))
        part = part_of(place)
        try:
            if self.global_rank == 0:
                discard(part)
            self.barrier()
            super().save_checkpoint(checkpoint, part, storage_options)
            self.barrier()
            if self.global_rank == 0:
                _put(part, place)
            self.barrier()
        except (OSError, CheckpointException) as problem:
            raise unwritten(place, first_line(problem)) from problem


def _put(part: Path, place: Path) -> None:
    if place.exists():
        discard(before(place))
        place.rename(before(place))
    part.rename(place)
    discard(before(place))
