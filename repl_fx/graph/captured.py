"""The graph module that capture returns, and the few questions and edits that every pass needs."""

from __future__ import annotations

import copy
import inspect
import operator
import pickle
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain, count
from types import FunctionType, MethodType
from typing import Any, NoReturn, Self, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from repl_fx._torch import CodeKey, FakeTensor, any_names, code_key, fake_like, move_hooks, pytree
from repl_fx.errors import BadInput, CallRefused, foreign_code, one_line
from repl_fx.graph.code import structure_code_
from repl_fx.graph.decisions import settle_decisions_
from repl_fx.graph.pickling import GraphData, View, as_data, share_views_, views_in
from repl_fx.graph.runtime import AutogradCall, check_constant

_T = TypeVar("_T")
# The attribute of a graph module for layers that its graph calls and that lie elsewhere, as their tensors' names say.
BESIDE = "_beside"
_TRACED_CONSTANT = "traced_constant_"
_STATE = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
# The graph, and what fx writes from it.
_WRITTEN = ("_graph", "_code", "_lineno_map", "_prologue_start", "_in_spec", "_out_spec")


class PlainGraphModule(fx.GraphModule):
    """An `fx.GraphModule` that copies and pickles keep as it is: graph, state, hooks and attributes.

    `fx.GraphModule` itself copies no attributes, and is pickled as its code, which is traced when it is loaded: what
    nodes know of themselves is lost, and what only runs (regions without gradients, layers that are jumped over) runs
    during that trace.
    """

    def recompile(self) -> Any:
        """Write the code of the graph; it jumps over layers that a step may skip, and errors end its regions."""
        own: Any = type(self)
        if not _holds_code(own):
            # A class that somebody derived for it: called through that, code in both calls itself without an end.
            self.__class__ = _code_class(own)
            try:
                return self.recompile()
            finally:
                self.__class__ = _derived(own, type(self))
        settle_decisions_(self.graph, has_effect)
        structure_code_(self.graph)
        with any_names():
            return super().recompile()

    def __copy__(self) -> Self:
        result: Self = _empty(_kind(self))
        result._become(dict(PlainGraphModule.__getstate__(self)), copy.deepcopy(self._graph), type(self))
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        result: Self = _empty(_kind(self))
        memo[id(self)] = result
        # Notes about the graph (fake mode, capture report) are not changed in place, and a fake mode cannot be copied.
        memo[id(self.meta)] = {
            name: copy.deepcopy(note, memo) if name == "attributes" else note for name, note in self.meta.items()
        }
        # A class that `torch.nn.utils.parametrize` derived refuses to be pickled, and can be copied.
        state = {name: copy.deepcopy(value, memo) for name, value in PlainGraphModule.__getstate__(self).items()}
        result._become(state, copy.deepcopy(self._graph, memo), type(self))
        for hook in self._deepcopy_hooks:
            hook(result)
        return result

    def __reduce_package__(self, exporter: Any) -> tuple[Any, ...]:
        # torch.package asks for this, of classes too, which go by name; fx's own is the code alone, as its pickle.
        _, (kind,), state = self.__reduce__()
        return _unpackaged, (kind.__module__, kind.__qualname__, state)

    def __getstate__(self) -> dict[str, Any]:
        # A compiled call is the process's own, and the code is written anew.
        return {name: value for name, value in vars(self).items() if name not in ("_compiled_call_impl", *_WRITTEN)}

    def __reduce__(self) -> tuple[Any, ...]:
        own, kind = type(self), type(self).__mro__[1]
        if not _holds_code(own):
            raise pickle.PicklingError(
                f"{kind.__name__} has become a {own.__name__}, a class that was made for it alone; pickle the module "
                "as it was before that, or its state_dict"
            )
        meta = {name: note if name == "attributes" else as_data(note) for name, note in self.meta.items()}
        state = {**self.__getstate__(), "meta": meta}
        return _empty, (kind,), (state, GraphData.of(self._graph), own.__name__, views_in(self))

    def __setstate__(self, state: tuple[dict[str, Any], GraphData, str, dict[str, View]]) -> None:
        attributes, graph, name, views = state
        self._become(attributes, graph.make(), name)
        share_views_(self, views)

    def _become(self, state: dict[str, Any], graph: fx.Graph, like: type | str) -> None:
        """Take a state and a graph; `like` is the class of the module that they are of, or its name."""
        nn.Module.__setstate__(self, state)  # type: ignore[no-untyped-call]
        # Each graph module has a class of its own.
        type(self).__name__ = like if isinstance(like, str) else _code_class(like).__name__
        self._graph = graph
        graph.owning_module = self
        self.recompile()
        if not isinstance(like, str):
            self.__class__ = _derived(like, type(self))


def _empty(kind: Any) -> Any:
    """A graph module whose state is about to be set."""
    return kind.__new__(kind)


def _unpackaged(importer: Any, module: str, kind: str, state: Any) -> PlainGraphModule:
    """A graph module out of a package of torch.package."""
    made: PlainGraphModule = _empty(operator.attrgetter(kind)(importer.import_module(module)))
    made.__setstate__(state)
    return made


class AlikeGraphModule(PlainGraphModule):
    """A graph module that shares its class, and so its code, with those of the same code.

    torch.compile compiles one of them. Nodes are best named by `repl_fx.graph.naming`.
    """

    def recompile(self) -> Any:
        """Write the code of the graph, and take the class of the modules that have the same."""
        if not _holds_code(type(self)):
            return super().recompile()
        # A class of its own to write into: that of now may be the class of others.
        kind: Any = _kind(self)
        name = type(self).__name__
        self.__class__ = type(kind.__new__(kind))
        type(self).__name__ = name
        written = super().recompile()
        alike: Any = _ALIKE.setdefault((kind, name, code_key(written)), type(self))
        self.__class__ = alike
        return written


# Classes by kind, name and code.
_ALIKE: WeakValueDictionary[tuple[type, str, CodeKey], type] = WeakValueDictionary()


def _kind(gm: fx.GraphModule) -> type[fx.GraphModule]:
    """The class of a graph module, without that which holds the code of its graph, and those derived from that."""
    return next(kind for kind in _code_class(type(gm)).__mro__ if not _holds_code(kind))


def _code_class(kind: type) -> type:
    """The class that holds the code of graph modules of a class: that itself, or the one that it is derived from."""
    return next(one for one in kind.__mro__ if _holds_code(one))


def _derived(kind: Any, code: type) -> Any:
    """A class like `kind`, derived from `code`, which holds the code of a graph."""
    if _holds_code(kind):
        return code
    if not issubclass(kind, fx.GraphModule) or _code_class(kind) is code:
        return kind
    own = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    return type(kind)(kind.__name__, tuple(_derived(base, code) for base in kind.__bases__), own)


def _holds_code(kind: type) -> bool:
    """Tell whether a class is one that fx makes to hold the code of a graph."""
    return kind.__qualname__.rpartition(".")[2] == "GraphModuleImpl"


class CapturedModule(PlainGraphModule):
    """A graph module that keeps the whole module tree of its root.

    `fx.GraphModule` keeps only what the graph refers to, and makes every buffer persistent; then parameters the forward
    does not use, the module paths and the `state_dict` keys would differ from the source model's.

    `meta["pinned"]` says which modules the source's own `train` keeps in one mode (frozen normalisation), by path.
    `meta["left_out"]` has the arguments of the source that the graph has not (`repl_fx.graph.signature.left_out`).
    `meta["attributes"]` holds plain attributes of the source that code outside the graph reads (`out_channels`).
    `meta["source_state"]` holds, of a rewritten graph, the shapes in the source's `state_dict` (`state_shapes`).
    """

    def __init__(
        self, root: nn.Module, graph: fx.Graph, class_name: str = "CapturedModule", *, compiled: bool = True
    ) -> None:
        # The state comes from the root as it is; handed an empty graph, fx does not copy it node by node first.
        super().__init__(nn.Module(), fx.Graph(), class_name)
        self.__dict__.update(container_of(root).__dict__)
        self._graph = graph
        graph.owning_module = self
        # A pass that goes on to change the graph has its code written once, afterwards: by the first call at last.
        if compiled:
            self.recompile()
        else:
            type(self).forward = _written_late
        self.meta = dict(getattr(root, "meta", {}))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph.

        Raises:
            BadInput: an argument that the example inputs left out is not what the source takes for it then.
            CallRefused: it stops in another precision than that of the trace, or reads a weight without values.
        """
        args, kwargs = self._of_graph(args, kwargs)
        # Linear layers and convolutions of torch read memory that nobody wrote in place of a weight without values.
        if not torch.compiler.is_compiling() and self._is_offloaded():
            self._require_values(args, kwargs)
        try:
            return super().__call__(*args, **kwargs)
        except RuntimeError as error:
            self._require_values(args, kwargs, error)
            if type(error) is RuntimeError and (other := self._other_precision((args, kwargs))):
                # Code that says `x.to(hidden.dtype)` has the precision of the trace in the graph.
                raise CallRefused(
                    f"the graph of {type(self).__name__} was captured in another precision than {other}, and stops in "
                    f"that ({one_line(error)}); convert the model before it is captured"
                ) from error
            raise

    def _is_offloaded(self) -> bool:
        """Tell whether accelerate has put a hook on the graph, or on the first module that a tensor is read of."""
        owner = next((str(n.target).rpartition(".")[0] for n in self.graph.find_nodes(op="get_attr", sort=False)), "")
        return "_hf_hook" in vars(self) or has_attribute(self, f"{owner}._hf_hook".lstrip("."))

    def _require_values(self, args: Any, kwargs: Any, error: RuntimeError | None = None) -> None:
        """Refuse a call on values in which a tensor that the graph reads has none; its own are loaded by its hook."""
        read = [str(node.target) for node in self.graph.find_nodes(op="get_attr")]
        empty = (name for name in read if (error or "." in name) and getattr(attribute(self, name), "is_meta", False))
        if (name := next(empty, None)) and not any(tensor.is_meta for tensor in tensors_in((args, kwargs))):
            raise CallRefused(
                f"the graph of {type(self).__name__} reads {name} outside of its layer, where it has no values; where "
                "a library offloads it, use the model in place (result.model)"
            ) from error

    def _of_graph(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call that the graph takes; those that it was captured without have to be the defaults."""
        by_place = dict(enumerate(args))
        for name, (place, default) in self.meta.get("left_out", {}).items():
            given: dict[Any, Any] = by_place if place in by_place else kwargs
            key = place if place in by_place else name
            if key in given:
                check_constant(given.pop(key), default, f"argument {name!r}")
        return tuple(by_place.values()), kwargs

    def _other_precision(self, inputs: Any) -> torch.dtype | None:
        """A floating type of parameters or inputs of which no value of the trace is; None where there is none."""
        traced = {value.dtype for node in self.graph.nodes if isinstance(value := node.meta.get("val"), Tensor)}
        now = dict.fromkeys(
            value.dtype for value in (*self.parameters(), *tensors_in(inputs)) if value.is_floating_point()
        )
        return next((dtype for dtype in now if dtype not in traced), None)

    def __getattr__(self, name: str) -> Any:
        for known in (self.__dict__.get("meta", {}).get("attributes", {}), self.__dict__.get(BESIDE, {})):
            if name in known:
                return known[name]
        return super().__getattr__(name)

    @property
    def graph_root(self) -> Self:
        """The module itself, for nodes that rebind its own buffers."""
        return self

    def __prepare_scriptable__(self) -> Any:
        refuse_scripting("a graph")

    def train(self, mode: bool = True) -> Self:
        """Set the mode, as the source's own `train` does."""
        super().train(mode)
        keep_pinned(self, self.meta.get("pinned", {}))
        return self


def refuse_scripting(what: str) -> NoReturn:
    """Answer `torch.jit.script`, which would name a line of ours that it cannot read.

    Raises:
        CallRefused: always; says what to do instead.
    """
    raise CallRefused(
        f"{what} cannot be compiled by torch.jit.script, which reads only a part of Python; "
        "torch.jit.trace(model.eval(), inputs) records what it computes"
    )


def keep_pinned(module: nn.Module, pinned: Mapping[str, bool]) -> None:
    """Give modules, by path, the mode that the source's own `train` keeps them in."""
    for path, mode in pinned.items():
        # A rewrite may have removed it.
        with suppress(AttributeError):
            module.get_submodule(path).training = mode


def within(path: str, named: Mapping[str, _T]) -> dict[str, _T]:
    """The entries inside of the module at a path, by the rest of their names."""
    inner = f"{path}."
    return {name.removeprefix(inner): value for name, value in named.items() if name.startswith(inner)}


def container_of(module: nn.Module) -> nn.Module:
    """A module with the state, the children and the mode of another, and no forward."""
    plain = nn.Module()
    plain.training = module.training
    for name in _STATE:
        plain.__dict__[name] = copy.copy(module.__dict__[name])
    return plain


class RefersToModules:
    """Base of plain objects in attributes and hooks of modules that refer to modules of their tree.

    Attributes:
        around: modules that they refer to and that may lie outside of a copied tree; those are referred to still.
    """

    around: tuple[nn.Module, ...] = ()


def refer_to_copies(memo: Mapping[int, nn.Module], given: Collection[int] = ()) -> None:
    """Let the objects in attributes and hooks of copied modules refer to copies.

    Args:
        memo: the copies, by the ids of the modules that they are of.
        given: the ids of those among them that are no copies, and stay as they are.
    """
    # Objects that several modules refer to stay one.
    known: dict[int, Any] = dict(memo)
    for module in memo.values():
        if id(module) in given:
            continue
        for name, value in list(vars(module).items()):
            # Methods of such objects too.
            referring = value.__self__ if isinstance(value, MethodType) else value
            if isinstance(referring, RefersToModules):
                module.__dict__[name] = _referring_to(value, referring.around, known)
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            named: dict[int, Any] = dict(hooks)
            own = {n: hook for n, hook in named.items() if isinstance(hook, RefersToModules)}
            hooks.update({n: _referring_to(hook, hook.around, known) for n, hook in own.items()})


def _referring_to(value: Any, around: Iterable[nn.Module], known: dict[int, Any]) -> Any:
    for outside in around:
        known.setdefault(id(outside), outside)
    return copy.deepcopy(value, known)


def in_double_precision(module: nn.Module, casts: Collection[torch.dtype]) -> nn.Module:
    """A copy in double precision.

    Args:
        casts: dtypes; casts to them that a trace has fixed (`x.to(self.weight.dtype)`) are to double.
    """
    with any_names():
        doubled = copy.deepcopy(module).double()
    for graph_module in doubled.modules():
        if isinstance(graph_module, fx.GraphModule):
            for node in graph_module.graph.nodes:
                node.args, node.kwargs = fx.node.map_aggregate(
                    (node.args, node.kwargs),
                    lambda value: torch.float64 if isinstance(value, torch.dtype) and value in casts else value,
                )
            graph_module.recompile()
    return doubled


def share_tensors(module: nn.Module, memo: dict[int, nn.Module] | None = None) -> nn.Module:
    """Copy a module tree but share its parameters and buffers.

    Modes, hooks and structure of the copy are its own, so that `copy.eval()` does not reach the source. A module that
    stands at two paths stays one module at two paths.

    Args:
        memo: the copies so far, by the ids of the modules that they are of; who gives one calls `refer_to_copies`.

    Raises:
        BadInput: the class of a module has a `__del__`.
    """
    if memo is None:
        memo = {}
        copied = share_tensors(module, memo)
        refer_to_copies(memo)
        return copied
    if id(module) in memo:
        return memo[id(module)]
    if isinstance(module, fx.GraphModule):
        own = _kind(module)
        kind = own if issubclass(own, PlainGraphModule) else fx.GraphModule
        root = _with_shared_children(container_of(module), memo)
        copied = kind(root, copy.deepcopy(module.graph) if issubclass(kind, CapturedModule) else module.graph)
        copied.meta = copy.copy(module.meta)
        memo[id(module)] = copied
        if BESIDE in vars(module):
            copied.__dict__[BESIDE] = {name: share_tensors(layer, memo) for name, layer in vars(module)[BESIDE].items()}
        return copied
    ending = next((kind.__name__ for kind in type(module).__mro__ if "__del__" in vars(kind)), None)
    if ending is not None:
        # That of fastai's DynamicUnet takes away the hooks of what it was copied from.
        raise BadInput(
            f"{type(module).__name__} has a __del__, by which the end of a copy would end what both share; "
            f"take it away first (del {ending}.__del__)"
        )
    if _is_held_by_functions(module):
        result = copy.copy(module)
    else:
        result = module.__class__.__new__(module.__class__)
        result.__dict__.update(module.__dict__)
    memo[id(module)] = result
    for name, value in module.__dict__.items():
        # State, hooks, and lists of state such as the flat weights of an LSTM.
        if isinstance(value, (dict, list, set)):
            result.__dict__[name] = copy.copy(value)
    return _with_shared_children(result, memo)


def _is_held_by_functions(module: nn.Module) -> bool:
    """Tell whether a module keeps functions around its own methods, and makes them anew from its state.

    The metrics of torchmetrics do: `update` of a copy would count for the source.
    """
    functions = (value for value in vars(module).values() if isinstance(value, FunctionType))
    return not type(module).__setstate__.__module__.startswith("torch.") and any(
        getattr(inspect.unwrap(function), "__self__", None) is module for function in functions
    )


def _with_shared_children(copied: nn.Module, memo: dict[int, nn.Module]) -> nn.Module:
    for name, child in copied._modules.items():
        copied._modules[name] = None if child is None else share_tensors(child, memo)
    return copied


def copy_model(model: nn.Module, advice: str = "; take what no copy can have out of its attributes") -> nn.Module:
    """Copy a model with its parameters; hooks on the gradients of parameters, which a deep copy drops, come along.

    Values that a forward left in attributes, as the older `weight_norm` does, are copied without their history.

    Raises:
        BadInput: an attribute cannot be copied; ends with `advice`.
    """
    held = (tensor for part in model.modules() for tensor in tensors_in(list(vars(part).values())))
    memo: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in held if not tensor.is_leaf}
    kind = type(model).__name__
    with foreign_code(lambda problem: BadInput(f"{kind} cannot be copied ({one_line(problem)}){advice}")):
        copied = copy.deepcopy(model, memo)
    for source, target in zip(model.parameters(), copied.parameters(), strict=True):
        move_hooks(source, target)
    return copied


def own_tensors_(module: nn.Module) -> None:
    """Give a module copies of its parameters and buffers; those that are one tensor, or views of one, stay so."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for name, tensor in [*part._parameters.items(), *part._buffers.items()]:
            if tensor is not None:
                # Recurrent layers keep their weights in a list, too, which this changes.
                setattr(part, name, copy.deepcopy(tensor, memo))


def _written_late(gm: CapturedModule, *args: Any, **kwargs: Any) -> Any:
    """The forward of a graph whose code is not written yet."""
    gm.recompile()
    return gm.forward(*args, **kwargs)


def copy_graph(gm: fx.GraphModule, *, compiled: bool = True) -> CapturedModule:
    """Copy a graph and its module tree; parameters and buffers are shared with the original.

    Where it is not `compiled`, the copy has no code until `recompile()` or its first call.
    """
    root = _with_shared_children(container_of(gm), {})
    result = CapturedModule(root, copy.deepcopy(gm.graph), _code_class(type(gm)).__name__, compiled=compiled)
    if parametrize.is_parametrized(gm):
        # Its own parameters are properties of the class that was derived for it.
        result.__class__ = _derived(type(gm), type(result))
    result.meta = copy.copy(gm.meta)
    return result


def attribute(root: nn.Module, path: str) -> Any:
    """The module, tensor or attribute at a dotted path.

    Raises:
        AttributeError: where the path breaks off.
    """
    return operator.attrgetter(path)(root)


def has_attribute(root: nn.Module, path: str) -> bool:
    """Tell whether a dotted path leads anywhere."""
    with suppress(AttributeError):
        attribute(root, path)
        return True
    return False


def called_module(gm: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that a node calls; None of a node of another kind."""
    return gm.get_submodule(str(node.target)) if node.op == "call_module" else None


def parameters_read(gm: fx.GraphModule, node: fx.Node) -> list[str]:
    """The paths of the tensors that a node is given, and of the parameters of the module it calls, by all names."""
    given = [str(feeder.target) for feeder in node.all_input_nodes if feeder.op == "get_attr"]
    module = called_module(gm, node)
    own = () if module is None else module.named_parameters(remove_duplicate=False)
    return [*given, *(f"{node.target}.{name}" for name, _ in own)]


def is_tensor(node: fx.Node) -> bool:
    """Tell whether a node's value is one tensor."""
    return isinstance(node.meta.get("val"), Tensor)


def dimension_called(symbol: str, tensors: Iterable[fx.Node]) -> tuple[fx.Node, int] | None:
    """The first of the tensors, and its dimension, whose size in the trace is a symbol, or an expression of symbols."""
    sizes = ((t, dim, s) for t in tensors for dim, s in enumerate(t.meta["val"].shape) if isinstance(s, torch.SymInt))
    return next(((t, dim) for t, dim, s in sizes if str(s) == symbol), None)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of a nested value, in order."""
    return (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor))


def get_attr(gm: fx.GraphModule, path: str) -> fx.Node:
    """A new `get_attr` node for a parameter, buffer or flag, with its fake value, at the current insertion point."""
    # Graph.get_attr would warn about flags and about state that is added later.
    node = gm.graph.create_node("get_attr", path)
    value = node.meta["val"] = attribute(gm, path)
    if isinstance(value, Tensor):
        mode = gm.meta.get("fake_mode") or fake_mode_of(gm.graph)
        with torch.no_grad():
            fake = value.detach().to("meta") if mode is None else fake_like(mode, value)
        node.meta["val"] = fake
    return node


def fake_mode_of(graph: fx.Graph) -> Any:
    """The fake tensor mode that the graph's values belong to, None where the graph has no fake value."""
    tensors = (tensor for node in graph.nodes for tensor in tensors_in(node.meta.get("val")))
    return next((tensor.fake_mode for tensor in tensors if isinstance(tensor, FakeTensor)), None)


def unique_name(root: nn.Module, wanted: str) -> str:
    """`wanted`, or `wanted_1`, … where the module already has an attribute of that name."""
    names = chain([wanted], (f"{wanted}_{number}" for number in count(1)))
    return next(name for name in names if not hasattr(root, name))


def traced_constant(index: int) -> str:
    """The name of the buffer that holds a tensor which the model's code itself holds."""
    return f"{_TRACED_CONSTANT}{index}"


def is_traced_constant(name: str) -> bool:
    """Tell whether a buffer, by its path, holds a tensor which the model's code itself holds."""
    return name.rpartition(".")[2].startswith(_TRACED_CONSTANT)


def has_effect(node: fx.Node) -> bool:
    """Tell whether a node does more than compute its value: changes an argument in place, or draws random numbers.

    A call of a module always counts: normalisation layers update statistics, dropout advances the generator.
    """
    if node.op in ("placeholder", "output", "call_module") or node.is_impure():
        return True
    if isinstance(node.target, AutogradCall):
        return node.target.has_effect
    if node.op != "call_function":
        return False
    return writes_in_place(node) or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def writes_in_place(node: fx.Node) -> bool:
    """Tell whether a node calls an operator that changes an argument."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def changes_argument(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a node changes what it is given, by its operator or in a layer that works in place."""
    return writes_in_place(node) or bool(getattr(called_module(gm, node), "inplace", False))


def memory_of(node: fx.Node) -> fx.Node:
    """The node that made the memory of a node's value: what a view, or a write in place, was called on."""
    while node.op == "call_function" and node.args and isinstance(node.args[0], fx.Node):
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.returns or schema.returns[0].alias_info is None:
            break
        node = node.args[0]
    return node


def drop_dead(graph: fx.Graph) -> None:
    """Erase every node without users that has no effect (`has_effect`), and so on up their inputs."""
    for node in reversed(list(graph.nodes)):
        if not node.users and not has_effect(node):
            graph.erase_node(node)


def erase_dead(graph: fx.Graph, nodes: Iterable[fx.Node]) -> None:
    """Erase those of `nodes` that nothing uses any more, users first, and the values only they read.

    Nodes are erased even when they are impure: the caller has decided that what they belong to is gone.
    """
    unwanted = set(nodes)
    for node in reversed(list(graph.nodes)):
        if node in unwanted and not node.users and node.op not in ("placeholder", "output"):
            # A value that fed only this node is dead too, but only when it has no effect of its own.
            unwanted.update(feeder for feeder in node.all_input_nodes if not feeder.is_impure())
            graph.erase_node(node)
