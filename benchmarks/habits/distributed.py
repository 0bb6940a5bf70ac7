"""Habits of training in several processes; each runs in two, over gloo, with a process group."""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from benchmarks.habits.registry import habit
from benchmarks.habits.subject import BLOCKS, GPT2, RESNET, VIT, Subject
from benchmarks.habits.training import require_close, train


@habit("DDP", VIT, RESNET, GPT2, quick=False, processes=2)
def data_parallel(subject: Subject) -> None:
    """The losses of one process, as each process has the same batch."""
    model = subject.model()
    alone = train(subject, copy.deepcopy(model))
    together = train(subject, DistributedDataParallel(model))
    require_close(torch.tensor(together), torch.tensor(alone), "losses of two processes and one")


def _sharded(subject: Subject, **policy: Any) -> nn.Module:
    model = subject.model()
    mesh = init_device_mesh("cpu", (2,))
    for block in BLOCKS[subject.network](model):
        fully_shard(block, mesh=mesh, **policy)
    fully_shard(model, mesh=mesh, **policy)
    return model


@habit("FSDP2, per block and at the root", VIT, RESNET, GPT2, quick=False, processes=2, by_block=True)
def sharded(subject: Subject) -> None:
    """The losses of one process, as each process has the same batch."""
    alone, together = train(subject, subject.model()), train(subject, _sharded(subject))
    require_close(torch.tensor(together), torch.tensor(alone), "losses of two processes and one", 1e-3)


@habit("FSDP2 in bfloat16", VIT, RESNET, GPT2, quick=False, processes=2, by_block=True)
def sharded_in_bfloat16(subject: Subject) -> None:
    """`MixedPrecisionPolicy(param_dtype=bfloat16)`."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    alone, together = train(subject, subject.model()), train(subject, _sharded(subject, mp_policy=policy))
    require_close(torch.tensor(together), torch.tensor(alone), "losses of two processes and one", 0.1)


@habit("DCP of FSDP2 shards", VIT, GPT2, quick=False, processes=2, by_block=True)
def sharded_checkpoint(subject: Subject) -> None:
    """Shards to a checkpoint and back, and whole weights out of them."""
    model, other = _sharded(subject), _sharded(subject)
    train(subject, model, 3)
    paths: list[Any] = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(paths)
    save({"model": get_model_state_dict(model)}, checkpoint_id=paths[0])
    own = {"model": get_model_state_dict(other)}
    load(own, checkpoint_id=paths[0])
    set_model_state_dict(other, own["model"])
    require_close(subject.loss(other), subject.loss(model), "losses after and before", 1e-6)
    whole: Any = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    plain = subject.model()
    plain.load_state_dict(whole)
    require_close(subject.loss(plain), subject.loss(model), "losses of the whole weights and the shards", 1e-4)
