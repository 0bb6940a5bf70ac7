"""Loaders: their batches depend on seed, epoch and number, and not on where an iteration begins, nor on the ranks."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset

from repl_fx.errors import BadInput
from repl_fx.training.data.augmentation import CropAndFlip, Mixup, Normalise
from repl_fx.training.data.data_set import Tensors
from repl_fx.training.data.loaders import BatchLoader, PositionedLoader, seed_of

CHANGES = (CropAndFlip(1), Normalise(), Mixup(100))
Batch = tuple[Tensor, Tensor]


def tensors(n: int) -> Tensors:
    inputs = torch.randint(0, 256, (n, 1, 3, 3), generator=torch.Generator().manual_seed(n)).to(torch.uint8)
    return Tensors(inputs, torch.arange(n))


def tensor_loader(n: int = 11, batch_size: int = 4, **options: Any) -> BatchLoader:
    return BatchLoader(tensors(n), batch_size, **{"shuffle": True, "changes": CHANGES, **options})


class Noisy(Dataset[tuple[Tensor, int]]):
    """Samples that draw from the global random states, as transforms do; one of them may be broken."""

    def __init__(self, n: int, broken: int | None = None) -> None:
        self.n, self.broken = n, broken

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == self.broken:
            raise BadInput(f"picture {index} cannot be read")
        picture = torch.rand(1, 3, 3)
        picture[0, 0, :2] = torch.tensor([random.random(), np.random.rand()])
        return picture, index


def file_loader(n: int = 11, batch_size: int = 4, **options: Any) -> BatchLoader:
    return BatchLoader(Noisy(n), batch_size, **{"shuffle": True, "changes": CHANGES, "workers": 0, **options})


def same(these: Iterable[Batch], those: Iterable[Batch]) -> bool:
    pairs = list(zip(these, those, strict=True))
    return bool(pairs) and all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)


LOADERS = pytest.mark.parametrize("make", [tensor_loader, file_loader])


@LOADERS
def test_a_seed_fixes_the_batches_and_each_epoch_is_another(make: Any) -> None:
    one, other = make(seed=3), make(seed=3)
    state = torch.get_rng_state()
    first, second = list(one), list(one)
    assert same(first, other) and same(second, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert not same(first, second) and not same(first, make(seed=4))
    one.set_epoch(0)
    assert same(first, one)


@LOADERS
def test_each_epoch_has_an_order_of_its_own(make: Any) -> None:
    loader = make(changes=())
    orders = [torch.cat([targets for _, targets in loader]).tolist() for _ in range(3)]
    assert len(set(map(tuple, orders))) == 3


@LOADERS
def test_each_batch_of_each_epoch_is_changed_in_its_own_way(make: Any) -> None:
    def noise(inputs: Tensor, targets: Tensor, generator: torch.Generator) -> Batch:
        return torch.rand(2, generator=generator), targets

    loader = make(changes=(noise,), shuffle=False)
    drawn = {tuple(inputs.tolist()) for _ in range(3) for inputs, _ in loader}
    assert len(drawn) == 9


def test_each_sample_of_each_epoch_is_made_in_its_own_way() -> None:
    loader = file_loader(changes=(), shuffle=False)
    # Of each random state.
    drawn = [sample[0, 0].tolist() for _ in range(2) for inputs, _ in loader for sample in inputs]
    assert [len(set(of_one)) for of_one in zip(*drawn, strict=True)] == [22, 22, 22]


@LOADERS
def test_the_global_random_state_is_not_read(make: Any) -> None:
    torch.manual_seed(1)
    one = list(make())
    torch.manual_seed(2)
    assert same(one, make())


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(2, 23),
    batch_size=st.integers(1, 6),
    stop=st.integers(0, 23),
    epoch=st.integers(0, 3),
    drop_last=st.booleans(),
    files=st.booleans(),
    named=st.booleans(),
)
def test_a_resumed_epoch_has_the_batches_that_were_left(
    n: int, batch_size: int, stop: int, epoch: int, drop_last: bool, files: bool, named: bool
) -> None:
    batch_size = min(batch_size, n)
    make = file_loader if files else tensor_loader

    def make_one() -> BatchLoader:
        return make(n, batch_size, drop_last=drop_last)

    whole = make_one()
    whole.set_epoch(epoch)
    expected = list(whole) + list(whole)
    stopped, resumed = make_one(), make_one()
    stopped.set_epoch(epoch)
    stop = min(stop, len(stopped))
    seen = list(islice(stopped, stop))
    state = stopped.state_dict()
    assert (state["epoch"], state["batches"]) == (epoch, stop)
    resumed.load_state_dict(state)
    if named:
        # As Lightning does: an iterator is made, then the epoch is named, then the first batch is asked for.
        iterator = iter(resumed)
        resumed.set_epoch(epoch + (stop == len(resumed)))
        seen += list(iterator)
    else:
        seen += list(resumed)
    if stop < len(resumed):
        seen += list(resumed)
    assert same(seen, expected)
    assert resumed.state_dict()["batches"] == len(resumed)


@LOADERS
def test_an_iteration_that_breaks_off_is_not_gone_on_with(make: Any) -> None:
    loader = make()
    next(iter(loader))
    assert len(list(loader)) == len(loader) == 3
    loader.load_state_dict(make().state_dict() | {"epoch": 2, "batches": 1})
    assert loader.state_dict()["batches"] == 1
    loader.sampler.set_epoch(3)
    assert loader.state_dict()["epoch"] == 3 and len(list(loader)) == 3


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 23), share=st.integers(1, 3), world=st.integers(2, 4), files=st.booleans())
def test_the_parts_of_all_ranks_are_the_global_batch(n: int, share: int, world: int, files: bool) -> None:
    make = file_loader if files else tensor_loader
    options: dict[str, Any] = {"changes": ()} if files else {}
    one = make(n, share * world, **options)
    ranks = [make(n, share * world, rank=rank, world_size=world, **options) for rank in range(world)]
    assert {len(rank) for rank in ranks} == {len(one)}
    for number, ((inputs, targets), *parts) in enumerate(zip(one, *ranks, strict=True)):
        assert all(len(part[1]) for part in parts)
        own = [part for rank, part in zip(ranks, parts, strict=True) if rank.counts(number)]
        assert max(len(part[1]) for part in own) - min(len(part[1]) for part in own) <= 1
        assert torch.equal(torch.cat([part[0] for part in own]), inputs)
        assert torch.equal(torch.cat([part[1] for part in own]), targets)
        assert one.counts(number)


@LOADERS
def test_samples_come_once_and_in_order_unless_shuffled(make: Any) -> None:
    def targets(**options: Any) -> Any:
        return torch.cat([batch[1] for batch in make(changes=(), **options)]).tolist()

    assert targets(shuffle=False) == list(range(11))
    assert targets() != list(range(11)) and sorted(targets()) == list(range(11))
    assert len(targets(drop_last=True)) == 8 and len(make(drop_last=True)) == 2


def test_worker_processes_change_nothing() -> None:
    several, one = file_loader(workers=2), file_loader(workers=0)
    for _ in range(2):
        assert same(several, one)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_sample_is_one_line(workers: int) -> None:
    with pytest.raises(BadInput) as refused:
        list(BatchLoader(Noisy(5, broken=3), 2, workers=workers))
    assert str(refused.value) == "picture 3 cannot be read"


def test_a_state_of_another_loader_is_refused() -> None:
    state = tensor_loader().state_dict()
    for changed, message in (
        ({"seed": 9}, "has seed 9, wanted is 0"),
        ({"samples": 9}, "has samples 9, wanted is 11"),
        ({"batch_size": 9}, "has batch_size 9, wanted is 4"),
        ({"epoch": None}, "has epoch None, wanted is an integer"),
        ({"batches": 9}, "is at batch 9 of epoch 0; an epoch has 3 batches"),
        ({"epoch": -1}, "is at batch 0 of epoch -1"),
    ):
        with pytest.raises(BadInput, match=message):
            tensor_loader().load_state_dict({**state, **changed})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"world_size": 3}, "batch_size is 4, of all processes together; give a multiple of their number, 3"),
        ({"n": 3, "drop_last": True}, "3 samples do not fill a batch of 4"),
    ],
)
@LOADERS
def test_options_that_cannot_be(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        make(**options)


def test_purposes_do_not_share_a_seed() -> None:
    keys = [(), (0,), (0, 0), (1,), (0, 1), (1, 0), (0, 0, 0)]
    assert len({seed_of(seed, *key) for seed in (0, 1) for key in keys}) == 2 * len(keys)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_lie_on_the_device() -> None:
    cpu, device = (
        list(tensor_loader(changes=(Normalise(),))),
        list(tensor_loader(changes=(Normalise(),), device="cuda")),
    )
    assert all(inputs.is_cuda and targets.is_cuda for inputs, targets in device)
    for (ours, classes), (theirs, there) in zip(cpu, device, strict=True):
        # A GPU divides by 255 as it multiplies by one over that.
        torch.testing.assert_close(theirs.cpu(), ours, rtol=1e-6, atol=0)
        assert torch.equal(there.cpu(), classes)
    assert same(tensor_loader(device="cuda"), tensor_loader(device="cuda"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stop", [2, 3, 4])
def test_lightning_resumes_in_the_middle_of_an_epoch(tmp_path: Path, stop: int) -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")

    class Keeps(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.seen = nn.Parameter(torch.zeros(())), list[Batch]()

        def training_step(self, batch: Batch) -> Tensor:
            self.seen.append(batch)
            return self.weight * batch[0].mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    def fit(resume: Path | None = None) -> list[Batch]:
        saving = callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=stop, save_top_k=-1)
        module = Keeps()
        trainer = lightning.Trainer(
            max_epochs=3,
            accelerator="cpu",
            logger=False,
            callbacks=[saving],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, tensor_loader(), ckpt_path=resume)
        return module.seen

    whole = fit()
    assert len(whole) == 9 and not same(whole[:3], whole[3:6])
    assert same(fit(tmp_path / f"step={stop}.ckpt"), whole[stop:])


class Counting(PositionedLoader):
    def __len__(self) -> int:
        return 3

    def _batches(self, epoch: int, first: int) -> Iterator[Any]:
        yield from ((epoch, number) for number in range(first, 3))

    def _identity(self) -> dict[str, int]:
        return {"seed": 7}


def test_epochs_follow_one_another_and_can_be_named() -> None:
    loader = Counting()
    assert [epoch for epoch, _ in [*loader, *loader]] == [0, 0, 0, 1, 1, 1]
    loader.sampler.set_epoch(5)
    assert next(iter(loader)) == (5, 0)


@pytest.mark.parametrize(("given", "then"), [(0, (2, 0)), (1, (2, 1)), (3, (3, 0))])
def test_an_iteration_goes_on_from_a_position(given: int, then: tuple[int, int]) -> None:
    loader = Counting()
    loader.load_state_dict({"seed": 7, "epoch": 2, "batches": given})
    loader.set_epoch(then[0])
    assert next(iter(loader)) == then
    assert loader.state_dict() == {"seed": 7, "epoch": then[0], "batches": then[1] + 1}


def test_a_position_of_another_loader_is_a_line() -> None:
    with pytest.raises(BadInput, match="has seed 8, wanted is 7"):
        Counting().load_state_dict({"seed": 8, "epoch": 0, "batches": 0})
    with pytest.raises(BadInput, match="at batch 4 of epoch 0; an epoch has 3 batches"):
        Counting().load_state_dict({"seed": 7, "epoch": 0, "batches": 4})


def test_seeds_are_of_64_bits_and_unlike() -> None:
    assert len({seed_of(0), seed_of(1), seed_of(0, 0), seed_of(0, 1), seed_of(0, 0, 0)}) == 5
    assert max(seed_of(number) for number in range(9)) > 2**32
