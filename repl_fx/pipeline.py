"""The pipeline: capture, find repeats, plan, replace."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypedDict, Unpack, overload

from torch import fx, nn

from repl_fx.analysis.blocks import Repeat
from repl_fx.analysis.repeats import Repeats, repeats_table
from repl_fx.arguments import require_kind, require_module
from repl_fx.checkpoints.files import Weights
from repl_fx.checkpoints.fitting import with_weights
from repl_fx.costs.counted import Costs, measure_form
from repl_fx.display.html import html_of
from repl_fx.display.numbers import change, count
from repl_fx.display.progress import shown, tell
from repl_fx.errors import BadInput, NothingToReplace, PlanMismatch, close_matches
from repl_fx.graph.captured import own_tensors_
from repl_fx.in_place.assembling import InPlace, put_in_place
from repl_fx.in_place.choosing import Choices, settle_places
from repl_fx.in_place.pretrained import has_from_pretrained
from repl_fx.in_place.surrogate_block import surrogate_graphs
from repl_fx.passes.choose_blocks import choose_blocks
from repl_fx.passes.driver import collection_paused, run_passes
from repl_fx.passes.fold_surrogates import fold_surrogates
from repl_fx.plan import Plan, Refusal, Replacement
from repl_fx.planning.blocks_table import blocks_table
from repl_fx.planning.budgets import BudgetPlanner, budget_among, budget_planner
from repl_fx.planning.choose_surrogates import choose_surrogates, next_choices
from repl_fx.planning.finders import Finder, by_options, by_plan, finder_of, require_repeats, without_patterns
from repl_fx.planning.part_repeats import (
    PartRepeats,
    find_in_parts,
    lines_made,
    own_repeats_of,
    repeats_of,
    structure_of,
)
from repl_fx.planning.replacement_costs import Graphs
from repl_fx.planning.report import BlockReport, reports_of
from repl_fx.planning.trials import Rewritten, Trials
from repl_fx.running.alone import alone
from repl_fx.running.example_inputs import ExampleInputs, HasInputs
from repl_fx.running.holders import ORIGIN
from repl_fx.surrogates import Surrogate, make_surrogate
from repl_fx.tracing.capture import example_inputs_of, widen_batch
from repl_fx.tracing.fingerprint import code_of, fingerprint
from repl_fx.tracing.model_checks import require_capturable, require_finite
from repl_fx.tracing.parts.capture import CapturedParts, Part, assemble, capture_parts, graphs_in
from repl_fx.tracing.parts.inputs import Inputs
from repl_fx.tracing.parts.origin import Captured, Origin
from repl_fx.tracing.parts.stored import as_data
from repl_fx.tracing.size_questions import refused_sizes


@dataclass(frozen=True)
class TransformResult(HasInputs):
    """The result of a transform.

    Attributes:
        module: the rewritten model: a graph module where the whole model is one graph, else a module of the source's
            class with rewritten graphs in it.
        captured_parts: the captured graphs, which share tensors with `module`.
        parts: the rewritten graphs, those alone in which a block was replaced.
        repeats: of all parts; names begin with the path of the part they were found in.
        plan: the plan that was applied.
        report: the outcome for each block of each repeat, in program order.
        inputs: the example inputs of the capture, which have a batch of 2 or more where they are tensors.
        structure: the text of what was captured (`repl_fx.tracing.fingerprint`), of which the plan holds the hash.
        made: the text of the code of `module`, as it was then.
        code: hash of the code of the user's own classes in the model, as it was then.
        found: the repeats of each part, in the graphs before.
        one_by_one: the rewritten graphs with each synthesis on its own, by the path of their part, without code: the
            model in place computes what they do, to the bit, and `module` adds up gradients in another order.
        placed: the surrogates in the model's own tree, where the plan was settled by them; without checkpoints.
        checkpoint_blocks: whether `model` computes its kept blocks again in the backward pass.
        scores: what each block was worth, where the plan was made from that.
        compared: the same model in place was compared with `module` before, when it was saved.
    """

    module: nn.Module
    captured_parts: CapturedParts
    parts: tuple[Part, ...]
    repeats: Repeats
    plan: Plan
    report: tuple[BlockReport, ...]
    inputs: ExampleInputs
    structure: tuple[str, ...]
    made: tuple[str, ...]
    code: str
    found: tuple[PartRepeats, ...] = field(repr=False)
    one_by_one: Mapping[str, fx.GraphModule] = field(repr=False)
    placed: InPlace | None = field(default=None, repr=False)
    checkpoint_blocks: bool = False
    scores: Mapping[str, float] = field(default_factory=dict, repr=False)
    compared: bool = False

    @property
    def all_parts(self) -> tuple[Part, ...]:
        """All that was captured, with the rewritten graphs in place of those before."""
        after = {part.path: part for part in self.parts}
        return tuple(after.get(part.path, part) for part in self.captured_parts.parts)

    def costs(self) -> tuple[Costs, Costs]:
        """The costs of the source and of `model`."""
        captured = self.captured_parts
        before = measure_form(captured.source, captured.module, captured.parts)
        return before, measure_form(self.model, self.module, captured.parts)

    @property
    def graph_module(self) -> fx.GraphModule:
        """The rewritten model, where the whole model is one graph."""
        return self._whole(self.parts, "module")

    @property
    def captured(self) -> fx.GraphModule:
        """The graph before, where the whole model is one graph."""
        return self._whole(self.captured_parts.parts, "captured_parts")

    @cached_property
    def in_place(self) -> InPlace:
        """The source's own module tree with surrogates in place of blocks, or why that cannot be."""
        made = self.placed
        if made is None or (made.model is not None and self.checkpoint_blocks):
            # What was placed before, without checkpoints, has been compared.
            module = self.module if made is None and not self.compared else None
            known = self.captured_parts, self.found, self.plan, self.one_by_one, module, self.inputs
            made = put_in_place(*known, checkpoint_blocks=self.checkpoint_blocks)
        # An attribute like any other, so that copies and pickles have it too; a graph that was loaded has its own.
        model = made.model or self.module
        if made.model is not None or ORIGIN not in vars(model):
            vars(model)[ORIGIN] = self.origin_of(model)
        return made

    def origin_of(self, module: nn.Module) -> Origin:
        """All that is known of the transform, for `module` or for the model in place."""
        captured, in_place = self.captured_parts, module is not self.module
        return Origin(
            code=self.code,
            parts=tuple(_captured(part) for part in captured.parts if part.path in self.plan.parts),
            eager=captured.eager,
            inputs=Inputs.of(self.inputs),
            fixed=captured.fixed,
            in_place=in_place,
            checkpoint_blocks=self.checkpoint_blocks,
            plan=self.plan,
            structure=self.structure,
            made=lines_made(module) if in_place else self.made,
            scores=self.scores,
            pretrained=has_from_pretrained(captured.source),
            captured=self.stored,
        )

    @cached_property
    def stored(self) -> str:
        """The captured parts as text."""
        return self.captured_parts.stored or as_data(self.captured_parts, self.plan.parts)

    @property
    def model(self) -> nn.Module:
        """The model to train: the one in place, `module` where a replaced block is no module of the source.

        The model in place is of the source's class, with its methods and attributes, and shares its parameters with the
        source and with `module`.
        """
        return self.in_place.model or self.module

    def __copy__(self) -> TransformResult:
        return replace(self)

    def __reduce__(self) -> tuple[Any, ...]:
        # Its blocks are of nodes, which belong to the graphs of this process.
        raise pickle.PicklingError(
            "a TransformResult cannot be pickled or copied; pickle result.module, and keep all of it with repl_fx.save"
        )

    def _repr_html_(self) -> str:
        source = self.captured_parts.source
        before, after = _size(source), _size(self.module)
        head = (
            f"{type(source).__name__}: {len(self.plan.replacements)} of {len(self.report)} blocks replaced, "
            f"{count(before)} parameters before and {count(after)} after ({change(before, after)})"
        )
        return html_of(head, *self.captured_parts.sizes, repeats_table(self.repeats), blocks_table(self.report))

    def _whole(self, parts: tuple[Part, ...], instead: str) -> fx.GraphModule:
        if not self.captured_parts.whole:
            raise AttributeError(
                f"{type(self.module).__name__} was captured in parts and is no single graph; use result.{instead}"
            )
        return parts[0].graph_module


class Options(TypedDict, total=False):
    """The options of `make_plan` and `transform`.

    Attributes:
        every: replace the k-th, 2k-th, … block of each repeat, every second by default; the ends of a repeat stay, but
            for surrogates that are made from their block alone.
        surrogate: key of the surrogate; by default `auto`.
        blocks: names or numbers (from 1) of the blocks to replace; overrides `every`. A pattern of module paths among
            them, such as `layers.*`, says for `transform` which modules are the blocks of a repeat, in place of what
            `find_repeats` finds; see `repeat_of`.
        ignore: globs over block and parameter names; what matches stays.
        settings: settings of the surrogate.
        seed: of the surrogates' initial values; 0 by default.
        budget: what may be left of the costs `params`, `flops`, `memory` (kept for the backward pass) and `latency`, as
            shares of the original: the blocks are those of the plan with the highest score under it. In place of
            `every` and `blocks`.
        scores: with a budget, what each block is worth, by its name; by default all are worth the same.
    """

    every: int
    surrogate: str
    blocks: Sequence[str | int] | None
    ignore: Sequence[str]
    settings: Mapping[str, Any] | None
    seed: int
    budget: Mapping[str, float] | None
    scores: Mapping[str, float] | None


def make_plan(gm: fx.GraphModule, repeats: Sequence[Repeat], **options: Unpack[Options]) -> Plan:
    """Decide which blocks go and what stands in for each.

    Args:
        gm: a captured graph.
        repeats: from `find_repeats` or `repeat_of`.
        every, surrogate, blocks, ignore, settings, seed, budget, scores: see `repl_fx.pipeline.Options`.

    Returns:
        The plan; it replaces nothing where every block was refused.

    Raises:
        UnknownSurrogate, UnknownBlock, BadInput: an argument that does not fit, or a budget that no plan is under.
    """
    _require_known("make_plan", options)
    require_module("make_plan", gm, graph=True)
    require_kind(repeats, Sequence, "make_plan takes for repeats what repl_fx.find_repeats(gm) returned")
    found = (PartRepeats.of("", gm, require_repeats(gm, repeats)),)
    if budget_among(options) is None:
        return _plan(found, options)
    graphs = Graphs(gm, gm, (Part("", gm, example_inputs_of(gm)),), lambda _, made: (made.graphs[""], made.graphs[""]))
    plan = _planner(graphs, found, options).plan()
    return _settled(found, plan, plan.replacements, (), None)


def _require_known(function: str, options: Options) -> None:
    unknown = next((name for name in options if name not in Options.__annotations__), None)
    if unknown is not None:
        close = close_matches(unknown, Options.__annotations__)
        raise TypeError(f"{function}() got an unexpected keyword argument {unknown!r}{close}")


def _planner(graphs: Graphs, found: Sequence[PartRepeats], options: Options) -> BudgetPlanner:
    budget = budget_among(options)
    assert budget is not None  # the caller has asked
    return budget_planner(
        graphs, found, _surrogate_of(options), budget, options.get("ignore", ()), options.get("seed", 0)
    )


def _surrogate_of(options: Options) -> Surrogate[Any, Any]:
    return make_surrogate(options.get("surrogate", "auto"), options.get("settings"))


def _plan(found: Sequence[PartRepeats], options: Options, model: nn.Module | None = None) -> Plan:
    stand_in = _surrogate_of(options)
    # Globs and numbers mean the model, and surrogates the graph.
    choice = choose_blocks(
        repeats_of(found),
        every=options.get("every", 2),
        blocks=options.get("blocks"),
        ignore=options.get("ignore", ()),
        alone=stand_in.stands_alone,
    )
    replacements, refusals = choose_surrogates(found, choice.chosen, stand_in)
    plan = Plan((), choice.refusals, "", options.get("seed", 0))
    return _settled(found, plan, replacements, refusals, model)


def _made(planner: BudgetPlanner, found: Sequence[PartRepeats], model: nn.Module) -> Plan:
    plan = planner.plan()
    return _settled(found, plan, plan.replacements, (), model)


def _settled(
    found: Sequence[PartRepeats],
    plan: Plan,
    replacements: tuple[Replacement, ...],
    refusals: tuple[Refusal, ...],
    model: nn.Module | None,
) -> Plan:
    """A plan with these replacements, and with more refusals."""
    used = _used(found, replacements)
    paths = tuple(part.path for part in used)
    known = dict.fromkeys((*plan.refusals, *refusals))
    return replace(
        plan,
        replacements=replacements,
        refusals=tuple(known),
        fingerprint=fingerprint(structure_of(used or found, model)),
        parts=paths or ("",),
        repeats=own_repeats_of(found),
    )


def _used(found: Sequence[PartRepeats], replacements: Sequence[Replacement]) -> list[PartRepeats]:
    """The parts that hold what is replaced; those that stay as they are need not be captured to apply a plan again."""
    return [part for part in found if any(replacement.block in part.blocks for replacement in replacements)]


def _planned(found: Sequence[PartRepeats], plan: Plan) -> Sequence[PartRepeats]:
    """The parts that a plan is for; all of them where it names others."""
    return [part for part in found if part.path in plan.parts] or found


@shown("transform")
@alone
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
        check: take one training step of the rewritten model on the example inputs. A surrogate that fails it is
            refused; `auto` goes on to its next choice for that block. With a given plan the failure is an error.
        in_place: replace only blocks whose surrogates have a place in the model's own tree, so that `result.model` is
            the model in place. Else one such block makes it the graph. Either way `auto` takes a surrogate that has a
            place before one that has none.
        checkpoint_blocks: let `result.model` compute the kept blocks of the repeats again in the backward pass of
            training, in place of keeping their inner values (`torch.utils.checkpoint`).
        captured: of this model, from `capture_parts` or `capture` with these inputs, so that it is not captured again,
            as after `score_blocks` or `find_repeats`.
        finder: a function that gives the repeats of a graph, in place of `find_repeats`, or the name of one that an
            installed package offers.
        fixed: dimensions of the inputs that stay as in the example, see `capture`; what is `captured` has its own.
        progress: called with the name of each stage as it begins, in place of a bar (`REPL_FX_PROGRESS`).
        every, surrogate, blocks, ignore, settings, seed, budget, scores: see `repl_fx.pipeline.Options`.

    Returns:
        The rewritten module with plan and report.

    Raises:
        NothingToReplace: no block would go; says what was found and why each was refused.
        BadInput: weights are no numbers, or `weights` cannot be read or are of another model; and see `capture_parts`.
        CaptureError: see `capture_parts`.
        PlanMismatch: `plan` was made for another model, or what it makes of this one does not train.
    """
    _require_known("transform", options)
    require_module("transform", model)
    given = ExampleInputs.of(args, kwargs)
    stage = progress or tell
    if plan is not None:
        require_kind(plan, Plan, "transform takes for plan what repl_fx.make_plan returned, or Plan.from_json(text)")
    else:
        # A word that is misspelt should not cost a capture.
        _surrogate_of(options)
        budget_among(options)
        if finder is not None:
            finder_of(finder)
    require_capturable(model, given)
    if weights is not None:
        model, copy = with_weights(model, weights), False
    if not allow_nan:
        require_finite(model)
    inputs = widen_batch(model, given)
    if captured is None:
        stage("capture")
        paths = None if plan is None else plan.parts
        known: CapturedParts | None = capture_parts(
            model, inputs.args, inputs.kwargs, copy=copy, paths=paths, fixed=fixed
        )
    else:
        known = None if copy else _captured_before(captured, model, inputs)
    if known is None:
        raise BadInput("captured is of another model; give capture_parts of this one, without copy or weights")
    form: Any = {"in_place": in_place, "checkpoint_blocks": checkpoint_blocks}
    result = rewrite(known, plan or options, inputs, stage, check=check, finder=finder, **form)
    for option, given_ in (("in_place", in_place), ("checkpoint_blocks", checkpoint_blocks)):
        if given_ and result.in_place.model is None:
            raise BadInput(f"{option} is for the model in place, and that there is not: {result.in_place.reason}")
    return result


def _captured_before(
    captured: CapturedParts | fx.GraphModule, model: nn.Module, inputs: ExampleInputs
) -> CapturedParts | None:
    """The capture of a model that was made before; None where it is of another, or of a copy."""
    if isinstance(captured, CapturedParts):
        return captured if captured.source is model else None
    require_module("transform", captured, graph=True, name="captured")
    info, own = captured.meta.get("capture"), dict(model.named_parameters(remove_duplicate=False))
    shares = all(own.get(name) is parameter for name, parameter in captured.named_parameters())
    known = info is not None and info.model == type(model).__name__ and shares
    return CapturedParts(model, captured, (Part("", captured, inputs),)) if known else None


def rewrite(
    captured: CapturedParts,
    plan: Plan | Options,
    inputs: ExampleInputs,
    stage: Callable[[str], None] = tell,
    *,
    check: bool = True,
    in_place: bool = False,
    checkpoint_blocks: bool = False,
    required: bool = True,
    finder: str | Finder | None = None,
) -> TransformResult:
    """Apply a plan, or make one of options and apply it; `stage` gets the name of each stage as it begins.

    A plan that replaces nothing gives the model as it was, where that is not refused: where `required` is false.

    Raises:
        NothingToReplace, PlanMismatch: see `transform`.
    """
    with collection_paused():
        stage("find repeats")
        options: Options | None = None
        if isinstance(plan, Plan):
            found = _found_again(captured, plan)
        else:
            blocks = plan.get("blocks")
            found = find_in_parts(captured, by_options(captured, blocks or (), finder))
            plan = options = {**plan, "blocks": without_patterns(blocks)}
        repeats = repeats_of(found)
        stage("plan")
        planner = None
        if options is not None and budget_among(options) is not None:
            stage("measure what blocks cost")
            forms = partial(_forms, captured, found, inputs, checkpoint_blocks)
            planner = _planner(Graphs(captured.source, captured.module, captured.parts, forms), found, options)
        if planner is not None:
            plan = _made(planner, found, captured.source)
        elif not isinstance(plan, Plan):
            plan = _plan(found, plan, captured.source)
        else:
            _require_made_for(plan, found, captured.source)
        if required:
            _require_replacements(captured, repeats, plan)
        stage("replace")
        trials = Trials(captured, found, plan.seed, inputs)
        placed: list[tuple[Rewritten, InPlace]] = []
        if check and options is None:
            trials.require(plan)
        elif options is not None:

            def settle(plan: Plan, choices: Choices) -> Plan:
                kept = trials.settle(plan, choices) if check and plan.replacements else (plan.replacements, ())
                return _settled(found, plan, *kept, captured.source)

            choices = partial(next_choices, found, _surrogate_of(options))
            put = partial(_put, captured, found, trials, placed)
            tried = settle_places(settle(plan, choices), choices, settle, put, required=in_place)
            while planner is not None and planner.learn(plan, tried):
                # What stays, or costs more than was thought, is made up for by others.
                plan = _made(planner, found, captured.source)
                tried = settle_places(settle(plan, choices), choices, settle, put, required=in_place)
            plan = tried
            _require_replacements(captured, repeats, plan)
        rewritten = trials.rewritten(plan)
        graphs = rewritten.graphs
        paths = graphs if plan.replacements else plan.parts
        used = [part for part in captured.parts if part.path in paths]
        parts = tuple(replace(part, graph_module=graphs.get(part.path, part.graph_module)) for part in used)
        report = [row for part in found for row in reports_of(part, graphs.get(part.path, part.graph_module), plan)]
    module = captured.with_graphs(graphs) if graphs else captured.module
    return TransformResult(
        module,
        captured,
        parts,
        repeats,
        plan,
        tuple(report),
        inputs,
        structure_of(_planned(found, plan), captured.source),
        lines_made(module),
        code_of(captured.source),
        found,
        rewritten.one_by_one,
        placed=next((made for of, made in placed if of is rewritten), None),
        checkpoint_blocks=checkpoint_blocks,
        scores=dict((options or {}).get("scores") or {}),
    )


def _found_again(captured: CapturedParts, plan: Plan) -> tuple[PartRepeats, ...]:
    """The repeats that a plan is for."""
    try:
        return find_in_parts(captured, by_plan(plan))
    except BadInput as problem:
        bare = [PartRepeats.of(part.path, part.graph_module, ()) for part in captured.parts]
        _require_made_for(plan, bare, captured.source)
        raise PlanMismatch(f"a repeat of the plan does not hold: {problem}; make a new plan") from problem


def _require_made_for(plan: Plan, found: Sequence[PartRepeats], model: nn.Module) -> None:
    if plan.fingerprint:
        structure = structure_of(_planned(found, plan), model)
        if plan.fingerprint != fingerprint(structure):
            name = type(model).__name__
            raise PlanMismatch(f"the plan was made for another model than this {name}; make a new plan", structure)


def unreplaced(result: TransformResult, why: str) -> TransformResult:
    """The same model with none of its blocks replaced, of the same capture; a plan says of each why it stays.

    It is saved and loaded like any other: where blocks were made whole again, an artifact holds the model so.
    """
    gone = tuple(Refusal(r.block, r.repeat, why) for r in result.plan.replacements)
    kept = replace(result.plan, replacements=(), refusals=(*result.plan.refusals, *gone))
    plan = replace(kept, expected={}, timed_on="")
    return rewrite(result.captured_parts, plan, result.inputs, check=False, required=False)


def _put(
    captured: CapturedParts,
    found: Sequence[PartRepeats],
    trials: Trials,
    known: list[tuple[Rewritten, InPlace]],
    plan: Plan,
) -> InPlace:
    """The surrogates of a plan in the model's own tree; notes in `known` of what graphs they are."""
    rewritten = trials.rewritten(plan)
    module = captured.with_graphs(rewritten.graphs)
    made = put_in_place(captured, found, plan, rewritten.one_by_one, module, trials.inputs)
    known.append((rewritten, made))
    return made


def _forms(
    captured: CapturedParts,
    found: Sequence[PartRepeats],
    inputs: ExampleInputs,
    checkpoint_blocks: bool,
    plan: Plan,
    rewritten: Rewritten,
) -> tuple[nn.Module, nn.Module]:
    """The model to train that a plan makes, and the one with graphs in it."""
    graphs = captured.with_graphs(rewritten.graphs) if rewritten.graphs else captured.module
    # What is made to be counted alone need not be compared.
    made = put_in_place(captured, found, plan, rewritten.one_by_one, None, inputs, checkpoint_blocks=checkpoint_blocks)
    return made.model or graphs, graphs


def _captured(part: Part) -> Captured:
    info, refused = part.graph_module.meta["capture"], tuple(refused_sizes(part.graph_module))
    return Captured(part.path, info.model, info.tracer, dict(info.dynamic), Inputs.of(part.inputs), refused)


def _size(module: nn.Module) -> int:
    """Number of parameter elements; those that are tied count once."""
    return sum(parameter.numel() for parameter in module.parameters())


def _require_replacements(captured: CapturedParts, repeats: Sequence[Repeat], plan: Plan) -> None:
    if not plan.replacements:
        raise NothingToReplace(_summary(captured, repeats), [f"{r.block}: {r.reason}" for r in plan.refusals])
    known = {block.name for repeat in repeats for block in repeat.blocks}
    missing = next((r.block for r in plan.replacements if r.block not in known), None)
    if missing is not None:
        raise PlanMismatch(f"the plan names block {missing}, which this model does not have; make a new plan")


@overload
def fold(module: fx.GraphModule) -> fx.GraphModule: ...
@overload
def fold(module: nn.Module) -> nn.Module: ...
def fold(module: nn.Module) -> nn.Module:
    """The inference form of a rewritten module: synthesised weights are constants in plain operators.

    Args:
        module: a rewritten graph module, or a module with rewritten graphs in it; it is not changed.

    Returns:
        A module without synthesis nodes that computes the same, with tensors of its own: where the original trains on,
        or the folded one becomes half precision, the other stays as it is.

    Raises:
        NotFoldable: see `repl_fx.passes.fold_surrogates`.
        BadInput: the argument is no module, or a model in place, which calls its surrogates as its own code says.
    """
    require_module("fold", module)
    if surrogate_graphs(module):
        raise BadInput(
            f"fold takes graphs, and this {type(module).__name__} has its surrogates in place; give result.module, or "
            "what load(directory, in_place=False) returns"
        )
    if isinstance(module, fx.GraphModule):
        folded: nn.Module = run_passes(module, fold_surrogates).graph_module
    else:
        graphs = {path: run_passes(graph, fold_surrogates).graph_module for path, graph in graphs_in(module).items()}
        folded = assemble(module, graphs)
    own_tensors_(folded)
    return folded


def _summary(captured: CapturedParts, repeats: Sequence[Repeat]) -> str:
    where = (
        "" if captured.whole else f" in {', '.join(part.path for part in captured.parts)}, which alone were captured"
    )
    if not repeats:
        return f"no repeated blocks were found{where}"
    return "found " + ", ".join(f"{len(repeat)} blocks in {repeat.name}" for repeat in repeats) + where
