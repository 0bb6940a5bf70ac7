from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, fx, nn

import repl_fx
from repl_fx.errors import BrokenGraph
from repl_fx.graph.state import SOURCE_STATE
from repl_fx.passes.driver import run_passes
from repl_fx.passes.replace_blocks import replace_blocks
from repl_fx.surrogates.shared import surrogate as registry
from repl_fx.surrogates.shared.synthesis import Synthesis
from tests.nets import ConvNet, TokenNet, TwoStreams, images, tokens


def test_the_graph_it_is_given_stays_as_it_is() -> None:
    x = images()
    gm = repl_fx.capture(ConvNet(), (x,)).eval()
    repeats = repl_fx.find_repeats(gm)
    before, names, expected = str(gm.graph), list(gm.state_dict()), gm(x)
    result = replace_blocks(gm, repeats, repl_fx.make_plan(gm, repeats, surrogate="identity"))
    assert result.modified and result.changed == ("blocks.1", "blocks.3")
    assert str(gm.graph) == before and list(gm.state_dict()) == names and torch.equal(gm(x), expected)
    removed = set(names) - set(result.graph_module.state_dict())
    assert removed == {n for n in names if n.startswith(("blocks.1.", "blocks.3."))}
    assert "blocks.1" not in dict(result.graph_module.named_modules())
    assert result.graph_module.meta[SOURCE_STATE] == {n: tuple(t.shape) for n, t in gm.state_dict().items()}
    assert SOURCE_STATE not in gm.meta


def test_an_empty_plan_changes_no_bit() -> None:
    x = tokens()
    gm = repl_fx.capture(TokenNet(depth=3, dropout=0.1), (x,))
    repeats = repl_fx.find_repeats(gm)
    plan = replace(repl_fx.make_plan(gm, repeats), replacements=())
    (result,) = run_passes(gm, partial(replace_blocks, repeats=repeats, plan=plan)).results
    assert not result.modified
    assert result.graph_module.state_dict().keys() == gm.state_dict().keys()
    for training in (False, True):
        outputs = []
        for module in (gm, result.graph_module):
            module.train(training)
            torch.manual_seed(5)
            outputs.append(module(x))
        assert torch.equal(*outputs)


def test_parameters_shared_with_what_is_kept_stay() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            blocks = [nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(3)]
            self.blocks = nn.ModuleList(blocks)
            self.head = nn.Linear(8, 8, bias=False)
            self.head.weight = blocks[1].get_parameter("0.weight")
            self.unused = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = x + block(x)
            return self.head(x)  # type: ignore[no-any-return]

    model, x = Tied(), torch.randn(2, 8)
    gm = repl_fx.transform(model, (x,), surrogate="identity").graph_module
    names = set(gm.state_dict())
    assert {"head.weight", "unused.weight", "unused.bias"} <= names
    assert "blocks.1.2.weight" not in names and "blocks.1.0.bias" not in names
    assert gm.get_parameter("head.weight") is model.head.weight
    hidden = x + model.blocks[0](x)
    expected = model.head(hidden + model.blocks[2](hidden))
    assert torch.equal(gm(x), expected)


def test_a_plan_that_names_no_blocks_around_for_a_surrogate_that_is_made_from_them() -> None:
    gm = repl_fx.capture(ConvNet(), (images(),))
    repeats = repl_fx.find_repeats(gm)
    plan = repl_fx.make_plan(gm, repeats)
    (one, *_) = plan.replacements
    broken = replace(plan, replacements=(replace(one, after=""),))
    with pytest.raises(
        repl_fx.PlanMismatch, match=f"names no blocks around {one.block} for {one.surrogate}; make a new"
    ):
        replace_blocks(gm, repeats, broken)


def test_a_plan_for_blocks_that_are_not_there() -> None:
    gm = repl_fx.capture(ConvNet(), (images(),))
    repeats = repl_fx.find_repeats(gm)
    plan = repl_fx.make_plan(gm, repeats)
    broken = replace(plan, replacements=(replace(plan.replacements[0], before="blocks.9"),))
    with pytest.raises(repl_fx.PlanMismatch, match=r"names block blocks\.9, which this model does not have"):
        replace_blocks(gm, repeats, broken)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            {"before": "blocks.2", "after": "blocks.0"},
            "from blocks.2, which is no block that is kept on that side of it",
        ),
        ({"after": "blocks.1"}, "from blocks.1, which is no block that is kept on that side of it"),
        ({"after": "blocks.3"}, "from blocks.3, which is no block that is kept on that side of it"),
        ({"block": "blocks.3", "after": "blocks.4"}, "replaces blocks.3 twice, or a part of it; make a new plan"),
    ],
)
def test_a_plan_that_was_edited_into_one_of_blocks_that_go(edit: dict[str, Any], message: str) -> None:
    gm = repl_fx.capture(TokenNet(depth=5), (tokens(),))
    repeats = repl_fx.find_repeats(gm)
    plan = repl_fx.make_plan(gm, repeats, surrogate="reuse")
    first, second = plan.replacements
    edited = replace(plan, replacements=(replace(first, **edit), second))
    with pytest.raises(repl_fx.PlanMismatch, match=message):
        replace_blocks(gm, repeats, edited)


@pytest.mark.parametrize("surrogate", ["identity", "blend", "bottleneck"])
def test_blocks_with_two_streamed_values(surrogate: str) -> None:
    torch.manual_seed(0)
    model, x = TwoStreams(5), torch.randn(3, 4)
    result = repl_fx.transform(model, (x,), surrogate=surrogate)
    assert [(r.block, r.surrogate) for r in result.plan.replacements] == [
        ("blocks.1", surrogate),
        ("blocks.3", surrogate),
    ]
    gm = result.graph_module
    gone = {name for name, _ in model.named_parameters() if name.startswith(("blocks.1.", "blocks.3."))}
    left = set(dict(gm.named_parameters()))
    assert not {name for name in gone & left if name.endswith("weight")}
    gm(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in gm.parameters())
    torch.testing.assert_close(repl_fx.fold(gm)(x), gm(x), rtol=0, atol=0)
    if surrogate == "identity":
        pruned = TwoStreams(5, without=(1, 3))
        pruned.load_state_dict(model.state_dict())
        assert torch.equal(gm(x), pruned(x))


@pytest.mark.usefixtures("own_surrogates")
def test_a_surrogate_that_makes_too_few_values() -> None:
    @dataclass(frozen=True)
    class OneConfig:
        pass

    @repl_fx.register_surrogate("one-value", OneConfig)
    class One(repl_fx.Surrogate[OneConfig, repl_fx.Match]):
        def match(self, site: repl_fx.Site) -> repl_fx.Match:
            return repl_fx.Match()

        def build(self, site: repl_fx.Builder, match: repl_fx.Match) -> tuple[fx.Node, ...]:
            return (site.input,)

    with pytest.raises(repl_fx.PlanMismatch, match=r"one-value made 1 values for blocks\.1, which has 2"):
        repl_fx.transform(TwoStreams(5), (torch.randn(3, 4),), surrogate="one-value", check=False)


@pytest.mark.usefixtures("own_surrogates")
def test_a_surrogate_that_returns_something_else() -> None:
    @dataclass(frozen=True)
    class OddConfig:
        matched: bool = True

    @repl_fx.register_surrogate("odd", OddConfig)
    class Odd(repl_fx.Surrogate[OddConfig, repl_fx.Match]):
        def match(self, site: repl_fx.Site) -> Any:
            return repl_fx.Match() if self.config.matched else None

        def build(self, site: repl_fx.Builder, match: repl_fx.Match) -> Any:
            return site.input

    for matched, said in ((True, "build of odd returns a tuple of nodes, .* a Node"), (False, "match of odd .* None")):
        with pytest.raises(repl_fx.BadInput, match=said):
            repl_fx.transform(TokenNet(depth=3), (tokens(),), surrogate="odd", settings={"matched": matched})


class _Given(repl_fx.Surrogate[Any, repl_fx.Match]):
    """Builds what a test says."""

    def match(self, site: repl_fx.Site) -> repl_fx.Match:
        return repl_fx.Match()

    def build(self, site: repl_fx.Builder, match: repl_fx.Match) -> tuple[fx.Node, ...]:
        return type(self).make(site)

    make: ClassVar[Callable[[repl_fx.Builder], tuple[fx.Node, ...]]]


class _Twice(Synthesis):
    """Two results."""

    def __init__(self) -> None:
        super().__init__(train_neighbours=True)
        self.scale = nn.Parameter(torch.ones(1))

    def synthesise(self, *weights: Tensor) -> tuple[Tensor, Tensor]:
        return self.scale + 1, self.scale + 2


def _reads(site: repl_fx.Builder, *results: int, lost: bool = False) -> tuple[fx.Node, ...]:
    with site.before_node(site.block.output):
        made = site.synthesise("twice", _Twice())
        value = site.input
        for result in results:
            value = site.call(torch.mul, value, site.call(operator.getitem, made, result))
    return (site.input if lost else value,)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda site: site.block.outputs,
            r"given stands in for blocks\.1, whose blocks\.1\.conv1\.weight is still read",
        ),
        (
            lambda site: _reads(site),
            r"given stands in for blocks\.1, but nothing reads the result of surrogates_blocks_1",
        ),
        (
            lambda site: _reads(site, 0),
            r"given stands in for blocks\.1, but nothing reads result 1 of surrogates_blocks_1",
        ),
        (lambda site: _reads(site, 0, 1, lost=True), r"but nothing reads the result of surrogates_blocks_1_twice"),
    ],
)
def test_a_surrogate_that_does_not_stand_in_for_its_block(
    make: Callable[[repl_fx.Builder], tuple[fx.Node, ...]], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        registry._REGISTRY, "given", (type("Given", (_Given,), {"key": "given", "make": make}), _NoConfig)
    )
    with pytest.raises(BrokenGraph, match=reason):
        repl_fx.transform(ConvNet(depth=3), (images(),), surrogate="given", check=False)
    with pytest.raises(repl_fx.NothingToReplace, match=f"given cannot be built here: BrokenGraph: .*{reason}"):
        repl_fx.transform(ConvNet(depth=3), (images(),), surrogate="given")


def test_a_surrogate_that_stands_in_for_its_block_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"key": "given", "make": lambda site: _reads(site, 0, 1)}
    monkeypatch.setitem(registry._REGISTRY, "given", (type("Given", (_Given,), kinds), _NoConfig))
    gm = repl_fx.transform(ConvNet(depth=3), (images(),), surrogate="given").graph_module
    assert not any(name.startswith("blocks.1.") for name, _ in gm.named_parameters())


@dataclass(frozen=True)
class _NoConfig:
    """No settings."""


class Writes(nn.Module):
    """Layers that put what they compute into slices of a new tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        for layer in self.layers:
            layer.load_state_dict(self.layers[0].state_dict())

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            y = layer(x)
            made = y.new_zeros(y.shape[0], 4, 8)
            made[:, 1:] = y[:, None]
            made[:, 0, :4] += 1
            x = x + made.sum(1).relu()
        return x


def test_writes_into_what_a_kept_node_reads_stay() -> None:
    torch.manual_seed(0)
    model, x = Writes(), torch.randn(2, 8)
    gm = repl_fx.transform(model, (x,), surrogate="blend").graph_module
    # The neighbours' weights are the block's own, so that nothing but a lost write could make a difference.
    torch.testing.assert_close(gm(x), model(x), rtol=1e-5, atol=1e-5)
    gm(x).sum().backward()
    assert all(p.grad is not None for n, p in gm.named_parameters() if "surrogates" in n)


def test_writes_of_a_block_that_is_gone_are_gone() -> None:
    gm = repl_fx.transform(Writes(), (torch.randn(2, 8),), surrogate="identity").graph_module
    targets = [str(node.target) for node in gm.graph.nodes]
    assert targets.count("aten.copy_.default") == 2 * 2
    assert targets.count("aten.new_zeros.default") == 2


class Coded(nn.Module):
    """Adds the nearest of its codes, and in training draws each code to what it was near to (vector quantisation)."""

    codes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("codes", torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        near = (y[:, None] - self.codes).square().sum(-1).argmin(-1)
        added: Tensor = x + y + self.codes[near]
        if self.training:
            self.codes.data.lerp_(torch.eye(3)[near].t() @ y.detach(), 0.1)
        return added


def test_a_block_on_blended_weights_changes_its_buffers_in_training() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 4)
    result = repl_fx.transform(nn.Sequential(*(Coded() for _ in range(3))), (x,), surrogate="blend")
    model, graph = result.model.train(), copy.deepcopy(result.graph_module).train()
    before = model.get_buffer("1.codes").clone()
    for _ in range(3):
        assert torch.equal(model(x), graph(x))
    assert torch.equal(model.get_buffer("1.codes"), graph.get_buffer("1.codes"))
    assert not torch.equal(model.get_buffer("1.codes"), before)
