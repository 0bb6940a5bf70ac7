"""A checkpoint of the source model, loaded into the rewritten one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from repl_fx.arguments import require_module
from repl_fx.display.numbers import several
from repl_fx.errors import BadInput, first_line, foreign_code, listed
from repl_fx.graph.state import source_state, state_shapes
from repl_fx.sources.checkpoints.fitting import (
    Misfit,
    is_given,
    other_shapes,
    require_equal_ties,
    require_same_kinds,
    require_values,
    tied_names,
)
from repl_fx.sources.checkpoints.names import state_for
from repl_fx.sources.checkpoints.weight_files import Weights, describe_weights, read_weights
from repl_fx.tracing.parts.capture_parts import qualified_name


@dataclass(frozen=True)
class LoadedState:
    """The outcome of loading a checkpoint.

    Attributes:
        loaded: names of the tensors that were given values.
        left_out: names in the checkpoint of what was removed with the replaced blocks.
        own: names of the rewritten model alone, the surrogates' mostly, which keep their values.
    """

    loaded: tuple[str, ...]
    left_out: tuple[str, ...]
    own: tuple[str, ...]

    def __str__(self) -> str:
        """The counts and the first names."""
        words = (
            (self.left_out, "left out, of replaced blocks"),
            (self.own, "of the rewritten model alone, as they were"),
        )
        rest = [f"{len(names)} {what}: {listed(names)}" for names, what in words if names]
        return "; ".join([f"{several(len(self.loaded), 'tensor')} loaded", *rest])


def load_source_state(module: nn.Module, weights: Weights) -> LoadedState:
    """Load a checkpoint of the source model into a rewritten one, strictly by name; all of it fits, or nothing changes.

    Parameters of the surrogates stay as they are, also those whose first values were made for other weights around:
    a start from trained weights is `transform(model, …, weights=…)`.

    Args:
        module: from `transform` or `load`, in one graph or with rewritten graphs in it; also as `torch.compile` or
            DistributedDataParallel wraps it.
        weights: a file, a directory or a state dict, as for `transform`.

    Returns:
        The names of what was loaded, of what was left out as its block is gone, and of what the checkpoint has not.

    Raises:
        BadInput: the checkpoint cannot be read, has keys that the source has not, lacks some that are still there, or
            has other shapes or kinds of numbers; or the module is not rewritten, or folded.
    """
    require_module("load_source_state", module)
    module = _unwrapped(module)
    source = _source_state(module)
    where, kind = describe_weights(weights), type(module).__name__
    own = module.state_dict(keep_vars=True)
    require_values(module, own)
    state = state_for(source.keys(), read_weights(weights), where)
    kept = {name: value for name, value in state.items() if name in own and (name in source or _is_extra(name))}
    ties = tied_names(own)
    misfit = Misfit(
        [name for name in source if name in own and not is_given(name, kept, ties)],
        [name for name in state if name not in source and not _is_extra(name)],
        other_shapes(source, state),
    )
    if misfit:
        raise misfit.error(kind, where)
    require_same_kinds(module, kept, own, where)
    require_equal_ties(module, kept, ties, where)
    with foreign_code(lambda problem: BadInput(f"{where} cannot be loaded into {kind}: {first_line(problem)}")):
        module.load_state_dict(kept, strict=False)
    alone = tuple(name for name in own if name not in source and name not in kept)
    return LoadedState(tuple(kept), tuple(name for name in state if name not in own), alone)


def _is_extra(name: str) -> bool:
    """Tell whether this is the name of what `get_extra_state` of a module gives, which need not be a tensor."""
    return name.rpartition(".")[2] == "_extra_state"


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module inside of wrappers that put a prefix before each name."""
    inner = module.module if isinstance(module, DistributedDataParallel | DataParallel) else module
    inner = getattr(inner, "_orig_mod", inner)
    return inner if inner is module else _unwrapped(inner)


def _source_state(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of the source's state, those of now where it is still there.

    Raises:
        BadInput: nothing in the module tells what the source had.
    """
    records: dict[str, Mapping[str, tuple[int, ...]]] = {}
    for path, child in module.named_modules(remove_duplicate=False):
        # A graph that is called by a graph is part of that.
        record = None if _inside(path, records) else source_state(child)
        if record is not None:
            records[path] = record
    if not records:
        raise BadInput(
            f"load_source_state takes a module from repl_fx.transform or repl_fx.load, and this "
            f"{type(module).__name__} is none, or was folded since; a model that is not rewritten has load_state_dict"
        )
    now = state_shapes(module)
    before = {name: shape for name, shape in now.items() if not _inside(name, records)}
    inside = {qualified_name(path, name): shape for path, record in records.items() for name, shape in record.items()}
    return before | {name: now.get(name, shape) for name, shape in inside.items()}


def _inside(name: str, paths: Iterable[str]) -> bool:
    return any(name.startswith(qualified_name(path, "")) for path in paths)
