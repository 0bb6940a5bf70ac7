"""The result of a transform: the graphs, the model in place, the plan, and the outcome for each block."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, cast

from torch import fx, nn

from repl_fx.costs.counted import Costs, measure_form
from repl_fx.display.columns import Table
from repl_fx.display.html import Displayed
from repl_fx.display.numbers import change, count
from repl_fx.errors import BadInput
from repl_fx.finding.repeats import Repeats, repeats_table
from repl_fx.graph.state import parameter_count
from repl_fx.plan import Plan, Refusal
from repl_fx.rewriting.block_reports import BlockReport, blocks_table
from repl_fx.rewriting.in_place.assembling import InPlace, put_in_place
from repl_fx.rewriting.in_place.judging import Judged
from repl_fx.rewriting.in_place.pretrained import has_from_pretrained
from repl_fx.running.example_inputs import ExampleInputs, HasInputs
from repl_fx.running.holders import ORIGIN
from repl_fx.tracing.parts.capture_parts import CapturedParts, Part
from repl_fx.tracing.parts.inputs import Inputs
from repl_fx.tracing.parts.origin import Captured, Origin
from repl_fx.tracing.parts.part_repeats import ModelRepeats, lines_made
from repl_fx.tracing.parts.stored import as_data
from repl_fx.tracing.size_questions import refused_sizes

# What a layer of PEFT says of its adapters: those in its weight, those that act, and whether none does.
_ADAPTERS = ("merged_adapters", "active_adapters", "disable_adapters")


@dataclass(frozen=True, repr=False)
class TransformResult(Displayed, HasInputs):
    """The result of a transform.

    Attributes:
        rewritten: see `module`.
        found: the repeats of the model before, with the captured graphs.
        parts: the rewritten graphs, those alone in which a block was replaced.
        plan: the plan that was applied.
        report: the outcome for each block of each repeat, in program order.
        structure: the text of what was captured (`repl_fx.tracing.fingerprint`), of which the plan holds the hash.
        made: the text of the code of `module`, as it was then.
        code: hash of the code of the user's own classes in the model, as it was then.
        one_by_one: the rewritten graphs with each synthesis on its own, by the path of their part, without code: the
            model in place computes what they do, to the bit, and `module` adds up gradients in another order.
        placed: the surrogates in the model's own tree, where the plan was settled by them; without checkpoints.
        checkpoint_blocks: whether `model` computes its kept blocks again in the backward pass.
        scores: what each block was worth, where the plan was made from that.
        by_graph: see `InPlace.by_graph`, of the same model in place that was compared with `module` before, when it
            was saved; None where none was.
        graph: whether `model` is `module` also where there could be a model in place.
    """

    rewritten: nn.Module
    found: ModelRepeats
    parts: tuple[Part, ...]
    plan: Plan
    report: tuple[BlockReport, ...]
    structure: tuple[str, ...]
    made: tuple[str, ...]
    code: str
    one_by_one: Mapping[str, fx.GraphModule]
    placed: InPlace | None = None
    checkpoint_blocks: bool = False
    scores: Mapping[str, float] = field(default_factory=dict)
    by_graph: tuple[str, ...] | None = None
    graph: bool = False

    @property
    def module(self) -> nn.Module:
        """The rewritten model: a graph module where the whole model is one graph, else a module with graphs in it.

        It shares its tensors with `model`, also those that this got since, as by `.to()`; see `InPlace.share_`.
        """
        self._follow_model()
        return self.rewritten

    @property
    def captured_parts(self) -> CapturedParts:
        """The captured graphs, which share tensors with `module`."""
        return self.found.captured

    @property
    def repeats(self) -> Repeats:
        """The repeats of all parts; names begin with the path of the part they were found in."""
        return self.found.repeats

    @property
    def inputs(self) -> ExampleInputs:
        """The example inputs of the capture, which have a batch of 2 or more where they are tensors."""
        return self.captured_parts.inputs

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
        self._follow_model()
        return self._whole(self.parts, "module")

    @property
    def captured(self) -> fx.GraphModule:
        """The graph before, where the whole model is one graph."""
        return self._whole(self.captured_parts.parts, "captured_parts")

    @cached_property
    def in_place(self) -> InPlace:
        """The source's own module tree with surrogates in place of blocks, or why that cannot be."""
        made = self.placed
        if self.graph:
            why = "the graph was asked for (graph=True)"
            made = InPlace(None, tuple(Refusal(r.block, r.repeat, why) for r in self.plan.replacements))
        elif made is None or (made.model is not None and self.checkpoint_blocks):
            # What was placed before, without checkpoints, has been compared.
            by_graph = self.by_graph if made is None else made.by_graph
            known = self.found, self.plan, self.one_by_one, self.module if by_graph is None else None
            made = put_in_place(*known, judged=Judged(by_graph), checkpoint_blocks=self.checkpoint_blocks)
        if made.model is not None:
            of_graph = made.tensors_of(self.module)
            shared = {n: tensor for n, tensor in made.tensors_of(made.model).items() if of_graph.get(n) is tensor}
            made = replace(made, shared=shared)
        # An attribute like any other, so that copies and pickles have it too; a graph that was loaded has its own.
        model = made.model or self.module
        if made.model is not None or ORIGIN not in vars(model):
            vars(model)[ORIGIN] = self.origin_of(model, made)
        return made

    def origin_of(self, module: nn.Module, placed: InPlace | None = None) -> Origin:
        """All that is known of the transform, for `module` or for the model in place, which is that of `placed`."""
        captured, in_place = self.captured_parts, module is not self.rewritten
        placed = placed or vars(self).get("in_place", self.placed)
        by_graph = self.by_graph if placed is None or placed.model is None else tuple(sorted(placed.by_graph))
        return Origin(
            code=self.code,
            parts=tuple(_captured(part) for part in captured.parts if part.path in self.plan.parts),
            eager=captured.eager,
            inputs=Inputs.of(self.inputs),
            fixed=captured.fixed,
            in_place=in_place,
            checkpoint_blocks=self.checkpoint_blocks,
            by_graph=by_graph,
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
        """The model to train: the one in place; `module` with `graph`, or where a block has no place in the source.

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

    def displayed(self) -> list[str | Table]:
        """The model and its costs in a line, its sizes, and the tables of repeats and blocks."""
        source = self.captured_parts.source
        before, after = parameter_count(source), parameter_count(self.rewritten)
        head = (
            f"{type(source).__name__}: {len(self.plan.replacements)} of {len(self.report)} blocks replaced, "
            f"{count(before)} parameters before and {count(after)} after ({change(before, after)})"
        )
        return [head, *self.captured_parts.sizes, repeats_table(self.repeats), blocks_table(self.report)]

    def _follow_model(self) -> None:
        if "in_place" in vars(self):
            self.in_place.share_(self.rewritten, *self.one_by_one.items())
            _require_adapted_alike(self.captured_parts.source, self.in_place.model or nn.Module())

    def _whole(self, parts: tuple[Part, ...], instead: str) -> fx.GraphModule:
        if not self.captured_parts.whole:
            raise AttributeError(
                f"{type(self.rewritten).__name__} was captured in parts and is no single graph; use result.{instead}"
            )
        return parts[0].graph_module


def _require_adapted_alike(source: nn.Module, model: nn.Module) -> None:
    """Refuse a model in place whose adapters of PEFT act otherwise than those of the source, which the graph has.

    They are in the weights that both share, or no longer; or others are active, or none.
    """
    layers = dict(source.named_modules())
    for path, layer in model.named_modules():
        was, now = ([getattr(one, name, None) for name in _ADAPTERS] for one in (layers.get(path), layer))
        if None not in (was[0], now[0]) and was != now:
            raise BadInput(
                f"{path} has had adapters merged, unmerged, enabled or disabled since the transform, and its graph "
                "has them as they were; undo that, or transform the model as it is now"
            )


def _captured(part: Part) -> Captured:
    info, refused = part.graph_module.meta["capture"], tuple(refused_sizes(part.graph_module))
    return Captured(part.path, info.model, info.tracer, dict(info.dynamic), Inputs.of(part.inputs), refused)


class HoldsResult(Protocol):
    """An object with the result of a transform and the model that became of it: a compression, an artifact."""

    @property
    def result(self) -> TransformResult:
        """The result."""

    @property
    def model(self) -> nn.Module:
        """The model, with the weights that it has now."""


def result_and_model(given: TransformResult | HoldsResult | nn.Module) -> tuple[TransformResult | None, nn.Module]:
    """The result of a transform and its model; None for a model of which no result is known."""
    if isinstance(given, TransformResult):
        return given, given.model
    if isinstance(given, nn.Module) or not isinstance(getattr(given, "result", None), TransformResult):
        # What is no model is refused where one is needed.
        return None, cast(nn.Module, given)
    return given.result, given.model
