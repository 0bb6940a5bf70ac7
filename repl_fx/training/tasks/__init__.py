"""Tasks: which loss a batch has, and which figures an evaluation gives."""

from __future__ import annotations

from collections.abc import Callable

from repl_fx.errors import BadInput, close_matches
from repl_fx.training.tasks.classification import Classification
from repl_fx.training.tasks.detection import Detection
from repl_fx.training.tasks.language_modelling import LanguageModelling
from repl_fx.training.tasks.semantic_segmentation import Segmentation
from repl_fx.training.tasks.task import Batch, Task, logits_of

__all__ = ["Batch", "Classification", "LanguageModelling", "Task", "logits_of", "task_of"]

_TASKS: dict[str, Callable[[int], Task]] = {
    task.key: task for task in (Classification, LanguageModelling, Segmentation, Detection)
}


def task_of(name: str, classes: int) -> Task:
    """The task of a name.

    Args:
        classes: how many the targets come from.

    Raises:
        BadInput: no task has the name; lists those there are.
    """
    if name not in _TASKS:
        raise BadInput(f"no task {name!r}{close_matches(name, _TASKS)}; known are {', '.join(_TASKS)}")
    return _TASKS[name](classes)
