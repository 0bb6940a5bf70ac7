"""`narrow`: a block with fewer hidden units; the rest of it stays."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

import repl_fx
from repl_fx.errors import BadInput
from repl_fx.rewriting.in_place.restoring import restored_state
from repl_fx.surrogates.narrow import Narrow, NarrowConfig
from repl_fx.tracing.parts.capture_parts import CapturedParts
from tests.export.running import run
from tests.nets import MlpNet, TokenNet, TransformerBlock, tokens
from tests.surrogates.nets import CHANNELS, NETS, Diffusion, HeadsBlock, InPlace, Residual, Scaled

HIDDEN = 24


class Gated(nn.Module):
    """An MLP with a gate, as in Llama."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(16, HIDDEN, bias=False) for _ in range(2))
        self.down = nn.Linear(HIDDEN, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(F.silu(self.gate(x)) * self.up(x))
        return out


class Columns(nn.Module):
    """A layer whose weight is (in, out), and which computes with its size, as that of GPT-2 in transformers."""

    def __init__(self, nx: int, nf: int) -> None:
        super().__init__()
        self.nx, self.nf = nx, nf
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf) / 4), nn.Parameter(torch.randn(nf) / 4)

    def forward(self, x: Tensor) -> Tensor:
        made = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return made.view((*x.size()[:-1], self.nf))


class Addmm(nn.Module):
    """Two of them, behind an argument that is a mask in some calls."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = Columns(16, HIDDEN), Columns(HIDDEN, 16)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        out: Tensor = x + (y if mask is None else y * mask)
        return out


class Steps(nn.Module):
    """Blocks that are handed the mask of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Addmm() for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, mask)
        return x


class TimedBlock(nn.Module):
    """A residual block of diffusion models: group norms, and a number for each channel from the time."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(4, CHANNELS), nn.GroupNorm(4, HIDDEN)
        self.conv1 = nn.Conv2d(CHANNELS, HIDDEN, 3, padding=1)
        self.conv2 = nn.Conv2d(HIDDEN, CHANNELS, 3, padding=1)
        self.time = nn.Linear(8, HIDDEN)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(time))[:, :, None, None]
        out: Tensor = x + self.conv2(F.silu(self.norm2(y)))
        return out


def _grouped() -> nn.Module:
    return Residual(
        nn.Conv2d(CHANNELS, HIDDEN, 1),
        nn.GroupNorm(6, HIDDEN),
        nn.GroupNorm(4, HIDDEN, affine=False),
        nn.SiLU(),
        nn.Conv2d(HIDDEN, CHANNELS, 1),
    )


def _medical() -> nn.Module:
    return Residual(
        nn.Conv2d(CHANNELS, HIDDEN, 3, padding=1),
        nn.InstanceNorm2d(HIDDEN),
        nn.Dropout(0.1),
        nn.PReLU(),
        nn.Conv2d(HIDDEN, HIDDEN, 1),
        nn.InstanceNorm2d(HIDDEN, affine=True, track_running_stats=True),
        nn.PReLU(),
        nn.Conv2d(HIDDEN, CHANNELS, 3, padding=1),
    )


def _basic() -> nn.Module:
    return Residual(
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False),
        nn.BatchNorm2d(CHANNELS),
        nn.ReLU(),
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False),
        nn.BatchNorm2d(CHANNELS),
        relu=True,
    )


def _bottleneck() -> nn.Module:
    return Residual(
        nn.Conv2d(CHANNELS, 8, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding="same"),
        nn.BatchNorm2d(8, affine=False),
        nn.ReLU(),
        nn.Conv2d(8, CHANNELS, 1),
    )


def _inverted() -> nn.Module:
    return Residual(
        nn.Conv2d(CHANNELS, HIDDEN, 1, bias=False),
        nn.BatchNorm2d(HIDDEN),
        nn.ReLU6(),
        nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1, groups=HIDDEN, bias=False),
        nn.BatchNorm2d(HIDDEN),
        nn.ReLU6(),
        nn.Dropout(0.1),
        nn.Conv2d(HIDDEN, CHANNELS, 1, bias=False),
    )


def _stack(make: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(*(make() for _ in range(4)))


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "attention": lambda: (TokenNet(depth=4), tokens()),
    "gate": lambda: (_stack(Gated), tokens()),
    "addmm": lambda: (Steps(), tokens()),
    "basic": lambda: (_stack(_basic), torch.randn(2, CHANNELS, 6, 6)),
    "bottleneck": lambda: (_stack(_bottleneck), torch.randn(2, CHANNELS, 6, 6)),
    "inverted": lambda: (_stack(_inverted), torch.randn(2, CHANNELS, 6, 6)),
    "in place": lambda: (_stack(lambda: InPlace(CHANNELS)), torch.randn(2, CHANNELS, 6, 6)),
    "layer scale": lambda: (_stack(lambda: Scaled(CHANNELS)), torch.randn(2, CHANNELS, 6, 6)),
    "group norm": lambda: (_stack(_grouped), torch.randn(2, CHANNELS, 6, 6)),
    "instance norm": lambda: (_stack(_medical), torch.randn(2, CHANNELS, 6, 6)),
    "time": lambda: (Diffusion(TimedBlock), torch.randn(2, CHANNELS, 6, 6)),
    "heads": lambda: (Diffusion(HeadsBlock), torch.randn(2, CHANNELS, 6, 6)),
}
# Units that stay or go together, where they are more than one.
GROUPS = {"group norm": 12, "time": 6, "heads": 4}
# The layers that read hidden units.
READERS = {
    "attention": ("fc2",),
    "gate": ("down",),
    "addmm": ("fc2",),
    "basic": ("inner.3",),
    "bottleneck": ("inner.3", "inner.6"),
    "inverted": ("inner.7",),
    "in place": ("conv2",),
    "layer scale": ("fc2",),
    "group norm": ("inner.4",),
    "instance norm": ("inner.4", "inner.7"),
    "time": ("conv2",),
    "heads": ("out",),
}


def _settled(model: nn.Module) -> nn.Module:
    """A model whose batch norms have statistics of their own."""
    generator = torch.Generator().manual_seed(1)
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + (0.5 if name.endswith("var") else 0))
    return model.eval()


def _silence_half_(model: nn.Module, block: str, readers: tuple[str, ...], group: int) -> None:
    """Let each layer of a block read half of its units, whole groups of them."""
    for name in readers:
        layer: Any = model.get_submodule(f"{block}.{name}")
        weight = layer.weight if isinstance(layer, Columns) else layer.weight.transpose(0, 1)
        with torch.no_grad():
            groups = weight.unflatten(0, (-1, group))
            groups[torch.randperm(len(groups))[len(groups) // 2 :]] = 0


def _block(model: nn.Module, number: int) -> str:
    return f"blocks.{number}" if hasattr(model, "blocks") else str(number)


@functools.cache
def _model(name: str) -> tuple[nn.Module, Tensor, CapturedParts]:
    """A model with an input, and its capture, which serves for several tests."""
    torch.manual_seed(0)
    model, x = MODELS[name]()
    return _settled(model), x, repl_fx.capture_parts(model, (x,))


@pytest.mark.parametrize("name", MODELS)
def test_all_units_are_the_block(name: str) -> None:
    model, x, captured = _model(name)
    result = repl_fx.transform(model, (x,), surrogate="narrow", settings={"ratio": 1.0}, captured=captured)
    assert result.plan.replacements
    with torch.no_grad():
        wanted = model(x.clone())
        torch.testing.assert_close(result.model.eval()(x.clone()), wanted)
        torch.testing.assert_close(result.graph_module.eval()(x.clone()), wanted)


@pytest.mark.parametrize("name", MODELS)
def test_units_that_nobody_reads_go_first(name: str, request: pytest.FixtureRequest) -> None:
    model, x, captured = _model(name)
    whole = {path: tensor.clone() for path, tensor in model.state_dict().items()}
    request.addfinalizer(lambda: model.load_state_dict(whole))
    _silence_half_(model, _block(model, 1), READERS[name], GROUPS.get(name, 1))
    options: Any = {"surrogate": "narrow", "blocks": [2], "settings": {"ratio": 0.5}}
    result = repl_fx.transform(model, (x,), captured=captured, **options)
    assert [one.block for one in result.plan.replacements] == [_block(model, 1)]
    with torch.no_grad():
        wanted, made = model(x.clone()), result.model.eval()(x.clone())
    torch.testing.assert_close(made, wanted)
    torch.testing.assert_close(result.graph_module.eval()(x.clone()), wanted)
    before = sum(parameter.numel() for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in result.model.parameters()) < before


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_it_trains_folds_and_exports(name: str, tmp_path: Path) -> None:
    model, x, captured = _model(name)
    gm = repl_fx.transform(model, (x,), surrogate="narrow", captured=captured).graph_module.train()
    gm(x.clone()).square().sum().backward()
    own = {n: p.grad for n, p in gm.named_parameters() if n.startswith("surrogates.")}
    assert own and all(grad is not None and bool(grad.abs().sum() > 0) for grad in own.values())
    with torch.no_grad():
        wanted = gm.eval()(x.clone())
        folded = repl_fx.fold(gm)
        torch.testing.assert_close(folded(x.clone()), wanted)
    model.zero_grad()
    repl_fx.export_onnx(gm, tmp_path / "net.onnx", (x,))
    given = onnx.load(tmp_path / "net.onnx").graph.input[0].name
    (found,) = run(tmp_path / "net.onnx", **{given: x}).values()
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-3, atol=1e-4)


def test_the_rest_of_a_block_stays_its_own() -> None:
    model, x = TokenNet(depth=4), tokens()
    result = repl_fx.transform(model, (x,), surrogate="narrow", blocks=[2])
    names = {name for name, _ in result.model.named_parameters()}
    assert {"blocks.1.attn.qkv.weight", "blocks.1.norm2.weight"} <= names
    assert not {"blocks.1.fc1.weight", "blocks.1.fc2.bias"} & names
    assert result.model.get_parameter("blocks.1.attn.qkv.weight") is model.get_parameter("blocks.1.attn.qkv.weight")


def test_in_place_the_blocks_own_code_runs_on_smaller_layers() -> None:
    torch.manual_seed(0)
    model, x = Steps().eval(), tokens()
    result = repl_fx.transform(model, (x,), surrogate="narrow")
    placed, kept, before = (
        made.get_submodule(f"blocks.{i}") for made, i in ((result.model, 1), (result.model, 0), (model, 1))
    )
    assert isinstance(placed, Addmm) and isinstance(kept, Addmm) and isinstance(before, Addmm)
    assert (placed.fc1.nf, placed.fc2.nx) == (HIDDEN // 2, HIDDEN // 2)
    assert before.fc1.nf == kept.fc1.nf == HIDDEN
    # Another call than that of the trace.
    mask = torch.zeros(16)
    assert torch.equal(result.model(x, mask), x)
    again = copy.deepcopy(result.model)
    torch.testing.assert_close(again(x), result.graph_module.eval()(x))


class _Frozen(nn.Module):
    """A block whose inner norm stays in evaluation, as in fine-tuning on small batches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm, self.conv2 = nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16), nn.Conv2d(16, 8, 1)

    def train(self, mode: bool = True) -> _Frozen:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.norm(self.conv1(x)).relu())  # type: ignore[no-any-return]


def test_a_norm_that_the_source_keeps_in_evaluation_stays_in_it_on_fewer_channels(tmp_path: Path) -> None:
    model, x = nn.Sequential(*(_Frozen() for _ in range(3))), torch.randn(2, 8, 4, 4)
    result = repl_fx.transform(model.train(), (x,), surrogate="narrow", every=1)
    repl_fx.save(result, tmp_path / "out")
    placed, graph = (repl_fx.load(tmp_path / "out", copy.deepcopy(model), graph=graph) for graph in (False, True))
    for form in (result.model, result.graph_module, placed, graph, copy.deepcopy(result.model)):
        wanted = form.eval()(x)
        assert torch.equal(form.train()(x), wanted)
        assert not any(norm.training for norm in form.modules() if isinstance(norm, nn.BatchNorm2d))


def test_cumulative_statistics_go_on_on_fewer_channels_and_on_all_of_them_again() -> None:
    def block() -> nn.Module:
        norm = nn.BatchNorm2d(16, momentum=None)
        return Residual(nn.Conv2d(8, 16, 1), norm, nn.ReLU(), nn.Conv2d(16, 8, 1))

    model, x = nn.Sequential(*(block() for _ in range(3))), torch.randn(2, 8, 4, 4)
    for _ in range(9):
        model.train()(3 * torch.randn(2, 8, 4, 4))
    source = copy.deepcopy(model).train()
    result = repl_fx.transform(model, (x,), surrogate="narrow", blocks=["1"], settings={"ratio": 1.0})
    result.model.train()(x)
    source(x)
    restored = restored_state(result.found, result.model, result.plan)
    for name, value in source.named_buffers():
        assert torch.equal(restored[name], value), name


def test_linear_layers_in_place_say_how_large_they_are() -> None:
    result = repl_fx.transform(TokenNet(depth=4), (tokens(),), surrogate="narrow", blocks=[2])
    block, kept = (result.model.get_submodule(f"blocks.{i}") for i in (1, 2))
    assert isinstance(block, TransformerBlock) and isinstance(kept, TransformerBlock)
    assert block.fc1.out_features == block.fc2.in_features < kept.fc1.out_features
    assert (block.attn.qkv.in_features, block.fc1.in_features) == (16, 16)


class _Excited(nn.Module):
    """Hidden channels scaled by a function of all of them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(CHANNELS, 12, 1), nn.Conv2d(12, CHANNELS, 1)
        self.squeeze = nn.Conv2d(12, 12, 1)
        self.norm = nn.GroupNorm(1, 12)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.reflected = nn.Conv2d(12, 12, 3, padding=1, padding_mode="reflect")
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv1(x))
        if self.kind == "norm":
            y = self.norm(y)
        elif self.kind == "mean":
            y = y * torch.sigmoid(self.squeeze(y.mean((2, 3), keepdim=True)))
        elif self.kind == "groups":
            y = F.relu(self.grouped(y))
        elif self.kind == "softmax":
            y = y.softmax(1)
        elif self.kind == "reflected":
            y = self.reflected(y)
        out: Tensor = x + self.conv2(y)
        return out


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("norm", "normalises all channels of a hidden layer together"),
        ("mean", "does not treat the channels of a hidden layer one by one"),
        ("groups", "is of a kind whose weight cannot lose rows or columns"),
        ("softmax", "does not treat the channels of a hidden layer one by one"),
        ("reflected", "does not pad with zeros"),
    ],
)
def test_units_that_cannot_go_are_refused(kind: str, reason: str) -> None:
    with pytest.raises(repl_fx.NothingToReplace, match=reason):
        repl_fx.transform(_stack(lambda: _Excited(kind)), (torch.randn(2, CHANNELS, 6, 6),), surrogate="narrow")


@pytest.mark.slow
def test_what_is_left_of_groups_is_normalised_as_it_was() -> None:
    torch.manual_seed(0)
    model, x = MODELS["group norm"]()
    result = repl_fx.transform(model, (x,), surrogate="narrow", blocks=[2])
    (one,) = result.plan.replacements
    norms = [m for m in result.graph_module.modules() if isinstance(m, nn.GroupNorm) and m.num_channels < HIDDEN]
    # Of groups of 4 and of 6 a multiple of both.
    assert [(m.num_groups, m.num_channels) for m in norms] == [(3, 12), (2, 12)]
    assert next(row.left for row in result.report if row.block == one.block) == f"12 of {HIDDEN} hidden units"
    fitted = repl_fx.fit(result, [torch.randn(8, CHANNELS, 6, 6)])
    (done,) = fitted.surrogates
    assert done.after is not None and done.before is not None and done.after < done.before


class _Tied(nn.Module):
    """A branch whose layers share weights."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.fc1, self.fc2, self.other = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 24)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc2(self.fc1(x).relu())
        if self.kind == "layer":
            return torch.add(x, y * self.fc2(self.other(x).relu()))
        return torch.add(x, y * F.linear(x.softmax(-1), self.fc1.weight).cumsum(-1)[..., :16])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("layer", r"several layers of the block share 1\.fc2\.weight"),
        ("weight", r"1\.fc1\.weight is read elsewhere too"),
    ],
)
def test_shared_weights_are_refused(kind: str, reason: str) -> None:
    with pytest.raises(repl_fx.NothingToReplace, match=reason):
        repl_fx.transform(_stack(lambda: _Tied(kind)), (tokens(),), surrogate="narrow", blocks=[2])


@pytest.mark.parametrize("name", ["tokens", "batch norm", "layer scale", "bare weights"])
def test_the_nets_of_other_surrogates(name: str) -> None:
    model, x = NETS[name]()
    result = repl_fx.transform(_settled(model), (x,), surrogate="narrow", settings={"ratio": 1.0})
    with torch.no_grad():
        torch.testing.assert_close(result.graph_module.eval()(x.clone()), model(x.clone()))


def test_every_block_of_a_repeat_may_go() -> None:
    model, x = TokenNet(depth=3), tokens()
    result = repl_fx.transform(model, (x,), surrogate="narrow", every=1)
    assert [str(one) for one in result.plan.replacements] == [f"blocks.{i} -> narrow" for i in range(3)]
    assert result.in_place.model is not None and not result.plan.refusals
    torch.testing.assert_close(result.model.eval()(x), result.graph_module.eval()(x))
    again = repl_fx.transform(model, (x,), plan=repl_fx.Plan.from_json(result.plan.to_json()))
    torch.testing.assert_close(again.model.eval()(x), result.model(x))
    # Depth pruning of the same blocks.
    bare = repl_fx.transform(model, (x,), plan=result.plan.without_surrogates())
    torch.testing.assert_close(bare.model.eval()(x), model.eval().head(model.embed(x).mean(1)))


def test_the_first_block_goes_by_name_and_by_another_surrogate_it_does_not() -> None:
    model, x = TokenNet(depth=3), tokens()
    (one,) = repl_fx.transform(model, (x,), surrogate="narrow", blocks=["blocks.0"]).plan.replacements
    assert (one.block, one.neighbours) == ("blocks.0", ())
    with pytest.raises(repl_fx.NothingToReplace, match="no block before it to be made from"):
        repl_fx.transform(model, (x,), surrogate="bottleneck", blocks=["blocks.0"])


@pytest.mark.slow
def test_a_budget_takes_the_most_units_that_it_allows() -> None:
    gm = repl_fx.capture(MlpNet(depth=5), (tokens(),))
    planned = functools.partial(repl_fx.make_plan, gm, repl_fx.find_repeats(gm), surrogate="narrow")
    shares = []
    for budget in (0.95, 0.85, 0.75):
        plan = planned(budget={"params": budget})
        (ratio,) = {one.settings["ratio"] for one in plan.replacements}
        shares.append(ratio)
        assert plan.expected["params"] <= budget
        if ratio < 0.875:
            with pytest.raises(BadInput, match="no plan has params"):
                planned(settings={"ratio": ratio + 0.125}, budget={"params": budget})
    assert shares == sorted(shares, reverse=True) and len(set(shares)) == 3
    # Blocks in a row go.
    assert len(plan.replacements) > 3
    with pytest.raises(BadInput, match=r"no plan has params at or below 0\.1 of the original"):
        planned(budget={"params": 0.1})


def test_a_ratio_that_is_given_is_no_choice() -> None:
    assert [one.settings() for one in Narrow(NarrowConfig(0.25)).sizes()] == [{"ratio": 0.25}]
    assert [one.settings()["ratio"] for one in Narrow(NarrowConfig()).sizes()][::6] == [0.875, 0.125]


@pytest.mark.parametrize("ratio", [0, 1.5, -1, "half", True])
def test_ratios_that_make_no_sense(ratio: Any) -> None:
    with pytest.raises(BadInput, match=r"narrow: ratio is .*; it must be above 0 and at most 1"):
        NarrowConfig(ratio)


@given(groups=st.integers(2, 64), group=st.integers(2, 40), ratio=st.floats(0.01, 1))
@settings(deadline=None)
def test_counts_of_whole_groups(groups: int, group: int, ratio: float) -> None:
    count = Narrow(NarrowConfig(ratio))._count(groups * group, group)
    assert count % group == 0 and min(groups * group, 4) <= count <= groups * group
    assert abs(count - ratio * groups * group) <= max(group, 4)


@given(size=st.integers(1, 400), ratio=st.floats(0.01, 1))
@settings(deadline=None)
def test_counts(size: int, ratio: float) -> None:
    count = Narrow(NarrowConfig(ratio))._count(size)
    assert min(size, 4) <= count <= size
    assert abs(count - ratio * size) <= 4 or count == min(size, 8)
    assert size < 64 or count % 8 == 0 or count == size
