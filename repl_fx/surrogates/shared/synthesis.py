"""The modules that compute a surrogate's weights, when they run again, and when what they made is used again.

A synthesis depends on parameters alone, and runs in every forward pass, with gradients and without:

    training, evaluation  weights are made of the parameters as they are now
    shared_synthesis      they are made once for all passes inside; gradients go through the synthesis at the end
    repl_fx.fold          they are constants

Nothing is kept unasked: fused optimizers, `.data`, numpy and communication write parameters without a trace.
"""

from __future__ import annotations

import math
import operator
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from repl_fx._torch import is_transformed, pytree, runs_plainly
from repl_fx.arguments import in_words, require_module
from repl_fx.errors import BadInput, CallRefused, WeightsChanged
from repl_fx.graph.captured import share_tensors
from repl_fx.graph.runtime import require_no_proxy
from repl_fx.surrogates.shared.sharded_weights import (
    blend_all,
    is_fully_sharded,
    is_fully_sharded_anywhere,
    is_sharded,
    whole,
)
from repl_fx.surrogates.shared.weight_slices import SliceBlend

# The dtypes of codes, which are weights by a scale that is elsewhere (bitsandbytes, float8).
_CODES = tuple(
    kind for kind in vars(torch).values() if isinstance(kind, torch.dtype) and kind.itemsize == 1 and kind != torch.bool
)


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
        self._shared: _SharedRuns | None = None

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
        """The result of `synthesise` on the weights; inside `shared_synthesis`, that of the first call."""
        if not runs_plainly():
            # A weight inside a transform or a trace is of that alone.
            return self._made_of(weights)
        self._require_whole_gradients(weights)
        shared = self._shared
        if shared is not None:
            return shared.weights(self, weights)
        made = self._made_of(weights)
        # Without history, as folded ones are: a product with a weight that requires a gradient may round otherwise.
        return made if torch.is_grad_enabled() else _detached(made)

    def _made_of(self, weights: Sequence[Any]) -> Any:
        for weight in weights:
            if found := _no_weight(weight):
                require_no_proxy(weight)
                raise CallRefused(
                    f"{type(self).__name__} makes weights of those of other layers, and one has {found} for its "
                    "weight; quantise a model whose surrogates are folded: repl_fx.fold(result.module)"
                )
        if not self.takes_shards and any(map(is_sharded, weights)):
            # In the precision that FSDP2 runs this module in, as shards have their own.
            kind = next((p.dtype for p in self.parameters() if p.is_floating_point()), None)
            weights = tuple(whole(weight if kind is None else weight.to(kind)) for weight in weights)
        made = self.synthesise(*weights)
        # FSDP2 shards nothing inside a transform, whose tensors do not show their storage.
        if is_fully_sharded_anywhere() and torch.is_grad_enabled() and not is_transformed():
            self._watch(made, [weight for weight in weights if not is_sharded(weight)])
        # The synthesis's own parameters, which may be among the results, are gone behind a call of FSDP2's.
        return pytree.tree_map_only(Tensor, torch.clone, made) if is_fully_sharded(self) else made

    def _require_whole_gradients(self, weights: Sequence[Any]) -> None:
        """Refuse neighbours whose layers have hooks for gradients by samples, which see no use by a surrogate."""
        if (
            self.train_neighbours
            and torch.is_grad_enabled()
            and any(isinstance(weight, Tensor) and hasattr(weight, "grad_sample") for weight in weights)
        ):
            raise CallRefused(
                f"{type(self).__name__} makes weights of those of other layers, whose gradients by samples (Opacus) "
                "would miss a part; transform with settings={'train_neighbours': False}, or by identity"
            )

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
            # Not of a parameter, which is made of nothing, and would keep a hook of every forward.
            if isinstance(tensor, Tensor) and tensor.grad_fn is not None:
                untyped: Any = tensor
                untyped.register_hook(check)

    def __getstate__(self) -> dict[str, Any]:
        # A copy is not inside `shared_synthesis`.
        return {**self.__dict__, "_shared": None}


class BlendingSynthesis(Synthesis):
    """A synthesis that begins with blends of slices, which can be done together with those of others.

    A subclass says which (`blends`), and what it makes of them (`finish`), from the state it is given: its own
    tensors by name.
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
        # Buffers too: a copy may be frozen by making its parameters such.
        own = tuple(self.named_parameters()) or _views(self)
        state = {name: whole(tensor) for name, tensor in (*own, *self.named_buffers())}
        return self.finish(state, blend_all(self.blends(state, weights)), weights)


def _views(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors that are plain attributes, as those that FullyShardedDataParallel leaves for flattened parameters."""
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            if isinstance(value, Tensor):
                yield f"{path}.{name}" if path else name, value


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
        super().__init__(any(member.train_neighbours for member in members))
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


@dataclass(frozen=True)
class _SynthesisRun:
    """One run of a synthesis.

    Attributes:
        read: the tensors that it read.
        states: the version and the place in memory of each then; in-place operators count versions up.
        made: its result.
        leaves: its result without history, so that each pass adds to gradients of its own.
    """

    read: Sequence[Tensor]
    states: Sequence[tuple[int, int]]
    made: Any
    leaves: Any


class _SharedRuns:
    """The runs of a synthesis inside `shared_synthesis`: one for passes with gradients, one for those without."""

    def __init__(self) -> None:
        self.runs: dict[bool, _SynthesisRun] = {}
        # Threads may evaluate one model.
        self.lock = threading.RLock()

    def weights(self, synthesis: Synthesis, given: Sequence[Tensor]) -> Any:
        """The weights, cut off from what they were made of.

        Raises:
            WeightsChanged: other tensors are read than in the first run, or the same ones were written in place.
        """
        read = [*given, *synthesis.parameters(), *synthesis.buffers()]
        graded = torch.is_grad_enabled()
        with self.lock:
            run = self.runs.get(graded)
            if run is None:
                # Of inference mode, tensors could not be used outside of it.
                with torch.inference_mode(False), torch.set_grad_enabled(graded):
                    made = synthesis._made_of(given)
                leaves = pytree.tree_map_only(Tensor, _leaf, made) if graded else _detached(made)
                run = self.runs[graded] = _SynthesisRun(read, _states(read), made if graded else leaves, leaves)
            alike = len(read) == len(run.read) and all(map(operator.is_, read, run.read))
            if not alike or run.states != _states(read):
                raise WeightsChanged(
                    f"the weights that {type(synthesis).__name__} reads changed inside shared_synthesis; step the "
                    "optimizer after it"
                )
            return run.leaves

    def finish(self) -> None:
        """Hand the gradients on, through the synthesis."""
        run = self.runs.get(True)
        pairs = zip(pytree.tree_leaves(run.made), pytree.tree_leaves(run.leaves), strict=True) if run else ()
        due = [(made, leaf.grad) for made, leaf in pairs if isinstance(leaf, Tensor) and leaf.grad is not None]
        if due:
            torch.autograd.backward([made for made, _ in due], [gradient for _, gradient in due])


def _leaf(made: Tensor) -> Tensor:
    return made.detach().requires_grad_(made.requires_grad)


def _detached(made: Any) -> Any:
    return pytree.tree_map_only(Tensor, torch.Tensor.detach, made)


def _no_weight(value: Any) -> str:
    """The words for a value that is no weight; empty for one that is."""
    if not isinstance(value, Tensor):
        return in_words(value)
    # Of torchao's tensors the dtype is that of what they stand for.
    if type(value).__module__.startswith("torchao."):
        return f"codes ({type(value).__name__})"
    return f"codes ({value.dtype})" if value.dtype in _CODES else ""


def _states(tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
    return [(0 if tensor.is_inference() else tensor._version, tensor.data_ptr()) for tensor in tensors]


@contextmanager
def shared_synthesis(module: nn.Module) -> Iterator[None]:
    """Run each synthesis of a module once for all passes inside, as in gradient accumulation or an evaluation.

        with repl_fx.shared_synthesis(model):
            for batch in micro_batches:
                loss(model, batch).backward()
        optimizer.step()

        with torch.no_grad(), repl_fx.shared_synthesis(model):
            predictions = [model(batch) for batch in validation]

    Gradients of synthesised weights add up inside, and go through the syntheses to gains and neighbours once, at the
    end: inside, `.grad` of these is not complete. With DistributedDataParallel use it inside `no_sync`, for all
    micro-batches but the last. A compiled module runs its syntheses every time. Inside another one for the same module,
    or beside one in another thread, it changes nothing.

    The weights that the syntheses read must not be written inside. In-place operators, a new `.data` and other
    parameters are noticed in the next forward pass; a write that leaves no trace (fused optimizers, `.data.copy_`,
    numpy) is not.

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
    syntheses = [found for found in module.modules() if isinstance(found, Synthesis) and found._shared is None]
    started = [_SharedRuns() for _ in syntheses]
    for synthesis, shared in zip(syntheses, started, strict=True):
        synthesis._shared = shared
    try:
        yield
        # In a graph, what reads another's result comes after it.
        for shared in reversed(started):
            shared.finish()
    finally:
        for synthesis in syntheses:
            synthesis._shared = None
