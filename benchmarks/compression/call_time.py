"""How long a call of a cut network takes, next to the original's."""

from __future__ import annotations

from functools import partial
from statistics import median

import torch
from torch import nn

from benchmarks.compression.originals import Original
from repl_fx.running.timing import Mark, Timer

# In a call that is timed, and how often it is.
INPUTS, WARM_UP, ROUNDS = 32, 2, 21


def time_ratio(own: Original, model: nn.Module) -> float:
    """The time of a call with 32 inputs, as a share of that of the original; medians of turns.

    On a CPU the seconds that this process computes, which other load on the machine does not add to.
    """
    x, device = next(own.batches())[0][:INPUTS], next(model.parameters()).device
    timer, given = Timer(device, "cpu"), x.to(device)
    models = {"original": own.model.to(device).eval(), "cut": model.eval()}
    times: dict[str, list[float]] = {name: [] for name in models}

    def call(made: nn.Module, mark: Mark) -> None:
        mark()
        made(given)
        mark()

    with torch.no_grad():
        for turn in range(WARM_UP + ROUNDS):
            for name, made in models.items():
                (took,) = timer(partial(call, made))
                if turn >= WARM_UP:
                    times[name].append(took)
    return median(times["cut"]) / median(times["original"])
