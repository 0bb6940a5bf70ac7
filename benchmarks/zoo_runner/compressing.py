"""The stages of a compression for a model of the zoo, with random data: scores, a budget, fits.

captured    as in the other stages
scored      each block that may go has an influence, or the scores say why not
planned     a plan under a budget of parameters, by these scores, with surrogate `auto`
fitted      its surrogates are fitted, or each says why it stays as it starts
"""

from __future__ import annotations

import glob
import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import repl_fx
from benchmarks.zoo_models.case import Case
from benchmarks.zoo_runner.stages import Record, alone, built, part_of_record, stage, stop, why_nothing
from repl_fx._torch import pytree
from repl_fx.errors import BadInput
from repl_fx.fitting.fit import NothingToFit
from repl_fx.pipeline import rewrite
from repl_fx.planning.options import Options
from repl_fx.rewriting.result import TransformResult
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.tracing.parts.capture_parts import CapturedParts

COMPRESSING = ("captured", "scored", "planned", "fitted")
# Shares of the parameters, the first of which that a plan can meet is the budget.
SHARES = (0.9, 0.97, 0.995, 0.9999)
BATCHES = 4
# The one that a compression takes by itself, and the one that has an answer for most blocks.
SURROGATES = ("trained", "auto")


def compress(case: Case, record: Record, place: Path, last: str, heavy: Any) -> None:
    """Capture, score, plan under a budget and fit."""
    model, args, kwargs = built(case, record, place, "build")
    record.parameters = sum(parameter.numel() for parameter in model.parameters())
    batches, inputs = random_batches(model, args, kwargs), ExampleInputs(args, kwargs)
    with alone(record, heavy):
        with stage(record, place, "captured", last):
            captured = repl_fx.capture_parts(model, args, kwargs)
            record.parts = [part_of_record(part) for part in captured.parts]
            repeats = [repeat for part in captured.parts for repeat in repl_fx.find_repeats(part.graph_module)]
            try:
                possible = rewrite(captured, Options(), check=False)
            except repl_fx.NothingToReplace as nothing:
                record.nothing_repeats = True
                record.reason = why_nothing(captured.parts, repeats, nothing)
                stop()
            record.replaced = len(possible.plan.replacements)
        with stage(record, place, "scored", last):
            scores = repl_fx.score_blocks(captured, batches)
            worth = scores.of("influence")
            reasons = {score.block: score.reasons.get("influence", "") for score in scores.blocks}
            silent = [block for block, why in reasons.items() if block not in worth and not why]
            assert not silent, f"{silent[0]} has neither an influence nor a reason"
            record.refused = [f"{block}: {why}" for block, why in reasons.items() if block not in worth]
        with stage(record, place, "planned", last):
            unscored = [glob.escape(block) for block in reasons if block not in worth]
            plans = [found for key in SURROGATES if (found := planned(captured, inputs, worth, unscored, key))]
            assert plans, "neither surrogate has a plan under any of the budgets"
            met = [record.parameters - sum(p.numel() for p in result.module.parameters()) for _, result in plans]
            for (share, result), removed in zip(plans, met, strict=True):
                assert removed >= (1 - share) * record.parameters, f"the budget of {share} is not met"
                record.surrogates |= dict(Counter(one.surrogate for one in result.plan.replacements))
            record.removed = met[0]
        with stage(record, place, "fitted", last):
            for number, (_, result) in enumerate(plans, start=1):
                try:
                    done = repl_fx.fit(result, batches)
                except NothingToFit as nothing:
                    record.refused.append(str(nothing))
                    if number == len(plans):
                        raise
                    continue
                record.refused += [str(one) for one in done.surrogates if not one.rows]
                far = [one for one in done.surrogates if (one.after or 0) > (one.before or 0) * 1.001 + 1e-6]
                assert not far, f"a fit is farther from the original than no fit: {far[0]}"
                break


def planned(
    captured: CapturedParts, inputs: ExampleInputs, worth: Mapping[str, float], unscored: Sequence[str], surrogate: str
) -> tuple[float, TransformResult] | None:
    """The first budget that a surrogate has a plan under, and the result; None where it has none."""
    for share in SHARES:
        options = Options(budget={"params": share}, scores=worth, ignore=unscored, surrogate=surrogate)
        try:
            return share, rewrite(captured, options, check=False)
        except repl_fx.NothingToReplace:
            return None
        except BadInput as problem:
            if not str(problem).startswith("no plan has"):
                raise
    return None


def random_batches(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Batches like the example inputs, with numbers of their own where there are floats."""
    named = {**inspect.signature(model.forward).bind_partial(*args).arguments, **kwargs} if kwargs else tuple(args)
    drawn = torch.Generator().manual_seed(0)

    def other(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value + 0.1 * torch.randn(value.shape, generator=drawn).to(value)
        return value.clone() if isinstance(value, Tensor) else value

    return [pytree.tree_map(other, named) for _ in range(BATCHES)]
