"""The attention maps of kept blocks, for surrogates in the model's own tree that mix by them.

    block 2    attention of block 2: scaled_dot_product_attention(q, k, v, mask, …)     q, k, mask, … are kept
    block 3    reuse: scaled_dot_product_attention(q, k, thin values, mask, …)          and taken

The call is seen as the kept block makes it, so a mask that the model leaves out, a causal flag, and keys from a cache
are those of this very forward pass. With a cache the thin values are kept in it too, where the removed block had its
keys and values.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from repl_fx._torch import backward_pass
from repl_fx.errors import CallRefused
from repl_fx.finding.attention import product_settings
from repl_fx.rewriting.in_place.wrapped_forward import WrappedForward, as_leaf
from repl_fx.surrogates.shared.borrowed_maps import BorrowedMap
from repl_fx.surrogates.shared.recompute import RecomputedAttention

# The arguments of `scaled_dot_product_attention` that make its map, in the order of those of an `AttentionCall`.
_OF_CALL = ("query", "key", "attn_mask", "dropout_p", "is_causal", "scale")
_PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)
# Where attention modules of transformers keep the number of their layer in a cache.
_LAYERS = ("layer_idx", "layer_id")
# On a layer of a cache: its values are known to be a surrogate's.
_OWN_VALUES = "_has_values_of_surrogate"
# The dimensions of values in a cache that stay as they are: batch, heads and features.
_KEPT = (0, 1, -1)


@dataclass(frozen=True)
class AttentionCall:
    """An attention map as it was given.

    Attributes:
        queries: (batch, heads, positions, c), or the map itself (batch, heads, positions, positions).
        keys: None for a map.
        mask, dropout, causal, scale: see `scaled_dot_product_attention`.
    """

    queries: Tensor
    keys: Tensor | None = None
    mask: Tensor | None = None
    dropout: float = 0.0
    causal: bool = False
    scale: float | None = None

    def on(self, device: torch.device) -> AttentionCall:
        """The call on a device: blocks of one model may lie on several."""
        if self.queries.device == device:
            return self
        tensors: Any = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)


class KeptCall:
    """The last attention call of a module, from its forward until a surrogate takes it.

    Args:
        source: which call it is.
        path: of the module in the model.
    """

    def __init__(self, source: BorrowedMap, path: str) -> None:
        self.source, self.path = source, path
        # By thread: the replicas of a model may run side by side.
        self._kept: dict[int, tuple[AttentionCall, int, bool]] = {}
        self._taken: Any = WeakTensorKeyDictionary()

    def keep(self, calls: Mapping[bool, list[AttentionCall]]) -> None:
        """Keep one of the calls that the module has made."""
        found, here = calls[self.source.scaled], this_thread()
        self._kept.pop(here, None)
        if len(found) == self.source.count:
            self._kept[here] = found[self.source.number], backward_pass(), torch.is_grad_enabled()

    def take(self, stream: Tensor) -> AttentionCall:
        """The call, once: one that stayed could be that of another batch.

        Args:
            stream: the input of the surrogate; where the surrogate runs on it again, as a checkpoint does in the
                backward pass, the call is the same.

        Raises:
            CallRefused: the module has not run since, or has run without gradients that are wanted now.
        """
        known: AttentionCall | None = self._taken.get(stream) if backward_pass() >= 0 else None
        if known is not None:
            return known
        call, made_in, with_gradients = self._kept.pop(this_thread(), (None, 0, True))
        if call is None and backward_pass() >= 0:
            raise CallRefused(
                f"a surrogate that mixes by the attention map of {self.path} is computed again in the backward pass, "
                "on a copy of its input; checkpoint with use_reentrant=False"
            )
        if call is None or made_in != backward_pass():
            kind = "scaled_dot_product_attention" if self.source.scaled else "matmul"
            raise CallRefused(
                f"a surrogate mixes by the attention map of {self.path}, which has made none by {kind} since, "
                "as it did when the model was captured; run the blocks in the model's order, and do not change how the "
                "model computes attention"
            )
        if torch.is_grad_enabled() and not with_gradients and stream.requires_grad:
            raise CallRefused(
                f"a surrogate mixes by the attention map of {self.path}, which was made without gradients; checkpoint "
                "with use_reentrant=False"
            )
        call = call.on(stream.device)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._taken[stream] = call
        return call

    def __getstate__(self) -> dict[str, Any]:
        # A call belongs to one forward pass of one process.
        return {"source": self.source, "path": self.path}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def this_thread() -> int:
    """The thread that runs; a trace has none."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


class WatchedForward(WrappedForward):
    """The forward of an attention module, whose calls are kept for those who take them; see `watch`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.readers: list[KeptCall] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if (node := as_leaf(self.module, args, kwargs)) is not None:
            return node
        calls: dict[bool, list[AttentionCall]] = {True: [], False: []}
        # Handed in: torch.compile does not give back the mode that it enters.
        with _Watch(calls):
            result = self.run(*args, **kwargs)
        for reader in self.readers:
            reader.keep(calls)
        return result


def watch(module: nn.Module, reader: KeptCall) -> None:
    """Let a reader keep the attention calls of a module from now on."""
    watched = WatchedForward.on(module) or WatchedForward.put_on(module)
    watched.readers.append(reader)


class _Watch(TorchFunctionMode):
    """Notes the attention calls that are made meanwhile; those of the fused operator under True."""

    def __init__(self, calls: Mapping[bool, list[AttentionCall]]) -> None:
        super().__init__()
        self.calls = calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            product = product_settings(args, kwargs or {})
            self.calls[True].append(AttentionCall(*[product[name] for name in _OF_CALL]))
        elif func in _PRODUCTS:
            self.calls[False].append(AttentionCall(args[0]))
        return func(*args, **(kwargs or {}))


class BorrowedAttention:
    """A layer that mixes thin values by a map that a kept block makes.

    Args:
        layer: the layer as it is in the graph.
        kept: the calls that the map comes from.
        block: path of the block that the layer is in.
        index: the number of the removed block in a cache; None where it has none.
    """

    def __init__(self, layer: RecomputedAttention, kept: KeptCall, block: str, index: int | None) -> None:
        self.kept, self.block, self.index = kept, block, index
        self._layers = {(layer.form.causal, layer.form.scale): layer}

    def mix(
        self,
        arguments: Mapping[str, Any],
        stream: Tensor,
        x: Tensor,
        weight_in: Tensor,
        weight_out: Tensor,
        bias_in: Tensor | None = None,
        bias_out: Tensor | None = None,
    ) -> Tensor:
        """Do what `RecomputedAttention` does, with the map of this forward pass.

        Args:
            arguments: those of the block, by name; a cache among them is read and filled.
            stream: that of the block among them.
            x, weight_in, weight_out, bias_in, bias_out: see `RecomputedAttention`.
        """
        call, x = self.kept.take(stream), as_precise(x, stream)
        layer, given = self._layer(call), self._given(call, x)
        cache, keys = _cache_in(arguments), given[0] if call.keys is None else given[1]
        reach = keys.shape[-1] if call.keys is None else keys.shape[-2]
        batch = call.queries.shape[0]
        if cache is None:
            if reach * batch * x.shape[-1] != x.numel():
                raise CallRefused(
                    f"{self.kept.path} attends to {reach} positions, and the surrogate of {self.block} has values of "
                    f"{x.numel() // x.shape[-1] // batch}; run without a cache, or with a dynamic or static one of "
                    "transformers (generate, and not generate_batch)"
                )
            mixed: Tensor = layer(x, weight_in, weight_out, bias_in, bias_out, *given)
            return mixed
        if self.index is None:
            raise CallRefused(f"the surrogate of {self.block} has no place in a {type(cache).__name__}; run without")
        length = cache.get_seq_length(self.index)
        # A cache of fixed size counts in a tensor, which a trace cannot ask.
        asked = not (isinstance(length, Tensor) and torch.compiler.is_compiling())
        first = asked and reach * batch * x.shape[-1] == x.numel() and bool(length == 0)
        if first:
            # As without a cache, to the last bit of the gradients.
            mixed, n = layer.with_normalised(x, weight_in, weight_out, bias_in, bias_out, *given)
        else:
            n = layer.normalised(x)[0]
        thin = F.linear(n, weight_in.to(n.dtype), bias_in if bias_in is None else bias_in.to(n.dtype))
        values = layer.values(thin, batch, call.queries.shape[-2])
        kept = self._as_kept(cache, values)
        known: Tensor = cache.update(kept, kept, self.index)[1]
        if first:
            return mixed
        known = known[:, : values.shape[1], :reach, : values.shape[-1]]
        return F.linear(layer.mix(known, thin.shape, *given), weight_out, bias_out)

    def _as_kept(self, cache: Any, values: Tensor) -> Tensor:
        """The thin values as the cache keeps them: padded where it has room for the removed block's already.

        Raises:
            CallRefused: keys and values of another model are there. The surrogate puts the same for both.
        """
        layer = _layer_in(cache, self.index)
        keys, known = (getattr(layer, name, None) for name in ("keys", "values"))
        if not (isinstance(keys, Tensor) and isinstance(known, Tensor) and keys.numel()):
            return values
        more = [keys.shape[i] - values.shape[i] for i in _KEPT]
        if hasattr(layer, "max_cache_len") and more[0] == 0 and min(more) >= 0:
            values, more = F.pad(values, (0, more[2], 0, 0, 0, more[1])), [0]
        known_own = torch.compiler.is_compiling() or getattr(layer, _OWN_VALUES, False)
        # Asked once: on a GPU, an answer from values waits for all that runs there.
        if any(more) or not (known_own or torch.equal(keys[..., :1, :], known[..., :1, :])):
            raise CallRefused(
                f"the cache has keys and values of another model in layer {self.index}, where the surrogate of "
                f"{self.block} keeps its own; start with an empty cache, without prefixes such as those of PEFT"
            )
        if not known_own:
            setattr(layer, _OWN_VALUES, True)
        return values

    def _layer(self, call: AttentionCall) -> RecomputedAttention:
        key = call.causal, call.scale
        if key not in self._layers:
            like = next(iter(self._layers.values()))
            form = replace(like.form, causal=call.causal, scale=call.scale)
            self._layers[key] = RecomputedAttention(like.norm, like.eps, like.heads, form)
        return self._layers[key]

    def _given(self, call: AttentionCall, x: Tensor) -> tuple[Any, ...]:
        """The map of the heads that the layer has, as `RecomputedAttention` is given it."""
        source, queries, mask = self.kept.source, call.queries, call.mask
        # An empty batch has as many as there are queries.
        positions = x.numel() // x.shape[-1] // queries.shape[0] if queries.shape[0] else queries.shape[-2]
        if queries.shape[-2] != positions:
            # The queries that share keys may lie where positions do, where there is one position.
            if positions != 1 or queries.shape[-2] * queries.shape[1] != source.queries.total:
                raise CallRefused(
                    f"{self.kept.path} asks from {queries.shape[-2]} positions, and the surrogate of {self.block} has "
                    f"{positions}"
                )
            queries = queries[..., :1, :]
            mask = mask if mask is None or mask.shape[-2] == 1 else mask[..., :1, :]
        if call.keys is None:
            return (source.queries.of(queries),)
        if mask is not None and mask.ndim > 2 and mask.shape[-3] != 1:
            mask = source.queries.of(mask if mask.ndim > 3 else mask.unsqueeze(0))
        return source.queries.of(queries), source.keys.of(call.keys), mask, call.dropout


def as_precise(value: Tensor, given: Tensor) -> Tensor:
    """A value in the precision of the argument whose it was in the trace.

    A block that ends a norm in `x.to(hidden.dtype)` was traced with the one precision, which a model that is converted
    afterwards has no more. (Under autocast the precisions of a block's values differ by themselves.)
    """
    if value.dtype == given.dtype or torch.is_autocast_enabled(given.device.type):
        return value
    return value.to(given.dtype)


def layer_index(block: nn.Module) -> int | None:
    """The number of a block in a cache of transformers, None where its modules do not name one."""
    found = {vars(module).get(name) for module in block.modules() for name in _LAYERS} - {None}
    number = found.pop() if len(found) == 1 else None
    return number if isinstance(number, int) else None


def count_positions(arguments: Mapping[str, Any], index: int, results: Sequence[Any]) -> None:
    """Keep keys and values without heads where a cache is to be cropped, as assisted decoding does with each layer.

    Layers of a sliding window crop what they keep without asking whether there is any.

    Args:
        arguments: those of the block, by name.
        index: the number of the block in the cache.
        results: those of the surrogate; the first tensor is of shape (batch, positions, channels).
    """
    cache = _cache_in(arguments)
    layer = _layer_in(cache, index)
    if getattr(layer, "record_past", False) and getattr(layer, "is_sliding", False):
        stream = next(value for value in results if isinstance(value, Tensor))
        none = stream.new_empty(stream.shape[0], 0, stream.shape[1], 0)
        cache.update(none, none, index)


def _cache_in(arguments: Mapping[str, Any]) -> Any:
    """The cache of keys and values of transformers that a block was handed, None where it was handed none."""
    named = {**arguments, **next((v for v in arguments.values() if isinstance(v, dict)), {})}
    caches = (getattr(value, "self_attention_cache", value) for value in named.values() if is_cache(value))
    return next(caches, None)


def _layer_in(cache: Any, index: int | None) -> Any:
    """The layer of this number in a cache; None where the cache has none, or not yet."""
    layers = getattr(cache, "layers", ())
    return layers[index] if index is not None and index < len(layers) else None


def is_cache(value: Any) -> bool:
    """Tell whether a value is a cache of keys and values of transformers."""
    inner = getattr(value, "self_attention_cache", value)
    return hasattr(inner, "update") and hasattr(inner, "get_seq_length")
