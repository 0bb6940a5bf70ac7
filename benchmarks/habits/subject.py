"""What habits are tried on: small networks, each as it is, as a rewritten graph, and in place."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repl_fx
from repl_fx.passes.outline_blocks import outline_blocks

SOURCE, GRAPH, IN_PLACE = "source model", "graph", "model in place"
FORMS = (SOURCE, GRAPH, IN_PLACE)
OUTLINED = "after `outline_blocks`"
VIT, RESNET, GPT2, T5 = "ViT", "ResNet", "GPT-2", "T5"
NETWORKS = (VIT, RESNET, GPT2, T5)
BATCH, CLASSES, WORDS = 4, 10, 64


@dataclass(frozen=True)
class Subject:
    """A network in one form.

    Attributes:
        network: one of `NETWORKS`.
        form: one of `FORMS`.
        by_block: whether the blocks of the graph have to be modules, as `outline_blocks` makes them.
    """

    network: str
    form: str
    by_block: bool = False

    def model(self) -> nn.Module:
        """The model in training mode, on tensors of its own; the same at each call."""
        form = OUTLINED if self.by_block and self.form == GRAPH else self.form
        model = HANDED.get(self) or _made(self.network)[form]
        return copy.deepcopy(model).train()

    @property
    def inputs(self) -> dict[str, Tensor]:
        """A batch, by the names of the model's arguments."""
        return inputs_of(self.network)

    @property
    def is_text(self) -> bool:
        """Whether the network takes text, and computes its own loss."""
        return self.network in (GPT2, T5)

    @property
    def replaced(self) -> tuple[str, ...]:
        """Paths of the replaced blocks."""
        return tuple(replacement.block for replacement in transformed(self.network).plan.replacements)

    @property
    def positional(self) -> tuple[Tensor, ...]:
        """The arguments that are given by position."""
        return () if self.is_text else tuple(self.inputs.values())

    @property
    def named(self) -> dict[str, Tensor]:
        """The arguments that are given by name."""
        return self.inputs if self.is_text else {}

    def call(self, model: nn.Module) -> Any:
        """What a model, or a wrapper of it, returns for the batch."""
        return model(*self.positional, **self.named)

    def output(self, model: nn.Module) -> Tensor:
        """The logits for the batch."""
        result = self.call(model)
        logits: Tensor = result["logits"] if self.is_text else result
        return logits

    def loss(self, model: nn.Module) -> Tensor:
        """The loss on the batch."""
        result = self.call(model)
        return torch.as_tensor(result["loss"]) if self.is_text else F.cross_entropy(result.float(), targets())


# Models that another process has made.
HANDED: dict[Subject, nn.Module] = {}


def targets() -> Tensor:
    """The classes of the pictures of a batch."""
    return torch.arange(BATCH) % CLASSES


@functools.cache
def inputs_of(network: str) -> dict[str, Tensor]:
    """A fixed random batch, by the names of the model's arguments."""
    generator = torch.Generator().manual_seed(0)
    if network in (VIT, RESNET):
        return {"x": torch.randn(BATCH, 3, 32, 32, generator=generator)}
    ids = torch.randint(3, WORDS, (BATCH, 12), generator=generator)
    return {"input_ids": ids, "labels": ids.clone() if network == GPT2 else ids[:, :7].clone()}


def build(network: str) -> nn.Module:
    """A small network with random weights; no dropout, so that steps can be compared."""
    import timm
    import transformers

    tokens = {"vocab_size": WORDS, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    model: nn.Module
    if network == VIT:
        sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}
        model = timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, **sizes)
    elif network == RESNET:
        from timm.models.resnet import BasicBlock, ResNet

        model = ResNet(BasicBlock, (4, 1, 1, 1), num_classes=CLASSES, channels=(32, 32, 64, 64))
    elif network == GPT2:
        drops = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        config = transformers.GPT2Config(n_embd=48, n_head=4, n_layer=4, n_positions=64, **drops, **tokens)
        model = transformers.GPT2LMHeadModel(config)
    else:
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_decoder_layers": 3, "num_heads": 4}
        config = transformers.T5Config(dropout_rate=0.0, decoder_start_token_id=0, **sizes, **tokens)
        model = transformers.T5ForConditionalGeneration(config)
    return model


@functools.cache
def transformed(network: str) -> repl_fx.TransformResult:
    """The network with every second block replaced."""
    subject = Subject(network, SOURCE)
    # The blocks of a stage; those of one convolutional stage and the next together are no modules.
    blocks = ["layer1.2"] if network == RESNET else None
    result = repl_fx.transform(build(network), subject.positional, subject.named, blocks=blocks, copy=True)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in result.module.named_parameters():
            if name.startswith("surrogates."):
                # Branches begin at zero, where much is equal that should not be.
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return result


@functools.cache
def _made(network: str) -> dict[str, nn.Module]:
    result = transformed(network)
    if result.in_place.model is None:
        raise RuntimeError(f"the {network} has no model in place: {result.in_place.refusals[0].reason}")
    outlined = outline_blocks(result.graph_module).graph_module
    return {SOURCE: build(network), GRAPH: result.module, OUTLINED: outlined, IN_PLACE: result.model}


BLOCKS: dict[str, Callable[[nn.Module], list[nn.Module]]] = {
    VIT: lambda model: [model.get_submodule(f"blocks.{i}") for i in range(4)],
    RESNET: lambda model: [model.get_submodule(f"layer1.{i}") for i in range(4)],
    GPT2: lambda model: [model.get_submodule(f"transformer.h.{i}") for i in range(4)],
    T5: lambda model: [model.get_submodule(f"{side}.block.{i}") for side in ("encoder", "decoder") for i in range(3)],
}
