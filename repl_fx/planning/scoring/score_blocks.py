"""Score the blocks of a trained model: one pass over calibration data, and which blocks matter least.

    scores = repl_fx.score_blocks(repl_fx.capture_parts(model, args), batches)
    scores.of("influence")          {"blocks.0": 0.31, "blocks.1": 0.02, …}

    batches -> the graphs, watched at the boundaries of blocks -> statistics        influence, change, gradient
            -> a model for each block, without it              -> mean loss         loss
            -> models without one block more, again and again  -> the lowest loss   the order of `greedy`

The model runs in evaluation mode, and is afterwards as it was; so are parameters, buffers and random generators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from repl_fx.arguments import (
    in_words,
    require_function,
    require_items,
    require_kind,
    require_module,
    require_number,
    require_ordinary_tensors,
)
from repl_fx.display.progress import shown, stage, tell
from repl_fx.errors import BadInput, NothingToReplace, close_matches, first_line, foreign_code
from repl_fx.finding.blocks import Repeat
from repl_fx.graph.recording import watched
from repl_fx.planning.scoring.scores import KINDS, BlockScore, Kind, Scores, StretchScore
from repl_fx.planning.scoring.skipping import MeanLosses, Skipping
from repl_fx.planning.scoring.statistics import RepeatStatistics
from repl_fx.running.batches import Batch, Batches, Evaluation, Given, Loss, loss_of
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.meanwhile import attributes_set
from repl_fx.running.untouched import device_of, untouched
from repl_fx.tracing.parts.capture_parts import CapturedParts, Part
from repl_fx.tracing.parts.finders import require_repeats
from repl_fx.tracing.parts.part_repeats import ModelRepeats, PartRepeats, find_in_parts


@shown("score blocks")
def score_blocks(
    captured: CapturedParts | fx.GraphModule,
    batches: Given,
    *,
    repeats: Sequence[Repeat] | None = None,
    loss: Loss | None = None,
    kinds: Sequence[Kind] = ("influence", "change"),
    greedy: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Scores:
    """Score the blocks of a trained model on calibration data.

    Args:
        captured: the model, from `capture_parts` or `capture`; it is not changed.
        batches: an iterable of batches, or a function that returns one. A batch is a tensor, a tuple or list of
            arguments, or a dict of arguments by name; with a loss, a pair of that and of targets. Of pairs, a model of
            one argument gets the first without a loss, too.
        repeats: those whose blocks are scored, of `find_repeats` or `repeat_of`; by default all that are found.
        loss: `loss(outputs, targets)`, the mean over a batch, for the scores that need one.
        kinds: of the scores: `influence`, `change`, `gradient`, `loss`.
        greedy: how many blocks to take out one after the other, each time the one without which the loss is lowest, as
            far as a plan may take them out; needs `loss` among the kinds, and goes over the batches again each time.
        progress: called with the name of each stage as it begins.

    Returns:
        A score of each kind for each block, and the influence of each stretch of blocks back to back.

    Raises:
        BadInput: data that the model does not take, that hold NaN or fewer than 8 samples, or that lead to values that
            are no finite numbers; an argument that does not fit.
        NothingToReplace: nothing repeats in the model.
    """
    asked = _asked(kinds, loss, greedy)
    captured = _captured(captured)
    found = _found(captured, repeats)
    device = device_of(captured.module)
    if device.type == "meta":
        raise BadInput("the model has no values, as it is on the device meta; load its weights first")
    given = Batches(batches, captured.source, paired=loss is not None)
    if greedy and not given.lasting:
        raise BadInput(
            f"greedy goes over the data again and again, and {in_words(batches)} can be gone over once; give a list, "
            "a DataLoader or a function that returns batches"
        )
    stage("score blocks")
    scoring = _Scoring(found, asked, loss)
    with untouched(captured.source):
        for number, batch in enumerate(given, start=1):
            tell(f"batch {number}")
            scoring.add(batch)
        order = scoring.greedy(given, greedy)
    return scoring.scores(order)


class _Scoring:
    """The scores of one model in the making."""

    def __init__(self, found: ModelRepeats, asked: Sequence[Kind], loss: Loss | None) -> None:
        self.found, self.asked, self.loss = found, asked, loss
        self.samples, self.total = 0, 0.0
        self.gradients = "gradient" in asked
        # By the names of the blocks in the model; empty where the loss alone is asked for.
        self.statistics: dict[tuple[str, ...], RepeatStatistics] = {}
        graphs = {part.path: self._observed(part) for part in found}
        self.observed = found.captured.with_graphs(graphs).eval()
        self.skipping = Skipping(found)
        without = self.skipping.one_by_one() if "loss" in asked else {}
        self.evaluation = Evaluation(self.observed)
        self.alone = None if loss is None else MeanLosses(without, loss, self.evaluation)

    def _observed(self, part: PartRepeats) -> fx.GraphModule:
        """The graph of a part, whose values at the boundaries of blocks go to the statistics."""
        notes: dict[fx.Node, list[Callable[[Any], None]]] = {}
        if set(self.asked) != {"loss"}:
            for named, repeat in zip(part.repeats, part.inside, strict=True):
                statistics = RepeatStatistics(part.graph_module, repeat, gradients=self.gradients)
                self.statistics[tuple(block.name for block in named.blocks)] = statistics
                # Similar and exact repeats may share boundaries.
                for node, note in statistics.notes().items():
                    notes.setdefault(node, []).append(note)
        return watched(part.graph_module, {node: partial(_tell_each, some) for node, some in notes.items()})

    def add(self, batch: Batch) -> None:
        """Run the models on a batch."""
        # The values behind frozen parameters have no gradients otherwise.
        parameters = self.observed.parameters() if self.gradients else ()
        frozen = [p for p in parameters if p.is_floating_point() and not p.requires_grad]
        taking_part = attributes_set(frozen, "requires_grad", True)
        try:
            with torch.set_grad_enabled(self.gradients), taking_part:
                outputs = self.evaluation.outputs(self.observed, batch)
                for names, statistics in self.statistics.items():
                    for number in statistics.broken[:1]:
                        raise BadInput(
                            f"{batch.where}: {names[number]} makes values that are no finite numbers; give data like "
                            "those that the model was trained on"
                        )
                if self.loss is not None:
                    loss = loss_of(self.loss, outputs, batch)
                    value = float(loss.detach())
                    if not math.isfinite(value):
                        raise BadInput(f"the loss of {batch.where} is {value}; give data that have a finite one")
                    self.total += batch.samples * value
                    if self.gradients:
                        self._add_gradients(loss, batch)
        finally:
            for statistics in self.statistics.values():
                statistics.forget()
        if self.alone is not None:
            self.alone.add(batch)
        self.samples += batch.samples

    def _add_gradients(self, loss: Tensor, batch: Batch) -> None:
        edges = [edge for statistics in self.statistics.values() for edge in statistics.edges]
        if not edges:
            return
        fails = f"the loss of {batch.where} has no gradients"
        with foreign_code(lambda problem: BadInput(f"{fails}: {first_line(problem)}")):
            gradients = torch.autograd.grad(loss, edges, allow_unused=True)
        for statistics in self.statistics.values():
            own, gradients = gradients[: len(statistics.edges)], gradients[len(statistics.edges) :]
            statistics.add_gradients(own, batch.samples)

    def greedy(self, batches: Batches, count: int) -> dict[str, float]:
        """The blocks that go one after the other, each with the mean loss behind it."""
        order: dict[str, float] = {}
        if self.alone is None:
            return order
        alone = self.alone.means
        losses = {name: alone[name] for name in self.skipping.allowed((), alone)} if count else {}
        while losses:
            least = min(losses, key=losses.__getitem__)
            order[least] = losses[least]
            if len(order) == count:
                break
            stage(f"skip {len(order) + 1} blocks")
            left = [name for name in alone if name not in order]
            models = MeanLosses(self.skipping.further(tuple(order), left), self.alone.loss, self.evaluation)
            for batch in batches if models.models else ():
                models.add(batch)
            losses = models.means
        return order

    def scores(self, order: Mapping[str, float]) -> Scores:
        """The scores, behind the last batch."""
        alone = self.alone.means if self.alone is not None else {}
        named = {block.name: repeat.name for repeat in self.found.repeats for block in repeat.blocks}
        blocks = [self._block_score(name, repeat, alone.get(name), order) for name, repeat in named.items()]
        stretches = []
        if "influence" in self.asked:
            for names, statistics in self.statistics.items():
                for (first, last), alike in sorted(statistics.alike.items()):
                    if first < last and (influence := alike.influence) is not None:
                        ends = names[first], names[last]
                        stretches.append(StretchScore(named[ends[0]], *ends, last - first + 1, influence))
        mean = None if self.loss is None else self.total / self.samples
        return Scores(tuple(blocks), tuple(stretches), self.samples, tuple(self.asked), mean)

    def _block_score(self, name: str, repeat: str, loss: float | None, order: Mapping[str, float]) -> BlockScore:
        scores: dict[str, tuple[float | None, str]] = {}
        if "loss" in self.asked:
            scores["loss"] = loss, self.skipping.refusals.get(name, "the loss without it is no finite number")
        for names, statistics in self.statistics.items():
            if name in names:
                number = names.index(name)
                alike, sensitive = statistics.alike[number, number], statistics.sensitive[number]
                idle = alike.reason or "the model does not run it on these data"
                scores["influence"] = alike.influence, idle
                scores["change"] = alike.change, idle if alike.influence is None else "all that enters it is zero"
                scores["gradient"] = sensitive.gradient, sensitive.reason or idle
        values: dict[str, Any] = {kind: scores[kind][0] for kind in self.asked}
        reasons: dict[str, str] = {kind: scores[kind][1] for kind in self.asked if scores[kind][0] is None}
        rank = list(order).index(name) + 1 if name in order else None
        return BlockScore(name, repeat, **values, greedy_rank=rank, greedy_loss=order.get(name), reasons=reasons)


def _tell_each(notes: Sequence[Callable[[Any], None]], value: Any) -> None:
    for note in notes:
        note(value)


def _asked(kinds: Sequence[Kind], loss: Loss | None, greedy: int) -> tuple[Kind, ...]:
    """The kinds that were asked for, in the order of the table."""
    require_function("loss", loss)
    require_items("kinds", kinds or None, str, f"some of {', '.join(KINDS)}, in a tuple")
    unknown = next((kind for kind in kinds if kind not in KINDS), None)
    if unknown is not None:
        raise BadInput(f"no score {unknown!r}{close_matches(unknown, KINDS)}; known are {', '.join(KINDS)}")
    needs = next((kind for kind in ("gradient", "loss") if kind in kinds), None)
    if needs is not None and loss is None:
        raise BadInput(
            f"the score {needs} needs a loss; give loss=f(outputs, targets), and batches of pairs (inputs, targets)"
        )
    require_number("greedy", greedy, least=0)
    if greedy and "loss" not in kinds:
        raise BadInput(f"greedy is {greedy}; give 'loss' among the kinds, by which blocks go")
    return tuple(kind for kind in KINDS if kind in kinds)


def _captured(given: CapturedParts | fx.GraphModule) -> CapturedParts:
    require_ordinary_tensors()
    if isinstance(given, CapturedParts):
        return given
    if hasattr(given, "captured_parts"):
        raise BadInput(
            f"score_blocks takes a model whose blocks are there, and this is {in_words(given)}; "
            "give result.captured_parts"
        )
    require_module("score_blocks", given, graph=True)
    return CapturedParts.of_graph(given, ExampleInputs())


def _found(captured: CapturedParts, repeats: Sequence[Repeat] | None) -> ModelRepeats:
    """The parts of a model, with the repeats whose blocks are scored."""
    words = "score_blocks takes for repeats what repl_fx.find_repeats(gm) returned, or some of it"
    require_kind(repeats, Sequence | None, words)
    if repeats is not None and any(isinstance(repeat, Repeat) and repeat.own for repeat in repeats):
        return find_in_parts(captured, lambda part: require_repeats(part.graph_module, _within(part, repeats)))
    found = find_in_parts(captured)
    known = {repeat.name for repeat in found.repeats}
    if not known:
        raise NothingToReplace("no repeated blocks were found, so that there are none to score")
    if repeats is None:
        return found
    if not repeats or not all(isinstance(repeat, Repeat) for repeat in repeats):
        raise BadInput(words)
    wanted = {repeat.name for repeat in repeats}
    if not wanted <= known:
        raise BadInput(
            f"no repeat {sorted(wanted - known)[0]!r}; the repeats of this model are {', '.join(sorted(known))}"
        )
    return ModelRepeats(captured, tuple(_with(part, wanted) for part in found))


def _within(part: Part, repeats: Sequence[Repeat]) -> list[Repeat]:
    """Those of some repeats that are of the graph of a part."""
    return [repeat for repeat in repeats if repeat.blocks[0].nodes[0].graph is part.graph_module.graph]


def _with(part: PartRepeats, wanted: Collection[str]) -> PartRepeats:
    """A part with some of its repeats, by the names that they have in the model."""
    kept = [both for both in zip(part.inside, part.repeats, strict=True) if both[1].name in wanted]
    return PartRepeats(part.path, part.graph_module, tuple(a for a, _ in kept), tuple(b for _, b in kept))
