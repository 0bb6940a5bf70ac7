"""Language modelling: the loss of all places, bits per byte, and what does not fit."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from repl_fx.errors import BadInput
from repl_fx.training.tasks.language_modelling import LanguageModelling
from tests.training.runs import Net


def test_the_loss_is_over_all_places() -> None:
    logits, targets = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    loss = LanguageModelling(7).loss({"logits": logits}, (targets, targets))
    torch.testing.assert_close(loss, F.cross_entropy(logits.transpose(1, 2), targets))


def test_a_batch_without_any_token_counts_for_nothing() -> None:
    task, logits, targets = LanguageModelling(7), torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    targets[0, 2:] = -100
    wanted = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    none = torch.full_like(targets, -100)
    assert float(task.loss(logits, (none, none), 0.1)) == 0
    for batch in ((targets, targets), (none, none)):
        task.update(logits, batch)
    torch.testing.assert_close(task.compute()["loss"], wanted)
    task.update(logits, (none, none))
    with pytest.raises(BadInput, match="all held-out targets are left out, so that there is no loss"):
        task.compute()


def test_bits_per_byte_are_the_loss_in_bits() -> None:
    task, targets = LanguageModelling(4), torch.ones(2, 3, dtype=torch.long)
    for _ in range(2):
        task.update(torch.zeros(2, 3, 4), (targets, targets))
        task.update(torch.eye(4)[targets] * 1e4, (targets, targets))
        assert float(task.compute()["bits_per_byte"]) == pytest.approx(math.log2(4) / 2)


def test_what_does_not_fit_is_a_line() -> None:
    ids = torch.zeros(2, 3, dtype=torch.long)
    LanguageModelling(4).require_fit(Net(), torch.zeros(2, 3, 5), (ids, ids), "text")
    with pytest.raises(BadInput, match="Net returns 5 logits, and text has 6 classes"):
        LanguageModelling(6).require_fit(Net(), torch.zeros(2, 3, 5), (ids, ids), "text")
    with pytest.raises(BadInput, match=r"wanted is \(batch, length, tokens\), for the 2 x 3 targets of text"):
        LanguageModelling(4).require_fit(Net(), torch.zeros(2, 5), (ids, ids), "text")
    with pytest.raises(BadInput, match="label 4 is out of range"):
        LanguageModelling(4).require_targets((ids, ids + 4), "text")
