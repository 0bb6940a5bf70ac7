"""Whole blocks in the place of surrogates, which begin with what the surrogates have learned.

A and C are weights of the kept blocks before and after, W those of the block that is whole again.

    blend     W = alpha A + beta C          those that the block's own code ran on: the model computes what it did
    coarse    W = alpha A + beta C          those of the coarse block, now at every position: y = x + f(x), where it was
                                            x + f(mean of x) over a window; f is 0 where training did not move it
    narrow    W = [V ; copies of V]         its layers, with units that nobody reads: the model computes what it did
    others    W = (A + C) / 2, and          the ends of all branches are zero: y = x, so that the model changes by no
              W_end = 0                     more than the surrogates added, and gradients reach the ends at once

Whatever stayed with the removed block (norms, biases, layer scales, running statistics) stays as it is. What went is a
mean of the neighbours' like any weight, or that of the one neighbour that has it in this size. Numbers that count are
those of the block before. A block without branches (VGG) has the mean in all its layers.

Needs: the model in place, and the repeats of the graph that it was made of.
Never touches: the model; all that is returned is a copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from repl_fx.graph.captured import attribute, has_attribute
from repl_fx.plan import Plan, Refusal, Replacement
from repl_fx.rewriting.in_place.effective_weights import weight_now
from repl_fx.rewriting.in_place.placing import OWN, ModulePlace, places_of
from repl_fx.rewriting.in_place.surrogate_block import SurrogateBlock
from repl_fx.surrogates import make_surrogate
from repl_fx.surrogates.shared.branch_edits import silencing_parameters
from repl_fx.surrogates.shared.site import Site
from repl_fx.tracing.parts.capture_parts import qualified_name
from repl_fx.tracing.parts.part_repeats import ModelRepeats, PartRepeats


@torch.no_grad()
def restored_state(found: ModelRepeats, model: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """The `state_dict` of the model before, with the weights of now and whole blocks made from the surrogates.

    Args:
        found: the repeats of the model before; what nothing else gives a value is as it is there.
        model: the model in place.
        plan: the plan that was applied.
    """
    now = model.state_dict()
    made: dict[str, Tensor] = {}
    for part in found:
        for place in places_of(part, plan):
            for replacement in place.replacements:
                made.update(_ReplacedBlock(model, part, place, replacement).values())
    own = found.captured.source.state_dict(keep_vars=True)
    # A tensor of the block that is tied to a kept one has the value of that.
    kept = {id(tensor) for name, tensor in own.items() if name in now}
    return {
        name: (now[name] if name in now else made.get(name, tensor)).detach().clone()
        for name, tensor in own.items()
        if name in now or id(tensor) not in kept
    }


class _ReplacedBlock:
    """A replaced block of a model in place.

    Args:
        model: the model.
        part: the graph that the block is of.
        place: of its surrogate.
        replacement: its surrogate.
    """

    def __init__(self, model: nn.Module, part: PartRepeats, place: ModulePlace, replacement: Replacement) -> None:
        self.model, self.part, self.replacement = model, part, replacement
        paths = (qualified_name(part.path, path) for path in place.paths)
        modules = [model.get_submodule(path) for path in paths]
        self.surrogate = next((module for module in modules if has_attribute(module, OWN)), modules[0])
        assert isinstance(self.surrogate, SurrogateBlock)
        self.own = place.own(replacement.block)
        self.named = partial(qualified_name, part.path)

    def values(self) -> dict[str, Tensor]:
        """The tensors that are not in the model in place, by name in the source."""
        names = self.replacement.block, self.replacement.before, self.replacement.after
        site = self.part.matches.site(*names)
        known = {self.named(path): value for path, value in self._learned(site).items()}
        silent = set() if known else {self.named(path) for path in silencing_parameters(site)}
        means = dict(self._means(site))
        quiet = {name: torch.zeros_like(value) for name, value in means.items() if name in silent}
        return {**means, **quiet, **known}

    def _learned(self, site: Site) -> Mapping[str, Tensor]:
        """The values of full size that the surrogate itself has."""
        surrogate = make_surrogate(self.replacement.surrogate, self.replacement.settings)
        match = self.part.matches.of(surrogate, site)
        assert not isinstance(match, Refusal)
        own = attribute(self.surrogate, self.own) if has_attribute(self.surrogate, self.own) else nn.Module()
        return surrogate.whole_weights(match, own, lambda path: weight_now(self.model, self.named(path)))

    def _means(self, site: Site) -> Iterator[tuple[str, Tensor]]:
        """The means of the neighbours' tensors, for all those of the block."""
        root, path = site.graph_module, str(site.block.module_path)
        removed = root.get_submodule(path) if has_attribute(root, path) else nn.Module()
        names = [f"{path}.{name}" for name in removed.state_dict()]
        for path in dict.fromkeys((*site.block.parameters, *names)):
            own = attribute(root, path)
            pair = [value for value in self._of_neighbours(site, path) if value.shape == own.shape]
            if pair:
                yield self.named(path), torch.stack(pair).mean(0) if own.is_floating_point() else pair[0]

    def _of_neighbours(self, site: Site, path: str) -> Iterator[Any]:
        """The tensors of the neighbours that play the part of one of the block's."""
        for neighbour in site.neighbours:
            if path in site.block.parameters:
                found = self.named(site.counterpart_parameter(path, neighbour))
            else:
                found = self.named(f"{neighbour.module_path}{path.removeprefix(str(site.block.module_path))}")
            value = attribute(self.model, found) if has_attribute(self.model, found) else None
            if isinstance(value, Tensor):
                yield value
