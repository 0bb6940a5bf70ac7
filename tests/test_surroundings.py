"""What the caller has set in the process changes nothing of a transform, or is refused in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import repl_fx
from tests.nets import TokenNet, tokens

# See `tests.captures`.
TRACED_ALONE = True


class Functions(TorchFunctionMode):
    """Sees each function of torch, and calls it."""

    def __torch_function__(self, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees each operator, and calls it."""

    def __torch_dispatch__(self, operator: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        return operator(*args, **(kwargs or {}))


@contextmanager
def _set(ask: Callable[[], Any], tell: Callable[[Any], None], value: Any) -> Iterator[None]:
    before = ask()
    tell(value)
    try:
        yield
    finally:
        tell(before)


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


_FUTURE: Any = torch.__future__
_SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no gradients": torch.no_grad,
    "double precision by default": partial(_set, torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "the CPU by default": lambda: torch.device("cpu"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "deterministic": partial(
        _set, torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    ),
    "anomalies": lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
    "saved tensors": lambda: torch.autograd.graph.saved_tensors_hooks(Tensor.clone, _unchanged),
    "one thread backward": lambda: torch.autograd.set_multithreading_enabled(False),
    "little recursion": partial(_set, sys.getrecursionlimit, sys.setrecursionlimit, 450),
    "swapped parameters": partial(
        _set, _FUTURE.get_swap_module_params_on_conversion, _FUTURE.set_swap_module_params_on_conversion, True
    ),
    "a function mode": Functions,
    "a dispatch mode": Operators,
}


def _made(net: nn.Module, x: Tensor) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
    """The plan, the weights of the rewritten network, and those of the folded one."""
    result = repl_fx.transform(net, (x,), every=2)
    return result.plan, result.model.state_dict(), repl_fx.fold(result.module.eval()).state_dict()


@pytest.fixture(scope="module")
def expected() -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(0)
    return _made(TokenNet(depth=3), tokens())


@pytest.mark.slow
@pytest.mark.parametrize("surroundings", _SURROUNDINGS)
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
def test_what_the_caller_has_set_changes_nothing(
    surroundings: str, expected: tuple[Any, dict[str, Tensor], dict[str, Tensor]]
) -> None:
    torch.manual_seed(0)
    net, x = TokenNet(depth=3), tokens()
    with _SURROUNDINGS[surroundings]():
        plan, *states = _made(net, x)
    assert plan == expected[0]
    for state, wanted in zip(states, expected[1:], strict=True):
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[name], value) for name, value in wanted.items())


@contextmanager
def _hooked() -> Iterator[None]:
    hook = register_module_forward_hook(lambda module, args, result: None)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("surroundings", "line"),
    [
        (torch.inference_mode, r"inside torch\.inference_mode"),
        (lambda: torch.device("meta"), r"torch\.device\('meta'\) is the default"),
        (_hooked, "a hook on all modules is registered"),
        (lambda: FlopCounterMode(display=False), "a hook on all modules is registered"),
    ],
    ids=["inference", "meta", "hooks", "flops"],
)
def test_what_a_graph_cannot_have_is_refused(
    surroundings: Callable[[], AbstractContextManager[Any]], line: str
) -> None:
    net, x = TokenNet(depth=3), tokens()
    with surroundings(), pytest.raises(repl_fx.ReplFxError, match=line):
        repl_fx.transform(net, (x,), every=2)


@cache
def _subject(form: str) -> tuple[Any, Tensor]:
    """A captured network or a rewritten one, which refused work does not change, and its input."""
    net, x = TokenNet(depth=3), tokens()
    return repl_fx.capture(net, (x,)) if form == "captured" else repl_fx.transform(net, (x,), every=2), x


@pytest.mark.parametrize(
    "surroundings", [torch.inference_mode, lambda: torch.device("meta")], ids=["inference", "meta"]
)
@pytest.mark.parametrize("work", ["train", "heal", "fit", "score_blocks"])
def test_what_learns_from_data_is_refused_without_gradients_or_values(
    work: str, surroundings: Callable[[], AbstractContextManager[Any]]
) -> None:
    if work in ("train", "heal"):
        pytest.importorskip("pytorch_lightning")
    subject, x = _subject("captured" if work == "score_blocks" else "rewritten")
    batches = [(x, torch.zeros(len(x), dtype=torch.int64)) for _ in range(4)]
    given: dict[str, Any] = {"train": (batches, batches), "heal": (batches, batches)}
    with surroundings(), pytest.raises(repl_fx.BadInput, match="call repl-fx outside of it"):
        getattr(repl_fx, work)(subject, given.get(work, batches))


@pytest.mark.slow
@pytest.mark.parametrize("surrogate", ["auto", "bottleneck"])
def test_a_model_without_values_is_rewritten_where_it_is_made_as_elsewhere(surrogate: str) -> None:
    with torch.device("meta"):
        inside = repl_fx.transform(TokenNet(depth=3), (tokens(),), every=2, surrogate=surrogate)
    outside = repl_fx.transform(TokenNet(depth=3).to("meta"), (tokens().to("meta"),), every=2, surrogate=surrogate)
    assert inside.plan == outside.plan
    assert all(parameter.is_meta for parameter in inside.model.parameters())
