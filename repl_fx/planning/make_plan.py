"""Plans of options: which blocks go, and what stands in for each.

every=2, blocks=…   choose_blocks, choose_surrogates      PlanByChoice
budget=…            the plan with the highest score       BudgetPlanner
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Unpack

from torch import fx

from repl_fx.arguments import require_kind, require_module
from repl_fx.errors import BadInput, NothingToReplace, PlanMismatch, close_matches, listed
from repl_fx.finding.blocks import Repeat
from repl_fx.plan import Plan
from repl_fx.planning.budgets import BudgetPlanner, budget_among, budget_planner
from repl_fx.planning.choose_blocks import choose_blocks
from repl_fx.planning.choose_surrogates import choose_surrogates
from repl_fx.planning.options import Options, policy_among, require_known
from repl_fx.planning.replacement_costs import Forms, ReplacementCosts
from repl_fx.rewriting.settling import completed
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.tracing.capture import example_inputs_of
from repl_fx.tracing.parts.capture_parts import CapturedParts
from repl_fx.tracing.parts.finders import require_repeats
from repl_fx.tracing.parts.part_repeats import ModelRepeats, find_in_parts


class PlanByChoice:
    """The plan of blocks that were chosen one by one, or by their places."""

    def __init__(self, found: ModelRepeats, options: Options) -> None:
        self.found, self.options = found, options

    def plan(self) -> Plan:
        """The plan, without its fingerprint and parts, and not tried yet."""
        options, policy = self.options, policy_among(self.options)
        # Globs and numbers mean the model, and surrogates the graph.
        choice = choose_blocks(
            self.found.repeats,
            every=options.get("every", 2),
            blocks=options.get("blocks"),
            ignore=options.get("ignore") or (),
            alone=policy.traits.source == "block",
        )
        replacements, refusals = choose_surrogates(self.found, choice.chosen, policy)
        return Plan(replacements, (*choice.refusals, *refusals), "", options.get("seed", 0))

    def learn(self, plan: Plan, settled: Plan) -> bool:
        """Nothing: a block that cannot go stays, and no other goes for it."""
        return False


Planner = PlanByChoice | BudgetPlanner


def planner_of(found: ModelRepeats, options: Options, forms: Forms) -> Planner:
    """The planner of some options.

    Args:
        found: the repeats of a model.
        forms: makes the model whose costs a budget limits.

    Raises:
        UnknownSurrogate, UnknownBlock, BadInput: see `make_plan`.
    """
    budget, ignore, seed = budget_among(options), options.get("ignore") or (), options.get("seed", 0)
    if ignore:
        _require_names(found, ignore)
    if budget is None:
        return PlanByChoice(found, options)
    return budget_planner(ReplacementCosts(found, forms, budget.limits, seed), policy_among(options), budget, ignore)


def _require_names(found: ModelRepeats, ignore: Sequence[str]) -> None:
    """Refuse a glob that names nothing: the block that it was meant for would go."""
    source = found.captured.source
    names = {name for name, _ in (*source.named_modules(), *source.named_parameters())}
    names |= {block.name for repeat in found.repeats for block in repeat.blocks}
    for glob in ignore:
        if not any(fnmatchcase(name, glob) for name in names):
            raise BadInput(f"no block, module or parameter matches --ignore {glob}{close_matches(glob, names)}")


def plan_by(planner: Planner, found: ModelRepeats) -> Plan:
    """The plan of a planner, with its fingerprint and parts; see `completed`."""
    plan = planner.plan()
    return completed(found, plan, plan.replacements, ())


def make_plan(gm: fx.GraphModule, repeats: Sequence[Repeat], **options: Unpack[Options]) -> Plan:
    """Decide which blocks go and what stands in for each.

    Args:
        gm: a captured graph.
        repeats: from `find_repeats` or `repeat_of`.
        every, surrogate, blocks, ignore, settings, seed, budget, scores: see `repl_fx.planning.options.Options`.

    Returns:
        The plan; it replaces nothing where every block was refused.

    Raises:
        UnknownSurrogate, UnknownBlock, BadInput: an argument that does not fit, or a budget that no plan is under.
    """
    require_known("make_plan", options)
    require_module("make_plan", gm, graph=True)
    require_kind(repeats, Sequence, "make_plan takes for repeats what repl_fx.find_repeats(gm) returned")
    inputs = ExampleInputs() if budget_among(options) is None else example_inputs_of(gm)
    found = find_in_parts(CapturedParts.of_graph(gm, inputs), lambda _: require_repeats(gm, repeats))
    return plan_by(planner_of(found, options, lambda _, rewritten: (rewritten.graphs[""],) * 2), found)


def require_replacements(found: ModelRepeats, plan: Plan) -> None:
    """Refuse a plan that replaces nothing, or a block that there is not.

    Raises:
        NothingToReplace: says what was found, and why each block stays.
        PlanMismatch: names the block.
    """
    if not plan.replacements:
        raise NothingToReplace(_summary(found), [f"{r.block}: {r.reason}" for r in plan.refusals])
    known = {block.name for repeat in found.repeats for block in repeat.blocks}
    missing = next((r.block for r in plan.replacements if r.block not in known), None)
    if missing is not None:
        raise PlanMismatch(f"the plan names block {missing}, which this model does not have; make a new plan")


def _summary(found: ModelRepeats) -> str:
    captured, repeats = found.captured, found.repeats
    every = listed((f"{len(repeat)} blocks in {repeat.name}" for repeat in repeats), 6)
    found_here = f"found {every}" if repeats else "no repeated blocks were found"
    parts = listed((part.path for part in captured.parts), 6)
    if captured.whole:
        return found_here
    why = "".join(f": {one}" for one in captured.eager[:1])
    return f"{found_here} in {parts}, which alone were captured{why}"
