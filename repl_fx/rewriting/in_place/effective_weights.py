"""Weights of the model as they act: a module may hold them in parts, or somebody else may have wrapped it."""

from __future__ import annotations

from typing import Any

from torch import nn

from repl_fx.errors import CallRefused
from repl_fx.graph.captured import attribute


def weight_now(model: nn.Module, path: str) -> Any:
    """The parameter, buffer or flag at a path, as the module there would use it.

    The path is followed at each call, so that the value is the one of now: after a swap of tensors
    (`torch.func.functional_call`), of modules (wrappers hand attributes on), or of the model's precision. Where an
    adapter of PEFT adds to a weight and has not been merged, the sum is the weight.

    Raises:
        RuntimeError: an adapter whose part cannot be added to the weight, or a quantised layer, which has none.
    """
    owner, _, name = path.rpartition(".")
    module: Any = attribute(model, owner) if owner else model
    value = getattr(module, name)
    if callable(value):
        raise CallRefused(
            f"a surrogate is made from {path}, which {type(module).__name__} has as a method; quantise a model whose "
            "surrogates are folded: repl_fx.fold(result.module)"
        )
    if name != "weight" or not hasattr(module, "base_layer") or not hasattr(module, "active_adapters"):
        return value
    if module.merged or module.disable_adapters:
        return value
    for adapter in module.active_adapters:
        if adapter not in getattr(module, "lora_A", {}):
            continue
        if getattr(module, "use_dora", {}).get(adapter) or getattr(module, "lora_bias", {}).get(adapter):
            raise CallRefused(
                f"a surrogate is made from {path}, to which the adapter {adapter} does more than add; use plain LoRA"
            )
        value = value + module.get_delta_weight(adapter)
    return value
