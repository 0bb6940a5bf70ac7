"""Fit the linear maps of a rewritten model to the original, in closed form, on calibration data.

    original   … blocks.3 -> y                       y: what came out of the last block of the stretch
    rewritten  … x -> linear -> …                    x: what goes into the map now, behind the maps fitted before

A merged map is of a part m of the stream alone: what it makes of m has to be m + y - x.

One map after another, in program order, each on the activations of the network as it is by then; each takes one pass of
both networks over the data. What is kept of the data is two matrices of the size of the map.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, fx

from repl_fx.errors import BadInput
from repl_fx.fitting.moments import Moments
from repl_fx.fitting.solving import solve
from repl_fx.graph.recording import watched
from repl_fx.graph.roles import ADDITIONS
from repl_fx.pipeline import TransformResult
from repl_fx.planning.part_repeats import part_of
from repl_fx.running.batches import Batch, Batches, Evaluation, Given
from repl_fx.running.untouched import device_of, in_mode
from repl_fx.surrogates.linear import MergedSynthesis, StreamMap
from repl_fx.tracing.parts.capture import qualified_name


@dataclass(frozen=True)
class FittedMap:
    """One map that was fitted.

    Attributes:
        block: the block that it stands for, the last of its stretch.
        rows: positions of all samples that it was fitted on.
        ridge: see `repl_fx.fitting.solving`; 0.01 where there were too few rows for a full map.
        before, after: the mean squared distance of the stream behind the stretch from that of the original, by its
            variance: with nothing in place of the stretch, and with the map.
    """

    block: str
    rows: int
    ridge: float
    before: float
    after: float

    def __str__(self) -> str:
        return (
            f"{self.block}: {self.before:.3f} of the variance was lost, {self.after:.3f} is with the map "
            f"({self.rows:,} rows, ridge {self.ridge:g})"
        )


@dataclass(frozen=True)
class Fit:
    """The maps that were fitted, in program order."""

    maps: tuple[FittedMap, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.maps))


def fit(result: TransformResult, batches: Given, *, ridge: float | None = None) -> Fit:
    """Fit the maps of `linear` to the original network, which has its trained weights.

    The parameters of the maps in `result`, which its model in place and its graph share, are set; nothing else changes.

    Args:
        result: of `transform` with the surrogate `linear`.
        batches: example inputs of a few hundred samples, batch by batch, without targets: a collection that can be gone
            through several times, or a function that returns one. A batch is what the model takes: a tensor, a tuple of
            positional inputs, or a mapping of keyword inputs.
        ridge: draws a map to the identity, as a fraction of the mean variance of its channels; chosen by default.

    Returns:
        What was fitted, with the distance from the original before and after.

    Raises:
        BadInput: the result has no such map; a batch that the model does not take, or whose activations are no numbers;
            or no batches.
    """
    maps = list(_maps(result))
    if not maps:
        raise BadInput("the result has no linear map to fit; transform the model with surrogate='linear'")
    given = Batches(batches, paired=False, device=device_of(result.module, result.inputs))
    if not given.lasting:
        raise BadInput("batches can be gone through once, and every map takes a pass; give a list, or a function")
    return Fit(tuple(_fit(result, one, given, ridge) for one in maps))


@dataclass(frozen=True, eq=False)
class _Map:
    """A map in a rewritten graph.

    Attributes:
        part: path of the part.
        block: the block in the model.
        module: the map.
        value: the node whose value is mapped; of a merged map, the one that has the mapped value.
        stream: the node that has the whole stream, the same one where the map is not merged.
    """

    part: str
    block: str
    module: StreamMap
    value: fx.Node
    stream: fx.Node


def _maps(result: TransformResult) -> Iterator[_Map]:
    for part in result.parts:
        for node in part.graph_module.graph.find_nodes(op="call_module", sort=True):
            module = part.graph_module.get_submodule(str(node.target))
            if isinstance(module, StreamMap):
                # The first result is the weight of the product.
                product = min(min(node.users).users)
                stream = product.args[0]
                if isinstance(module, MergedSynthesis):
                    stream = next(after for after in _following(product) if after.target in ADDITIONS)
                assert isinstance(stream, fx.Node)
                value = product if isinstance(module, MergedSynthesis) else stream
                yield _Map(part.path, qualified_name(part.path, node.meta["replaces"][0]), module, value, stream)


def _following(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes behind one whose value goes one way alone."""
    while node.users:
        (node,) = node.users
        yield node


class _Network:
    """A network that shows values of one of its graphs as it runs."""

    def __init__(
        self, result: TransformResult, graphs: Mapping[str, fx.GraphModule], path: str, nodes: Iterable[fx.Node]
    ) -> None:
        self.values: dict[fx.Node, Tensor] = {}
        notes = {node: partial(self._keep, node) for node in nodes}
        self.model = result.captured_parts.with_graphs({**graphs, path: watched(graphs[path], notes)})
        self._evaluation = Evaluation(self.model)

    def _keep(self, node: fx.Node, value: Tensor) -> None:
        # What comes later may write over it.
        self.values[node] = value.clone()

    def __call__(self, batch: Batch) -> dict[fx.Node, Tensor]:
        self.values.clear()
        self._evaluation.outputs(self.model, batch)
        return dict(self.values)


def _fit(result: TransformResult, one: _Map, batches: Batches, ridge: float | None) -> FittedMap:
    part = part_of(result.found, one.block)
    captured = {part.path: part.graph_module for part in result.captured_parts.parts}
    rewritten = {**captured, **{part.path: part.graph_module for part in result.parts}}
    wanted = part.blocks[one.block].output
    original = _Network(result, captured, one.part, [wanted])
    ours = _Network(result, rewritten, one.part, {one.value, one.stream})
    merged = isinstance(one.module, MergedSynthesis)
    before = {name: tensor.clone() for name, tensor in one.module.state_dict().items()}
    channels = len(one.module.shift)
    nothing = torch.eye(channels), torch.zeros(channels)
    if merged:
        # The value that goes into the map is the one that comes out of none.
        one.module.set_to(*nothing)
    moments = Moments(channels, one.module.shift.device)
    try:
        with in_mode(original.model, False), in_mode(ours.model, False), torch.no_grad():
            for batch in batches:
                seen, known = ours(batch), original(batch)
                x, m, y = (_rows(v, one.module) for v in (seen[one.stream], seen[one.value], known[wanted]))
                if not bool(x.isfinite().all() and y.isfinite().all()):
                    raise BadInput(f"the stream at {one.block} is NaN or infinite in {batch.where}; look at its inputs")
                m = m.reshape(x.shape)
                moments.add(m, m.double() + (y.double() - x) if merged else y, y)
        solution = solve(moments, one.module.form, one.module.rank, ridge)
    except BaseException:
        one.module.load_state_dict(before)
        raise
    one.module.set_to(solution.matrix, solution.shift)
    losses = moments.left_over(*nothing), moments.left_over(solution.matrix, solution.shift)
    return FittedMap(one.block, moments.rows, solution.ridge, *losses)


def _rows(value: Tensor, module: StreamMap) -> Tensor:
    """The stream with its channels last."""
    return value.movedim(1, -1) if module.spatial else value
