"""The pipeline: capture, find repeats, plan, replace."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from typing import Any, TypeVar, overload

from torch import fx, nn

from repl_fx.analysis.blocks import Block, Repeat
from repl_fx.analysis.side_outputs import only_returned
from repl_fx.arguments import require_args, require_kind, require_module
from repl_fx.config import check_passes
from repl_fx.errors import ForeignError, NothingToReplace, PlanMismatch, foreign_code
from repl_fx.graph.assigned_buffers import assigned_by
from repl_fx.graph.gc_pause import collection_paused
from repl_fx.graph.kinds import dtype_name
from repl_fx.passes.batch_syntheses import batch_syntheses_
from repl_fx.passes.check_graph import check_graph
from repl_fx.passes.check_training import TrainingCheck
from repl_fx.passes.choose_blocks import choose_blocks
from repl_fx.passes.find_repeats import find_repeats
from repl_fx.passes.fold_surrogates import fold_surrogates
from repl_fx.passes.replace_blocks import replace_blocks
from repl_fx.passes.write_in_place import write_in_place_
from repl_fx.plan import Plan, Refusal, Replacement
from repl_fx.surrogates import Site, Surrogate, make_surrogate
from repl_fx.surrogates.shared.site import surrogate_path
from repl_fx.tracing.capture import widen_batch
from repl_fx.tracing.fingerprint import code_of, fingerprint, lines_around, lines_of_code, lines_of_graph
from repl_fx.tracing.hooks import hooks_within
from repl_fx.tracing.model_checks import require_capturable, require_finite
from repl_fx.tracing.parts.capture import CapturedParts, Part, assemble, capture_parts, graphs_in, join

Value = TypeVar("Value")
# What stands before the shape of a tensor of fractions.
_PRECISION = re.compile(r"\b(?:bfloat|float|complex)\d\w*(?=\[)")


@dataclass(frozen=True)
class BlockReport:
    """The fate of one block.

    Attributes:
        block, repeat: names.
        status: `replaced`, `kept` (nobody asked for it) or `refused`.
        surrogate: key of what stands in for it; None where it stays.
        reason: why it was refused.
        parameters_before, parameters_after: elements of its own parameters.
    """

    block: str
    repeat: str
    status: str
    surrogate: str | None
    reason: str | None
    parameters_before: int
    parameters_after: int


@dataclass(frozen=True)
class TransformResult:
    """The result of a transform.

    Attributes:
        module: the rewritten model: a graph module where the whole model is one graph, else a module of the source's
            class with rewritten graphs in it.
        captured_parts: what was captured; it shares tensors with `module`.
        parts: the rewritten graphs, those alone in which a block was replaced.
        repeats: what was found; names begin with the path of the part they were found in.
        plan: what was done.
        report: what became of each block of each repeat, in program order.
        args, kwargs: the example inputs of the capture, which have a batch of 2 or more where they are tensors.
        structure: the text of what was captured (`repl_fx.tracing.fingerprint`), of which the plan holds the hash.
        made: the text of the code of `module`, as it was then.
        code: hash of the code of the user's own classes in the model, as it was then.
    """

    module: nn.Module
    captured_parts: CapturedParts
    parts: tuple[Part, ...]
    repeats: tuple[Repeat, ...]
    plan: Plan
    report: tuple[BlockReport, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    structure: tuple[str, ...]
    made: tuple[str, ...]
    code: str

    @property
    def all_parts(self) -> tuple[Part, ...]:
        """All that was captured, with the rewritten graphs in place of those before."""
        after = {part.path: part for part in self.parts}
        return tuple(after.get(part.path, part) for part in self.captured_parts.parts)

    @property
    def graph_module(self) -> fx.GraphModule:
        """The rewritten model, where the whole model is one graph."""
        return self._whole(self.parts, "module")

    @property
    def captured(self) -> fx.GraphModule:
        """The graph before, where the whole model is one graph."""
        return self._whole(self.captured_parts.parts, "captured_parts")

    def __copy__(self) -> TransformResult:
        return replace(self)

    def __reduce__(self) -> tuple[Any, ...]:
        # Its blocks are of nodes, which belong to the graphs of this process.
        raise pickle.PicklingError(
            "a TransformResult cannot be pickled or copied; pickle result.module, and keep all of it with repl_fx.save"
        )

    def _whole(self, parts: tuple[Part, ...], instead: str) -> fx.GraphModule:
        if not self.captured_parts.whole:
            raise AttributeError(
                f"{type(self.module).__name__} was captured in parts and is no single graph; use result.{instead}"
            )
        return parts[0].graph_module


def make_plan(
    gm: fx.GraphModule,
    repeats: Sequence[Repeat],
    *,
    every: int = 2,
    surrogate: str = "auto",
    blocks: Sequence[str | int] | None = None,
    ignore: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Plan:
    """Decide which blocks go and what stands in for each.

    Args:
        gm: a captured graph.
        repeats: from `find_repeats`.
        every: replace the k-th, 2k-th, … block of each repeat; the ends of a repeat stay.
        surrogate: key of the surrogate.
        blocks: names or numbers (from 1) of the blocks to replace; overrides `every`.
        ignore: globs over block and parameter names; what matches stays.
        settings: settings of the surrogate.
        seed: of the surrogates' initial values.

    Returns:
        The plan; it replaces nothing where every block was refused.

    Raises:
        UnknownSurrogate, UnknownBlock, BadInput: an argument that does not fit.
    """
    require_module("make_plan", gm, graph=True)
    require_kind(repeats, Sequence, "make_plan takes for repeats what repl_fx.find_repeats(gm) returned")
    options = Options(every, surrogate, blocks, ignore, settings, seed)
    return _plan((_Found("", gm, tuple(repeats)),), options)


@dataclass(frozen=True)
class Options:
    """The options of `make_plan` and `transform`; see there."""

    every: int = 2
    surrogate: str = "auto"
    blocks: Sequence[str | int] | None = None
    ignore: Sequence[str] = ()
    settings: Mapping[str, Any] | None = None
    seed: int = 0


@dataclass(frozen=True)
class _Found:
    """Repeats of one part, under the names that they have in its graph."""

    path: str
    graph_module: fx.GraphModule
    repeats: tuple[Repeat, ...]

    @property
    def outside(self) -> tuple[Repeat, ...]:
        """The repeats under the names that they have in the model."""
        return tuple(_named_from(self.path, repeat) for repeat in self.repeats)

    @cached_property
    def blocks(self) -> dict[str, Block]:
        """The blocks of all repeats, by the names that they have in the model."""
        return {join(self.path, block.name): block for repeat in self.repeats for block in repeat.blocks}

    @cached_property
    def lines(self) -> tuple[str, ...]:
        """The text of the graph."""
        return tuple(lines_of_graph(self.graph_module))


def _find(captured: CapturedParts) -> tuple[_Found, ...]:
    graphs = {part.path: part.graph_module for part in captured.parts}
    return tuple(_Found(path, gm, _checked(find_repeats(gm), gm, "find_repeats")) for path, gm in graphs.items())


def repeats_of(captured: CapturedParts) -> tuple[Repeat, ...]:
    """The repeats of all parts of a model, under the names that they have in the model."""
    return tuple(repeat for part in _find(captured) for repeat in part.outside)


def _named_from(path: str, repeat: Repeat) -> Repeat:
    blocks = tuple(
        replace(
            block,
            name=join(path, block.name),
            parameters=tuple(join(path, name) for name in block.parameters),
            module_path=None if block.module_path is None else join(path, block.module_path),
        )
        for block in repeat.blocks
    )
    children = tuple(_named_from(path, child) for child in repeat.children)
    return replace(repeat, name=join(path, repeat.name), blocks=blocks, children=children) if path else repeat


def _plan(found: Sequence[_Found], options: Options, model: nn.Module | None = None) -> Plan:
    stand_in = make_surrogate(options.surrogate, options.settings)
    outside = [repeat for part in found for repeat in part.outside]
    # Globs and numbers mean the model, and surrogates the graph.
    choice = choose_blocks(outside, every=options.every, blocks=options.blocks, ignore=options.ignore)
    replacements: list[Replacement] = []
    refusals = list(choice.refusals)
    for pick in choice.chosen:
        site = _site(found, options.surrogate, pick.block.name, pick.before.name, pick.after.name)
        chosen = stand_in.resolve(site)
        reason = _refusal(site, chosen)
        if reason is not None:
            refusals.append(Refusal(pick.block.name, pick.repeat.name, reason))
            continue
        replacements.append(
            Replacement(
                pick.block.name, pick.repeat.name, pick.before.name, pick.after.name, chosen.key, chosen.settings()
            )
        )
    plan = Plan((), tuple(choice.refusals), "", options.seed)
    return _settled(found, plan, tuple(replacements), tuple(refusals), model)


def _settled(
    found: Sequence[_Found],
    plan: Plan,
    replacements: tuple[Replacement, ...],
    refusals: tuple[Refusal, ...],
    model: nn.Module | None,
) -> Plan:
    """A plan with these replacements, and with more refusals."""
    used = _used(found, replacements)
    paths = tuple(part.path for part in used)
    known = dict.fromkeys((*plan.refusals, *refusals))
    return Plan(replacements, tuple(known), fingerprint(_structure(used or found, model)), plan.seed, paths or ("",))


def _used(found: Sequence[_Found], replacements: Sequence[Replacement]) -> list[_Found]:
    """The parts that hold what is replaced; those that stay as they are need not be captured to apply a plan again."""
    return [part for part in found if any(replacement.block in part.blocks for replacement in replacements)]


def _site(found: Sequence[_Found], key: str, *names: str) -> Site:
    """The site of a block between its neighbours, by the names that they have in the model."""
    for part in found:
        if names[0] in part.blocks:
            block, before, after = (part.blocks[name] for name in names)
            return Site(part.graph_module, block, before, after, block.inputs, key)
    raise PlanMismatch(f"the plan names block {names[0]}, which no part has; make a new plan")


def _refusal(site: Site, surrogate: Surrogate[Any]) -> str | None:
    """Why a surrogate cannot stand in for a block; None where it can."""
    layers = [str(node.target) for node in site.block.nodes if node.op == "call_module"]
    return (
        _inner_value_used(site.block, surrogate)
        or hooks_within(site.graph_module, layers)
        or _update_lost(site, surrogate)
        or _integer_weight(site, surrogate)
        or surrogate.refuse(site)
    )


def _next_choices(found: Sequence[_Found], options: Options, replaced: Replacement) -> Iterator[Replacement]:
    """Other surrogates that may stand in for a block, most preferred first."""
    site = _site(found, options.surrogate, replaced.block, replaced.before, replaced.after)
    for surrogate in make_surrogate(options.surrogate, options.settings).choices(site):
        if surrogate.key != replaced.surrogate and _refusal(site, surrogate) is None:
            yield replace(replaced, surrogate=surrogate.key, settings=surrogate.settings())


def transform(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    every: int = 2,
    surrogate: str = "auto",
    blocks: Sequence[str | int] | None = None,
    ignore: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    plan: Plan | None = None,
    copy: bool = False,
    allow_nan: bool = False,
    check: bool = True,
    progress: Callable[[str], None] | None = None,
) -> TransformResult:
    """Rewrite a model: some of its repeated blocks become light surrogates made from the blocks around them.

    A model that is no single graph is rewritten in the largest modules inside it that are (`capture_parts`).

    Args:
        model: any module; it is not changed, but shares its parameters with the result unless `copy`.
        args, kwargs: example inputs.
        every, surrogate, blocks, ignore, settings, seed: see `make_plan`.
        plan: a plan made before, for this model; overrides all of these.
        copy: give the result parameters of its own.
        allow_nan: take a model with weights that are NaN or infinite, too.
        check: take one training step of the rewritten model on the example inputs. A surrogate that fails it is
            refused; `auto` goes on to its next choice for that block. With a given plan the failure is an error.
        progress: called with the name of each stage as it begins.

    Returns:
        The rewritten module with plan and report.

    Raises:
        NothingToReplace: no block would go; says what was found and why each was refused.
        BadInput: weights are no numbers, and see `capture_parts`.
        CaptureError: see `capture_parts`.
        PlanMismatch: `plan` was made for another model, or what it makes of this one does not train.
    """
    require_module("transform", model)
    require_args(args, kwargs)
    tell = progress or (lambda stage: None)
    if plan is not None:
        require_kind(plan, Plan, "transform takes for plan what repl_fx.make_plan returned, or Plan.from_json(text)")
    else:
        # A word that is misspelt should not cost a capture.
        make_surrogate(surrogate, settings)
    require_capturable(model, args, kwargs)
    if not allow_nan:
        require_finite(model)
    args, kwargs = widen_batch(model, tuple(args), dict(kwargs or {}))
    tell("capture")
    captured = capture_parts(model, args, kwargs, copy=copy, paths=None if plan is None else plan.parts)
    options = Options(every, surrogate, blocks, ignore, settings, seed)
    return rewrite(captured, plan or options, args, kwargs, tell, check=check)


def rewrite(
    captured: CapturedParts,
    plan: Plan | Options,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    tell: Callable[[str], None] = lambda stage: None,
    *,
    check: bool = True,
) -> TransformResult:
    """Apply a plan, or make one and apply it.

    Args:
        captured: the model.
        plan: a plan, or what to make one of.
        args, kwargs: example inputs of the model.
        tell: called with the name of each stage as it begins.
        check: see `transform`.

    Raises:
        NothingToReplace, PlanMismatch: see `transform`.
    """
    with collection_paused():
        tell("find repeats")
        found = _find(captured)
        repeats = tuple(repeat for part in found for repeat in part.outside)
        tell("plan")
        options = plan if isinstance(plan, Options) else None
        if isinstance(plan, Options):
            plan = _plan(found, plan, captured.source)
        elif plan.fingerprint:
            structure = _structure(found, captured.source)
            if plan.fingerprint != fingerprint(structure):
                name = type(captured.source).__name__
                raise PlanMismatch(f"the plan was made for another model than this {name}; make a new plan", structure)
        _require_replacements(captured, repeats, plan)
        tell("replace")
        trials = _Trials(captured, found, plan.seed, args, kwargs)
        if check and options is None:
            trials.require(plan)
        elif check and options is not None:
            settled = trials.settle(plan, partial(_next_choices, found, options))
            plan = _settled(found, plan, *settled, captured.source)
            _require_replacements(captured, repeats, plan)
        graphs = trials.graphs(plan)
        rewritten = tuple(
            replace(part, graph_module=graphs[part.path]) for part in captured.parts if part.path in graphs
        )
        report: list[BlockReport] = []
        for inside in found:
            after = graphs.get(inside.path, inside.graph_module)
            report += _report(inside, after, plan.within(inside.path))
    module = captured.with_graphs(graphs)
    return TransformResult(
        module,
        captured,
        rewritten,
        repeats,
        plan,
        tuple(report),
        args,
        kwargs,
        _structure(_used(found, plan.replacements), captured.source),
        lines_made(module),
        code_of(captured.source),
    )


def _require_replacements(captured: CapturedParts, repeats: Sequence[Repeat], plan: Plan) -> None:
    if not plan.replacements:
        raise NothingToReplace(_summary(captured, repeats), [f"{r.block}: {r.reason}" for r in plan.refusals])
    for replacement in plan.replacements:
        if not any(replacement.block.startswith(join(part.path, "")) for part in captured.parts):
            raise PlanMismatch(f"the plan names block {replacement.block}, which no part has; make a new plan")


def _apply(found: Sequence[_Found], plan: Plan) -> dict[str, fx.GraphModule]:
    """The rewritten graphs, by the path of their part; those alone in which a block is replaced."""
    graphs: dict[str, fx.GraphModule] = {}
    for part in found:
        own = plan.within(part.path)
        if not own.replacements:
            continue
        after = replace_blocks(part.graph_module, part.repeats, own).graph_module
        _checked(None, after, "replace_blocks")
        batch_syntheses_(after)
        _checked(None, after, "batch_syntheses_")
        write_in_place_(after)
        _checked(None, after, "write_in_place_")
        after.recompile()
        graphs[part.path] = after
    return graphs


class _Trials:
    """Applies plans, and takes a training step with what they make.

    Args:
        captured: the model.
        found: its repeats.
        seed: of the surrogates' initial values.
        args, kwargs: example inputs of the model.
    """

    def __init__(
        self,
        captured: CapturedParts,
        found: Sequence[_Found],
        seed: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.captured, self.found, self.seed = captured, found, seed
        self._reasons: dict[tuple[str, ...], str | None] = {}
        self._passed: tuple[tuple[Replacement, ...], dict[str, fx.GraphModule]] = (), {}
        self._check = TrainingCheck(captured.module, args, kwargs)
        if captured.check is not None and not captured.check.training:
            # The model does not run in training mode.
            self._check.possible = False

    def graphs(self, plan: Plan) -> dict[str, fx.GraphModule]:
        """The graphs that a plan makes; made already where it was the last to pass."""
        replacements, graphs = self._passed
        return graphs if replacements == plan.replacements else _apply(self.found, plan)

    def require(self, plan: Plan) -> None:
        """Try a plan that is not to be changed.

        Raises:
            PlanMismatch: what it makes does not train.
        """
        reason = self._reason(plan.replacements)
        if reason is not None:
            raise PlanMismatch(f"what the plan makes cannot be trained: {reason}; make a new plan")

    def settle(
        self, plan: Plan, choices: Callable[[Replacement], Iterator[Replacement]]
    ) -> tuple[tuple[Replacement, ...], tuple[Refusal, ...]]:
        """The replacements of a plan that train together, and refusals of the others.

        Args:
            plan: the plan.
            choices: what else may stand in for a block, most preferred first.
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
            alike = () if first is None else tuple(_standing_in(r, first) for r in group)
            if alike and self._reason(with_kept(*alike)) is None:
                kept = with_kept(*alike)
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
        tried = tuple(map(str, (replace(r, settings={}) for r in replacements)))
        if tried not in self._reasons:
            self._reasons[tried] = self._try(replacements)
        return self._reasons[tried]

    def _try(self, replacements: tuple[Replacement, ...]) -> str | None:
        keys = ", ".join(dict.fromkeys(replacement.surrogate for replacement in replacements))
        try:
            # A surrogate may be a package's. One that cannot be built here is refused like one that cannot be trained.
            with foreign_code():
                graphs = _apply(self.found, Plan(replacements, (), "", self.seed))
        except ForeignError as problem:
            return f"{keys} cannot be built here: {problem}"
        removed, made = {}, {}
        for name in (replacement.block for replacement in replacements):
            part = next(part for part in self.found if name in part.blocks)
            block, after = part.blocks[name], graphs[part.path]
            removed[name] = [part.graph_module.get_parameter(path) for path in block.parameters]
            place = f"{surrogate_path(block.name)}."
            made[name] = [p for path, p in after.named_parameters() if path.startswith(place)]
        problem_found, culprits = self._check.run(self.captured.with_graphs(graphs), made, removed)
        if problem_found is not None:
            return f"{keys} fails in a training step: {problem_found}"
        for replacement in replacements:
            if replacement.block in culprits:
                return f"{replacement.surrogate} cannot be trained here: {culprits[replacement.block]}"
        self._passed = replacements, graphs
        return None


def _alike(replacements: Sequence[Replacement]) -> list[tuple[Replacement, ...]]:
    """Replacements of one repeat by one surrogate, in program order."""
    groups: dict[tuple[str, str], list[Replacement]] = {}
    for replacement in replacements:
        groups.setdefault((replacement.repeat, replacement.surrogate), []).append(replacement)
    return [tuple(group) for group in groups.values()]


def _standing_in(replacement: Replacement, like: Replacement) -> Replacement:
    """The same block, replaced by the surrogate of another one."""
    return replace(replacement, surrogate=like.surrogate, settings=like.settings)


@overload
def fold(module: fx.GraphModule) -> fx.GraphModule: ...
@overload
def fold(module: nn.Module) -> nn.Module: ...
def fold(module: nn.Module) -> nn.Module:
    """The inference form of a rewritten module: synthesised weights are constants in plain operators.

    Args:
        module: a rewritten graph module, or a module with rewritten graphs in it; it is not changed.

    Returns:
        A module without synthesis nodes that computes the same.

    Raises:
        NotFoldable: see `repl_fx.passes.fold_surrogates`.
        BadInput: what was given is no module.
    """
    require_module("fold", module)
    if isinstance(module, fx.GraphModule):
        folded = fold_surrogates(module).graph_module
        return _checked(folded, folded, "fold_surrogates")
    return assemble(module, {path: fold(graph) for path, graph in graphs_in(module).items()})


def _structure(found: Sequence[_Found], model: nn.Module | None) -> tuple[str, ...]:
    """The text of all parts, and of the model around them; that of the graph where the whole model is one."""
    if model is None:
        return found[0].lines
    return _text({part.path: part.lines for part in found}, model)


def lines_made(module: nn.Module) -> tuple[str, ...]:
    """The text of the code of a rewritten module: its graphs, and what stays Python around them.

    Precision, and subclasses that a library makes of a layer's class to wrap it, leave no trace in it.
    """
    text = _text({path: lines_of_code(gm) for path, gm in graphs_in(module).items()}, module)
    return tuple(_PRECISION.sub("", line) for line in text)


def _text(graphs: Mapping[str, Iterable[str]], model: nn.Module) -> tuple[str, ...]:
    """The lines of graphs, by path, and of the model around them; those of the graph where the whole model is one."""
    if "" in graphs:
        return tuple(graphs[""])
    inside = (f"{path}: {line}" for path in sorted(graphs) for line in graphs[path])
    return *inside, *lines_around(model, graphs)


def _checked(value: Value, gm: fx.GraphModule, after: str) -> Value:
    if check_passes():
        check_graph(gm, after)
    return value


def _inner_value_used(block: Block, surrogate: Surrogate[Any]) -> str | None:
    if surrogate.keeps_inner_values:
        return None
    used = next((value for value in block.side_outputs if not only_returned(value, block)), None)
    return None if used is None else f"its inner value {used.name} is used outside the block"


def _integer_weight(site: Site, surrogate: Surrogate[Any]) -> str | None:
    """Why no weights can be made from those of the neighbours; `identity` makes none."""
    if surrogate.key == "identity":
        return None
    names = [*site.block.parameters, *(name for block in site.neighbours for name in block.parameters)]
    for name in names:
        dtype = site.tensor(name).dtype
        if not (dtype.is_floating_point or dtype.is_complex) or dtype.itemsize == 1:
            return f"{name} is {dtype_name(dtype)}, and weights can be made from floating point ones alone"
    return None


def _update_lost(site: Site, surrogate: Surrogate[Any]) -> str | None:
    """Why a surrogate cannot stand in for a block that updates a buffer; identity keeps nothing that reads it."""
    buffer = next((buffer for node in site.block.nodes if (buffer := assigned_by(node))), None)
    if buffer is None or surrogate.key == "identity":
        return None
    nodes = site.graph_module.graph.nodes
    if surrogate.key == "bottleneck" and not any(n.op == "get_attr" and n.target == buffer for n in nodes):
        # A table that each forward makes anew: what the surrogate leaves of the block makes it too.
        return None
    return f"its forward updates buffer {buffer}, which {surrogate.key} would leave as it is"


def _summary(captured: CapturedParts, repeats: Sequence[Repeat]) -> str:
    where = (
        "" if captured.whole else f" in {', '.join(part.path for part in captured.parts)}, which alone were captured"
    )
    if not repeats:
        return f"no repeated blocks were found{where}"
    return "found " + ", ".join(f"{len(repeat)} blocks in {repeat.name}" for repeat in repeats) + where


def _report(found: _Found, rewritten: fx.GraphModule, plan: Plan) -> list[BlockReport]:
    """The fates of the blocks of one part; `plan` has the names that they have in its graph."""
    gm, path = found.graph_module, found.path
    replaced = {r.block: r for r in plan.replacements}
    refused = {r.block: r for r in plan.refusals}
    sizes = {name: parameter.numel() for name, parameter in gm.named_parameters()}
    left = {name: parameter.numel() for name, parameter in rewritten.named_parameters()}
    made: dict[str, int] = {}
    for name, size in left.items():
        if name.startswith("surrogates."):
            place = ".".join(name.split(".")[:2])
            made[place] = made.get(place, 0) + size
    rows = []
    for repeat in found.repeats:
        for block in repeat.blocks:
            own = set(block.parameters)
            before = sum(sizes.get(name, 0) for name in own)
            after = before
            status, key, reason = "kept", None, None
            if block.name in replaced:
                status, key = "replaced", replaced[block.name].surrogate
                after = sum(left.get(name, 0) for name in own) + made.get(surrogate_path(block.name), 0)
            elif block.name in refused or repeat.name in refused:
                status, reason = "refused", refused.get(block.name, refused.get(repeat.name)).reason  # type: ignore[union-attr]
            names = (join(path, block.name), join(path, repeat.name))
            rows.append(BlockReport(*names, status, key, reason, before, after))
    return rows
