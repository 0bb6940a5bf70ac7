"""`slim`: a block at a fraction of its width, on some of the channels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repl_fx
from repl_fx.graph.axes import captured_axes
from repl_fx.passes.fold_surrogates import is_synthesis
from repl_fx.pipeline import rewrite
from repl_fx.planning.options import Options
from repl_fx.surrogates.shared.activations import is_activation
from repl_fx.surrogates.slim import _order
from tests.nets import (
    ConvNet,
    TokenNet,
    as_after_training,
    check_starts_as_if_pruned_and_folds,
    images,
    rewritten,
    tokens,
)
from tests.surrogates.nets import CHANNELS, Residual, Shrinking


class Next(nn.Module):
    """As in ConvNeXt: channels last between two permutations, and a layer scale."""

    def __init__(self, scale: float = 0.5) -> None:
        super().__init__()
        self.dw = nn.Conv2d(CHANNELS, CHANNELS, 5, padding=2, groups=CHANNELS)
        self.norm = nn.LayerNorm(CHANNELS)
        self.fc1, self.fc2 = nn.Linear(CHANNELS, 2 * CHANNELS), nn.Linear(2 * CHANNELS, CHANNELS)
        self.scale = nn.Parameter(torch.full((CHANNELS, 1, 1), scale))

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc2(F.gelu(self.fc1(self.norm(self.dw(x).permute(0, 2, 3, 1)))))
        out: Tensor = x + y.permute(0, 3, 1, 2) * self.scale
        return out


def _basic() -> nn.Module:
    return Residual(
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False),
        nn.BatchNorm2d(CHANNELS),
        nn.ReLU(),
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False),
        nn.BatchNorm2d(CHANNELS),
        relu=True,
    )


def _before_activation() -> nn.Module:
    """Norms and activations before the convolutions, with biases."""
    return Residual(
        nn.BatchNorm2d(CHANNELS),
        nn.SiLU(),
        nn.Conv2d(CHANNELS, 2 * CHANNELS, 1),
        nn.GroupNorm(4, 2 * CHANNELS),
        nn.SiLU(),
        nn.Dropout(0.0),
        nn.Conv2d(2 * CHANNELS, CHANNELS, 3, padding=2, dilation=2),
    )


def _grouped() -> nn.Module:
    return Residual(
        nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False),
        nn.BatchNorm2d(CHANNELS),
        nn.ReLU(),
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=8, bias=False),
        nn.BatchNorm2d(CHANNELS),
    )


def _narrow() -> nn.Module:
    """Narrower inside than the stream."""
    return Residual(
        nn.Conv2d(CHANNELS, CHANNELS // 2, 1, bias=False),
        nn.BatchNorm2d(CHANNELS // 2),
        nn.ReLU(),
        nn.Conv2d(CHANNELS // 2, CHANNELS, 3, padding=1, bias=False),
        nn.BatchNorm2d(CHANNELS),
    )


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "basic": _basic,
    "before activation": _before_activation,
    "grouped": _grouped,
    "next": Next,
}


def _net(block: Callable[[], nn.Module], depth: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, CHANNELS, 3, padding=1), *(block() for _ in range(depth)), nn.Flatten())


def _slim(model: nn.Module, x: Tensor, **settings: object) -> repl_fx.TransformResult:
    return rewritten(model, x, "slim", settings)


@pytest.mark.parametrize("weights", ["neighbours", "own"])
def test_it_is_the_block_on_its_first_channels(weights: str) -> None:
    model, x = _net(_basic), images(4)
    gm = _slim(model, x, weights=weights).graph_module
    as_after_training(gm)
    surrogate = gm.get_submodule("surrogates.2")
    synthesis = surrogate.get_submodule("slim")
    given = [model.get_parameter(f"{i}.inner.{j}.weight") for j in (0, 3) for i in (1, 3)]
    first, second = synthesis(*given if weights == "neighbours" else ())
    assert first.shape == second.shape == (4, 4, 3, 3)
    norms = [module for module in surrogate.children() if isinstance(module, nn.BatchNorm2d)]
    stem, before, after = (model.get_submodule(name) for name in ("0", "1", "3"))
    stream = before(stem(x))
    part = stream[:, :4]
    inner = norms[0](F.conv2d(part, first, padding=1))
    slim = F.relu(part + norms[1](F.conv2d(F.relu(inner), second, padding=1)))
    wanted = after(torch.cat([slim, stream[:, 4:]], 1)).flatten(1)
    for module in (model, gm):
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.reset_running_stats()
    torch.testing.assert_close(gm(x), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["neighbours", "own"])
@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_of_many_kinds_start_as_if_pruned_train_and_fold(kind: str, weights: str, tmp_path: Path) -> None:
    model, x = _net(BLOCKS[kind]), images(4)
    gm = _slim(model, x, weights=weights).graph_module
    file, scaled = tmp_path / "slim.onnx" if weights == "neighbours" else None, kind == "next"
    own = check_starts_as_if_pruned_and_folds(model, gm, x, file, layer_scale=scaled)
    assert own and all(grad is not None for grad in own.values())
    assert any(grad.abs().max() > 0 for grad in own.values() if grad is not None)


def test_sizes_of_the_capture_that_vary_stay_free() -> None:
    # Its layer norms stand behind a permutation, so that the channels of a value are where its height was.
    model, x = _net(Next), images(4)
    captured = repl_fx.capture_parts(model, (x,))
    gm = captured.parts[0].graph_module
    free = [axis.name for axis in captured_axes(gm) if axis.symbol is not None]
    rewrite(captured, Options(surrogate="slim"))
    assert free == [axis.name for axis in captured_axes(gm) if axis.symbol is not None] == ["batch", "height", "width"]


@pytest.mark.slow
def test_every_width_shrinks_alike() -> None:
    nets, x = {block: _net(block) for block in (_basic, _narrow, _before_activation, _grouped, Next)}, images()

    def sizes(block: Callable[[], nn.Module], **settings: object) -> list[tuple[int, ...]]:
        gm = _slim(nets[block], x, **settings).graph_module
        (node,) = (node for node in gm.graph.nodes if is_synthesis(gm, node))
        return [tuple(value.shape) for value in node.meta["val"]]

    assert sizes(_basic) == [(4, 4, 3, 3)] * 2
    assert sizes(_basic, ratio=0.5) == [(8, 8, 3, 3)] * 2
    assert sizes(_basic, width=3) == [(3, 3, 3, 3)] * 2
    assert sizes(_basic, width=99) == [(16, 16, 3, 3)] * 2
    # No fewer inside than the stream gives.
    assert sizes(_narrow) == [(4, 4, 1, 1), (4, 4, 3, 3)]
    assert sizes(_before_activation) == [(8, 4, 1, 1), (4, 8, 3, 3), (8,), (4,)]
    assert sizes(_grouped) == [(4, 4, 1, 1), (4, 2, 3, 3)]
    assert sizes(Next) == [(4, 1, 5, 5), (8, 4), (4, 8), (4,), (8,), (4,)]


def test_blocks_back_to_back() -> None:
    model, x = _net(_basic, depth=5), images(4)
    repeats = repl_fx.find_repeats(repl_fx.capture(model, (x,)))
    names = [block.name for block in repeats[0].blocks[1:4]]
    gm = repl_fx.transform(model, (x,), surrogate="slim", blocks=names).graph_module.train()
    pruned = repl_fx.transform(model, (x,), surrogate="identity", blocks=names).graph_module.train()
    torch.testing.assert_close(gm(x), pruned(x))
    as_after_training(gm)
    gm(x).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in gm.parameters())


def test_neighbours_of_other_sizes_give_what_they_have() -> None:
    x = torch.randn(2, 8, 16, 16)
    result = _slim(Shrinking(), x, weights="neighbours")
    assert {replacement.surrogate for replacement in result.plan.replacements} == {"slim"}
    gm = result.graph_module
    as_after_training(gm)
    before = gm.get_parameter("blocks.0.conv1.weight")
    assert before.shape[1] == 8
    gm(x).square().sum().backward()
    assert before.grad is not None and torch.isfinite(before.grad).all()
    # All of its few inputs are asked for, and it has too few.
    with pytest.raises(repl_fx.NothingToReplace, match=r"blocks.0.conv1.weight is 16x8x3x3, too unlike its own"):
        _slim(Shrinking(), x, ratio=1.0, weights="neighbours")
    # Weights of its own ask nothing of them.
    assert _slim(Shrinking(), x, ratio=1.0, weights="own").graph_module(x).shape == (2, 32)


class _Squeezed(nn.Module):
    """Scales channels by a gate, as squeeze-and-excitation does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.out = (nn.Conv2d(CHANNELS, CHANNELS, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        out: Tensor = x + self.out(y * self.gate(y.mean((2, 3), keepdim=True)).sigmoid())
        return out


class _Turned(nn.Module):
    """Adds pictures to themselves, on their side: as many channels as rows are told apart by nothing but their axes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return x + self.out(y + y.transpose(1, 2))  # type: ignore[no-any-return]


class _Reduced(nn.Module):
    """Adds a number of the stream, beside pre-activation convolutions."""

    def __init__(self, reduce: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(CHANNELS), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.reduce = reduce

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.norm(x))) + self.reduce(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (lambda: _Reduced(lambda x: x + x.mean()), "mean_default.* has no axis for the channels of its stream"),
        (lambda: _Reduced(lambda x: x * x.amax()), "amax.* has no axis for the channels"),
        (lambda: _Reduced(lambda x: x + x.sum(1, keepdim=True)), "sum_dim.* does is not known at another width"),
        (lambda: _Reduced(lambda x: x + x.norm()), "norm.* has no axis for the channels"),
        (_Squeezed, "what mean_dim.* does is not known at another width"),
        (lambda: Residual(nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular")), "is of a kind|not centred"),
        (lambda: Residual(nn.Conv2d(16, 32, 2, stride=2), nn.PixelShuffle(2), nn.Conv2d(8, 16, 1)), "with a stride"),
        (lambda: Residual(nn.Conv2d(16, 16, 3, padding=1, groups=2)), "groups of .* are too large for so few channels"),
        (lambda: Residual(nn.Conv2d(16, 16, 1), nn.Softmax(1), nn.InstanceNorm2d(16, affine=True)), "is not known"),
        (lambda: Residual(nn.Linear(8, 8)), "does not work along axis 1, where the channels"),
        (lambda: nn.Conv2d(16, 16, 3, padding=1), "it has no spine"),
    ],
)
def test_what_depends_on_the_width_otherwise_is_refused(block: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(repl_fx.NothingToReplace, match=reason):
        _slim(_net(block), images())


def test_channels_that_are_added_to_rows_are_refused() -> None:
    with pytest.raises(repl_fx.NothingToReplace, match=r"what add_tensor.* does is not known at another width"):
        _slim(nn.Sequential(*(_Turned() for _ in range(3))), torch.randn(2, CHANNELS, CHANNELS, 4))


def test_tokens_are_refused() -> None:
    with pytest.raises(repl_fx.NothingToReplace, match="the channels of its stream are not along axis 1"):
        _slim(TokenNet(depth=3), tokens())


def test_settings_that_make_no_sense_are_refused() -> None:
    for name, value, message in (("ratio", 0.0, "ratio is 0.0"), ("width", 0, "width is 0"), ("weights", "x", "own")):
        with pytest.raises(repl_fx.ReplFxError, match=message):
            _slim(ConvNet(depth=3), images(), **{name: value})


def test_half_precision_and_double_models() -> None:
    for dtype in (torch.bfloat16, torch.float64):
        model, x = ConvNet(depth=3, width=16).to(dtype), images().to(dtype)
        gm = _slim(model, x).graph_module
        assert {p.dtype for p in gm.parameters()} == {dtype} and gm(x).dtype == dtype


class _Picky(nn.Module):
    """Random, and takes pictures of one size alone."""

    def __init__(self, kind: type[Exception]) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != (16, 8, 8):
            raise self.kind(f"no pictures of {tuple(x.shape)}")
        return F.dropout(x, 0.5, self.training)


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, TypeError, IndexError])
def test_a_module_that_cannot_be_asked_is_refused(kind: type[Exception]) -> None:
    model = nn.Sequential(*(Residual(nn.Conv2d(16, 16, 1), _Picky(kind), nn.Conv2d(16, 16, 1)) for _ in range(3)))
    gm = repl_fx.capture(model, (torch.randn(2, 16, 8, 8),))
    picky = [n for n in gm.graph.nodes if n.op == "call_module" and type(gm.get_submodule(n.target)) is _Picky]
    assert len(picky) == 3 and not any(is_activation(gm, node) for node in picky)
    assert all(_order(gm, node, 4) is None for node in picky)
    for surrogate, reason in (("slim", "no pictures of"), ("coarse", "at a lower resolution")):
        with pytest.raises(repl_fx.NothingToReplace, match=reason):
            repl_fx.transform(model, (torch.randn(2, 16, 8, 8),), surrogate=surrogate)
