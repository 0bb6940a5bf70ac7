"""Whether two values that models return are equal, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor

from repl_fx._torch import pytree
from repl_fx.running.opaque_outputs import is_object, open_objects


def equal_leaves(ours: Any, theirs: Any) -> bool:
    """Whether two values without structure are equal, bit for bit; NaN equals NaN."""
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        if (ours.dtype, ours.shape, ours.device) != (theirs.dtype, theirs.shape, theirs.device):
            return False
        if torch.equal(ours, theirs):
            return True
        # Attention with a row that is masked all over gives NaN on purpose.
        return bool(((ours == theirs) | (ours.isnan() & theirs.isnan())).all())
    if type(ours) is not type(theirs):
        return False
    return equal_inside(ours, theirs) if is_object(ours) else bool(ours == theirs)


def equal_inside(ours: Any, theirs: Any) -> bool:
    """Whether two nested values have the same leaves, bit for bit, also inside objects of any class."""
    inside = [pytree.tree_leaves(open_objects(value)) for value in (ours, theirs)]
    return len(inside[0]) == len(inside[1]) and all(map(equal_leaves, *inside))


def same_value(ours: Any, theirs: Any) -> bool:
    """Whether two nested values are equal, bit for bit, also inside objects of the model's own classes."""
    # Such as None, which knows no equality but this one.
    if ours is theirs:
        return True
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, Tensor):
        return equal_leaves(ours, theirs)
    if isinstance(ours, Mapping):
        return list(ours) == list(theirs) and all(same_value(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, (tuple, list)):
        return len(ours) == len(theirs) and all(same_value(a, b) for a, b in zip(ours, theirs, strict=True))
    own_equality: Any = type(ours).__eq__
    if is_dataclass(ours) or own_equality is object.__eq__:
        inside = getattr(ours, "__dict__", {})
        return bool(inside) and same_value(dict(inside), dict(theirs.__dict__))
    return equal_leaves(ours, theirs)
