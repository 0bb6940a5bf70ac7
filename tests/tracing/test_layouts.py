"""Tests for repl_fx.tracing.layouts: a graph means what its source means, for any strides and any kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import repl_fx
from repl_fx.errors import BadInput, CaptureError
from repl_fx.graph.runtime import check_layout
from tests.releases import fails_on_old_torch

aten = torch.ops.aten


def operators(gm: fx.GraphModule) -> list[Any]:
    return [node.target for node in gm.graph.nodes if node.op == "call_function"]


def same(model: nn.Module, gm: nn.Module, x: Tensor) -> bool:
    """Whether both return the same values in the same strides, and leave the same behind in copies of their input."""
    overlaps = 0 in x.stride()
    given = [x if overlaps else torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).copy_(x) for _ in range(2)]
    ours, theirs = model(given[0]), gm(given[1])
    pairs = list(zip(ours, theirs, strict=True)) if isinstance(ours, tuple) else [(ours, theirs)]
    return all(torch.equal(a, b) and a.stride() == b.stride() for a, b in [*pairs, (given[0], given[1])])


def layouts(x: Tensor) -> list[Tensor]:
    """The values of an image batch in several layouts."""
    return [
        x,
        x.contiguous(memory_format=torch.channels_last),
        torch.stack([x, x], -1)[..., 0],
        x.transpose(2, 3).contiguous().transpose(2, 3),
        x[:1].expand(3, -1, -1, -1),
    ]


class Attention(nn.Module):
    """Attention whose kernel returns heads side by side, or not."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (part.view(b, t, 2, c // 2).transpose(1, 2) for part in self.qkv(x).split(c, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).contiguous().view(b, t, c))  # type: ignore[no-any-return]


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_a_graph_runs_under_each_kernel_of_attention(backend: SDPBackend) -> None:
    model, x = Attention(), torch.randn(2, 5, 8)
    gm = repl_fx.capture(model, (x,))
    assert operators(gm).count(aten.contiguous.default) == 1
    assert repl_fx.check_capture(model, gm, (x,))
    with sdpa_kernel(backend):
        for training in (True, False):
            assert same(model.train(training), gm.train(training), x)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION])
def test_a_graph_of_a_cpu_runs_on_a_gpu(backend: SDPBackend) -> None:
    model, x = Attention(), torch.randn(2, 5, 8)
    gm = repl_fx.capture(model, (x,)).cuda()
    with sdpa_kernel(backend):
        assert torch.equal(model.cuda()(x.cuda()), gm(x.cuda()))


def test_a_graph_runs_on_the_meta_device_and_on_fake_tensors() -> None:
    model, x = Attention(), torch.randn(2, 5, 8)
    gm = repl_fx.capture(model, (x,)).to("meta")
    assert gm(x.to("meta")).stride() == model(x).stride()
    gm = repl_fx.capture(model, (x,))
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert gm(mode.from_tensor(x)).stride() == model(x).stride()


class Copies(nn.Module):
    """Writes into what is a copy of its value in some layouts, and the value itself in others."""

    def __init__(self, copy: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.copy = copy

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        made = self.copy(x)
        made.add_(1.0)
        return x * 2.0, made, x


@pytest.mark.parametrize(
    "copy",
    [
        lambda x: x.contiguous(),
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: torch.Tensor.contiguous(x, memory_format=torch.contiguous_format),
        lambda x: x.contiguous().contiguous(),
        lambda x: x.transpose(2, 3).contiguous(),
        lambda x: x.clone(),
        lambda x: x.clone(memory_format=torch.channels_last),
        lambda x: x.clone(memory_format=torch.contiguous_format),
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.reshape(x.shape[0], -1),
        lambda x: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, x.shape[1]),
        lambda x: x.flatten(2),
        lambda x: x.ravel(),
        lambda x: x.to(x.dtype),
        lambda x: torch.zeros_like(x) + x,
    ],
)
def test_copies_are_made_where_the_source_makes_them(copy: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(2, 3, 4, 5)
    for example in (x, x.contiguous(memory_format=torch.channels_last)):
        model = Copies(copy)
        gm = repl_fx.capture(model, (example,))
        # One that writes to a value that overlaps itself fails in the source too.
        for given in layouts(x)[:-1]:
            assert same(model, gm, given)


class Stages(nn.Module):
    """A convolutional network of operators that keep the layout of their input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        x = F.interpolate(x + torch.zeros_like(x), scale_factor=2.0)
        if self.training:
            x = x.contiguous()
        return F.max_pool2d(x, 2)


@pytest.mark.parametrize("training", [True, False])
def test_a_network_keeps_the_layout_that_it_is_given(training: bool) -> None:
    model, x = Stages(), torch.randn(2, 3, 4, 6)
    gm = repl_fx.capture(model, (x,))
    for module in (model, gm):
        module.train(training)
    for given in layouts(x):
        assert same(model, gm, given)
    model.to(memory_format=torch.channels_last)
    assert model(x).is_contiguous() is training
    for given in layouts(x):
        assert same(model, gm, given)


class Asks(nn.Module):
    """Goes another way for other strides of a value."""

    def __init__(self, ask: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.ask = ask

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.conv(x)
        return made * 2.0 if self.ask(made) else made * 3.0


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.is_contiguous(),
        pytest.param(
            lambda x: x.is_contiguous(memory_format=torch.channels_last),
            marks=fails_on_old_torch("a batch of one is of another layout"),
        ),
        lambda x: x.stride()[1] == 1,
        lambda x: x.stride(-1) > 1,
    ],
)
def test_strides_that_the_source_asks_for_are_those_of_the_capture(ask: Callable[[Tensor], bool]) -> None:
    x = torch.randn(2, 3, 4, 5)
    last = x.contiguous(memory_format=torch.channels_last)
    for example, other in ((x, last), (last, x)):
        model = Asks(ask)
        gm = repl_fx.capture(model, (example,))
        assert same(model, gm, example) and same(model, gm, example[:1])
        with pytest.raises(BadInput, match=r"asks for the strides of a tensor at .*test_layouts.py, line \d+, and"):
            gm(other)
        assert repl_fx.check_capture(model, gm, (example,))


def test_elements_of_a_tensors_memory_are_taken_by_the_strides_of_the_capture() -> None:
    class Windows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            rows, step = x.shape[0], x.stride(0)
            windows: Tensor = x.as_strided((rows, 4, 3), (step, x.stride(1), x.stride(1)))
            return windows.clone()

    model = Windows()
    gm = repl_fx.capture(model, (torch.randn(3, 6),))
    for rows in (2, 1, 4):
        assert same(model, gm, torch.randn(rows, 6))
    with pytest.raises(BadInput, match="asks for the strides"):
        gm(torch.randn(6, 3).t())


def test_a_question_inside_a_block_goes_with_the_block() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            made = self.up(x)
            if not made.is_contiguous():
                made = made * 2.0
            return x + self.down(made.relu())  # type: ignore[no-any-return]

    result = repl_fx.transform(nn.Sequential(*(Block() for _ in range(4))), (torch.randn(2, 8),), surrogate="identity")
    (gone,) = result.plan.replacements
    assert operators(result.graph_module).count(check_layout) == 3, gone


@pytest.mark.parametrize(
    "as_single",
    [
        Tensor.float,
        lambda x: x.to(torch.float32),
        lambda x: x.type(torch.float32),
        lambda x: x.type_as(torch.zeros(())),
    ],
)
def test_a_stream_is_not_what_it_was_converted_to(as_single: Callable[[Tensor], Tensor]) -> None:
    class Norm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            wide = as_single(x)
            return x + (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)).type_as(x)

    model, x = nn.Sequential(nn.Linear(8, 8), Norm(), nn.Linear(8, 8)), torch.randn(2, 8)
    gm = repl_fx.capture(model, (x,))
    assert aten.alias.default not in operators(gm)
    with torch.autocast("cpu", torch.bfloat16):
        assert same(model, gm, x)
    for dtype in (torch.bfloat16, torch.float64):
        assert same(model.to(dtype), gm.to(dtype), x.to(dtype))


def test_a_leaf_asks_for_itself() -> None:
    class Leaf(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) if input.is_contiguous() else input.contiguous() * 2.0

    x = torch.randn(2, 3, 4, 5)
    model = nn.Sequential(nn.ReLU(), Leaf(3, 3, 1))
    gm = repl_fx.capture(model, (x,))
    for given in layouts(x):
        if check_layout not in operators(gm):
            assert same(model, gm, given)


@pytest.mark.parametrize("layer", [nn.Identity(), nn.MultiheadAttention(8, 2, batch_first=True)])
def test_a_forward_that_chooses_kernels_itself_is_refused(layer: nn.Module) -> None:
    class Chooses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Any:
            with sdpa_kernel(SDPBackend.MATH):
                if isinstance(self.layer, nn.Identity):
                    return F.scaled_dot_product_attention(x, x, x)
                return self.layer(x, x, x, need_weights=False)[0]

    with pytest.raises(CaptureError, match="the forward chooses kernels of attention"):
        repl_fx.capture(Chooses(), (torch.randn(2, 4, 8),))


class Windows(nn.Module):
    """The mean of each position in windows of seven by seven, the numbers of windows being sizes of an inner tensor."""

    def __init__(self, merged: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.merged = merged

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        x = F.pad(x, (0, 0, 0, -w % 7, 0, -h % 7))
        x = x.view(b, x.shape[1] // 7, 7, x.shape[2] // 7, 7, c).permute(0, 1, 3, 2, 4, 5)
        windows = self.merged(x).view(-1, 49, c)
        count, length, _ = windows.shape
        return windows.reshape(count, length, 2, c // 2).softmax(1).mean(0)


@pytest.mark.parametrize(
    "merged",
    [
        lambda x: x.contiguous().view(-1, 7, 7, 4),
        lambda x: x.reshape(-1, 7, 7, 4),
        lambda x: torch.reshape(input=x, shape=(-1, 7, 7, 4)),
        lambda x: x.flatten(0, 2),
        lambda x: x.ravel(),
        lambda x: x.reshape_as(x.new_empty(x.shape[0] * x.shape[1] * x.shape[2], 7, 7, 4)),
    ],
)
def test_what_is_contiguous_at_the_sizes_of_the_example_alone_has_its_sizes_at_others(
    merged: Callable[[Tensor], Tensor],
) -> None:
    model = Windows(merged).eval()
    gm = repl_fx.capture(model, (torch.randn(2, 4, 5, 4),))
    for shape in ((1, 4, 4, 4), (2, 8, 8, 4), (3, 16, 7, 4)):
        x = torch.randn(shape)
        assert torch.equal(gm(x), model(x))


@pytest.mark.parametrize("merged", [lambda x: x.flatten(0, 2), lambda x: x.reshape(-1, *x.shape[3:])])
def test_what_is_merged_where_it_lies_stays_a_view(merged: Callable[[Tensor], Tensor]) -> None:
    class Grid(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            b, c, h, w = x.shape
            x, rows = x + 1.0, max(h // 4, 1)
            cells = merged(x[:, :, : rows * (h // rows)].view(b, c, rows, h // rows, 1, w).permute(0, 2, 4, 1, 3, 5))
            cells.mul_(2.0)
            return x, cells

    model, x = Grid(), torch.randn(2, 4, 2, 2)
    gm = repl_fx.capture(model, (x,))
    assert aten.alias.default not in operators(gm)
    for given in (x, torch.randn(3, 4, 9, 5), *(y.contiguous(memory_format=torch.channels_last) for y in (x, x[:1]))):
        assert same(model, gm, given)
        assert [y.stride() for y in gm(given)] == [y.stride() for y in model(given)]
