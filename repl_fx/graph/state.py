"""Which parameters, buffers and modules a graph uses, and the removal of those it no longer does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import Tensor, fx, nn

from repl_fx.graph.assigned_buffers import rebound_on
from repl_fx.graph.captured import attribute, container_of, has_attribute
from repl_fx.graph.runtime import ModeSwitch

# In `meta` of a rewritten graph, or of a module that stands where one of the source stood: names and shapes of the
# source's state there, also of what was removed. A checkpoint of the source is told by it from one of another model.
SOURCE_STATE = "source_state"


def parameter_count(module: nn.Module) -> int:
    """The number of elements of all parameters; those that are tied count once."""
    return sum(parameter.numel() for parameter in module.parameters())


def state_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of a `state_dict`, by name."""
    state = module.state_dict(keep_vars=True)
    return {name: tuple(tensor.shape) for name, tensor in state.items() if isinstance(tensor, Tensor)}


def source_state(module: nn.Module) -> Mapping[str, tuple[int, ...]] | None:
    """The names and shapes that the source's state had where a module stands; None of a module that keeps none."""
    meta = vars(module).get("meta")
    return meta.get(SOURCE_STATE) if isinstance(meta, dict) else None


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a module, tied ones under each of their names."""
    every = module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)
    return dict(chain(*every))


def with_prefix(name: str, prefixes: Mapping[str, str]) -> str:
    """A name with another prefix, by the one that it has."""
    for was, now in prefixes.items():
        if name.startswith(was):
            return now + name.removeprefix(was)
    return name


def address(tensor: Tensor) -> tuple[Any, ...]:
    """The place of a tensor's numbers; the same for tied tensors."""
    # Shards are in several places. Addresses on different devices may be the same number.
    place = id(tensor) if type(tensor).__name__ == "DTensor" else tensor.data_ptr()
    return tensor.device, place, tensor.shape, tensor.stride(), tensor.dtype


@dataclass(frozen=True)
class Used:
    """The modules, parameters and buffers that nodes of a graph refer to.

    Attributes:
        state: paths of parameters and buffers, those of called modules included.
        modules: paths of modules that are called, by the graph or by a mode switch in it.
        flags: paths of the modules whose mode is read.
    """

    state: frozenset[str]
    modules: frozenset[str]
    flags: frozenset[str]


def used_by(gm: fx.GraphModule) -> Used:
    """The modules, parameters and buffers that nodes of a graph refer to."""
    state: set[str] = set()
    modules: set[str] = set()
    flags: set[str] = set()
    for node in gm.graph.nodes:
        path = str(node.target)
        if node.op not in ("call_module", "get_attr"):
            continue
        value = attribute(gm, path)
        if node.op == "get_attr" and isinstance(value, nn.Module) and (rebound := rebound_on(gm, node)):
            state.update(rebound)
        elif isinstance(value, nn.Module):
            modules.add(path)
            state.update(f"{path}.{name}" for name in named_tensors(value))
        elif isinstance(value, Tensor):
            state.add(path)
        else:
            flags.add(path.rpartition(".")[0])
    return Used(frozenset(state), frozenset(modules), frozenset(flags))


def prune_state_(gm: fx.GraphModule, before: Used) -> None:
    """Remove the state that the graph used before and does not use any more, and modules that are left empty.

    State that the graph never used (a head the forward does not call) is the source's and stays.
    """
    now = used_by(gm)
    # A tied tensor stays under every name while one of them is used.
    kept = {id(attribute(gm, path)) for path in now.state}
    removed = [path for path in before.state - now.state if id(attribute(gm, path)) not in kept]
    for path in removed:
        owner_path, _, name = path.rpartition(".")
        owner = gm.get_submodule(owner_path)
        owner._parameters.pop(name, None)
        owner._buffers.pop(name, None)
        owner._non_persistent_buffers_set.discard(name)
    uncalled = before.modules - now.modules
    for path in uncalled:
        module = gm.get_submodule(path)
        # A mode switch is no part of the source, so nothing of it needs to stay.
        if isinstance(module, ModeSwitch):
            gm.delete_submodule(path)
        else:
            # State for nodes to read, children and the mode are left of a module whose forward would fail.
            gm.set_submodule(path, container_of(module))
    for path in uncalled | {path.rpartition(".")[0] for path in removed}:
        _drop_empty(gm, path, now)


def _drop_empty(gm: fx.GraphModule, path: str, now: Used) -> None:
    """Drop a module that holds and does nothing, and then its parents likewise."""
    while path and path not in now.flags and path not in now.modules:
        if has_attribute(gm, path):
            module = gm.get_submodule(path)
            held = (*filter(_holds, module._modules.values()), *module._parameters.values(), *module._buffers.values())
            if any(item is not None for item in held):
                return
            gm.delete_submodule(path)
        path = path.rpartition(".")[0]


def _holds(child: nn.Module | None) -> bool:
    """Tell whether a child is worth keeping its parent for; a list made for parameters that has none is not."""
    return not isinstance(child, nn.ParameterList | nn.ParameterDict) or any(True for _ in child.parameters())
