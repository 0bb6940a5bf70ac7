"""The first channels of a value, and the same value with others in their place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor

from repl_fx.surrogates.shared import channels
from repl_fx.surrogates.shared.channels import put_channels, take_channels
from tests.surrogates.shared.copying import copying


@pytest.mark.slow
@given(
    relu=st.booleans(),
    count=st.integers(1, 4),
    trained=st.sampled_from(["both", "total", "part"]),
    last=st.booleans(),
)
@settings(max_examples=30)
def test_gradients_of_the_operators(relu: bool, count: int, trained: str, last: bool) -> None:
    form = torch.channels_last if last else torch.contiguous_format
    base = torch.randn(2, 4, 3, 2, dtype=torch.float64).to(memory_format=form)
    weight = torch.randn(count, count, 1, 1, dtype=torch.float64)

    def run(base: Tensor, weight: Tensor) -> Tensor:
        total, part = take_channels(base * 1, count, relu)
        return put_channels(total, part + F.conv2d(part, weight).tanh(), relu) * base

    given_ = [t.requires_grad_(trained in ("both", name)) for t, name in ((base, "total"), (weight, "part"))]
    assert torch.autograd.gradcheck(run, given_)
    if trained == "both" and count > 1:
        assert torch.autograd.gradgradcheck(run, given_, fast_mode=True)
    with copying():
        wanted = run(base, weight)
    torch.testing.assert_close(run(base, weight), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("sizes", [(4, 5), (3, 4, 5)])
@pytest.mark.parametrize("relu", [False, True])
def test_on_a_gpu_the_channels_come_last(sizes: tuple[int, ...], relu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients are the same, and what the surrogate reads and is given lies as its norms are fast in."""
    base = torch.randn(2, 6, *sizes, dtype=torch.float64, requires_grad=True)
    seen = []

    def run() -> Tensor:
        total, part = take_channels(base * 1, 4, relu)
        changed: Any = part.sin()
        changed.register_hook(lambda toward: seen.extend([part, toward]))
        return put_channels(total, changed, relu)

    wanted = run()
    (toward,) = torch.autograd.grad(wanted.square().sum(), base)
    seen.clear()
    last = channels._LAST[base.ndim]
    monkeypatch.setattr(channels, "_layout", lambda total: last)
    made = run()
    assert torch.equal(made, wanted) and made.is_contiguous()
    assert torch.equal(torch.autograd.grad(made.square().sum(), base)[0], toward)
    assert len(seen) == 2 and all(one.is_contiguous(memory_format=last) for one in seen)


def test_what_other_operators_read_is_not_written_to() -> None:
    """The gradient that reaches a sum may reach others too."""
    base = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    total, part = take_channels(base + 0, 2, False)
    made = put_channels(total, part * 2, False)
    toward = torch.ones_like(made)
    torch.autograd.backward(made, toward)
    assert torch.equal(toward, torch.ones_like(made))
    assert base.grad is not None and torch.equal(base.grad[:, :2], torch.full((2, 2, 3), 2.0, dtype=torch.float64))


def test_a_compiler_is_given_no_concatenation() -> None:
    """Inductor writes one as a value of its own, channels first: ResNet-50's stream was turned over and back."""
    graphs = []

    def seen(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph

    def run(base: Tensor) -> Tensor:
        total, part = take_channels(base * 1, 2, True)
        return put_channels(total, part.tanh(), True)

    base = torch.randn(2, 4, 3, 2, dtype=torch.float64).to(memory_format=torch.channels_last)
    assert torch.equal(torch.compile(run, backend=seen, fullgraph=True)(base), run(base))
    (graph,) = graphs
    assert "cat" not in {getattr(node.target, "__name__", "") for node in graph.graph.nodes}
