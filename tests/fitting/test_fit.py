"""The maps of a rewritten model become those that are closest to the original network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repl_fx
from repl_fx.fitting import last_layer
from repl_fx.fitting.solving import least_squares
from repl_fx.fitting.stand_ins import stand_ins
from repl_fx.surrogates.shared.fitted_starts import LastLayer
from tests.nets import ConvNet, Counts, MlpBlock, MlpNet, TokenNet, images
from tests.surrogates.nets import Patches

X = torch.randn(8, 4, 16)


def _lost(one: repl_fx.FittedSurrogate) -> tuple[float, float]:
    """Before and after."""
    assert one.before is not None and one.after is not None
    return one.before, one.after


class _Affine(nn.Module):
    """A residual block that is a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.fc1(x))  # type: ignore[no-any-return]


class _WritesOver(_Affine):
    """The same, written over the value that the block before made."""

    def forward(self, x: Tensor) -> Tensor:
        x += self.fc2(self.fc1(x))
        return x


class _Shifts(nn.Module):
    """A residual block of pictures that maps the channels of each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("block", "shape"),
    [(_Affine, (16, 6)), (_Affine, (4, 5, 6)), (_Shifts, (4, 6, 4, 4)), (_WritesOver, (4, 5, 6))],
    ids=["2d", "3d", "4d", "in place"],
)
def test_stretches_that_are_linear_are_met_exactly(block: type[nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(*(block() for _ in range(7))), torch.randn(shape)
    result = repl_fx.transform(net, (x.clone(),), surrogate="linear", blocks=[2, 4, 5, 6])
    assert [one.surrogate for one in result.plan.replacements] == ["linear", "identity", "identity", "linear"]
    source = [parameter.clone() for parameter in net.parameters()]
    fitted = repl_fx.fit(result, [x, torch.randn(shape)])
    assert [one.block for one in fitted.surrogates] == ["1", "5"]
    assert all(before > 1e-2 and after < 1e-4 for before, after in map(_lost, fitted.surrogates))
    assert all(one.rows == 2 * x.numel() // 6 for one in fitted.surrogates)
    torch.testing.assert_close(result.model.eval()(x.clone()), net.eval()(x.clone()), rtol=1e-3, atol=1e-3)
    assert torch.equal(result.model(x.clone()), result.graph_module.eval()(x.clone()))
    assert all(torch.equal(before, now) for before, now in zip(source, net.parameters(), strict=True))


@pytest.mark.parametrize("settings", [{}, {"rank": 4}, {"form": "scale"}])
@pytest.mark.parametrize("objective", ["least-squares", "cosine"])
def test_each_form_of_a_map_fits_pictures(settings: dict[str, Any], objective: str) -> None:
    torch.manual_seed(0)
    batches = [images(16) for _ in range(2)]
    result = repl_fx.transform(ConvNet().eval(), (images(),), surrogate="linear", settings=settings)
    fitted = repl_fx.fit(result, batches, objective=objective)
    assert len(fitted.surrogates) == 2
    assert all(after < before for before, after in map(_lost, fitted.surrogates))


@pytest.mark.parametrize("settings", [{}, {"rank": 4}, {"form": "scale"}])
def test_a_map_follows_those_before_it_and_is_closer_than_none(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net: Any = MlpNet(depth=6)
    batches = [torch.randn(8, 4, 16) for _ in range(6)]
    result = repl_fx.transform(net, (X,), surrogate="linear", settings=settings)
    fitted = repl_fx.fit(result, lambda: iter(batches))
    assert [one.block for one in fitted.surrogates] == ["blocks.1", "blocks.3"]
    assert all(after < before for before, after in map(_lost, fitted.surrogates))
    # The second once more, on the network with the first in it: nothing moves.
    state = {name: tensor.clone() for name, tensor in result.model.state_dict().items()}
    again = repl_fx.fit(result, batches)
    assert again == fitted
    assert all(torch.equal(tensor, state[name]) for name, tensor in result.model.state_dict().items())
    # The figure is that of the rows themselves.
    x = torch.cat(batches)
    with torch.no_grad():
        given, wanted = net.embed(x), net.blocks[:2](net.embed(x))
        for block in net.blocks[:1]:
            given = block(given)
    spread = (wanted - wanted.mean((0, 1))).square().sum()
    assert fitted.surrogates[0].before == pytest.approx(float((given - wanted).square().sum() / spread), rel=1e-4)
    assert "of the variance was lost" in str(fitted)


def test_a_merged_map_brings_the_stream_as_close_as_its_part_of_it_can() -> None:
    torch.manual_seed(0)
    net: Any = MlpNet(depth=5)
    batches = [torch.randn(8, 4, 16) for _ in range(6)]
    result = repl_fx.transform(net, (X,), surrogate="linear", blocks=[2, 3], settings={"merged": True})
    fitted = repl_fx.fit(result, batches)
    (one,) = fitted.surrogates
    before, after = _lost(one)
    assert one.block == "blocks.2" and after < before
    # By hand: least squares of what the stretch adds, from what the block before adds.
    net.eval()
    with torch.no_grad():
        given = net.embed(torch.cat(batches))
        stream = net.blocks[0](given)
        wanted = net.blocks[:3](given)
        rows = torch.cat([(stream - given).reshape(-1, 16), torch.ones(stream[..., 0].numel(), 1)], 1).double()
        added = (wanted - stream).reshape(-1, 16).double()
        left = torch.linalg.lstsq(rows, added).solution
        spread = (wanted - wanted.mean((0, 1))).square().sum()
        assert after == pytest.approx(float((rows @ left - added).square().sum() / spread), rel=1e-3)
    # Again, from the map that it has: the same.
    again = repl_fx.fit(result, batches).surrogates[0]
    assert _lost(again) == pytest.approx((before, after), rel=1e-4)


def test_a_model_in_parts_is_fitted() -> None:
    torch.manual_seed(0)
    model = Counts(nn.Sequential(*(_Affine() for _ in range(4))))
    x = torch.randn(8, 5, 6)
    result = repl_fx.transform(model, (x,), surrogate="linear", blocks=[2])
    assert not result.captured_parts.whole
    (one,) = repl_fx.fit(result, [x]).surrogates
    before, after = _lost(one)
    assert after < 1e-4 < before
    torch.testing.assert_close(result.model.eval()(x), model.eval()(x), rtol=1e-3, atol=1e-3)


def test_inputs_by_name_are_taken() -> None:
    result = repl_fx.transform(MlpNet(depth=3), (X,), surrogate="linear")
    one, other = (repl_fx.fit(result, [batch]) for batch in ({"x": X}, (X,)))
    assert one == other


def test_what_cannot_be_fitted_is_a_line() -> None:
    result = repl_fx.transform(MlpNet(depth=3), (X,), surrogate="linear")
    with pytest.raises(repl_fx.BadInput, match="the data hold too few samples to calibrate on, 0"):
        repl_fx.fit(result, [])
    with pytest.raises(repl_fx.BadInput, match="can be gone through once"):
        repl_fx.fit(result, iter([X]))
    with pytest.raises(repl_fx.BadInput, match=r"batch 1: argument 'x' has shape"):
        repl_fx.fit(result, [X, torch.randn(8, 4, 17)])
    with pytest.raises(repl_fx.BadInput, match=r"batch 0: tensor 0 of its inputs holds nan"):
        repl_fx.fit(result, [X * float("nan")])
    with pytest.raises(
        repl_fx.BadInput,
        match=r"nothing in the result can be fitted \(identity: nothing is in the place of the block\)",
    ):
        repl_fx.fit(repl_fx.transform(MlpNet(depth=3), (X,), surrogate="identity"), [X])
    before = [parameter.clone() for parameter in result.model.parameters()]
    with pytest.raises(repl_fx.BadInput, match=r"stream at blocks\.1 is NaN or infinite in batch 1"):
        repl_fx.fit(result, [X, X * float("inf")])
    assert all(torch.equal(a, b) for a, b in zip(before, result.model.parameters(), strict=True))


class _Bare(nn.Module):
    """A residual block of bare weights, without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = (nn.Parameter(torch.randn(8, 8, 1, 1) / 3) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + F.conv2d(F.relu(F.conv2d(x, self.into)), self.out)


def _windows(batch: int) -> Tensor:
    """Pictures that are the same all over a window."""
    return torch.randn(batch, 8, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)


@pytest.mark.parametrize(
    ("surrogate", "settings"),
    [
        *((surrogate, {}) for surrogate in ("bottleneck", "slim", "coarse", "blend")),
        *((surrogate, {"weights": "own"}) for surrogate in ("bottleneck", "slim", "coarse")),
        ("blend", {"per": "tensor"}),
    ],
)
def test_a_block_that_the_surrogate_can_be_is_recovered(surrogate: str, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(*(_Bare() for _ in range(3))).eval(), _windows(8)
    removed: Any = net[1]
    result = repl_fx.transform(net, (x,), surrogate=surrogate, settings=settings)
    (one,) = stand_ins(result)
    node = one.starts[0][0]
    module = one.graph.get_submodule(str(node.target))
    names = {name for _, start in one.starts for name in _fitted(start)}
    begun = {name: module.get_parameter(name).detach().clone() for name in names}
    with torch.no_grad():
        for name in names:
            module.get_parameter(name).normal_()
        wanted = {name: module.get_parameter(name).clone() for name in names}
        made = module(*(one.graph.get_parameter(str(given.target)) for given in node.args))[:2]  # type: ignore[union-attr]
        into, out = (removed.into.clone(), made[0]) if surrogate == "coarse" and settings else made
        for parameter, value in ((removed.into, into), (removed.out, out)):
            parameter.zero_()
            parameter[: value.shape[0], : value.shape[1]] = value.reshape(*value.shape[:2], 1, 1)
        for name, value in begun.items():
            module.get_parameter(name).copy_(value)
    (known,) = repl_fx.fit(result, [x, _windows(5), _windows(9)], ridge=1e-9).surrogates
    before, after = _lost(known)
    assert before > 1e-2 and after < 1e-8
    for name, value in wanted.items():
        torch.testing.assert_close(module.get_parameter(name), value, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(result.model.eval()(x), net(x), rtol=1e-4, atol=1e-4)


def _fitted(start: Any) -> list[str]:
    if isinstance(start, LastLayer):
        return [name for _, name in filter(None, (start.weight, start.bias))]
    return [term.parameter for term in start.terms]


def test_attention_by_the_map_of_the_block_before_is_recovered() -> None:
    torch.manual_seed(0)
    net: Any = TokenNet(depth=3).eval()
    before, removed = net.blocks[0], net.blocks[1]
    result = repl_fx.transform(net, (X,), surrogate="reuse")
    (one,) = stand_ins(result)
    module: Any = one.graph.get_submodule(str(one.starts[0][0].target))
    wanted = torch.randn(16, 8), torch.randn(16)
    with torch.no_grad():
        # The block before leaves the stream, so that both see the same map.
        for parameter in (*before.attn.proj.parameters(), *before.fc2.parameters(), *removed.fc2.parameters()):
            parameter.zero_()
        removed.attn.qkv.weight[:32], removed.attn.qkv.bias[:32] = (
            before.attn.qkv.weight[:32],
            before.attn.qkv.bias[:32],
        )
        values = module(before.attn.qkv.weight, net.blocks[2].attn.qkv.weight)[0]
        removed.attn.qkv.weight[32:40], removed.attn.qkv.bias[32:] = values, 0
        removed.attn.proj.weight.zero_()[:, :8] = wanted[0]
        removed.attn.proj.bias.copy_(wanted[1])
    (known,) = repl_fx.fit(result, [X, torch.randn(32, 4, 16)], ridge=1e-9).surrogates
    assert _lost(known)[1] < 1e-8 < _lost(known)[0]
    torch.testing.assert_close(module.weight_out, wanted[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(module.bias_out, wanted[1], rtol=1e-4, atol=1e-4)


_NETS: dict[str, Any] = {
    "tokens": (lambda: TokenNet(depth=5), (8, 4, 16)),
    "post norm": (lambda: TokenNet(depth=5, post_norm=True), (8, 4, 16)),
    "patches": (lambda: Patches(depth=5), (8, 17, 16)),
    "pictures": (lambda: ConvNet(depth=5), (8, 3, 8, 8)),
    "no spine": (lambda: ConvNet(depth=5, plain=True), (8, 3, 8, 8)),
}


@pytest.mark.parametrize(
    ("net", "surrogate"),
    [
        ("tokens", "bottleneck"),
        ("tokens", "reuse"),
        ("post norm", "reuse"),
        ("patches", "coarse"),
        ("pictures", "slim"),
        ("pictures", "bottleneck"),
        ("no spine", "blend"),
    ],
)
def test_surrogates_come_closer_one_after_the_other(net: str, surrogate: str) -> None:
    torch.manual_seed(0)
    make, (_, *sizes) = _NETS[net]
    model: Any = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.get_buffer("running_mean").normal_(0, 0.2)
            nn.init.uniform_(module.weight, 0.5, 2)
    batches = [torch.randn(size, *sizes) for size in (3, 12, 9)]
    result = repl_fx.transform(model, (batches[1],), surrogate=surrogate)
    source = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start = {name: tensor.clone() for name, tensor in result.module.state_dict().items()}
    fitted = repl_fx.fit(result, batches)
    assert [one.block for one in fitted.surrogates] == ["blocks.1", "blocks.3"]
    assert all(after < before and one.left == "" for one in fitted.surrogates for before, after in [_lost(one)])
    # Both forms have it, to the bit, and the source is as it was.
    x = batches[0]
    assert torch.equal(result.model.eval()(x), result.graph_module.eval()(x))
    assert all(torch.equal(tensor, source[name]) for name, tensor in model.state_dict().items())
    changed = {name for name, tensor in result.module.state_dict().items() if not torch.equal(tensor, start[name])}
    assert changed and all(name.startswith("surrogates.") for name in changed)
    assert any(name.endswith("running_mean") for name in changed) is (net == "pictures")
    # The figure is that of the streams: behind the first block, where nothing was fitted before.
    with torch.no_grad():
        wanted, made = (_stream(one, torch.cat(batches)) for one in (model, result.model))
    others = (0, 2, 3) if wanted.ndim == 4 else (0, 1)
    spread = (wanted - wanted.mean(others, keepdim=True)).square().sum()
    assert _lost(fitted.surrogates[0])[1] == pytest.approx(float((made - wanted).square().sum() / spread), rel=1e-3)
    # One batch gives what several do.
    once = repl_fx.fit(result, [torch.cat(batches)])
    for one, other in zip(fitted.surrogates, once.surrogates, strict=True):
        # Fitted again, `blend` starts where it is, and others are silent first.
        known = slice(1 if surrogate == "blend" else 0, 2)
        assert one.rows == other.rows and _lost(one)[known] == pytest.approx(_lost(other)[known], rel=1e-4)


def _stream(model: Any, x: Tensor) -> Tensor:
    """The value that the third block is given."""
    found: list[Tensor] = []
    hook = model.blocks[2].register_forward_pre_hook(lambda _, given: found.append(given[0].clone()))
    model.eval()(x)
    hook.remove()
    return found[0]


def test_with_a_ridge_without_end_surrogates_stay_silent() -> None:
    torch.manual_seed(0)
    net = TokenNet(depth=3).eval()
    result = repl_fx.transform(net, (X,), surrogate="reuse")
    pruned = repl_fx.transform(net, (X,), surrogate="identity").graph_module.eval()(X)
    repl_fx.fit(result, [X])
    assert not torch.allclose(result.graph_module.eval()(X), pruned, atol=1e-2)
    repl_fx.fit(result, [X], ridge=1e9)
    torch.testing.assert_close(result.graph_module(X), pruned, atol=1e-4, rtol=1e-4)


def test_a_fit_that_would_be_farther_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    result = repl_fx.transform(ConvNet(depth=3), (torch.randn(8, 3, 8, 8),), surrogate="bottleneck")
    before = {name: tensor.clone() for name, tensor in result.module.state_dict().items()}
    monkeypatch.setattr(last_layer, "least_squares", lambda *given: -3 * least_squares(*given))
    (one,) = repl_fx.fit(result, [torch.randn(8, 3, 8, 8)]).surrogates
    assert one.numbers == 0 and "would be lost, more than" in one.left and "stays as it is" in str(one)
    assert all(torch.equal(tensor, before[name]) for name, tensor in result.module.state_dict().items())


def test_what_of_a_result_cannot_be_fitted_is_said() -> None:
    torch.manual_seed(0)
    net = MlpNet(depth=5)
    parts = (
        repl_fx.transform(net, (X,), surrogate="bottleneck", blocks=[2]).plan,
        repl_fx.transform(net, (X,), surrogate="identity", blocks=[4]).plan,
    )
    both = replace(parts[0], replacements=(*parts[0].replacements, *parts[1].replacements))
    fitted = repl_fx.fit(repl_fx.transform(net, (X,), plan=both), [X])
    assert [bool(one.numbers) for one in fitted.surrogates] == [True, False]
    assert str(fitted).endswith("blocks.3: identity stays as it is: nothing is in the place of the block")


class _NormedBranch(_Affine):
    """A residual block whose branch ends in a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.fc2(self.fc1(x)))  # type: ignore[no-any-return]


def test_behind_a_norm_of_the_blocks_own_there_is_nothing_to_solve() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(*(_NormedBranch() for _ in range(3))), torch.randn(16, 5, 6)
    result = repl_fx.transform(net, (x,), surrogate="bottleneck")
    before = {name: tensor.clone() for name, tensor in result.module.state_dict().items()}
    with pytest.raises(repl_fx.BadInput, match=r"1: bottleneck stays as it is: what follows .*branch_0 is not linear"):
        repl_fx.fit(result, [x])
    assert all(torch.equal(tensor, before[name]) for name, tensor in result.module.state_dict().items())


def test_surrogates_of_a_model_in_parts_are_fitted() -> None:
    torch.manual_seed(0)
    result = repl_fx.transform(Counts(MlpNet(depth=3)), (X,), surrogate="bottleneck")
    assert not result.captured_parts.whole
    (one,) = repl_fx.fit(result, [X]).surrogates
    assert one.block == "body.blocks.1" and _lost(one)[1] < _lost(one)[0]


def test_activations_that_are_no_numbers_leave_a_surrogate_as_it_was() -> None:
    result = repl_fx.transform(MlpNet(depth=3), (X,), surrogate="bottleneck")
    before = {name: tensor.clone() for name, tensor in result.module.state_dict().items()}
    with pytest.raises(repl_fx.BadInput, match=r"stream at blocks\.1 is NaN or infinite in batch 1"):
        repl_fx.fit(result, [X, X * float("inf")])
    with pytest.raises(repl_fx.BadInput, match="ridge 0 is too small to fit 5 numbers"):
        wide = repl_fx.transform(MlpNet(depth=3), (X,), surrogate="bottleneck", settings={"weights": "own"})
        repl_fx.fit(wide, [torch.zeros(8, 4, 16)], ridge=0.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in result.module.state_dict().items())


class _Clamped(MlpBlock):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-8, 8)


_SMALL, _LARGE = [torch.randn(20, 6, 8) for _ in range(3)], [20 * torch.randn(20, 6, 8)]


def _fit_of(surrogate: str, batches: list[Tensor]) -> tuple[repl_fx.Fit, Tensor]:
    torch.manual_seed(0)
    source = nn.Sequential(*(_Clamped(8) for _ in range(3))).eval()
    result = repl_fx.transform(source, (_SMALL[0],), surrogate=surrogate)
    made = repl_fx.fit(result, batches)
    return made, result.model.eval()(_SMALL[0])


@pytest.mark.parametrize("surrogate", ["narrow", "bottleneck", "blend"])
def test_the_order_of_batches_is_no_matter_where_some_alone_are_not_linear(surrogate: str) -> None:
    first, one = _fit_of(surrogate, _SMALL + _LARGE)
    last, other = _fit_of(surrogate, _LARGE + _SMALL)
    assert first.surrogates[0].numbers == last.surrogates[0].numbers > 0
    assert first.surrogates[0].after == pytest.approx(last.surrogates[0].after, rel=1e-4)
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("surrogate", ["narrow", "bottleneck", "blend", "linear"])
def test_an_empty_batch_is_no_batch(surrogate: str) -> None:
    without, one = _fit_of(surrogate, _SMALL)
    for place in (0, 2):
        batches = [*_SMALL[:place], _SMALL[0][:0], *_SMALL[place:]]
        made, other = _fit_of(surrogate, batches)
        assert made == without
        assert torch.equal(one, other)


def test_what_is_reported_is_what_the_finished_surrogate_loses() -> None:
    torch.manual_seed(0)
    source = nn.Sequential(*(_Clamped(8) for _ in range(3))).eval()
    result = repl_fx.transform(source, (_SMALL[0],), surrogate="narrow")
    made = repl_fx.fit(result, _SMALL + _LARGE)
    with torch.no_grad():
        streams = [source[0](batch) for batch in _SMALL + _LARGE]
        pairs = [(result.model.eval()[1](x), source[1](x)) for x in streams]  # type: ignore[index]
    ours, wanted = (torch.cat([pair[i] for pair in pairs]).double() for i in range(2))
    lost = (ours - wanted).square().sum() / (wanted - wanted.mean((0, 1))).square().sum()
    assert made.surrogates[0].after == pytest.approx(float(lost), rel=1e-3)


def _share_lost(ours: nn.Module, theirs: nn.Module, block: str, batches: list[Tensor]) -> float:
    """The distance of what two networks stream behind a block, by the variance of the second's."""
    streams: list[list[Tensor]] = [[], []]
    for net, seen in zip((ours, theirs), streams, strict=True):
        hook = net.get_submodule(block).register_forward_hook(lambda _, args, out, seen=seen: seen.append(out))
        for batch in batches:
            net.eval()(batch)
        hook.remove()
    made, wanted = (torch.cat(seen).double() for seen in streams)
    return float((made - wanted).square().sum() / (wanted - wanted.mean((0, 1))).square().sum())


@torch.no_grad()
@pytest.mark.parametrize(
    ("surrogate", "settings"),
    [("linear", {}), ("linear", {"rank": 4}), ("linear", {"form": "scale"}), ("bottleneck", {}), ("narrow", {})],
    ids=str,
)
def test_held_out_samples_are_measured_too(surrogate: str, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net, other = MlpNet(depth=3), [torch.randn(8, 4, 16) * 2 for _ in range(2)]
    result = repl_fx.transform(net, (X,), surrogate=surrogate, settings=settings, blocks=["blocks.1"])
    batches = [torch.randn(8, 4, 16) for _ in range(2)]
    (one,) = repl_fx.fit(result, batches, held_out=other).surrogates
    assert one.after == pytest.approx(_share_lost(result.model, net, "blocks.1", batches), rel=1e-4)
    assert one.held_out == pytest.approx(_share_lost(result.model, net, "blocks.1", other), rel=1e-4)
    assert f"{one.after:.3f} is with {surrogate}, {one.held_out:.3f} on held-out samples (" in str(one)
    assert one.held_out != one.after


def test_held_out_samples_that_can_be_gone_through_once_are_refused() -> None:
    result = repl_fx.transform(MlpNet(), (X,), surrogate="linear")
    with pytest.raises(repl_fx.BadInput, match="held_out can be gone through once"):
        repl_fx.fit(result, [X], held_out=iter([X]))
