"""The `save_pretrained` of a model in place, which writes an artifact too, and the `from_pretrained` of its class."""

from __future__ import annotations

from typing import Any

from torch import nn


class SavePretrained:
    """`repl_fx.save_pretrained` of one model; an attribute that copies and pickles have for themselves.

    Args:
        model: a model in place, whose class has such a method.

    Attributes:
        captured: options of its config that a loop of training changes, as they were when the model was captured.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        config: Any = getattr(model, "config", None)
        known = {
            "attn_implementation": getattr(config, "_attn_implementation", None),
            "use_cache": getattr(config, "use_cache", None),
        }
        self.captured = {name: value for name, value in known.items() if value is not None}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # By its public name: artifacts are made of what this room makes, and are there whenever somebody saves.
        import repl_fx

        return repl_fx.save_pretrained(self.model, *args, **kwargs)


def complete_(model: nn.Module) -> None:
    """Give a model that has a `save_pretrained` one whose directories `repl_fx.load` reads, or none but it."""
    if callable(getattr(model, "save_pretrained", None)):
        vars(model)["save_pretrained"] = SavePretrained(model)


def has_from_pretrained(model: nn.Module) -> bool:
    """Whether a class of a model, or of a module in it, builds models and gives them the weights whose names fit."""
    # `nn.Embedding` has a `from_pretrained`, which takes a tensor.
    return any(hasattr(type(module), "save_pretrained") for module in model.modules())
