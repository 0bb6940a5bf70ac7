"""Learning from the original model: its logits, and the values behind its blocks.

    loss = w_target · task + w_logits · T² · KL(softmax(t / T) ‖ softmax(s / T)) + w_values · mean over blocks of d
    d    = mean (v_s - v_t)² / mean v_t²

s and t are the logits of student and teacher: Hinton et al. 2015, arXiv:1503.02531, section 2, whose factor T² keeps
the gradients as large at any temperature T. v are the values behind a block that is replaced in the student, as in
FitNets (Romero et al. 2015, arXiv:1412.6550, equation 3), by their own size, so that no block counts for being loud.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repl_fx._torch import pytree
from repl_fx.errors import BadInput
from repl_fx.in_place.surrogate_block import SurrogateBlock
from repl_fx.training.config import TrainConfig
from repl_fx.training.tasks import Batch, Task


class Distillation:
    """The teacher of a run.

    Args:
        teacher: the original model; it is put into evaluation mode.
        student: the model to train.
        task: theirs.
        config: weights of the parts, and the temperature.

    Raises:
        BadInput: values are asked for, and the student has no surrogates in place.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, task: Task, config: TrainConfig) -> None:
        self.teacher, self.task, self.config = teacher.eval(), task, config
        self.paths = tuple(path for path, module in student.named_modules() if isinstance(module, SurrogateBlock))
        if config.teacher_values and not self.paths:
            raise BadInput(
                f"{type(student).__name__} has no surrogates in its own tree, behind which values could be compared; "
                "give --teacher-values 0"
            )
        if not config.teacher_values:
            self.paths = ()

    def step(self, student: nn.Module, batch: Batch) -> tuple[Any, Tensor]:
        """The outputs of the student for a batch, and what it has to learn from the teacher: a scalar."""
        with _values_behind(student, self.paths) as ours:
            outputs = self.task.outputs(student, batch)
        with torch.no_grad(), _values_behind(self.teacher, self.paths) as theirs:
            taught = self.task.outputs(self.teacher, batch)
        loss = self.task.logits(outputs).new_zeros((), dtype=torch.float32)
        if self.config.teacher_logits:
            soft = self._soft(self.task.logits(outputs), self.task.logits(taught))
            loss = loss + self.config.teacher_logits * soft
        if self.paths:
            far = torch.stack([_distance(ours[path], theirs[path]) for path in self.paths])
            loss = loss + self.config.teacher_values * far.mean()
        return outputs, loss

    def require_fit(self, batch: Batch, outputs: Any) -> None:
        """Refuse a teacher whose logits are no match for those of the student.

        Args:
            outputs: of the student, in evaluation mode.
        """
        ours = self.task.logits(outputs)
        with torch.no_grad():
            theirs = self.task.logits(self.task.outputs(self.teacher.to(ours.device), batch))
        if ours.shape != theirs.shape:
            raise BadInput(
                f"the teacher returns logits of shape {tuple(theirs.shape)}, and the model {tuple(ours.shape)}; "
                "give --teacher-logits 0, or another teacher"
            )

    def with_targets(self, batch: Batch) -> Batch:
        """A batch whose targets are the classes that the teacher tells."""
        with torch.no_grad():
            taught = self.task.logits(self.task.outputs(self.teacher, batch))
        return batch[0], taught.argmax(self.task.class_dimension)

    def _soft(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """The divergence of the student's probabilities from the teacher's, a mean over all that is classified."""
        classes, heat = self.task.class_dimension, self.config.temperature
        student, teacher = (F.log_softmax(logits.float() / heat, classes) for logits in (ours, theirs))
        apart = F.kl_div(student, teacher, reduction="none", log_target=True).sum(classes)
        return heat**2 * apart.mean()


def _distance(ours: Tensor, theirs: Tensor) -> Tensor:
    size = theirs.float().square().mean().clamp_min(torch.finfo(torch.float32).tiny)
    return (ours.float() - theirs.float()).square().mean() / size


@contextmanager
def _values_behind(model: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the first tensor that each module returns."""
    found: dict[str, Tensor] = {}

    def note(path: str) -> Any:
        def hook(module: nn.Module, args: Any, result: Any) -> None:
            # A checkpoint runs a block again, in the backward pass: the first value is the one that counts.
            found.setdefault(path, next(leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)))

        return hook

    handles = [model.get_submodule(path).register_forward_hook(note(path)) for path in paths]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
