"""`coarse`: a block on means over windows of positions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import repl_fx
from repl_fx.surrogates.coarse import ZeroWeights
from repl_fx.surrogates.shared.blended_weights import BlendSynthesis
from repl_fx.surrogates.shared.windows import PictureWindows, TokenWindows, add_windows, window_means
from tests.nets import (
    ConvNet,
    TokenNet,
    TransformerBlock,
    as_after_training,
    check_starts_as_if_pruned_and_folds,
    images,
    rewritten,
    tokens,
)
from tests.surrogates.nets import GRID, NETS, Patches


def _coarse(model: nn.Module, x: Tensor, **settings: Any) -> fx.GraphModule:
    return rewritten(model, x, "coarse", settings).graph_module


def _synthesis(gm: nn.Module) -> BlendSynthesis:
    (found,) = (module for module in gm.modules() if isinstance(module, BlendSynthesis))
    return found


@pytest.mark.slow
def test_tokens_are_the_docstring() -> None:
    torch.manual_seed(0)
    model, x = Patches(), tokens(length=GRID)
    before, own, after = model.blocks
    assert isinstance(own, TransformerBlock)
    gm = _coarse(model, x, ratio=0.25)
    as_after_training(gm)
    made = _synthesis(gm)
    names = ("attn.qkv", "attn.proj", "fc1", "fc2")
    block = copy.deepcopy(own)
    with torch.no_grad():
        for name, alpha, beta in zip(names, made.alpha, made.beta, strict=True):
            weights = [side.get_submodule(name).get_parameter("weight") for side in (before, after)]
            blend = alpha[:, None] * weights[0] + beta[:, None] * weights[1]
            block.get_submodule(name).get_parameter("weight").copy_(blend)
        for name, bias in zip(("attn.proj", "fc2"), made.biases, strict=True):
            block.get_submodule(name).get_parameter("bias").copy_(bias)
        stream = before(model.embed(x) + model.positions)
        # The class token, and the four quarters of the picture.
        patches = stream[:, 1:].reshape(2, 2, 2, 2, 2, 16).mean((2, 4)).flatten(1, 2)
        mean = torch.cat([stream[:, :1], patches], 1)
        change = block(mean) - mean
        spread = change[:, 1:].reshape(2, 2, 1, 2, 1, 16).expand(2, 2, 2, 2, 2, 16).reshape(2, 16, 16)
        wanted = model.head(after(stream + torch.cat([change[:, :1], spread], 1)).mean(1))
    torch.testing.assert_close(gm(x), wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "heads"), [(16, 2), (32, 16), (64, 4), (8, 2)], ids=["width", "heads", "width of a head", "hidden units"]
)
def test_another_size_may_equal_the_number_of_positions(width: int, heads: int) -> None:
    torch.manual_seed(0)
    model, x = Patches(16, width=width, heads=heads), tokens(length=16, width=width)
    before, own, after = model.blocks
    gm = _coarse(model, x, ratio=0.25, weights="own")
    as_after_training(gm)
    block = copy.deepcopy(own)
    (made,) = (module for module in gm.modules() if isinstance(module, ZeroWeights))
    with torch.no_grad():
        ends = ("attn.proj.weight", "fc2.weight", "attn.proj.bias", "fc2.bias")
        for name, value in zip(ends, made.values, strict=True):
            block.get_parameter(name).copy_(value)
        stream = before(model.embed(x) + model.positions)
        mean = stream.reshape(2, 2, 2, 2, 2, width).mean((2, 4)).flatten(1, 2)
        change = (block(mean) - mean).reshape(2, 2, 1, 2, 1, width)
        wanted = model.head(after(stream + change.expand(2, 2, 2, 2, 2, width).reshape(2, 16, width)).mean(1))
    torch.testing.assert_close(gm(x), wanted)


@pytest.mark.parametrize("weights", ["neighbours", "own"])
def test_pictures_are_the_docstring(weights: str) -> None:
    torch.manual_seed(0)
    model, x = ConvNet(depth=3), images(4)
    before, own, after = model.blocks
    stream = before(model.stem(x))
    gm = _coarse(model, x, ratio=0.25, weights=weights)
    kernels = [own.get_parameter(f"{name}.weight") for name in ("conv1", "conv2")]
    norms = [copy.deepcopy(own.get_submodule(name)) for name in ("bn1", "bn2")]
    as_after_training(gm)
    (norms[1],) = (copy.deepcopy(m) for n, m in gm.named_modules() if n.endswith("norm"))
    if weights == "neighbours":
        paths = [f"blocks.{i}.{name}.weight" for name in ("conv1", "conv2") for i in (0, 2)]
        kernels = list(_synthesis(gm)(*(gm.get_parameter(path) for path in paths)))
    for norm in norms:
        norm.reset_running_stats()  # type: ignore[operator]
    mean = F.avg_pool2d(stream, 2)
    y = F.conv2d(F.relu(norms[0](F.conv2d(mean, kernels[0], padding=1))), kernels[1], padding=1)
    change = norms[1](y).repeat_interleave(2, 2).repeat_interleave(2, 3)
    wanted = model.head(after(F.relu(stream + change)).mean((2, 3)))
    torch.testing.assert_close(gm(x), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["neighbours", "own"])
@pytest.mark.parametrize("kind", NETS)
def test_blocks_of_many_kinds_start_as_if_pruned_train_and_fold(kind: str, weights: str, tmp_path: Path) -> None:
    model, x = NETS[kind]()
    gm = _coarse(model, x, ratio=0.25, weights=weights)
    # In a file, pictures are pooled in one way, whatever the block is made of.
    exported = weights == "neighbours" and kind not in ("batch norm", "bare weights")
    file, scaled = tmp_path / "coarse.onnx" if exported else None, kind == "layer scale"
    grown = check_starts_as_if_pruned_and_folds(model, gm, x, file, layer_scale=scaled)
    assert all(grad is not None for grad in grown.values())
    if (kind, weights) != ("layer scale", "own"):
        assert any(grad.abs().max() > 0 for grad in grown.values() if grad is not None)


@pytest.mark.slow
def test_own_weights_are_those_of_the_block_but_for_the_ends_of_branches() -> None:
    for kind, ends in (
        ("batch norm", ["bn2"]),
        ("tokens", ["attn.proj", "fc2"]),
        ("layer scale", []),
    ):
        model, x = NETS[kind]()
        gm = _coarse(model, x, weights="own")
        block = "2" if kind == "layer scale" else "blocks.1"
        gone = {name for name, _ in model.named_parameters()} - {name for name, _ in gm.named_parameters()}
        assert gone == {f"{block}.{end}.{part}" for end in ends for part in ("weight", "bias")}
        gm.train()(x).square().sum().backward()
        assert all(p.grad is not None for p in gm.parameters())


@pytest.mark.parametrize("kind", ["batch norm", "tokens"])
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    model, x = NETS[kind]()
    gm = _coarse(model.double(), x.double(), ratio=0.25).train()
    as_after_training(gm)
    gains = [p for n, p in gm.named_parameters() if n.startswith("surrogates")][:2]
    shared = gm.get_parameter("blocks.0.conv1.weight" if kind == "batch norm" else "blocks.0.fc1.weight")
    gm(x.double()).square().sum().backward()
    for parameter in (*gains, shared):
        assert parameter.grad is not None
        toward = torch.randn_like(parameter)
        ends = []
        for step in (1e-7, -1e-7):  # small, for the kinks of ReLU
            with torch.no_grad():
                parameter.add_(toward, alpha=step)
                ends.append(gm(x.double()).square().sum().item())
                parameter.sub_(toward, alpha=step)
        slope = (parameter.grad * toward).sum().item()
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-7, rel=1e-4, abs=1e-5)


def test_neighbours_without_gradients() -> None:
    model, x = NETS["tokens"]()
    gm = _coarse(model, x, train_neighbours=False)
    as_after_training(gm)
    made = _synthesis(gm)
    weights = [gm.get_parameter(f"blocks.{i}.attn.qkv.weight").requires_grad_() for i in (0, 2)]
    others = [gm.get_parameter(f"blocks.{i}.{n}.weight") for n in ("attn.proj", "fc1", "fc2") for i in (0, 2)]
    total = sum(value.square().sum() for value in made(*weights, *others))
    assert all(grad is None for grad in torch.autograd.grad(total, weights, allow_unused=True))


class _Masked(nn.Module):
    """Attention that is causal by a flag, by a mask as an addend, or by a product written out."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.norm, self.qkv, self.proj = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.table = nn.Parameter(torch.zeros(GRID, 16)) if kind == "table" else None
        self.mask: Tensor
        self.register_buffer("mask", torch.full((GRID, GRID), float("-inf")).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm(x) if self.table is None else self.norm(x) + self.table
        q, k, v = self.qkv(n).reshape(x.shape[0], GRID, 3, 2, 8).permute(2, 0, 3, 1, 4)
        if self.kind == "written out":
            y = (q @ k.transpose(-1, -2) / 3 + self.mask).softmax(-1) @ v
        else:
            mask = self.mask if self.kind == "mask" else None
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.kind == "causal")
        out: Tensor = x + self.proj(y.transpose(1, 2).reshape(x.shape))
        return out


@pytest.mark.parametrize(
    ("model", "x", "reason"),
    [
        (nn.Sequential(*(_Masked("causal") for _ in range(3))), tokens(length=GRID), "does not attend to all"),
        (nn.Sequential(*(_Masked("mask") for _ in range(3))), tokens(length=GRID), "does not attend to all"),
        (nn.Sequential(*(_Masked("written out") for _ in range(3))), tokens(length=GRID), "does not attend to all"),
        (nn.Sequential(*(_Masked("table") for _ in range(3))), tokens(length=GRID), "parameters for each of its 17"),
        (Patches(post_norm=True), tokens(length=GRID), "which is no plain addition"),
        (TokenNet(depth=3), tokens(length=GRID), "nor a sequence of fixed length"),
        (ConvNet(depth=3, plain=True), images(), "it has no spine"),
    ],
)
def test_what_tells_positions_apart_is_refused(model: nn.Module, x: Tensor, reason: str) -> None:
    with pytest.raises(repl_fx.NothingToReplace, match=reason):
        _coarse(model, x)


def test_the_same_attention_without_a_mask_is_taken() -> None:
    model, x = nn.Sequential(*(_Masked("none") for _ in range(3))), tokens(length=GRID)
    assert _coarse(model, x)(x).shape == x.shape


class _MaskedConvolution(nn.Conv2d):
    """Sees what lies above alone, as in PixelCNN."""

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones_like(self.weight)
        mask[:, :, 2:] = 0
        made: Tensor = self._conv_forward(x, self.weight * mask, self.bias)
        return made


@pytest.mark.parametrize(
    ("convolution", "reason"),
    [
        (lambda: _MaskedConvolution(8, 8, 3, padding=1), "may look to one side alone"),
        (lambda: nn.Sequential(nn.ZeroPad2d((2, 0, 2, 0)), nn.Conv2d(8, 8, 3)), "may look to one side alone"),
        (lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1)), "writes into the stream|no plain addition"),
    ],
)
def test_convolutions_that_look_to_one_side_are_refused(convolution: Callable[[], nn.Module], reason: str) -> None:
    model = nn.Sequential(*(_Around(convolution()) for _ in range(3)))
    with pytest.raises(repl_fx.NothingToReplace, match=reason):
        _coarse(model, torch.randn(2, 8, 8, 8))


class _Around(nn.Module):
    """x + inner(x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.inner(x)
        return out


def _of_width(hidden: int) -> nn.Module:
    return _Around(nn.Sequential(nn.Conv2d(8, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, 8, 1)))


def test_neighbours_of_other_sizes_are_refused_but_not_needed() -> None:
    model, x = nn.Sequential(*(_of_width(hidden) for hidden in (16, 24, 16))), torch.randn(2, 8, 8, 8)
    with pytest.raises(repl_fx.NothingToReplace, match=r"0.inner.0.weight is 16x8x1x1, its own 1.inner.0.weight is 24"):
        _coarse(model, x)
    assert _coarse(model, x, weights="own")(x).shape == x.shape


def test_pictures_may_change_in_size_and_need_not_divide() -> None:
    gm = _coarse(ConvNet(depth=3), torch.randn(2, 3, 7, 11), ratio=0.1).eval()
    as_after_training(gm)
    assert torch.isfinite(gm(torch.randn(2, 3, 7, 11))).all()
    # What is left at an edge goes with the last window.
    stream = torch.randn(2, 3, 7, 11)
    windows = PictureWindows.of(stream, 0.1)
    assert windows.side == 3 and windows.fewer(stream).shape == (2, 3, 2, 3)
    change = add_windows(stream, windows.fewer(stream)) - stream
    torch.testing.assert_close(change[:, :, 4:, :4], windows.fewer(stream)[:, :, 1:, :1].expand(2, 3, 3, 4))
    assert PictureWindows.of(torch.zeros(1, 1, 2, 5), 0.01).side == 2
    clip = torch.zeros(1, 1, 9, 9, 9)
    assert tuple(PictureWindows.of(clip, 1 / 27).fewer(clip).shape) == (1, 1, 3, 3, 3)


class _Placed(nn.Module):
    """Blocks on as many positions as there are rows in a parameter."""

    def __init__(self, blocks: list[nn.Module], positions: int, width: int) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(positions, width))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.blocks(x + self.places)
        return made


@pytest.mark.slow
@pytest.mark.parametrize(("positions", "heads"), [(6, 2), (6, 6), (12, 12)])
def test_attention_with_positions_before_examples_inside_is_the_docstring(positions: int, heads: int) -> None:
    torch.manual_seed(0)
    layers = [nn.TransformerEncoderLayer(12, heads, 24, 0.0, batch_first=True, norm_first=True) for _ in range(3)]
    model, x = _Placed([*layers], positions, 12), torch.randn(2, positions, 12)
    result = rewritten(model, x, "coarse", {"ratio": 0.5, "weights": "own"})
    gm, own = result.graph_module, copy.deepcopy(layers[1])
    as_after_training(gm)
    (made,) = (module for module in gm.modules() if isinstance(module, ZeroWeights))
    with torch.no_grad():
        ends = ("self_attn.out_proj.weight", "linear2.weight", "self_attn.out_proj.bias", "linear2.bias")
        for name, value in zip(ends, made.values, strict=True):
            own.get_parameter(name).copy_(value)
    x = torch.randn(3, positions, 12)
    stream = layers[0](x + model.places)
    window = torch.tensor(TokenWindows.of(x, 0.5).window)
    mean = torch.stack([stream[:, window == number].mean(1) for number in range(int(window.max()) + 1)], 1)
    wanted = layers[2](stream + (own(mean) - mean)[:, window])
    torch.testing.assert_close(gm(x), wanted)
    torch.testing.assert_close(result.model(x), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [3, 4, 6])
def test_positions_before_examples_are_refused(batch: int) -> None:
    layers: list[nn.Module] = [nn.TransformerEncoderLayer(8, 2, 16, norm_first=True) for _ in range(3)]
    x = torch.randn(6, batch, 8)
    with pytest.raises(repl_fx.NothingToReplace, match="does not attend to the positions of"):
        repl_fx.transform(nn.Sequential(*layers), (x,), surrogate="coarse", fixed=["input.0", "input.1"])


def test_trials_at_other_sizes_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    # As many channels as positions: operators are tried at sizes that they do not take.
    model = _Placed([TransformerBlock(16) for _ in range(3)], 16, 16)
    assert _coarse(model, torch.randn(2, 16, 16))(torch.randn(2, 16, 16)).shape == (2, 16, 16)
    assert not [record for record in caplog.records if record.name == "torch._subclasses.fake_tensor"]


def test_pictures_may_be_smaller_than_a_window_but_not_the_example() -> None:
    model = ConvNet(depth=3).eval()
    result = repl_fx.transform(model, (torch.randn(2, 3, 8, 8),), surrogate="coarse")
    for net in (result.model.eval(), result.graph_module.eval()):
        for size in (8, 3, 2, 1):
            x = torch.randn(2, 3, size, 5)
            assert net(x).shape == model(x).shape
    stream = torch.randn(2, 3, 2, 9)
    means = window_means(stream, 4)
    torch.testing.assert_close(
        means, torch.stack([stream[..., :4].mean((2, 3)), stream[..., 4:8].mean((2, 3))], 2)[:, :, None]
    )
    with pytest.raises(
        repl_fx.NothingToReplace, match="its 2x9 positions are fewer than a window has, 4 along each side"
    ):
        _coarse(model, torch.randn(2, 3, 2, 9))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["batch norm", "tokens"])
def test_half_precision_and_double_models(kind: str) -> None:
    for dtype in (torch.bfloat16, torch.float64):
        model, x = NETS[kind]()
        gm = _coarse(model.to(dtype), x.to(dtype))
        made = gm(x.to(dtype))
        assert {t.dtype for t in (*gm.parameters(), made)} == {dtype}
    with torch.autocast("cpu", torch.bfloat16):
        model, x = NETS[kind]()
        assert torch.isfinite(_coarse(model, x)(x)).all()


def test_settings_that_make_no_sense_are_refused() -> None:
    for name, value, message in (("ratio", 0.0, "ratio is 0.0"), ("weights", "x", "own")):
        with pytest.raises(repl_fx.ReplFxError, match=message):
            _coarse(ConvNet(depth=3), images(), **{name: value})
