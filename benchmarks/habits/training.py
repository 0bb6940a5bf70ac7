"""Habits of training loops written by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.habits.registry import habit, require
from benchmarks.habits.subject import BLOCKS, GPT2, RESNET, T5, VIT, Subject


def train(
    subject: Subject,
    model: nn.Module,
    steps: int = 6,
    *,
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
    between: Callable[[], Any] = lambda: None,
    optimizer: torch.optim.Optimizer | None = None,
) -> list[float]:
    """Train on the one batch, which has to get easier, and give the losses.

    Args:
        around: a context for the forward pass.
        between: called after each backward pass.
    """
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        with around():
            loss = subject.loss(model)
        torch.autograd.backward(loss)
        between()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    require(losses[-1] < losses[0], f"the loss does not fall: {losses[0]:.3f}, then {losses[-1]:.3f}")
    return losses


def require_close(found: Tensor, wanted: Tensor, what: str, tolerance: float = 1e-4) -> None:
    """Fail where two tensors differ by more than a share of the largest value."""
    apart = float((found.detach().double() - wanted.detach().double()).abs().max())
    scale = float(wanted.detach().abs().max())
    require(apart <= tolerance * scale, f"{what} differ by {apart / scale:.0e} of the largest value")


@habit("plain loop", VIT, RESNET, GPT2, T5)
def plain_loop(subject: Subject) -> None:
    """A loop in which each parameter has its part."""
    model = subject.model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(subject, model)
    for name, parameter in model.named_parameters():
        require(not torch.equal(parameter, before[name]), f"{name} is not trained")


@habit("AMP: autocast to bfloat16", VIT, RESNET, GPT2)
def mixed_precision(subject: Subject) -> None:
    """`torch.autocast`."""
    model = subject.model()
    with torch.autocast("cpu", torch.bfloat16):
        half = subject.output(copy.deepcopy(model))
    require_close(half.float(), subject.output(copy.deepcopy(model)), "outputs in bfloat16 and float32", 0.1)
    train(subject, model, around=lambda: torch.autocast("cpu", torch.bfloat16))


@habit("gradient clipping", VIT, RESNET, GPT2)
def clipping(subject: Subject) -> None:
    """`clip_grad_norm_`."""
    model = subject.model()

    def clip() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 0.1, error_if_nonfinite=True)
        norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        require(float(norm) < 0.101, f"gradients have a norm of {float(norm):.3f} when clipped to 0.1")

    train(subject, model, between=clip)


@habit("EMA: AveragedModel", VIT, RESNET, GPT2)
def averaging(subject: Subject) -> None:
    """An exponential moving average of the weights."""
    model = subject.model()
    decay: Any = get_ema_multi_avg_fn
    average = AveragedModel(model, multi_avg_fn=decay(0.5), use_buffers=True)
    before = subject.output(average.eval())
    train(subject, model, between=lambda: average.update_parameters(model))
    require(not torch.allclose(subject.output(average.eval()), before), "the average stays where it was")
    names = dict(model.named_parameters()).keys() ^ dict(average.module.named_parameters()).keys()
    require(not names, f"the average has other parameters: {', '.join(sorted(names)[:2])}")


def _compiled(subject: Subject, backend: str) -> str:
    torch._dynamo.reset()
    model = subject.model()
    # A deep copy first: the first call of a compiled module may change its buffers.
    plain = copy.deepcopy(model)
    compiled: Any = torch.compile(model, backend=backend)
    wanted, found = subject.loss(plain), subject.loss(compiled)
    require_close(found, wanted, "losses, compiled and not,")
    torch.autograd.backward((wanted, found))
    theirs = dict(model.named_parameters())
    for name, parameter in plain.named_parameters():
        if parameter.grad is not None:
            require(theirs[name].grad is not None, f"{name} has no gradient when compiled")
            scale = float(parameter.grad.abs().max())
            if scale > 1e-6:
                require_close(torch.as_tensor(theirs[name].grad), parameter.grad, f"gradients of {name}", 1e-2)
    torch._dynamo.reset()
    breaks = int(torch._dynamo.explain(plain)(*subject.positional, **subject.named).graph_break_count)
    torch._dynamo.reset()
    return f"{breaks} graph break{'s' * (breaks > 1)} in the {subject.network}" if breaks else ""


@habit("torch.compile, aot_eager", VIT, RESNET, GPT2, quick=False)
def compiled_eager(subject: Subject) -> str:
    """The same loss and gradients."""
    return _compiled(subject, "aot_eager")


@habit("torch.compile, inductor", VIT, RESNET, GPT2, quick=False)
def compiled_inductor(subject: Subject) -> str:
    """The same loss and gradients."""
    return _compiled(subject, "inductor")


def kept_bytes(subject: Subject, model: nn.Module) -> tuple[int, list[Tensor]]:
    """The bytes of the storages that the forward pass keeps for the backward pass, and the gradients of that."""
    known = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        subject.loss(model)
    # Without the hooks, which make other tensors of those that a checkpoint begins with.
    torch.autograd.backward(subject.loss(model))
    return sum(kept.values()), [p.grad for p in model.parameters() if p.grad is not None]


@habit("gradient checkpointing of the source", VIT, GPT2, T5)
def checkpointing(subject: Subject) -> str:
    """`set_grad_checkpointing` of timm and `gradient_checkpointing_enable` of transformers."""
    plain, model = subject.model(), subject.model()
    before, wanted = kept_bytes(subject, plain)
    if subject.is_text:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    else:
        model.set_grad_checkpointing()  # type: ignore[operator]
    after, found = kept_bytes(subject, model)
    require(after < 0.7 * before, f"{after / before:.0%} of the bytes are kept with it")
    for one, other in zip(found, wanted, strict=True):
        if float(other.abs().max()) > 1e-6:
            require_close(one, other, "gradients with and without")
    return f"{after / before:.0%} of the bytes kept in the {subject.network}"


@habit("forward hooks on blocks", VIT, RESNET, GPT2, T5, by_block=True)
def hooks(subject: Subject) -> None:
    """Each block is a module that is called, and its output can be seen."""
    model = subject.model()
    seen: dict[int, Any] = {}
    blocks = BLOCKS[subject.network](model)
    for number, block in enumerate(blocks):
        block.register_forward_hook(lambda module, args, result, number=number: seen.update({number: result}))
    subject.loss(model)
    silent = [number for number in range(len(blocks)) if number not in seen]
    require(not silent, f"hooks on {len(silent)} of {len(blocks)} blocks are silent")


@habit("pruning: masks on weights, trained, made permanent", VIT, RESNET, GPT2)
def masked(subject: Subject) -> None:
    """Masks of torch.nn.utils.prune, whose weights are made before each forward of their layer."""
    model = subject.model()
    known: list[Any] = list(model.modules())
    layers = [m for m in known if isinstance(getattr(m, "weight", None), nn.Parameter) and m.weight.ndim > 1]
    for layer in layers:
        prune.l1_unstructured(layer, "weight", 0.5)  # type: ignore[no-untyped-call]
    train(subject, model)
    expected = subject.output(model.eval())
    for layer in layers:
        prune.remove(layer, "weight")  # type: ignore[no-untyped-call]
    require_close(subject.output(model), expected, "outputs, with masks and permanent,")


@habit("optional inputs, present or not", GPT2, T5)
def optional_inputs(subject: Subject) -> None:
    """One model with labels and without, with a mask and without."""
    model: Any = subject.model().eval()
    ids = subject.inputs["input_ids"]
    rest = {} if subject.network == GPT2 else {"decoder_input_ids": torch.zeros(len(ids), 1, dtype=torch.long)}
    for mask in ({}, {"attention_mask": torch.ones_like(ids)}):
        full = model(**subject.inputs, **mask)
        require(full["loss"] is not None, "labels give no loss")
        bare = model(input_ids=ids, **rest, **mask)
        require(bare["logits"].shape[-1] == full["logits"].shape[-1], "without labels there are no logits")
    half = torch.ones_like(ids)
    half[:, 6:] = 0
    masked, full = (model(**subject.inputs, **m)["logits"] for m in ({"attention_mask": half}, {}))
    require(not torch.allclose(masked, full), "a mask changes nothing")


@habit("torch.func.functional_call and grad", VIT, RESNET, GPT2)
def functional(subject: Subject) -> None:
    """Gradients of a pure function of the parameters."""
    # Statistics of a norm cannot move in a pure function.
    model = subject.model().eval()
    parameters = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return subject.loss(_Called(model, parameters))

    found = torch.func.grad(loss)(parameters)
    torch.autograd.backward(subject.loss(model))
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and float(parameter.grad.abs().max()) > 1e-6:
            require_close(found[name], parameter.grad, f"gradients of {name}")


class _Called(nn.Module):
    """A model on other parameters."""

    def __init__(self, model: nn.Module, parameters: dict[str, Tensor]) -> None:
        super().__init__()
        self.__dict__["parts"] = model, parameters

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        model, parameters = self.__dict__["parts"]
        return functional_call(model, parameters, args, kwargs)
