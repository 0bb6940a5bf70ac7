"""Compression of a trained model in Python: score its blocks, plan to a budget, cut, and fit to the original.

    score_blocks -> transform(budget=, scores=) -> fit

What `repl-fx compress` does with a specification and data, on a model and batches, without a file: it calls this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn

from repl_fx.arguments import require_function, require_kind, require_module
from repl_fx.costs.counted import Costs
from repl_fx.display.columns import Table
from repl_fx.display.comparisons import budget_table, figures_lines, figures_table
from repl_fx.display.html import Displayed
from repl_fx.display.progress import shown, stage
from repl_fx.errors import BadInput
from repl_fx.fitting.fit import NothingToFit, fit
from repl_fx.fitting.fitted import Fit
from repl_fx.graph.captured import copy_model
from repl_fx.pipeline import transform
from repl_fx.planning.budgets import Budget, shares_of
from repl_fx.planning.options import Options, require_known
from repl_fx.planning.scoring.score_blocks import score_blocks
from repl_fx.planning.scoring.scores import Kind, Scores
from repl_fx.rewriting.block_reports import blocks_table
from repl_fx.rewriting.result import TransformResult
from repl_fx.running.batches import Batches, Given, Loss
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.untouched import in_mode
from repl_fx.tracing.capture import widen_batch
from repl_fx.tracing.parts.capture_parts import CapturedParts, capture_compared
from repl_fx.tracing.parts.finders import Finder

Figures = Mapping[str, float] | float


@dataclass(frozen=True, eq=False, repr=False)
class Compression(Displayed):
    """The outcome of a compression.

    Attributes:
        result: of the transform; its tensors are its own.
        scores: of all blocks of the original.
        fit: of the surrogates; None where none can be fitted, which `unfitted` says.
        costs: of the original and of the cut model.
        figures: what `evaluate` returned for the original and for the cut model; empty without it.
        budget: of each cost the limit, the expected and the reached share of the original.
    """

    result: TransformResult
    scores: Scores
    fit: Fit | None
    costs: tuple[Costs, Costs]
    unfitted: str = ""
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    budget: dict[str, dict[str, float | None]] = field(default_factory=dict)

    @property
    def model(self) -> nn.Module:
        """The smaller model: of the original's class, where the surrogates have places in its tree."""
        return self.result.model

    def __str__(self) -> str:
        left = {name: share["reached"] for name, share in self.budget.items() if share["reached"] is not None}
        shares = ", ".join(f"{name} {share:.4f}" for name, share in left.items())
        lines = [f"left of the original: {shares}", *figures_lines(self.figures)]
        return "\n".join([*lines, str(self.result.plan), str(self.fit or self.unfitted)])

    def displayed(self) -> list[str | Table]:
        """The tables of the budget, the figures and the blocks, and the fit."""
        tables = [budget_table(self.budget), *([figures_table(self.figures)] if self.figures else [])]
        return [type(self.model).__name__, *tables, blocks_table(self.result.report), str(self.fit or self.unfitted)]


@shown("compress")
def compress(
    model: nn.Module,
    batches: Given,
    *,
    budget: Mapping[str, float],
    evaluate: Callable[[nn.Module], Figures] | None = None,
    loss: Loss | None = None,
    score: Kind = "influence",
    scores: Scores | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    captured: CapturedParts | None = None,
    graph: bool = False,
    in_place: bool = False,
    checkpoint_blocks: bool = False,
    finder: str | Finder | None = None,
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> Compression:
    """Cut a trained model to a budget, and fit what stands in for its blocks to the original, in closed form.

    Args:
        model: with its weights; it is not changed, and the result shares no tensor with it unless it is `captured`.
        batches: a few hundred samples, see `score_blocks`: a collection that can be gone through several times, or a
            function that returns one; with `loss` pairs of inputs and targets.
        budget: what may be left of `params`, `flops`, `memory` and `latency`, as shares of the original.
        evaluate: the figures of a model in evaluation mode, by name, or one number; called with the original and with
            the cut model.
        loss: `loss(outputs, targets)`, for the scores `gradient` and `loss`.
        score: by which blocks matter least: `influence`, `change`, `gradient` or `loss`.
        scores: of `score_blocks`, where they are known before.
        args, kwargs: example inputs; those of the first batch by default.
        captured: the model's, see `transform`.
        graph, in_place, checkpoint_blocks, finder: see `transform`.
        progress: called with the name of each stage as it begins, in place of a bar (`REPL_FX_PROGRESS`).
        **options: `surrogate` ("trained" by default), `settings`, `ignore`, `blocks` and `seed` of `transform`.

    Returns:
        The smaller model, with plan, scores, fit, figures and costs.

    Raises:
        NothingToReplace: no block may go.
        BadInput: a budget that no plan is under, batches that the model does not take, or that serve for one pass.
        CaptureError: see `capture_parts`.
    """
    require_module("compress", model)
    require_known("compress", cast(Options, options))
    if scores is not None:
        require_kind(scores, Scores, "compress takes for scores what repl_fx.score_blocks returned")
    for name, function in (("evaluate", evaluate), ("loss", loss)):
        require_function(name, function)
    require_kind(score, str, "compress takes for score the name of one, such as 'influence'")
    if not budget:
        raise BadInput("compress needs a budget, such as budget={'flops': 0.75}")
    source = copy_model(model) if captured is None else model
    given = Batches(batches, source, paired=loss is not None)
    if not given.lasting:
        raise BadInput("batches can be gone through once, and each stage takes a pass; give a list, or a function")
    called = ExampleInputs.of(args, kwargs)
    example = called if called.args or called.kwargs else next(iter(given)).inputs
    inputs = widen_batch(source, example)
    if captured is None:
        stage("capture")
        captured = capture_compared(source, inputs.args, inputs.kwargs)
    if scores is None:
        kinds: tuple[Kind, ...] = tuple(dict.fromkeys(("influence", "change", score)))
        scores = score_blocks(captured, batches, loss=loss, kinds=kinds)
    figures = {} if evaluate is None else {"original": _figures(evaluate, source)}
    form: Any = {"graph": graph, "in_place": in_place, "checkpoint_blocks": checkpoint_blocks, "finder": finder}
    chosen = {"surrogate": "trained", **options, **scores.planning_options(score, options.get("ignore") or ())}
    known: Any = {"captured": captured, "budget": budget, **form, **chosen}
    result = transform(source, inputs.args, inputs.kwargs, **known)
    stage("fit")
    fitted, unfitted = None, ""
    try:
        fitted = fit(result, lambda: _inputs(given))
    except NothingToFit as nothing:
        unfitted = str(nothing)
    if evaluate is not None:
        figures["cut"] = _figures(evaluate, result.model)
    stage("measure costs")
    costs = result.costs()
    shares = shares_of(result, *costs, Budget(budget).limits)
    return Compression(result, scores, fitted, costs, unfitted, figures, shares)


def _inputs(batches: Batches) -> Iterator[Any]:
    """The inputs of batches, as `fit` takes them."""
    for batch in batches:
        yield dict(batch.inputs.kwargs) if batch.inputs.kwargs else tuple(batch.inputs.args)


def _figures(evaluate: Callable[[nn.Module], Figures], model: nn.Module) -> dict[str, float]:
    with in_mode(model, False), torch.no_grad():
        found: Any = evaluate(model)
    figures = found if isinstance(found, Mapping) else {"figure": found}
    try:
        return {str(name): float(value) for name, value in figures.items()}
    except (TypeError, ValueError):
        kind = type(found).__name__
        raise BadInput(f"evaluate returned a {kind}; return a number, or numbers by name") from None
