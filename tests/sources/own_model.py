"""A directory of transformers whose model is made of the code in it."""

from __future__ import annotations

import json
from pathlib import Path

AUTO_MAP = {"AutoConfig": "configuration_net.NetConfig", "AutoModel": "modeling_net.Net"}
CONFIG = """
from pathlib import Path
from transformers import PretrainedConfig

Path({ran!r}).touch()

class NetConfig(PretrainedConfig):
    model_type = "net-of-its-own"

    def __init__(self, width=8, depth=3, vocab_size=20, **kwargs):
        super().__init__(**kwargs)
        self.width, self.depth, self.vocab_size = width, depth, vocab_size
"""
LAYERS = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, 16), nn.Linear(16, width)
        self.register_buffer("factor", torch.full((width,), 0.5), persistent=False)

    def forward(self, x):
        return x + self.factor * self.down(self.up(x).relu())
"""
MODEL = """
from torch import nn
from transformers import PreTrainedModel
from .configuration_net import NetConfig
from .layers_net import Block

class Net(PreTrainedModel):
    config_class = NetConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config.width) for _ in range(config.depth))
        self.post_init()

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return x
"""


def write_own_model(place: Path, ran: Path) -> None:
    """Write the directory; its code makes the file `ran` when it runs."""
    place.mkdir()
    (place / "configuration_net.py").write_text(CONFIG.format(ran=str(ran)))
    (place / "layers_net.py").write_text(LAYERS)
    (place / "modeling_net.py").write_text(MODEL)
    (place / "config.json").write_text(json.dumps({"model_type": "net-of-its-own", "auto_map": AUTO_MAP}))
