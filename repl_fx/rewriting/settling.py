"""A plan becomes final: what of it trains and has a place in the model's tree, and the result that it makes.

Where a block has several surrogates to choose from, one goes that has a place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from torch import nn

from repl_fx.plan import Plan, Refusal, Replacement
from repl_fx.rewriting.apply import Rewritten
from repl_fx.rewriting.block_reports import reports_of
from repl_fx.rewriting.in_place.assembling import InPlace, put_in_place
from repl_fx.rewriting.in_place.judging import Judged
from repl_fx.rewriting.result import TransformResult
from repl_fx.rewriting.trials import Trials
from repl_fx.tracing.fingerprint import code_of, fingerprint
from repl_fx.tracing.parts.part_repeats import ModelRepeats, lines_made

# The other surrogates that may stand in for a block, most preferred first.
Choices = Callable[[Replacement], Iterator[Replacement]]


@dataclass(frozen=True)
class Form:
    """The form in which a result gives its model; see the options of `repl_fx.transform`."""

    graph: bool = False
    in_place: bool = False
    checkpoint_blocks: bool = False


class Settling:
    """Plans for the repeats of a captured model, each applied, tried in a training step and put in place.

    Args:
        found: the repeats of the model.
        seed: of the surrogates' initial values.
        check: whether plans are tried in a training step.
    """

    def __init__(self, found: ModelRepeats, seed: int, *, check: bool) -> None:
        self.judged = Judged()
        self.found, self.check = found, check
        self.trials = Trials(found, seed)
        self._placed: list[tuple[Rewritten, InPlace]] = []

    def require(self, plan: Plan) -> None:
        """Refuse a plan that does not train, and is not to be changed.

        Raises:
            PlanMismatch: says why it does not.
        """
        if self.check:
            self.trials.require(plan)

    def settle(self, plan: Plan, choices: Choices, *, in_place: bool) -> Plan:
        """The plan whose surrogates train, and have places where another choice has one.

        Args:
            choices: other surrogates that may stand in for a block, most preferred first.
            in_place: whether blocks stay whose surrogates have no place.
        """
        trains = self._trains(plan, choices)
        return settle_places(trains, choices, self._trains, self._put, required=in_place)

    def result(self, plan: Plan) -> TransformResult:
        """The result of a final plan; see `TransformResult`."""
        captured, rewritten = self.found.captured, self.trials.rewritten(plan)
        graphs = rewritten.graphs
        paths = graphs if plan.replacements else plan.parts
        used = [part for part in captured.parts if part.path in paths]
        report = [
            row for part in self.found for row in reports_of(part, graphs.get(part.path, part.graph_module), plan)
        ]
        module = captured.with_graphs(graphs) if graphs else captured.module
        return TransformResult(
            rewritten=module,
            parts=tuple(replace(part, graph_module=graphs.get(part.path, part.graph_module)) for part in used),
            plan=plan,
            report=tuple(report),
            structure=self.found.structure(plan.parts),
            made=lines_made(module),
            code=code_of(captured.source),
            found=self.found,
            one_by_one=rewritten.one_by_one,
            placed=next((placed for of, placed in self._placed if of is rewritten), None),
        )

    def _trains(self, plan: Plan, choices: Choices) -> Plan:
        kept = self.trials.settle(plan, choices) if self.check and plan.replacements else (plan.replacements, ())
        return completed(self.found, plan, *kept)

    def _put(self, plan: Plan) -> InPlace:
        """The surrogates of a plan in the model's own tree, which the result has, if these are its graphs."""
        rewritten = self.trials.rewritten(plan)
        module = self.found.captured.with_graphs(rewritten.graphs)
        placed = put_in_place(self.found, plan, rewritten.one_by_one, module, judged=self.judged)
        self._placed.append((rewritten, placed))
        return placed


def forms_of(found: ModelRepeats, plan: Plan, rewritten: Rewritten, form: Form) -> tuple[nn.Module, nn.Module]:
    """The model to train that a plan makes, and the one with graphs in it; to count their costs."""
    captured = found.captured
    graphs = captured.with_graphs(rewritten.graphs) if rewritten.graphs else captured.module
    if form.graph:
        return graphs, graphs
    # What is counted alone need not be compared.
    placed = put_in_place(found, plan, rewritten.one_by_one, None, checkpoint_blocks=form.checkpoint_blocks)
    return placed.model or graphs, graphs


def completed(
    found: ModelRepeats, plan: Plan, replacements: tuple[Replacement, ...], refusals: tuple[Refusal, ...]
) -> Plan:
    """A plan with these replacements, with more refusals, and with the fingerprint of the model that it is for."""
    # Parts that stay as they are need not be captured to apply the plan again.
    used = tuple(part.path for part in found if any(r.block in part.blocks for r in replacements))
    return replace(
        plan,
        replacements=replacements,
        refusals=tuple(dict.fromkeys((*plan.refusals, *refusals))),
        fingerprint=fingerprint(found.structure(used)),
        parts=used or ("",),
        repeats=found.described,
    )


def settle_places(
    plan: Plan,
    choices: Choices,
    settle: Callable[[Plan, Choices], Plan],
    put: Callable[[Plan], InPlace],
    *,
    required: bool,
) -> Plan:
    """A plan whose surrogates have places, where another choice has one.

    Args:
        plan: a plan whose replacements train.
        choices: the other surrogates that may stand in for a block, most preferred first.
        settle: makes of a plan one whose replacements train, by such choices.
        put: puts the surrogates of a plan in place.
        required: whether a block stays where none of its choices has a place. Else the graph is the way for all of the
            model, and the plan is as it was.
    """
    preferred, unfit = plan, dict[tuple[str, str], str]()

    def others(replaced: Replacement) -> Iterator[Replacement]:
        left = (other for other in choices(replaced) if (other.block, other.surrogate) not in unfit)
        reasons = [reason for (block, _), reason in unfit.items() if block == replaced.block]
        return (replace(other, why=reasons[0]) for other in left) if reasons else left

    while plan.replacements and (refusals := (placed := put(plan)).refusals):
        refused = {refusal.block: refusal for refusal in refusals}
        kept, stay = list[Replacement](), list[Refusal]()
        for replacement in plan.replacements:
            refusal = refused.get(replacement.block)
            if refusal is None:
                kept.append(replacement)
                continue
            unfit[replacement.block, replacement.surrogate] = f"{replacement.surrogate} has no place: {refusal.reason}"
            other = next(others(replacement), None) if replacement.block in placed.open else None
            if other is not None:
                kept.append(other)
            elif required:
                stay.append(
                    replace(refusal, reason=f"its surrogate has no place in the model's tree: {refusal.reason}")
                )
            else:
                return preferred
        plan = settle(replace(plan, replacements=tuple(kept), refusals=(*plan.refusals, *stay)), others)
        if not required and len(plan.replacements) < len(preferred.replacements):
            # No other choice trains.
            return preferred
    return plan
