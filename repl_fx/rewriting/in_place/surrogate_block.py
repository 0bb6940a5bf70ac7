"""Modules that stand in the source's own tree in the place of a replaced block, behind the block's own signature."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Self, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from repl_fx._torch import SYMBOLIC, function_of, pytree
from repl_fx.errors import CallRefused
from repl_fx.graph.boundaries import places
from repl_fx.graph.captured import RefersToModules, attribute, has_attribute, has_effect, keep_pinned, refuse_scripting
from repl_fx.graph.code import structure_code_
from repl_fx.graph.decisions import settle_decisions_
from repl_fx.graph.extracting import named_alike
from repl_fx.graph.pickling import GraphData, structure_as_data
from repl_fx.rewriting.in_place.attention_calls import (
    BorrowedAttention,
    as_precise,
    count_positions,
    is_cache,
    this_thread,
)
from repl_fx.rewriting.in_place.effective_weights import loaded, weight_now
from repl_fx.rewriting.in_place.placing import OWN
from repl_fx.rewriting.in_place.wrapped_forward import as_leaf
from repl_fx.running.opaque_outputs import PLAIN


@dataclass(frozen=True)
class Argument:
    """A tensor or a number that a surrogate takes from what the block is called with.

    Attributes:
        place: the name of the argument in the signature, and the keys of containers behind it.
        sizes: the sizes that were fixed in the trace, by dimension.
        dims: how many dimensions the tensor had in the trace; None of a number.
        dtype: that of the tensor in the trace.
    """

    place: tuple[Any, ...]
    sizes: Mapping[int, int]
    dims: int | None
    dtype: torch.dtype = torch.float32

    def of(self, arguments: Mapping[str, Any], block: str) -> Any:
        """The tensor or the number among the arguments of a call.

        Raises:
            CallRefused: the argument is no tensor of such sizes, or no number.
        """
        value, kind = _at(arguments, self.place), "number" if self.dims is None else "tensor"
        classes: Any = (int, torch.SymInt) if self.dims is None else Tensor
        if not isinstance(value, classes):
            raise CallRefused(
                f"the surrogate of {block} computes with {self}, which was a {kind} when the model was captured and is "
                f"{_in_short(value)} now; capture the model with inputs that leave it out, or use the graph"
            )
        if self.dims is None:
            return value
        if value.ndim != self.dims or any(value.shape[dim] != size for dim, size in self.sizes.items()):
            known = ", ".join(str(self.sizes.get(dim, "any")) for dim in range(self.dims))
            batch = self.sizes.get(0)
            # Of a loader, mostly, whose last batch is not full.
            advice = (
                "capture the model with such inputs"
                if value.ndim != self.dims or batch in (None, 1, value.shape[0])
                else f"give it batches of {batch}: drop_last=True, or --full-batches --batch-size {batch}"
            )
            raise CallRefused(
                f"the surrogate of {block} was captured with {self} of shape ({known}), and is called with "
                f"{tuple(value.shape)}; {advice}"
            )
        return value

    def __str__(self) -> str:
        return str(self.place[-1] if isinstance(self.place[-1], str) else self.place[0])


@dataclass(frozen=True)
class Passed:
    """A leaf of the result that is what the block was handed at a place, or zeros that are added to that elsewhere."""

    place: tuple[Any, ...]
    as_zeros: bool = False


@dataclass(frozen=True)
class Made:
    """A leaf of the result that is a result of the surrogate's graph.

    Attributes:
        number: of the result.
        like: the number of an argument that had its precision in the trace, mostly the stream; None where none had.
    """

    number: int
    like: int | None = None


@dataclass(frozen=True)
class Constant:
    """A leaf of the result that was no tensor in the trace, or that the removed block alone had: None."""

    value: Any


class ResultForm(RefersToModules):
    """The structure of what a kept block returns, as it was when it ran last in this thread; a forward hook.

    A flag may let all blocks of a repeat return more; the surrogates then have no more to return.
    """

    def __init__(self) -> None:
        self._by_thread: dict[int, pytree.TreeSpec] = {}

    @property
    def last(self) -> pytree.TreeSpec | None:
        """The structure; None where the block has not run."""
        return self._by_thread.get(this_thread())

    def __call__(self, module: nn.Module, args: Any, result: Any) -> None:
        self._by_thread[this_thread()] = pytree.tree_structure(result)

    def __getstate__(self) -> dict[str, Any]:
        # Calls belong to this process.
        return {"_by_thread": {}}


class Swap:
    """The values that a block runs on in the place of parameters, in each thread that runs it.

    No module changes in a call: the dicts in which the block's modules hold parameters and children answer the thread
    that runs the block otherwise than all others.
    """

    def __init__(self) -> None:
        self._by_thread: dict[int, Mapping[str, Tensor]] = {}
        # Of a trace, which has no thread: a compiled call leaves None here, and the dict to calls beside it.
        self._traced: Mapping[str, Tensor] | None = None

    def values(self) -> Mapping[str, Tensor] | None:
        """The values by path in the block; None where the block does not run in this thread."""
        return self._traced if torch.compiler.is_compiling() else self._by_thread.get(threading.get_ident())

    @contextmanager
    def running(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Let the block have values, in this thread, meanwhile."""
        before = self.values()
        self._set(values)
        try:
            yield
        finally:
            self._set(before)

    def _set(self, values: Mapping[str, Tensor] | None) -> None:
        if torch.compiler.is_compiling():
            self._traced = values
        elif values is None:
            self._by_thread.pop(threading.get_ident(), None)
        else:
            self._by_thread[threading.get_ident()] = values

    def install(self, block: nn.Module, paths: Iterable[str]) -> None:
        """Let the modules of a block read parameters from here, by path, while it runs."""
        owned: dict[str, dict[str, str]] = {}
        for path in paths:
            owner, _, name = path.rpartition(".")
            owned.setdefault(owner, {})[name] = path
        for owner, names in owned.items():
            module = block.get_submodule(owner)
            module.__dict__["_parameters"] = _SwappedParameters(module._parameters, self, names)
            if "weight" in names and type(module) in _EMPTIED:
                module.__class__ = _EMPTIED[type(module)]
            # Code of the layer's own may write and show weights, which are not there.
            writes_its_state = type(module)._save_to_state_dict is not nn.Module._save_to_state_dict
            instead = ("_save_to_state_dict", "_load_from_state_dict") if writes_its_state else ()
            for name in (*instead, *(() if _shows_itself(module) else ("extra_repr",))):
                module.__dict__[name] = functools.partial(getattr(nn.Module, name), module)
        block.__dict__["_modules"] = _OtherModules(block._modules, self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Swap:
        # Copies of a block have it in common: no copy runs inside another.
        return self

    def __getstate__(self) -> dict[str, Any]:
        # Calls belong to this process.
        return {"_by_thread": {}, "_traced": None}


def _shows_itself(module: nn.Module) -> bool:
    """Tell whether a layer without its weights can be printed."""
    try:
        module.extra_repr()
    except Exception:
        return False
    return True


class _EmptiedLayer(nn.Module):
    """A layer whose weight is made while its block runs: of no class that tools convert, prune or sum up by weights.

    Nor of a name by which functions for `Module.apply` choose the layers whose weights they draw: `Linear`, `Conv`.
    """

    _source: type[nn.Module]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute what the layer of torch does."""
        if self.weight is None:
            raise CallRefused(f"this {self._source.__name__} has a weight only while its block runs; call the block")
        return self._source.forward(self, *args, **kwargs)


def _emptied(name: str, source: type[nn.Module]) -> type[nn.Module]:
    """The class in the place of one of torch; layers of other classes may call methods of theirs by `super`."""
    read = {key: getattr(source, key) for key in ("extra_repr", "_conv_forward") if hasattr(source, key)}
    return type(f"{name}Surrogate", (_EmptiedLayer,), {"__module__": __name__, "_source": source, **read})


_EMPTIED: Mapping[type[nn.Module], type[nn.Module]] = {
    nn.Linear: _emptied("Matrix", nn.Linear),
    # Of nn.MultiheadAttention.
    NonDynamicallyQuantizableLinear: _emptied("OutMatrix", NonDynamicallyQuantizableLinear),
    nn.Conv1d: _emptied("Kernel1d", nn.Conv1d),
    nn.Conv2d: _emptied("Kernel2d", nn.Conv2d),
    nn.Conv3d: _emptied("Kernel3d", nn.Conv3d),
}
# By which pickles find them.
globals().update({kind.__name__: kind for kind in _EMPTIED.values()})


class _SwappedParameters(dict[str, Any]):
    """The parameters of a module, some of them as the block that runs has them."""

    def __init__(self, content: Mapping[str, Any], swap: Swap, paths: Mapping[str, str]) -> None:
        super().__init__(content)
        self.swap, self.paths = swap, paths

    def __getitem__(self, name: str) -> Any:
        values = self.swap.values() if name in self.paths else None
        return dict.__getitem__(self, name) if values is None else values[self.paths[name]]


class _OtherModules(dict[str, Any]):
    """The children of a block; its forward, which may run them all as that of nn.Sequential does, meets its own."""

    def __init__(self, content: Mapping[str, Any], swap: Swap) -> None:
        super().__init__(content)
        self.swap = swap

    def __iter__(self) -> Iterator[str]:
        hidden = OWN if self.swap.values() is not None else None
        return iter([name for name in dict.keys(self) if name != hidden])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def keys(self) -> Any:
        return dict.fromkeys(self).keys()

    def values(self) -> Any:
        return {name: self[name] for name in self}.values()

    def items(self) -> Any:
        return {name: self[name] for name in self}.items()


@dataclass(eq=False)
class StandIn(RefersToModules):
    """The work of a surrogate in place.

    Attributes:
        block: path of the block in the model.
        graph: takes the values of `arguments`, the tensors of `elsewhere`, and a function for each of `borrowed`.
        arguments: the tensors and numbers that the graph reads.
        elsewhere: paths, in the model, of parameters, buffers, flags and layers outside of the block.
        borrowed: the layers that mix by a map which a kept block makes.
        result: the structure of the block's result.
        leaves: the leaves of the result.
        known: the leaves of the arguments in the trace.
        read: the places of the arguments that have to be as they were, each with all that is in it: those that the
            block reads, or what stays of it where the surrogate depends on the stream alone.
        neighbour: path of a kept block of the repeat, the structure of its result in the trace, and at its last call.
        names: for a surrogate that swaps parameters: their names in the block, in the order of the graph's results.
        unbiased: those of the paths of state elsewhere that are weights of layers without a bias.
        norms: the paths of the batch norms behind the layers of which some of these are weights.
        stream: the number of the argument that is the block's stream.
        around: the model, in a tuple, for a module as an attribute would be registered and contain itself.
        index: the number of the block in a cache, where the surrogate keeps nothing in it; None where it has none.
        swap: the values in the place of these parameters.
    """

    block: str
    graph: fx.Graph
    arguments: tuple[Argument, ...]
    elsewhere: tuple[str, ...]
    borrowed: tuple[BorrowedAttention, ...]
    result: pytree.TreeSpec
    leaves: tuple[Made | Passed | Constant, ...]
    known: Mapping[tuple[Any, ...], Any]
    read: Collection[tuple[str, ...]]
    neighbour: tuple[str, pytree.TreeSpec, ResultForm] | None = None
    names: tuple[str, ...] = ()
    unbiased: frozenset[str] = frozenset()
    norms: Mapping[str, str] = field(default_factory=dict)
    stream: int = 0
    around: tuple[nn.Module, ...] = ()
    index: int | None = None
    swap: Swap = field(default_factory=Swap, repr=False)
    code: Callable[..., Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        settle_decisions_(self.graph, has_effect)
        alike = named_alike(self.graph)
        structure_code_(alike)
        self.code = function_of(alike)

    def require_place(self, host: nn.Module) -> None:
        """Refuse to run where the block was moved in its model, as by `blocks = blocks[2:]`: paths name others then."""
        # torch.compile takes a module that it compiles, seen from the model around it, for another one.
        if torch.compiler.is_compiling() or not (self.elsewhere or self.borrowed):
            return
        (model,) = self.around
        found = attribute(model, self.block) if has_attribute(model, self.block) else None
        # In its place may be a wrapper, with it inside; a copy is in no place.
        if found is not host and not _is_in(host, found) and _is_in(host, model):
            raise CallRefused(
                f"the surrogate of {self.block} lies elsewhere in the model now, where the weights that it is made "
                "from cannot be told; take blocks out, or put some in, before the model is transformed"
            )

    def state(self, own: Tensor | None) -> list[Any]:
        """The parameters, buffers and flags outside of the block, as they are now.

        Args:
            own: a parameter of the surrogate, to whose device they are brought: blocks of one model may lie on several.
        """
        found = [
            weight_now(self.around[0], path, unbiased=path in self.unbiased, norm=self.norms.get(path, ""))
            for path in self.elsewhere
        ]
        return found if own is None else [_brought(value, own.device) for value in found]

    def compute(self, host: nn.Module, state: Sequence[Any], arguments: Mapping[str, Any]) -> tuple[Any, ...]:
        """The results of the graph."""
        given = [argument.of(arguments, self.block) for argument in self.arguments]
        mixing = [functools.partial(layer.mix, arguments, given[self.stream]) for layer in self.borrowed]
        try:
            results: tuple[Any, ...] = self.code(host, *given, *state, *mixing)
        except RuntimeError as error:
            # Code that says `x.to(hidden.dtype)` has the precision of the trace in the graph.
            pairs = ((a, v) for a, v in zip(self.arguments, given, strict=True) if isinstance(v, Tensor))
            other = (a for a, v in pairs if v.dtype != a.dtype and not torch.is_autocast_enabled(v.device.type))
            if type(error) is not RuntimeError or (argument := next(other, None)) is None:
                raise
            raise CallRefused(
                f"the surrogate of {self.block} was captured with {argument} in {argument.dtype}, and stops in another "
                f"precision ({error}); convert the model before it is transformed"
            ) from error
        return results

    def run(self, host: nn.Module, state: Sequence[Any], arguments: Mapping[str, Any]) -> Any:
        """The results of the block."""
        self._require_as_known(arguments)
        self._require_form()
        made = self.compute(host, state, arguments)
        leaves = [self._leaf(leaf, arguments, made) for leaf in self.leaves]
        if self.index is not None:
            count_positions(arguments, self.index, leaves)
        return pytree.tree_unflatten(leaves, self.result)

    def _leaf(self, leaf: Made | Passed | Constant, arguments: Mapping[str, Any], made: Sequence[Any]) -> Any:
        if isinstance(leaf, Passed):
            value = _at(arguments, leaf.place)
            return torch.zeros_like(value) if leaf.as_zeros else value
        if isinstance(leaf, Constant):
            return leaf.value
        value = made[leaf.number]
        return value if leaf.like is None else as_precise(value, _at(arguments, self.arguments[leaf.like].place))

    def _require_as_known(self, arguments: Mapping[str, Any]) -> None:
        """Refuse arguments of another kind than in the trace: the graph has the block's answer to those alone."""
        given = dict(places({name: arguments[name] for name in {place[0] for place in self.read}}))
        tensors = [argument.place for argument in self.arguments]
        for place in {**self.known, **given}:
            # Tensors that the graph reads are looked at when it does.
            if (
                (place[:1] not in self.read and place[:2] not in self.read)
                or place[-1] in _SAY_WHAT_TO_RETURN
                or place in tensors
            ):
                continue
            was, value = self.known.get(place), given.get(place)
            # The kept block makes the map with the cache, whether one was there in the trace or not.
            if self.borrowed and is_cache(value):
                continue
            if not _as_known(was, value):
                name = ".".join(map(str, place))
                raise CallRefused(
                    f"the surrogate of {self.block} was captured with {name} = {_in_short(was)}, and is called with "
                    f"{_in_short(value)}; capture the model with such inputs"
                )

    def _require_form(self) -> None:
        if self.neighbour is None:
            return
        path, was, form = self.neighbour
        if form.last is not None and form.last != was:
            raise CallRefused(
                f"{path} returns {form.last.num_leaves} values now, and returned "
                f"{was.num_leaves} when the model was captured; its surrogate neighbour "
                f"{self.block} cannot follow; capture the model with the flags of this call"
            )

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in vars(self).items() if name != "code"}
        state |= {"graph": GraphData.of(self.graph), "result": structure_as_data(self.result)}
        if self.neighbour is not None:
            path, form, last = self.neighbour
            state["neighbour"] = path, structure_as_data(form), last
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, graph=state["graph"].make())
        self.__post_init__()


# Flags of transformers that change nothing of what a block computes; the structure of its result is compared anyway.
_SAY_WHAT_TO_RETURN = frozenset({"use_cache", "output_attentions", "output_hidden_states", "return_dict"})
# Methods of blocks that fuse their layers for inference, as `timm.utils.reparameterize_model` calls them.
_TO_DEPLOY = ("fuse", "reparameterize", "switch_to_deploy")
_NUMBERS = tuple(SYMBOLIC.items())
_CLASSES: dict[tuple[type[nn.Module], bool], type[SurrogateBlock]] = {}


class SurrogateBlock(nn.Module):
    """A surrogate that is called as the block was whose place it takes.

    Objects are of a class that is derived from the block's own too (`surrogate_class`), so that code which asks for the
    class (hooks on all blocks of a kind, wrapping policies) finds them.
    """

    _stand_in: StandIn
    _pinned: Mapping[str, bool] = MappingProxyType({})
    meta: Mapping[str, Any]
    _source: type[nn.Module]
    _bind: Callable[..., Mapping[str, Any]]

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the surrogate on its own; arguments are those of `torch.compile`.

        Weights of other blocks are read outside of what is compiled, which is then the same for all surrogates of one
        kind: it is compiled once for them.
        """
        self.__dict__["_run_surrogate"] = torch.compile(self._run_surrogate, *args, **kwargs)
        # By which others see that the module is compiled.
        self._compiled_call_impl = self._call_impl

    def _call_surrogate(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if (node := as_leaf(self, args, kwargs)) is not None:
            return node
        self._stand_in.require_place(self)
        own = next(self.parameters(), None)
        if own is None or not own.is_meta:
            return self._run_surrogate(self._stand_in.state(own), args, kwargs)
        with loaded(self):
            return self._run_surrogate(self._stand_in.state(next(self.parameters())), args, kwargs)

    def _run_surrogate(self, state: Sequence[Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return self._stand_in.run(self, state, type(self)._bind(*args, **kwargs))

    @property
    def graph_root(self) -> nn.Module:
        """The module itself, for nodes that rebind its buffers."""
        return self

    def __prepare_scriptable__(self) -> Any:
        refuse_scripting(f"the surrogate of {self._stand_in.block}")

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all modules, but for those that the block's own `train` keeps in one."""
        # The block's own method may name children that are gone.
        nn.Module.train(self, mode)
        keep_pinned(self, self._pinned)
        return self

    def extra_repr(self) -> str:
        """The block whose place the surrogate takes."""
        return f"in place of {self._stand_in.block}"

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        state = {
            name: value for name, value in vars(self).items() if name not in ("_compiled_call_impl", "_run_surrogate")
        }
        return _empty, (type(self)._source, isinstance(self, SwappedBlock)), state


class SwappedBlock(SurrogateBlock):
    """The block itself on parameters that its surrogate makes."""

    def _run_surrogate(self, state: Sequence[Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        stand_in = self._stand_in
        made = stand_in.compute(self, state, {})
        if not isinstance(self._modules, _OtherModules):
            # A replica of DataParallel has dicts of its own.
            stand_in.swap.install(self, stand_in.names)
        with stand_in.swap.running(dict(zip(stand_in.names, made, strict=True))):
            return type(self)._source.forward(self, *args, **kwargs)


def surrogate_class(source: type[nn.Module], swaps: bool) -> type[SurrogateBlock]:
    """The class of surrogates that stand for blocks of a class; the same at each call."""
    if (source, swaps) not in _CLASSES:
        _CLASSES[source, swaps] = _new_class(source, swaps)
    return _CLASSES[source, swaps]


def _new_class(source: type[nn.Module], swaps: bool) -> type[SurrogateBlock]:
    signature = inspect.signature(source.forward)

    def forward(self: SurrogateBlock, *args: Any, **kwargs: Any) -> Any:
        return self._call_surrogate(args, kwargs)

    forward.__signature__ = signature  # type: ignore[attr-defined]
    own = {"forward": forward, "_source": source, "_bind": staticmethod(_binder(signature))}
    # The layers of a block that swaps parameters have none, and are fused by themselves where the block is not.
    own |= {name: _to_deploy for name in _TO_DEPLOY if swaps or callable(getattr(source, name, None))}
    named = {"__module__": source.__module__, "__doc__": f"A surrogate in the place of a {source.__name__}."}
    return type(f"{source.__name__}Surrogate", (SwappedBlock if swaps else SurrogateBlock, source), {**own, **named})


def _to_deploy(self: SurrogateBlock) -> SurrogateBlock:
    """Stay as it is, where no weight of a layer is read that is another one then.

    Raises:
        CallRefused: the surrogate is made from weights of other layers.
    """
    if self._stand_in.elsewhere:
        raise CallRefused(
            f"the surrogate of {self._stand_in.block} is made from weights of other layers, which are others where "
            "layers are fused for inference; fold the model instead: repl_fx.fold(result.module)"
        )
    return self


def surrogate_graphs(model: nn.Module) -> dict[str, fx.Graph]:
    """The graphs of the surrogates in a model in place, by the path of their block."""
    return {path: m._stand_in.graph for path, m in model.named_modules() if isinstance(m, SurrogateBlock)}


def _is_in(module: nn.Module, tree: Any) -> bool:
    return isinstance(tree, nn.Module) and any(one is module for one in tree.modules())


def _brought(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) and value.device != device else value


def _empty(source: type[nn.Module], swaps: bool) -> SurrogateBlock:
    """A surrogate whose state is about to be set."""
    kind = surrogate_class(source, swaps)
    return kind.__new__(kind)


def _binder(signature: inspect.Signature) -> Callable[..., Mapping[str, Any]]:
    """A function that gives the arguments of a call by name; written as code, which torch.compile follows."""
    parameters = list(signature.parameters.values())[1:]
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    shown = [p.replace(annotation=p.empty, default=None if p.name in defaults else p.empty) for p in parameters]
    names = ", ".join(f"{p.name!r}: {p.name}" for p in parameters)
    made: dict[str, Any] = {}
    exec(f"def forward{inspect.Signature(shown)}:\n    return {{{names}}}", {}, made)
    keywords = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    made["forward"].__defaults__ = tuple(value for name, value in defaults.items() if name not in keywords)
    made["forward"].__kwdefaults__ = {name: value for name, value in defaults.items() if name in keywords}
    return cast("Callable[..., Mapping[str, Any]]", made["forward"])


def _at(arguments: Mapping[str, Any], place: Sequence[Any]) -> Any:
    """The value at a place among arguments, None where no value is there."""
    value: Any = arguments
    for key in place:
        if isinstance(value, (Mapping, list, tuple)):
            inside = key in value if isinstance(value, Mapping) else isinstance(key, int) and key < len(value)
            value = value[key] if inside else None
        else:
            value = getattr(value, str(key), None)
    return value


def _as_known(was: Any, value: Any) -> bool:
    """Tell whether a leaf of the arguments is of the kind that it was in the trace; a plain value, the same."""
    if was is None or was is False:
        # A flag that is not given is one that is not set.
        return value is None or value is False
    if not isinstance(was, type):
        return type(was) is type(value) and bool(was == value)
    # One comparison after another: torch.compile follows no mapping from classes.
    for symbolic, python in _NUMBERS:
        if was is python:
            return isinstance(value, (python, symbolic))
    return isinstance(value, Tensor) if issubclass(was, Tensor) else type(value) is was


def _in_short(value: Any) -> str:
    kind = value if isinstance(value, type) else type(value)
    if issubclass(kind, Tensor):
        return "a tensor"
    return repr(value) if isinstance(value, PLAIN) else f"an object of the class {kind.__name__}"
