"""One way to train a network from scratch, the same for all variants of it, and the evaluation after the last step."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.training.data import Data

BETAS = (0.9, 0.99)
# Of the last steps, the share whose mean is the final training loss.
LAST = 0.05


@dataclass(frozen=True)
class Recipe:
    """AdamW with a linear warm-up and then a cosine to zero; gradients clipped; no decay on gains, norms and biases.

    Attributes:
        steps: batches in all.
        batch: inputs in each.
        rate: highest learning rate.
        smoothing: of the labels, in training.
        warm_up: share of the steps.
        decay: weight decay.
        clip: largest norm of the gradient.
    """

    steps: int
    batch: int
    rate: float
    smoothing: float = 0.1
    warm_up: float = 0.1
    decay: float = 0.05
    clip: float = 1.0

    def factor(self, step: int) -> float:
        """What the learning rate of a step is multiplied by."""
        rising = max(1, round(self.warm_up * self.steps))
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, self.steps - rising)))

    def optimizer(self, model: nn.Module) -> torch.optim.AdamW:
        """AdamW over the parameters, in two groups."""
        trained = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if _is_matrix(p)], "weight_decay": self.decay},
            {"params": [p for p in trained if not _is_matrix(p)], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=self.rate, betas=BETAS, fused=True)


def _is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter has two directions; gains may be stored as (n, 1, 1, 1)."""
    return sum(size > 1 for size in parameter.shape) > 1


class StepClock:
    """Takes the time between steps: GPU time between their ends, or CPU seconds of this process.

    Reading a GPU's clock would make each step wait for the one before; events are read when all is done.
    """

    def __init__(self, device: str) -> None:
        self.gpu = device == "cuda"
        self.marks: list[Any] = []

    def mark(self) -> None:
        """A step has ended."""
        if self.gpu:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.process_time())

    def median(self) -> float:
        """Milliseconds of the median step."""
        if self.gpu:
            torch.cuda.synchronize()
        steps = [a.elapsed_time(b) if self.gpu else 1000 * (b - a) for a, b in itertools.pairwise(self.marks)]
        return float(statistics.median(steps))


def train(
    model: nn.Module, data: Data, recipe: Recipe, seed: int, device: str, compiled: str | None = None
) -> dict[str, float]:
    """Train a model in place.

    Args:
        model: in training mode, on the device.
        seed: of the order of the data and its augmentation, which the model has no influence on.
        device: `cpu` (float32) or `cuda` (bfloat16 where autocast says so).
        compiled: mode of torch.compile; None runs the model as it is.

    Returns:
        `train_loss`, the mean over the last steps, and `step_ms`.

    Raises:
        FloatingPointError: the training diverged.
    """
    generator = torch.Generator(device).manual_seed(seed)
    optimizer = recipe.optimizer(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.factor)
    run = model if compiled is None else torch.compile(model, mode=compiled)
    clock = StepClock(device)
    # One tensor: small ones that live on between large ones that do not would keep the heap from shrinking.
    losses = torch.zeros(recipe.steps, device=device)
    clock.mark()
    for step, (x, y) in enumerate(data.train(recipe.batch, recipe.steps, generator)):
        with autocast(device):
            logits = run(x)
        loss = cross_entropy(logits, y, recipe.smoothing)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses[step] = loss.detach()
        clock.mark()
    final = losses[-max(1, round(LAST * recipe.steps)) :].mean().item()
    if not math.isfinite(final):
        raise FloatingPointError(f"the training diverged: its loss is {final}")
    return {"train_loss": final, "step_ms": clock.median()}


@torch.no_grad()
def evaluate(model: nn.Module, data: Data, batch: int, device: str) -> dict[str, float]:
    """Test a model; it is left in evaluation mode.

    Returns:
        `accuracy`, the share of targets that are the likeliest class; `loss`, the mean cross-entropy in nats;
        `bits`, the same in bits, which is bits per byte where targets are bytes.
    """
    model.eval()
    right = loss = torch.zeros((), dtype=torch.float64, device=device)
    count = 0
    for x, y in data.test(batch):
        with autocast(device):
            logits = model(x)
        right = right + (logits.argmax(-1) == y).sum()
        loss = loss + cross_entropy(logits, y).double() * y.numel()
        count += y.numel()
    mean = loss.item() / count
    return {"accuracy": right.item() / count, "loss": mean, "bits": mean / math.log(2)}


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy, in float32, over all targets."""
    return F.cross_entropy(logits.float().flatten(0, -2), targets.flatten(), label_smoothing=smoothing)


def autocast(device: str) -> torch.autocast:
    """bfloat16 on a GPU, nothing on a CPU."""
    return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")
