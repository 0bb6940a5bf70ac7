"""What a module does over consecutive steps, recorded in full, and the comparison of two records bit for bit."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tests.attack.hooks import LEDGER

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
_CONTAINERS = (dict, OrderedDict, list, set)


@dataclass(frozen=True)
class Step:
    """All that can be seen of one forward and backward.

    Attributes:
        outputs: tensors and other leaves, and what holds them, in words.
        gradients: of parameters, by name; those without one are None.
        input_gradients: of floating inputs.
        buffers: values afterwards, by name.
        hooks: how often each counting hook ran.
        randomness: the state of the generator afterwards.
    """

    outputs: list[Any]
    structure: str
    gradients: dict[str, Tensor | None]
    input_gradients: list[Tensor | None]
    buffers: dict[str, Tensor]
    hooks: dict[str, int]
    randomness: Tensor


def opened(value: Any) -> tuple[list[Any], str]:
    """The leaves of a result, and its structure in words."""
    if hasattr(value, "__dataclass_fields__"):
        leaves, words = opened(dict(vars(value)))
        return leaves, f"{type(value).__name__}({words})"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        leaves, words = opened(dict(zip(value._fields, value, strict=True)))
        return leaves, f"{type(value).__name__}({words})"
    if isinstance(value, dict):
        inside = [(key, *opened(item)) for key, item in value.items()]
        return [x for _, leaves, _ in inside for x in leaves], f"{{{', '.join(f'{k}: {w}' for k, _, w in inside)}}}"
    if isinstance(value, (tuple, list)):
        several = [opened(item) for item in value]
        return [
            x for leaves, _ in several for x in leaves
        ], f"{type(value).__name__}({', '.join(w for _, w in several)})"
    return [value], "Tensor" if isinstance(value, Tensor) else type(value).__name__


def loss_of(leaves: Sequence[Any]) -> Tensor | None:
    """A weighted sum of all floating values that have gradients; None where there are none."""
    total: Tensor | None = None
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.requires_grad:
            value = torch.view_as_real(leaf) if leaf.is_complex() else leaf
            weights = torch.arange(value.numel(), device=value.device).cos().reshape(value.shape)
            part = (value.to(torch.promote_types(value.dtype, torch.float32)) * weights).sum()
            total = part if total is None else total + part
    return total


def prepared(inputs: Inputs) -> tuple[Inputs, list[Tensor]]:
    """Inputs of their own storage, and those of them that get a gradient."""
    tracked: list[Tensor] = []

    def own(value: Tensor) -> Tensor:
        value = value.detach().clone()
        if value.is_floating_point() or value.is_complex():
            tracked.append(value.requires_grad_(True))
        return value

    return pytree.tree_map_only(Tensor, own, inputs), tracked


def run_step(module: nn.Module, inputs: Inputs, training: bool, seed: int, rate: float = 0.0) -> Step:
    """One forward and backward; with a rate, all parameters then move along their gradients."""
    (args, kwargs), tracked = prepared(inputs)
    named = dict(module.named_parameters())
    for parameter in named.values():
        parameter.grad = None
    LEDGER.clear()
    module.train(training)
    torch.manual_seed(seed)
    leaves, structure = opened(module(*args, **kwargs))
    loss = loss_of(leaves)
    if loss is not None:
        loss.backward()  # type: ignore[no-untyped-call]
    step = Step(
        [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves],
        structure,
        {name: None if p.grad is None else p.grad.detach().clone() for name, p in named.items()},
        [None if value.grad is None else value.grad.clone() for value in tracked],
        {name: buffer.detach().clone() for name, buffer in module.named_buffers()},
        dict(LEDGER),
        torch.get_rng_state(),
    )
    if rate:
        with torch.no_grad():
            for parameter in named.values():
                if parameter.grad is not None and bool(parameter.grad.isfinite().all()):
                    norm = float(parameter.grad.norm())
                    parameter.add_(parameter.grad, alpha=-rate / max(norm, 1e-3))
    for parameter in named.values():
        parameter.grad = None
    return step


def run_steps(
    module: nn.Module, inputs: Callable[[int], Inputs], modes: Sequence[bool], rate: float = 0.05
) -> list[Step]:
    """Consecutive steps, each in its mode; parameters move after those in training mode."""
    return [
        run_step(module, inputs(number), training, 100 + number, rate if training else 0.0)
        for number, training in enumerate(modes)
    ]


def same(a: Any, b: Any) -> bool:
    """Whether two leaves are equal bit for bit; NaN equals NaN."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        return bool(((a == b) | (a.isnan() & b.isnan())).all()) if a.numel() else True
    return type(a) is type(b) and bool(a == b)


def apart(a: Any, b: Any) -> str:
    """How two leaves differ, in words."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            return f"{a.dtype} {list(a.shape)} against {b.dtype} {list(b.shape)}"
        wide = torch.complex128 if a.is_complex() else torch.float64
        return f"by up to {float((a.to(wide) - b.to(wide)).abs().max()):.3g}"
    return f"{_short(a)} against {_short(b)}"


def _short(value: Any) -> str:
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else repr(value)[:60]


def differences(
    source: Sequence[Step], other: Sequence[Step], *, only: Collection[str] | None = None, names: bool = True
) -> list[str]:
    """What differs between two records, in words; empty where they are equal.

    Args:
        source, other: records of the same modes.
        only: names of parameters and buffers to compare; None compares all of the source's.
        names: whether each of these names must be in `other`.
    """
    found = []
    for number, (a, b) in enumerate(zip(source, other, strict=True)):
        where = f"step {number}"
        if a.structure != b.structure:
            found.append(f"{where}: the result is {b.structure}, not {a.structure}")
            continue
        pairs: list[tuple[str, Any, Any]] = [
            (f"output {i}", x, y) for i, (x, y) in enumerate(zip(a.outputs, b.outputs, strict=True))
        ]
        for kind, mine, theirs in (("gradient", a.gradients, b.gradients), ("buffer", a.buffers, b.buffers)):
            for name, value in mine.items():
                if only is not None and name not in only:
                    continue
                if name in theirs:
                    pairs.append((f"{kind} {name}", value, theirs[name]))
                elif names:
                    found.append(f"{where}: no {kind} {name}")
        pairs += [
            (f"gradient of input {i}", x, y)
            for i, (x, y) in enumerate(zip(a.input_gradients, b.input_gradients, strict=True))
        ]
        found += [f"{where}: {what} differs {apart(x, y)}" for what, x, y in pairs if not same(x, y)]
        if a.hooks != b.hooks and only is None:
            found.append(f"{where}: hooks ran {b.hooks}, not {a.hooks}")
        if not torch.equal(a.randomness, b.randomness):
            found.append(f"{where}: another amount of randomness was drawn")
    return found


class Snapshot:
    """Everything a module tree holds, to be compared with later or put back.

    Args:
        module: whose attributes, containers, parameters and buffers are kept.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.kept = [
            (m, dict(vars(m)), {k: copy.copy(v) for k, v in vars(m).items() if type(v) in _CONTAINERS}, m.training)
            for m in module.modules()
        ]
        tensors = [*module.parameters(), *module.buffers()]
        tensors += [v for m in module.modules() for v in vars(m).values() if isinstance(v, Tensor)]
        self.values = [(t, t.detach().clone(), t.requires_grad) for t in tensors]

    def restore(self) -> None:
        """Put everything back."""
        for m, attributes, contents, _ in self.kept:
            vars(m).clear()
            vars(m).update(attributes)
            for name, content in contents.items():
                held = vars(m)[name]
                held.clear()
                if isinstance(held, list):
                    held.extend(content)
                else:
                    held.update(content)
        with torch.no_grad():
            for tensor, value, needs in self.values:
                tensor.requires_grad_(needs) if tensor.is_leaf else None
                tensor.data.copy_(value)
                tensor.grad = None

    def changes(self) -> list[str]:
        """What is not as it was, in words."""
        found = []
        if [id(m) for m in self.module.modules()] != [id(kept[0]) for kept in self.kept]:
            found.append("the tree of modules")
        for m, attributes, contents, training in self.kept:
            name = type(m).__name__
            if m.training != training:
                found.append(f"the mode of a {name}")
            if vars(m).keys() != attributes.keys():
                found.append(f"the attributes of a {name}: {sorted(vars(m).keys() ^ attributes.keys())}")
            for key, value in attributes.items():
                # A cache of the module's own is nobody's state.
                if (
                    not key.startswith("_")
                    and vars(m).get(key) is not value
                    and not (isinstance(value, (int, float, str, tuple)) and vars(m).get(key) == value)
                ):
                    found.append(f"attribute {key} of a {name}")
            for key, content in contents.items():
                if not _alike(vars(m).get(key), content):
                    found.append(f"the contents of {key} of a {name}")
        for tensor, value, needs in self.values:
            if not same(tensor.detach(), value) or tensor.requires_grad != needs:
                found.append(f"a tensor {list(value.shape)}")
            if tensor.is_leaf and tensor.grad is not None:
                found.append(f"the gradient of a tensor {list(value.shape)}")
        return found


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(a[key] is b[key] for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))
    return bool(a == b)


def counted(steps: Sequence[Step]) -> Counter[str]:
    """Runs of hooks over all steps."""
    total: Counter[str] = Counter()
    for step in steps:
        total.update(step.hooks)
    return total
