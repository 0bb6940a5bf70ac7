"""A LightningModule of a user trains the rewritten model, and what is none is a line."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest
import torch
from torch import nn

from repl_fx.errors import BadInput
from repl_fx.training.config import TrainConfig
from repl_fx.training.run import train_once
from repl_fx.training.tasks.user_module import user_module
from tests.training.runs import Net, pictures

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
        user_module(f"{file}:Forgets", nn.Linear(2, 2))
    with pytest.raises(BadInput, match=r"mine\.py:plain made a Linear; give a LightningModule"):
        user_module(f"{file}:plain", nn.Linear(2, 2))
    with pytest.raises(BadInput, match="has no function 'Other'"):
        user_module(f"{file}:Other", nn.Linear(2, 2))
    config = TrainConfig(task=f"{file}:Manual", batch_size=8, device="cpu")
    with pytest.raises(BadInput, match="steps its optimizers itself; give --accumulate 1 --clip 0"):
        train_once(Net(), pictures(), config, tmp_path / "run")
