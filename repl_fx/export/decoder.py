"""Decoders of transformers with their cache as tensors, in and out, for one graph and one ONNX file of a step.

    decoder = CachedDecoder(result.model)        the model in place, or any decoder of transformers
    args = decoder.inputs(input_ids)             a step behind a filled cache
    graph = repl_fx.capture(decoder, args)
    repl_fx.export_onnx(graph, "decoder.onnx", args)

The file has inputs `past_key_values_0_key`, …, and outputs `logits`, `present_0_key`, …, a pair for each layer that
keeps something: a removed block keeps nothing, one with `reuse` its thin values. The first step has an empty cache, of
length 0. After optimum's export of decoders.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from repl_fx.arguments import require_module
from repl_fx.errors import BadInput, first_line, foreign_code
from repl_fx.running.untouched import in_mode
from repl_fx.tracing.dynamic_shapes import CACHES

Past = Mapping[str, Mapping[str, Tensor]]


class CachedDecoder(nn.Module):
    """A decoder of transformers that takes and returns its cache as tensors.

    Args:
        model: a decoder with a `DynamicCache`, such as `LlamaForCausalLM`; its tensors are shared.

    Raises:
        BadInput: a module that takes no cache, or an encoder with a decoder, which has two.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        require_module("CachedDecoder", model)
        config = getattr(model, "config", None)
        known = inspect.signature(model.forward).parameters
        taken = next((name for name in CACHES if name in known), None)
        if config is None or taken is None or not {"attention_mask", "use_cache"} <= known.keys():
            raise BadInput(f"{type(model).__name__} is no decoder of transformers: its forward takes no cache")
        if getattr(config, "is_encoder_decoder", False):
            raise BadInput(
                f"{type(model).__name__} has an encoder, whose values are cached too; take its decoder alone"
            )
        self.model = model
        self.cache_name = taken
        self.takes_positions = "position_ids" in known

    def inputs(self, input_ids: Tensor) -> tuple[Tensor, Tensor, dict[str, dict[str, Tensor]]]:
        """Example inputs: two tokens behind a cache that the tokens before have filled.

        Args:
            input_ids: token ids (batch, length), of length 4 or more; batch 2 or more, so that it stays dynamic.

        Returns:
            Token ids (batch, 2), a mask (batch, length) and the cache: keys and values (batch, heads, length - 2, c) by
            the number of the layer.

        Raises:
            BadInput: the model fails on the ids, or keeps another kind of cache.
        """
        if input_ids.ndim != 2 or input_ids.shape[1] < 4:
            raise BadInput(f"input_ids is {tuple(input_ids.shape)}; give token ids (batch, length) of length 4 or more")
        empty: dict[str, dict[str, Tensor]] = {}
        mask = torch.ones_like(input_ids)
        fails = f"{type(self.model).__name__} fails on the token ids"
        refused = foreign_code(lambda problem: BadInput(f"{fails}: {first_line(problem)}"))
        with in_mode(self, False), torch.no_grad(), refused:
            past = self(input_ids[:, :-2], mask[:, :-2], empty)["present"]
        return input_ids[:, -2:].clone(), mask, past

    def forward(self, input_ids: Tensor, attention_mask: Tensor, past_key_values: Past) -> dict[str, Any]:
        """One step.

        Args:
            input_ids: the new tokens (batch, new).
            attention_mask: 1 for each token, old and new, and 0 for padding (batch, old + new).
            past_key_values: keys and values (batch, heads, old, c) of the old tokens, by the number of the layer.

        Returns:
            The model's outputs that are tensors, such as `logits` (batch, new, vocabulary), and `present`: the cache
            with the new tokens.
        """
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer, kept in past_key_values.items():
            cache.update(kept["key"], kept["value"], int(layer))
        given: dict[str, Any] = {"attention_mask": attention_mask, self.cache_name: cache, "use_cache": True}
        if self.takes_positions:
            # Counted as `generate` counts them: padding in front has no position.
            positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
            given["position_ids"] = positions[:, attention_mask.shape[1] - input_ids.shape[1] :]
        made = self.model(input_ids, **given, return_dict=True)
        present = getattr(made, self.cache_name)
        if not isinstance(present, DynamicCache):
            raise BadInput(f"{type(self.model).__name__} keeps a {type(present).__name__}, which is no DynamicCache")
        layers = ((str(number), layer) for number, layer in enumerate(present.layers) if layer.keys is not None)
        outputs = {name: value for name, value in made.items() if isinstance(value, Tensor)}
        return {**outputs, "present": {name: {"key": x.keys, "value": x.values} for name, x in layers}}
