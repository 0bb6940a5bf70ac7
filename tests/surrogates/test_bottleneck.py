from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repl_fx
from repl_fx.passes.fold_surrogates import is_synthesis
from repl_fx.surrogates.bottleneck import _layout_change
from repl_fx.surrogates.shared.recompute import RecomputedBranch
from repl_fx.surrogates.shared.thin_layer import ThinSynthesis
from tests.nets import ConvNet, TokenNet, TransformerBlock, as_after_training, images, rewritten, tokens


@pytest.mark.parametrize("surrogate", ["blend", "bottleneck"])
@pytest.mark.parametrize("kind", ["conv", "tokens", "post_norm"])
def test_output_scale_at_the_start_is_within_a_factor_of_two(surrogate: str, kind: str) -> None:
    x = images(16) if kind == "conv" else tokens(16)
    for seed in range(2):
        torch.manual_seed(seed)
        model = (ConvNet(depth=3) if kind == "conv" else TokenNet(depth=3, post_norm=kind == "post_norm")).eval()
        result = repl_fx.transform(model, (x,), surrogate=surrogate, seed=seed)
        seen = []
        for module in (model, result.graph_module.eval()):
            kept: list[Tensor] = []
            for block in ("blocks.2.conv1", "blocks.2.norm1", "blocks.2.attn.qkv"):
                if any(name == block for name, _ in module.named_modules()):
                    module.get_submodule(block).register_forward_pre_hook(lambda m, a, kept=kept: kept.append(a[0]))
            module(x)
            seen.append(kept[0].std().item())
        assert 0.5 < seen[1] / seen[0] < 2


def test_thin_layer_of_a_convolution_keeps_a_depthwise_kernel_and_a_norm() -> None:
    model = ConvNet(width=16)
    for block in model.blocks:
        block.bn1.eps = 0.1  # type: ignore[union-attr]
    result = repl_fx.transform(model, (images(),), surrogate="bottleneck")
    gm = result.graph_module
    synthesis = [n for n in gm.graph.nodes if is_synthesis(gm, n)]
    assert len(synthesis) == 1
    made = gm.get_submodule("surrogates.blocks_1.branch_0")
    assert isinstance(made, ThinSynthesis) and made.width == 4
    assert made.names == ("weight_in", "weight_out", "bias_out", "kernel")
    norm = gm.get_submodule("surrogates.blocks_1.branch_0_norm")
    # Of the two norms of a branch, it is the one behind the first convolution.
    assert isinstance(norm, nn.BatchNorm2d) and norm.num_features == 4 and norm.eps == 0.1
    report = {row.block: row for row in result.report}["blocks.1"]
    assert report.parameters_after < 0.1 * report.parameters_before


@pytest.mark.parametrize(
    ("given_", "made", "axes", "change"),
    [
        ((2, 8, 5, 6), (2, 4, 5, 6), (1, 1), "none"),
        ((2, 8, 5, 6), (2, 4, 6, 5), (1, 1), None),
        ((2, 8, 5, 6), (2, 5, 6, 4), (1, -1), "channels last"),
        ((2, 5, 6, 8), (2, 4, 5, 6), (-1, 1), "channels first"),
        ((2, 8, 5, 6), (2, 6, 5, 4), (1, -1), None),
        ((2, 8), (2, 4), (1, -1), None),
        ((2, 8, 5, 6), (2, 30, 4), (1, -1), "flatten"),
        ((2, 8, 5, 6), (2, 31, 4), (1, -1), None),
        ((2, 8, 5, 6), (3, 30, 4), (1, -1), None),
    ],
)
def test_layouts_are_told_apart(
    given_: tuple[int, ...], made: tuple[int, ...], axes: tuple[int, int], change: str | None
) -> None:
    assert _layout_change(torch.empty(given_), torch.empty(made), *axes) == change


def test_a_bottleneck_between_linear_layers_keeps_its_input_alone() -> None:
    for model, x, lean in ((TokenNet(depth=3), tokens(), 1), (ConvNet(depth=3), images(), 0)):
        gm = repl_fx.transform(model, (x,), surrogate="bottleneck").graph_module
        assert sum(isinstance(module, RecomputedBranch) for module in gm.modules()) == lean


def test_width_setting() -> None:
    model, x = TokenNet(depth=3), tokens()
    for settings_, width in (({"width": 3}, 3), ({"ratio": 0.5}, 8), ({}, 4), ({"ratio": 0.01}, 1)):
        gm = rewritten(model, x, "bottleneck", settings_).graph_module
        made = [m for m in gm.modules() if isinstance(m, ThinSynthesis)]
        assert {m.width for m in made} == {width}


def test_linear_layers_in_other_layouts() -> None:
    """Channels last behind a depthwise convolution (ConvNeXt), and (in, out) weights (GPT-2)."""

    class Next(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dw = nn.Conv2d(8, 8, 3, padding=1, groups=8)
            self.norm = nn.LayerNorm(8)
            self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.dw(x).permute(0, 2, 3, 1))
            out: Tensor = x + self.fc2(F.gelu(self.fc1(y))).permute(0, 3, 1, 2)
            return out

    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w1, self.w2 = nn.Parameter(torch.randn(8, 16) / 3), nn.Parameter(torch.randn(16, 8) / 4)
            self.bias = nn.Parameter(torch.zeros(16))

        def forward(self, x: Tensor) -> Tensor:
            y = torch.tanh(torch.addmm(self.bias, x.reshape(-1, 8), self.w1))
            return x + torch.mm(y, self.w2).reshape(x.shape)

    for block, x in ((Next, torch.randn(2, 8, 4, 4)), (Transposed, torch.randn(2, 5, 8))):
        model = nn.Sequential(*(block() for _ in range(3)))
        result = repl_fx.transform(model, (x,), surrogate="bottleneck")
        assert result.graph_module(x).shape == x.shape
        norms = [m for n, m in result.graph_module.named_modules() if n.endswith("_norm")]
        assert [type(m) for m in norms] == ([nn.LayerNorm] if block is Next else [])


@pytest.mark.slow
def test_half_precision_and_double_models() -> None:
    for dtype in (torch.bfloat16, torch.float64):
        model, x = TokenNet(depth=3).to(dtype), tokens().to(dtype)
        gm = repl_fx.transform(model, (x,), surrogate="bottleneck").graph_module
        assert {p.dtype for p in gm.parameters()} == {dtype}
        assert gm(x).dtype == dtype


def test_a_span_that_changes_resolution_is_refused() -> None:
    class Down(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Conv2d(4, 4, 2, stride=2)
            self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = x + self.up(F.relu(self.down(x)))
            return out

    model = nn.Sequential(*(Down() for _ in range(3)))
    with pytest.raises(repl_fx.NothingToReplace, match="is of a kind a thin layer cannot be made from"):
        repl_fx.transform(model, (torch.randn(2, 4, 8, 8),), surrogate="bottleneck")


def test_a_branch_that_ends_in_operators_of_several_kinds_is_refused() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.out = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
            self.across = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.into(x))
            out: Tensor = x + (self.out(y) + self.across(y))
            return out

    model = nn.Sequential(*(Mixed() for _ in range(3)))
    with pytest.raises(repl_fx.NothingToReplace, match="begins or ends in linear operators of several kinds"):
        repl_fx.transform(model, (torch.randn(2, 6, 6, 6),), surrogate="bottleneck")


def test_a_weight_that_is_read_beside_its_branch_is_refused() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.out = nn.Linear(8, 12), nn.Linear(12, 8)

        def forward(self, given: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            x, size = given
            return x + self.out(F.relu(self.into(x))), size + self.into.weight.square().mean()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(*(Sized() for _ in range(3)))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            made: tuple[Tensor, Tensor] = self.blocks((x, x.new_zeros(())))
            return made

    with pytest.raises(repl_fx.NothingToReplace, match=r"blocks.1.into.weight is read beside its branch too"):
        repl_fx.transform(Net(), (torch.randn(2, 8),), surrogate="bottleneck")


class Causal(nn.Module):
    """Looks at the past alone: pads both sides and cuts the end off."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(width, 2 * width, 3, padding=2), nn.Conv1d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.b(F.relu(self.a(x)[..., :-2]))
        return out


class CausalConv(nn.Conv1d):
    """Pads the past inside its forward."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (self.kernel_size[0] - 1, 0)))


class DerivedCausal(nn.Module):
    """Looks at the past alone, by a convolution that pads itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = CausalConv(width, width, 3), nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.b(F.relu(self.a(x)))
        return out


@pytest.mark.parametrize("block", [Causal, DerivedCausal])
@pytest.mark.parametrize("surrogate", ["auto", "blend", "identity"])
def test_no_surrogate_lets_the_future_into_the_past(block: type[nn.Module], surrogate: str) -> None:
    model = nn.Sequential(*(block(8) for _ in range(5))).eval()
    x = torch.randn(2, 8, 20)
    later = x.clone()
    later[..., 10:] += 1
    gm = repl_fx.transform(model, (x,), surrogate=surrogate).graph_module
    as_after_training(gm)
    assert torch.equal(gm(later)[..., :10], gm(x)[..., :10])
    assert not torch.equal(gm(later)[..., 10:], gm(x)[..., 10:])


def test_weights_of_its_own_are_of_the_same_sizes_and_read_no_neighbour() -> None:
    x = tokens()
    made = {
        weights: repl_fx.transform(TokenNet(), (x,), surrogate="bottleneck", settings={"weights": weights}).graph_module
        for weights in ("own", "neighbours")
    }
    own, (together,) = ([n for n in gm.graph.nodes if is_synthesis(gm, n)] for gm in made.values())
    assert len(own) == len(together.meta["val"]) == 2
    for mine, theirs in zip(own, together.meta["val"], strict=True):
        assert not mine.all_input_nodes and together.all_input_nodes
        kinds = [[(tensor.shape, tensor.dtype) for tensor in made_] for made_ in (mine.meta["val"], theirs)]
        assert kinds[0] == kinds[1]
    gm = made["own"].eval()
    as_after_training(gm)
    with torch.no_grad():
        assert torch.equal(repl_fx.fold(gm)(x), gm(x))


def test_the_last_branch_alone() -> None:
    x = tokens()
    gm = repl_fx.transform(TokenNet(depth=3), (x,), surrogate="bottleneck").graph_module
    as_after_training(gm)
    assert sum(is_synthesis(gm, node) for node in gm.graph.nodes) == 1
    attentions = [n for n in gm.graph.nodes if n.target is torch.ops.aten.scaled_dot_product_attention.default]
    assert len(attentions) == 2
    # x + thin(norm2(x)), written out.
    block = gm.get_submodule("surrogates.blocks_1")
    weights = [gm.get_parameter(f"blocks.{i}.{name}.weight") for i in (0, 2) for name in ("fc1", "fc2")]
    w_in, w_out, b_in, b_out = block.get_submodule("branch_1")(*weights)
    scale, shift = (gm.get_parameter(f"blocks.1.norm2.{name}") for name in ("weight", "bias"))
    streamed = gm.get_submodule("embed")(x)
    first, last = (_block_of(gm, i) for i in (0, 2))
    inner = first(streamed)
    inner = inner + F.linear(F.gelu(F.linear(F.layer_norm(inner, (16,), scale, shift), w_in, b_in)), w_out, b_out)
    wanted = gm.get_submodule("head")(last(inner).mean(1))
    torch.testing.assert_close(gm(x), wanted)


def _block_of(gm: nn.Module, index: int) -> nn.Module:
    block = TransformerBlock(16)
    block.load_state_dict({n: gm.get_parameter(f"blocks.{index}.{n}") for n, _ in block.named_parameters()})
    return block


@pytest.mark.parametrize("weights", ["neighbours", "own"])
@pytest.mark.parametrize("kind", ["conv", "tokens", "post_norm"])
def test_training_begins_with_the_depth_pruned_network(kind: str, weights: str) -> None:
    x = images(16) if kind == "conv" else tokens(16)
    model = ConvNet(depth=3) if kind == "conv" else TokenNet(depth=3, post_norm=kind == "post_norm")
    pruned, thin = (
        rewritten(model, x, key, settings_).graph_module.train()
        for key, settings_ in (("identity", None), ("bottleneck", {"weights": weights}))
    )
    made = thin(x)
    if kind == "post_norm":
        # Its spine, the norms, is the block's own.
        assert made.shape == pruned(x).shape
    else:
        torch.testing.assert_close(made, pruned(x))
    made.square().sum().backward()
    gains = [p.grad for n, p in thin.named_parameters() if n.endswith(("gain_out", "weight_out"))]
    assert gains and all(gain is not None and gain.abs().max() > 0 for gain in gains)


def test_a_batch_norm_after_the_span_goes() -> None:
    model, x = ConvNet(depth=3, width=16), images(16)
    gm = repl_fx.transform(model, (x,), surrogate="bottleneck").graph_module
    assert not any(node.target == "blocks.1.bn2" for node in gm.graph.nodes)
    assert not any(name.startswith("blocks.1.bn2") for name in gm.state_dict())
    assert gm.get_parameter("surrogates.blocks_1.branch_0.bias_out").shape == (16,)


@pytest.mark.parametrize("scale", [1e-6, 1.0])
def test_a_layer_scale_sets_how_the_layer_before_it_begins(scale: float) -> None:
    """From a product of zero and nearly zero neither would grow."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)
            self.scale = nn.Parameter(torch.full((8,), scale))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = x + self.scale * self.fc2(F.gelu(self.fc1(x)))
            return out

    model = nn.Sequential(*(Scaled() for _ in range(3)))
    gm = repl_fx.transform(model, (torch.randn(4, 8),), surrogate="bottleneck").graph_module
    gains = gm.get_parameter("surrogates.1.branch_0.gain_out")
    assert gains.abs().min() > 0
