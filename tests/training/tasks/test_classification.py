"""Classification: the loss, the figures over all batches, and what does not fit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from repl_fx.errors import BadInput
from repl_fx.training.tasks.classification import Classification
from tests.training.runs import Net

LOGITS = torch.tensor([[3.0, 0.0, 1.0], [0.0, 2.0, 1.0], [0.0, 1.0, 2.0], [5.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
TARGETS = torch.tensor([0, 1, 2, 1, 2])


def test_the_loss_is_cross_entropy_of_labels_and_of_probabilities() -> None:
    task, batch = Classification(3), (LOGITS, TARGETS)
    assert torch.equal(task.loss(LOGITS, batch), F.cross_entropy(LOGITS, TARGETS))
    assert torch.equal(task.loss(LOGITS, batch, 0.1), F.cross_entropy(LOGITS, TARGETS, label_smoothing=0.1))
    mixed = F.one_hot(TARGETS, 3) * 0.7 + 0.1
    assert torch.equal(task.loss(LOGITS, (LOGITS, mixed)), F.cross_entropy(LOGITS, mixed))


def test_figures_are_over_all_inputs_and_begin_anew() -> None:
    task = Classification(3)
    for _ in range(2):
        # Batches of unlike sizes: a mean of means would be another number.
        for some in (slice(0, 4), slice(4, 5)):
            task.update(LOGITS[some], (LOGITS[some], TARGETS[some]))
        figures = task.compute()
        torch.testing.assert_close(figures["loss"], F.cross_entropy(LOGITS, TARGETS))
        assert float(figures["accuracy"]) == pytest.approx(3 / 5)
    mixed = F.one_hot(TARGETS, 3) * 0.7 + 0.1
    task.update(LOGITS, (LOGITS, mixed))
    figures = task.compute()
    torch.testing.assert_close(figures["loss"], F.cross_entropy(LOGITS, mixed))
    assert float(figures["accuracy"]) == pytest.approx(3 / 5)


def test_a_model_may_have_more_classes_than_the_data() -> None:
    task = Classification(2)
    logits = torch.tensor([[0.0, 1.0, 9.0], [1.0, 0.0, 0.0]])
    task.update(logits, (logits, torch.tensor([1, 0])))
    assert float(task.compute()["accuracy"]) == 0.5


def test_what_does_not_fit_is_a_line() -> None:
    batch = (LOGITS, TARGETS)
    Classification(3).require_fit(Net(), LOGITS, batch, "mine")
    with pytest.raises(BadInput, match="Net returns 3 logits, and mine has 4 classes"):
        Classification(4).require_fit(Net(), LOGITS, batch, "mine")
    with pytest.raises(BadInput, match=r"Net returns logits of shape \(5, 3, 1\); wanted is \(batch, classes\)"):
        Classification(3).require_fit(Net(), LOGITS[..., None], batch, "mine")
    Classification(3).require_targets((LOGITS, torch.rand(5, 3)), "mine")
    for shape in ((5, 4), (4, 3)):
        with pytest.raises(BadInput, match=r"mine: probabilities are of shape .*; wanted is \(5, 3\), one for each"):
            Classification(3).require_targets((LOGITS, torch.rand(shape)), "mine")
    with pytest.raises(BadInput, match="label 2 is out of range"):
        Classification(2).require_targets(batch, "mine")
