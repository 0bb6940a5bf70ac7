"""Tell whether a graph does what its source does: two steps in each mode, to the bit."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from repl_fx._torch import pytree
from repl_fx.errors import BadInput, ForeignError, first_line, foreign_code
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.opaque_outputs import equal_leaves, floating_outputs, open_objects
from repl_fx.running.untouched import (
    KeptTensors,
    Outcome,
    device_of,
    in_mode,
    ordinary_attention,
    outcome_of,
    seed_everything,
    seeded,
    untouched,
)

STEPS = 2
_plain_attention = partial(sdpa_kernel, SDPBackend.MATH)


@dataclass(frozen=True)
class CaptureCheck:
    """Tell whether a captured graph does what its source does: in two consecutive steps in each mode, bit for bit.

    Attributes:
        evaluation: outputs, buffers and gradients in evaluation mode are equal.
        training: likewise in training mode under the same seed.
        differences: one line for each thing that differs.
    """

    evaluation: bool
    training: bool
    differences: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.evaluation and self.training


@dataclass
class StepValues:
    """The values of one step of a module, by names for messages.

    Attributes:
        outputs: the leaves of what it returned; no tensor has a history.
        state: values of buffers and gradients; None for a parameter or an input that got none.
        problem: the error of the backward pass.
        trains: whether an output requires a gradient.
    """

    outputs: list[Any]
    state: dict[str, Tensor | None] = field(default_factory=dict)
    problem: str | None = None
    trains: bool = False


@dataclass(frozen=True)
class ModeCheck:
    """Two steps of two modules in one mode.

    Attributes:
        differences: one line for each thing that differs; empty where both did the same.
        source: the second step of the source, with gradients as large as the model.
    """

    differences: tuple[str, ...]
    source: StepValues


def compare_modes(
    model: nn.Module,
    module: nn.Module,
    inputs: ExampleInputs,
    modes: Sequence[bool] = (False, True),
    *,
    seed: int = 0,
) -> Generator[ModeCheck, None, None]:
    """Run two modules two steps each, mode by mode, and compare all they do.

    The second step has a backward pass too, with inputs that require gradients; the first compares what a forward does
    without, and leaves behind the state that the second begins with. Two backward passes would cost half as much again.

    In evaluation mode both run once more, on inputs that lie otherwise in memory and under another attention kernel,
    where the source runs on these: a graph may not hold the strides of its trace.

    Args:
        model: the source; it and `module` are afterwards as they were.
        module: the module that should equal it; its parameters and buffers may be the source's.
        inputs: both can take them.
        modes: training or not; each is run when its check is asked for.
        seed: for dropout and the like, one higher in the second step.

    Yields:
        A check for each mode.
    """
    # Most forwards change no parameter, and modules share theirs: one copy serves all runs.
    parameters = KeptTensors(dict.fromkeys(parameter for one in (model, module) for parameter in one.parameters()))
    try:
        for training in modes:
            learned = True
            try:
                ours = _steps(model, inputs, training, seed, learned=learned)
            except RuntimeError:
                # Some models (wav2vec 2.0) let their input require a gradient themselves, and take none that does.
                parameters.restore()
                learned = False
                ours = _steps(model, inputs, training, seed, learned=learned)
            parameters.restore()
            theirs = _steps(module, inputs, training, seed, learned=learned)
            parameters.restore()
            mode = "training" if training else "evaluation"
            differences = tuple(
                f"{mode}, step {number}: {difference}"
                for number, (one, other) in enumerate(zip(ours, theirs, strict=True), start=1)
                for difference in _differences(one, other)
            )
            if not training and not differences:
                differences = tuple(_other_layout(model, module, inputs))
            check = ModeCheck(differences, ours[-1])
            # The next mode does without the gradients of this one.
            del ours, theirs
            yield check
            del check
    finally:
        parameters.restore(compared=True)


def check_of(
    model: nn.Module, module: nn.Module, inputs: ExampleInputs, modes: Sequence[bool] = (False, True), *, seed: int = 0
) -> CaptureCheck:
    """All that `compare_modes` says in one; evaluation and training count as equal where they are among the modes."""
    checks = compare_modes(model, module, inputs, modes, seed=seed)
    found = dict(zip(modes, (check.differences for check in checks), strict=True))
    return CaptureCheck(found.get(False) == (), found.get(True) == (), tuple(chain.from_iterable(found.values())))


def _other_layout(model: nn.Module, module: nn.Module, inputs: ExampleInputs) -> list[str]:
    """The differences in outputs on inputs of other strides and under another attention kernel; one run, if it can."""
    turned = inputs.map(_turned)
    for given, within in ((turned, _plain_attention), (turned, torch.enable_grad), (inputs, _plain_attention)):
        ours = outcome_of(model, given, False, within=within)
        if ours.problem is None:
            return _differences_in_layout(ours, outcome_of(module, given, False, within=within))
    return []


def _differences_in_layout(ours: Outcome, theirs: Outcome) -> list[str]:
    where = "evaluation, on inputs of other strides and with another attention kernel"
    if theirs.problem is not None:
        refused = isinstance(theirs.problem, BadInput)
        return [] if refused else [f"{where}: {first_line(theirs.problem)}"]
    leaves = (pytree.tree_leaves(open_objects(outcome.outputs)) for outcome in (ours, theirs))
    return [
        f"{where}: output {index}{_by_how_much(one, other) if equal_strides(one, other) else ' has other strides'}"
        for index, (one, other) in enumerate(zip(*leaves, strict=True))
        if not equal_leaves(one, other) or not equal_strides(one, other)
    ]


def equal_strides(ours: Any, theirs: Any) -> bool:
    """Tell whether two values of one shape lie alike in memory, where they are tensors; a size of 1 takes no step."""
    if not isinstance(ours, Tensor) or ours.layout is not torch.strided or not ours.numel():
        return True
    steps = [[step for step, size in zip(t.stride(), t.shape, strict=True) if size > 1] for t in (ours, theirs)]
    return steps[0] == steps[1]


def _turned(tensor: Tensor) -> Tensor:
    """The same values, with the dimension after the first the innermost in memory, as in channels_last."""
    if tensor.ndim < 2 or tensor.layout is not torch.strided:
        return tensor
    dim = 0 if tensor.ndim == 2 else 1
    return tensor.movedim(dim, -1).contiguous().movedim(-1, dim)


def _steps(module: nn.Module, inputs: ExampleInputs, training: bool, seed: int, *, learned: bool) -> list[StepValues]:
    device = device_of(module, inputs)
    with (
        untouched(module, buffers=True),
        in_mode(module, training),
        seeded(device, seed),
        torch.enable_grad(),
        ordinary_attention(),
        # Those of torch about hooks and the like come when the user trains.
        warnings.catch_warnings(action="ignore"),
    ):
        return [
            _step(module, inputs, device, seed + number, gradients=number > 0, learned=learned and number > 0)
            for number in range(STEPS)
        ]


def _step(
    module: nn.Module, inputs: ExampleInputs, device: torch.device, seed: int, *, gradients: bool, learned: bool
) -> StepValues:
    """One step.

    Args:
        gradients: whether it has a backward pass.
        learned: whether inputs require gradients.
    """
    seed_everything(seed, device)
    wanted: dict[str, Tensor] = {}

    def given(path: Any, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        copied = value.detach().clone()
        if not learned or not (copied.is_floating_point() or copied.is_complex()):
            return copied
        wanted[f"input {pytree.keystr(path)}"] = copied.requires_grad_()
        # A forward may change its input in place, which autograd forbids for a leaf.
        return copied.clone()

    own_args, own_kwargs = pytree.tree_map_with_path(given, (inputs.args, inputs.kwargs))
    outputs = pytree.tree_leaves(open_objects(module(*own_args, **own_kwargs)))
    step = StepValues([value.detach().clone() if isinstance(value, Tensor) else value for value in outputs])
    step.trains = any(isinstance(value, Tensor) and value.requires_grad for value in outputs)
    loss = loss_of(outputs) if gradients else None
    if loss is not None:
        wanted.update({name: p for name, p in module.named_parameters() if p.requires_grad})
        try:
            with foreign_code():
                found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
        except ForeignError as failed:
            # A forward that keeps its history has no second backward pass; then neither has the graph.
            step.problem = first_line(failed.problem)
        else:
            step.state.update((f"the gradient of {n}", g) for n, g in zip(wanted, found, strict=True))
    buffers = module.named_buffers(remove_duplicate=False)
    step.state.update((f"buffer {name}", buffer.detach().clone()) for name, buffer in buffers)
    return step


def loss_of(outputs: Sequence[Any]) -> Tensor | None:
    """One number that every floating output which requires a gradient has a part in; None where there is none."""
    parts = floating_outputs(outputs)
    return torch.stack([((part.float() - 0.5) ** 2).mean() for part in parts]).sum() if parts else None


def _differences(ours: StepValues, theirs: StepValues) -> list[str]:
    if len(ours.outputs) != len(theirs.outputs):
        return [f"{len(theirs.outputs)} outputs, not {len(ours.outputs)}"]
    found = [
        f"output {index}{_by_how_much(one, other)}"
        for index, (one, other) in enumerate(zip(ours.outputs, theirs.outputs, strict=True))
        if not equal_leaves(one, other)
    ]
    if ours.trains is not theirs.trains:
        # Such as a model that computes inside torch.inference_mode, of which torch.export knows nothing.
        which = ("a", "do not") if theirs.trains else ("no", "do")
        found.append(f"its outputs require {which[0]} gradient, and those of the model {which[1]}")
    if ours.problem != theirs.problem:
        found.append(f"the backward pass: {theirs.problem or 'no error'}, not {ours.problem or 'no error'}")
    for name, value in ours.state.items():
        other = theirs.state.get(name)
        # Parameters that the graph has under another of their names are compared under that.
        if not equal_leaves(value, other):
            found.append(f"{name}{_by_how_much(value, other)}")
    return found


def _by_how_much(ours: Any, theirs: Any) -> str:
    comparable = isinstance(ours, Tensor) and isinstance(theirs, Tensor) and ours.shape == theirs.shape
    if not comparable or ours.dtype != theirs.dtype or ours.is_complex() or not ours.numel():
        return " is another"
    return f" differs by up to {(ours.double() - theirs.double()).abs().max().item():.3g}"
