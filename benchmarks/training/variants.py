"""The variants of a model that the benchmarks of training compare: full, rewritten, pruned, checkpointed, at random."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.benchmarking.model_variants import block_modules, checkpoint_


@dataclass(frozen=True)
class Variant:
    """One way to train a model.

    Attributes:
        name: what tables and `--variants` call it.
        surrogate: key of what stands in for the replaced blocks; None where none are replaced.
        settings: of the surrogate.
        every: replace every k-th block of each repeat.
        blocks: what becomes of each block of a model that is not rewritten: `checkpoint` (computed again in the
            backward pass) or `stochastic depth` (left out at random, for the whole batch); None for nothing.
        form: of a rewritten model: `graph`, `in place` (the model in place), or `by hand` (the source's own class, with
            an `nn.Identity` where each replaced block was).
    """

    name: str
    surrogate: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    every: int = 2
    blocks: str | None = None
    form: str = "graph"

    def build(self, model: nn.Module, args: tuple[Any, ...], seed: int = 0) -> nn.Module:
        """Make this variant of a model, in training mode; the model may be changed.

        Args:
            model: the model; its parameters are those of the result.
            args: example inputs.
            seed: of what the surrogates begin with.
        """
        if self.surrogate is not None:
            return self._in_form(self.rewrite(model, args, seed)).train()
        if self.blocks is not None:
            paths = block_modules(model, repl_fx.find_repeats(repl_fx.capture(model, args)))
            IN_BLOCKS[self.blocks](model, paths)
        return model.train()

    def _in_form(self, result: repl_fx.TransformResult) -> nn.Module:
        if self.form == "graph":
            return result.module
        model = result.in_place.model
        if model is None:
            raise ValueError("; ".join(map(str, result.in_place.refusals)))
        if self.form == "by hand":
            for block in [block for repeat in result.repeats for block in repeat.blocks]:
                if block.module_path and block.name in {replacement.block for replacement in result.plan.replacements}:
                    model.set_submodule(block.module_path, nn.Identity())
        return model

    def rewrite(self, model: nn.Module, args: tuple[Any, ...], seed: int = 0) -> repl_fx.TransformResult:
        """Make a variant that has a surrogate, with the plan of what was replaced; see `build`."""
        assert self.surrogate is not None
        return repl_fx.transform(
            model, args, every=self.every, surrogate=self.surrogate, settings=self.settings or None, seed=seed
        )


class SometimesSkipped(nn.Module):
    """A residual block that is left out for a whole batch (Huang et al., arXiv 1603.09382).

    The paper's rule: the last block is kept with probability 0.5, those before it linearly more often. A block that
    changes the size of its value always runs.

    Args:
        block: the block.
        position: of the block in the network, above 0 and up to 1.
    """

    def __init__(self, block: nn.Module, position: float) -> None:
        super().__init__()
        self.block = block
        self.kept = 1 - 0.5 * position

    def forward(self, x: Tensor) -> Any:
        """Run the block or let `x` pass; in evaluation its change counts as often as it ran."""
        if self.training:
            # The draw is on the CPU, so that no device waits for it.
            return self.block(x) if torch.rand(()).item() < self.kept or not self._passable(x) else x
        made = self.block(x)
        return x + self.kept * (made - x) if made.shape == x.shape else made

    def _passable(self, x: Tensor) -> bool:
        if "passable" not in self.__dict__:
            with torch.no_grad():
                # Not through a call: where the block is compiled, this would compile it once more.
                self.__dict__["passable"] = self.block.forward(x).shape == x.shape
        return bool(self.__dict__["passable"])


def skip_sometimes_(model: nn.Module, paths: Sequence[str]) -> None:
    """Let the blocks at some paths of a model, in their order, be left out at random."""
    for i, path in enumerate(paths, start=1):
        model.set_submodule(path, SometimesSkipped(model.get_submodule(path), i / len(paths)))


IN_BLOCKS: dict[str, Callable[[nn.Module, Sequence[str]], None]] = {
    "checkpoint": checkpoint_,
    "stochastic depth": skip_sometimes_,
}


FULL = Variant("full")
CHECKPOINTED = Variant("full, checkpointed", blocks="checkpoint")
STOCHASTIC = Variant("stochastic depth", blocks="stochastic depth")


def rewritten(surrogate: str, every: int, **settings: Any) -> Variant:
    """The variant with a surrogate, named after it and its settings."""
    shown = ", ".join(f"{name}={json.dumps(value).strip(chr(34))}" for name, value in settings.items())
    return Variant(f"{surrogate}{f' ({shown})' if shown else ''}, every={every}", surrogate, settings, every)


def in_place(surrogate: str, every: int) -> Variant:
    """The model in place with a surrogate."""
    return Variant(f"{surrogate} in place, every={every}", surrogate, {}, every, form="in place")


def by_hand(every: int) -> Variant:
    """The source's own class without the blocks: the floor of the model in place."""
    return Variant(f"blocks taken out by hand, every={every}", "identity", {}, every, form="by hand")


def pruned(every: int) -> Variant:
    """The floor: the blocks are taken out, and nothing stands in for them."""
    return Variant(f"depth-pruned, every={every}", "identity", {}, every)
