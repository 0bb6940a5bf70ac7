"""All syntheses of a graph in one call."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

import repl_fx
from repl_fx.passes.batch_syntheses import batch_syntheses_
from repl_fx.passes.driver import run_passes
from repl_fx.passes.fold_surrogates import is_synthesis
from repl_fx.passes.replace_blocks import replace_blocks
from repl_fx.surrogates.shared import weight_slices
from repl_fx.surrogates.shared.synthesis import SynthesisBatch
from repl_fx.surrogates.shared.weight_slices import SliceBlend, WeightSlice, blend_slices
from tests.nets import ConvNet, TokenNet, images, tokens


def _parts(surrogate: str) -> tuple[fx.GraphModule, Tensor]:
    """A graph whose syntheses are still apart, with gains as after some training."""
    torch.manual_seed(0)
    model, x = (ConvNet(depth=5), images()) if surrogate in ("bottleneck", "coarse") else (TokenNet(depth=5), tokens())
    gm = repl_fx.capture(model, (x,))
    repeats = repl_fx.find_repeats(gm)
    plan = repl_fx.make_plan(gm, repeats, surrogate=surrogate)
    rewritten = run_passes(gm, partial(replace_blocks, repeats=repeats, plan=plan)).graph_module
    for name, parameter in rewritten.named_parameters():
        if name.startswith("surrogates"):
            nn.init.normal_(parameter, std=0.3)
    return rewritten, x


def _results(gm: fx.GraphModule, x: Tensor) -> dict[str, Tensor]:
    """Output and gradients, by name."""
    gm = copy.deepcopy(gm).double().train()
    made = gm(x.double())
    torch.autograd.backward(made.square().sum())
    return {"output": made, **{n: p.grad for n, p in gm.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize("surrogate", ["reuse", "bottleneck", "blend", "coarse"])
def test_outputs_gradients_and_names_stay(surrogate: str) -> None:
    gm, x = _parts(surrogate)
    apart = [node for node in gm.graph.nodes if is_synthesis(gm, node)]
    joined = copy.deepcopy(gm)
    assert run_passes(joined, batch_syntheses_).results[0].changed == tuple(node.name for node in apart)
    assert len(apart) == 2
    together = [node for node in joined.graph.nodes if is_synthesis(joined, node)]
    assert [str(node.target) for node in together] == ["surrogates.together"]
    assert list(joined.state_dict()) == list(gm.state_dict())
    before, after = _results(gm, x), _results(joined, x)
    assert before.keys() == after.keys()
    for name, wanted in before.items():
        torch.testing.assert_close(after[name], wanted, msg=name)


def test_one_synthesis_stays_alone() -> None:
    x = tokens()
    gm = repl_fx.transform(TokenNet(depth=3), (x,), surrogate="reuse").graph_module
    assert not batch_syntheses_(gm).modified
    assert not any(isinstance(module, SynthesisBatch) for module in gm.modules())


def test_a_transformed_model_copies_saves_folds_and_shares(tmp_path: Any) -> None:
    x = tokens(4)
    result = repl_fx.transform(TokenNet(), (x,), surrogate="reuse")
    gm = result.graph_module
    assert sum(isinstance(module, SynthesisBatch) for module in gm.modules()) == 1
    for name, parameter in gm.named_parameters():
        if name.startswith("surrogates"):
            nn.init.normal_(parameter)
    gm.eval()
    with torch.no_grad():
        wanted = gm(x)
        repl_fx.save(result, tmp_path / "artifact")
        for other in (copy.deepcopy(gm), repl_fx.load(tmp_path / "artifact", TokenNet())):
            torch.testing.assert_close(other.eval()(x), wanted, rtol=0, atol=0)
        folded = repl_fx.fold(gm)
        torch.testing.assert_close(folded(x), wanted, rtol=0, atol=0)
        assert {n.rpartition(".")[0] for n, _ in folded.named_buffers()} == {
            "surrogates.blocks_1",
            "surrogates.blocks_3",
        }
        assert not any(name.startswith("surrogates") for name, _ in folded.named_parameters())
        # What was made is kept until a gain changes.
        gm.get_parameter("surrogates.blocks_1.branch_0.gain").add_(1)
        assert not torch.equal(gm(x), wanted)
    gm.train()
    with repl_fx.shared_synthesis(gm):
        for part in x.split(2):  # type: ignore[no-untyped-call]
            torch.autograd.backward(gm(part).square().sum())
    shared = {n: p.grad.clone() for n, p in gm.named_parameters() if p.grad is not None}
    gm.zero_grad()
    torch.autograd.backward(gm(x).square().sum())
    for name, parameter in gm.named_parameters():
        torch.testing.assert_close(shared[name], parameter.grad, msg=name)


def test_compiled_it_is_the_same() -> None:
    gm, x = _parts("reuse")
    joined = copy.deepcopy(gm)
    run_passes(joined, batch_syntheses_)
    compiled = torch.compile(joined, backend="aot_eager")
    torch.testing.assert_close(compiled(x), gm(x))


# --- blends of slices -----------------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(2, 5), min_size=1, max_size=3),
    axis=st.integers(0, 2),
    blends=st.integers(1, 4),
    terms=st.integers(1, 3),
    seed=st.integers(0, 100),
)
@settings(max_examples=25, deadline=None)
def test_stacked_blends_are_the_sums_and_so_are_their_gradients(
    sizes: list[int], axis: int, blends: int, terms: int, seed: int
) -> None:
    torch.manual_seed(seed)
    axis %= len(sizes)
    count = torch.randint(1, sizes[axis] + 1, ()).item()
    asked = []
    for _ in range(blends):
        start = torch.randint(0, sizes[axis] - int(count) + 1, ()).item()
        weights = [torch.randn(sizes, dtype=torch.float64, requires_grad=True) for _ in range(terms)]
        gains = torch.randn(terms, int(count), dtype=torch.float64, requires_grad=True)
        asked.append(SliceBlend(WeightSlice(axis, int(start), int(count)), (gains,), tuple(weights)))
    tensors = [t for blend in asked for t in (*blend.gains, *blend.weights)]

    def run(*given_tensors: Tensor) -> tuple[Tensor, ...]:
        each = iter(given_tensors)
        return tuple(
            blend_slices([SliceBlend(b.units, (next(each),), tuple(next(each) for _ in b.weights)) for b in asked])
        )

    for made, blend in zip(run(*tensors), asked, strict=True):
        torch.testing.assert_close(made, weight_slices._alone(blend))
    assert torch.autograd.gradcheck(run, tensors)


@pytest.mark.parametrize("shape", [(5, 1, 1), (1, 4, 1), (1, 1, 1)])
def test_whole_weights_with_gains_in_tensors_of_their_own(shape: tuple[int, ...]) -> None:
    axis = next((axis for axis, size in enumerate(shape) if size > 1), 0)
    weights = [torch.randn(5, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    gains = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(4)]

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        pairs = [(tensors[i : i + 2], tensors[i + 4 : i + 6]) for i in (0, 2)]
        units = WeightSlice(axis, 0, 5 if axis == 0 else 4)
        return tuple(blend_slices([SliceBlend(units, gain, weight) for gain, weight in pairs]))

    a, b, c, d = (gain * weight for gain, weight in zip(gains, weights, strict=True))
    for made, wanted in zip(run(*gains, *weights), (a + b, c + d), strict=True):
        assert torch.equal(made, wanted)
    assert torch.autograd.gradcheck(run, (*gains, *weights))
    assert torch.autograd.gradgradcheck(run, (*gains, *weights))


def test_complex_weights_get_the_gradients_of_ordinary_operators() -> None:
    weights = tuple(torch.randn(3, 2, dtype=torch.complex128, requires_grad=True) for _ in range(2))
    gains = torch.randn(2, 3, dtype=torch.complex128, requires_grad=True)

    def run(*tensors: Tensor) -> Tensor:
        return blend_slices([SliceBlend(WeightSlice(0, 0, 3), tensors[:1], tensors[1:])])[0]

    assert torch.autograd.gradcheck(run, (gains, *weights))


def test_a_weight_that_needs_no_gradient_gets_none() -> None:
    weights = (torch.randn(4, 3, requires_grad=True), torch.randn(4, 3))
    gains = torch.randn(2, 2)
    (made,) = blend_slices([SliceBlend(WeightSlice(0, 1, 2), (gains,), weights)])
    torch.autograd.backward(made.sum())
    assert weights[0].grad is not None and weights[1].grad is None and gains.grad is None
    torch.testing.assert_close(weights[0].grad.sum(1), torch.tensor([0.0, gains[0, 0], gains[0, 1], 0.0]) * 3)


class _Counted(TorchDispatchMode):
    """Counts the operators that compute."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        views = func._schema.returns and func._schema.returns[0].alias_info is not None
        self.count += not views and "empty" not in func._schema.name
        return func(*args, **(kwargs or {}))


def test_few_operators_for_many_blends() -> None:
    """The reason for it all: as many operators for eight blends as for two."""

    def launched(count: int) -> tuple[int, int]:
        weights = [torch.randn(8, 6, requires_grad=True) for _ in range(2 * count)]
        gains = [torch.randn(2, 3, requires_grad=True) for _ in range(count)]
        asked = [
            SliceBlend(WeightSlice(0, 0, 3), (gain,), (weights[2 * i], weights[2 * i + 1]))
            for i, gain in enumerate(gains)
        ]
        with _Counted() as forward:
            made = blend_slices(asked)
        total = torch.stack(made).sum()
        with _Counted() as backward:
            torch.autograd.grad(total, gains)
        return forward.count, backward.count

    assert launched(8) == launched(2)
