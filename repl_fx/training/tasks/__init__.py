"""Tasks: which loss a batch has, and which figures an evaluation gives."""

from repl_fx.training.tasks.classification import Classification
from repl_fx.training.tasks.language_modelling import LanguageModelling
from repl_fx.training.tasks.registry import known_tasks, task_of
from repl_fx.training.tasks.task import Batch, Task, logits_of

__all__ = ["Batch", "Classification", "LanguageModelling", "Task", "known_tasks", "logits_of", "task_of"]
