"""Trials of a plan: it is applied, and what it makes takes a training step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

from repl_fx.errors import BrokenGraph, ForeignError, PlanMismatch, one_line
from repl_fx.graph.grouping import grouped
from repl_fx.passes.replace_blocks import CutStretch
from repl_fx.plan import Plan, Refusal, Replacement
from repl_fx.rewriting.apply import Rewritten, apply_plan
from repl_fx.rewriting.check_training import TrainingCheck
from repl_fx.surrogates import make_surrogate
from repl_fx.surrogates.shared.site import surrogate_path
from repl_fx.tracing.parts.part_repeats import ModelRepeats


class Trials:
    """Applies plans to the parts of a model, and takes a training step with what they make."""

    def __init__(self, found: ModelRepeats, seed: int) -> None:
        self.found, self.seed = found, seed
        captured = found.captured
        self._reasons: dict[tuple[str, ...], str | None] = {}
        self._made: tuple[tuple[Replacement, ...], Rewritten] = (), Rewritten()
        self._check = TrainingCheck(captured.module, captured.inputs)
        if captured.check is not None and not captured.check.training:
            # The model does not run in training mode.
            self._check.possible = False

    def rewritten(self, plan: Plan) -> Rewritten:
        """The graphs that a plan makes; made already where it was the last to pass, or to be asked for."""
        replacements, rewritten = self._made
        if replacements == plan.replacements:
            return rewritten
        try:
            rewritten = apply_plan(self.found, plan)
        except ForeignError as failed:
            raise failed.problem from None
        self._made = plan.replacements, rewritten
        return rewritten

    def require(self, plan: Plan) -> None:
        """Try a plan that is not to be changed."""
        reason = self._reason(plan.replacements)
        if reason is not None:
            raise PlanMismatch(f"what the plan makes cannot be trained: {reason}; make a new plan")

    def settle(
        self, plan: Plan, choices: Callable[[Replacement], Iterator[Replacement]]
    ) -> tuple[tuple[Replacement, ...], tuple[Refusal, ...]]:
        """The replacements of a plan that train together, and refusals of the others.

        `choices` gives other surrogates that may stand in for a block, most preferred first.
        """
        if self._reason(plan.replacements) is None:
            return plan.replacements, ()
        order = {replacement.block: number for number, replacement in enumerate(plan.replacements)}
        kept: tuple[Replacement, ...] = ()
        refusals: list[Refusal] = []

        def with_kept(*more: Replacement) -> tuple[Replacement, ...]:
            return tuple(sorted((*kept, *more), key=lambda replacement: order[replacement.block]))

        for group in _alike(plan.replacements):
            # Blocks that are alike mostly fail alike, so the first of them speaks for all.
            first = self._first_that_trains(chain(group[:1], choices(group[0])), with_kept)
            alike = [] if first is None else [_standing_in(chain([r], choices(r)), first) for r in group]
            more = with_kept(*filter(None, alike))
            if alike and None not in alike and self._reason(more) is None:
                kept = more
                continue
            for one in group:
                other = self._first_that_trains(chain([one], choices(one)), with_kept)
                if other is not None:
                    kept = with_kept(other)
                else:
                    refusals.append(Refusal(one.block, one.repeat, self._reason(with_kept(one)) or ""))
        return kept, tuple(refusals)

    def _first_that_trains(
        self, choices: Iterable[Replacement], with_kept: Callable[[Replacement], tuple[Replacement, ...]]
    ) -> Replacement | None:
        return next((one for one in choices if self._reason(with_kept(one)) is None), None)

    def _reason(self, replacements: tuple[Replacement, ...]) -> str | None:
        """Why these replacements together do not train; None where they do."""
        tried = tuple(map(repr, replacements))
        if tried not in self._reasons:
            self._reasons[tried] = self._try(replacements)
        return self._reasons[tried]

    def _try(self, replacements: tuple[Replacement, ...]) -> str | None:
        keys = ", ".join(dict.fromkeys(replacement.surrogate for replacement in replacements))
        # A surrogate of a package that cannot be built here is refused like one that cannot be trained; where one of
        # repl-fx's own cannot, that is a defect.
        try:
            rewritten = apply_plan(self.found, Plan(replacements, (), "", self.seed))
        except ForeignError as problem:
            return f"{keys} cannot be built here: {problem}"
        except CutStretch as problem:
            return one_line(problem)
        except (BrokenGraph, PlanMismatch) as problem:
            if all(make_surrogate(r.surrogate, r.settings).builds_by_ours for r in replacements):
                raise
            return f"{keys} cannot be built here: {one_line(problem)}"
        removed, made = {}, {}
        for name in (replacement.block for replacement in replacements):
            part = self.found.part_of(name)
            block, after = part.blocks[name], rewritten.graphs[part.path]
            removed[name] = [part.graph_module.get_parameter(path) for path in block.parameters]
            place = f"{surrogate_path(block.name)}."
            made[name] = [p for path, p in after.named_parameters() if path.startswith(place)]
        problem_found, culprits = self._check.run(self.found.captured.with_graphs(rewritten.graphs), made, removed)
        if problem_found is not None:
            return f"{keys} fails in a training step: {problem_found}"
        for replacement in replacements:
            if replacement.block in culprits:
                return f"{replacement.surrogate} cannot be trained here: {culprits[replacement.block]}"
        self._made = replacements, rewritten
        return None


def _alike(replacements: Sequence[Replacement]) -> list[list[Replacement]]:
    """Replacements of one repeat by one surrogate, in program order."""
    return list(grouped(((one.repeat, one.surrogate), one) for one in replacements).values())


def _standing_in(choices: Iterable[Replacement], like: Replacement) -> Replacement | None:
    """The choice for a block that is the surrogate of another one; None where the block refuses it."""
    return next((one for one in choices if one.surrogate == like.surrogate), None)
