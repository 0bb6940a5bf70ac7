"""Habits of users of timm."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.habits.registry import habit, require
from benchmarks.habits.subject import GPT2, RESNET, VIT, Subject
from benchmarks.habits.training import train


@habit("timm: layer-wise decay of the learning rate", VIT, RESNET)
def layer_decay(subject: Subject) -> str:
    """`group_matcher`, by which `param_groups_layer_decay` gives each layer its rate."""
    from timm.optim import param_groups_layer_decay

    model = subject.model()
    groups: Any = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5)
    scales = {group["lr_scale"] for group in groups}
    require(len(scales) > 3, f"there are {len(scales)} rates")
    missing = sum(p.numel() for p in model.parameters()) - sum(p.numel() for g in groups for p in g["params"])
    require(missing == 0, f"{missing} numbers are in no group")
    train(subject, model, optimizer=torch.optim.AdamW(groups, lr=3e-2))
    return f"{len(scales)} rates in the {subject.network}"


@habit("timm: weight decay leaves gains and tokens out", VIT, RESNET)
def weight_decay(subject: Subject) -> None:
    """`no_weight_decay` and `param_groups_weight_decay`."""
    from timm.optim import param_groups_weight_decay

    model: Any = subject.model()
    left_out = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
    require(subject.network == RESNET or "pos_embed" in left_out, "no_weight_decay names no position embedding")
    groups: Any = param_groups_weight_decay(model, 0.05, no_weight_decay_list=left_out)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    thin = [name for name, p in model.named_parameters() if id(p) in decayed and p.squeeze().ndim < 2]
    require(not thin, f"{len(thin)} thin parameters decay, e.g. {next(iter(thin), '')}")
    train(subject, model, optimizer=torch.optim.AdamW(groups, lr=3e-3))


@habit("methods of the class", VIT, RESNET, GPT2)
def methods(subject: Subject) -> None:
    """Feature extraction and another head, as timm and transformers have them."""
    model: Any = subject.model().eval()
    if subject.network == GPT2:
        require(model.config.n_layer == 4, "the config is another")
        model.resize_token_embeddings(80)
        require(model(**subject.inputs)["logits"].shape[-1] == 80, "the embeddings keep their size")
        return
    x = subject.inputs["x"]
    require(torch.equal(model.forward_head(model.forward_features(x)), model(x)), "the two halves are not the whole")
    _, between = model.forward_intermediates(x)
    require(len(between) >= 4, "inner features are missing")
    model.reset_classifier(5)
    require(model(x).shape == (len(x), 5), "the head keeps its size")


@habit("freezing blocks", VIT, RESNET, GPT2)
def frozen(subject: Subject) -> None:
    """`requires_grad_(False)` on all but the last block and the head."""
    model = subject.model()
    keep = {"ViT": "blocks.3", "ResNet": "layer4", "GPT-2": "transformer.h.3"}[subject.network]
    model.requires_grad_(False)
    part: nn.Module = model.get_submodule(keep)
    part.requires_grad_(True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(subject, model, optimizer=torch.optim.AdamW(part.parameters(), lr=1e-2))
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    require(bool(moved) and all(name.startswith(keep) for name in moved), "other weights move")
