"""The pipeline: capture, find repeats, plan, settle, apply."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Unpack

from torch import fx, nn

from repl_fx.arguments import require_kind, require_module
from repl_fx.display.progress import shown, stage, tell
from repl_fx.errors import BadInput
from repl_fx.plan import Plan, Refusal
from repl_fx.planning.budgets import budget_among
from repl_fx.planning.choose_surrogates import next_choices, without_policies
from repl_fx.planning.make_plan import plan_by, planner_of, require_replacements
from repl_fx.planning.options import Options, policy_among, require_known
from repl_fx.rewriting.result import TransformResult
from repl_fx.rewriting.settling import Form, Settling, forms_of
from repl_fx.running.alone import alone
from repl_fx.running.collection import collection_paused
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.sources.checkpoints.fitting import with_weights
from repl_fx.sources.checkpoints.weight_files import Weights
from repl_fx.tracing.model_checks import require_capturable, require_finite, require_original
from repl_fx.tracing.parts.capture_parts import (
    CapturedParts,
    capture_compared,
    capture_parts,
    captured_before,
    is_as_captured,
)
from repl_fx.tracing.parts.finders import Finder, by_options, finder_of, without_patterns
from repl_fx.tracing.parts.part_repeats import find_again, find_in_parts


@shown("transform")
@alone()
def transform(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    plan: Plan | None = None,
    weights: Weights | None = None,
    copy: bool = False,
    allow_nan: bool = False,
    check: bool = True,
    graph: bool = False,
    in_place: bool = False,
    checkpoint_blocks: bool = False,
    captured: CapturedParts | fx.GraphModule | None = None,
    finder: str | Finder | None = None,
    fixed: Sequence[str] = (),
    progress: Callable[[str], None] | None = None,
    **options: Unpack[Options],
) -> TransformResult:
    """Rewrite a model: some of its repeated blocks become light surrogates made from the blocks around them.

    A model that is no single graph is rewritten in the largest modules inside it that are (`capture_parts`).

    Args:
        model: any module; it is not changed, but shares its parameters with the result unless `copy`.
        args, kwargs: example inputs.
        plan: a plan made before, for this model; overrides all options.
        weights: a checkpoint of the model: a safetensors file, a file of `torch.save`, a directory of transformers or
            a state dict. A copy of the model gets it before anything else, strictly by name, and is what is rewritten:
            the model that was given keeps its weights, and the result shares none with it.
        copy: give the result parameters of its own.
        allow_nan: take a model with weights that are NaN or infinite, too.
        check: compare the graph with the model in evaluation mode, where they take no longer to run than to trace, and
            take one training step of the rewritten model on the example inputs. A surrogate that fails it is refused;
            `auto` goes on to its next choice for that block. With a given plan the failure is an error.
        graph: let `result.model` be the graph, also where the model has a form in place.
        in_place: replace only blocks whose surrogates have a place in the model's own tree, so that `result.model` is
            the model in place. Else one such block makes it the graph. Either way `auto` takes a surrogate that has a
            place before one that has none.
        checkpoint_blocks: let `result.model` compute the kept blocks of the repeats again in the backward pass of
            training, in place of keeping their inner values (`torch.utils.checkpoint`).
        captured: of this model, from `capture_parts` or `capture` with these inputs, so that it is not captured again,
            as after `score_blocks` or `find_repeats`; where the model was changed since, it is.
        finder: a function that gives the repeats of a graph, in place of `find_repeats`, or the name of one that an
            installed package offers.
        fixed: dimensions of the inputs that stay as in the example, see `capture`; what is `captured` has its own.
        progress: called with the name of each stage as it begins, in place of a bar (`REPL_FX_PROGRESS`).
        every, surrogate, blocks, ignore, settings, seed, budget, scores: see `repl_fx.planning.options.Options`.

    Returns:
        The rewritten module with plan and report.

    Raises:
        NothingToReplace: no block would go; says what was found and why each was refused.
        BadInput: weights are no numbers, `weights` cannot be read or are of another model, or the model has surrogates
            already; and see `capture_parts`.
        CaptureError: see `capture_parts`.
        PlanMismatch: `plan` was made for another model, or what it makes of this one does not train.
    """
    require_known("transform", options)
    require_module("transform", model)
    given = ExampleInputs.of(args, kwargs)
    if plan is not None:
        require_kind(plan, Plan, "transform takes for plan what repl_fx.make_plan returned, or Plan.from_json(text)")
    else:
        # A word that is misspelt should not cost a capture.
        policy_among(options)
        budget_among(options)
        if finder is not None:
            finder_of(finder)
    require_capturable(model, given)
    require_original(model)
    if weights is not None:
        model, copy = with_weights(model, weights), False
    if not allow_nan:
        require_finite(model)
    if captured is None:
        stage("capture")
        paths = None if plan is None else plan.parts
        capture = capture_compared if check else capture_parts
        known = capture(model, given.args, given.kwargs, copy=copy, paths=paths, fixed=fixed)
    else:
        before = None if copy else captured_before(captured, model, given)
        if before is None:
            raise BadInput("captured is of another model; give capture_parts of this one, without copy or weights")
        known = before
        if not is_as_captured(before):
            stage("capture what has changed")
            known = capture_parts(model, given.args, given.kwargs, fixed=before.fixed)
    form = Form(graph=graph, in_place=in_place, checkpoint_blocks=checkpoint_blocks)
    if plan is None:
        result = rewrite(known, options, form=form, check=check, finder=finder)
    else:
        result = rewrite_again(known, plan, stage, check=check)
    result = replace(result, graph=graph, checkpoint_blocks=checkpoint_blocks)
    for option, wanted in (("in_place", in_place), ("checkpoint_blocks", checkpoint_blocks)):
        if wanted and result.in_place.model is None:
            raise BadInput(f"{option} needs the model in place, which is refused: {result.in_place.reason}")
    return result


def rewrite(
    captured: CapturedParts,
    options: Options,
    *,
    form: Form | None = None,
    check: bool = True,
    finder: str | Finder | None = None,
) -> TransformResult:
    """Make a plan of options, and apply it.

    Args:
        form: that in which the model will be given, by which costs are counted and surrogates chosen.
        check, finder: see `transform`.

    Raises:
        NothingToReplace: see `transform`.
    """
    form = form or Form()
    with collection_paused():
        stage("find repeats")
        blocks = options.get("blocks")
        found = find_in_parts(captured, by_options(captured, blocks or (), finder))
        # A pattern names the blocks of a repeat, and none to go.
        options = {**options, "blocks": without_patterns(blocks)}
        stage("plan" if options.get("budget") is None else "measure what blocks cost")
        planner = planner_of(found, options, partial(forms_of, found, form=form))
        choices = partial(next_choices, found, policy_among(options))
        settling = Settling(found, options.get("seed", 0), check=check)
        while True:
            wanted = plan_by(planner, found)
            require_replacements(found, wanted)
            stage("replace")
            settled = settling.settle(wanted, choices, in_place=form.in_place)
            # What stays, or costs more than was thought, is made up for by others.
            if not planner.learn(wanted, settled):
                break
        require_replacements(found, settled)
        scores = {name: float(score) for name, score in (options.get("scores") or {}).items()}
        return replace(settling.result(settled), scores=scores)


def rewrite_again(
    captured: CapturedParts,
    plan: Plan,
    say: Callable[[str], None] = tell,
    *,
    check: bool = True,
    required: bool = True,
) -> TransformResult:
    """Apply a plan that was made before; `say` gets the name of each stage as it begins.

    A plan that replaces nothing gives the model as it was, where that is not refused: where `required` is false.

    Raises:
        NothingToReplace, PlanMismatch: see `transform`.
    """
    with collection_paused():
        say("find repeats")
        found = find_again(captured, plan)
        say("plan")
        if required:
            require_replacements(found, plan)
        plan = without_policies(found, plan)
        say("replace")
        settling = Settling(found, plan.seed, check=check)
        settling.require(plan)
        return settling.result(plan)


def unreplaced(result: TransformResult, why: str) -> TransformResult:
    """The same model with none of its blocks replaced, of the same capture; a plan says of each why it stays.

    It is saved and loaded like any other: where blocks were made whole again, an artifact holds the model so.
    """
    gone = tuple(Refusal(r.block, r.repeat, why) for r in result.plan.replacements)
    kept = replace(result.plan, replacements=(), refusals=(*result.plan.refusals, *gone), expected={}, timed_on="")
    return rewrite_again(result.captured_parts, kept, check=False, required=False)
