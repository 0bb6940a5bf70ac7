"""How long a call of a cut network takes, next to the original's."""

from __future__ import annotations

from functools import partial
from statistics import median

import torch
from torch import nn

from benchmarks.compression.originals import Original
from repl_fx.running.timing import latency

# In a call that is timed, and how often it is.
INPUTS, WARM_UP, ROUNDS = 32, 2, 9


def latency_ratio(own: Original, model: nn.Module) -> float:
    """The time of a call with 32 inputs, as a share of that of the original; medians of turns."""
    x, device = next(own.batches())[0][:INPUTS], next(model.parameters()).device
    models = {"original": own.model.to(device).eval(), "cut": model.eval()}
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.no_grad():
        for turn in range(WARM_UP + ROUNDS):
            for name, made in models.items():
                took = latency(partial(made, x.to(device)), device)
                if turn >= WARM_UP:
                    times[name].append(took)
    return median(times["cut"]) / median(times["original"])
