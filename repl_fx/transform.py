"""The pipeline: capture, find repeats, plan, replace."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import fx, nn

from repl_fx.blocks import Block, Repeat
from repl_fx.capture import capture, widen_batch
from repl_fx.config import check_passes
from repl_fx.errors import NothingToReplace, PlanMismatch
from repl_fx.memory import collection_paused
from repl_fx.passes.check_graph import check_graph
from repl_fx.passes.choose_blocks import choose_blocks
from repl_fx.passes.find_repeats import find_repeats
from repl_fx.passes.fold_surrogates import fold_surrogates
from repl_fx.passes.replace_blocks import replace_blocks
from repl_fx.plan import Plan, Refusal, Replacement
from repl_fx.surrogates import Site, Surrogate, make_surrogate
from repl_fx.surrogates.site import surrogate_path

Value = TypeVar("Value")


@dataclass(frozen=True)
class BlockReport:
    """What became of one block.

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
    """What a transform made.

    Attributes:
        graph_module: the rewritten model.
        captured: the graph before; it shares tensors with `graph_module`.
        repeats: what was found in it.
        plan: what was done.
        report: what became of each block of each repeat, in program order.
        args, kwargs: the example inputs the graph was captured with, which have a batch of 2 or more.
    """

    graph_module: fx.GraphModule
    captured: fx.GraphModule
    repeats: tuple[Repeat, ...]
    plan: Plan
    report: tuple[BlockReport, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


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
    stand_in = make_surrogate(surrogate, settings)
    choice = choose_blocks(repeats, every=every, blocks=blocks, ignore=ignore)
    replacements: list[Replacement] = []
    refusals = list(choice.refusals)
    for pick in choice.chosen:
        site = Site(gm, pick.block, pick.before, pick.after, pick.block.input, surrogate)
        chosen = stand_in.resolve(site)
        reason = _inner_value_used(pick.block, chosen) or chosen.refuse(site)
        if reason is not None:
            refusals.append(Refusal(pick.block.name, pick.repeat.name, reason))
            continue
        replacements.append(
            Replacement(
                pick.block.name, pick.repeat.name, pick.before.name, pick.after.name, chosen.key, chosen.settings()
            )
        )
    return Plan(tuple(replacements), tuple(refusals), fingerprint(gm), seed)


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
    progress: Callable[[str], None] | None = None,
) -> TransformResult:
    """Rewrite a model: some of its repeated blocks become light surrogates made from the blocks around them.

    Args:
        model: any module; it is not changed, but shares its parameters with the result unless `copy`.
        args, kwargs: example inputs.
        every, surrogate, blocks, ignore, settings, seed: see `make_plan`.
        plan: a plan made before, for this model; overrides all of these.
        copy: give the result parameters of its own.
        progress: called with the name of each stage as it begins.

    Returns:
        The rewritten graph module with plan and report.

    Raises:
        NothingToReplace: no block would go; says what was found and why each was refused.
        BadInput, CaptureError: see `capture`.
        PlanMismatch: `plan` was made for another model.
    """
    tell = progress or (lambda stage: None)
    args, kwargs = widen_batch(model, tuple(args), dict(kwargs or {}))
    tell("capture")
    gm = capture(model, args, kwargs, copy=copy)
    with collection_paused():
        tell("find repeats")
        repeats = _checked(find_repeats(gm), gm, "find_repeats")
        tell("plan")
        if plan is None:
            plan = make_plan(
                gm,
                repeats,
                every=every,
                surrogate=surrogate,
                blocks=blocks,
                ignore=ignore,
                settings=settings,
                seed=seed,
            )
        elif plan.fingerprint and plan.fingerprint != fingerprint(gm):
            raise PlanMismatch(f"the plan was made for another model than this {type(model).__name__}; make a new plan")
        if not plan.replacements:
            raise NothingToReplace(_found(repeats), [f"{r.block}: {r.reason}" for r in plan.refusals])
        tell("replace")
        rewritten = replace_blocks(gm, repeats, plan).graph_module
        _checked(None, rewritten, "replace_blocks")
        report = _report(gm, rewritten, repeats, plan)
    return TransformResult(rewritten, gm, repeats, plan, report, tuple(args), dict(kwargs))


def fold(gm: fx.GraphModule) -> fx.GraphModule:
    """The inference graph of a rewritten module: synthesised weights are constants in plain operators.

    Args:
        gm: a rewritten graph module; it is not changed.

    Returns:
        A graph module without synthesis nodes that computes the same.

    Raises:
        NotFoldable: see `repl_fx.passes.fold_surrogates`.
    """
    folded = fold_surrogates(gm).graph_module
    return _checked(folded, folded, "fold_surrogates")


def fingerprint(gm: fx.GraphModule) -> str:
    """Hash of a captured graph's structure: operators, targets, connections, shapes of state; no values."""
    position = {node: i for i, node in enumerate(gm.graph.nodes)}
    digest = hashlib.sha256()
    for node in gm.graph.nodes:
        target = (
            node.target
            if isinstance(node.target, str)
            else getattr(node.target, "__name__", type(node.target).__name__)
        )
        digest.update(f"{node.op} {target} {[position[f] for f in node.all_input_nodes]}\n".encode())
    for name, tensor in gm.state_dict(keep_vars=True).items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
    return digest.hexdigest()


def _checked(value: Value, gm: fx.GraphModule, after: str) -> Value:
    if check_passes():
        check_graph(gm, after)
    return value


def _inner_value_used(block: Block, surrogate: Surrogate[Any]) -> str | None:
    if len(block.outputs) > 1 and not surrogate.keeps_inner_values:
        return f"its inner value {block.outputs[1].name} is used outside the block"
    return None


def _found(repeats: Sequence[Repeat]) -> str:
    if not repeats:
        return "no repeated blocks were found"
    return "found " + ", ".join(f"{len(repeat)} blocks in {repeat.name}" for repeat in repeats)


def _report(
    gm: fx.GraphModule, rewritten: fx.GraphModule, repeats: Sequence[Repeat], plan: Plan
) -> tuple[BlockReport, ...]:
    replaced = {r.block: r for r in plan.replacements}
    refused = {r.block: r for r in plan.refusals}
    sizes = {name: parameter.numel() for name, parameter in gm.named_parameters()}
    left = {name: parameter.numel() for name, parameter in rewritten.named_parameters()}
    made: dict[str, int] = {}
    for name, size in left.items():
        if name.startswith("surrogates."):
            path = ".".join(name.split(".")[:2])
            made[path] = made.get(path, 0) + size
    rows = []
    for repeat in repeats:
        for block in repeat.blocks:
            own = set(block.parameters)
            before = sum(sizes.get(name, 0) for name in own)
            after = before
            status, key, reason = "kept", None, None
            if block.name in replaced:
                status, key = "replaced", replaced[block.name].surrogate
                after = sum(left.get(name, 0) for name in own) + made.get(surrogate_path(block), 0)
            elif block.name in refused or repeat.name in refused:
                status, reason = "refused", refused.get(block.name, refused.get(repeat.name)).reason  # type: ignore[union-attr]
            rows.append(BlockReport(block.name, repeat.name, status, key, reason, before, after))
    return tuple(rows)
