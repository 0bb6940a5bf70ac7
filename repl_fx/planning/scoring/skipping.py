"""Models with blocks skipped: each goes by the surrogate `identity`, on the graphs that were captured already."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from repl_fx.errors import ForeignError
from repl_fx.finding.blocks import Repeat
from repl_fx.plan import Plan
from repl_fx.planning.choose_blocks import Chosen, choose_blocks
from repl_fx.planning.choose_surrogates import choose_surrogates
from repl_fx.planning.policies import policy_of
from repl_fx.rewriting.apply import apply_plan
from repl_fx.running.batches import Batch, Evaluation, Loss, loss_of
from repl_fx.tracing.parts.part_repeats import ModelRepeats


class Skipping:
    """Makes models with blocks skipped, all of which share their tensors with the model itself.

    Attributes:
        refusals: why a block cannot be skipped, by name.
    """

    def __init__(self, found: ModelRepeats) -> None:
        self.found = found
        self.refusals: dict[str, str] = {}

    def one_by_one(self) -> dict[str, nn.Module]:
        """The models without one block, by the name of the block; those at the ends of a repeat too."""
        made = {}
        for repeat in self.found.repeats:
            for number, name in enumerate(block.name for block in repeat.blocks):
                model = self._without([_alone(repeat, number)])
                if isinstance(model, nn.Module):
                    made[name] = model
                else:
                    self.refusals.update(model)
        return made

    def allowed(self, gone: Sequence[str], candidates: Iterable[str]) -> dict[str, tuple[Chosen, ...]]:
        """The candidates that a plan may take out besides `gone`, each with all blocks that it takes out then."""
        found = {}
        for name in candidates:
            choice = choose_blocks(self.found.repeats, blocks=[*gone, name])
            if not choice.refusals:
                found[name] = choice.chosen
        return found

    def further(self, gone: Sequence[str], candidates: Iterable[str]) -> dict[str, nn.Module]:
        """The models without one block more, by its name."""
        made = {name: self._without(chosen) for name, chosen in self.allowed(gone, candidates).items()}
        return {name: model for name, model in made.items() if isinstance(model, nn.Module)}

    def _without(self, chosen: Sequence[Chosen]) -> nn.Module | Mapping[str, str]:
        """The model without some blocks, in evaluation mode; or why blocks cannot be skipped."""
        replacements, refusals = choose_surrogates(self.found, chosen, policy_of("identity"))
        if refusals:
            return {refusal.block: refusal.reason for refusal in refusals}
        try:
            graphs = apply_plan(self.found, Plan(replacements, (), "")).graphs
        except ForeignError as failed:
            raise failed.problem from None
        return self.found.captured.with_graphs(graphs).eval()


def _alone(repeat: Repeat, number: int) -> Chosen:
    """A block to skip. Nothing is made from the blocks around it, so one beside it does for both."""
    blocks = repeat.blocks
    before, after = blocks[max(number - 1, 0)], blocks[min(number + 1, len(blocks) - 1)]
    return Chosen(repeat, blocks[number], before, after)


class MeanLosses:
    """The mean losses of models over batches, by name, in float64."""

    def __init__(self, models: Mapping[str, nn.Module], loss: Loss, evaluation: Evaluation) -> None:
        self.models, self.loss, self.evaluation = models, loss, evaluation
        self._totals = dict.fromkeys(models, 0.0)
        self._samples = 0

    @torch.no_grad()
    def add(self, batch: Batch) -> None:
        """Run each model on a batch."""
        for name, model in self.models.items():
            loss = loss_of(self.loss, self.evaluation.outputs(model, batch), batch)
            self._totals[name] += batch.samples * float(loss)
        self._samples += batch.samples

    @property
    def means(self) -> dict[str, float]:
        """The mean losses by name, those that are finite."""
        means = {name: total / self._samples for name, total in self._totals.items()}
        return {name: mean for name, mean in means.items() if math.isfinite(mean)}
