"""Loaders of a user: the same batches in a run that goes on, a part for each process, and clear lines."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from repl_fx.errors import BadInput
from repl_fx.training.data.data_set import UserData
from repl_fx.training.data.user_loaders import UserLoader, loaders_of


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Samples that draw from all three random states."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        drawn = torch.rand(1).item() + random.random() + float(np.random.rand())
        return torch.tensor([number + drawn]), torch.tensor(number % 3)


def _noisy(**options: Any) -> DataLoader[Any]:
    return DataLoader(Noisy(), 3, shuffle=True, **options)


def _inputs(loader: UserLoader) -> list[list[float]]:
    return [inputs.flatten().tolist() for inputs, _ in loader]


@pytest.mark.parametrize("options", [{}, {"num_workers": 1, "persistent_workers": True}])
def test_a_resumed_run_sees_the_batches_it_would_have_seen(options: dict[str, Any]) -> None:
    whole = UserLoader(_noisy(**options), "mine", seed=3)
    first, second = _inputs(whole), _inputs(whole)
    assert first != second
    stopped = UserLoader(_noisy(**options), "mine", seed=3)
    list(stopped)
    batches = iter(stopped)
    next(batches)
    state = stopped.state_dict()
    torch.manual_seed(99)
    resumed = UserLoader(_noisy(**options), "mine", seed=3)
    resumed.load_state_dict(state)
    assert _inputs(resumed) == second[1:]
    assert _inputs(UserLoader(_noisy(**options), "mine", seed=4)) != first


def test_each_process_gets_its_part() -> None:
    x, y = torch.arange(10.0)[:, None], torch.arange(10)
    found = []
    for rank in range(2):
        loader = UserLoader(DataLoader(TensorDataset(x, y), 4, drop_last=True), "mine", seed=0, rank=rank, world_size=2)
        found.append([targets.tolist() for _, targets in loader])
    assert found == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]
    with pytest.raises(BadInput, match="mine: batch 0 has 9 samples, which do not divide among 2 processes"):
        list(UserLoader(DataLoader(TensorDataset(x, y), 9), "mine", seed=0, rank=1, world_size=2))
    held_out = [
        UserLoader(DataLoader(TensorDataset(x, y), 5), "mine", seed=0, training=False, rank=rank, world_size=2)
        for rank in range(2)
    ]
    # Held-out samples come once each, however they divide.
    assert sorted(int(t) for loader in held_out for _, targets in loader for t in targets) == list(range(10))


def test_lists_of_samples_and_mappings_have_parts() -> None:
    pictures, boxes = [torch.zeros(3, 4, 4), torch.zeros(3, 5, 6)], [{"boxes": 1}, {"boxes": 2}]
    (batch,) = UserLoader([(pictures, boxes)], "mine", seed=0, rank=1, world_size=2)
    assert batch == ([pictures[1]], [boxes[1]])
    (only,) = UserLoader([{"ids": torch.arange(4)}], "mine", seed=0, pairs=False, rank=1, world_size=2)
    assert only["ids"].tolist() == [2, 3]
    with pytest.raises(BadInput, match="mine: batch 0 holds a str"):
        list(UserLoader([("ab", torch.zeros(2))], "mine", seed=0, world_size=2))


class _Short:
    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Any]:
        yield torch.zeros(1), torch.zeros(1)


def test_loaders_that_cannot_be_are_a_line() -> None:
    with pytest.raises(BadInput, match="mine: a list_iterator has no length"):
        UserLoader(iter([1]), "mine", seed=0)
    with pytest.raises(BadInput, match="mine: a loader has no batches"):
        UserLoader([], "mine", seed=0)
    with pytest.raises(BadInput, match="mine: a loader ends after 1 of the 3 batches it has"):
        list(UserLoader(_Short(), "mine", seed=0))
    with pytest.raises(
        BadInput, match=r"mine: a batch is an int; give pairs \(inputs, targets\), inputs alone for heal, or --task"
    ):
        list(UserLoader([1], "mine", seed=0))
    loader = UserLoader([(torch.zeros(2), torch.ones(2))], "mine", seed=0)

    def refuse(batch: Any, name: str) -> None:
        raise BadInput(f"{name}: no")

    loader.check = refuse
    with pytest.raises(BadInput, match="mine: batch 0: no"):
        list(loader)


@pytest.mark.parametrize("wrapped", [False, True])
def test_batches_may_be_inputs_alone(wrapped: bool) -> None:
    x = torch.rand(3, 2)
    loader = UserLoader([[x] if wrapped else x], "mine", seed=0)

    def refuse(batch: Any, name: str) -> None:
        raise AssertionError

    loader.check = refuse
    ((inputs, targets),) = loader
    assert inputs is x and targets.tolist() == [-1] * 3
    (part,) = UserLoader([x], "mine", seed=0, training=False, rank=1, world_size=3)
    assert torch.equal(part[0], x[1:2]) and part[1].tolist() == [-1]


@pytest.mark.parametrize(
    ("labels", "targets"),
    [
        ({"labels": torch.tensor([1, 0])}, [1, 0]),
        ({"label": torch.tensor([1, 0])}, [1, 0]),
        ({"labels": torch.tensor([[5, 6, 7], [8, 9, -100]])}, [[6, 7, -100], [9, -100, -100]]),
        ({}, [-1, -1]),
    ],
    ids=["labels", "label", "of tokens", "none"],
)
def test_batches_by_name_have_their_labels_apart(labels: dict[str, Tensor], targets: list[Any]) -> None:
    given = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 0]]), "attention_mask": torch.ones(2, 3)}
    ((inputs, found),) = UserLoader([{**given, **labels}], "mine", seed=0)
    assert list(inputs) == list(given) and inputs["input_ids"] is given["input_ids"]
    assert found.tolist() == targets


class _Module(pl.LightningDataModule):
    def __init__(self, held_out: Any = True) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.held_out = held_out

    def prepare_data(self) -> None:
        self.calls.append("prepare")

    def setup(self, stage: str) -> None:
        self.calls.append(stage)
        self.order = torch.randperm(12).tolist()

    def train_dataloader(self) -> Any:
        return DataLoader(Noisy(), 3)

    def val_dataloader(self) -> Any:
        return DataLoader(Noisy(), 3) if self.held_out is True else self.held_out


def test_a_datamodule_is_set_up_once_under_the_seed() -> None:
    orders = []
    for _ in range(2):
        own = _Module()
        loaders_of(UserData("mine", module=own), seed=5)
        assert own.calls == ["prepare", "fit"]
        orders.append(own.order)
    assert orders[0] == orders[1]
    with pytest.raises(BadInput, match="mine: val_dataloader returns None; return one loader"):
        loaders_of(UserData("mine", module=_Module(None)), seed=5)
    with pytest.raises(BadInput, match="give a LightningDataModule of the package pytorch_lightning"):
        loaders_of(UserData("mine", module=Noisy()), seed=5)
