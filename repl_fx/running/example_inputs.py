"""Example inputs: the arguments of one call of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from repl_fx._torch import pytree
from repl_fx.arguments import require_args


@dataclass(frozen=True, eq=False)
class ExampleInputs:
    """The arguments of one call of a model, nested as it takes them."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> ExampleInputs:
        """The inputs that a public function was given.

        Raises:
            BadInput: they are no sequence, or no mapping, of arguments; says what to give instead.
        """
        require_args(args, kwargs)
        return cls(tuple(args), dict(kwargs or {}))

    @classmethod
    def of_batch(cls, inputs: Any) -> ExampleInputs:
        """The arguments that the inputs of a batch are: by name in a mapping, by place in a tuple, else one alone."""
        if isinstance(inputs, Mapping):
            return cls.of((), inputs)
        return cls(inputs if isinstance(inputs, tuple) else (inputs,))

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the flattened arguments."""
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    @property
    def batch(self) -> int:
        """The first size of the first tensor that has one; 1 where there is none."""
        return next((tensor.shape[0] for tensor in self.tensors if tensor.ndim), 1)

    def map(self, change: Callable[[Tensor], Any]) -> ExampleInputs:
        """The same arguments with other values in the places of the tensors."""
        args, kwargs = pytree.tree_map_only(Tensor, change, (self.args, self.kwargs))
        return ExampleInputs(tuple(args), dict(kwargs))

    def fresh(self) -> ExampleInputs:
        """Copies of the tensors, which a forward may change."""
        return self.map(lambda tensor: tensor.detach().clone())

    def apart(self, taken: Iterable[Tensor]) -> ExampleInputs:
        """The same arguments, with copies in the places of tensors that are taken, or stand in another place too."""
        seen = set(map(id, taken))

        def own(tensor: Tensor) -> Tensor:
            if id(tensor) in seen:
                return tensor.detach().clone().requires_grad_(tensor.requires_grad)
            seen.add(id(tensor))
            return tensor

        return self.map(own)

    def passed_to(self, module: nn.Module) -> Any:
        """The result of a module on these inputs themselves."""
        return module(*self.args, **self.kwargs)


class HasInputs:
    """A result that has example inputs: their arguments are attributes of its own."""

    if TYPE_CHECKING:

        @property
        def inputs(self) -> ExampleInputs:
            """The example inputs; at run time the class of the result has them."""

    @property
    def args(self) -> tuple[Any, ...]:
        """The positional inputs."""
        return self.inputs.args

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword inputs."""
        return self.inputs.kwargs
