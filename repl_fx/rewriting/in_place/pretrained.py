"""The `save_pretrained` of a model in place, which writes an artifact too, and the `from_pretrained` of its class.

transformers writes some models under other names than their own (`vit.encoder.layer.0` for `vit.layers.0`), and its
Trainer reads such a file back with `load_state_dict`. A model in place takes both, by transformers' own conversions.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from repl_fx.graph.kinds import dtype_name
from repl_fx.graph.state import named_tensors
from repl_fx.rewriting.in_place.surrogate_block import SurrogateBlock


class SavePretrained:
    """`repl_fx.save_pretrained` of one model; an attribute that copies and pickles have for themselves.

    Args:
        model: a model in place, whose class has such a method.

    Attributes:
        captured: options of its config that a loop of training or a conversion changes, as they were when the model was
            captured.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        config: Any = getattr(model, "config", None)
        known = {
            "attn_implementation": getattr(config, "_attn_implementation", None),
            "use_cache": getattr(config, "use_cache", None),
        }
        self.captured = {name: value for name, value in known.items() if value is not None}
        # Libraries ask the weights for it, and fail where all have gone with the blocks.
        holds = any(weight.is_floating_point() for weight in model.parameters())
        if holds and isinstance(dtype := getattr(model, "dtype", None), torch.dtype):
            self.captured["dtype"] = dtype_name(dtype)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # By its public name: artifacts are made of what this room makes, and are there whenever somebody saves.
        import repl_fx

        return repl_fx.save_pretrained(self.model, *args, **kwargs)


def complete_(model: nn.Module) -> None:
    """Give a model, and those in it that hold surrogates, a `save_pretrained` of their own, where they have one.

    Others save a model of transformers in theirs by its method (sentence-transformers).
    """
    for module in model.modules():
        if callable(getattr(module, "save_pretrained", None)) and any(
            isinstance(inner, SurrogateBlock) for inner in module.modules()
        ):
            vars(module)["save_pretrained"] = SavePretrained(module)
            module.register_load_state_dict_pre_hook(_take_written_names_)  # type: ignore[no-untyped-call]


def has_from_pretrained(model: nn.Module) -> bool:
    """Tell whether a class of a model, or of a module in it, builds models with the weights whose names fit."""
    # `nn.Embedding` has a `from_pretrained`, which takes a tensor.
    return any(hasattr(type(module), "save_pretrained") for module in model.modules())


def with_own_names(model: nn.Module, written: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that transformers wrote of a model, under the model's own names and in its own form.

    Those that are under such names already, and those of which transformers knows nothing, stay as they are.
    """
    # Without `state_dict`, whose hooks gather what is sharded.
    own = named_tensors(model).keys()
    foreign = {name: tensor for name, tensor in written.items() if name not in own}
    rest = {name: tensor for name, tensor in written.items() if name in own}
    # A model of transformers has it imported, which takes seconds.
    if not foreign or "transformers" not in sys.modules:
        return dict(written)
    try:
        from transformers import PreTrainedModel
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import PrefixChange, WeightRenaming, revert_weight_conversion
    except ImportError:
        # Versions that have no conversions write the model's own names.
        return dict(written)
    if not isinstance(model, PreTrainedModel):
        return dict(written)
    known = getattr(model, "_weight_conversions", None)
    if known is None:
        # A prefix is written only where one was read.
        known = [
            one for one in get_model_conversion_mapping(model, add_legacy=False) if not isinstance(one, PrefixChange)
        ]
    for renames in (True, False):
        steps = [one.reverse_transform() for one in reversed(known) if isinstance(one, WeightRenaming) is renames]
        # What transformers reverts is the reverse, so that tensors are converted as it does when it loads them.
        back: Any = SimpleNamespace(
            _weight_conversions=steps or None, config=model.config, named_modules=model.named_modules
        )
        foreign = revert_weight_conversion(back, foreign) if steps else foreign
    return rest | foreign


def _take_written_names_(model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before a model loads tensors: give those that transformers wrote the model's own names."""
    mine = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    named = with_own_names(model, mine)
    if named.keys() != mine.keys():
        for name in mine:
            del state[prefix + name]
        state.update({prefix + name: tensor for name, tensor in named.items()})
