"""Whether what stands in for the replaced blocks takes part: in the gradients of a few steps, and in the outputs."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from benchmarks.zoo_runner.exactness import fresh, loss_of, same, tensors
from repl_fx.graph.decisions import is_random
from repl_fx.running.untouched import in_mode, seed_everything, untouched

# Surrogates begin silent, so that some of their parameters get their first gradient in a later step.
SILENT, STEPS = 2, 4
# Where the model itself drops layers at random, one step may drop what a surrogate stands for; others keep it.
STEPS_WITH_DROPS = 10
# A step moves each parameter by this much of its length, or by this much where it is zero.
PACE = 1e-3


def train(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    untrained: Collection[str] = (),
    source: nn.Module | None = None,
) -> None:
    """A few steps of normalised gradient descent on a rewritten model.

    Args:
        module: the rewritten model.
        args, kwargs: its example inputs.
        untrained: paths of surrogates that need no gradient: the source gives none to the blocks they stand for.
        source: the model it was made from, which may mask some outputs with values that are not finite.

    Raises:
        AssertionError: an output is not finite where the source's is, nor is a loss or a gradient, a parameter of a
            surrogate gets no gradient, or nothing but zeros, in all steps but the first ones, or a surrogate can be
            changed without a change of any output.
    """
    module.train()
    owned = {name: parameter for name, parameter in module.named_parameters() if _of_surrogate(name)}
    graphs = [part for part in module.modules() if isinstance(part, fx.GraphModule)]
    drops = any(is_random(node) for part in graphs for node in part.graph.nodes)
    dead = {name: "no gradient" for name in owned if not name.startswith(tuple(f"{path}." for path in untrained))}
    for step in range(STEPS_WITH_DROPS if drops else STEPS):
        seed_everything(step + 2)
        a, k = fresh(args, kwargs)
        outputs = module(*a, **k)
        if not all(bool(output.isfinite().all()) for output in tensors(outputs)):
            masked = [] if source is None else _outputs(source, args, kwargs, True, step + 2)
            _require_finite(tensors(outputs), masked, step + 1)
        loss = loss_of(outputs)
        assert math.isfinite(loss.item()), f"the loss is {loss.item()} in step {step + 1}"
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        wild = [name for name, gradient in gradients.items() if not bool(gradient.isfinite().all())]
        assert not wild, f"{len(wild)} gradients are not finite, e.g. of {wild[0]}"
        for name in dead.keys() & gradients.keys() if step >= SILENT else ():
            if bool(gradients[name].any()):
                del dead[name]
            else:
                dead[name] = "a gradient of zeros"
        _descend(module)
        if step >= SILENT and not dead:
            break
    assert not dead, f"{len(dead)} parameters of surrogates get {dead[min(dead)]}, e.g. {min(dead)}"
    _require_heard(module, owned, args, kwargs)


def _require_finite(outputs: Sequence[Tensor], masked: Sequence[Tensor], step: int) -> None:
    """Accept outputs that are not finite where those of the source, under the same seed, are the same infinities."""
    for index, output in enumerate(outputs):
        wild = ~output.isfinite()
        theirs = masked[index] if index < len(masked) and masked[index].shape == output.shape else None
        new = wild if theirs is None else wild & (output != theirs)
        assert not bool(new.any()), f"{int(new.sum())} elements of output {index} are not finite in step {step}"


def _of_surrogate(name: str) -> bool:
    return ".surrogates." in f".{name}"


@torch.no_grad()
def _descend(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.grad is not None:
            length = float(parameter.grad.norm())
            pace = PACE * (float(parameter.norm()) or 1.0)
            parameter.sub_(parameter.grad, alpha=pace / length if length > 0 else 0.0)
            parameter.grad = None


@torch.no_grad()
def _require_heard(
    module: nn.Module, owned: Mapping[str, Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Change the parameters of one surrogate after the other, and look for a change of an output in either mode."""
    surrogates: dict[str, list[Tensor]] = {}
    for name, parameter in owned.items():
        place, _, rest = f".{name}".partition(".surrogates.")
        surrogates.setdefault(f"{place}.surrogates.{rest.split('.')[0]}".lstrip("."), []).append(parameter)
    waiting = dict(surrogates)
    for training in (False, True):
        for seed in range(1, 9 if training else 2):
            before = _outputs(module, args, kwargs, training, seed)
            for name, parameters in list(waiting.items()):
                with _changed(parameters):
                    after = _outputs(module, args, kwargs, training, seed)
                if len(after) != len(before) or not all(map(same, after, before)):
                    del waiting[name]
            if not waiting:
                return
    assert not waiting, f"{len(waiting)} surrogates change no output, e.g. {min(waiting)}"


@contextmanager
def _changed(parameters: Sequence[Tensor]) -> Iterator[None]:
    before = [parameter.clone() for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter), alpha=0.1 + float(parameter.abs().mean()))
        yield
    finally:
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)


def _outputs(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], training: bool, seed: int
) -> list[Tensor]:
    a, k = fresh(args, kwargs)
    with untouched(module, buffers=True), in_mode(module, training):
        seed_everything(seed)
        return [output.clone() for output in tensors(module(*a, **k))]
