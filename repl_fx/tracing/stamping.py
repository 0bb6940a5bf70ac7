"""Trace one of each kind of block, and stamp the rest.

    source   for block in self.blocks: x = block(x)                        twelve blocks, all alike
    trace    begin_region(x) -> … -> end_region(y);  stamp(y) -> z;  stamp(z) -> …
    graph    … on blocks.0 -> … on blocks.1 -> … on blocks.2 -> …          as if each had been traced

A trace costs time for each operator, a copy of its nodes next to none. The first call of each kind is traced between
two markers. Later calls that are alike (`repl_fx.tracing.alike`) become one opaque operator each, whose results have
the sizes of the first call's. When the trace is lifted, `CallCopies` puts the nodes of the first call in its place,
with the parameters, layers and module paths of the other module.

A call is not copied from whose trace did more than make nodes: it changed Python state, drew a number from Python's
generator, decided by a value, wrote to an argument, read a value that came by another way than its arguments.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, fx, nn
from torch.fx.node import has_side_effect

from repl_fx._torch import (
    SYMBOLIC,
    define_operator,
    hand_on_node,
    is_unbacked,
    memory_of,
    outside_of_trace,
    path_of_entry,
    pytree,
    traced_node,
)
from repl_fx.graph.boundaries import BOUNDARIES, Boundary, ModuleCall, boundaries, note_boundary
from repl_fx.graph.known_shapes import like
from repl_fx.running.opaque_outputs import PLAIN
from repl_fx.running.python_state import PythonState
from repl_fx.tracing.alike import (
    Attributes,
    Spot,
    asks_for_gradients,
    attributes_of_tree,
    differences,
    hands_out,
    is_probability,
    kind_of_call,
    names_of,
    plain,
    structure_of,
    tolerated,
)
from repl_fx.tracing.attributes_aside import PAST_LOOKUP, AttributesAside
from repl_fx.tracing.data_dependent import DataDependentBranches
from repl_fx.tracing.leaf_calls import LeafCalls, held_by

_BEGIN = define_operator(
    "begin_region(Tensor[] tensors, int index) -> Tensor[]", lambda given, index: list(map(like, given))
)
_END = define_operator("end_region(Tensor[] results, int index) -> ()", lambda results, index: None)
_STAMP = define_operator(
    "stamp(Tensor[] tensors, int index) -> Tensor[]",
    lambda given, index: list(map(like, Stamps.current.stamps[index][0].results)),
)
# A region is there to be copied from, whether or not its values are used where it is.
has_side_effect(_BEGIN)
has_side_effect(_END)


@dataclass(eq=False)
class _Family:
    """Modules of one structure.

    Attributes:
        regions: traced calls of them that others may be copies of.
        differing: attributes in which they are not all the same, with the path of the layer that has them.
    """

    regions: list[TracedCall] = field(default_factory=list)
    differing: set[Spot] = field(default_factory=set)


@dataclass(frozen=True)
class _Moment:
    """The Python state of a module at one moment: its attributes, those that are aside too, and what its code names."""

    attributes: Attributes
    state: PythonState

    def changes(self, later: PythonState) -> list[str]:
        """The paths of what the code names that is another at a later moment, or for another module."""
        with outside_of_trace():
            changes = self.state.changes(later)
        return [change.path.removeprefix("len(") for change in changes]


@dataclass(eq=False)
class TracedCall:
    """A call of a module that was traced, and what has to be the same for another to be a copy of it.

    Attributes:
        module: the one called.
        key: of the arguments, modes and settings.
        parts: the modules inside, itself among them, with their paths in it.
        before: the Python state when the call began.
        watched: attributes of which a read is seen, and `read`, those that were read.
        inner: the calls of modules inside it.
        structure, leaves: of what it returned; a leaf is the number of a result, that of an argument (from -1 down),
            or a plain value in a tuple.
        results: the tensors among them that it made.
    """

    module: nn.Module
    key: Any
    parts: dict[nn.Module, str]
    before: _Moment
    watched: set[Spot] = field(default_factory=set)
    read: set[Spot] = field(default_factory=set)
    inner: list[ModuleCall] = field(default_factory=list)
    structure: pytree.TreeSpec | None = None
    leaves: list[int | tuple[Any]] = field(default_factory=list)
    results: list[Tensor] = field(default_factory=list)

    def counterparts(self, module: nn.Module) -> dict[nn.Module, nn.Module]:
        """The modules inside, each with the one in the same place in another module of this structure."""
        return dict(zip(self.parts, module.modules(), strict=True))

    def stands_for(self, module: nn.Module, now: _Moment) -> bool:
        """Tell whether the trace of this call is one of another module's, called in the same way."""
        mine, theirs = self.before.attributes, now.attributes
        spots = differences(mine, theirs, {id(one): other for one, other in self.counterparts(module).items()})
        for path, name in spots:
            if (path, name) in self.watched - self.read:
                continue
            values = mine[path].get(name), theirs[path].get(name)
            if (path, name) in self.read or not tolerated(module.get_submodule(path), name, *values):
                return False
        known = tuple(f"{path}.{name}".lstrip(".") for path, name in spots)
        return all(path.startswith(known) for path in self.before.changes(now.state))


@dataclass(eq=False)
class Stamps:
    """The calls of modules in one trace, of which alike ones are traced once.

    Attributes:
        model: the model that is traced.
        calls: of its leaves.
        aside: the attributes that are out of its modules.
        branches: decides for the model where it asks for values.
        on: calls are stamped; else each is traced.
        regions: the calls that were traced between markers.
        stamps: the calls that were not traced, each as the region that it is to be a copy of, and the module called.
        calls_of: the calls of each module, by path; the graph's notes (`repl_fx.graph.boundaries`) have them.
        current: those of the trace that goes on.
    """

    current: ClassVar[Stamps]

    model: nn.Module
    calls: LeafCalls
    aside: AttributesAside
    branches: DataDependentBranches
    on: bool
    regions: list[TracedCall] = field(default_factory=list)
    stamps: list[tuple[TracedCall, nn.Module]] = field(default_factory=list)
    calls_of: Mapping[str, list[ModuleCall]] = field(default_factory=dict)
    _open: list[TracedCall] = field(default_factory=list)
    _seen: set[nn.Module] = field(default_factory=set)
    _families: dict[nn.Module, _Family] = field(default_factory=dict)

    def begin(self, modules: Sequence[nn.Module], calls_of: dict[str, list[ModuleCall]]) -> None:
        """Group the modules whose calls may be alike.

        Args:
            modules: those whose calls come to `call`.
            calls_of: the calls of each, by path.
        """
        self.calls_of = calls_of
        first: dict[Any, tuple[nn.Module, _Family, Attributes]] = {}
        owners = names_of(self.model)
        for module in modules if self.on else ():
            structure = structure_of(module, owners)
            if structure not in first:
                first[structure] = (module, _Family(), attributes_of_tree(module))
                continue
            known, family, attributes = first[structure]
            self._families[known] = self._families[module] = family
            pairs: dict[int, Any] = dict(zip(map(id, known.modules()), module.modules(), strict=True))
            family.differing.update(differences(attributes, attributes_of_tree(module), pairs))

    def call(self, module: nn.Module, made: ModuleCall, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The results of a call, by a stamp where an alike one was traced before."""
        for region in self._open:
            region.inner.append(made)
        kind = self._kind(module, args, kwargs) if self.on and not self.calls.running else None
        if kind is None:
            return run(*args, **kwargs)
        key, tensors = kind
        now = _Moment(attributes_of_tree(module, self.aside), PythonState(module))
        for region in self._families[module].regions:
            if region.key == key and region.stands_for(module, now):
                return self._stamped(region, module, tensors)
        parts = {part: path for path, part in module.named_modules()}
        return self._traced(TracedCall(module, key, parts, now), tensors, run, args, kwargs)

    def _kind(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, list[Tensor]] | None:
        if module not in self._families:
            # A module that is called again is alike to itself.
            if module in self._seen:
                self._families[module] = _Family()
            self._seen.add(module)
        if module not in self._families or any(map(self.calls.has_others, module.modules())):
            return None
        kind = kind_of_call(args, kwargs, gradients=asks_for_gradients(module))
        if kind is None or hands_out(module):
            return None
        key, tensors = kind
        ways = tuple((part.training, self.calls.stands_aside(part)) for part in module.modules())
        return (key, ways), tensors

    def _traced(
        self, region: TracedCall, tensors: list[Tensor], run: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """The results of a call, which is traced between markers."""
        self.regions.append(region)
        index = len(self.regions) - 1
        stand_ins = _BEGIN(tensors, index)
        first = traced_node(stand_ins[0])
        own = dict(zip(map(id, tensors), stand_ins, strict=True))
        args, kwargs = pytree.tree_map(lambda leaf: own.get(id(leaf), leaf), (args, kwargs))
        events, versions = self._events(), [tensor._version for tensor in stand_ins]
        result = self._watched(region, run, args, kwargs)
        written = False
        for tensor, stand_in, version in zip(tensors, stand_ins, versions, strict=True):
            if stand_in._version != version:
                written = True
                hand_on_node(stand_in, tensor)
        leaves, region.structure = pytree.tree_flatten(result)
        simple = self._note_results(region, leaves, stand_ins)
        quiet = not written and events == self._events()
        _END(region.results, index)
        if simple and quiet and first is not None and self._is_closed(region, first) and self._is_as_before(region):
            self._families[region.module].regions.append(region)
        given = dict(zip(map(id, stand_ins), tensors, strict=True))
        if not any(id(leaf) in given for leaf in leaves):
            return result
        return pytree.tree_map(lambda leaf: given.get(id(leaf), leaf), result)

    def _watched(self, region: TracedCall, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The results of a call, with a note of what it reads of the attributes in which modules like it differ."""
        seen = not region.before.state.names_one_of(PAST_LOOKUP)
        differing = self._families[region.module].differing if seen else ()
        spots = [(region.module.get_submodule(path), name) for path, name in differing]
        # A layer reads its own attributes where nobody sees it; the code around it may read its probability too.
        spots = [(part, name) for part, name in spots if not self.calls.stands_aside(part) or is_probability(name)]
        self._open.append(region)
        try:
            with self.aside.kept(spots, self._note_read) as watched:
                region.watched = {(region.parts[m], name) for m, name in watched if not self.calls.stands_aside(m)}
                return run(*args, **kwargs)
        finally:
            self._open.pop()

    def _is_as_before(self, region: TracedCall) -> bool:
        """Tell whether the call has left its module's tensors and Python state as they were."""
        replaced = any(map(self.calls.has_others, region.parts))
        return not replaced and not region.before.changes(PythonState(region.module))

    def _events(self) -> Any:
        """Something to compare, which changes when a trace does more than make nodes."""
        numpy: Any = np.random.get_state(legacy=True)
        counts = len(self.branches.asked), len(self.calls.inlined)
        return counts, random.getstate(), numpy[1].tobytes(), numpy[2:]

    def _note_read(self, module: nn.Module, name: str) -> None:
        for region in self._open:
            if module in region.parts:
                region.read.add((region.parts[module], name))

    def _note_results(self, region: TracedCall, leaves: Sequence[Any], stand_ins: Sequence[Tensor]) -> bool:
        """Note what a call returned; whether another call's results can be made from that."""
        given = {id(tensor): -1 - number for number, tensor in enumerate(stand_ins)}
        memory = set(map(memory_of, stand_ins))
        simple = True
        made: dict[int, int] = {}
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                simple = simple and (leaf is None or isinstance(leaf, PLAIN))
                region.leaves.append((leaf,))
            elif id(leaf) in given:
                region.leaves.append(given[id(leaf)])
            else:
                if id(leaf) not in made:
                    made[id(leaf)] = len(region.results)
                    region.results.append(leaf)
                region.leaves.append(made[id(leaf)])
        return simple and all(
            plain(tensor) and traced_node(tensor) is not None and memory_of(tensor) not in memory
            for tensor in region.results
        )

    def _is_closed(self, region: TracedCall, first: fx.Node) -> bool:
        """Tell whether a region computes from its arguments, its module's state and known sizes alone."""
        tensors = [tensor for module in region.parts for tensor in held_by(module).values()]
        state = {node for t in tensors if t is not None and (node := traced_node(t)) is not None}
        begin = first.all_input_nodes[0]
        inside = {begin}
        node = begin.next
        while node.op != "root":
            inside.add(node)
            values = pytree.tree_leaves(node.meta.get("val"))
            sizes = [size for value in values for size in (value.shape if isinstance(value, Tensor) else (value,))]
            if any(map(is_unbacked, sizes)):
                return False
            for given in node.all_input_nodes:
                is_number = given.op == "call_function" and isinstance(given.meta.get("val"), _NUMBERS)
                if not (given in inside or given in state or given.op == "get_attr" or is_number):
                    return False
            node = node.next
        return True

    def _stamped(self, region: TracedCall, module: nn.Module, tensors: list[Tensor]) -> Any:
        self.stamps.append((region, module))
        results = _STAMP(tensors, len(self.stamps) - 1) if region.results else []
        leaves = [
            leaf[0] if isinstance(leaf, tuple) else results[leaf] if leaf >= 0 else tensors[-1 - leaf]
            for leaf in region.leaves
        ]
        assert region.structure is not None
        return pytree.tree_unflatten(leaves, region.structure)

    def given(self) -> dict[str, list[Any]]:
        """The plain values that each call of a module is given, by the paths of modules."""
        return {
            path: [[value if type(value) in _VALUES else None for value in call.given.values()] for call in calls]
            for path, calls in self.calls_of.items()
            if calls
        }

    def all_like(self, module: nn.Module) -> list[nn.Module]:
        """The modules that are called in copies of what a module is called in, itself first."""
        found = {module: None}
        for region, other in self.stamps:
            others = region.counterparts(other)
            found.update({others[one]: None for one in list(found) if one in others})
        return list(found)


_VALUES = (bool, int, float, str)
_NUMBERS = (*SYMBOLIC, *SYMBOLIC.values())


@dataclass(eq=False)
class _Lifted:
    """A region as it is in the new graph.

    Attributes:
        inputs: its arguments.
        start: how many nodes are before it.
        depth: how many modules are around it.
        nodes, results: once it has ended.
    """

    inputs: Sequence[fx.Node]
    start: int
    depth: int
    nodes: Sequence[fx.Node] = ()
    results: Sequence[fx.Node] = ()


@dataclass(eq=False)
class CallCopies:
    """Puts copies of regions in the place of stamps, as a trace is lifted.

    Attributes:
        graph: the new graph, at the end of which nodes are made.
        paths: of the model's modules.
        states: paths of the model's tensors, by `id`, as the graph calls them.
        state: gives the node for the tensor at a path.
    """

    stamps: Stamps
    graph: fx.Graph
    paths: Mapping[nn.Module, str]
    states: Mapping[int, str]
    state: Callable[[str, Any], fx.Node]
    _lifted: dict[TracedCall, _Lifted] = field(default_factory=dict)
    _open: list[TracedCall] = field(default_factory=list)

    @staticmethod
    def is_marker(node: fx.Node) -> bool:
        """Tell whether a node of a trace is for `mark`."""
        return node.target in (_BEGIN, _END, _STAMP)

    def mark(self, node: fx.Node, tensors: Sequence[fx.Node], index: int) -> list[fx.Node]:
        """Begin or end a region, or make a copy; what the node stands for."""
        if node.target is _STAMP:
            return self._copy(*self.stamps.stamps[index], tensors, node)
        region = self.stamps.regions[index]
        count = len(self.graph.nodes)
        if node.target is _BEGIN:
            self._lifted[region] = _Lifted(tensors, count, len(node.meta.get("nn_module_stack") or {}))
            self._open.append(region)
        else:
            lifted = self._lifted[region]
            lifted.nodes, lifted.results = list(self.graph.nodes)[lifted.start :], tensors
            self._open.remove(region)
        return list(tensors)

    def _copy(
        self, region: TracedCall, module: nn.Module, tensors: Sequence[fx.Node], marker: fx.Node
    ) -> list[fx.Node]:
        others = region.counterparts(module)
        targets = {self.paths[one]: self.paths[other] for one, other in others.items()}
        pairs = [(held_by(one), held_by(other)) for one, other in others.items()]
        tensors_of = [(id(tensor), id(theirs[name])) for mine, theirs in pairs for name, tensor in mine.items()]
        states = {self.states[a]: self.states[b] for a, b in tensors_of if a in self.states}
        lifted = self._lifted[region]
        env: dict[fx.Node, fx.Node] = dict(zip(lifted.inputs, tensors, strict=True))

        def other(node: fx.Node) -> fx.Node:
            if node in env:
                return env[node]
            if node.op == "get_attr" and str(node.target) in states:
                return self.state(states[str(node.target)], node.meta.get("val"))
            return node

        around = marker.meta.get("nn_module_stack") or {}
        for node in lifted.nodes:
            if node.op == "get_attr":
                env[node] = other(node)
                continue
            if isinstance(node.meta.get("val"), _NUMBERS):
                # Sizes are the same in both.
                continue
            target = targets.get(str(node.target), node.target) if node.op == "call_module" else node.target
            args, kwargs = fx.node.map_arg(node.args, other), fx.node.map_arg(node.kwargs, other)
            made = env[node] = self.graph.create_node(node.op, target, args, kwargs)
            made.meta = {key: value for key, value in node.meta.items() if key != BOUNDARIES}
            if "nn_module_stack" in node.meta:
                within = list(node.meta["nn_module_stack"].items())[lifted.depth :]
                made.meta["nn_module_stack"] = around | _moved(within, targets, self.paths[module])
        self._copy_boundaries(region, [*lifted.inputs, *lifted.nodes], env, targets)
        return [other(result) for result in lifted.results]

    def _copy_boundaries(
        self, region: TracedCall, nodes: Sequence[fx.Node], env: Mapping[fx.Node, fx.Node], targets: Mapping[str, str]
    ) -> None:
        calls: dict[ModuleCall, ModuleCall] = {}
        for call in list(region.inner):
            path = targets[call.path]
            known = self.stamps.calls_of[path]
            calls[call] = ModuleCall(path, known, call.given, call.result, call.constants)
            known.append(calls[call])
        for outer in self._open:
            outer.inner += calls.values()
        for node in dict.fromkeys(nodes):
            for one in boundaries(node):
                if one.call in calls and node in env:
                    note_boundary(env[node], Boundary(calls[one.call], one.argument, one.leaf))


def _moved(entries: Sequence[tuple[str, Any]], targets: Mapping[str, str], key: str) -> dict[str, Any]:
    """The counterparts of modules around a node inside a region, as torch.export notes them."""
    moved = {}
    for name, entry in entries:
        path, kind = entry if isinstance(entry, tuple) else (entry, None)
        moved[f"{name} of {key}"] = (targets.get(path_of_entry(entry), path), kind)
    return moved
