"""The modules that compute a surrogate's weights, when they run again, and when what they made is used again.

A synthesis depends on parameters alone, so its result holds until one of them changes:

    training              it runs in every forward pass, and gradients flow through it
    without gradients     (evaluation, `torch.no_grad`) its result is kept until a parameter changes
    shared_synthesis      it runs once for all micro-batches of a step; what they sum up goes through it at the end
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from repl_fx._torch import is_transformed, pytree
from repl_fx.arguments import require_module
from repl_fx.errors import BadInput, WeightsChanged
from repl_fx.graph.captured import share_tensors
from repl_fx.surrogates.shared.sharded_weights import (
    blend_all,
    is_fully_sharded,
    is_fully_sharded_anywhere,
    is_sharded,
    whole,
)
from repl_fx.surrogates.shared.weight_slices import SliceBlend


class Synthesis(nn.Module):
    """Base of the modules that compute a surrogate's weights from the neighbours' parameters.

    `synthesise` takes parameters, buffers or results of other syntheses, and returns one tensor or a tuple of tensors.
    The result is a function of them and of the module's own parameters and buffers alone. Folding evaluates the
    synthesis once and drops it. Gains are parameters of one dimension, however they scale a weight, and so are biases:
    the usual grouping for weight decay, which leaves out what has no second dimension, leaves them out.

    Args:
        train_neighbours: whether gradients flow through the synthesis into the neighbours' parameters.

    Attributes:
        names: of the tensors that `synthesise` returns, in order, for those who tell them apart by name.
        takes_shards: whether `synthesise` can be given weights that are sharded over processes; else they are gathered.
    """

    names: tuple[str, ...] = ()
    takes_shards = False

    def __init__(self, train_neighbours: bool) -> None:
        super().__init__()
        self.train_neighbours = train_neighbours
        self._kept: _Kept | None = None
        self._shared: _Shared | None = None

    def synthesise(self, *weights: Tensor) -> Any:
        """Compute weights from weights."""
        raise NotImplementedError(f"{type(self).__name__} has no synthesise(*weights)")

    def hold(self, weights: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Make weights parameters of the synthesis; returns their names."""
        for name, weight in weights.items():
            self.register_parameter(name, nn.Parameter(weight))
        return tuple(weights)

    def given(self, weight: Any) -> Any:
        """A neighbour's weight as the synthesis may use it: without gradient where neighbours are not trained."""
        return weight if self.train_neighbours else weight.detach()

    def forward(self, *weights: Tensor) -> Any:
        """The result of `synthesise` on the weights, computed now or before."""
        if torch.compiler.is_compiling() or is_transformed():
            # A compiled graph is fast without it, and would have to be guarded by the state of every weight. A weight
            # inside a transform is of that transform alone.
            return self._made_of(weights)
        if self._shared is not None:
            return self._shared.weights(self, weights)
        if torch.is_grad_enabled() or not _can_be_watched(read := [*weights, *self.parameters(), *self.buffers()]):
            return self._made_of(weights)
        if self._kept is None or self._kept.stale(read):
            # Without history, as folded ones are: a product with a weight that requires a gradient may round otherwise.
            self._kept = _Kept(read, pytree.tree_map_only(Tensor, torch.Tensor.detach, self._made_of(weights)))
        return self._kept.made

    def _made_of(self, weights: Sequence[Tensor]) -> Any:
        if not self.takes_shards and any(map(is_sharded, weights)):
            # In the precision that FSDP2 runs this module in, as shards have their own.
            kind = next((p.dtype for p in self.parameters() if p.is_floating_point()), None)
            weights = tuple(whole(weight if kind is None else weight.to(kind)) for weight in weights)
        made = self.synthesise(*weights)
        if is_fully_sharded_anywhere() and torch.is_grad_enabled():
            self._watch(made, [weight for weight in weights if not is_sharded(weight)])
        # The synthesis's own parameters, which may be among the results, are gone behind a call of FSDP2's.
        return pytree.tree_map_only(Tensor, torch.clone, made) if is_fully_sharded(self) else made

    def _watch(self, made: Any, weights: Sequence[Tensor]) -> None:
        """Raise in the backward pass where weights are gone, which no operator would notice."""

        def check(gradient: Tensor) -> None:
            if any(weight.numel() and not weight.untyped_storage().size() for weight in weights):
                raise WeightsChanged(
                    f"FSDP2 freed weights that {type(self).__name__} reads before their gradients were complete: a "
                    "pass without gradients had left their modules gathered (reshard_after_forward=False); call "
                    "reshard() on these after it"
                )

        for tensor in pytree.tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                untyped: Any = tensor
                untyped.register_hook(check)

    def train(self, mode: bool = True) -> Synthesis:
        """Set the mode, and forget what was made: a change through `.data` leaves no trace."""
        self._kept = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles make their own.
        return {**self.__dict__, "_kept": None, "_shared": None}


class BlendingSynthesis(Synthesis):
    """A synthesis that begins with blends of slices, which can be done together with those of others.

    A subclass says which (`blends`), and what it makes of them (`finish`), from the state it is given: its own
    parameters by name.
    """

    takes_shards = True

    def blends(self, state: Mapping[str, Tensor], weights: Sequence[Tensor]) -> list[SliceBlend]:
        """The blends of slices that make the weights."""
        raise NotImplementedError(f"{type(self).__name__} has no blends(state, weights)")

    def finish(self, state: Mapping[str, Tensor], blended: Sequence[Tensor], weights: Sequence[Tensor]) -> Any:
        """The result, from what `blends` asked for."""
        raise NotImplementedError(f"{type(self).__name__} has no finish(state, blended, weights)")

    def synthesise(self, *weights: Tensor) -> Any:
        """Compute weights from weights."""
        state = {name: whole(parameter) for name, parameter in self.named_parameters()}
        return self.finish(state, blend_all(self.blends(state, weights)), weights)


class OwnWeights(Synthesis):
    """Weights that are parameters of the surrogate's own: the control that synthesis is held to.

    Args:
        weights: by name, in the order in which they are returned.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__(train_neighbours=True)
        self.names = self.hold(weights)

    def synthesise(self, *weights: Tensor) -> tuple[Tensor, ...]:
        """The weights themselves."""
        return tuple(getattr(self, name) for name in self.names)


def random_values(like: Tensor, *sizes: int) -> nn.Parameter:
    """Standard normal values of the dtype and device of `like`, the same on every device for the same seed."""
    if like.is_meta:
        return nn.Parameter(torch.empty(sizes, dtype=like.dtype, device="meta"))
    return nn.Parameter(torch.randn(sizes).to(like))


def length(pieces: Sequence[Tensor]) -> float:
    """The Frobenius norm of several tensors together, in at least single precision."""
    kind = torch.promote_types(pieces[0].dtype, torch.float32)
    return math.hypot(*(float(torch.linalg.vector_norm(piece.detach(), dtype=kind)) for piece in pieces))


def ratio(wanted: float, found: float) -> float:
    """The factor of a weight's length; 1 where weights start at zero and have no length to match."""
    return wanted / found if wanted > 0 and found > 0 else 1.0


class SynthesisBatch(Synthesis):
    """Several syntheses as one, so that their blends are done together.

    Its inputs are, for each member, what that member reads and then its parameters, which stay where they were.

    Args:
        members: the syntheses; copies without state are kept.
        counts: how many weights each reads.
    """

    takes_shards = True

    def __init__(self, members: Sequence[BlendingSynthesis], counts: Sequence[int]) -> None:
        super().__init__(train_neighbours=True)
        self.members = [_without_state(member) for member in members]
        self.parameter_names = [tuple(name for name, _ in member.named_parameters()) for member in members]
        self.counts = tuple(counts)

    def synthesise(self, *weights: Tensor) -> tuple[Any, ...]:
        """The results of the members, in order."""
        given = iter(weights)
        tasks = []
        for member, names, count in zip(self.members, self.parameter_names, self.counts, strict=True):
            read = tuple(islice(given, count))
            state = dict(zip(names, map(whole, islice(given, len(names))), strict=True))
            tasks.append((member, state, read, member.blends(state, read)))
        made = iter(blend_all([blend for *_, asked in tasks for blend in asked]))
        return tuple(member.finish(state, list(islice(made, len(asked))), read) for member, state, read, asked in tasks)


def _without_state(member: BlendingSynthesis) -> BlendingSynthesis:
    copied = share_tensors(member)
    assert isinstance(copied, BlendingSynthesis)
    for module in copied.modules():
        module._parameters.update(dict.fromkeys(module._parameters))
    return copied


class _Kept:
    """Weights that were made, and what they were made of."""

    def __init__(self, read: Sequence[Tensor], made: Any) -> None:
        # Weak: another tensor may get the identity of one that is gone, but not its reference.
        self.sources = [(weakref.ref(tensor), tensor._version, tensor.data_ptr()) for tensor in read]
        self.made = made

    def stale(self, read: Sequence[Tensor]) -> bool:
        """Whether other tensors are read now, or the same ones with other values."""
        return len(read) != len(self.sources) or any(
            source() is not tensor or version != tensor._version or place != tensor.data_ptr()
            for tensor, (source, version, place) in zip(read, self.sources, strict=True)
        )


def _can_be_watched(tensors: Sequence[Tensor]) -> bool:
    """Whether a change of each would show: plain tensors with storage and a version."""
    plain = all(type(t) in (Tensor, nn.Parameter) and not t.is_meta and not t.is_inference() for t in tensors)
    # What FSDP2 gathers again comes in the same tensor and in the same place.
    return plain and not is_fully_sharded_anywhere()


class _Shared:
    """One run of a synthesis, for several forward and backward passes."""

    def __init__(self) -> None:
        self.kept: _Kept | None = None
        self.leaves: Any = None

    def weights(self, synthesis: Synthesis, given: Sequence[Tensor]) -> Any:
        """The weights, cut off from what they were made of, so that each pass adds to their own gradients."""
        read = [*given, *synthesis.parameters(), *synthesis.buffers()]
        if self.kept is None:
            with torch.enable_grad():
                self.kept = _Kept(read, synthesis._made_of(given))
            self.leaves = pytree.tree_map_only(Tensor, _leaf, self.kept.made)
        elif self.kept.stale(read):
            raise WeightsChanged(
                f"the weights that {type(synthesis).__name__} reads changed inside shared_synthesis; step the "
                "optimizer after it"
            )
        return self.leaves

    def finish(self) -> None:
        """Hand the gradients on, through the synthesis."""
        if self.kept is None:
            return
        pairs = zip(pytree.tree_leaves(self.kept.made), pytree.tree_leaves(self.leaves), strict=True)
        due = [(made, leaf.grad) for made, leaf in pairs if isinstance(leaf, Tensor) and leaf.grad is not None]
        if due:
            torch.autograd.backward([made for made, _ in due], [gradient for _, gradient in due])


def _leaf(made: Tensor) -> Tensor:
    return made.detach().requires_grad_(made.requires_grad)


@contextmanager
def shared_synthesis(module: nn.Module) -> Iterator[None]:
    """Run each synthesis of a module once for all forward and backward passes inside, as in gradient accumulation.

        with repl_fx.shared_synthesis(model):
            for batch in micro_batches:
                loss(model, batch).backward()
        optimizer.step()

    Gradients of synthesised weights add up inside, and go through the syntheses to gains and neighbours once, at the
    end: inside, `.grad` of these is not complete. With DistributedDataParallel use it inside `no_sync`, for all
    micro-batches but the last. A compiled module runs its syntheses every time.

    Args:
        module: a rewritten module, or one with rewritten graphs in it.

    Raises:
        WeightsChanged: in a forward pass after the weights were changed inside.
        BadInput: the argument is no module, or one that FSDP2 shards.
    """
    require_module("shared_synthesis", module)
    if any(map(is_sharded, module.parameters())) or any(map(is_fully_sharded, module.modules())):
        raise BadInput(
            "shared_synthesis: the module is sharded (fully_shard), and its weights are gone after each backward pass; "
            "leave shared_synthesis out"
        )
    syntheses = [found for found in module.modules() if isinstance(found, Synthesis)]
    # In a graph, what reads another's result comes after it.
    started: list[_Shared] = []
    for synthesis in syntheses:
        synthesis._shared = _Shared()
        started.append(synthesis._shared)
    try:
        yield
        for shared in reversed(started):
            shared.finish()
    finally:
        for synthesis in syntheses:
            synthesis._shared = None
