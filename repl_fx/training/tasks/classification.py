"""Classification: one of several classes for each input."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from repl_fx.errors import BadInput
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.training.data.targets import require_labels
from repl_fx.training.tasks.task import Batch, MeanLoss, Task


class Classification(Task):
    """Cross-entropy of logits (batch, classes) with labels (batch,), or with probabilities (batch, classes).

    Figures: `loss`, unsmoothed, and `accuracy`, the share of inputs whose class, or likeliest one, is the first.

    Args:
        classes: how many the labels come from; the model may have more.
    """

    key = "classification"

    def __init__(self, classes: int) -> None:
        # Checks of its values would wait for the device at each batch.
        accuracy = MulticlassAccuracy(classes, average="micro", validate_args=False)
        super().__init__(classes, loss=MeanLoss(), accuracy=accuracy)

    def loss(self, outputs: Any, batch: Batch, smoothing: float = 0.0) -> Tensor:
        """The mean cross-entropy of a batch."""
        return F.cross_entropy(self.logits(outputs).float(), batch[1], label_smoothing=smoothing)

    def update(self, outputs: Any, batch: Batch) -> None:
        """Add the loss and the first classes."""
        targets = batch[1]
        self.metrics["loss"].update(self.loss(outputs, batch), len(targets))
        first = targets.argmax(-1) if targets.is_floating_point() else targets
        self.metrics["accuracy"].update(self.logits(outputs).argmax(-1), first)

    def require_fit(self, model: nn.Module, outputs: Any, batch: Batch, name: str) -> None:
        """Refuse logits of another shape, or for fewer classes than there are."""
        logits = self.logits(outputs)
        if logits.ndim != 2 or len(logits) != len(batch[1]):
            found = f"{type(model).__name__} returns logits of shape {tuple(logits.shape)}"
            raise BadInput(f"{found}; wanted is (batch, classes)")
        self.require_classes(model, logits.shape[-1], name)

    def require_targets(self, batch: Batch, name: str) -> None:
        """Refuse what is neither labels nor probabilities."""
        inputs, targets = batch
        count = ExampleInputs.of_batch(inputs).batch
        if not (isinstance(targets, Tensor) and targets.is_floating_point() and targets.ndim == 2):
            require_labels(targets, self.classes, (count,), name)
        elif tuple(targets.shape) != (count, self.classes):
            raise BadInput(
                f"{name}: probabilities are of shape {tuple(targets.shape)}; wanted is {(count, self.classes)}, one "
                "for each class of the model"
            )
