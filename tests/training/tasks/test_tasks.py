"""Tasks by name."""

from __future__ import annotations

import pytest

from repl_fx.errors import BadInput
from repl_fx.training.data.data_set import TASKS
from repl_fx.training.tasks import Classification, task_of


def test_tasks_are_found_by_name() -> None:
    assert isinstance(task_of("classification", 3), Classification)
    assert all(task_of(name, 2).key == name for name in TASKS)
    with pytest.raises(
        BadInput, match="no task 'poetry'; known are classification, language-modelling, segmentation, detection"
    ):
        task_of("poetry", 3)
