"""The weights and constants of an ONNX file beside those of a module.

A file whose graph is that of a fresh export is compared place by place: what its nodes read has to be what theirs
read, whatever it is called. Where another exporter or a tool has made the graph over, each tensor of the file is traced
to one of the module, or of the fresh export: by its values, transposed or in another shape, in the precision of the
file; a quantised one by what it stands for. One that only resembles a tensor of the module is altered.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, fx, nn

from repl_fx.errors import ExportError, foreign_code, listed, one_line
from repl_fx.export.pairing import MARK, constants_of, pair_graphs
from repl_fx.export.weight_difference import Array, Arrays, WeightDifference, difference_of, is_floating, is_of, same
from repl_fx.export.weight_sources import Sources, dequantised
from repl_fx.graph.kinds import dtype_name
from repl_fx.graph.state import named_tensors

_OTHER_GRAPH = "its graph is not that of a fresh export"


@dataclass(frozen=True)
class WeightComparison:
    """The comparison of weights; true when none was altered.

    Attributes:
        equal: how many tensors and constants of the file are the module's.
        altered: those that are not.
        unmatched: names of those that no tensor of the module explains, which the outputs alone speak for.
        in_place: whether the file has the graph of a fresh export, so that each was compared in its place.
        note: where it has not, the first difference.
    """

    equal: int = 0
    altered: tuple[WeightDifference, ...] = ()
    unmatched: tuple[str, ...] = ()
    in_place: bool = True
    note: str = ""

    def __bool__(self) -> bool:
        return not self.altered

    def __str__(self) -> str:
        if self.altered:
            text = f"weights in the file that are not the module's: {listed(self.altered)}"
        else:
            text = f"{self.equal} weights and constants are the module's"
        if self.unmatched:
            number = len(self.unmatched)
            text += f"; {number} that cannot be matched, for which the outputs alone speak: {listed(self.unmatched)}"
        return f"{text}; {self.note}" if self.note else text


def read_model(file: Path) -> ir.Model:
    """Read an ONNX file; its weights are read as they are asked for.

    Raises:
        ExportError: it is in another format than ONNX's own.
    """
    with foreign_code(lambda problem: ExportError(f"the weights of {file} cannot be read: {one_line(problem)}")):
        return ir.load(file)


def compare_weights(found: ir.Model, fresh: ir.Model | None, module: nn.Module, folded: nn.Module) -> WeightComparison:
    """Compare the weights and constants of a file with those of a module.

    Args:
        found: the file.
        fresh: an export of the module as it is now; None where it cannot be exported.
        module: on the CPU.
        folded: the same, with its surrogates folded.
    """
    state = _state_of(module)
    if fresh is None:
        return replace(_traced(found, _state_of(folded), state), in_place=False)
    made = constants_of(fresh)
    pairs = pair_graphs(found, fresh)
    if pairs.obstacle:
        return replace(_traced(found, made, state), in_place=False, note=f"{_OTHER_GRAPH}: {pairs.obstacle}")
    # The same exporter, for inputs of the same kinds, writes the same to the letter.
    ours = found.metadata_props.get(MARK) == fresh.metadata_props.get(MARK) and pairs.same_inputs
    altered: dict[str, WeightDifference] = {}
    equal = set()
    # They were paired from the end.
    for name, theirs, source, wanted in reversed(pairs.values):
        value, expected = np.asarray(theirs), np.asarray(wanted)
        difference = difference_of(name, source, value, expected, computed=not is_of(state, source, expected))
        if difference is None:
            equal.add(name)
        elif ours or is_floating(expected) or source in state:
            altered.setdefault(name, difference)
        else:
            # Sizes and axes may be written in several ways.
            note = f"{_OTHER_GRAPH}: {name} is {_shown(value)}, not {_shown(expected)}"
            return replace(_traced(found, made, state), in_place=False, note=note)
    rest = _traced(found, made, state, {*equal, *altered})
    listed = sorted((*altered.values(), *rest.altered), key=lambda one: one.source not in state)
    return WeightComparison(len(equal - altered.keys()) + rest.equal, tuple(listed), rest.unmatched)


def with_weights(gm: fx.GraphModule, weights: Arrays, fresh: Arrays) -> fx.GraphModule:
    """Put the weights of a file into a copy of a graph.

    Args:
        gm: a folded graph on the CPU, which is not changed.
        weights: the values to put in.
        fresh: the graph's own weights, as exported; a weight is left as it is where the exporter wrote something else
            than the graph has.

    Returns:
        The copy, or the graph itself when there is nothing to put in.
    """
    if not weights:
        return gm
    result = copy.deepcopy(gm)
    state = named_tensors(result)
    for name, value in weights.items():
        if name in state and _holds(state[name], fresh[name]) and value.shape == fresh[name].shape:
            # The same tensor object, so that weights that are tied stay tied.
            state[name].data = torch.from_numpy(value.astype(fresh[name].dtype))
    return result


def _traced(found: ir.Model, fresh: Arrays, state: Arrays, known: Collection[str] = ()) -> WeightComparison:
    """Trace the floating tensors of a file, but for those that are known, to tensors of the module."""
    sources = Sources(fresh, state)
    left, equal, altered, unmatched = {}, 0, [], []
    for name, value in constants_of(found).items():
        if name in known or not (is_floating(value) or name in state):
            continue
        if sources.equals(name, value):
            equal += 1
        else:
            left[name] = value
    meant = dict(dequantised(found))
    for name, value in {**left, **{name: value for name, (value, _) in meant.items()}}.items():
        step = meant[name][1] if name in meant else None
        explained, difference = sources.explain(name, value, step)
        if difference is not None:
            altered.append(difference)
        elif explained:
            equal += 1
        else:
            unmatched.append(name)
    return WeightComparison(equal, tuple(altered), tuple(unmatched))


def _state_of(module: nn.Module) -> dict[str, Array]:
    state = named_tensors(module).items()
    return {name: ir.tensor(value.detach()).numpy() for name, value in state if not value.is_complex()}


def _holds(tensor: Tensor, array: Array) -> bool:
    # Of the kinds that numpy itself has: bfloat16 is no kind of float to it.
    return (
        dtype_name(tensor.dtype) == array.dtype.name
        and array.dtype.kind in "biuf"
        and same(tensor.detach().numpy(), array)
    )


def _shown(array: Array) -> str:
    return str(array.tolist()) if array.size <= 8 else f"of shape {list(array.shape)}"
