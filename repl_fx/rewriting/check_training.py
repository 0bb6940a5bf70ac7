"""Check that a rewritten model trains: one step on its example inputs.

A step is a forward pass in training mode, one number of all floating outputs, and its gradients. What fails is the
fault of the rewriting where the model before takes the same step: an error, a gradient of a surrogate that is no
number, and a surrogate none of whose parameters gets a gradient. Some of them are zero at first by intent, where a
branch begins silent or a gate of the source's own is closed; so a surrogate counts as dead when all of its gradients
are still missing or zero after the other parameters have moved.

Never touches: parameters, buffers, gradients, modes and random generators of either model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from repl_fx.errors import ForeignError, foreign_code
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.opaque_outputs import all_finite, floating_outputs
from repl_fx.running.untouched import device_of, in_mode, seed_everything, seeded, untouched

# How often the parameters move before a surrogate without gradients counts as dead: a closed gate opens at the first,
# a second one behind it at the next.
_MOVES = 2
# The length of a move of one parameter.
_LENGTH = 0.1


@dataclass(frozen=True)
class StepOutcome:
    """The outcome of one training step.

    Attributes:
        problem: the error that it raised, in one line; None where it ran.
        learns: ids of the parameters that got a gradient which is not all zeros.
        broken: ids of the parameters that got a gradient with a NaN or an infinity.
        compared: whether any output depends on any parameter.
    """

    problem: str | None
    learns: frozenset[int] = frozenset()
    broken: frozenset[int] = frozenset()
    compared: bool = True


class TrainingCheck:
    """Compares training steps of rewritten models with that of the model before it is rewritten."""

    def __init__(self, model: nn.Module, inputs: ExampleInputs) -> None:
        self.model, self.inputs = model, inputs
        # A step needs values.
        self.possible = not any(tensor.is_meta for tensor in (*inputs.tensors, *model.parameters(), *model.buffers()))

    @cached_property
    def before(self) -> StepOutcome:
        return self._trained(self.model, moves=0)

    def run(
        self,
        module: nn.Module,
        surrogates: Mapping[str, Sequence[nn.Parameter]],
        removed: Mapping[str, Sequence[nn.Parameter]],
    ) -> tuple[str | None, dict[str, str]]:
        """Take a step of a rewritten model, which is afterwards as it was.

        Args:
            surrogates: the parameters of the surrogate of each replaced block, by the block's name.
            removed: likewise the block's own parameters in the model before.

        Returns:
            The error of the step, None where there is none; and why a surrogate cannot stay, by the block's name.
        """
        if not self.possible:
            return None, {}
        step = self._trained(module, moves=0)
        if step.problem is not None:
            return (None if self.before.problem is not None else step.problem), {}
        if not step.compared:
            return None, {}
        found = {}
        suspects = {}
        for block, own in surrogates.items():
            trained = {id(parameter) for parameter in own if parameter.requires_grad}
            if trained & step.broken and not self.before.broken:
                found[block] = "its gradients are no finite numbers in a training step"
            elif trained and not trained & step.learns and not self.before.learns.isdisjoint(map(id, removed[block])):
                suspects[block] = trained
        if suspects:
            moved = self._trained(module, moves=_MOVES).learns
            dead = "none of its parameters gets a gradient, so that it would never learn"
            found |= {block: dead for block, trained in suspects.items() if not trained & moved}
        return None, found

    def _trained(self, module: nn.Module, moves: int) -> StepOutcome:
        """A step of a model, and some more after its parameters moved; what learns in any of them learns."""
        device = device_of(module, self.inputs)
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        learns: set[int] = set()
        broken: set[int] = set()
        with (
            untouched(module, buffers=True, parameters=moves > 0),
            in_mode(module, True),
            seeded(device, 0),
            torch.enable_grad(),
        ):
            for number in range(moves + 1):
                seed_everything(number, device)
                try:
                    with foreign_code():
                        gradients = self._gradients(module, parameters)
                except ForeignError as problem:
                    # The model's or a surrogate's: the caller tells whose fault it is.
                    return StepOutcome(str(problem))
                if gradients is None:
                    return StepOutcome(None, compared=False)
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    if gradient is None:
                        continue
                    if not all_finite(gradient):
                        broken.add(id(parameter))
                    elif bool(gradient.any()):
                        learns.add(id(parameter))
                if number < moves:
                    _move(parameters, gradients)
        return StepOutcome(None, frozenset(learns), frozenset(broken))

    def _gradients(self, module: nn.Module, parameters: Sequence[nn.Parameter]) -> tuple[Tensor | None, ...] | None:
        """Gradients of one number of all outputs; None where no output depends on a parameter."""
        parts = floating_outputs(self.inputs.fresh().passed_to(module))
        if not parts or not parameters:
            return None
        # Weighted at random: the sum of what a norm made, or of its squares, is the same for all values.
        weighted = [(part * torch.randn(part.shape).to(part)).sum() / max(1, part.numel()) ** 0.5 for part in parts]
        return torch.autograd.grad(torch.stack([one.double() for one in weighted]).sum(), parameters, allow_unused=True)


@torch.no_grad()
def _move(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            length = torch.linalg.vector_norm(gradient)
            if bool(length > 0) and bool(torch.isfinite(length)):
                parameter.sub_(gradient * (_LENGTH / length))
