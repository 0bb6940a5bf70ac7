"""The plan with the highest score under a budget.

    budget   params=0.7             the costs that may be left, as shares of the original
    scores   {"blocks.3": 0.2, …}   what each block is worth; without, all are worth the same
    plan     of all plans under the budget, that whose blocks that go are worth least

A replaced block has a kept one on both sides; a surrogate that needs no neighbours (`identity`) may stand in for
blocks in a row. The ends of a repeat stay, but for a surrogate that is made from its block alone (`narrow`). Of plans
that are worth the same, the one that saves most goes first, then the one whose blocks are spread most evenly, then the
one with later blocks.

A surrogate whose size is open (`narrow`) takes the largest with which there is a plan at all. Where it may mix several
(`trained`), each block goes by one of them, and what is lost is its score times the share of the removed block's error
that this one leaves (`Traits.error_left`).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import cache
from itertools import chain
from numbers import Real
from typing import Any

from repl_fx.costs.counted import Costs
from repl_fx.errors import (
    BadInput,
    BrokenGraph,
    ForeignError,
    PlanMismatch,
    UnknownBlock,
    close_matches,
    listed,
    one_line,
)
from repl_fx.finding.blocks import Repeat
from repl_fx.plan import Plan, Refusal, Replacement
from repl_fx.planning.choose_blocks import candidates, with_neighbours
from repl_fx.planning.choose_surrogates import by_stretch, choose_surrogates, next_choices
from repl_fx.planning.knapsack import LARGEST, Item, Packing, PlaceRow, TooMany, front_of, whole
from repl_fx.planning.policies import Mix, Policy
from repl_fx.planning.replacement_costs import COUNTED, LATENCY, ReplacementCosts, folded_latency
from repl_fx.rewriting.result import TransformResult
from repl_fx.running.timing import Share
from repl_fx.running.untouched import device_of
from repl_fx.surrogates import make_surrogate
from repl_fx.tracing.parts.finders import without_patterns

COSTS = (*COUNTED, LATENCY)
# The errors of a surrogate that cannot be built.
_UNBUILT = (ForeignError, BrokenGraph, PlanMismatch)
# The digits of a share that a line names.
_DIGITS = 3


class NoPlan(BadInput):
    """No plan is under the budget, or there are too many to choose from.

    Attributes:
        excess: by how much the nearest is above the limit that it misses most; infinite where none is known.
    """

    def __init__(self, message: str, excess: float = math.inf) -> None:
        super().__init__(message)
        self.excess = excess


# A block, and the number of a surrogate in the mix that may stand in for it.
Way = tuple[str, int]


@dataclass(frozen=True)
class Budget:
    """The limits of some costs, and the worth of each block.

    Attributes:
        limits: shares of the original, by cost; above 0 and below 1.
        scores: by block; all blocks are worth the same where it is None.

    Raises:
        BadInput: no limit, one of an unknown cost or of another size, or a score that is no number.
    """

    limits: Mapping[str, float]
    scores: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        known = ", ".join(COSTS)
        if not isinstance(self.limits, Mapping) or not self.limits:
            raise BadInput(
                f"budget is {self.limits!r}; give shares of the original by cost ({known}), such as params=0.7"
            )
        for name, limit in self.limits.items():
            if name not in COSTS:
                raise BadInput(f"budget has no cost {name!r}{close_matches(name, COSTS)}; the costs are {known}")
            if not _is_number(limit) or not 0 < limit < 1:
                raise BadInput(
                    f"budget {name} is {limit!r}; give a share of the original above 0 and below 1, such as 0.7"
                )
        if self.scores is not None:
            if not isinstance(self.scores, Mapping):
                raise BadInput(f"scores are {self.scores!r}; give a number for each block, by the name of the block")
            for block, score in self.scores.items():
                if not _is_number(score) or not math.isfinite(score):
                    raise BadInput(f"the score of {block} is {score!r}; give a finite number")
            object.__setattr__(self, "scores", _plain(self.scores))
        # Those of numpy in single precision would take the shares that they are compared with to theirs.
        object.__setattr__(self, "limits", _plain(self.limits))


def budget_among(options: Mapping[str, Any]) -> Budget | None:
    """The budget among options of a plan; None where there is none.

    Raises:
        BadInput: it is no budget, or has others beside it that say which blocks go.
    """
    limits, scores = options.get("budget"), options.get("scores")
    if limits is None:
        if scores is not None:
            raise BadInput("scores say which blocks go under a budget; give a budget too, such as params=0.7")
        return None
    which = {"every": options.get("every"), "blocks": without_patterns(options.get("blocks"))}
    given = [name for name, value in which.items() if value is not None]
    if given:
        raise BadInput(f"a budget says which blocks go; leave out {' and '.join(given)}, or the budget")
    return Budget(limits, scores)


def reached(result: TransformResult, before: Costs, after: Costs) -> dict[str, float | Share]:
    """The share of each cost of a plan that is left of the original; latency is timed anew."""
    left: dict[str, float | Share] = {}
    for name in result.plan.expected:
        if name == LATENCY:
            graphs = {part.path: part.graph_module for part in result.all_parts}
            left[name] = folded_latency(result.captured_parts.parts, graphs)
        elif (whole_cost := COUNTED[name](before)) and (rest := COUNTED[name](after)) is not None:
            left[name] = rest / whole_cost
    return left


def budget_shares(
    limits: Mapping[str, float], plan: Plan, left: Mapping[str, float | Share]
) -> dict[str, dict[str, float | None]]:
    """The limit, the expected and the reached share of the original, by cost; empty without a budget.

    A share that was measured has its spread too: `value`, `lower`, `upper` and `pairs`. It is not called reached where
    the spread leaves open on which side of the limit it is.

    Args:
        left: see `reached`.
    """
    shares: dict[str, dict[str, float | None]] = {}
    for name, expected in plan.expected.items():
        limit, share = limits.get(name), left.get(name)
        if isinstance(share, Share):
            settled = not share.wide if limit is None else share.decides(limit)
            known = {"reached": share.value if settled else None, **asdict(share)}
        else:
            known = {"reached": share}
        shares[name] = {"limit": limit, "expected": expected, **known}
    return shares


def shares_of(
    result: TransformResult, before: Costs, after: Costs, limits: Mapping[str, float]
) -> dict[str, dict[str, float | None]]:
    """The `budget_shares` of a result, from the costs that it has of itself; latency is timed."""
    return budget_shares(limits, result.plan, reached(result, before, after))


def budget_lines(shares: Mapping[str, Mapping[str, float | None]], timed_on: str) -> list[str]:
    """Lines on what `budget_shares` found: how it was measured, and which budgets are not reached.

    Args:
        timed_on: the device on which latency was measured.
    """
    lines = []
    for name, facts in shares.items():
        limit, share = facts["limit"], facts["reached"]
        if facts.get("pairs") is not None:
            middle, lower, upper, pairs = (facts[part] for part in ("value", "lower", "upper", "pairs"))
            spread = f"{lower:.4f} to {upper:.4f} in {pairs:.0f} pairs of turns on {timed_on}"
            line = f"{name} is {middle:.4f} of the original, {spread}"
            if share is None:
                whether = "it" if limit is None else f"the budget of {limit:g} is reached"
                lines.append(f"warning: {line}, which does not tell whether {whether}; measure on a quieter machine")
                continue
            lines.append(line)
        if limit is not None and share is not None and share > limit:
            lines.append(f"warning: {name} is {share:.4f} of the original, above the budget of {limit:g}")
    return lines


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _plain(numbers: Mapping[str, float]) -> dict[str, float]:
    return {name: float(number) for name, number in numbers.items()}


def budget_planner(costs: ReplacementCosts, policy: Policy, budget: Budget, ignore: Sequence[str]) -> BudgetPlanner:
    """The planner for the first form of a policy that has a plan under the budget, or else for the nearest.

    Each form has what the one before could not do, so that no more of them are tried than halving takes.

    Args:
        costs, budget, ignore: see `BudgetPlanner`.
        policy: what stands in for blocks.
    """
    forms = policy.forms()
    excess: dict[int, float] = {}

    @cache
    def planner(number: int) -> BudgetPlanner:
        return BudgetPlanner(costs, forms[number], budget, ignore)

    def meets(number: int) -> bool:
        try:
            return bool(planner(number).plan().replacements)
        except NoPlan as problem:
            excess[number] = problem.excess
            return False

    first = bisect_left(range(len(forms)), True, key=meets)
    if first == len(forms):
        # The nearest says why, unless one has plans that nobody looked at; the last one where no block may go.
        unknown = [number for number, by in excess.items() if math.isinf(by)]
        first = unknown[-1] if unknown else min(excess, key=excess.__getitem__, default=len(forms) - 1)
    return planner(first)


class BudgetPlanner:
    """Makes plans under a budget, and better ones when a block turns out not to go as was thought.

    Args:
        costs: those of replacements in the model, which forms of a policy share.
        mix: what stands in for blocks, each block by one of them.
        budget: what may be left.
        ignore: see `candidates`.

    Raises:
        UnknownBlock: a score of a block that the model does not have.
        BadInput: a block without a score, or a cost that is unknown of this model.
    """

    def __init__(self, costs: ReplacementCosts, mix: Mix, budget: Budget, ignore: Sequence[str]) -> None:
        self.costs, self.mix, self.budget = costs, mix, budget
        self.found, self.seed = costs.found, costs.seed
        self.repeats = costs.found.repeats
        may_go = candidates(
            self.repeats,
            ignore,
            changes_sizes=any(surrogate.traits.changes_sizes for surrogate in mix),
            alone=any(surrogate.traits.source == "block" for surrogate in mix),
        )
        self.places = {repeat.blocks[i].name: (repeat, i) for repeat, i in may_go.places}
        self.replacements: dict[Way, Replacement] = {}
        self.refusals = list(may_go.refusals)
        self.scores = self._scores()
        # Each on its own: together they may be stretches.
        for place in self.places.values():
            chosen = with_neighbours([place], one_sided=True).chosen
            each = [choose_surrogates(self.found, chosen, policy) for policy in mix]
            ways = {(r.block, number): r for number, (some, _) in enumerate(each) for r in some}
            self.replacements |= ways
            if not ways:
                self.refusals += each[-1][1]
        # Counted once it is known that scores fit.
        self._before = costs.before
        self._changed: set[Way] = set()
        # What is left of the costs together, of those that were counted so for the ways that there are now.
        self._measured: dict[tuple[tuple[int, int, int], ...], Mapping[str, float]] = {}
        # The surrogate of each block in the last plan.
        self._numbers: dict[str, int] = {}

    def plan(self) -> Plan:
        """The best plan as far as is known: without its fingerprint and parts, and not tried yet.

        It replaces nothing where no block may go.

        Raises:
            NoPlan: no plan is under the budget; names the nearest.
        """
        saved = {way: self._saved_by(way) for way in tuple(self.replacements)}
        self._measured.clear()
        if not self.replacements:
            return Plan((), tuple(self.refusals), "", self.seed)
        names = tuple(self.budget.limits)
        every_way = [self._ways(repeat) for repeat in self.repeats]
        front = self._front(every_way, saved)
        slack = dict.fromkeys(names, 0.0)
        while True:
            best = self._best(front, slack)
            going = [every_way[row][i][k] for row, i, k in best.gone]
            self._numbers = dict(going)
            replacements = self._together(going)
            try:
                expected = self.costs.left(replacements)
            except _UNBUILT:
                # One of a kind that can be built need not be.
                choices = dict(self.replacements)
                for way in going:
                    self._saved_by(way, build=True)
                if choices == self.replacements:
                    raise
                return self.plan()
            self._measured[best.gone] = expected
            over = {name: expected[name] - limit for name, limit in self.budget.limits.items()}
            if max(over.values()) <= 0:
                timed = str(device_of(self.found.captured.module)) if LATENCY in names else ""
                done = tuple(replacements), tuple(self.refusals), "", self.seed
                return Plan(*done, expected=expected, timed_on=timed)
            # What surrogates of others save may be less together than one by one.
            less = {name: expected[name] - float(share) for name, _, share in self._shares(best)}
            slack = {name: max(slack[name], less[name]) if over[name] > 0 else slack[name] for name in names}

    def learn(self, plan: Plan, settled: Plan) -> bool:
        """Take over what became of a plan when it was tried; whether it is no longer the plan that was made.

        A block whose surrogate is another than before is planned with that; one that changes a second time stays.
        """
        after = {replacement.block: replacement for replacement in settled.replacements}
        reasons = {refusal.block: refusal for refusal in settled.refusals}
        changed = False
        for before in plan.replacements:
            block, now = before.block, after.get(before.block)
            way = block, self._numbers[block]
            if now is not None and (now.surrogate, now.settings) == (before.surrogate, before.settings):
                continue
            changed = True
            if now is not None and way not in self._changed:
                self._changed.add(way)
                self.replacements[way] = now
                continue
            reason = reasons.get(block) or Refusal(block, before.repeat, f"{before.surrogate} does not train here")
            self._refuse(way, reason)
        return changed

    def _scores(self) -> dict[str, float]:
        given = self.budget.scores
        if given is None:
            return dict.fromkeys(self.places, 1.0)
        every = [block.name for repeat in self.repeats for block in repeat.blocks]
        for name in given:
            if name not in every:
                raise UnknownBlock(name, every)
        missing = []
        for block in [block for block in self.places if block not in given]:
            repeat, i = self.places[block]
            why = "scores have no number for it"
            if not repeat.blocks[i].keeps_size:
                # Most kinds of scores compare what leaves a block with what enters it.
                why = f"it changes the size of its value, and {why}"
            elif i not in (0, len(repeat) - 1):
                missing.append(block)
                continue
            # Few surrogates can stand in for it, so that scores need not have it.
            del self.places[block]
            self.refusals.append(Refusal(block, repeat.name, why))
        if missing:
            raise BadInput(f"scores have no number for {listed(missing, 1)}; give one for each block that may go")
        return {block: given[block] for block in self.places}

    def _spans(self, number: int) -> bool:
        """Tell whether one stand-in of the policy of this number does the work of several blocks in a row."""
        return self.mix[number].traits.source == "stream"

    def _worth(self, way: Way) -> float:
        """The part of a block's score that is lost, up to a factor that all have."""
        block, number = way
        return self.scores[block] * (self.mix[number].traits.error_left if len(self.mix) > 1 else 1)

    def _item(self, way: Way, behind: Sequence[Way], worth: int, saved: Mapping[str, int]) -> Item:
        """The way of a block, given those of the next block of its repeat."""
        inner = self._saved_inside(way, behind)
        in_order = None if inner is None else self._in_order(inner)
        return Item(worth, self._in_order(saved), in_order, self._spans(way[1]))

    def _in_order(self, saved: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(saved[name] for name in self.budget.limits)

    def _ways(self, repeat: Repeat) -> list[list[Way]]:
        """The ways in which each block of a repeat may go."""
        blocks = {i: block for block, (its, i) in self.places.items() if its is repeat}
        ways = ([(blocks.get(i, ""), k) for k in range(len(self.mix))] for i in range(len(repeat)))
        return [[way for way in of_block if way in self.replacements] for of_block in ways]

    def _front(self, every_way: Sequence[list[list[Way]]], saved: Mapping[Way, Mapping[str, int]]) -> list[Packing]:
        """The choices of which none is better than another in all, given the ways of each repeat and what they save."""
        worth = dict(zip(self.replacements, whole([self._worth(way) for way in self.replacements]), strict=True))
        between = any(surrogate.traits.source == "neighbours" for surrogate in self.mix)
        rows = []
        for ways in every_way:
            pairs = zip(ways, [*ways[1:], []], strict=True)
            items = (tuple(self._item(way, behind, worth[way], saved[way]) for way in own) for own, behind in pairs)
            rows.append(PlaceRow(tuple(items), between))
        try:
            return front_of(rows, len(self.budget.limits))
        except TooMany:
            raise NoPlan(
                f"there are more than {LARGEST:,} plans to choose from under a budget of "
                f"{', '.join(self.budget.limits)}, none better than another in all; give fewer costs, or scores with "
                "fewer digits"
            ) from None

    def _together(self, ways: Sequence[Way]) -> list[Replacement]:
        """The replacements of blocks that go together: with the neighbours that stay, and one for a stretch."""
        alone = {way[0] for way in ways if not self.replacements[way].before}
        chosen = with_neighbours([self.places[block] for block, _ in ways], alone).chosen
        numbers = dict(ways)
        replacements = []
        for gone in chosen:
            own = self.replacements[gone.block.name, numbers[gone.block.name]]
            before, after = gone.around
            replacements.append(replace(own, before=before, after=after))
        in_stretches = {block for block, number in ways if self._spans(number)}
        return by_stretch(self.found, chosen, replacements, in_stretches) if in_stretches else replacements

    def _saved_inside(self, way: Way, behind: Sequence[Way]) -> dict[str, int] | None:
        """The savings of a block where the next one goes too, and stands for both; None where they are no others.

        Args:
            behind: the ways of the next block.
        """
        number = way[1]
        same = next((other for other in behind if other[1] == number), None)
        if same is None or not self._spans(number):
            return None
        alone, both = self.replacements[way], self._together([way, same])
        inside, _ = both
        if inside.surrogate == alone.surrogate:
            return None
        if not inside.opens_stretch:
            return self.costs.saved(replace(inside, before=alone.before, after=alone.after))
        # It cannot go alone; and the map behind it is another one then.
        saved, of_last = self.costs.saved(*both), self.costs.saved(self.replacements[same])
        return {name: saved[name] - of_last[name] for name in saved}

    def _saved_by(self, way: Way, *, build: bool = False) -> dict[str, int]:
        """The savings of a block by the first of its surrogates that can be built; where none can, it stays."""
        first, policy = self.replacements[way], self.mix[way[1]]
        reason = ""
        for choice in chain([first], next_choices(self.found, policy, first)):
            try:
                if build:
                    self.costs.rewritten((choice,))
                saved = self.costs.saved(choice)
            except _UNBUILT as problem:
                builds_by_ours = make_surrogate(choice.surrogate, choice.settings).builds_by_ours
                if builds_by_ours and not isinstance(problem, ForeignError):
                    raise
                reason = reason or f"{choice.surrogate} cannot be built here: {one_line(problem)}"
                continue
            self.replacements[way] = choice
            return saved
        self._refuse(way, Refusal(way[0], first.repeat, reason))
        return {}

    def _refuse(self, way: Way, refusal: Refusal) -> None:
        """Take a way out; a block without any is refused."""
        del self.replacements[way]
        if not any(block == way[0] for block, _ in self.replacements):
            self.refusals.append(refusal)

    def _best(self, front: Sequence[Packing], slack: Mapping[str, float]) -> Packing:
        def excess(choice: Packing) -> float:
            """By how much a choice is above the limit that it misses most, as a share of the original."""
            known = self._measured.get(choice.gone)
            each = self._shares(choice)
            return max((known[name] if known else float(share) + slack[name]) - limit for name, limit, share in each)

        under = [choice for choice in front if excess(choice) <= 0]
        if under:
            return min(under, key=lambda choice: (choice.loss, choice.order))
        nearest = min(front, key=lambda choice: (excess(choice), choice.loss, choice.order))
        raise NoPlan(self._nobody_can(nearest), excess(nearest))

    def _shares(self, choice: Packing) -> list[tuple[str, float, Fraction]]:
        """Each cost with its limit, and what a choice leaves of it."""
        before = self._before
        limits = self.budget.limits.items()
        each = zip(limits, choice.saved, strict=True)
        return [(name, limit, Fraction(before[name] - saved, before[name])) for (name, limit), saved in each]

    def _nobody_can(self, nearest: Packing) -> str:
        """The line that says that no plan is under the budget, and which is nearest."""
        alone = {name: share for name, _, share in self._shares(nearest)}
        left: Mapping[str, Any] = self._measured.get(nearest.gone) or alone
        shown = {name: _rounded_up(Fraction(left[name])) for name in self.budget.limits}
        asked = " and ".join(f"{name} at or below {limit:g}" for name, limit in self.budget.limits.items())
        gone, every = len(nearest.gone), len({block for block, _ in self.replacements})
        least = shown[next(iter(shown))] if len(shown) == 1 else ", ".join(f"{n} {share}" for n, share in shown.items())
        which = f"{'the least' if len(shown) == 1 else 'the nearest'} is {least}"
        line = f"no plan has {asked} of the original: {which}, with {gone} blocks replaced of {every} that may go"
        # A plan that saves nothing is no plan.
        better = {name: max(float(shown[name]), limit) for name, limit in self.budget.limits.items()}
        if nearest.gone and all(share < 1 for share in better.values()):
            flags = ",".join(f"{name}={share:g}" for name, share in better.items())
            return f"{line}; give --budget {flags}, or another surrogate"
        return f"{line}; give another surrogate"


def _rounded_up(share: Fraction) -> str:
    """A share that is not below what it stands for."""
    scale = 10**_DIGITS
    return f"{math.ceil(share * scale) / scale:g}"
