"""The weights and constants of an ONNX file beside those of a module.

A file whose graph is that of a fresh export is compared place by place: what its nodes read has to be what theirs
read, whatever it is called. Where another exporter or a tool has made the graph over, each tensor of the file is traced
to one of the module, or of the fresh export: by its values, transposed or in another shape, in the precision of the
file; a quantised one by what it stands for. One that only resembles a tensor of the module is altered.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, fx, nn

from repl_fx.errors import ExportError, ForeignError, foreign_code
from repl_fx.export.pairing import MARK, pair_graphs, tensor_of
from repl_fx.graph.kinds import dtype_name

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]

# Of a tensor that the export computes (folded surrogates, merged norms) another machine may round otherwise: each
# number by some units in its last place; or, in sums that cancel, most numbers by a fraction of the largest.
_LAST_PLACES, _OF_LARGEST, _MOST = 8, 32, 0.25
# Numbers that converters to half precision replace by the smallest that they keep.
_HALF_CLIPPED = 1.2e-7
# From where on a tensor resembles another of as many numbers: of fewer, chance is enough.
_ALIKE, _ALIKE_FROM = 0.9, 16

_OTHER_GRAPH = "its graph is not that of a fresh export"


@dataclass(frozen=True)
class WeightDifference:
    """A tensor or constant of the file that is not the module's.

    Attributes:
        name: in the file.
        source: of what it should be, in the module or a fresh export of it.
        numbers: how many it has.
        different: how many of them differ.
        max_abs: largest difference; inf where there is none to compute.
        scale: largest number that should be there.
    """

    name: str
    source: str
    numbers: int
    different: int
    max_abs: float
    scale: float

    def __str__(self) -> str:
        of = "" if self.source in (self.name, "") else f" (from {self.source})"
        return (
            f"{self.name}{of}: {self.different} of {self.numbers} numbers, by up to {self.max_abs:.2e} "
            f"at scale {self.scale:.2e}"
        )


@dataclass(frozen=True)
class Weights:
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
            text = f"weights in the file that are not the module's: {_listed(list(map(str, self.altered)))}"
        else:
            text = f"{self.equal} weights and constants are the module's"
        if self.unmatched:
            number = len(self.unmatched)
            text += f"; {number} that cannot be matched, for which the outputs alone speak: {_listed(self.unmatched)}"
        return f"{text}; {self.note}" if self.note else text


def read_model(file: Path) -> ir.Model:
    """Read an ONNX file; its weights are read as they are asked for.

    Raises:
        ExportError: it is in another format than ONNX's own.
    """
    try:
        with foreign_code():
            return ir.load(file)
    except ForeignError as failed:
        raise ExportError(f"the weights of {file} cannot be read: {failed}") from failed.problem


def compare_weights(found: ir.Model, fresh: ir.Model | None, module: nn.Module, folded: nn.Module) -> Weights:
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
        difference = _difference(name, source, value, expected, computed=not _is_of(state, source, expected))
        if difference is None:
            equal.add(name)
        elif ours or _is_floating(expected) or source in state:
            altered.setdefault(name, difference)
        else:
            # Sizes and axes may be written in several ways.
            note = f"{_OTHER_GRAPH}: {name} is {_shown(value)}, not {_shown(expected)}"
            return replace(_traced(found, made, state), in_place=False, note=note)
    rest = _traced(found, made, state, {*equal, *altered})
    listed = sorted((*altered.values(), *rest.altered), key=lambda one: one.source not in state)
    return Weights(len(equal - altered.keys()) + rest.equal, tuple(listed), rest.unmatched)


def constants_of(model: ir.Model) -> dict[str, Array]:
    """The tensors of a model by name, in the order of the file: initializers, and what nodes hold."""
    found = {}
    for graph in model.graphs():
        values = [*graph.initializers.values(), *(v for n in graph if n.op_type == "Constant" for v in n.outputs)]
        for value in values:
            tensor = tensor_of(value)
            if tensor is not None and tensor.dtype is not ir.DataType.STRING:
                found[str(value.name)] = tensor.numpy()
    return found


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
    state = {
        **dict(result.named_parameters(remove_duplicate=False)),
        **dict(result.named_buffers(remove_duplicate=False)),
    }
    for name, value in weights.items():
        if name in state and _holds(state[name], fresh[name]) and value.shape == fresh[name].shape:
            # The same tensor object, so that weights that are tied stay tied.
            state[name].data = torch.from_numpy(value.astype(fresh[name].dtype))
    return result


def _traced(found: ir.Model, fresh: Arrays, state: Arrays, known: Collection[str] = ()) -> Weights:
    """Trace the floating tensors of a file, but for those that are known, to tensors of the module."""
    sources = _Sources(fresh, state)
    left, equal, altered, unmatched = {}, 0, [], []
    for name, value in constants_of(found).items():
        if name in known or not (_is_floating(value) or name in state):
            continue
        if sources.equals(name, value):
            equal += 1
        else:
            left[name] = value
    meant = dict(_dequantised(found))
    for name, value in {**left, **{name: value for name, (value, _) in meant.items()}}.items():
        step = meant[name][1] if name in meant else None
        explained, difference = sources.explain(name, value, step)
        if difference is not None:
            altered.append(difference)
        elif explained:
            equal += 1
        else:
            unmatched.append(name)
    return Weights(equal, tuple(altered), tuple(unmatched))


class _Sources:
    """The tensors that those of a file may come from.

    Args:
        fresh: tensors of a fresh export.
        state: parameters and buffers of the module.
    """

    def __init__(self, fresh: Arrays, state: Arrays) -> None:
        self.state, self.fresh = state, fresh
        # Both of one name count: a weight itself, and merged with the norm behind it.
        self.arrays = [*state.items(), *(one for one in fresh.items() if not _is_of(state, *one))]
        self.taken: set[str] = set()
        self._keys: dict[np.dtype[Any], dict[bytes, list[str]]] = {}

    def equals(self, name: str, value: Array) -> bool:
        """Whether a tensor of the file is one of these; one that has a name of the module's has to be that one."""
        if value.dtype not in self._keys:
            keys: dict[bytes, list[str]] = {}
            for source, array in self.arrays:
                for view in _views(_cast(array, value.dtype)):
                    keys.setdefault(_key(view), []).append(source)
            self._keys[value.dtype] = keys
        sources = self._keys[value.dtype].get(_key(value), [])
        if name in self.state and name not in sources and value.size == self.state[name].size:
            return False
        self.taken.update(sources)
        return bool(sources)

    def explain(self, name: str, value: Array, step: Array | None = None) -> tuple[bool, WeightDifference | None]:
        """Whether a tensor is one of these but for rounding, and how it differs from one that it resembles.

        Args:
            name, value: of the tensor of the file.
            step: of a quantised one, how far its numbers may be from what they stand for.
        """
        nearest: tuple[float, str, Array] | None = None
        for source, array in self.arrays:
            if array.size != value.size or not _is_floating(array):
                continue
            for view in _views(array):
                if view.shape != value.shape and (view.ndim == value.ndim or step is not None):
                    continue
                wanted = view.reshape(value.shape)
                if step is None:
                    computed = not _is_of(self.state, source, array)
                    equal = _difference(name, source, value, wanted, computed=computed) is None
                else:
                    equal = bool((np.abs(value - wanted.astype(np.float64)) <= step).all())
                if equal:
                    return True, None
                alike = 1.0 if source == name else _likeness(value, wanted)
                if alike > _ALIKE and source not in self.taken and (nearest is None or alike > nearest[0]):
                    nearest = alike, source, wanted
        if nearest is None:
            return False, None
        return False, _difference(name, nearest[1], value, nearest[2], computed=False)


def _dequantised(model: ir.Model) -> Iterator[tuple[str, tuple[Array, Array]]]:
    """Quantised tensors by name: what they stand for, and how far that may be from what it was."""
    tensors, known = constants_of(model), set()
    for node in model.graph.all_nodes():
        if node.op_type == "DequantizeLinear":
            names = [str(value.name) if value is not None else "" for value in node.inputs]
            if all(name in tensors for name in names if name):
                yield from _meant(names, tensors, node.attributes.get_int("axis", 1))
                known.add(names[0])
    # As the quantizer of ONNX Runtime calls what operators on integers read.
    for name in tensors.keys() - known:
        stem, _, kind = name.rpartition("_")
        if kind == "quantized" and f"{stem}_scale" in tensors:
            axis = -1 if tensors[name].ndim == 2 else 0
            yield from _meant([name, f"{stem}_scale", f"{stem}_zero_point"], tensors, axis)


def _meant(names: Sequence[str], tensors: Arrays, axis: int) -> Iterator[tuple[str, tuple[Array, Array]]]:
    stored = tensors[names[0]]
    scale, zero = (tensors[n].astype(np.float64) if n in tensors else np.zeros(()) for n in (*names[1:], "")[:2])
    if scale.size > 1:
        if scale.ndim > 1 or stored.shape[axis] != scale.size:
            return
        shape = [-1 if a == axis % stored.ndim else 1 for a in range(stored.ndim)]
        scale, zero = scale.reshape(shape), zero.reshape(shape) if zero.size > 1 else zero
    numbers = stored.astype(np.float64)
    step = np.broadcast_to(0.501 * np.abs(scale), stored.shape)
    if stored.dtype.itemsize == 1:
        # Beyond the last step there is none.
        edge = np.iinfo(stored.dtype) if stored.dtype.kind in "iu" else None
        if edge is not None:
            step = np.where((numbers <= edge.min) | (numbers >= edge.max), np.inf, step)
    yield names[0], ((numbers - zero) * scale, step)


def _difference(name: str, source: str, value: Array, wanted: Array, *, computed: bool) -> WeightDifference | None:
    """How a tensor differs from what it should be, in its own precision; None where it does not.

    Args:
        computed: whether it is computed in the export, where machines may round otherwise.
    """
    if value.shape != wanted.shape:
        return WeightDifference(name, source, int(value.size), int(value.size), np.inf, 0.0)
    expected = _cast(wanted, value.dtype)
    if _same(value, expected):
        return None
    if value.dtype.kind in "OUS" or expected.dtype.kind in "OUS":
        return WeightDifference(name, source, int(value.size), int(value.size), np.inf, 0.0)
    theirs, ours = value.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.where((theirs == ours) | (np.isnan(theirs) & np.isnan(ours)), 0.0, np.abs(theirs - ours))
    gap = np.where(np.isnan(gap), np.inf, gap)
    if value.dtype == np.float16 and wanted.dtype != value.dtype:
        gap = np.where(gap <= _HALF_CLIPPED, 0.0, gap)
    largest = float(np.abs(ours[np.isfinite(ours)]).max(initial=0.0))
    if computed and _is_floating(expected) and _is_rounding(gap, np.abs(ours), largest, expected.dtype):
        return None
    different = int(np.count_nonzero(gap))
    if not different:
        return None
    return WeightDifference(name, source, int(value.size), different, float(gap.max()), largest)


def _is_rounding(gap: Array, sizes: Array, largest: float, dtype: np.dtype[Any]) -> bool:
    # bfloat16 has no entry among numpy's own kinds.
    last = float(np.finfo(dtype).eps) if dtype.kind == "f" else 2.0**-7
    if bool((gap <= _LAST_PLACES * last * sizes).all()):
        return True
    moved = bool(np.count_nonzero(gap) > _MOST * gap.size) and gap.size >= _ALIKE_FROM
    return moved and bool((gap <= _OF_LARGEST * last * largest).all())


def _likeness(value: Array, wanted: Array) -> float:
    """How far two tensors are alike: the share of equal numbers, or their correlation, whichever is larger."""
    if value.size < 2:
        return 0.0
    theirs, ours = value.astype(np.float64).ravel(), wanted.astype(np.float64).ravel()
    shared = float(np.mean((theirs == ours) & (ours != 0)))
    theirs, ours = theirs - theirs.mean(), ours - ours.mean()
    norms = float(np.linalg.norm(theirs) * np.linalg.norm(ours))
    enough = value.size >= _ALIKE_FROM and norms > 0
    return max(1.0 if shared >= 0.5 else 0.0, abs(float(theirs @ ours)) / norms if enough else 0.0)


def _views(array: Array) -> list[Array]:
    """A tensor as exporters may lay it out."""
    if array.ndim < 2:
        return [array]
    more = [array.swapaxes(0, 1), np.moveaxis(array, 1, -1), array.swapaxes(-1, -2)] if array.ndim > 2 else []
    return [array, array.T, *more]


def _key(array: Array) -> bytes:
    return hashlib.blake2b(
        np.ascontiguousarray(array).view(np.uint8).data if array.size else b"", digest_size=16
    ).digest()


def _cast(array: Array, dtype: np.dtype[Any]) -> Array:
    if array.dtype == dtype or not (_is_floating(array) and _is_floating(np.empty(0, dtype))):
        return array
    with np.errstate(over="ignore"):
        return array.astype(dtype)


def _is_floating(array: Array) -> bool:
    # bfloat16 is no kind of float to numpy.
    return array.dtype.kind == "f" or "float" in array.dtype.name


def _is_of(state: Arrays, name: str, array: Array) -> bool:
    return name in state and _same(state[name], array)


def _same(a: Array, b: Array) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.kind in "fc":
        return np.array_equal(a, b, equal_nan=True)
    return np.array_equal(a, b)


def _state_of(module: nn.Module) -> dict[str, Array]:
    state: dict[str, Tensor] = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    return {name: ir.tensor(value.detach()).numpy() for name, value in state.items() if not value.is_complex()}


def _holds(tensor: Tensor, array: Array) -> bool:
    # Of the kinds that numpy itself has: bfloat16 is no kind of float to it.
    return (
        dtype_name(tensor.dtype) == array.dtype.name
        and array.dtype.kind in "biuf"
        and _same(tensor.detach().numpy(), array)
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _shown(array: Array) -> str:
    return str(array.tolist()) if array.size <= 8 else f"of shape {list(array.shape)}"
