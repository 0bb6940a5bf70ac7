"""Find the nonlinearity of a branch and use it again at another width."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, fx, nn

from repl_fx.errors import foreign_code
from repl_fx.finding.branches import Branch, behind_entries, same_shape
from repl_fx.graph.captured import called_module, share_tensors
from repl_fx.graph.notes import PASSES_THROUGH
from repl_fx.graph.pickling import function_as_data
from repl_fx.graph.roles import ACTIVATIONS
from repl_fx.graph.state import named_tensors
from repl_fx.running.untouched import seeded

_NOT_ACTIVATIONS = (nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.MultiheadAttention, nn.PReLU, nn.Softmax2d, nn.GLU)


class ElementwiseCall(nn.Module):
    """Calls a function on a tensor, with the arguments after the tensor that are known."""

    def __init__(self, target: Callable[..., Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        self.target, self.args, self.kwargs = target, tuple(args), dict(kwargs)

    def forward(self, value: Tensor) -> Tensor:
        """Call the function."""
        return self.target(value, *self.args, **self.kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "target": function_as_data(self.target)}

    def extra_repr(self) -> str:
        """The function's name."""
        return str(self.target)


def activation_function(gm: fx.GraphModule, node: fx.Node) -> Callable[[Tensor], Tensor]:
    """The activation that a node calls, alone: a module or function of one tensor."""
    module = called_module(gm, node)
    if module is not None:
        with foreign_code():
            return copy.deepcopy(module)
    target: Any = node.target
    return ElementwiseCall(target, node.args[1:], node.kwargs)


def find_activation(gm: fx.GraphModule, branch: Branch) -> fx.Node | None:
    """The first nonlinearity on the way from the branch's entries to its exits."""
    exits = {linear.node for linear in branch.exits}
    between = takewhile(lambda node: node not in exits, behind_entries(branch))
    return next((node for node in between if is_activation(gm, node)), None)


def is_activation(gm: fx.GraphModule, node: fx.Node) -> bool:
    given = node.args[0] if node.args else None
    if not isinstance(given, fx.Node) or not same_shape(given, node) or PASSES_THROUGH.of(node):
        return False
    module = called_module(gm, node)
    if module is None:
        return node.target in ACTIVATIONS
    if len(node.all_input_nodes) != 1 or isinstance(module, _NOT_ACTIVATIONS) or named_tensors(module):
        return False
    # A copy, as a forward may leave something behind in the module.
    return _is_elementwise_nonlinearity(share_tensors(module))


def _is_elementwise_nonlinearity(module: nn.Module) -> bool:
    """Ask the module itself, whose mode is changed: an activation treats elements alike, is not linear, not random."""
    if module.__class__.__module__ == "torch.nn.modules.activation":
        return True
    probe = torch.linspace(-2, 2, 9, device="cpu")
    try:
        with torch.no_grad(), seeded(probe.device, 0):
            # One that drops elements in training is none, however the draw falls, nor is one that mixes channels.
            rows = probe.reshape(1, 1, 9), probe.reshape(1, 9, 1)
            results = [module.train(mode)(row) for mode in (True, False) for row in rows]
            parts = torch.stack([module(x.reshape(1, 1, 1)).reshape(()) for x in probe])
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        return False
    if not all(isinstance(row, Tensor) and row.numel() == 9 for row in results):
        return False
    alike = all(torch.allclose(row.flatten(), parts, atol=1e-6) for row in results)
    return alike and bool(parts.diff().diff().abs().max() > 1e-3)
