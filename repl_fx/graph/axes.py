"""Names of the dimensions of a graph's inputs (batch, length, height, …), and the sizes that these may have.

before   check_shape(x, (None, 3, None, None));   check_sizes(x): x.shape[2] % 16 == 0
words    batch any;   height a multiple of 16 (model.py, line 23);   width any
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from repl_fx._torch import example_of, fixed_size, has_example
from repl_fx.graph.runtime import SizeCheck, check_shape
from repl_fx.graph.size_limits import Limit, limits_of

# Arguments that hold keys and values of earlier tokens, (batch, heads, length, features).
_CACHE = re.compile(r"(^|_)(past|cache)")
_SYMBOL = re.compile(r"[A-Za-z_]\w*")
_DIRECTORIES = re.compile(r"\(at (.*[/\\])?")
# The reason why a dimension is fixed that the user wants so.
ASKED = ", as asked"
# Dimensions whose sizes are up to the data; those of others are known from the weights.
VARYING = frozenset({"batch", "length", "past_length", "height", "width", "depth", "frames"})


@dataclass(frozen=True)
class InputSizes:
    """The sizes of a tensor among the inputs of a model.

    Attributes:
        name: the argument's, with the path below it where the argument is nested: `cache_0_key`.
        floating: False for ids and masks.
        sizes: a number where a dimension is fixed, else its symbol, or an expression of symbols.
    """

    name: str
    floating: bool
    sizes: tuple[int | str, ...]

    @classmethod
    def of(cls, name: str, dtype: torch.dtype, sizes: Sequence[object]) -> InputSizes:
        """The kind of a tensor by its dtype; pictures may have whole numbers of one byte."""
        floating = dtype.is_floating_point or dtype.is_complex or dtype is torch.uint8
        return cls(name, floating, tuple(size if isinstance(size, int) else str(size) for size in sizes))


@dataclass(frozen=True)
class Axis:
    """A dimension of an input of a graph.

    Attributes:
        input: the input's name, as in `InputSizes`.
        number: which dimension.
        name: one name for each symbol, whichever inputs have it.
        size: that of the example inputs; None where it is not known.
        symbol: the size, an expression of symbols; None where it is fixed.
    """

    input: str
    number: int
    name: str
    size: int | None
    symbol: str | None = None


@dataclass(frozen=True)
class Dimension:
    """A dimension that inputs of a graph have in common, and the sizes that the graph takes.

    Attributes:
        name: batch, length, …
        inputs: those that have it.
        size: that of the example inputs; None where it is not known.
        free: whether it takes others.
        takes: the sizes in words, with the lines of the model that need it so.
    """

    name: str
    inputs: tuple[str, ...]
    size: int | None
    free: bool
    takes: str

    def __str__(self) -> str:
        return f"{self.name} {self.takes}"


def name_dims(inputs: Sequence[InputSizes]) -> list[tuple[str, ...]]:
    """Name the dimensions of inputs; one symbol has one name, and two symbols have two."""
    named: dict[str, str] = {}
    result = []
    for given in inputs:
        names = list(_usual(given))
        for dim, size in enumerate(given.sizes):
            if isinstance(size, str):
                if size not in named:
                    wanted = (names[dim], f"{given.name}_{names[dim]}", f"{given.name}_{dim}")
                    named[size] = next(name for name in wanted if name not in named.values())
                names[dim] = named[size]
        result.append(tuple(names))
    return result


def _usual(given: InputSizes) -> tuple[str, ...]:
    """The dimensions of such a tensor, as they mostly are."""
    rank = len(given.sizes)
    free = [isinstance(size, str) for size in given.sizes]
    if rank == 4 and _CACHE.search(given.name):
        return "batch", "heads", "past_length", "features"
    if not given.floating:
        return {4: ("batch", "heads", "length", "length")}.get(rank, ("batch", *["length"] * (rank - 1))[:rank])
    if rank == 2:
        return "batch", "length" if free[1] else "features"
    if rank == 3:
        if free == [False, True, True]:
            return "channels", "height", "width"
        return ("batch", "channels", "length") if free[2] and not free[1] else ("batch", "length", "features")
    space = ("depth", "height", "width")[5 - rank :]
    if rank == 5 and free[1] and not free[2]:
        return "batch", "frames", "channels", "height", "width"
    if rank in (4, 5):
        last = free[1] and not free[-1]
        return ("batch", *space, "channels") if last else ("batch", "channels", *space)
    return ("batch", *(f"size_{dim}" for dim in range(1, rank)))[:rank]


def tensor_inputs(graph: fx.Graph) -> dict[str, fx.Node]:
    """The tensors among the inputs of a graph, by name, in the order of its arguments."""
    checked = [node.args[0] for node in graph.nodes if node.target is check_shape]
    return {_name_of(node): node for node in checked if isinstance(node, fx.Node)}


def _name_of(node: fx.Node) -> str:
    """The argument that a node is, or reaches into."""
    if node.op == "placeholder":
        return str(node.target)
    inside, step = node.args
    assert isinstance(inside, fx.Node)
    return f"{_name_of(inside)}_{step}"


def axes_of(graph: fx.Graph, asked: Collection[str] = ()) -> list[Axis]:
    """The dimensions of the inputs of a captured graph, in the order of its arguments.

    Args:
        asked: dimensions (`x.2`) that are fixed by the user's wish; they have the names that they had before.
    """
    nodes = tensor_inputs(graph)
    known = {name: _sizes(name, node.meta["val"]) for name, node in nodes.items()}
    before = [
        replace(given, sizes=tuple(k if (k := f"{name}.{dim}") in asked else s for dim, s in enumerate(given.sizes)))
        for name, given in known.items()
    ]
    names = dict(zip(nodes, name_dims(before), strict=True))
    return [
        Axis(
            name,
            dim,
            names[name][dim],
            example_of(size) if has_example(size) else None,
            symbol if isinstance(symbol := known[name].sizes[dim], str) else None,
        )
        for name, node in nodes.items()
        for dim, size in enumerate(node.meta["val"].shape)
    ]


def captured_axes(gm: fx.GraphModule) -> list[Axis]:
    """The dimensions of the inputs of a graph, by the names that they had when it was captured."""
    info = gm.meta.get("capture")
    reasons = {} if info is None else info.fixed
    return axes_of(gm.graph, [dim for dim, reason in reasons.items() if reason == ASKED])


def is_called(axis: Axis, names: Collection[str]) -> bool:
    """Tell whether one of some names is that of a dimension: `height`, `x.height` or `x.2`."""
    own = axis.name.removeprefix(f"{axis.input}_")
    return not {axis.name, f"{axis.input}.{own}", f"{axis.input}.{axis.number}"}.isdisjoint(names)


def dimensions_of(gm: fx.GraphModule) -> list[Dimension]:
    """The dimensions of a captured graph's inputs that vary, or could: neither channels nor features that are fixed."""
    reasons = gm.meta["capture"].fixed
    axes = captured_axes(gm)
    names: dict[str, list[str]] = {axis.input: [] for axis in axes}
    alike: dict[tuple[str, str], list[Axis]] = {}
    varying = {axis.name for axis in axes if axis.symbol is not None}
    for axis in axes:
        names[axis.input].append(axis.name)
        if axis.symbol is not None:
            alike.setdefault((axis.symbol, ""), []).append(axis)
            continue
        reason = short_place(reasons.get(f"{axis.input}.{axis.number}", ""))
        # Operators want the channels and features that weights have; a number that Python asks for is a surprise.
        if axis.name in VARYING or reason == ASKED or reason.startswith(" ("):
            reason = reason or (", as in the example inputs" if axis.size == 1 else "")
            # Two inputs of one kind need not share a size: the nodes of a graph, and the ends of its edges.
            name = f"{axis.input}_{axis.name}" if axis.name in varying else axis.name
            alike.setdefault((name, f"{axis.size} alone{reason}"), []).append(replace(axis, name=name))
    limits = limits_by_axis(gm.graph, names)
    return [
        Dimension(
            (first := same[0]).name,
            tuple(dict.fromkeys(axis.input for axis in same)),
            first.size,
            free := first.symbol is not None,
            ("; ".join(limits.get(first.name, ())) or "any") if free else fixed,
        )
        for (_, fixed), same in alike.items()
    ]


def size_checks(graph: fx.Graph) -> list[tuple[fx.Node, SizeCheck]]:
    """The nodes of a graph that refuse sizes, each with its check."""
    return [(node, node.target) for node in graph.nodes if isinstance(node.target, SizeCheck)]


def checks_by_name(graph: fx.Graph) -> list[tuple[SizeCheck, tuple[str, ...]]]:
    """The checks of sizes in a graph, each with the names of the inputs that it looks at."""
    return [(check, tuple(map(_name_of, node.all_input_nodes))) for node, check in size_checks(graph)]


def with_names(condition: str, names: Mapping[str, str]) -> str:
    """A condition on sizes with other names for these."""
    return _SYMBOL.sub(lambda seen: names.get(seen[0], seen[0]), condition)


def _sizes(name: str, value: Tensor) -> InputSizes:
    return InputSizes.of(name, value.dtype, [s if (n := fixed_size(s)) is None else n for s in value.shape])


def limits_by_axis(graph: fx.Graph, names: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The conditions under which a graph takes sizes, in words, by the names of the dimensions concerned.

    Args:
        names: those of the dimensions of each input.
    """
    tensors = tensor_inputs(graph)
    known: list[Limit] = []
    examples: dict[str, int | None] = {}
    for check, inputs in checks_by_name(graph):
        if check.alike:
            continue
        called = {}
        for symbol, number, dim in check.sizes:
            called[symbol] = name = names[inputs[number]][dim]
            size = tensors[inputs[number]].meta["val"].shape[dim]
            examples[name] = example_of(size) if has_example(size) else None
        known.append(Limit(with_names(check.condition, called), tuple(dict.fromkeys(called.values())), check.place))
    sizes = {name: size for name, size in examples.items() if size is not None}
    if len(sizes) == len(examples):
        known, _ = limits_of(known, sizes)
    found: dict[str, dict[str, list[str]]] = {}
    for limit in known:
        for name in limit.names:
            found.setdefault(name, {}).setdefault(short_place(limit.place), []).append(_in_words(limit))
    return {name: [_shortened(words) + place for place, words in places.items()] for name, places in found.items()}


def short_place(place: str) -> str:
    """The line of a model, as the end of a phrase, without the directories of its file."""
    return _DIRECTORIES.sub("(", place)


def _shortened(words: Sequence[str]) -> str:
    """Conditions of one line of a model; those on several sizes can be many, and long, and one of them is shown."""
    simple = [one for one in dict.fromkeys(words) if one.startswith(_BEGINNINGS)]
    others = [one for one in dict.fromkeys(words) if not one.startswith(_BEGINNINGS)]
    more = [f"{len(others) - 1} more such conditions"] if len(others) > 1 else []
    return ", ".join([*simple, *others[:1], *more])


_FORMS = (
    (re.compile(r"\(?\w+ % (\d+)\)? == 0"), "a multiple of {}"),
    (re.compile(r"\(?\w+ % (\d+)\)? != 0"), "no multiple of {}"),
    (re.compile(r"\(?-\w+ % (\d+)\)? <= (\d+)"), "a multiple of {} or up to {} less"),
    (re.compile(r"\w+ >= (\d+)"), "at least {}"),
    (re.compile(r"\w+ <= (\d+)"), "at most {}"),
    (re.compile(r"\w+ > (\d+)"), "more than {}"),
    (re.compile(r"\w+ < (\d+)"), "less than {}"),
    (re.compile(r"\w+ != (\d+)"), "not {}"),
)
_BEGINNINGS = tuple(words.split("{}")[0] for _, words in _FORMS)


def _in_words(limit: Limit) -> str:
    if len(limit.names) == 1:
        for form, words in _FORMS:
            if match := form.fullmatch(limit.condition):
                return words.format(*match.groups())
    return limit.condition
