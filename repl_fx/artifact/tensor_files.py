"""Tensors of a module to a file and back; tied ones once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from repl_fx.errors import ArtifactError, OutputError, one_line
from repl_fx.graph.assigned_buffers import assigned_by
from repl_fx.graph.captured import copy_model, is_traced_constant
from repl_fx.graph.kinds import kind_of
from repl_fx.graph.state import address, named_tensors, with_prefix
from repl_fx.passes.follow_device import is_anchor
from repl_fx.running.untouched import device_of
from repl_fx.surrogates.shared.sharded_weights import is_sharded
from repl_fx.tracing.parts.capture_parts import graphs_in, qualified_name

# How far a constant may be from the one that was saved, as a fraction of the largest of its values. A sine of a large
# angle has lost this much where another machine computes the angle, and a constant that was changed differs by more.
_SAME = 1e-3
# Lines of the text of a captured graph: a tensor that it has, in a part too, and a buffer that it assigns.
_TENSOR = re.compile(r"^(?:(\S*): )?(\S+): (\w+\[[\d, ]*\])", re.MULTILINE)
_ASSIGNED = re.compile(r"assign_buffer\(%\d+, '(.+?)'")


def write_state(module: nn.Module, weights: Path, constants: Path) -> dict[str, str]:
    """Write the tensors of a module, each once: those of its `state_dict`, and the buffers that are not in it.

    Returns:
        The other names of tied tensors, and the name under which each was written, in the same file.

    Raises:
        OutputError: a tensor has no values, or is one that no file holds, or the module has state that is no tensor.
        SafetensorError, OSError: a file cannot be written.
    """
    _, state = _state_of(module)
    return {**_write(state, weights), **_write(constants_of(module, state), constants)}


def write_constants(module: nn.Module, constants: Path) -> dict[str, str]:
    """Write the buffers of a module that are not in its `state_dict`; see `write_state`."""
    return _write(constants_of(module, _state_of(module)[1]), constants)


def _state_of(module: nn.Module) -> tuple[dict[str, str], dict[str, Any]]:
    """The `state_dict` of a module by the paths of its tensors, and its names for them, with the paths.

    Hooks of a wrapper, as of torch's `checkpoint_wrapper`, may leave its name out.
    """
    state, paths = module.state_dict(keep_vars=True), named_tensors(module)
    known = {id(tensor): path for path, tensor in paths.items()}
    named = {name: name if name in paths else known.get(id(tensor), name) for name, tensor in state.items()}
    return named, {named[name]: tensor for name, tensor in state.items()}


def _write(tensors: Mapping[str, Any], file: Path) -> dict[str, str]:
    aliases: dict[str, str] = {}
    known: dict[tuple[Any, ...], str] = {}
    fresh: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise OutputError(f"{name} is of class {type(tensor).__name__}, and an artifact holds tensors alone")
        if tensor.is_meta:
            raise OutputError(f"{name} is on the meta device and has no values to save; materialise the model first")
        if tensor.layout is not torch.strided:
            raise OutputError(f"{name} is sparse ({tensor.layout}), and an artifact holds dense tensors alone")
        if is_sharded(tensor):
            raise OutputError(f"{name} is sharded over processes; save the model with whole tensors, as it was before")
        key = address(tensor)
        if tensor.numel() and known.setdefault(key, name) != name:
            aliases[name] = known[key]
            continue
        fresh[name] = tensor.detach().cpu().contiguous().clone()
    write_file(fresh, file)
    return aliases


def write_file(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write a file of safetensors with the rights of any other file."""
    # The library makes a file that its owner alone can read.
    file.touch()
    mode = file.stat().st_mode
    try:
        save_file(dict(tensors), file, metadata={"format": "pt"})
    except KeyError as dtype:
        raise OutputError(f"{file.name} cannot hold tensors of {dtype}, which safetensors lacks") from dtype
    file.chmod(mode)


def constants_of(module: nn.Module, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The buffers that are not in the `state_dict` of a module: tables that its code computes, mostly."""
    return {name: buffer for name, buffer in module.named_buffers(remove_duplicate=False) if name not in state}


@dataclass(frozen=True)
class State:
    """The tensors that `write_state` wrote, under all names: those of the `state_dict`, and the other buffers."""

    file: Path
    weights: Mapping[str, Tensor]
    constants: Mapping[str, Tensor]

    def get(self, name: str) -> Tensor | None:
        """The tensor of a name, if there is one."""
        return self.weights.get(name, self.constants.get(name))

    def tied(self, tensor: Tensor, to: Tensor) -> State:
        """The same tensors, with another one under all names of a tensor."""
        return replace(self, weights={n: to if one is tensor else one for n, one in self.weights.items()})

    def renamed(self, prefixes: Mapping[str, str]) -> State:
        """The same tensors under the names of the other form of a model, of the rewritten graphs or in place.

        Constants in the code of one form are no state of the other, nor is what follows its device.
        """

        def named(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            own = {name: t for name, t in tensors.items() if not is_traced_constant(name) and not is_anchor(name)}
            return {with_prefix(name, prefixes): tensor for name, tensor in own.items()}

        return State(self.file, named(self.weights), named(self.constants))


def read_state(weights: Path, constants: Path, aliases: Mapping[str, str]) -> State:
    """Read what `write_state` wrote."""
    read = _read(weights), _read(constants)
    for alias, name in aliases.items():
        tensors = next((tensors for tensors in read if name in tensors), None)
        if tensors is None or any(alias in tensors for tensors in read):
            why = "is no tensor in it" if tensors is None else "is a tensor in it, too"
            raise ArtifactError(f"{weights} does not fit its manifest: {alias} should be {name}, which {why}")
        tensors[alias] = tensors[name]
    return State(weights, *read)


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as problem:
        raise ArtifactError(f"{file} is damaged: {one_line(problem)}; transform the model again") from problem


@torch.no_grad()
def load_state(module: nn.Module, state: State) -> None:
    """Give a module the tensors of an artifact, which have to be exactly its own.

    A module that was trained in another precision gets that precision, and tensors are tied where they were when they
    were saved. Constants are those that were saved, whatever this machine, or this version of a library, computes.

    Raises:
        ArtifactError: a tensor is missing, foreign, or of another shape or kind; or a constant in the model's code is
            another one now.
    """
    _fill_(module, state)
    named, own = _state_of(module)
    state = _with_names(state, own)
    missing, foreign = own.keys() - state.weights.keys(), state.weights.keys() - own.keys()
    if missing or foreign:
        words = [
            f"{len(m)} tensors {w}, e.g. {min(m)}" for m, w in ((missing, "are missing"), (foreign, "are foreign")) if m
        ]
        raise ArtifactError(f"{state.file} does not fit its model: {'; '.join(words)}; transform it again")
    for name, tensor in own.items():
        _require_alike(state.file, name, state.weights[name], tensor)
    _tie_(module, own, state)
    for name, tensor in own.items():
        if tensor.dtype != state.weights[name].dtype or _repeats(tensor):
            # Of the object itself, so that what is tied stays tied.
            tensor.data = tensor.data.to(state.weights[name].dtype, copy=True)
    module.load_state_dict({name: state.weights[path] for name, path in named.items()})
    _load_constants(module, constants_of(module, own), state)


def _with_names(state: State, own: Mapping[str, Tensor]) -> State:
    """The same tensors, tied ones under the names that a module has for them.

    A graph keeps all names of a tensor that it reads, also those of replaced blocks, which a model in place lacks.
    """
    saved = {id(tensor): state.weights[name] for name, tensor in own.items() if name in state.weights}
    known = set(map(id, saved.values()))
    ours = {name: saved[id(tensor)] for name, tensor in own.items() if id(tensor) in saved}
    others = {name: tensor for name, tensor in state.weights.items() if name in own or id(tensor) not in known}
    return replace(state, weights={**ours, **others})


def _tie_(module: nn.Module, own: dict[str, Tensor], state: State) -> None:
    """Let tensors of a module be one where those that were saved are one, and there alone; `own` are those by name."""
    ones: dict[int, Tensor] = {}
    owners: dict[Any, int] = {}
    for name, tensor in own.items():
        saved = id(state.weights[name])
        one = ones.setdefault(saved, tensor)
        if one is tensor and owners.setdefault(_place(tensor), saved) != saved:
            parted = tensor.detach().clone()
            one = nn.Parameter(parted, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else parted
        elif _place(one) == _place(tensor):
            continue
        elif not tensor.is_meta:
            # The source, which may be asked for values still, has this one.
            tensor.copy_(state.weights[name])
        path, _, last = name.rpartition(".")
        if isinstance(one, nn.Parameter) == isinstance(tensor, nn.Parameter):
            setattr(module.get_submodule(path), last, one)
            own[name] = one
        else:
            tensor.data = one.data
        ones[saved] = one


def _place(tensor: Tensor) -> Any:
    """The place of a tensor's numbers, where it has any."""
    return id(tensor) if tensor.is_meta or not tensor.numel() else address(tensor)


def _fill_(module: nn.Module, state: State) -> None:
    """Give buffers that are None, as those that code makes in its first forward, what was saved of them."""
    for path, inner in module.named_modules():
        for last in [last for last, buffer in inner._buffers.items() if buffer is None]:
            if (saved := state.get(qualified_name(path, last))) is not None:
                inner._buffers[last] = saved.to(device_of(module), copy=True)


def as_captured(model: nn.Module, structure: Sequence[str], state: State) -> nn.Module | None:
    """A copy of a source model with the buffers that it had when an artifact was made; None where it has them.

    Code that makes a buffer in its first forward, and reads it from then on, is traced otherwise before and after.

    Args:
        structure: the text of what was captured, which says what is read and what is assigned.
    """
    then = list(_buffers_then(model, "\n".join(structure), state))
    if not then:
        return None
    copied = copy_model(model)
    for path, last, buffer in then:
        inner = copied.get_submodule(path)
        if last in inner._buffers or not hasattr(inner, last):
            persistent = last in inner._buffers.keys() - inner._non_persistent_buffers_set
            inner.register_buffer(last, buffer, persistent=persistent)
    return copied


def _buffers_then(model: nn.Module, text: str, state: State) -> Iterator[tuple[str, str, Tensor | None]]:
    """The buffers that were others when a model was captured, by the path of their module and their name in it."""
    read = {qualified_name(part, name): kind for part, name, kind in _TENSOR.findall(text)}
    assigned = set(_ASSIGNED.findall(text))
    for path, inner in model.named_modules():
        known = {name.rpartition(".")[2] for name in state.constants if name.rpartition(".")[0] == path}
        for last in {*inner._buffers, *known}:
            name, buffer = qualified_name(path, last), inner._buffers.get(last)
            saved, kind = state.get(name), None if buffer is None else kind_of(buffer)
            if name not in read and buffer is not None and last in assigned:
                # It was not there, or might as well not have been.
                yield path, last, None
            elif saved is not None and kind != read.get(name) == kind_of(saved) and not is_traced_constant(name):
                yield path, last, saved.to(device_of(model), copy=True)


def _load_constants(module: nn.Module, computed: Mapping[str, Tensor], state: State) -> None:
    inside = graphs_in(module)
    graphs = tuple(qualified_name(path, "") for path in inside)
    # A forward may have put tensors of other sizes in the place of these.
    rebound = {
        qualified_name(path, buffer)
        for path, gm in inside.items()
        for buffer in map(assigned_by, gm.graph.nodes)
        if buffer
    }
    for name, saved in state.constants.items():
        found = computed.get(name)
        if name.startswith(graphs):
            _require_fits(state, name, found, rebound=name in rebound)
        if found is not None and (found.shape, found.dtype) == (saved.shape, saved.dtype) and not _repeats(found):
            found.copy_(saved)
            continue
        # Code around the graphs may keep a buffer that it makes when it first runs.
        path, _, last = name.rpartition(".")
        try:
            module.get_submodule(path).register_buffer(last, saved, persistent=False)
        except (AttributeError, KeyError) as problem:
            raise ArtifactError(f"{state.file} does not fit its model: {one_line(problem)}") from problem


def _require_fits(state: State, name: str, found: Tensor | None, *, rebound: bool) -> None:
    """Refuse a constant of a graph that the model has not, or has otherwise."""
    if found is None:
        # No graph reads a buffer of the user's.
        if is_traced_constant(name):
            raise ArtifactError(f"{state.file} does not fit its model, which has no buffer {name}; transform it again")
        return
    saved = state.constants[name]
    if not rebound:
        _require_alike(state.file, name, saved, found)
    if is_traced_constant(name) and not _close(found, saved):
        raise ArtifactError(
            f"{state.file.parent} no longer fits its model: the constant {name} has other values now; "
            "transform it again"
        )


def _require_alike(file: Path, name: str, saved: Tensor, own: Tensor) -> None:
    numbers = saved.dtype.is_floating_point and own.dtype.is_floating_point
    if saved.shape != own.shape or (saved.dtype != own.dtype and not numbers):
        found, wanted = (f"{t.dtype!s}{list(t.shape)}" for t in (saved, own))
        raise ArtifactError(f"{file} does not fit its model: {name} is {found}, the model has {wanted}")


def _close(found: Tensor, saved: Tensor) -> bool:
    if not saved.is_floating_point() and not saved.is_complex():
        return torch.equal(found, saved)
    wide = torch.complex128 if saved.is_complex() else torch.float64
    here, there = found.to(wide), saved.to(wide)
    finite = there[there.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    share = max(_SAME, 2 * torch.finfo(saved.dtype).eps, 2 * torch.finfo(found.dtype).eps)
    return torch.allclose(here, there, rtol=0, atol=share * scale, equal_nan=True)


def _repeats(tensor: Tensor) -> bool:
    """Tell whether elements share their memory, so that none can be written alone."""
    return any(size > 1 and step == 0 for size, step in zip(tensor.shape, tensor.stride(), strict=True))
