"""Cut surrogates out of a rewritten graph, behind the signatures of the modules that they stand for.

    graph     add_7 [into blocks.3: x] -> narrow -> linear(_, synthesised) -> add -> add_9 [out of blocks.3]
    in place  blocks.3(x, mask=None): narrow(x) -> linear(_, synthesised) -> add -> x'

A surrogate takes the values that the module was handed; sizes are those of its own inputs; weights of neighbours are
read from the model around it, and attention maps from their calls (`repl_fx.rewriting.in_place.attention_calls`).
Needs: a rewritten graph in which each synthesis is on its own, with the boundaries of module calls
(`repl_fx.graph.boundaries`).
Never touches: the graph; surrogates share its tensors.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from repl_fx._torch import SYMBOLIC, module_stack, pytree
from repl_fx.graph.boundaries import ModuleCall, at_boundaries, is_object
from repl_fx.graph.captured import (
    attribute,
    called_module,
    dimension_called,
    has_attribute,
    has_effect,
    is_tensor,
    is_traced_constant,
    share_tensors,
    tensors_in,
    within,
)
from repl_fx.graph.code import regions_of
from repl_fx.graph.decisions import is_choice
from repl_fx.graph.extracting import Extract, ToldSize
from repl_fx.graph.notes import COUNTERPART, REPLACES, STANDS_FOR
from repl_fx.graph.state import SOURCE_STATE, with_prefix
from repl_fx.passes.follow_device import ANCHOR
from repl_fx.passes.replace_blocks import block_of
from repl_fx.rewriting.in_place.arguments_read import Left, Line, arguments_read, lines_of
from repl_fx.rewriting.in_place.attention_calls import BorrowedAttention, KeptCall, layer_index
from repl_fx.rewriting.in_place.checks_of_sizes import checks_for
from repl_fx.rewriting.in_place.placing import OWN, ModulePlace, NotInPlace, main_of, place_of, sums_of, ways_of
from repl_fx.rewriting.in_place.surrogate_block import (
    Argument,
    Constant,
    Made,
    Passed,
    ResultForm,
    StandIn,
    SurrogateBlock,
    surrogate_class,
)
from repl_fx.running.code_names import is_foreign, names_in
from repl_fx.running.holders import OWN_ATTRIBUTES
from repl_fx.running.opaque_outputs import PLAIN
from repl_fx.surrogates import make_surrogate
from repl_fx.surrogates.shared.borrowed_maps import BORROWS
from repl_fx.surrogates.shared.recompute import RecomputedAttention
from repl_fx.surrogates.shared.sharded_weights import is_sharded, whole
from repl_fx.surrogates.shared.site import surrogate_path
from repl_fx.tracing.module_calls import is_noted
from repl_fx.tracing.parts.capture_parts import assemble, qualified_name
from repl_fx.tracing.parts.part_repeats import PartRepeats

_STATE = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training")
# Nodes outside of a block that can be computed for it again.
_COMPUTED = ("call_function", "get_attr")
# The attributes of layers that hold the sizes of their weight; transformers' Conv1D computes with them.
_SIZES = (("out_features", "in_features"), ("out_channels", "in_channels"), ("nx", "nf"))
# The functions of torch that compute again in the backward pass.
_CHECKPOINTS = {"checkpoint", "checkpoint_sequential"}
# The arguments of `RecomputedAttention` before the map.
_OWN_OF_LAYER = 5


def paths_to_cut(gm: fx.GraphModule, part: PartRepeats, place: ModulePlace) -> tuple[str | None, ...]:
    """The modules of a place that get a surrogate each; None for one that stands for the whole of it."""
    if not place.is_loose:
        return place.paths if place.is_added else (None,)
    blocks = {part.blocks[replacement.block].name for replacement in place.replacements}
    stood = [path for node in gm.graph.nodes if (path := STANDS_FOR.of(node)) is not None and block_of(node) in blocks]
    return tuple(path for path in place.paths if any(one.startswith(f"{path}.") for one in stood)) or place.paths[:1]


class Cut:
    """The surrogates of one place, cut out of a graph, with what of the module is around them.

    Args:
        gm: the rewritten graph, with syntheses one by one.
        part: the repeats of the graph before.
        place: the module, and the blocks with their surrogates.
        source: the model that the graph is of, or is a part of.
        own_code: whether the module's own code may run, where the surrogates swap parameters alone.
        path: the module, where each of several stands for its own part of a block.

    Attributes:
        most: where parameters are swapped for others of other sizes, the largest size of those of the block; else 0.

    Raises:
        NotInPlace: the surrogate needs a value that the module is not handed, or the module is called in a way that no
            other module can be called in.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        part: PartRepeats,
        place: ModulePlace,
        source: nn.Module,
        *,
        own_code: bool = True,
        path: str | None = None,
    ) -> None:
        self.gm, self.part, self.place = gm, part, place
        self.blocks = [part.blocks[replacement.block] for replacement in place.replacements]
        if not place.paths:
            raise NotInPlace("it is no call of a single module")
        self.model = source
        surrogates = [make_surrogate(replacement.surrogate, replacement.settings) for replacement in place.replacements]
        self.traits = [surrogate.traits for surrogate in surrogates]
        if any(traits.changes_neighbours for traits in self.traits):
            raise NotInPlace(f"it changes a layer of {place.replacements[0].before}, which stays the model's own")
        self.own = {
            f"{surrogate_path(block.name)}.": f"{place.own(replacement.block)}."
            for block, replacement in zip(self.blocks, place.replacements, strict=True)
        }
        nodes = {block.name: {node for node in gm.graph.nodes if block_of(node) == block.name} for block in self.blocks}
        self.inside = set().union(*nodes.values())
        # Of a loose row, layers that stay as they are need not be modules around layers.
        for called in () if place.is_loose else place.paths:
            self._only_call(called)
        row = (place.is_added or len(place.paths) > 1) and not place.is_loose
        self.ways = ways_of(part.graph_module.graph, self.blocks[0], place.paths) if row else {}
        self.sums = self._sums() if place.is_added else {}
        self.main = main_of(place.paths, self.inside, tuple(filter(None, self.sums)))
        self.path = path or self.main
        if place.is_half:
            self.inside |= {node for node in gm.graph.nodes if self.path in module_stack(node)}
        self.reads_stream_alone = all(traits.reads_stream_alone for traits in self.traits)
        self._require_not_skipped()
        self.swaps = own_code and (place.is_added or not row) and self._can_swap(nodes.values())
        if place.is_loose and not self.swaps:
            raise NotInPlace("it is no call of a single module, and its surrogate does not run its own code")
        self.most = 0
        self.call = self._only_call(self.path)
        self.given, self.results = self._boundaries()
        self.given |= self._numbers()
        self.extract = Extract(self.given)
        # Nodes of the new graph for state that is elsewhere, by path.
        self.elsewhere: dict[str, fx.Node] = {}
        self.arguments: dict[fx.Node, Argument] = {}
        self.borrowed: dict[fx.Node, BorrowedAttention] = {}

    def _can_swap(self, nodes: Iterable[Collection[fx.Node]]) -> bool:
        """Tell whether each block, with its nodes here, can go on with other values in the place of its parameters."""
        # A surrogate that can swap parameters need not do so here: then no node is noted to stand for one.
        noted = all(any(STANDS_FOR.of(node) for node in own) for own in nodes)
        # What is computed again in the backward pass finds no values in the place of parameters.
        again = any(_checkpoints(self._source(path)) for path in self.place.paths)
        return all(traits.keeps_nodes for traits in self.traits) and noted and not again

    def _require_not_skipped(self) -> None:
        """Refuse a surrogate that the model's own loop would skip with the block, where the graph does not."""
        if not self.place.is_half and all(traits.source == "nothing" for traits in self.traits):
            return
        if any(is_choice(node) for node in self.inside.union(*(block.nodes for block in self.blocks))):
            raise NotInPlace("it may be skipped in training; give the model a rate of 0 for that (layerdrop) before")

    def made(self) -> dict[str, SurrogateBlock]:
        """The modules with the arguments and results of those whose places they take, by their paths."""
        swaps, form = self.swaps, self.call.result
        assert form is not None
        block = self._without_work(self.path)
        names = self._swapped(block) if swaps else {}
        leaves = () if swaps else tuple(self._leaf(number) for number in range(form.num_leaves))
        results = [*names.values(), *dict.fromkeys(leaf for leaf in leaves if isinstance(leaf, fx.Node))]
        added = self.place.is_apart
        if added and swaps and not names:
            # A module that the surrogate leaves as it was.
            return {}
        here = {node for node in self.inside if not added or self.path in module_stack(node)}
        effects = () if swaps else (node for node in here if has_effect(node))
        needed = self._needed([*results, *effects])
        around = self._regions_around(needed)
        devices = self._needed(given for end in around for given in end.all_input_nodes if given not in around)
        self._write(results, needed | around | devices, block)
        block._stand_in = StandIn(
            qualified_name(self.part.path, self.path),
            self.extract.graph,
            tuple(self.arguments.values()),
            tuple(self.elsewhere),
            tuple(self.borrowed.values()),
            form,
            tuple(self._made(leaf, results) if isinstance(leaf, fx.Node) else leaf for leaf in leaves),
            _known(self.call),
            () if swaps else self._read(self.path, needed),
            None if swaps else self._neighbour(),
            tuple(names),
            frozenset(path for path in self.elsewhere if self._is_unbiased(path)),
            self._norms_behind(),
            self._stream(),
            index=self._index(self.path),
        )
        if swaps:
            block._stand_in.swap.install(block, names)
        others = () if added else (path for path in self.ways if path != self.path)
        return {self.path: block, **{path: self._handing_on(path, needed) for path in others}}

    def _handing_on(self, path: str, needed: Collection[fx.Node]) -> SurrogateBlock:
        """A module of the row that returns what streams into it."""
        call, way, graph = self._only_call(path), self.ways[path], fx.Graph()
        assert call.result is not None
        leaves: list[Any] = [Constant(call.constants.get(number)) for number in range(call.result.num_leaves)]
        leaves[way.leaf] = Passed(way.place)
        graph.output(())
        block, given = self._without_work(path), _known(call)
        known: Any = {"known": given, "read": self._read(path, needed), "index": self._index(path)}
        name = qualified_name(self.part.path, path)
        block._stand_in = StandIn(name, graph, (), (), (), call.result, tuple(leaves), **known)
        return block

    def _index(self, path: str) -> int | None:
        """The number of a module in a cache, where nothing of it, and no layer of the surrogate, keeps values there."""
        number = layer_index(self._source(path))
        is_kept = self.swaps or self.place.is_half or number in {layer.index for layer in self.borrowed.values()}
        return None if is_kept else number

    def _made(self, result: fx.Node, results: Sequence[fx.Node]) -> Made:
        """A result of the surrogate's graph, with the first argument that is as precise as it."""
        value, number = result.meta.get("val"), results.index(result)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return Made(number)
        alike = (i for i, argument in enumerate(self.arguments.values()) if argument.dtype == value.dtype)
        return Made(number, next(alike, None))

    def _only_call(self, path: str) -> ModuleCall:
        """The call of a module.

        Raises:
            NotInPlace: the module is called several times, or no call of it was seen.
        """
        call = next((boundary.call for _, boundary in at_boundaries(self.part.graph_module.graph, path)), None)
        if call is None and not is_noted(self._source(path)):
            raise NotInPlace(f"{path} is a layer, and surrogates stand in the places of modules around layers")
        if call is None:
            raise NotInPlace(f"no call of the module {path} was seen in the trace")
        if len(call.calls) > 1:
            raise NotInPlace(f"the module {path} is called more than once")
        if call.result is None or not all(isinstance(value, PLAIN) for value in call.constants.values()):
            raise NotInPlace(f"the module {path} returns an object that is neither a tensor nor a plain value")
        return call

    def _boundaries(self) -> tuple[dict[fx.Node, tuple[Any, ...]], dict[int, fx.Node]]:
        """The place of each value among the arguments of the module, and its results by number."""
        given: dict[fx.Node, tuple[Any, ...]] = {}
        results: dict[int, fx.Node] = {}
        for node, boundary in at_boundaries(self.gm.graph, self.path):
            if boundary.argument is None:
                results[boundary.leaf] = node
            else:
                given.setdefault(node, boundary.argument)
        if self.place.is_added:
            own = "" if "" in self.sums and self.path == self.main else self.path
            stream, *made = self.sums.get(own, (self._entering(),))
        elif self.ways:
            last, stream = list(self.ways)[-1], self._entering()
            made = [n for n, boundary in at_boundaries(self.gm.graph, last) if boundary.leaf == self.ways[last].leaf]
        if self.ways:
            way = self.ways[self.path]
            given[stream] = way.place
            results.update((way.leaf, node) for node in made)
        # Sizes come from the first value that has them: the streamed one mostly, and not a mask that may be broadcast.
        names = list(inspect.signature(self._source(self.path).forward).parameters)
        return {node: given[node] for node in sorted(given, key=lambda node: names.index(given[node][0]))}, results

    def _numbers(self) -> dict[fx.Node, tuple[Any, ...]]:
        """The place of each number among the arguments of the module that is no size of a tensor among them."""
        handed = {str(leaf): place for place, leaf in self.call.given.items() if isinstance(leaf, torch.SymInt)}
        values = {node: str(node.meta.get("val")) for node in self.gm.graph.nodes if handed and not is_tensor(node)}
        tensors = list(filter(is_tensor, self.given))
        return {n: handed[v] for n, v in values.items() if v in handed and dimension_called(v, tensors) is None}

    def _entering(self) -> fx.Node:
        """The stream before the first module of a row."""
        path, way = next(iter(self.ways.items()))
        return next(node for node, boundary in at_boundaries(self.gm.graph, path) if boundary.argument == way.place)

    def _sums(self) -> dict[str, tuple[fx.Node, fx.Node]]:
        """The additions of the surrogate to the stream; see `sums_of`.

        Raises:
            NotInPlace: the surrogate does more than to add to the stream.
        """
        stream, name = self._entering(), self.blocks[0].output.name
        output = next((node for node in self.inside if COUNTERPART.of(node) == name), stream)
        sums = sums_of(self.gm.graph, output, stream, self.place.paths)
        if output is not stream and not sums:
            raise NotInPlace("it is no sum with the stream, to which the model adds what layers of the block return")
        return sums

    def _source(self, path: str) -> nn.Module:
        """The module of the model before."""
        return self.model.get_submodule(qualified_name(self.part.path, path))

    def _without_work(self, path: str) -> SurrogateBlock:
        """The module with what stays of it, its hooks and plain attributes, and the surrogate's modules."""
        kind = surrogate_class(type(self._source(path)), self.swaps)
        block = kind.__new__(kind)
        # A copy whose lists of modules and methods are its own.
        source = vars(assemble(self._source(path), {}))
        if self.swaps:
            block.__dict__.update(source)
        else:
            left = nn.Module()
            if has_attribute(self.gm, path):
                left = share_tensors(self.gm.get_submodule(path))
            plain = {n: v for n, v in source.items() if n not in OWN_ATTRIBUTES and not _holds_modules(v)}
            hooks = {n: v for n, v in source.items() if n in OWN_ATTRIBUTES and n not in _STATE}
            block.__dict__.update({**plain, **hooks, **{n: v for n, v in vars(left).items() if n in _STATE}})
        block.training = self.gm.training
        if has_attribute(block, OWN):
            raise NotInPlace(f"the module {path} has an attribute {OWN} already")
        for made, own in self.own.items() if path == self.main else ():
            if has_attribute(self.gm, made[:-1]):
                *holder, name = own[:-1].split(".")
                where = block if not holder else block._modules.setdefault(OWN, nn.Module())
                assert where is not None
                where._modules[name] = share_tensors(self.gm.get_submodule(made[:-1]))
        _require_own_state(block, path)
        pinned: Mapping[str, bool] = self.gm.meta.get("pinned", {})
        homes = self.own if path == self.main else {}
        made_here = {name: mode for name, mode in pinned.items() if name.startswith(tuple(homes))}
        block._pinned = within(path, pinned) | {with_prefix(name, homes): mode for name, mode in made_here.items()}
        # By which a checkpoint of the source is loaded (`repl_fx.sources.checkpoints.source_state`).
        block.meta = {SOURCE_STATE: within(path, self.gm.meta[SOURCE_STATE])}
        return block

    def _swapped(self, block: SurrogateBlock) -> dict[str, fx.Node]:
        """The nodes whose values the block has in the place of parameters, by name; the module has those no more."""
        if any(isinstance(module, nn.RNNBase) for module in block.modules()):
            raise NotInPlace(f"the module {self.path} has a recurrent layer, which keeps its weights twice")
        swapped = {}
        for node in self.gm.graph.nodes:
            path = STANDS_FOR.of(node) if node in self.inside else None
            if path and path.startswith(f"{self.path}."):
                swapped[path.removeprefix(f"{self.path}.")] = node
            elif path and not path.startswith(tuple(f"{place}." for place in self.place.paths)):
                raise NotInPlace(f"it stands for {path}, which is outside of {' and '.join(self.place.paths)}")
        for name, node in swapped.items():
            owner, _, own = name.rpartition(".")
            module = block.get_submodule(owner)
            before, now = module._parameters[own], node.meta["val"]
            if before is not None and before.shape != now.shape:
                self.most = max(self.most, *before.shape)
                _tell_sizes_(module, before, now)
            module._parameters[own] = None
        return swapped

    def _leaf(self, number: int) -> fx.Node | Passed | Constant:
        """A leaf of the result: a node that makes it, or else where it comes from."""
        assert self.call.result is not None
        if number in self.call.constants:
            return Constant(self.call.constants[number])
        node = self.results.get(number)
        if node is None and self.place.is_added and number == self.ways[self.path].leaf:
            return Passed(self.ways[self.path].place, as_zeros=True)
        if node is None:
            # A value that only the removed block had.
            return Constant(None)
        return Passed(self.given[node]) if node in self.given else node

    def _read(self, path: str, needed: Collection[fx.Node]) -> tuple[tuple[str, ...], ...]:
        """The arguments of a module that have to be as in the trace; see `arguments_read`."""
        source, given = self._source(path), self._only_call(path).given
        objects = {place[0] for place, value in given.items() if is_object(value)}
        alone = self.reads_stream_alone
        before = lines_of(node for block in self.blocks for node in block.nodes)
        all_stays = Left(set(source.modules()), before, before)
        read = arguments_read(source, self._left(path, needed, before) if alone else all_stays)
        used = [place[0] for place in read if place[0] in objects]
        if used and (self.place.is_half or not alone):
            # A cache, mostly, in which the graph would neither look nor leave anything.
            raise NotInPlace(f"what stays of {path} reads and changes {used[0]}, which a graph does not")
        # Else they are read and changed where the block was, and say nothing by their kind.
        return tuple(place for place in read if place[0] not in objects)

    def _left(self, path: str, needed: Collection[fx.Node], before: Collection[Line]) -> Left:
        """The rest of a module behind surrogates of its stream alone."""
        # Layers by their calls and their parameters; what is between them by the modules whose code it is.
        places = [f"{place}." for node in needed for place in (str(node.target), *module_stack(node))]
        inside = self._source(path).named_modules()
        modules = {m for name, m in inside if any(p.startswith(f"{qualified_name(path, name)}.") for p in places)}
        return Left(modules, before, lines_of(node for node in needed if REPLACES.of(node) is None))

    def _neighbour(self) -> tuple[str, Any, ResultForm] | None:
        """The structure of the result of the kept block before, where a call of the block can have flags."""
        source, replaced = self._source(self.path), zip(self.blocks, self.place.replacements, strict=True)
        # The first of two blocks may be a module inside.
        standing = ((place_of(self.part, block), one.before) for block, one in replaced)
        number, before = next(((p.index(self.path), one) for p, one in standing if self.path in p), (0, ""))
        if not before or len(inspect.signature(source.forward).parameters) < 2:
            return None
        # The first block of a repeat may be less than its module, which makes what all blocks share.
        path = "".join(place_of(self.part, self.part.blocks[before])[number : number + 1])
        if not path or type(self._source(path)) is not type(source):
            return None
        try:
            form = self._only_call(path).result
        except NotInPlace:
            return None
        return (qualified_name(self.part.path, path), form, ResultForm()) if form is not None else None

    def _needed(self, results: Iterable[fx.Node]) -> set[fx.Node]:
        """The nodes that the results of the module and the effects of the surrogate need."""
        pending, needed = list(results), set[fx.Node]()
        while pending:
            node = pending.pop()
            if node in needed or node in self.given or self.extract.size(node) is not None:
                continue
            if node not in self.inside and (node.op not in _COMPUTED or has_effect(node)):
                place = ".".join(module_stack(node)[-1:]) or "the model"
                raise NotInPlace(f"it reads {node.name} of {place}, which {self.path} is not handed")
            needed.add(node)
            pending += self._inputs(node)
        return needed

    def _regions_around(self, needed: Collection[fx.Node]) -> set[fx.Node]:
        """The ends of the regions in which nodes are: without gradients, or with a precision of the source's own."""
        regions = regions_of(self.gm.graph)
        around = (region for region in regions if any(region[0] < node < region[1] for node in needed))
        return {end for region in around for end in region}

    def _inputs(self, node: fx.Node) -> list[fx.Node]:
        """The nodes whose values a node of the new graph needs: not those of a map that is borrowed."""
        if BORROWS.of(node) is None:
            return node.all_input_nodes
        return [given for given in node.args[:_OWN_OF_LAYER] if isinstance(given, fx.Node)]

    def _write(self, results: Sequence[fx.Node], needed: Collection[fx.Node], block: SurrogateBlock) -> None:
        """Write the new graph: placeholders for arguments, state elsewhere and borrowed maps, and then the rest."""
        ordered = [node for node in self.gm.graph.nodes if node in needed]
        # No size need be asked of a stream that is given back in its size, or by a block's own code.
        on_stream = self.reads_stream_alone and not self.place.is_half
        one_way = self.swaps or (on_stream and all(block.keeps_size for block in self.blocks))
        asked = () if one_way else checks_for(self.path, self.blocks, self.given, self.gm.graph, self.part)
        checks = tuple(asked)
        # Other sizes that the trace had fixed, for code elsewhere, make no difference.
        told = self._told(ordered) if one_way else None
        read = dict.fromkeys(given for node in ordered for given in self._inputs(node))
        for node in (*read, *results, *(node for _, taken in checks for node in taken)):
            argument = node if node in self.given else self.extract.size(node)
            argument = argument.tensor if isinstance(argument, ToldSize) else argument
            if argument is not None and argument not in self.extract.made:
                self.arguments[argument] = self._argument(argument, told)
                self.extract.take(argument, argument.name)
        for node in ordered:
            if node.op in ("call_module", "get_attr") and self._local(str(node.target)) is None:
                self._read_elsewhere(node, block)
        for node in ordered:
            if BORROWS.of(node) is not None:
                self.borrowed[node] = self._borrow(node)
                self.extract.take(node, node.name)
        graph, value = self.extract.graph, self.extract.value
        for check, taken in checks:
            graph.call_function(check, tuple(map(value, taken)))
        for node in ordered:
            self._place(node)
        graph.output(tuple(map(value, results)))
        for node in graph.nodes:
            node.meta = {}

    def _argument(self, node: fx.Node, told: Collection[int] | None) -> Argument:
        value = node.meta["val"]
        if not isinstance(value, Tensor):
            return Argument(self.given[node], {}, None, torch.int64)
        fixed = {dim: s for dim, s in enumerate(value.shape) if isinstance(s, int) and (told is None or s in told)}
        return Argument(self.given[node], fixed, value.ndim, value.dtype)

    def _told(self, nodes: Iterable[fx.Node]) -> set[int]:
        """The numbers that nodes have among their arguments, and the sizes of the tensors that they read."""
        found: set[int] = set()
        for node in nodes:
            found.update(leaf for leaf in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(leaf, int))
            held = attribute(self.gm, str(node.target)) if node.op in ("get_attr", "call_module") else None
            tensors = (*held.parameters(), *held.buffers()) if isinstance(held, nn.Module) else tensors_in(held)
            found.update(size for tensor in tensors for size in tensor.shape)
        return found

    def _read_elsewhere(self, node: fx.Node, block: SurrogateBlock) -> None:
        """Take a parameter, a buffer, a flag or a layer from outside of the block as an argument of the graph."""
        target = str(node.target)
        if is_traced_constant(target) or target == ANCHOR:
            if has_attribute(block, target):
                raise NotInPlace(f"the module {self.path} has an attribute {target} already")
            block.register_buffer(target, attribute(self.gm, target), persistent=False)
            return
        home = {made: f"{self.main}.{own}" for made, own in self.own.items()}
        path = qualified_name(self.part.path, with_prefix(target, home))
        if path not in self.elsewhere:
            self.elsewhere[path] = self.extract.take(node, node.name)
        self.extract.made[node] = self.elsewhere[path]

    def _stream(self) -> int:
        """The number of the argument that streams in; conditions, such as a time, may be read before."""
        names = [node.name for node in self.arguments]
        wanted = self.blocks[0].input.name
        floating = (i for i, argument in enumerate(self.arguments.values()) if argument.dtype.is_floating_point)
        return names.index(wanted) if wanted in names else next(floating, 0)

    def _is_unbiased(self, path: str) -> bool:
        """Tell whether a path in the model is that of the weight of a layer that could have a bias and has none."""
        owner, _, name = path.rpartition(".")
        parameters = self.model.get_submodule(owner)._parameters if name == "weight" else {}
        return "bias" in parameters and parameters["bias"] is None

    def _norms_behind(self) -> dict[str, str]:
        """The paths of batch norms, by those of the weights read elsewhere whose layers they are behind."""
        found: dict[str, str] = {}
        for norm in self.gm.graph.nodes:
            if isinstance(called_module(self.gm, norm), nn.modules.batchnorm._BatchNorm):
                for call in (node for node in norm.all_input_nodes if node.op == "call_module"):
                    path = qualified_name(self.part.path, f"{call.target}.weight")
                    if path in self.elsewhere:
                        found.setdefault(path, qualified_name(self.part.path, str(norm.target)))
        return found

    def _borrow(self, node: fx.Node) -> BorrowedAttention:
        """The layer of a node that mixes by a map made elsewhere."""
        source, layer = BORROWS.of(node), self.gm.get_submodule(str(node.target))
        assert source is not None
        assert isinstance(layer, RecomputedAttention)
        path = qualified_name(self.part.path, source.module)
        if isinstance(self.model.get_submodule(path), nn.MultiheadAttention):
            raise NotInPlace(f"it mixes by the attention map of {path}, which keeps it to itself")
        removed = self._source(self._like(source.module))
        return BorrowedAttention(
            layer, KeptCall(source, path), qualified_name(self.part.path, self.path), layer_index(removed)
        )

    def _like(self, path: str) -> str:
        """The module of the block that plays the part of the one, of the kept block before, that has a path in it."""
        if not self.ways:
            return self.path
        before = place_of(self.part, self.part.blocks[self.place.replacements[0].before])
        numbers = [number for number, own in enumerate(before) if f"{path}.".startswith(f"{own}.")]
        if len(before) != len(self.ways) or len(numbers) != 1:
            raise NotInPlace(f"which layer of it mixes by the map of {path} is not told")
        return list(self.ways)[numbers[0]]

    def _place(self, node: fx.Node) -> None:
        """Put a node of the graph into the new one."""
        made_of = self.extract.made
        if node in made_of and node.op == "call_module":
            args = node.args[:_OWN_OF_LAYER] if node in self.borrowed else node.args
            given = fx.node.map_arg(args, self.extract.value)
            made_of[node] = self.extract.graph.call_function(_call, (made_of[node], *given), node.kwargs)
            return
        if node in made_of:
            if node.op == "get_attr" and str(node.target).startswith(tuple(f"{path}." for path in self.ways)):
                # Another module of the row has it, which FSDP2 gathers for that alone.
                made_of[node] = self.extract.graph.call_function(whole, (made_of[node],))
            return
        local = self._local(str(node.target)) if node.op in ("get_attr", "call_module") else None
        self.extract.copy(node, local)

    def _local(self, target: str) -> str | None:
        """The path in the module of what is at a path of the graph; None where that is outside of the block."""
        own = self.own if self.path == self.main else {}
        for prefix, place in ((f"{self.path}.", ""), *own.items()):
            if target.startswith(prefix):
                return place + target.removeprefix(prefix)
        return None


def _known(call: ModuleCall) -> dict[tuple[Any, ...], Any]:
    """The leaves of the arguments of a call by place; of numbers that the trace leaves open, Python's classes."""
    return {place: SYMBOLIC.get(type(leaf), leaf) for place, leaf in call.given.items()}


def _call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function that a graph is handed, or a layer of another module, for which FSDP2 gathers its weights."""
    if isinstance(function, nn.Module) and any(map(is_sharded, function.parameters())):
        weights = {name: whole(parameter) for name, parameter in function.named_parameters()}
        return functional_call(function, weights, args, kwargs)
    return function(*args, **kwargs)


def _checkpoints(block: nn.Module) -> bool:
    """Tell whether code of a block, or a function that it calls, of no library of tensors, names a checkpoint."""
    kinds = {kind for module in block.modules() for kind in type(module).__mro__ if not is_foreign(kind)}
    seen = set[FunctionType]()
    pending = [method for kind in kinds for method in vars(kind).values() if isinstance(method, FunctionType)]
    while pending:
        seen.add(function := pending.pop())
        names = names_in(function.__code__)
        called = {one for name in names.globals if isinstance(one := function.__globals__.get(name), FunctionType)}
        # It may have another name here.
        if not _CHECKPOINTS.isdisjoint(names.every | {one.__name__ for one in called}):
            return True
        pending += [one for one in called - seen if not is_foreign(one)]
    return False


def _holds_modules(value: Any) -> bool:
    """Tell whether a plain attribute leads to modules or tensors, which may be those of the removed block."""
    leaves = pytree.tree_leaves(value)
    return any(isinstance(leaf, (nn.Module, Tensor, MethodType)) for leaf in leaves)


def _require_own_state(block: SurrogateBlock, path: str) -> None:
    """Refuse a block whose hooks load another name than its state has, as of a wrapper that leaves its own out."""
    if block._load_state_dict_pre_hooks and block.load_state_dict(block.state_dict(), strict=False).missing_keys:
        raise NotInPlace(f"hooks of {path} would load the surrogate elsewhere; wrap the block after the transform")


def _tell_sizes_(layer: nn.Module, before: Tensor, now: Tensor) -> None:
    """Set the attributes of a layer that say how large its weight is to the sizes of another one."""
    if before.ndim < len(_SIZES[0]):
        return
    for names in _SIZES:
        if all(getattr(layer, name, None) == size for name, size in zip(names, before.shape, strict=False)):
            for name, size in zip(names, now.shape, strict=False):
                setattr(layer, name, int(size))
