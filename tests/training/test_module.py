"""The Lightning module: losses, logits, the schedule and the groups of the optimizer."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import repl_fx
from repl_fx.errors import BadInput
from repl_fx.training.data.data_set import Data, Tensors, UserData
from repl_fx.training.module import Schedule, Training, optimizer_of, user_module
from repl_fx.training.run import train_once
from repl_fx.training.tasks import Classification
from repl_fx.training.train_config import TrainConfig
from tests.training.runs import Net, pictures, rewritten


def test_the_rate_rises_and_falls_to_zero() -> None:
    factors = [Schedule(10, 0.2)(step) for step in range(10)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert all(b < a for a, b in pairwise(factors[2:]))
    assert Schedule(10, 0.2)(10) == pytest.approx(0)
    assert Schedule(10, 0.0)(0) == 1.0


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_what_has_one_direction_is_not_decayed(name: Any) -> None:
    model = rewritten()
    made = optimizer_of(model.parameters(), TrainConfig(optimizer=name, weight_decay=0.3))
    decayed, free = made.param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.3, 0.0)
    names = {id(parameter): path for path, parameter in model.named_parameters()}
    assert "blocks.0.fc1.weight" in {names[id(p)] for p in decayed["params"]}
    others = {names[id(p)] for p in free["params"]}
    assert {"blocks.0.norm.weight", "head.bias"} < others
    assert any(".surrogate." in path for path in others)
    assert isinstance(made, torch.optim.SGD if name == "sgd" else torch.optim.AdamW)


def test_frozen_parameters_are_left_out() -> None:
    model = Net().requires_grad_(False)
    model.head.weight.requires_grad_(True)
    (group,) = optimizer_of(model.parameters(), TrainConfig()).param_groups
    assert group["params"] == [model.head.weight]


def test_a_step_logs_its_loss_and_an_evaluation_its_figures() -> None:
    figures: dict[str, Any] = {}
    module = Training(Net().eval(), Classification(3), TrainConfig(label_smoothing=0.1), 10)
    module.log = lambda name, value, **_: figures.update({name: value})  # type: ignore[method-assign]
    module.log_dict = lambda found, **_: figures.update(found)  # type: ignore[method-assign]
    x, targets = torch.randn(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
    expected = F.cross_entropy(module.model(x), targets, label_smoothing=0.1)
    assert torch.equal(module.training_step((x, targets), 0), expected)
    assert torch.equal(figures["loss"], expected)
    module.validation_step((x, targets), 0)
    module.on_validation_epoch_end()
    torch.testing.assert_close(figures["test_loss"], F.cross_entropy(module.model(x), targets))
    assert set(figures) == {"loss", "test_loss", "test_accuracy"}


def test_the_optimizer_steps_its_rate() -> None:
    made = Training(Net(), Classification(3), TrainConfig(lr=0.5, warmup=0.2), 10).configure_optimizers()
    assert made["lr_scheduler"]["interval"] == "step"
    assert made["optimizer"].param_groups[0]["lr"] == pytest.approx(0.5 / 2)


CONFIG = TrainConfig(epochs=2, batch_size=8, lr=0.02, device="cpu")


def _loader(part: Any, scale: float = 1 / 255) -> DataLoader[Any]:
    assert isinstance(part, Tensors)
    return DataLoader(TensorDataset(part.main.float() * scale, part.targets), 8, shuffle=True)


def test_loaders_of_a_user_train_a_model(tmp_path: Path) -> None:
    data, model = pictures(), Net()
    before = model.head.weight.detach().clone()
    made = train_once(model, UserData("mine", _loader(data.train), _loader(data.test)), CONFIG, tmp_path)
    assert set(made.figures) == {"loss", "accuracy"} and made.steps == 12
    assert not torch.equal(before, model.head.weight)


class _Module(pl.LightningDataModule):
    """Gives grey levels, and scales them on their way to the device."""

    seen: set[bool]

    def __init__(self) -> None:
        super().__init__()
        self.seen = set()

    def train_dataloader(self) -> Any:
        return _loader(pictures().train, 1.0)

    def val_dataloader(self) -> Any:
        return _loader(pictures().test, 1.0)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        assert self.trainer is not None
        self.seen.add(bool(self.trainer.training))
        assert batch[0].max() > 1
        return batch[0] / 255, batch[1]


class _Bounded(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.max() <= 1
        return super().forward(x)


def test_a_datamodule_keeps_its_hooks(tmp_path: Path) -> None:
    own = _Module()
    made = train_once(_Bounded(), UserData("mine", module=own), CONFIG, tmp_path)
    assert set(made.figures) == {"loss", "accuracy"}
    assert own.seen == {True, False}


def test_what_does_not_fit_is_a_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="bright is data for classification; leave out --task language-modelling"):
        train_once(Net(), pictures(), CONFIG.changed(task="language-modelling"), tmp_path)
    with pytest.raises(BadInput, match="no task 'poetry'"):
        train_once(Net(), UserData("mine", [(1, 2)], [(1, 2)]), CONFIG.changed(task="poetry"), tmp_path)
    good = (torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0]))
    wrong = (good[0], torch.tensor([0, 1, 2, 3]))
    with pytest.raises(BadInput, match="mine: batch 0: label 3 is out of range; labels are 0 to 2"):
        train_once(Net(), UserData("mine", [wrong], [good]), CONFIG, tmp_path)
    with pytest.raises(BadInput, match="Net does not take inputs of mine, which are 1x3x3: "):
        train_once(Net(), UserData("mine", [good], [(torch.rand(4, 1, 3, 3), good[1])]), CONFIG, tmp_path)


def test_a_text_that_is_too_long_names_the_flag(tmp_path: Path) -> None:
    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(256, 256), nn.Embedding(4, 256)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.words(ids) + self.places(torch.arange(ids.shape[1]))  # type: ignore[no-any-return]

    ids = torch.zeros(8, 9, dtype=torch.int64)
    split = Tensors(ids, ids)
    data = Data("text:corpus", "language-modelling", 256, (9,), split, split)
    with pytest.raises(BadInput, match="which are 9: index out of range in self; --context sets how many tokens"):
        train_once(Places(), data, CONFIG, tmp_path)


def test_a_step_is_by_the_mean_of_its_batches_also_at_the_end_of_an_epoch() -> None:
    inputs, targets = torch.randn(40, 1, 4, 4), torch.arange(40) % 3
    batches = list(zip(inputs.view(5, 8, 1, 4, 4), targets.view(5, 8), strict=True))
    how: Any = {"optimizer": "sgd", "momentum": 0.0, "lr": 1.0, "weight_decay": 0.0, "warmup": 0.0, "clip": 0.0}
    trained, model = Net(), Net()
    trained.drop.p = model.drop.p = 0.0
    model.load_state_dict(trained.state_dict())
    repl_fx.train(trained, (batches, batches), epochs=1, accumulate=4, device="cpu", **how)
    # Of five batches: a step of four, and one of the last.
    for step, some in enumerate((slice(32), slice(32, None))):
        loss = F.cross_entropy(model(inputs[some]), targets[some])
        for parameter, gradient in zip(
            model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
        ):
            parameter.data -= Schedule(2, 0.0)(step) * gradient
    torch.testing.assert_close(trained.state_dict(), model.state_dict())


CODE = """
    import pytorch_lightning as pl
    import torch
    from torch import nn

    class Module(pl.LightningModule):
        def __init__(self, model):
            super().__init__()
            self.model = model
        def training_step(self, batch, number):
            x, y = batch
            return nn.functional.mse_loss(self.model(x), torch.eye(3)[y])
        def validation_step(self, batch, number):
            x, y = batch
            self.log("error", nn.functional.mse_loss(self.model(x), torch.eye(3)[y]))

    class Sgd(Module):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Manual(Sgd):
        def __init__(self, model):
            super().__init__(model)
            self.automatic_optimization = False
        def training_step(self, batch, number):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, number))
            optimizer.step()

    class Forgets(pl.LightningModule):
        def __init__(self, model):
            super().__init__()

    def plain(model):
        return model
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(dedent(CODE))
    return str(path)


@pytest.mark.parametrize("name", ["", ":Sgd", ":Manual"])
def test_a_run_of_a_users_module(file: str, tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model = Net()
    before = model.head.weight.detach().clone()
    config = TrainConfig(task=file + name, epochs=2, batch_size=8, device="cpu", clip=0.0)
    made = train_once(model, pictures(), config, tmp_path / "run")
    assert 0 < made.figures["error"] < 1
    assert not torch.equal(before, model.head.weight)


def test_what_is_no_module_for_the_model_is_a_line(file: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"mine\.py:Forgets does not keep the model it is given"):
        user_module(f"{file}:Forgets", nn.Linear(2, 2), TrainConfig(), 1)
    with pytest.raises(BadInput, match=r"mine\.py:plain made a Linear; give a LightningModule"):
        user_module(f"{file}:plain", nn.Linear(2, 2), TrainConfig(), 1)
    with pytest.raises(BadInput, match="has no function 'Other'"):
        user_module(f"{file}:Other", nn.Linear(2, 2), TrainConfig(), 1)
    config = TrainConfig(task=f"{file}:Manual", batch_size=8, device="cpu")
    with pytest.raises(BadInput, match="steps its optimizers itself; give --accumulate 1 --clip 0"):
        train_once(Net(), pictures(), config, tmp_path / "run")
