"""The contract of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric

from repl_fx.errors import BadInput
from repl_fx.running.example_inputs import ExampleInputs

# Inputs and targets; tensors, but for detection, whose pictures differ in size.
Batch = tuple[Any, Any]


class Task(nn.Module, ABC):
    """A task: calls a model on a batch, gives the loss, and collects the figures of an evaluation.

    The figures are those of all batches since they were last computed. They are collected by metrics of torchmetrics,
    which are submodules: they move to the device of the task, and sum up over processes.

    Args:
        classes: how many the targets come from; the model may have more.
        metrics: of the figures, by name, in their order.

    Attributes:
        key: the name of the task, in data sets and settings.
        class_dimension: of the logits.
        ignored: the target that is neither trained on nor counted, None where every one is.
        has_logits: whether a model returns any, by which it can learn from another one.
    """

    key: ClassVar[str]
    class_dimension: ClassVar[int] = -1
    ignored: ClassVar[int | None] = None
    has_logits: ClassVar[bool] = True

    def __init__(self, classes: int, **metrics: Metric) -> None:
        super().__init__()
        self.classes = classes
        self.metrics: Any = nn.ModuleDict(metrics)

    def outputs(self, model: nn.Module, batch: Batch) -> Any:
        """The outputs of the model for the inputs of a batch; in training for the loss, else for the figures."""
        given = ExampleInputs.of_batch(batch[0])
        return model(*given.args, **given.kwargs)

    def logits(self, outputs: Any) -> Tensor:
        """The logits in the outputs of a model.

        Raises:
            BadInput: the outputs hold none.
        """
        return logits_of(outputs)

    def classes_in(self, model: nn.Module, outputs: Any) -> int:
        """The number of classes that a model with such outputs tells apart."""
        return self.logits(outputs).shape[self.class_dimension]

    @abstractmethod
    def loss(self, outputs: Any, batch: Batch, smoothing: float = 0.0) -> Tensor:
        """The mean loss of a batch, a scalar.

        Args:
            outputs: those of the model in training mode.
            batch: inputs and targets.
            smoothing: share of a target that is spread over all classes.
        """

    @abstractmethod
    def update(self, outputs: Any, batch: Batch) -> None:
        """Add a batch to the figures; the outputs are those of the model in evaluation mode."""

    def compute(self) -> dict[str, Tensor]:
        """The figures by name, over all batches since the last call."""
        figures = {name: metric.compute() for name, metric in self.metrics.items()}
        for metric in self.metrics.values():
            metric.reset()
        return figures

    @abstractmethod
    def require_fit(self, model: nn.Module, outputs: Any, batch: Batch, name: str) -> None:
        """Refuse a model whose outputs in evaluation mode do not fit the targets.

        Args:
            name: of the data set, for the message.

        Raises:
            BadInput: names what is found and what is wanted.
        """

    def require_classes(self, model: nn.Module, found: int, name: str, least: int = 0) -> None:
        """Refuse a model with logits for fewer classes than there are; see `require_fit`."""
        if found < (wanted := max(least, self.classes)):
            raise BadInput(
                f"{type(model).__name__} returns {found} logits, and {name} has {wanted} classes; --arg "
                f"num_classes={wanted} (num_labels of transformers, vocab_size of a language model) builds it with them"
            )

    def require_targets(self, batch: Batch, name: str) -> None:
        """Refuse targets that cannot be, in a batch of a user's own loader.

        Args:
            name: of the data, for the message.

        Raises:
            BadInput: names what is found and what is wanted.
        """


class MeanLoss(Metric):
    """The mean of losses, each of which is a mean of some count; one that is no number makes the mean none.

    torchmetrics' MeanMetric leaves such losses out, or else the counts.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "count"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, loss: Tensor, count: int | Tensor) -> None:
        """Add a loss."""
        self.total += loss.detach() * count
        self.count += count

    def compute(self) -> Tensor:
        """The mean of all.

        Raises:
            BadInput: there was nothing to take a mean of.
        """
        if not self.count:
            raise BadInput("all held-out targets are left out, so that there is no loss; give some that count")
        return self.total / self.count


def mean_cross_entropy(logits: Tensor, labels: Tensor, ignored: int, smoothing: float) -> Tensor:
    """The mean cross-entropy of rows of logits (n, classes) with labels (n,), of which one is ignored.

    Where all are ignored it is zero; a mean would be no number.
    """
    options: Any = {"ignore_index": ignored, "label_smoothing": smoothing, "reduction": "sum"}
    return F.cross_entropy(logits.float(), labels, **options) / (labels != ignored).sum().clamp_min(1)


def logits_of(outputs: Any, *names: str) -> Tensor:
    """The logits in what a model returns: a tensor, the first of several, or what is called `logits` or else a name.

    Raises:
        BadInput: there are none.
    """
    known = ("logits", *names)
    named = (outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None) for name in known)
    found = next((one for one in named if one is not None), outputs)
    if isinstance(found, (tuple, list)) and found:
        found = found[0]
    if not isinstance(found, Tensor):
        raise BadInput(f"the model returns a {type(outputs).__name__}, which holds no logits")
    return found
