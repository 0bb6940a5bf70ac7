"""Learning from the original model: its logits, and the values behind its blocks.

    loss = w_target · task + w_logits · T² · KL(softmax(t / T) ‖ softmax(s / T)) + w_values · mean over blocks of d
    d    = mean (v_s - v_t)² / mean v_t²

s and t are the logits of student and teacher: Hinton et al. 2015, arXiv:1503.02531, section 2, whose factor T² keeps
the gradients as large at any temperature T. v are the values behind a block that is replaced in the student, as in
FitNets (Romero et al. 2015, arXiv:1412.6550, equation 3), by their own size, so that no block counts for being loud.
Where the student is a graph, they are those of the nodes that stand for what the block's module returned; of a stretch,
for what its last one did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from repl_fx._torch import pytree
from repl_fx.artifact.provenance import with_origin
from repl_fx.errors import BadInput
from repl_fx.fitting.stand_ins import ends_of_stretches
from repl_fx.graph.boundaries import at_boundaries
from repl_fx.graph.captured import has_attribute
from repl_fx.graph.recording import watching_forward
from repl_fx.rewriting.in_place.surrogate_block import SurrogateBlock
from repl_fx.running.holders import ORIGIN
from repl_fx.running.meanwhile import forward_replaced
from repl_fx.tracing.parts.capture_parts import graphs_in
from repl_fx.training.tasks import Batch, Task
from repl_fx.training.train_config import TrainConfig


@dataclass(frozen=True, eq=False)
class Place:
    """A place behind a replaced block.

    Attributes:
        path: of the block's module in the teacher, and, of a surrogate in place, in the student.
        leaf: the number of the value among the flattened results of the module; None for the first tensor.
        graph, node: where a student that is a graph has the value; None in place.
    """

    path: str
    leaf: int | None = None
    graph: fx.GraphModule | None = None
    node: fx.Node | None = None


def places_in(student: nn.Module) -> tuple[Place, ...]:
    """The places behind the replaced blocks of a model that are modules of the original, or lie in one of their own."""
    found = [Place(path) for path, module in student.named_modules() if isinstance(module, SurrogateBlock)]
    if found or ORIGIN not in vars(student):
        return tuple(found)
    _, origin = with_origin(student)
    for replacement in ends_of_stretches(origin.plan):
        # Behind the sign is what tells the block from another of the same module.
        path = replacement.block.partition("#")[0]
        for part, gm in graphs_in(student).items():
            inside = path if not part else path.removeprefix(f"{part}.")
            if part and inside == path:
                continue
            results = [(b, node) for node, b in at_boundaries(gm.graph, inside) if b.argument is None]
            # Of a module that is called again it is not known which call is the block's.
            if results and len({b.call for b, _ in results}) == 1 and len(results[0][0].call.calls) < 2:
                boundary, node = min(results, key=lambda result: result[0].leaf)
                found.append(Place(path, boundary.leaf, gm, node))
    return tuple({place.path: place for place in found}.values())


class Distillation:
    """The teacher of a run.

    Args:
        teacher: the original model; it is put into evaluation mode.
        student: the model to train.
        task: theirs.
        config: weights of the parts, and the temperature.

    Raises:
        BadInput: values are asked for, or are all that the task has to learn from, and no replaced block of the student
            is a module of the teacher.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, task: Task, config: TrainConfig) -> None:
        self.teacher, self.task, self.config = teacher.eval(), task, config
        self.places = places_in(student) if config.teacher_values else ()
        # Detection models have losses of their own, and boxes that are no two models' the same.
        self.logits_weight = config.teacher_logits if task.has_logits else 0.0
        self._forwards: dict[fx.GraphModule, Callable[..., Any]] = {}
        self._seen: dict[str, Tensor] = {}
        if lacking := next((p.path for p in self.places if not has_attribute(teacher, p.path)), None):
            raise BadInput(f"the teacher has no module {lacking}, behind which values are compared; give the original")
        if config.teacher_values and not self.places:
            raise BadInput(
                f"{type(student).__name__} has no replaced block that is a module of the original, behind which "
                "values could be compared; give --teacher-values 0"
            )
        if not task.has_logits and not self.places:
            raise BadInput(
                f"models for {task.key} return no logits, so that the values behind replaced blocks are all to learn "
                f"from the original, and none of {type(student).__name__} are compared; use repl-fx train, without "
                "--teacher"
            )
        for gm in dict.fromkeys(place.graph for place in self.places if place.graph is not None):
            notes = {
                p.node: partial(_keep, self._seen, p.path) for p in self.places if p.graph is gm and p.node is not None
            }
            self._forwards[gm] = watching_forward(gm, notes)

    def step(self, student: nn.Module, batch: Batch) -> tuple[Any, Tensor]:
        """The outputs of the student for a batch, and what it has to learn from the teacher: a scalar."""
        self._seen.clear()
        with ExitStack() as watching:
            for gm, forward in self._forwards.items():
                watching.enter_context(forward_replaced(gm, forward))
            own = [place for place in self.places if place.node is None]
            ours = watching.enter_context(_values_behind(student, own))
            outputs = self.task.outputs(student, batch)
        ours |= self._seen
        self._seen.clear()
        with torch.no_grad(), _values_behind(self.teacher, self.places) as theirs:
            taught = self.task.outputs(self.teacher, batch)
        like = self.task.logits(outputs) if self.task.has_logits else pytree.tree_leaves(outputs)[0]
        loss = like.new_zeros((), dtype=torch.float32)
        if self.logits_weight:
            loss = loss + self.logits_weight * self._soft(self.task.logits(outputs), self.task.logits(taught), batch[1])
        # A layer that this batch skips by a draw has no value.
        seen = [place.path for place in self.places if place.path in ours and place.path in theirs]
        far = [_distance(ours[path], theirs[path], path) for path in seen]
        if far:
            loss = loss + self.config.teacher_values * torch.stack(far).mean()
        return outputs, loss

    def require_fit(self, batch: Batch, outputs: Any) -> None:
        """Refuse a teacher whose logits are no match for those of the student.

        Args:
            outputs: of the student, in evaluation mode.
        """
        if not self.task.has_logits:
            return
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

    def _soft(self, ours: Tensor, theirs: Tensor, targets: Any) -> Tensor:
        """The divergence of the student's probabilities from the teacher's, a mean over all that is classified.

        Padding is left out, where each of the targets is that of one place.
        """
        classes, heat = self.task.class_dimension, self.config.temperature
        student, teacher = (F.log_softmax(logits.float() / heat, classes) for logits in (ours, theirs))
        apart = F.kl_div(student, teacher, reduction="none", log_target=True).sum(classes)
        if self.task.ignored is not None and targets.shape == apart.shape:
            counted: Tensor = targets != self.task.ignored
            return heat**2 * apart.where(counted, 0).sum() / counted.sum().clamp_min(1)
        return heat**2 * apart.mean()


def _distance(ours: Tensor, theirs: Tensor, path: str) -> Tensor:
    if ours.shape != theirs.shape:
        # A detection model may scale pictures by a draw in training.
        raise BadInput(
            f"the values behind {path} have shape {tuple(ours.shape)}, and those of the original "
            f"{tuple(theirs.shape)}; give --teacher-values 0, or a model that scales its inputs the same in both modes"
        )
    size = theirs.float().square().mean().clamp_min(torch.finfo(torch.float32).tiny)
    return (ours.float() - theirs.float()).square().mean() / size


def _keep(found: dict[str, Tensor], path: str, value: Tensor) -> None:
    # What comes later may write over it. A checkpoint runs a block again: the first value is the one that counts.
    if path not in found:
        found[path] = value.clone()


@contextmanager
def _values_behind(model: nn.Module, places: Sequence[Place]) -> Iterator[dict[str, Tensor]]:
    """Collect the value of each place that its module returns."""
    found: dict[str, Tensor] = {}

    def note(place: Place, module: nn.Module, args: Any, result: Any) -> None:
        leaves = pytree.tree_leaves(result)
        _keep(found, place.path, next(leaf for leaf in leaves[place.leaf or 0 :] if isinstance(leaf, Tensor)))

    with ExitStack() as hooks:
        for place in places:
            hooks.enter_context(model.get_submodule(place.path).register_forward_hook(partial(note, place)))
        yield found
