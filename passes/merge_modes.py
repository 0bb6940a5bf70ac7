"""Merge the training graph and the evaluation graph of a model into one that is right in both modes.

    before   train: dropout(x, 0.1, True)      eval: dropout(x, 0.1, False)
    after    get_attr blocks.0.training -> dropout(x, 0.1, training)

    before   train: sdpa(q, k, v, None, 0.1)   eval: sdpa(q, k, v, None, 0.0)
    after    select_mode(training, 0.1, 0.0) -> sdpa(q, k, v, None, _)

    before   train: add_(num_batches_tracked, 1); batch_norm(…)     eval: batch_norm(…)
    after    call_module norm.mode_switch(num_batches_tracked); batch_norm(…)

    before   train: call_module aux(x)         eval: nothing
    after    get_attr aux -> call_module mode_switch(x, aux)

Needs: both graphs lifted over the same model, with the same constants.
Leaf modules hold their own mode, so most models need nothing at all. Where a literal differs, a flag that `.train()`
and `.eval()` set is read live: the flag of the module whose forward holds the operator, or of the one inside that this
forward asks, so that a part of the model can be frozen in evaluation mode. Where nodes differ, both stretches go into a
`ModeSwitch`, which stands in the innermost module around them, or the one that it asks; the modules it calls stay where
they are and come in as arguments.
Never touches: the evaluation graph.
"""

from __future__ import annotations

import copy
import difflib
import operator
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from repl_fx._torch import module_stack
from repl_fx.finding.node_table import common_path
from repl_fx.graph.captured import (
    AlikeGraphModule,
    called_module,
    drop_dead,
    has_attribute,
    has_effect,
    is_tensor,
    unique_name,
)
from repl_fx.graph.extracting import named_alike
from repl_fx.graph.notes import PASSES_THROUGH
from repl_fx.graph.runtime import ModeSwitch, SizeCheck, call_module, check_modes, select_mode
from repl_fx.graph.signature import PackOutput
from repl_fx.passes.driver import Result

_OUTSIDE = ("placeholder", "get_attr")


@dataclass(frozen=True)
class Deciding:
    """The modules, by path, whose code asks for a mode.

    Attributes:
        modes: for each, the module whose mode that is: itself, or one inside.
        beside: for those that ask for several, all of these.
        told: modules that are called otherwise in each mode, or in one alone: the code around them has decided that.
    """

    modes: Mapping[str, str] = field(default_factory=dict)
    beside: Mapping[str, Sequence[str]] = field(default_factory=dict)
    told: Collection[str] = ()


NONE_KNOWN = Deciding()


@dataclass(frozen=True)
class MergeResult(Result):
    """A graph that is right in both modes.

    Attributes:
        changed: the nodes with other arguments in each mode, and the calls of switches.
        literals: arguments that now depend on the mode.
        switches: stretches of the graph of which each mode has its own.
    """

    literals: int = 0
    switches: int = 0


def merge_modes_(gm: fx.GraphModule, evaluation: fx.Graph, asking: Deciding = NONE_KNOWN) -> MergeResult:
    """Let the training graph of a model compute evaluation mode too, by the modes of its modules.

    Args:
        gm: the model's graph in training mode, changed in place; mode switches are added to its modules.
        evaluation: the graph in evaluation mode, over the same modules; it is not changed.
        asking: the modules whose code asks for a mode; where none is known to, the innermost around is taken for one.
    """
    merger = _Merger(gm.graph, copy.deepcopy(evaluation), gm, asking)
    merger.align()
    merger.compare()
    merger.build_switches()
    drop_dead(merger.graph)
    changed = (*merger.literals, *merger.switches)
    return MergeResult(gm, changed, len(merger.literals), len(merger.switches))


@dataclass(eq=False)
class _Region:
    """A stretch where the graphs differ: some nodes of one, some of the other, either side possibly empty.

    Attributes:
        train, evaluation: the nodes of each side.
        before: the first node of the training graph after the stretch.
        wanted: the values used outside: each in training, in evaluation, and as a node that stands for both until the
            switch is built.
    """

    train: list[fx.Node]
    evaluation: list[fx.Node]
    before: fx.Node
    wanted: list[tuple[Any, Any, fx.Node]] = field(default_factory=list)


class _Merger:
    def __init__(self, train: fx.Graph, evaluation: fx.Graph, root: fx.GraphModule, asking: Deciding) -> None:
        self.graph = train
        self.evaluation = evaluation
        self.root = root
        self.asking = asking
        self.image: dict[fx.Node, fx.Node] = {}
        self.regions: list[_Region] = []
        self.region_of: dict[fx.Node, _Region] = {}
        self.outside: dict[tuple[str, str], fx.Node] = {
            (n.op, str(n.target)): n for n in train.nodes if n.op in _OUTSIDE
        }
        # The regions whose values nodes stand for.
        self.made_by: dict[fx.Node, _Region] = {}
        self.literals: list[str] = []
        self.switches: list[str] = []
        self.start = next(n for n in train.nodes if n.op not in _OUTSIDE)

    def align(self) -> None:
        """Pair the nodes of both graphs, and gather what has no counterpart into regions."""
        for node in self.evaluation.nodes:
            if node.op == "placeholder":
                self.image[node] = self.outside[node.op, str(node.target)]
            elif node.op == "get_attr":
                self.image[node] = self.attribute(str(node.target), node.meta)
        for node in [*self.graph.nodes, *self.evaluation.nodes]:
            _spell_out_defaults(node)
        ours = [n for n in self.graph.nodes if n.op not in _OUTSIDE]
        theirs = [n for n in self.evaluation.nodes if n.op not in _OUTSIDE]
        i = j = 0
        # What a mode returns has its own names.
        keys = [
            [(node_key(n), n.target if isinstance(n.target, PackOutput) else None) for n in nodes]
            for nodes in (ours, theirs)
        ]
        for start_i, start_j, size in matching_blocks(*keys):
            if (start_i, start_j) != (i, j):
                region = _Region(ours[i:start_i], theirs[j:start_j], ours[start_i])
                self.regions.append(region)
                self.region_of.update(dict.fromkeys([*region.train, *region.evaluation], region))
            self.image.update(zip(theirs[start_j : start_j + size], ours[start_i : start_i + size], strict=True))
            i, j = start_i + size, start_j + size

    def compare(self) -> None:
        """Make an argument depend on the mode where paired nodes take different ones."""
        for theirs, ours in list(self.image.items()):
            if ours.op not in _OUTSIDE:
                PASSES_THROUGH.put(ours, PASSES_THROUGH.of(theirs) or False)
                ours.args = self.argument(ours.args, theirs.args, ours)
                ours.kwargs = self.argument(ours.kwargs, theirs.kwargs, ours)

    def argument(self, ours: Any, theirs: Any, user: fx.Node) -> Any:
        """One argument of a paired node, with a choice in the place of each value in it that differs."""
        sequences = (all(isinstance(value, kind) for value in (ours, theirs)) for kind in (tuple, list))
        if any(sequences) and len(ours) == len(theirs):
            return type(ours)([self.argument(a, b, user) for a, b in zip(ours, theirs, strict=True)])
        if isinstance(ours, dict) and isinstance(theirs, dict) and list(ours) == list(theirs):
            return {name: self.argument(ours[name], theirs[name], user) for name in ours}
        if isinstance(ours, slice) and isinstance(theirs, slice):
            ends, others = ((one.start, one.stop, one.step) for one in (ours, theirs))
            return slice(*self.argument(ends, others, user))
        theirs = self.image.get(theirs, theirs) if isinstance(theirs, fx.Node) else theirs
        return ours if ours is theirs or equal_literals(ours, theirs) else self.choice(ours, theirs, user)

    def choice(self, ours: Any, theirs: Any, user: fx.Node) -> Any:
        """A node in the place of an argument that differs: a selection by mode, or a value of a region's switch."""
        if not any(isinstance(value, (tuple, list, dict)) for value in (ours, theirs)):
            nodes = [value for value in (ours, theirs) if isinstance(value, fx.Node)]
            regions = [self.region_of[node] for node in nodes if node in self.region_of]
            last = max(regions, key=self.regions.index, default=None)
            # Behind a region one mode may make what the other has from it: then it is picked where it is used.
            if last is not None and all(node in self.region_of or node < last.before for node in nodes):
                return self.want(last, ours, theirs)
        # Each mode returns a structure of its own, such as the outputs of auxiliary heads in training alone.
        ours = fx.node.map_arg(ours, lambda n: self.source(n, training=True))
        theirs = fx.node.map_arg(theirs, lambda n: self.source(n, training=False))
        self.literals.append(user.name)
        made = [self.made_by[node] for node in (*_nodes_in(ours), *_nodes_in(theirs)) if node in self.made_by]
        taken = [self.owner_of(region) for region in made]
        path = self.owner([user])
        if taken and path not in self.asking.modes.values():
            # What the model returns is around all modules.
            path = taken[0]
        flag = self.flag(path)
        self.require_alike(path, (*taken, *self.asked_inside(path, [user])), user)
        if ours is True and theirs is False:
            return flag
        with self.graph.inserting_before(user):
            chosen = self.graph.call_function(select_mode, (flag, ours, theirs))
        chosen.meta["val"] = fx.node.map_arg(ours, lambda n: n.meta.get("val"))
        return chosen

    def want(self, region: _Region, ours: Any, theirs: Any) -> fx.Node:
        """A node that stands for a value of a region: `ours` in training, `theirs` in evaluation."""
        for known_ours, known_theirs, node in region.wanted:
            if known_ours is ours and known_theirs is theirs:
                return node
        with self.graph.inserting_before(region.before):
            node = self.graph.call_function(_pending)
        node.meta["val"] = fx.node.map_arg(theirs if ours is None else ours, lambda n: n.meta.get("val"))
        region.wanted.append((ours, theirs, node))
        self.made_by[node] = region
        return node

    def source(self, node: fx.Node, *, training: bool) -> fx.Node:
        """The node of the merged graph that holds the value a node has in one mode."""
        node = self.image.get(node, node)
        if node.op == "get_attr":
            # One mode may read it earlier than the other.
            self.start.prepend(node)
        if node not in self.region_of:
            return node
        return self.want(self.region_of[node], *((node, None) if training else (None, node)))

    def attribute(self, target: str, meta: dict[str, Any]) -> fx.Node:
        """The one node of the merged graph that reads a parameter, a buffer, a module or a mode flag."""
        known = self.outside.get(("get_attr", target))
        if known is not None:
            return known
        with self.graph.inserting_before(self.start):
            made = self.graph.create_node("get_attr", target)
        made.meta = dict(meta)
        self.outside["get_attr", target] = made
        return made

    def flag(self, path: str) -> fx.Node:
        """The mode flag of a module, by path."""
        return self.attribute(f"{path}.training".lstrip("."), {"val": True})

    def owner(self, nodes: Iterable[fx.Node]) -> str:
        """Path of the module whose mode decides about all of `nodes`: the innermost around them whose code asks.

        Of modules that code around calls otherwise in each mode, that has decided.
        """
        # Calls of a leaf are made by the module around it.
        stacks = ([p for p in _stack(n) if n.op != "call_module" or p != n.target] for n in nodes)
        common = common_path([p for p in stack if has_attribute(self.root, p)] for stack in stacks)
        decided = [path for path in ("", *common) if path in self.asking.modes and path not in self.asking.told]
        return self.asking.modes[decided[-1]] if decided else ("", *common)[-1]

    def owner_of(self, region: _Region) -> str:
        """Path of the module whose mode decides about a region."""
        return self.owner([*region.train, *region.evaluation])

    def asked_inside(self, owner: str, nodes: Iterable[fx.Node]) -> list[str]:
        """Paths of the modules whose modes code inside of the owner asks for around nodes."""
        stacks = {path for node in nodes for path in (*_stack(node), *_within(node)) if path in self.asking.modes}
        inside = (path for path in stacks if path and not f"{owner}.".startswith(f"{path}."))
        return [self.asking.modes[path] for path in inside if has_attribute(self.root, path)]

    def require_alike(self, owner: str, others: Iterable[str], before: fx.Node) -> None:
        """Refuse calls where what one module's mode decides has another's as it was in the trace of that mode."""
        names = sorted({*others, *self.asking.beside.get(owner, ())} - {owner})
        if names:
            flags = map(self.flag, (owner, *names))
            with self.graph.inserting_before(before):
                check = self.graph.call_function(check_modes, (type(self.root.get_submodule(owner)).__name__, *flags))
            check.meta = {"val": None, "nn_module_stack": before.meta.get("nn_module_stack")}

    def build_switches(self) -> None:
        """Replace each region by one call that runs the version of the mode."""
        # A region may use values of those before it, which must know before they are built.
        for region in reversed(self.regions):
            effects = any(map(has_effect, region.train)) or any(map(self.acts_in_evaluation, region.evaluation))
            if region.wanted or effects:
                if self.sizes_alike(region):
                    continue
                self.switch(region)
            for node in reversed(region.train):
                self.graph.erase_node(node)

    def acts_in_evaluation(self, node: fx.Node) -> bool:
        """Tell whether a node of evaluation does more than compute its value; a parametrisation of torch does not.

        `nn.MultiheadAttention` asks for the weight of its last layer in evaluation, and does not always read it.
        """
        module = called_module(self.root, node)
        if module is None or not type(module).__module__.startswith("torch.nn.utils."):
            return has_effect(node)
        return bool(module._forward_hooks or module._forward_pre_hooks)

    def sizes_alike(self, region: _Region) -> bool:
        """Let both modes compute the sizes that only training needs: that costs less than a switch.

        Likewise those that evaluation computes later than training.
        """
        if any(has_effect(n) or is_tensor(n) for n in [*region.train, *region.evaluation]):
            return False
        if region.train:
            alike = not region.evaluation and all(theirs is None for _, theirs, _ in region.wanted)
        else:
            alike = all(self.same_size(ours, theirs, region) for ours, theirs, _ in region.wanted)
        for ours, _, pending in region.wanted if alike else ():
            pending.replace_all_uses_with(ours if region.train else self.source(ours, training=True))
            self.graph.erase_node(pending)
        return alike

    def same_size(self, ours: Any, theirs: Any, region: _Region) -> bool:
        """Tell whether the training graph computes before a region what the evaluation graph does in it."""
        if not isinstance(ours, fx.Node) or not isinstance(theirs, fx.Node) or not ours < region.before:
            return False
        # The arguments of the evaluation graph's node, as they are in the training graph.
        imaged = fx.node.map_arg((theirs.args, theirs.kwargs), lambda n: self.image.get(n, n))
        return ours.target == theirs.target and imaged == (ours.args, ours.kwargs)

    def switch(self, region: _Region) -> None:
        train = _Stretch(self, region.train, True, [ours for ours, _, _ in region.wanted])
        evaluation = _Stretch(self, region.evaluation, False, [theirs for _, theirs, _ in region.wanted])
        sources = tuple(dict.fromkeys((*train.sources.values(), *evaluation.sources.values())))
        owner = self.owner_of(region)
        others = self.asked_inside(owner, [*region.train, *region.evaluation])
        taken = [self.owner_of(self.made_by[source]) for source in sources if source in self.made_by]
        path = f"{owner}.{unique_name(self.root.get_submodule(owner), 'mode_switch')}".lstrip(".")
        versions = ModeSwitch(train.build(sources), evaluation.build(sources))
        versions.training = self.root.get_submodule(owner).training
        self.root.add_submodule(path, versions)
        place = region.wanted[0][2] if region.wanted else region.before
        with self.graph.inserting_before(place):
            call = self.graph.call_module(path, sources)
        self.require_alike(owner, (*others, *taken), call)
        self.switches.append(call.name)
        call.meta = dict((region.train or region.evaluation)[0].meta)
        call.meta.pop(PASSES_THROUGH.key, None)
        vals = [pending.meta["val"] for _, _, pending in region.wanted]
        call.meta["val"] = vals[0] if len(vals) == 1 else tuple(vals)
        for index, (_, _, pending) in enumerate(region.wanted):
            made = call
            if len(vals) > 1:
                with self.graph.inserting_before(pending):
                    made = self.graph.call_function(operator.getitem, (call, index))
                made.meta = {**call.meta, "val": vals[index]}
            pending.replace_all_uses_with(made)
            self.graph.erase_node(pending)


class _Stretch:
    """One mode's stretch, to become a graph module of its own.

    Attributes:
        sources: for each value from outside the stretch, the node of the merged graph that holds it; for each module
            the stretch calls, by its path, the node that reads it.
    """

    def __init__(self, merger: _Merger, nodes: Sequence[fx.Node], training: bool, results: Sequence[Any]) -> None:
        self.nodes = nodes
        self.results = results
        self.sources: dict[fx.Node | str, fx.Node] = {}
        inside = set(nodes)
        for node in nodes:
            if node.op == "call_module":
                self.sources[str(node.target)] = merger.attribute(str(node.target), {"val": None})
        for value in [*(f for node in nodes for f in node.all_input_nodes), *results]:
            if isinstance(value, fx.Node) and value not in inside:
                self.sources.setdefault(value, merger.source(value, training=training))

    def build(self, sources: Sequence[fx.Node]) -> fx.GraphModule:
        """The stretch as a module; its arguments are `sources`, those of both modes."""
        graph = fx.Graph()
        inputs: dict[fx.Node, fx.Node] = {}
        for index, source in enumerate(sources):
            inputs[source] = graph.placeholder(f"input_{index}")
            inputs[source].meta["val"] = source.meta.get("val")
        env: dict[fx.Node | str, fx.Node] = {value: inputs[source] for value, source in self.sources.items()}
        for node in self.nodes:
            if node.op == "call_module":
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: env[n])
                env[node] = graph.call_function(call_module, (env[str(node.target)], *args), kwargs)
                env[node].meta = dict(node.meta)
            else:
                env[node] = graph.node_copy(node, lambda n: env[n])
        answers = [env[r] if isinstance(r, fx.Node) else r for r in self.results]
        graph.output(answers[0] if len(answers) == 1 else tuple(answers))
        return AlikeGraphModule(nn.Module(), named_alike(graph))


def _within(node: fx.Node) -> tuple[str, ...]:
    """Paths of the modules whose code asks for the sizes that a node checks."""
    return node.target.within if isinstance(node.target, SizeCheck) else ()


def _stack(node: fx.Node) -> tuple[str, ...]:
    """Paths of the modules around the code that a node comes from; a check of sizes stands before all of it."""
    steps = common_path(path.split(".") for path in _within(node))
    return module_stack(node) or tuple(".".join(steps[:count]) for count in range(1, len(steps) + 1))


def _nodes_in(value: Any) -> list[fx.Node]:
    """The nodes in an argument."""
    found: list[fx.Node] = []
    fx.node.map_arg(value, found.append)
    return found


def _pending() -> None:
    """Target of the nodes that stand for a region's values until its switch is built."""


def _spell_out_defaults(node: fx.Node) -> None:
    """Write positional defaults out: a trace leaves them away, so that `dropout_p=0.0` would look like another call."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return
    missing = [a for a in schema.arguments[len(node.args) :] if not a.kwarg_only]
    if all(a.has_default_value() and a.name not in node.kwargs for a in missing):
        node.args = (*node.args, *(a.default_value for a in missing))


def matching_blocks(ours: list[Any], theirs: list[Any]) -> Iterator[tuple[int, int, int]]:
    """Stretches that both lists have, as (start in ours, start in theirs, size), ascending.

    Equal items at both ends are cut off first: difflib is quadratic, and most models differ in one place or none.
    """
    shorter = min(len(ours), len(theirs))
    head = next((i for i in range(shorter) if ours[i] != theirs[i]), shorter)
    tail = next((i for i in range(shorter - head) if ours[-1 - i] != theirs[-1 - i]), shorter - head)
    yield 0, 0, head
    middle = ours[head : len(ours) - tail], theirs[head : len(theirs) - tail]
    for match in difflib.SequenceMatcher(None, *middle, autojunk=False).get_matching_blocks():
        if match.size:
            yield head + match.a, head + match.b, match.size
    yield len(ours) - tail, len(theirs) - tail, tail


def node_key(node: fx.Node) -> tuple[Any, ...]:
    """The traits that make two nodes the same: all but literals."""
    shape: tuple[Any, ...] = tuple(isinstance(a, fx.Node) for a in node.args) if node.op != "output" else ()
    if node.target is torch.ops.aten.sym_size.int and isinstance(given := node.args[0], fx.Node):
        # Which sizes are asked for is up to the sizes that a trace leaves free.
        shape = (str(given.target) if given.op == "placeholder" else given.op, node.args[1])
    # Packers of outputs are made anew for each trace; checks of sizes have one name, and each a condition of its own.
    own = node.target if isinstance(node.target, SizeCheck) else str(getattr(node.target, "__name__", node.target))
    return (node.op, own, module_stack(node)[-1:], shape, tuple(node.kwargs))


def equal_literals(ours: Any, theirs: Any) -> bool:
    """Tell whether two arguments are the same constant; NaN is NaN."""
    if isinstance(ours, fx.Node) or isinstance(theirs, fx.Node) or type(ours) is not type(theirs):
        return False
    return bool(ours == theirs) or bool(ours != ours and theirs != theirs)
