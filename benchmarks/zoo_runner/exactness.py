"""Whether two modules compute the same, to the bit: outputs, gradients and buffers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from repl_fx.tracing.check import compare_steps
from repl_fx.tracing.untouched import in_mode, seed_everything, untouched


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
    """Both in evaluation mode, two steps of each (`repl_fx.tracing.check`).

    Raises:
        AssertionError: something differs, says what; or there is nothing that could.
    """
    a, k = fresh(args, kwargs)
    # With gradients on: `nn.TransformerEncoderLayer` computes in another order without.
    with untouched(model, buffers=True), in_mode(model, False):
        outputs = tensors(model(*a, **k))
    assert outputs, "the model returns no tensor"
    assert any(bool(output.any()) for output in outputs), "all outputs are zero"
    _require_none(compare_steps(model, module, args, kwargs, False, seed=1))


def compare_training(
    model: nn.Module, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> frozenset[str]:
    """Both in training mode from the same seed, two steps of each: outputs, buffers and all gradients.

    Returns:
        Names of the parameters that the model itself gives a gradient.

    Raises:
        AssertionError: something differs, says what; or there is nothing that could.
    """
    seed_everything(1)
    a, k = fresh(args, kwargs)
    with untouched(model, buffers=True), in_mode(model, True):
        wanted = {name: p for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
        gradients = torch.autograd.grad(loss_of(model(*a, **k)), list(wanted.values()), allow_unused=True)
    found = {name: g for name, g in zip(wanted, gradients, strict=True) if g is not None}
    assert any(bool(gradient.any()) for gradient in found.values()), "all gradients are zero"
    _require_none(compare_steps(model, module, args, kwargs, True, seed=1))
    return frozenset(found)


def _require_none(differences: Sequence[str]) -> None:
    more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
    assert not differences, "; ".join(differences[:3]) + more
