"""Ways to cut a trained network to a share of its FLOPs: those of repl-fx, depth pruning, and other tools."""

from __future__ import annotations

import importlib
import importlib.util
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

import repl_fx
from benchmarks.compression.call_time import time_ratio
from benchmarks.compression.originals import Original, first_tensor, flops_of
from repl_fx.errors import BadInput
from repl_fx.planning.budgets import NoPlan
from repl_fx.planning.scoring.scores import Scores

# Of the pruner, each of which takes a few channels of every layer.
STEPS = 60


@dataclass(frozen=True, eq=False)
class Cut:
    """A cut network.

    Attributes:
        model: to evaluate and to heal.
        shipped: what is exported; the model where it is None.
        flops: of one input, as a share of the original.
        blocks: how many were replaced; 0 where channels went.
    """

    model: nn.Module
    flops: float
    blocks: int
    shipped: nn.Module | None = None


Method = Callable[[Original, float, int], Cut]


def methods() -> dict[str, Method]:
    """The methods by name; each takes a trained network, a share of its FLOPs and a seed."""
    return {
        "depth pruning, random blocks": partial(_by_budget, "identity", scored="random"),
        "depth pruning, every k": partial(_by_budget, "identity", scored="none"),
        "depth pruning, least influence": partial(_by_budget, "identity"),
        "linear, a scale": partial(_by_budget, "linear", settings={"form": "scale"}),
        "linear": partial(_by_budget, "linear"),
        "linear, merged": partial(_by_budget, "linear", settings={"merged": True}),
        "linear, every k": partial(_by_budget, "linear", scored="none"),
        "narrow": partial(_by_budget, "narrow"),
        "narrow, as light": _as_light,
        "trained": partial(_by_budget, "trained"),
        "auto, fitted": partial(_by_budget, "auto"),
        "ReplaceMe's map": _replace_me,
        "Torch-Pruning": _torch_pruning,
        "Torch-Pruning, as fast": partial(_torch_pruning, as_fast=True),
    }


def _by_budget(
    surrogate: str,
    original: Original,
    share: float,
    seed: int,
    *,
    scored: str = "influence",
    settings: Mapping[str, Any] | None = None,
) -> Cut:
    """The plan of the highest score under a budget, and the fit of what stands in."""
    scores = None if scored == "none" else _scores(original.scores, scored, seed)
    options: Any = {"budget": {"flops": share}, "surrogate": surrogate, "settings": settings, "seed": seed}
    # A network of its own: healing trains it.
    model = original.copy()
    result = repl_fx.transform(model, original.inputs.args, scores=scores, check=False, **options)
    if surrogate != "identity":
        repl_fx.fit(result, original.batches)
    return _cut(original, result)


def _as_light(original: Original, share: float, seed: int) -> Cut:
    """Blocks with fewer hidden units, and no more FLOPs than are left without whole blocks."""
    without = _without_blocks(original, share, seed)
    return _by_budget("narrow", original, share if without is None else without.flops, seed)


def _without_blocks(original: Original, share: float, seed: int) -> Cut | None:
    """The network without whole blocks; None where that cannot leave so few FLOPs."""
    try:
        return _by_budget("identity", original, share, seed)
    except NoPlan:
        return None


def _cut(original: Original, result: repl_fx.TransformResult) -> Cut:
    left = flops_of(repl_fx.fold(result.module), original.inputs) / original.flops
    # It shares its weights with the model in place.
    return Cut(result.model, left, len(result.plan.replacements), result.module)


def _scores(scores: Scores, kind: str, seed: int) -> dict[str, float]:
    if kind != "random":
        return scores.of("influence")
    drawn = random.Random(seed)
    return {name: drawn.random() for name in scores.of("influence")}


def _replace_me(original: Original, share: float, seed: int) -> Cut:
    """One run of blocks in a row, the one of the least influence, by one map of least cosine distance.

    ReplaceMe, arXiv:2505.02819, section 3: which blocks, and the map; without its merging into the layer
    before, which saves no more than the map's own product.
    """
    for length in range(1, len(original.scores.blocks)):
        stretches = [one for one in original.scores.stretches if one.length == length]
        single = [(score.influence, (score.block,)) for score in original.scores.blocks if score.influence is not None]
        names = [score.block for score in original.scores.blocks]
        rows = [(one.influence, tuple(names[names.index(one.first) : names.index(one.last) + 1])) for one in stretches]
        for _, blocks in sorted(single if length == 1 else rows):
            try:
                model = original.copy()
                result = repl_fx.transform(
                    model, original.inputs.args, blocks=list(blocks), surrogate="linear", seed=seed, check=False
                )
            except (BadInput, repl_fx.NothingToReplace):
                continue
            if len(result.plan.replacements) < length:
                continue
            made = _cut(original, result)
            if made.flops <= share:
                repl_fx.fit(result, original.batches, objective="cosine")
                return made
            # Others of this length save as much.
            break
    raise BadInput(f"no run of blocks leaves {share} of the FLOPs")


def _torch_pruning(original: Original, share: float, seed: int, *, as_fast: bool = False) -> Cut:
    """Channels of the least norm in each layer, until as many FLOPs are left as without whole blocks, or as much time.

    Blocks go one at a time, so that fewer FLOPs may be left than the budget allows; where they cannot meet it, the
    budget itself is the aim. Of transformers the channels are those of their MLPs: attention of one's own splits its
    heads by sizes in its code, which no change of the layers reaches.
    """
    if importlib.util.find_spec("torch_pruning") is None:
        raise BadInput("torch_pruning is not installed; pip install 'repl-fx[bench]'")
    tp: Any = importlib.import_module("torch_pruning")
    without = _without_blocks(original, share, seed)
    if without is None and as_fast:
        raise BadInput(f"no plan without whole blocks leaves {share} of the FLOPs, so there is no time to meet")
    aim = share if without is None else without.flops
    if without is not None and as_fast:
        aim = time_ratio(original, without.shipped or without.model)
    model, x = original.copy(), first_tensor(original.inputs)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    kept = [list(layers)[-1]]
    if any(name.endswith("qkv") for name in layers):
        # The outputs of an MLP's first layer are read by its second alone.
        kept = [name for name in layers if not name.endswith(("mlp.0", "up"))]
    pruner = tp.pruner.BasePruner(
        model,
        x,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.95,
        iterative_steps=STEPS,
        ignored_layers=[layers[name] for name in kept],
    )
    left = 1.0
    for _ in range(STEPS):
        pruner.step()
        flops = flops_of(model, original.inputs) / original.flops
        # No kernel saves more of its time than of its FLOPs: what is above the aim in these needs no clock.
        left = time_ratio(original, model) if as_fast and flops <= aim else flops
        if left <= aim:
            return Cut(model, flops, 0)
    raise BadInput(f"{left:.3f} of the {'time' if as_fast else 'FLOPs'} is left at the end, above {aim:.3f}")
