"""Model in place, graph and folded graph are one model, however they are called.

Each network here is rewritten by each surrogate that takes it, and all its forms are called in ways that its capture
did not show: an empty batch, one example, transforms of `torch.func`, threads, and after steps of training; blocks that
compute with sizes and arguments at other ones, in ONNX Runtime too; and fits on shifted, clamped and empty batches.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import repl_fx
from tests.nets import ConvNet, MlpBlock, TokenNet


class _WrittenOut(nn.Module):
    """Self-attention over (positions, batch, width) whose map is a product, and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.mlp = MlpBlock(16)

    def forward(self, x: Tensor) -> Tensor:
        positions, batch = x.shape[:2]
        q, k, v = self.qkv(self.norm(x)).view(positions, batch, 3, 2, 8).permute(2, 1, 3, 0, 4)
        shares = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, -1)
        made: Tensor = self.mlp(x + self.out((shares @ v).permute(2, 0, 1, 3).reshape(positions, batch, 16)))
        return made


class _PositionsFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(_WrittenOut() for _ in range(5)))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.blocks(x.transpose(0, 1)).transpose(0, 1)
        return made


class _Pictures(nn.Module):
    """A vision transformer over (batch, 3, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.body = nn.Conv2d(3, 16, 2, 2), TokenNet(depth=5)
        self.places = nn.Parameter(torch.randn(1, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.body(self.patches(x).flatten(2).transpose(1, 2) + self.places)
        return made


_NETS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "tokens": (lambda: TokenNet(depth=5), (3, 6, 16)),
    "positions first": (_PositionsFirst, (3, 6, 16)),
    "pictures": (_Pictures, (3, 3, 8, 8)),
    "convolutions": (lambda: ConvNet(depth=5), (3, 3, 8, 8)),
}
_TAKEN = {
    "tokens": ("identity", "blend", "narrow", "reuse", "bottleneck"),
    "positions first": ("blend", "reuse"),
    "pictures": ("coarse", "reuse"),
    "convolutions": ("blend", "coarse", "narrow", "slim", "bottleneck"),
}
_CASES = [(net, surrogate) for net, taken in _TAKEN.items() for surrogate in taken]
every_case = pytest.mark.parametrize(("net", "surrogate"), _CASES)


@functools.cache
def _forms(net: str, surrogate: str) -> tuple[nn.Module, dict[str, nn.Module]]:
    """The source and the forms of its rewritten model, in evaluation, after a step of training."""
    torch.manual_seed(0)
    make, sizes = _NETS[net]
    source = make()
    result = repl_fx.transform(source, (torch.randn(sizes),), surrogate=surrogate)
    model = result.model
    assert type(model) is not type(result.graph_module)
    steps = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(2):
        steps.zero_grad()
        model(torch.randn(sizes)).square().mean().backward()
        steps.step()
    forms = {"graph": result.graph_module, "in place": model, "folded": repl_fx.fold(result.graph_module)}
    return source.eval(), {name: form.eval() for name, form in forms.items()}


def _given(net: str, batch: int) -> Tensor:
    return torch.randn(batch, *_NETS[net][1][1:], generator=torch.Generator().manual_seed(batch))


@every_case
@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_forms_agree_at_any_batch_after_training(net: str, surrogate: str, batch: int) -> None:
    _, forms = _forms(net, surrogate)
    x = _given(net, batch)
    wanted = forms["graph"](x)
    assert torch.equal(forms["in place"](x), wanted)
    torch.testing.assert_close(forms["folded"](x), wanted, rtol=1e-5, atol=1e-6)


@every_case
@pytest.mark.parametrize("gradients", [True, False])
def test_an_empty_batch_is_one_as_in_the_source(net: str, surrogate: str, gradients: bool) -> None:
    source, forms = _forms(net, surrogate)
    x = _given(net, 3)[:0].requires_grad_(gradients)
    with torch.set_grad_enabled(gradients):
        shape = source(x).shape
        for form in forms.values():
            made = form(x)
            assert made.shape == shape
            if gradients:
                (toward,) = torch.autograd.grad(made.sum(), x)
                assert toward.shape == x.shape


def _transforms(x: Tensor) -> Mapping[str, Callable[[Callable[[Tensor], Tensor]], Tensor]]:
    """Transforms of a function of one example, applied to a batch or to its first example."""
    of = torch.func
    return {
        "vmap": lambda run: of.vmap(run)(x),
        "grad": lambda run: of.grad(lambda one: run(one).sum())(x[0]),
        "vmap of grad": lambda run: of.vmap(of.grad(lambda one: run(one).square().sum()))(x),
        "jvp": lambda run: of.jvp(run, (x[0],), (x[1],))[1],
        "jacrev": lambda run: of.jacrev(run)(x[0]),
    }


# A kernel of attention has no rule for torch.vmap.
@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented:UserWarning")
@every_case
def test_transforms_of_functions_work_as_on_the_source(net: str, surrogate: str) -> None:
    source, forms = _forms(net, surrogate)
    worked = 0
    for transform in _transforms(_given(net, 3)).values():
        try:
            shape = transform(lambda one: source(one.unsqueeze(0))[0]).shape
        except NotImplementedError:
            # No forward derivative of the kernel.
            continue
        worked += 1
        made = [transform(lambda one, run=form: run(one.unsqueeze(0))[0]) for form in forms.values()]  # type: ignore[misc]
        assert made[0].shape == shape
        for other in made[1:]:
            torch.testing.assert_close(other, made[0], rtol=1e-4, atol=1e-5)
    assert worked >= 4


@pytest.fixture
def quick_switches() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@every_case
@pytest.mark.usefixtures("quick_switches")
def test_threads_compute_what_one_does(net: str, surrogate: str) -> None:
    _, forms = _forms(net, surrogate)
    given = [_given(net, batch) for batch in (1, 2, 3, 4)]
    for form in forms.values():

        def run(number: int, form: nn.Module = form) -> list[Tensor]:
            x = given[number % 4].clone().requires_grad_()
            if number % 2:
                with torch.no_grad():
                    return [form(x)]
            made = form(x)
            return [made.detach(), *torch.autograd.grad(made.sum(), [x])]

        wanted = [run(number) for number in range(4)]
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(run, range(32)))
        for number, values in enumerate(found):
            assert all(torch.equal(one, other) for one, other in zip(values, wanted[number % 4], strict=True))


class _Computing(MlpBlock):
    """A block that computes with a number that its subclasses know."""

    def forward(self, x: Tensor, scale: float = 1.0, mask: Tensor | None = None) -> Tensor:
        h = torch.nn.functional.gelu(self.fc1(self.norm(x)))
        branch = self.fc2(self.changed(h)) * (self.number(h, x) * scale)
        made: Tensor = x + (branch if mask is None else branch * mask)
        return made

    def changed(self, h: Tensor) -> Tensor:
        return h

    def number(self, h: Tensor, x: Tensor) -> float:
        return 1.0


class _ByRoot(_Computing):
    def number(self, h: Tensor, x: Tensor) -> float:
        return float(h.shape[-1] ** -0.5)


class _ByNumel(_Computing):
    def number(self, h: Tensor, x: Tensor) -> float:
        return 4 * h.shape[-1] / x.shape[-1]


class _ByWeight(_Computing):
    def number(self, h: Tensor, x: Tensor) -> float:
        return float(self.fc2.weight.shape[1])


class _ByAttribute(_Computing):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.hidden = 2 * width

    def changed(self, h: Tensor) -> Tensor:
        return h.reshape(-1, self.hidden).reshape(*h.shape[:-1], self.hidden)


class _WhereWide(_Computing):
    def changed(self, h: Tensor) -> Tensor:
        return 2 * h if h.shape[-1] > 24 else h


class _Clamped(_Computing):
    def forward(self, x: Tensor, scale: float = 1.0, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, scale, mask).clamp(-8, 8)


class _Handed(nn.Module):
    """Hands all its blocks the same arguments."""

    def __init__(self, block: type[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block(16) for _ in range(3))

    def forward(self, x: Tensor, scale: float = 1.0, mask: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, scale, mask)
        return x


_COMPUTING = (_ByRoot, _ByNumel, _ByWeight, _ByAttribute, _WhereWide)


@pytest.mark.parametrize("surrogate", ["identity", "blend", "narrow", "bottleneck"])
@pytest.mark.parametrize("block", _COMPUTING)
def test_blocks_that_compute_with_their_sizes_have_one_answer(
    block: type[nn.Module], surrogate: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    result = repl_fx.transform(_Handed(block), (torch.randn(3, 6, 16),), surrogate=surrogate)
    with torch.no_grad():
        for parameter in result.model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    graph, model = result.graph_module.eval(), result.model.eval()
    given = [torch.randn(*sizes, 16) for sizes in ((3, 6), (1, 6), (2, 20), (5, 40))]
    for x in given:
        assert torch.equal(model(x), graph(x))
    if surrogate == "narrow":
        path = tmp_path / "model.onnx"
        repl_fx.export_onnx(graph, path, result.args)
        session = onnxruntime.InferenceSession(path)
        name = session.get_inputs()[0].name
        for x in given:
            (found,) = session.run(None, {name: x.numpy()})
            torch.testing.assert_close(torch.from_numpy(found), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("surrogate", ["identity", "blend", "narrow", "bottleneck"])
@pytest.mark.parametrize(
    ("known", "other"),
    [((1.0,), (2.0,)), ((0.5, torch.rand(3, 6, 1)), (0.5, None)), ((1.0,), (1.0, torch.rand(3, 6, 1)))],
)
def test_other_arguments_are_followed_or_refused(
    surrogate: str, known: tuple[object, ...], other: tuple[object, ...]
) -> None:
    """What a call with other arguments gives is what a capture with them gives, of the same weights."""
    torch.manual_seed(0)
    source, x = _Handed(_Computing), torch.randn(3, 6, 16)
    model, again = (repl_fx.transform(source, (x, *args), surrogate=surrogate).model.eval() for args in (known, other))
    with torch.no_grad():
        for (_, one), (_, two) in zip(model.named_parameters(), again.named_parameters(), strict=True):
            # Those of surrogates are made anew by each.
            if one is not two:
                one.copy_(two.copy_(torch.randn_like(two) * 0.3))
    wanted = again(x, *other)
    try:
        made = model(x, *other)
    except RuntimeError as problem:
        assert "capture the model with" in str(problem)
        assert surrogate == "bottleneck"
    else:
        assert torch.equal(made, wanted)


@pytest.mark.parametrize("surrogate", ["blend", "narrow", "bottleneck", "linear"])
@pytest.mark.parametrize("block", [_Computing, _Clamped, _ByRoot])
def test_fits_are_those_of_all_batches_in_any_order(block: type[nn.Module], surrogate: str) -> None:
    plain, shifted = [torch.randn(20, 6, 16) for _ in range(3)], [5 + 10 * torch.randn(20, 6, 16)]
    source = _Handed(block).eval()
    found = []
    for batches in (plain + shifted, shifted + plain, [plain[0][:0], *plain, plain[0][:0], *shifted]):
        result = repl_fx.transform(source, (plain[0],), surrogate=surrogate)
        fit = repl_fx.fit(result, batches)
        assert all(one.numbers for one in fit.surrogates)
        found.append((fit.surrogates[0].after, result.model.eval()(shifted[0])))
        assert torch.equal(found[-1][1], result.module.eval()(shifted[0]))
    for after, made in found[1:]:
        assert after == pytest.approx(found[0][0], rel=1e-3)
        torch.testing.assert_close(made, found[0][1], rtol=1e-2, atol=1e-2)
