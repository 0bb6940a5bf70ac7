"""The model in place: a copy of the source's module tree with surrogates at the places of the replaced blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor, fx, nn

from repl_fx.errors import BadInput
from repl_fx.graph.captured import is_tensor
from repl_fx.graph.grouping import grouped
from repl_fx.graph.state import named_tensors, used_by, with_prefix
from repl_fx.plan import Plan, Refusal
from repl_fx.rewriting.in_place.attention_calls import watch
from repl_fx.rewriting.in_place.cutting import Cut, paths_to_cut
from repl_fx.rewriting.in_place.judging import Judged, OwnCode, is_one_number, parting
from repl_fx.rewriting.in_place.placing import ModulePlace, NotInPlace, place_of, places_of
from repl_fx.rewriting.in_place.pretrained import complete_
from repl_fx.rewriting.in_place.surrogate_block import StandIn, SurrogateBlock, SwappedBlock
from repl_fx.rewriting.in_place.wrapped_forward import CheckpointedForward
from repl_fx.surrogates.shared.site import surrogate_path
from repl_fx.tracing.module_calls import is_noted
from repl_fx.tracing.other_sizes import other_sizes_of
from repl_fx.tracing.parts.capture_parts import CapturedParts, assemble, graphs_in, qualified_name
from repl_fx.tracing.parts.part_repeats import ModelRepeats, PartRepeats


@dataclass(frozen=True)
class InPlace:
    """A model in place.

    Attributes:
        model: a module of the source's class; None where a replaced block has no place in it.
        refusals: the replaced blocks that have none, with the reasons.
        open: the blocks among these for which another surrogate may have a place.
        prefixes: of the names of surrogates' tensors in the rewritten module, and of the same tensors in the model.
        by_graph: the paths of surrogates that run their graph, as the code of their block would compute otherwise.
        shared: the tensors that both have, by their names in the model; those of before where each has its own now.
    """

    model: nn.Module | None
    refusals: tuple[Refusal, ...] = ()
    prefixes: Mapping[str, str] = field(default_factory=dict)
    open: frozenset[str] = frozenset()
    by_graph: Set[str] = frozenset()
    shared: dict[str, Tensor] = field(default_factory=dict)

    def tensors_of(self, module: nn.Module) -> dict[str, Tensor]:
        """The parameters and buffers of the rewritten module, or of the model, by their names in the model."""
        return {with_prefix(name, self.prefixes): tensor for name, tensor in named_tensors(module).items()}

    def _tensors_now(self) -> dict[str, Tensor]:
        """The tensors of the model as they are.

        Raises:
            BadInput: a shared parameter has gone from the model, which has a buffer or another layer in its place.
        """
        now = self.shared if self.model is None else self.tensors_of(self.model)
        parameters = (name for name, was in self.shared.items() if isinstance(was, nn.Parameter))
        gone = next((name for name in parameters if not isinstance(now.get(name), nn.Parameter)), None)
        if gone is not None:
            raise BadInput(
                f"result.module is the graph of the model that transform made, and {gone} of result.model has gone "
                "since; use result.model"
            )
        return now

    def share_(self, module: nn.Module, *others: tuple[str, nn.Module]) -> None:
        """Give the rewritten module, and others by their paths in it, the tensors that the model got for shared ones.

        `.to()` gives a module new buffers, and `load_state_dict(assign=True)` and new layers give it new parameters.

        Raises:
            BadInput: see `_tensors_now`; or the model has two tensors where the module reads one.
        """
        now = self._tensors_now()
        moved = {name: now[name] for name, was in self.shared.items() if name in now and now[name] is not was}
        if moved and (parted := parted_in(module, now)):
            raise BadInput(
                f"result.module reads {' and '.join(parted)} as one tensor, and they are two in result.model since; "
                "use result.model"
            )
        for root, one in (*others, ("", module)) if moved else ():
            given: dict[str, Tensor] = {}
            for path, part in one.named_modules(prefix=root):
                for held in (part._parameters, part._buffers):
                    for key, tensor in held.items():
                        name = with_prefix(qualified_name(path, key), self.prefixes)
                        # A module that was loaded has ties of its own, which the model took.
                        if name in moved and (tensor is self.shared[name] or tensor is moved[name]):
                            held[key] = given[name] = moved[name]
            if given:
                # Constants, which the model has not, go along.
                one.to(next(iter(given.values())).device)
            if one is module:
                self.shared.update(given)

    def take_(self, module: nn.Module) -> None:
        """Give the model the parameters of the rewritten module, which was loaded: tied as they were saved."""
        if self.model is None:
            return
        of_model = self.tensors_of(self.model)
        for name, tensor in self.tensors_of(module).items():
            if isinstance(tensor, nn.Parameter) and name in of_model and of_model[name] is not tensor:
                path, _, last = name.rpartition(".")
                setattr(self.model.get_submodule(path), last, tensor)

    @property
    def reason(self) -> str:
        """The first refusal in words: the block and the reason; empty where there is none."""
        return "".join(f"{refusal.block}: {refusal.reason}" for refusal in self.refusals[:1])


def parted_in(module: nn.Module, given: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """Names of two tensors of which a graph in a rewritten module reads one for both, as they were one in the trace."""
    for path, gm in graphs_in(module).items():
        tied = grouped((id(tensor), name) for name, tensor in named_tensors(gm).items())
        used = used_by(gm).state if any(len(names) > 1 for names in tied.values()) else frozenset()
        read = {str(node.target) for node in gm.graph.nodes if node.op == "get_attr"}
        for names in tied.values():
            for one, other in ((a, b) for a in names for b in names if a in read and b not in used):
                first, second = qualified_name(path, one), qualified_name(path, other)
                if given.get(first, given.get(second)) is not given.get(second, given.get(first)):
                    return first, second
    return None


def put_in_place(
    found: ModelRepeats,
    plan: Plan,
    graphs: Mapping[str, fx.GraphModule],
    module: nn.Module | None,
    *,
    judged: Judged | None = None,
    checkpoint_blocks: bool = False,
) -> InPlace:
    """Put surrogates into a copy of the source's module tree; one that then computes otherwise is refused.

    Args:
        found: the repeats of the model.
        plan: the plan that was applied.
        graphs: the rewritten graphs with syntheses one by one, by the path of their part; the model in place shares
            their tensors.
        module: the rewritten model, which the model in place is compared with; None where that was done before, or
            costs alone are asked for.
        judged: tells which surrogates run their graph; None where costs alone are asked for.
        checkpoint_blocks: whether kept blocks are computed again in the backward pass.
    """
    captured = found.captured
    made, own = _put(found, plan, graphs, set())
    if judged is not None and made.model is not None:
        by_graph = judged.of(captured.source, made.model, own, captured.inputs)
        made, _ = _put(found, plan, graphs, by_graph) if by_graph else (made, own)
    if made.model is None:
        return made
    if module is not None and (differs := _difference(made.model, module, captured)):
        return InPlace(None, tuple(Refusal(r.block, r.repeat, differs) for r in plan.replacements))
    if checkpoint_blocks:
        _checkpoint_kept_(made.model, found, {replacement.block for replacement in plan.replacements})
    complete_(made.model)
    return made


def _checkpoint_kept_(model: nn.Module, found: ModelRepeats, gone: Set[str]) -> None:
    """Let the modules that are kept blocks, beside those that are gone, be computed again in the backward pass."""
    for part in found:
        beside = (r.blocks for r in part.repeats if not gone.isdisjoint(block.name for block in r.blocks))
        kept = {block.name for blocks in beside for block in blocks} - gone
        for path in {path for name in kept for path in place_of(part, part.blocks[name])}:
            module = model.get_submodule(qualified_name(part.path, path))
            # One around half of a block may be a surrogate's.
            if is_noted(module) and not isinstance(module, SurrogateBlock):
                CheckpointedForward.put_on(module)


def _difference(model: nn.Module, rewritten: nn.Module, captured: CapturedParts) -> str:
    """Say how a model in place differs from the rewritten one; empty where it does not, to the bit."""
    inputs = captured.inputs
    other = other_sizes_of(captured.parts[0].graph_module, captured.source, inputs) if captured.whole else None
    # What is cut out of the graph asks for the mode where the graph does.
    own_code = any(isinstance(one, SwappedBlock) for one in model.modules())
    masked = other is not None and any(map(is_one_number, inputs.tensors))
    more = [([inputs], training) for training, wanted in ((False, masked), (True, own_code)) if wanted]
    trials = [([*filter(None, [other]), inputs], False), *more]
    return parting(model, rewritten, *trials, source=captured.source)


def _put(
    found: ModelRepeats, plan: Plan, graphs: Mapping[str, fx.GraphModule], by_graph: Set[str]
) -> tuple[InPlace, dict[str, OwnCode]]:
    """The model in place, and what of it runs a block's own code on other sizes; that of `by_graph` does not."""
    source = found.captured.source
    own: dict[str, OwnCode] = {}
    blocks: dict[str, SurrogateBlock] = {}
    prefixes: dict[str, str] = {}
    refusals: list[Refusal] = []
    fits_others: set[str] = set()
    for part in found:
        places = tuple(places_of(part, plan))
        for place in places:
            named, replaced = partial(qualified_name, part.path), place.replacements
            try:
                if place.is_apart:
                    # Another surrogate may fit where this one does not run the code of the block.
                    fits_others.update(replacement.block for replacement in replaced)
                own_code = by_graph.isdisjoint(map(named, place.paths))
                cuts = [
                    Cut(graphs[part.path], part, place, source, own_code=own_code, path=path)
                    for path in paths_to_cut(graphs[part.path], part, place)
                ]
                # The blocks are some that can have a surrogate in their place.
                fits_others.update(replacement.block for replacement in replaced)
                made = {path: one for cut in cuts for path, one in cut.made().items()}
                _require_watched(cuts, part, places)
            except NotInPlace as problem:
                refusals += [Refusal(replacement.block, replacement.repeat, str(problem)) for replacement in replaced]
                continue
            blocks.update({named(inside): one for inside, one in made.items()})
            for replacement in replaced:
                name = surrogate_path(part.blocks[replacement.block].name)
                prefixes[f"{named(name)}."] = f"{named(cuts[0].main)}.{place.own(replacement.block)}."
            for cut in cuts:
                if cut.most:
                    shapes = {place: node.meta["val"].shape for node, place in cut.given.items() if is_tensor(node)}
                    own[named(cut.path)] = OwnCode(made[cut.path], cut.most, shapes, replaced)
    if refusals:
        open_ = frozenset(fits_others & {refusal.block for refusal in refusals})
        return InPlace(None, tuple(refusals), open=open_), {}
    model = assemble(source, blocks)
    for block in blocks.values():
        _connect_(block._stand_in, model)
    return InPlace(model, (), prefixes, by_graph=by_graph), own


def _connect_(stand_in: StandIn, model: nn.Module) -> None:
    """Let a surrogate find the model around it, and watch the modules whose results it reads."""
    stand_in.around = (model,)
    for layer in stand_in.borrowed:
        watch(model.get_submodule(layer.kept.path), layer.kept)
    if stand_in.neighbour is not None:
        path, _, form = stand_in.neighbour
        model.get_submodule(path).register_forward_hook(form)


def _require_watched(cuts: Sequence[Cut], part: PartRepeats, places: Sequence[ModulePlace]) -> None:
    """Refuse a surrogate that mixes by the map of an attention which a graph computes, and no module.

    Raises:
        NotInPlace: names the attention.
    """
    graphs = [place.paths[0] for place in places if place.is_half]
    for layer in (layer for cut in cuts for layer in cut.borrowed.values()):
        path = layer.kept.path
        if any(f"{path}.".startswith(f"{qualified_name(part.path, around)}.") for around in graphs):
            raise NotInPlace(f"it mixes by the attention map of {path}, beside which another block is replaced")
