"""Fit the surrogates of a rewritten model to the original, in closed form, on calibration data.

    original   … [block] -> y                        y: what came out of the block
    rewritten  … x -> [surrogate of theta] -> v(theta)

One surrogate after another, in program order, each on the activations of the network as it is by then. Its numbers
theta, of which v is an affine function, become those for which v is closest to y. Where more than additions follow (a
ReLU, a norm), v and y are the last values before that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor, fx

from repl_fx.arguments import require_kind, require_number, require_ordinary_tensors
from repl_fx.display.progress import shown, tell
from repl_fx.errors import BadInput
from repl_fx.fitting.channel_terms import ChannelFit
from repl_fx.fitting.fitted import Fit, FittedSurrogate
from repl_fx.fitting.last_layer import LayerFit, layer_of
from repl_fx.fitting.maps import MapFit, require_objective
from repl_fx.fitting.networks import Network, NetworkPair
from repl_fx.fitting.norm_statistics import ChannelStatistics, Distance
from repl_fx.fitting.solving import ridge_for
from repl_fx.fitting.stand_ins import GraphStandIn, silence_, stand_ins
from repl_fx.fitting.units import UnitMoments
from repl_fx.graph.captured import attribute
from repl_fx.rewriting.in_place.judging import parting
from repl_fx.rewriting.result import TransformResult
from repl_fx.running.batches import Batches, Given
from repl_fx.running.opaque_outputs import all_finite
from repl_fx.surrogates.shared.cut_layers import cut_layers, readers_of
from repl_fx.surrogates.shared.fitted_starts import ChannelTerms, KeptUnits, LastLayer, WholeMap

_Sums = ChannelFit | LayerFit
_Stage = tuple[_Sums, fx.Node, Distance]
_ROUNDING = 1e-4


class NothingToFit(BadInput):
    """No surrogate of a result can be fitted."""


@shown("fit")
def fit(
    result: TransformResult,
    batches: Given,
    *,
    held_out: Given | None = None,
    ridge: float | None = None,
    objective: str = "least-squares",
) -> Fit:
    """Fit the surrogates to the original network, which has its trained weights.

    Of the surrogates' own parameters in `result`, which its model in place and its graph share, those are set that the
    output is affine in (docs/fits.md), and the statistics of their own batch norms; nothing else changes.

    Args:
        result: of `transform`.
        batches: example inputs of a few hundred samples, batch by batch: a collection that can be gone through several
            times, or a function that returns one. A batch is what the model takes: a tensor, a tuple of positional
            inputs, or a mapping of keyword inputs; or a pair of that and targets, for a model of one argument.
        held_out: likewise, of other samples, on which each fitted surrogate is measured too.
        ridge: draws a surrogate to where it starts, as a share of the mean variance of its channels (`linear`) or of
            each number's own influence; chosen by default.
        objective: `least-squares`, or `cosine` for the least cosine distance, of the maps of `linear` alone.

    Returns:
        What was fitted, with the distance from the original before and after, and why the rest was not.

    Raises:
        NothingToFit: nothing in the result can be fitted.
        BadInput: a batch that the model does not take, or whose activations are no numbers; no batches; an unknown
            objective; a model in place that computes otherwise than its graph afterwards.
    """
    require_kind(result, TransformResult, "fit takes what transform returned, with the original in it")
    require_objective(objective)
    if ridge is not None:
        require_number("ridge", ridge, Real, 0)
    require_ordinary_tensors()
    surrogates = list(stand_ins(result))
    if all(stand_in.reason for stand_in in surrogates):
        why = "; ".join(dict.fromkeys(f"{stand_in.surrogate}: {stand_in.reason}" for stand_in in surrogates))
        raise NothingToFit(f"nothing in the result can be fitted ({why}); transform the model with another surrogate")
    given = _lasting(result, batches, "batches")
    other = None if held_out is None else _lasting(result, held_out, "held_out")
    fitting = _Fitting(result, surrogates, given, other, ridge, objective)
    with torch.no_grad():
        fitted = Fit(tuple(fitting.fit(stand_in, number) for number, stand_in in enumerate(surrogates)))
    placed = result.in_place.model
    if placed is not None and (differs := parting(placed, result.module, ([result.inputs], False))):
        raise BadInput(f"the model in place is not its graph any more: {differs}; take result.graph_module")
    if not any(surrogate.rows for surrogate in fitted.surrogates):
        raise NothingToFit(f"nothing in the result was fitted; {'; '.join(map(str, fitted.surrogates))}")
    return fitted


def _lasting(result: TransformResult, batches: Given, name: str) -> Batches:
    given = Batches(batches, result.module)
    if not given.lasting:
        raise BadInput(f"{name} can be gone through once, and every surrogate takes a pass; give a list, or a function")
    return given


class _Fitting:
    """The fits of all surrogates of a result."""

    def __init__(
        self,
        result: TransformResult,
        surrogates: list[GraphStandIn],
        batches: Batches,
        held_out: Batches | None,
        ridge: float | None,
        objective: str,
    ) -> None:
        captured = {part.path: part.graph_module for part in result.captured_parts.parts}
        self._networks = NetworkPair(Network(result, {**captured, **result.one_by_one}), Network(result, captured))
        self._captured, self._count = captured, len(surrogates)
        self._batches, self._held_out, self._ridge, self._objective = batches, held_out, ridge, objective

    def fit(self, stand_in: GraphStandIn, number: int) -> FittedSurrogate:
        """Fit one surrogate, with so many behind it; where that fails it is as before."""
        tell(stand_in.block, number, self._count)
        if stand_in.reason:
            return FittedSurrogate(stand_in.block, stand_in.surrogate, left=stand_in.reason)
        kept = [(module, {k: v.clone() for k, v in module.state_dict().items()}) for module in stand_in.modules]
        known: dict[str, Any] = {}
        node, first = stand_in.starts[0]
        try:
            known = self._map(stand_in, node, first.merged) if isinstance(first, WholeMap) else self._numbers(stand_in)
        finally:
            if not known.get("numbers"):
                for module, state in kept:
                    module.load_state_dict(state)
        return FittedSurrogate(stand_in.block, stand_in.surrogate, **known)

    def _map(self, stand_in: GraphStandIn, node: fx.Node, merged: bool) -> dict[str, Any]:
        sums = MapFit(stand_in.graph, node, merged, self._objective)
        for ours, wanted in self._pairs(stand_in, sums.given, [stand_in.last]):
            sums.add(ours, wanted[stand_in.last])
        return sums.solve(self._ridge) | self._lost(stand_in, sums.axis)

    def _numbers(self, stand_in: GraphStandIn) -> dict[str, Any]:
        """Fit the numbers of a surrogate, call by call; returns what is known of it, by the names of the result."""
        left, numbers, rows, ridge = list[str](), 0, 0, 0.0
        before: Distance | None = None
        if stand_in.kept_units is not None:
            # Never silent: as it starts.
            before = self._distance(stand_in, stand_in.kept_units.hidden[0].axis)
        for node, start in stand_in.starts if before is None else ():
            silence_(stand_in.graph.get_submodule(str(node.target)), start)
        for node, known in stand_in.in_order:
            if known is None:
                self._normalise(stand_in, node)
                continue
            if isinstance(known, KeptUnits):
                rows = self._keep_units(stand_in, node, known)
                numbers += sum(units.count for units in known.hidden)
                continue
            assert not isinstance(known, WholeMap)  # which is fitted alone
            stage = self._stage(stand_in, node, known)
            if isinstance(stage, str):
                left.append(stage)
                continue
            sums, _, distance = stage
            ridge = ridge_for(sums.rows, sums.features) if self._ridge is None else self._ridge
            values = sums.solve(ridge)
            module = stand_in.graph.get_submodule(str(node.target))
            for name, value in values.items():
                module.get_parameter(name).copy_(value)
            before = before or distance
            numbers, rows = numbers + sums.numbers, max(rows, sums.rows)
        if before is None:
            return {"left": "; ".join(dict.fromkeys(left))}
        lost = self._lost(stand_in, before.axis)
        after = lost["after"]
        # One that was fitted before moves by its rounding.
        if after > before.share * (1 + _ROUNDING):
            why = f"fitted, {after:.3f} of the variance would be lost, more than {before.share:.3f} without"
            return {"rows": rows, "left": why}
        lost |= {"before": before.share, "left": "; ".join(dict.fromkeys(left))}
        return {"numbers": numbers, "rows": rows, "ridge": ridge, **lost}

    def _stage(self, stand_in: GraphStandIn, node: fx.Node, start: ChannelTerms | LastLayer) -> _Stage | str:
        """The sums of a fit, with where it was made and the distance before it; or why nothing is fitted."""
        if isinstance(start, LastLayer) and layer_of(stand_in.graph, node, start) is None:
            return "its last layer is of a kind whose input is not known"
        candidates = stand_in.points[node, start]
        while candidates:
            chosen: _Stage | None = None
            wanted = [*stand_in.outputs.values(), *(stand_in.original[point] for point in candidates)]
            for ours, theirs in self._pairs(stand_in, stand_in.watched, wanted):
                if chosen is None:
                    affine = next(_affine(stand_in, node, start, candidates, ours), None)
                    if affine is None:
                        return f"what follows {node.target} is not linear"
                    chosen = *affine, Distance(affine[0].axis)
                elif not chosen[0].affine(ours):
                    # Such as a clamp that this batch reaches; nearer points may be before it.
                    candidates = [point for _, point in _affine(stand_in, node, start, candidates, ours)]
                    break
                sums, point, distance = chosen
                sums.add(ours, _like(theirs[stand_in.original[point]], ours[point]))
                for output, original in stand_in.outputs.items():
                    distance.add(ours[output], theirs[original])
            else:
                assert chosen is not None  # there are batches
                return chosen
        return f"what follows {node.target} is not linear"

    def _keep_units(self, stand_in: GraphStandIn, node: fx.Node, start: KeptUnits) -> int:
        """Choose hidden units by what they are in the original; returns how many rows there were."""
        captured = self._captured[stand_in.part]
        moments = [UnitMoments() for _ in start.hidden]
        for _, theirs in self._pairs(stand_in, [], stand_in.hidden):
            for some, units, value in zip(moments, start.hidden, stand_in.hidden, strict=True):
                some.add(theirs[value], units.axis)
        read: Any = partial(attribute, captured)
        chosen = []
        for number, (some, units) in enumerate(zip(moments, start.hidden, strict=True)):
            shifted = all(layer.bias is not None for layer in start.layers if layer.columns == number)
            readers = readers_of(start, number, read)
            chosen.append(some.choose(readers, units.count, shifted=shifted, group=units.group))
        module = stand_in.graph.get_submodule(str(node.target))
        for name, parameter in cut_layers(start.layers, read, chosen).items():
            module.get_parameter(name).copy_(parameter)
        for vector in start.vectors:
            attribute(stand_in.graph, vector.path).copy_(read(vector.of)[chosen[vector.units].units])
        return max(some.rows for some in moments)

    def _normalise(self, stand_in: GraphStandIn, node: fx.Node) -> None:
        """Give a batch norm of the surrogate's own the statistics of the data."""
        given = node.args[0]
        assert isinstance(given, fx.Node)
        statistics = ChannelStatistics()
        for ours, _ in self._pairs(stand_in, [given], []):
            statistics.add(ours[given])
        statistics.set_(stand_in.graph.get_submodule(str(node.target)))

    def _lost(self, stand_in: GraphStandIn, axis: int) -> dict[str, Any]:
        """The distances from the original with the finished surrogate, by the names of the result."""
        other = None if self._held_out is None else self._distance(stand_in, axis, self._held_out).share
        return {"after": self._distance(stand_in, axis).share, "held_out": other}

    def _distance(self, stand_in: GraphStandIn, axis: int, batches: Batches | None = None) -> Distance:
        distance = Distance(axis)
        for ours, theirs in self._pairs(stand_in, stand_in.ends, list(stand_in.ends.values()), batches):
            for output, original in stand_in.ends.items():
                distance.add(ours[output], theirs[original])
        return distance

    def _pairs(
        self,
        stand_in: GraphStandIn,
        ours: Collection[fx.Node],
        theirs: Collection[fx.Node],
        batches: Batches | None = None,
    ) -> Iterator[tuple[dict[fx.Node, Any], dict[fx.Node, Any]]]:
        """The values of both networks, batch by batch.

        Raises:
            BadInput: see `Batches`; and where values are no numbers.
        """
        looked_at = (
            stand_in.watched | {node for node, _ in stand_in.in_order},
            stand_in.compared,
        )
        for number, batch in enumerate(batches or self._batches):
            key = (batches is not None, number)
            computed, wanted = self._networks.values(key, batch, looked_at, (ours, theirs))
            for value in (*computed.values(), *wanted.values()):
                if isinstance(value, Tensor) and value.is_floating_point() and not all_finite(value):
                    what = f"the stream at {stand_in.block} is NaN or infinite in {batch.where}"
                    raise BadInput(f"{what}; look at its inputs")
            yield computed, wanted


def _affine(
    stand_in: GraphStandIn,
    node: fx.Node,
    start: ChannelTerms | LastLayer,
    points: Sequence[fx.Node],
    values: Mapping[fx.Node, Any],
) -> Iterator[tuple[_Sums, fx.Node]]:
    """The points at which the value is affine in what is fitted, the best first."""
    for point in points:
        sums: _Sums
        if isinstance(start, LastLayer):
            sums = LayerFit(stand_in.graph, node, start, point)
        else:
            sums = ChannelFit(stand_in.graph, node, start, point)
        if sums.affine(values):
            yield sums, point


def _like(wanted: Tensor, ours: Tensor) -> Tensor:
    """The part of a value of the original that a value with fewer channels stands for."""
    for axis, (size, part) in enumerate(zip(wanted.shape, ours.shape, strict=True)):
        if size != part:
            wanted = wanted.narrow(axis, 0, part)
    return wanted
