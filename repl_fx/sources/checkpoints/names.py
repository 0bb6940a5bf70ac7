"""The state dict in a checkpoint, under the names of a model.

    {"state_dict": {…}, "epoch": 3}            the inner mapping, whatever its key
    module.blocks.0.weight                     blocks.0.weight, where all names begin so and the model's do not
    blocks.0._orig_mod.weight                  blocks.0.weight

Trainers write their own state around that of a model (Lightning, timm), and wrappers a prefix before each name
(DistributedDataParallel, `torch.compile`, the attribute of a LightningModule).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor

from repl_fx.errors import BadInput, listed
from repl_fx.finding.node_table import common_path

# What `torch.compile` puts in front of the names of the module that it compiled, be it inside of another.
_COMPILED = "_orig_mod"
# What `torch.optim.swa_utils.AveragedModel` counts, beside the names of the model.
_AVERAGED = "n_averaged"


def state_for(names: Collection[str], checkpoint: Mapping[str, Any], where: str) -> OrderedDict[str, Any]:
    """The state dict of a checkpoint that is for a model with these names, as a mapping of its own.

    Args:
        names: of the model's `state_dict`.
        checkpoint: a state dict, or a mapping with some in it.
        where: the checkpoint in words.

    Raises:
        BadInput: the checkpoint holds no state dict, or several that are for such a model.
    """
    inner = {key: value for key, value in checkpoint.items() if isinstance(value, Mapping)}
    states = {
        key: _without_prefix(_without_wrappers(found, names), names)
        for key, found in ({None: checkpoint} | inner).items()
        if any(isinstance(value, Tensor) for value in found.values()) and all(isinstance(name, str) for name in found)
    }
    fitting = [key for key, state in states.items() if not state.keys().isdisjoint(names)]
    if len(fitting) > 1:
        keys = ", ".join(repr(key) for key in fitting)
        raise BadInput(f"{where} holds several states for such a model ({keys}); save the one you mean on its own")
    if not states:
        held = f"its keys are {listed(map(repr, checkpoint))}" if checkpoint else "it is empty"
        raise BadInput(f"{where} holds no state dict: {held}; save one: torch.save(model.state_dict(), FILE)")
    return states[fitting[0]] if fitting else max(states.values(), key=len)


def _without_wrappers(state: Mapping[str, Any], names: Collection[str]) -> OrderedDict[str, Any]:
    found = _renamed(state, lambda name: ".".join(part for part in name.split(".") if part != _COMPILED))
    averaged = _AVERAGED in found and _AVERAGED not in names
    if averaged and all(name.startswith("module.") for name in found if name != _AVERAGED):
        del found[_AVERAGED]
    return found


def _without_prefix(state: OrderedDict[str, Any], names: Collection[str]) -> OrderedDict[str, Any]:
    """The state with as much of the prefix taken off that its names have in common as fits the names best."""
    shared = common_path(tuple(name.split(".")[:-1]) for name in state)
    lengths = [sum(len(part) + 1 for part in shared[:number]) for number in range(len(shared) + 1)]

    def fit(length: int) -> int:
        return sum(name[length:] in names for name in state)

    # The first of the best: nothing is taken off without need.
    length = max(lengths, key=fit)
    return _renamed(state, lambda name: name[length:]) if length else state


def _renamed(state: Mapping[str, Any], rename: Callable[[str], str]) -> OrderedDict[str, Any]:
    """A state dict of its own with other names; with the versions of modules that torch keeps beside it."""
    renamed = OrderedDict((rename(name), value) for name, value in state.items())
    if len(renamed) < len(state):
        # Two would have one name.
        rename, renamed = str, OrderedDict(state)
    versions = getattr(state, "_metadata", None)
    if isinstance(versions, Mapping):
        # Paths of modules: that of the model itself is empty.
        kept: Any = renamed
        kept._metadata = OrderedDict((rename(f"{path}.")[:-1], version) for path, version in versions.items())
    return renamed
