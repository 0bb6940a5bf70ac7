"""Habits of users of Lightning and Accelerate."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.habits.registry import habit, require
from benchmarks.habits.saving import require_same, shift
from benchmarks.habits.subject import GPT2, GRAPH, RESNET, VIT, Subject


class Batches(Dataset[Tensor]):
    """Numbers of steps; the batch is the subject's own."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> Tensor:
        if index >= self.number:
            raise IndexError(index)
        return torch.tensor(index)


def _lightning(subject: Subject, model: nn.Module) -> Any:
    from benchmarks.habits.lightning_module import Training

    return Training(subject, model)


def _trainer(directory: str, **options: Any) -> Any:
    from pytorch_lightning import Trainer

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "num_sanity_val_steps": 0}
    return Trainer(accelerator="cpu", default_root_dir=directory, **{"devices": 1, **quiet, **options})


@habit("Lightning: fit and resume", VIT, RESNET, GPT2, needs=("pytorch_lightning",))
def lightning(subject: Subject) -> None:
    """Two epochs at once give what one gives that is resumed."""
    with tempfile.TemporaryDirectory() as directory:
        through = _lightning(subject, subject.model())
        _trainer(directory, max_epochs=2, enable_checkpointing=False).fit(through, DataLoader(Batches(3)))
        first = _lightning(subject, subject.model())
        trainer = _trainer(directory, max_epochs=1)
        trainer.fit(first, DataLoader(Batches(3)))
        trainer.save_checkpoint(f"{directory}/half.ckpt")
        second = _lightning(subject, subject.model())
        _trainer(directory, max_epochs=2).fit(second, DataLoader(Batches(3)), ckpt_path=f"{directory}/half.ckpt")
    require(second.losses == through.losses[3:], "a resumed run goes on otherwise")
    require(through.losses[-1] < through.losses[0], "the loss does not fall")
    require_same(subject, second.model, through.model)


@habit("Lightning: ddp_spawn", VIT, GPT2, needs=("pytorch_lightning",), quick=False)
def lightning_spawn(subject: Subject) -> None:
    """Two processes that get the model by pickle, whose weights come back."""
    module = _lightning(subject, subject.model())
    before = {name: p.detach().clone() for name, p in module.model.named_parameters()}
    with tempfile.TemporaryDirectory() as directory:
        trainer = _trainer(directory, max_epochs=1, devices=2, strategy="ddp_spawn", enable_checkpointing=False)
        trainer.fit(module, DataLoader(Batches(4)))
    stayed = [name for name, p in module.model.named_parameters() if torch.equal(p, before[name])]
    require(not stayed, f"{len(stayed)} parameters did not come back trained")


@habit("Accelerate: prepare, save_state, load_state", VIT, RESNET, GPT2, needs=("accelerate",))
def accelerated(subject: Subject) -> None:
    """A loop of Accelerate, kept and continued."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)

    def pair() -> tuple[nn.Module, Any]:
        model = subject.model()
        made: tuple[nn.Module, Any] = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=3e-3))
        return made

    def steps(model: nn.Module, optimizer: Any) -> list[float]:
        losses = []
        for _ in range(3):
            loss = subject.loss(model)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss))
        return losses

    model, optimizer = pair()
    first = steps(model, optimizer)
    with tempfile.TemporaryDirectory() as directory:
        accelerator.save_state(directory)
        on = steps(model, optimizer)
        accelerator.load_state(directory)
        again = steps(model, optimizer)
    require(on == again, "training goes on otherwise")
    require(on[-1] < first[0], "the loss does not fall")
    same = type(accelerator.unwrap_model(model)) is type(subject.model())
    require(same or subject.form == GRAPH, "another class is unwrapped")


@habit("Accelerate: parameters offloaded, layer by layer", VIT, RESNET, GPT2, needs=("accelerate",))
def offloaded(subject: Subject) -> None:
    """Outputs are the same where each layer loads its parameters as it runs."""
    from accelerate import cpu_offload

    model = shift(subject.model())
    cpu_offload(model, execution_device=torch.device("cpu"))
    require(all(parameter.is_meta for parameter in model.parameters()), "parameters are not offloaded")
    require_same(subject, model, shift(subject.model()))
