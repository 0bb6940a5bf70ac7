"""Where the tensors of an ONNX file come from, in a file whose graph is not that of a fresh export."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from repl_fx.export.pairing import constants_of
from repl_fx.export.weight_difference import Array, Arrays, WeightDifference, cast, difference_of, is_floating, is_of
from repl_fx.graph.grouping import grouped

# From where on a tensor resembles another of as many numbers: of fewer, chance is enough.
_ALIKE, _ALIKE_FROM = 0.9, 16


class Sources:
    """The tensors that those of a file may come from.

    Args:
        fresh: tensors of a fresh export.
        state: parameters and buffers of the module.
    """

    def __init__(self, fresh: Arrays, state: Arrays) -> None:
        self.state, self.fresh = state, fresh
        # Both of one name count: a weight itself, and merged with the norm behind it.
        self.arrays = [*state.items(), *(one for one in fresh.items() if not is_of(state, *one))]
        self.taken: set[str] = set()
        self._keys: dict[np.dtype[Any], dict[bytes, list[str]]] = {}

    def equals(self, name: str, value: Array) -> bool:
        """Tell whether a tensor of the file is one of these; one that has a name of the module's has to be that one."""
        if value.dtype not in self._keys:
            views = ((view, source) for source, array in self.arrays for view in _views(cast(array, value.dtype)))
            self._keys[value.dtype] = grouped((_key(view), source) for view, source in views)
        sources = self._keys[value.dtype].get(_key(value), [])
        if name in self.state and name not in sources and value.size == self.state[name].size:
            return False
        self.taken.update(sources)
        return bool(sources)

    def explain(self, name: str, value: Array, step: Array | None = None) -> tuple[bool, WeightDifference | None]:
        """Tell whether a tensor is one of these but for rounding, and how it differs from one that it resembles.

        Args:
            name, value: of the tensor of the file.
            step: of a quantised one, how far its numbers may be from what they stand for.
        """
        nearest: tuple[float, str, Array] | None = None
        for source, array in self.arrays:
            if array.size != value.size or not is_floating(array):
                continue
            for view in _views(array):
                if view.shape != value.shape and (view.ndim == value.ndim or step is not None):
                    continue
                wanted = view.reshape(value.shape)
                if step is None:
                    computed = not is_of(self.state, source, array)
                    equal = difference_of(name, source, value, wanted, computed=computed) is None
                else:
                    equal = bool((np.abs(value - wanted.astype(np.float64)) <= step).all())
                if equal:
                    return True, None
                alike = 1.0 if source == name else _likeness(value, wanted)
                if alike > _ALIKE and source not in self.taken and (nearest is None or alike > nearest[0]):
                    nearest = alike, source, wanted
        if nearest is None:
            return False, None
        return False, difference_of(name, nearest[1], value, nearest[2], computed=False)


def dequantised(model: ir.Model) -> Iterator[tuple[str, tuple[Array, Array]]]:
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
    if stored.dtype.itemsize == 1 and stored.dtype.kind in "iu":
        # Beyond the last step there is none.
        edge = np.iinfo(stored.dtype)
        step = np.where((numbers <= edge.min) | (numbers >= edge.max), np.inf, step)
    yield names[0], ((numbers - zero) * scale, step)


def _likeness(value: Array, wanted: Array) -> float:
    """The likeness of two tensors: the share of equal numbers, or their correlation, whichever is larger."""
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
