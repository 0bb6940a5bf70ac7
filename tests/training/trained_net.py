"""A small network that was trained, as a user has it: a file with its code, data, and a file of weights."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import torch
from safetensors.torch import save_file

from repl_fx.training.run import train_once
from repl_fx.training.train_config import TrainConfig
from tests.training.runs import Net, pictures

MODEL = """
    import torch
    from tests.training.runs import Net, OneByOne, bare, pictures

    def model():
        return Net()

    def one_by_one():
        return OneByOne()

    def example_inputs():
        return (torch.randn(2, 1, 4, 4),)

    def data():
        return pictures()

    def unlabelled():
        return bare()

    def alone():
        inputs = bare().train.inputs.float() / 255
        return inputs.split(8), inputs.split(8)
"""


def trained_net(place: Path) -> Path:
    """Write `model.py` and `weights.safetensors` into a directory."""
    (place / "model.py").write_text(dedent(MODEL))
    torch.manual_seed(0)
    model = Net()
    config = TrainConfig(epochs=12, batch_size=8, lr=0.02, device="cpu", augment=False)
    assert train_once(model, pictures(), config, place / "run").figures["accuracy"] > 0.8
    save_file(model.state_dict(), place / "weights.safetensors")
    return place
