"""Language modelling: the next token at each place of a text."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from repl_fx.errors import BadInput
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.training.data.targets import NO_TOKEN, require_labels
from repl_fx.training.tasks.task import Batch, MeanLoss, Task, mean_cross_entropy


class LanguageModelling(Task):
    """Cross-entropy of logits (batch, length, tokens) with the next tokens (batch, length).

    Figures: `loss`, unsmoothed, in nats a token, and `bits_per_byte`, the loss in bits for each byte of the text.

    Args:
        classes: number of tokens; the model may have more.

    Attributes:
        bytes_per_token: in the text that is held out.
    """

    key = "language-modelling"
    ignored = NO_TOKEN

    def __init__(self, classes: int) -> None:
        super().__init__(classes, loss=MeanLoss())
        self.bytes_per_token = 1.0

    def loss(self, outputs: Any, batch: Batch, smoothing: float = 0.0) -> Tensor:
        """The mean cross-entropy of all places that have a token."""
        return mean_cross_entropy(self.logits(outputs).flatten(0, 1), batch[1].flatten(), NO_TOKEN, smoothing)

    def update(self, outputs: Any, batch: Batch) -> None:
        """Add the loss."""
        self.metrics["loss"].update(self.loss(outputs, batch), (batch[1] != NO_TOKEN).sum())

    def compute(self) -> dict[str, Tensor]:
        """Loss and bits per byte."""
        figures = super().compute()
        return {**figures, "bits_per_byte": figures["loss"] / math.log(2) / self.bytes_per_token}

    def require_fit(self, model: nn.Module, outputs: Any, batch: Batch, name: str) -> None:
        """Refuse logits that are not one for each token at each place, or for fewer tokens than there are."""
        logits, places, called = self.logits(outputs), tuple(batch[1].shape), type(model).__name__
        if tuple(logits.shape[:-1]) != places:
            raise BadInput(
                f"{called} returns logits of shape {tuple(logits.shape)}; wanted is (batch, length, tokens), "
                f"for the {' x '.join(map(str, places))} targets of {name}"
            )
        self.require_classes(model, logits.shape[-1], name)

    def require_targets(self, batch: Batch, name: str) -> None:
        """Refuse what is not one token for each token of the inputs."""
        first = ExampleInputs.of_batch(batch[0]).tensors[0]
        known = batch[1].clamp_min(0) if isinstance(batch[1], Tensor) else batch[1]
        require_labels(known, self.classes, tuple(first.shape), name)
