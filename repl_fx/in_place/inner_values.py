"""Values from inside the rest of the model, kept for a surrogate that stands in the model's own tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from repl_fx._torch import pytree


class InnerValue:
    """The last result of a module, from its call until a surrogate takes it.

    Args:
        path: of the module in the model.
        leaf: the number of the value among the flattened results; None for the result as it is.
    """

    def __init__(self, path: str, leaf: int | None) -> None:
        self.path, self.leaf = path, leaf
        self._kept: list[Any] = []

    def keep(self, module: nn.Module, args: Any, result: Any) -> None:
        """Keep a result; a forward hook of the module."""
        self._kept[:] = [result if self.leaf is None else pytree.tree_leaves(result)[self.leaf]]

    def take(self) -> Any:
        """The result, once: a value that stayed could be that of another batch.

        Raises:
            RuntimeError: the module has not run since.
        """
        if not self._kept:
            raise RuntimeError(
                f"a surrogate reads a value of {self.path}, which has not run since the surrogate ran last; call the "
                "blocks in the model's order, and checkpoint the two together"
            )
        return self._kept.pop()

    def __getstate__(self) -> dict[str, Any]:
        # A value belongs to one forward pass of one process.
        return {**vars(self), "_kept": []}


class InnerValues(nn.Module):
    """Hands out values of other modules of the model, which forward hooks on these keep.

    Args:
        values: the values to hand out.
    """

    def __init__(self, values: Sequence[InnerValue]) -> None:
        super().__init__()
        self.values = tuple(values)

    def belong_to(self, model: nn.Module) -> None:
        """Keep values of this model from now on."""
        for value in self.values:
            model.get_submodule(value.path).register_forward_hook(value.keep)

    def forward(self) -> tuple[Any, ...]:
        """The values."""
        return tuple(value.take() for value in self.values)
