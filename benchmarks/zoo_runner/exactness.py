"""Whether two modules compute the same, to the bit: outputs, gradients and buffers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from repl_fx.tracing.check import ModeCheck


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
    """One number that every floating output has a part in, by its elements that are finite: a model may mask others."""
    parts = [out for out in tensors(outputs) if out.requires_grad and out.is_floating_point()]
    if not parts:
        raise ValueError("no output depends on a parameter")
    finite = (part if bool(part.isfinite().all()) else part[part.isfinite()] for part in parts)
    return torch.stack([((part.float() - 0.5) ** 2).mean() for part in finite]).sum()


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


def require_equal(check: ModeCheck) -> None:
    """Accept what two modules did in one mode.

    Raises:
        AssertionError: something differs, says what; or there is nothing that could.
    """
    outputs = [value for value in check.source.outputs if isinstance(value, Tensor)]
    assert outputs, "the model returns no tensor"
    assert any(bool(output.any()) for output in outputs), "all outputs are zero"
    more = f"; and {len(check.differences) - 3} more" if len(check.differences) > 3 else ""
    assert not check.differences, "; ".join(check.differences[:3]) + more


def require_equal_training(check: ModeCheck, model: nn.Module) -> frozenset[str]:
    """Likewise in training mode, where gradients count.

    Returns:
        The parameters of the source, by all their names, that its loss reaches.

    Raises:
        AssertionError: see `require_equal`.
    """
    require_equal(check)
    named = dict(model.named_parameters(remove_duplicate=False))
    known = {id(named[n]): g for n in named if (g := check.source.state.get(f"the gradient of {n}")) is not None}
    assert any(bool(gradient.any()) for gradient in known.values()), "all gradients are zero"
    return frozenset(name for name, parameter in named.items() if id(parameter) in known)
