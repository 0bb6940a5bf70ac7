"""Forwards around forwards."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.costs.counted import measure_costs
from repl_fx.graph.captured import share_tensors
from repl_fx.rewriting.in_place.wrapped_forward import WrappedForward
from tests.nets import MlpBlock, RawNet, TokenNet


class _Tripled(WrappedForward):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return 3 * self.run(*args, **kwargs)


def test_forwards_stand_around_each_other_and_show_the_first_signature() -> None:
    block, x = MlpBlock(4), torch.randn(2, 4)
    expected = block(x)
    assert isinstance(_Tripled.put_on(block), _Tripled)
    assert torch.equal(block(x), 3 * expected)
    _Tripled.put_on(block)
    assert torch.equal(block(x), 3 * (3 * expected))
    assert list(inspect.signature(block.forward).parameters) == ["x"]
    assert block.forward.__doc__ == MlpBlock.forward.__doc__


def test_the_forward_of_a_copy_runs_the_copy() -> None:
    block, x = MlpBlock(4), torch.randn(2, 4)
    _Tripled.put_on(block)
    copied = share_tensors(block)
    expected = copied(x)
    block.fc2 = nn.Linear(8, 4)
    assert torch.equal(copied(x), expected)


def test_pickles_and_deep_copies_run_themselves() -> None:
    block, x = MlpBlock(4), torch.randn(2, 4)
    _Tripled.put_on(block)
    _Tripled.put_on(block)
    others: list[Any] = [pickle.loads(pickle.dumps(block)), copy.deepcopy(block)]
    for other in others:
        assert torch.equal(other(x), block(x))
        assert inspect.signature(other.forward) == inspect.signature(block.forward)
        found = _Tripled.on(other)
        assert found is not None and id(found.module) == id(other)
        with torch.no_grad():
            other.fc2.weight.zero_()
        assert not torch.equal(other(x), block(x))
    assert _Tripled.on(MlpBlock(4)) is None


def test_a_forward_without_a_signature_is_followed_too() -> None:
    block, x = MlpBlock(4), torch.randn(2, 4)
    vars(block)["forward"] = torch.neg
    _Tripled.put_on(block)
    assert torch.equal(block(x), -3 * x)


def test_modules_of_one_kind_have_forwards_of_one_code() -> None:
    blocks: list[Any] = [MlpBlock(4), MlpBlock(4)]
    one, other = blocks
    for block in (one, other):
        _Tripled.put_on(block)
    assert one.forward.__func__.__code__ is other.forward.__func__.__code__


def test_the_base_does_nothing_of_its_own() -> None:
    block = MlpBlock(4)
    WrappedForward.put_on(block)
    with pytest.raises(NotImplementedError):
        block(Tensor())


# --- kept blocks that are computed again in the backward pass --------------------------------------------------------

X = torch.randn(2, 6, 16)


def _gradients(model: nn.Module) -> list[Tensor]:
    model.train()
    model.zero_grad()
    torch.manual_seed(0)
    torch.autograd.backward(model(X).square().mean())
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def _kept(model: nn.Module) -> int:
    kept = measure_costs(model, (X,)).activation_bytes
    assert kept is not None
    return kept


@pytest.mark.slow
@pytest.mark.parametrize("surrogate", ["reuse", "blend"])
def test_less_is_kept_and_gradients_are_the_same(surrogate: str, tmp_path: Path) -> None:
    model = TokenNet(depth=5, dropout=0.1)
    plain = repl_fx.transform(model, (X,), surrogate=surrogate)
    again = repl_fx.transform(model, (X,), plan=plain.plan, checkpoint_blocks=True)
    again.module.load_state_dict(plain.module.state_dict())
    expected = _gradients(plain.model)
    assert all(torch.equal(a, b) for a, b in zip(_gradients(again.model), expected, strict=True))
    assert _kept(again.model) < 0.7 * _kept(plain.model)
    loaded: Any = pickle.loads(pickle.dumps(again.model))
    assert all(torch.equal(a, b) for a, b in zip(_gradients(loaded), expected, strict=True))
    repl_fx.save(again.model, tmp_path / "out")
    assert _kept(repl_fx.load(tmp_path / "out", TokenNet(depth=5, dropout=0.1))) == _kept(again.model)


class _Counting(MlpBlock):
    """A block with statistics, and where asked for with a buffer that its forward reads and writes."""

    steps: Tensor

    def __init__(self, counts: bool) -> None:
        super().__init__(16)
        self.counted = nn.BatchNorm1d(6)
        self.register_buffer("steps", torch.ones(()))
        self.counts = counts

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.counts:
            self.steps.mul_(1.5)
        return super().forward(self.counted(x)) * self.steps.clone()


def _learned(model: nn.Module, run: Callable[[Tensor], Any], times: int = 1) -> dict[str, Tensor]:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        loss = run(X).square().mean()
        for left in reversed(range(times)):
            torch.autograd.backward(loss, retain_graph=left > 0)
        optimizer.step()
    return model.state_dict()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("compiled", [False, True])
def test_buffers_are_read_as_at_first_and_written_once(compiled: bool) -> None:
    # torch.compile computes a buffer that is read and written again in the backward pass, from what it is then.
    model = nn.Sequential(*(_Counting(not compiled) for _ in range(5)))
    plain = repl_fx.transform(model, (X,), surrogate="blend")
    again = repl_fx.transform(model, (X,), plan=plain.plan, checkpoint_blocks=True)
    for times in (1,) if compiled else (1, 2):
        both = copy.deepcopy(plain.model), copy.deepcopy(again.model)
        expected, ours = (_learned(m, torch.compile(m, backend="aot_eager") if compiled else m, times) for m in both)
        assert list(ours) == list(expected)
        torch.testing.assert_close(ours, expected, rtol=1e-5 if compiled else 0, atol=1e-6 if compiled else 0)


def test_a_model_without_places_is_refused() -> None:
    with pytest.raises(repl_fx.BadInput, match="checkpoint_blocks needs the model in place, which is refused: "):
        repl_fx.transform(RawNet(), (torch.randn(4, 8),), surrogate="blend", checkpoint_blocks=True)
