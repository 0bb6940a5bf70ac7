"""`linear`: one linear map of the stream in place of a block, the identity before it is fitted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repl_fx
from repl_fx.graph.recording import watched
from repl_fx.passes.fold_surrogates import is_synthesis
from repl_fx.plan import Refusal
from repl_fx.surrogates import make_surrogate
from repl_fx.surrogates.linear import StreamMap
from tests.exporting import Exported
from tests.nets import TokenNet, TransformerBlock
from tests.sites import layer_site
from tests.surrogates.nets import CHANNELS, Diffusion, Halving, HeadsBlock, Strided

X, PICTURES = torch.randn(2, 6, 16), torch.randn(2, 8, 5, 5)
FORMS: list[dict[str, Any]] = [{}, {"rank": 3}, {"form": "scale"}]


class _Residual(nn.Module):
    """Two convolutions around an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x).relu())  # type: ignore[no-any-return]


class _Ragged(nn.Module):
    """A network whose own code depends on values, around one of any picture size."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Halving()

    def forward(self, x: Tensor) -> Tensor:
        if float(x.abs().max()) > 100:
            x = x / 2
        out: Tensor = self.body(x)
        return out


def _tokens() -> tuple[nn.Module, Tensor]:
    return TokenNet(depth=5), X


def _pictures() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(*(_Residual() for _ in range(5))), PICTURES


def _maps(result: repl_fx.TransformResult) -> list[StreamMap]:
    return [module for module in result.module.modules() if isinstance(module, StreamMap)]


@pytest.mark.parametrize("make", [_tokens, _pictures])
@pytest.mark.parametrize("settings", FORMS)
def test_the_map_begins_as_the_identity_and_becomes_what_it_is_set_to(make: Any, settings: dict[str, Any]) -> None:
    net, x = make()
    result = repl_fx.transform(net, (x,), surrogate="linear", blocks=[3], settings=settings)
    pruned = repl_fx.transform(net, (x,), surrogate="identity", blocks=[3])
    assert torch.equal(result.graph_module.eval()(x), pruned.graph_module.eval()(x))
    assert torch.equal(result.model.eval()(x), pruned.graph_module(x))
    axis = 1 if x.ndim == 4 else -1
    channels = x.shape[axis]
    matrix, shift = _matrix(settings, channels), torch.randn(channels)
    (found,) = _maps(result)
    found.set_to(matrix, shift)
    # The middle block is the map: what goes in and out of it is read off the blocks around it.
    seen: dict[str, Tensor] = {}
    blocks: Any = result.model.blocks if isinstance(net, TokenNet) else result.model
    for name, block in (("in", blocks[1]), ("out", blocks[2])):
        block.register_forward_hook(lambda module, given, made, name=name: seen.update({name: made}))
    made = result.model(x)
    expected = torch.movedim(torch.movedim(seen["in"], axis, -1) @ matrix + shift, -1, axis)
    torch.testing.assert_close(seen["out"], expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(made, result.graph_module(x))
    folded = repl_fx.fold(result.graph_module)
    assert not any(is_synthesis(folded, node) for node in folded.graph.nodes)
    torch.testing.assert_close(folded(x), made, rtol=1e-5, atol=1e-5)


def _matrix(settings: dict[str, Any], channels: int) -> Tensor:
    """A map that the form can express."""
    if settings.get("form") == "scale":
        return torch.randn(channels).diag()
    rank = settings.get("rank", channels)
    return torch.eye(channels) + torch.randn(channels, rank) @ torch.randn(rank, channels) / channels


@pytest.mark.parametrize("settings", FORMS)
def test_a_map_learns_from_the_start(settings: dict[str, Any]) -> None:
    net, x = _tokens()
    result = repl_fx.transform(net, (x,), surrogate="linear", blocks=[3], settings=settings)
    torch.autograd.backward(result.model(x).square().mean())
    gradients = [p.grad for p in _maps(result)[0].parameters() if p.grad is not None]
    assert any(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.slow
def test_one_map_stands_for_a_stretch() -> None:
    result = repl_fx.transform(TokenNet(depth=6), (X,), surrogate="linear", blocks=[2, 4, 5])
    kinds = {one.block: (one.surrogate, one.why) for one in result.plan.replacements}
    assert kinds == {
        "blocks.1": ("linear", ""),
        "blocks.3": ("identity", "blocks.4 stands for it too"),
        "blocks.4": ("linear", ""),
    }
    assert len(_maps(result)) == 2
    again = repl_fx.transform(TokenNet(depth=6), (X,), plan=repl_fx.Plan.from_json(result.plan.to_json()))
    assert again.plan == result.plan


def test_blocks_that_no_map_can_stand_for_are_refused() -> None:
    with pytest.raises(repl_fx.NothingToReplace) as refused:
        repl_fx.transform(TokenNet(depth=3), (X,), surrogate="linear", settings={"rank": 16})
    assert "rank 16 is no bound for a map of 16 channels" in str(refused.value.reasons)
    refusal = make_surrogate("linear", {"form": "scale"}).match(layer_site(16))
    wanted = "it turns 2x8 into 2x16, and form=scale needs equal widths and sizes"
    assert isinstance(refusal, Refusal) and refusal.reason == wanted


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"form": "half"}, "form is 'half'; it can be full or scale"),
        ({"rank": 0}, "rank is 0; it must be a number, 1 or more"),
        ({"form": "scale", "rank": 2}, "rank is for form=full alone"),
        ({"form": "scale", "merged": True}, "merged is for form=full without a rank"),
        ({"merged": 2}, "merged is 2; it can be true or false"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(repl_fx.BadInput, match=said):
        repl_fx.transform(TokenNet(depth=3), (X,), surrogate="linear", settings=settings)


def _merged(net: nn.Module, blocks: list[int]) -> repl_fx.TransformResult:
    return repl_fx.transform(net, (X,), surrogate="linear", blocks=blocks, settings={"merged": True})


def test_a_merged_map_costs_nothing() -> None:
    net = TokenNet(depth=5)
    result, pruned = _merged(net, [2, 3]), repl_fx.transform(net, (X,), surrogate="identity", blocks=[2, 3])
    gm, floor = result.graph_module.eval(), pruned.graph_module.eval()
    assert torch.equal(gm(X), floor(X))
    (found,) = _maps(result)
    torch.manual_seed(0)
    matrix, shift = torch.eye(16) + torch.randn(16, 16) / 8, torch.randn(16)
    found.set_to(matrix, shift)
    # By hand: the last layer of the block before, and the map behind it.
    net.eval()
    with torch.no_grad():
        first: Any = net.get_submodule("blocks.0")
        layer = first.fc2
        own = layer.weight.clone(), layer.bias.clone()
        layer.weight.copy_(matrix.t() @ own[0])
        layer.bias.copy_(own[1] @ matrix + shift)
        expected = floor(X)
        layer.weight.copy_(own[0])
        layer.bias.copy_(own[1])
    torch.testing.assert_close(gm(X), expected, rtol=1e-5, atol=1e-5)
    folded, thin = repl_fx.fold(gm), repl_fx.fold(floor)
    assert torch.equal(folded(X), gm(X))
    calls = [[n for n in graph.graph.nodes if n.op not in ("get_attr", "placeholder")] for graph in (folded, thin)]
    assert len(calls[0]) == len(calls[1])
    sizes = [sum(t.numel() for t in graph.state_dict().values()) for graph in (folded, thin)]
    assert sizes[0] == sizes[1]


@pytest.mark.slow
def test_a_merged_map_adds_nothing_to_the_file(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    net = TokenNet(depth=5)
    results = [_merged(net, [2, 3]), repl_fx.transform(net, (X,), surrogate="identity", blocks=[2, 3])]
    _maps(results[0])[0].set_to(torch.eye(16) + torch.randn(16, 16) / 8, torch.randn(16))
    exported = [
        Exported(result.graph_module, tmp_path / f"{number}.onnx", (X,)) for number, result in enumerate(results)
    ]
    files = [onnx.load(each.path) for each in exported]
    kinds = [sorted(node.op_type for node in file.graph.node) for file in files]
    assert kinds[0] == kinds[1]
    shapes = [sorted(tuple(tensor.dims) for tensor in file.graph.initializer) for file in files]
    assert shapes[0] == shapes[1]
    assert exported[0].verify()


def test_a_merged_map_leaves_the_graph_as_the_model_to_train() -> None:
    result = _merged(TokenNet(depth=5), [3])
    assert result.model is result.module
    assert "it changes a layer of blocks.1, which stays the model's own" in str(result.in_place.reason)
    with pytest.raises(repl_fx.NothingToReplace, match=r"changes a layer of blocks\.1"):
        repl_fx.transform(
            TokenNet(depth=5), (X,), surrogate="linear", blocks=[3], settings={"merged": True}, in_place=True
        )


@pytest.mark.slow
def test_blocks_that_nothing_can_be_merged_into_are_refused() -> None:
    net = nn.Sequential(*(_Residual() for _ in range(3)))
    with pytest.raises(repl_fx.NothingToReplace, match="0 does not end in a linear layer before its last addition"):
        repl_fx.transform(net, (PICTURES,), surrogate="linear", settings={"merged": True})
    post = nn.Sequential(*(TransformerBlock(16, post_norm=True) for _ in range(3)))
    with pytest.raises(repl_fx.NothingToReplace, match="ends in more than an addition"):
        repl_fx.transform(post, (X,), surrogate="linear", settings={"merged": True})


PICTURE = torch.randn(2, 8, 9, 9)
STRETCH = ["blocks.1", "blocks.2", "blocks.3"]


@pytest.mark.parametrize("settings", [{}, {"rank": 4}], ids=str)
@pytest.mark.parametrize("kind", [{}, {"average": True}], ids=str)
def test_a_block_that_changes_sizes_is_one_convolution_of_a_pixel(kind: Any, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    result = repl_fx.transform(Halving(**kind), (PICTURE,), surrogate="linear", blocks=["blocks.1"], settings=settings)
    graph, (found,) = result.graph_module.eval(), _maps(result)
    made = [node for node in graph.graph.nodes if node.meta.get("replaces")]
    assert sum("conv2d" in str(node.target) for node in made) == 1 + bool(settings)
    # What it begins with: the common channels, of the pixels or of the means that the shortcut reads.
    before, after = (_behind(graph, number) for number in (0, 2))
    picked = F.avg_pool2d(before, 2, ceil_mode=True, count_include_pad=False) if kind else before[..., ::2, ::2]
    passing = settings.get("rank", 8)
    expected = F.pad(picked[:, :passing], (0, 0, 0, 0, 0, 12 - passing))
    block: Any = result.model.get_submodule("blocks.2")
    torch.testing.assert_close(after, block(expected))
    # In place, folded and exported it is the same.
    assert type(result.model) is Halving and result.in_place.model is not None
    matrix = torch.randn(8, settings.get("rank", 8)) @ torch.randn(settings.get("rank", 8), 12)
    found.set_to(matrix, torch.randn(12))
    for batch in (1, 3):
        x = torch.randn(batch, 8, 9, 9)
        assert torch.equal(result.model.eval()(x), graph(x))
        assert torch.equal(repl_fx.fold(graph)(x), graph(x))
    mapped = torch.einsum("nchw,cd->ndhw", picked, matrix) + found.shift[:, None, None]
    torch.testing.assert_close(_behind(graph, 2), block(mapped), rtol=1e-4, atol=1e-4)


def _behind(graph: Any, number: int) -> Tensor:
    """The value behind a block that stays."""
    last = [node for node in graph.graph.nodes if node.meta.get("block") == f"blocks.{number}"][-1]
    seen: list[Tensor] = []
    with torch.no_grad():
        watched(graph, {last: seen.append})(PICTURE)
    return seen[0]


@pytest.mark.parametrize(
    ("kind", "blocks"), [({}, ["blocks.1"]), ({"average": True}, ["blocks.1"]), ({}, STRETCH)], ids=str
)
@pytest.mark.parametrize("objective", ["least-squares", "cosine"])
def test_a_planted_map_with_a_stride_is_recovered(kind: Any, blocks: list[str], objective: str) -> None:
    torch.manual_seed(0)
    net = Halving(**kind)
    for block in list(net.blocks)[1:4]:
        assert isinstance(block, Strided)
        block.flatten()
    result = repl_fx.transform(net, (PICTURE,), surrogate="linear", blocks=blocks)
    batches = [torch.randn(4, 8, 9, 9) for _ in range(8)]
    (one,) = repl_fx.fit(result, batches, objective=objective).surrogates
    assert one.before is not None and one.after is not None and one.before > 0.1 > 1e-4 > one.after
    assert len(_maps(result)) == 1
    x = torch.randn(5, 8, 9, 9)
    torch.testing.assert_close(result.model.eval()(x), net.eval()(x), rtol=1e-2, atol=1e-2)


def test_a_ridge_without_end_draws_a_map_with_a_stride_to_its_start() -> None:
    torch.manual_seed(0)
    for settings in ({}, {"rank": 4}):
        result = repl_fx.transform(Halving(), (PICTURE,), surrogate="linear", blocks=STRETCH, settings=settings)
        (found,) = _maps(result)
        start = found.start.clone()
        repl_fx.fit(result, [torch.randn(8, 8, 9, 9)], ridge=1e9)
        made = [weight.detach().flatten(1).double().t() for weight in found.synthesise()[:-1]]
        matrix = made[0] if len(made) == 1 else made[0] @ made[1]
        torch.testing.assert_close(matrix, start, rtol=1e-4, atol=1e-4)


def test_one_map_stands_for_a_stretch_that_changes_sizes_twice() -> None:
    torch.manual_seed(0)
    net = Halving()
    result = repl_fx.transform(net, (PICTURE,), surrogate="linear", blocks=STRETCH)
    kinds = {one.block: (one.surrogate, dict(one.settings).get("in_stretch")) for one in result.plan.replacements}
    assert kinds == {"blocks.1": ("identity", True), "blocks.2": ("identity", False), "blocks.3": ("linear", None)}
    # Strides of two and two read each fourth pixel; three would make the same size.
    (product,) = [node for node in result.graph_module.graph.nodes if node.meta.get("replaces") and "conv" in node.name]
    assert product.args[3] == [4, 4]
    again = repl_fx.transform(net, (PICTURE,), plan=repl_fx.Plan.from_json(result.plan.to_json()))
    assert torch.equal(again.graph_module.eval()(PICTURE), result.graph_module.eval()(PICTURE))
    torch.autograd.backward(result.model.train()(PICTURE).square().mean())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in _maps(result)[0].parameters())
    with pytest.raises(
        repl_fx.PlanMismatch, match=r"takes blocks\.1 out, which changes sizes, and has no map behind it"
    ):
        repl_fx.transform(net, (PICTURE,), plan=replace(result.plan, replacements=result.plan.replacements[:2]))


@pytest.mark.parametrize("settings", FORMS)
def test_the_model_in_place_is_exported(settings: dict[str, Any], tmp_path: Path) -> None:
    model, x = _pictures()
    result = repl_fx.transform(model, (x,), surrogate="linear", settings=settings, in_place=True)
    repl_fx.fit(result, [torch.randn(8, *x.shape[1:])])
    assert Exported(result.model, tmp_path / "model.onnx", (x,)).verify()


@pytest.mark.slow
def test_a_map_with_a_stride_is_exported(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    torch.manual_seed(0)
    result = repl_fx.transform(Halving(average=True), (PICTURE,), surrogate="linear", blocks=["blocks.1", "blocks.3"])
    repl_fx.fit(result, [torch.randn(8, 8, 9, 9)])
    assert Exported(result.graph_module, tmp_path / "model.onnx", (PICTURE,)).verify()


@pytest.mark.parametrize("blocks", [["body.blocks.1"], [f"body.{block}" for block in STRETCH]], ids=str)
def test_other_picture_sizes_are_divided_as_the_blocks_did(blocks: list[str]) -> None:
    torch.manual_seed(0)
    net = _Ragged()
    result = repl_fx.transform(net, (PICTURE,), surrogate="linear", blocks=blocks)
    for height, width in ((9, 8), (7, 12), (13, 1)):
        x = torch.randn(3, 8, height, width)
        made = result.module.eval()(x)
        assert made.shape == net.eval()(x).shape
        assert torch.equal(result.model.eval()(x), made)


def test_sizes_that_are_rounded_down_are_refused() -> None:
    with pytest.raises(repl_fx.NothingToReplace, match="no convolution of one pixel with a stride makes such sizes"):
        repl_fx.transform(Halving(padding=0), (PICTURE,), surrogate="linear", blocks=["blocks.1"])


@pytest.mark.parametrize(("settings", "form"), [({"form": "scale"}, "form=scale"), ({"merged": True}, "merged=true")])
def test_forms_for_equal_sizes_are_refused(settings: dict[str, Any], form: str) -> None:
    with pytest.raises(repl_fx.NothingToReplace, match=f"and {form} needs equal widths and sizes"):
        repl_fx.transform(Halving(), (PICTURE,), surrogate="linear", blocks=["blocks.1"], settings=settings)


def test_channels_that_are_last_become_others_in_a_product() -> None:
    match = make_surrogate("linear").match(layer_site(16))
    assert not isinstance(match, Refusal) and match.widths == (8, 16) and match.axis == -1
    assert match.sampling is not None and match.sampling.strides == ()


def test_a_group_norm_tells_the_channels_of_attention_over_pictures() -> None:
    model, x = Diffusion(HeadsBlock), torch.randn(2, CHANNELS, 4, 4)
    result = repl_fx.transform(model, (x,), surrogate="linear", blocks=[2])
    (stand_in,) = (module for module in result.graph_module.modules() if isinstance(module, StreamMap))
    assert next(stand_in.parameters()).shape[0] == CHANNELS
    fitted = repl_fx.fit(result, [torch.randn(16, CHANNELS, 4, 4)])
    (done,) = fitted.surrogates
    assert done.after is not None and done.before is not None and done.after < done.before


class _Matrices(nn.Module):
    """A block that multiplies by matrices itself, behind a norm of its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.up, self.down = nn.Parameter(torch.randn(16, 24) / 4), nn.Parameter(torch.randn(24, 16) / 5)

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.norm(x) @ self.up).relu() @ self.down  # type: ignore[no-any-return]


def test_a_layer_norm_tells_the_channels_of_a_block_with_matrices_of_its_own() -> None:
    result = repl_fx.transform(nn.Sequential(*(_Matrices() for _ in range(4))), (X,), surrogate="linear", blocks=[2])
    (stand_in,) = (module for module in result.graph_module.modules() if isinstance(module, StreamMap))
    assert next(stand_in.parameters()).shape[0] == X.shape[-1]
