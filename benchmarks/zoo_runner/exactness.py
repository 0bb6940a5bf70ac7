"""Whether two modules compute the same, to the bit: outputs, gradients and buffers."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from repl_fx.tracing.untouched import untouched


def seed_everything(seed: int) -> None:
    """Seed the generators that a model may draw from: torch's, Python's and numpy's."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def tensors(value: Any) -> list[Tensor]:
    """The tensors of a nested value, in order; those inside dataclasses and plain objects such as caches as well."""
    return list(_tensors(value, set()))


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, type) and id(leaf) not in seen:
            seen.add(id(leaf))
            yield from _tensors(list(vars(leaf).values()), seen)


def fresh(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Copies of example inputs: a model may change them."""
    copied: Any = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), (tuple(args), dict(kwargs)))
    return copied[0], copied[1]


def loss_of(outputs: Any) -> Tensor:
    """One number that every floating output has a part in."""
    parts = [out for out in tensors(outputs) if out.requires_grad and out.is_floating_point()]
    if not parts:
        raise ValueError("no output depends on a parameter")
    return torch.stack([((part.float() - 0.5) ** 2).mean() for part in parts]).sum()


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> str | None:
    """How two lists of tensors differ, in words; None where they are equal, bit for bit, NaN where NaN is."""
    if len(ours) != len(theirs):
        return f"{len(ours)} outputs, not {len(theirs)}"
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            return f"output {index} is {a.dtype} {list(a.shape)}, not {b.dtype} {list(b.shape)}"
        if not same(a, b):
            worst = (a.double() - b.double()).abs().max().item() if not a.is_complex() else float("nan")
            return f"output {index} differs by up to {worst:.3g}"
    return None


def same(a: Tensor, b: Tensor) -> bool:
    """Equal, bit for bit; NaN counts as equal to NaN."""
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())


def compare_evaluation(model: nn.Module, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Both in evaluation mode.

    Raises:
        AssertionError: an output differs; says which and by how much.
    """
    outputs = []
    for each in (model, module):
        each.eval()
        seed_everything(1)
        a, k = fresh(args, kwargs)
        # With gradients on: `nn.TransformerEncoderLayer` computes in another order without.
        with untouched(model, buffers=True), untouched(module, buffers=True):
            outputs.append([t.detach() for t in tensors(each(*a, **k))])
    problem = difference(outputs[1], outputs[0])
    assert outputs[0], "the model returns no tensor"
    assert problem is None, problem


def compare_training(model: nn.Module, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Both in training mode from the same seed: outputs, gradients of all parameters, buffers afterwards.

    A buffer that the model's forward replaces by another tensor, as tables that are made on the first call, is no part
    of the comparison.

    Raises:
        AssertionError: something differs; says what.
    """
    outputs, grads, after = [], [], []
    for each in (model, module):
        each.train()
        each.zero_grad()
        seed_everything(1)
        a, k = fresh(args, kwargs)
        with untouched(model, buffers=True), untouched(module, buffers=True):
            buffers = dict(each.named_buffers(remove_duplicate=False))
            out = each(*a, **k)
            outputs.append([t.detach() for t in tensors(out)])
            loss_of(out).backward()  # type: ignore[no-untyped-call]
            del out
            # The gradients are the first module's own; the second, which shares its parameters, makes new ones.
            grads.append({name: p.grad for name, p in each.named_parameters() if p.grad is not None})
            for parameter in each.parameters():
                parameter.grad = None
            now = dict(each.named_buffers(remove_duplicate=False))
            after.append({n: b.detach().clone() for n, b in now.items() if buffers.get(n) is b})
    problem = difference(outputs[1], outputs[0])
    assert problem is None, problem
    assert grads[0].keys() == grads[1].keys(), (
        f"gradients of {len(grads[1])} parameters, not {len(grads[0])}, e.g. {min(grads[0].keys() ^ grads[1].keys())}"
    )
    wrong = [name for name in grads[0] if not same(grads[0][name], grads[1][name])]
    assert not wrong, f"{len(wrong)} of {len(grads[0])} gradients differ, e.g. of {wrong[-1]}"
    assert any(bool(grad.any()) for grad in grads[0].values()), "all gradients are zero"
    wrong = [name for name in after[0] if name not in after[1] or not same(after[0][name], after[1][name])]
    assert not wrong, f"{len(wrong)} buffers differ after a step, e.g. {wrong[-1]}"
