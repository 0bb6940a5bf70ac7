"""The networks of the run on a GPU, and small ones of the same kinds under the same names."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.gpu_pieces.setting import CONVNEXT, GPT12, LLAMA, RESNET50, SWIN, TOY, VIT_BASE
from benchmarks.large import llama
from benchmarks.training.models import Network, convnext, gpt, networks, resnet, vit

CLASSES, SIDE, TOY_SIDE, VOCABULARY, CONTEXT = 10, 224, 32, 32000, 1024


class LogitsAlone(nn.Module):
    """A decoder of transformers that returns its logits."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (batch, length, vocabulary) of ids (batch, length)."""
        logits: Tensor = self.decoder(input_ids=ids).logits
        return logits


def network(name: str, scale: str) -> Network:
    """A network of `NAMES`."""
    known = _toy() if scale == TOY else _large()
    return known[name]


def _large() -> dict[str, Network]:
    pictures = partial(_pictures, SIDE)
    more = (
        Network(SWIN, partial(_torchvision, "swin_t"), pictures, 1000),
        Network(CONVNEXT, partial(_torchvision, "convnext_tiny"), pictures, 1000),
        # 1.14 billion parameters.
        Network(LLAMA, partial(_llama, 16, 2048, 8192, VOCABULARY), _ids(CONTEXT, VOCABULARY), VOCABULARY, True),
    )
    return networks() | {one.name: one for one in more}


def _toy() -> dict[str, Network]:
    pictures = partial(_pictures, TOY_SIDE)
    known = (
        Network(VIT_BASE, partial(vit, depth=4, width=32, heads=2), pictures, CLASSES),
        Network(RESNET50, partial(resnet, 4, width=8), pictures, CLASSES),
        Network(GPT12, partial(gpt, context=16, width=16, depth=4, heads=2), _ids(16, 256), 256, True),
        Network(SWIN, _toy_swin, pictures, CLASSES),
        Network(CONVNEXT, partial(convnext, 3, 8, (1, 4)), pictures, CLASSES),
        Network(LLAMA, partial(_llama, 4, 32, 64, 256), _ids(16, 256), 256, True),
    )
    return {one.name: one for one in known}


def _llama(layers: int, width: int, hidden: int, vocabulary: int) -> nn.Module:
    return LogitsAlone(llama(layers, width, hidden, vocabulary))


def _torchvision(name: str) -> nn.Module:
    import torchvision

    model: nn.Module = torchvision.models.get_model(name, weights=None)
    return model


def _toy_swin() -> nn.Module:
    from torchvision.models import SwinTransformer

    model: nn.Module = SwinTransformer(
        [4, 4], embed_dim=8, depths=[8], num_heads=[2], window_size=[4, 4], stochastic_depth_prob=0.0, num_classes=10
    )
    return model


def _pictures(side: int, batch: int) -> Tensor:
    return torch.randn(batch, 3, side, side)


def _ids(length: int, vocabulary: int) -> partial[Tensor]:
    return partial(_drawn_ids, length, vocabulary)


def _drawn_ids(length: int, vocabulary: int, batch: int) -> Tensor:
    return torch.randint(0, vocabulary, (batch, length))
