"""A transform from the capture to the rewritten model: it trains, folds, and computes what it should."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import save_file
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

import repl_fx
from repl_fx.display.numbers import count
from repl_fx.passes.driver import run_passes
from repl_fx.passes.fold_surrogates import is_synthesis
from repl_fx.passes.replace_blocks import replace_blocks
from repl_fx.pipeline import unreplaced
from repl_fx.tracing.parts import capture_parts
from tests.nets import ConvNet, Counts, MlpNet, TokenNet, as_after_training, images, tokens

SURROGATES = ("identity", "blend", "bottleneck", "auto")


def _losses(gm: nn.Module, x: Tensor, steps: int = 6, autocast: bool = False) -> list[float]:
    gm.train()
    target = torch.arange(len(x)) % 10
    optimizer = torch.optim.AdamW(gm.parameters(), 3e-3)
    losses = []
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = nn.functional.cross_entropy(gm(x), target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return losses


@st.composite
def residual_networks(draw: st.DrawFn) -> tuple[Callable[[Collection[int]], nn.Module], Tensor, int]:
    """A way to build a random network without some of its blocks, an input for it, and its depth."""
    depth = draw(st.integers(3, 6))
    width = draw(st.sampled_from([4, 6, 8]))
    if draw(st.booleans()):
        dropout, post_norm = draw(st.sampled_from([0.0, 0.2])), draw(st.booleans())
        return (lambda without: TokenNet(depth, width, 2, dropout, post_norm, without)), tokens(width=width), depth
    kernel = draw(st.sampled_from([1, 3]))
    return (lambda without: ConvNet(depth, width, kernel, without=without)), images(), depth


def _both_modes(model: nn.Module, x: Tensor) -> list[Tensor]:
    results = []
    for training in (False, True):
        model.train(training)
        torch.manual_seed(1)
        results.append(model(x))
    return results


@pytest.mark.slow
@given(network=residual_networks())
@settings(max_examples=6)
def test_replacing_nothing_changes_no_bit(
    network: tuple[Callable[[Collection[int]], nn.Module], Tensor, int],
) -> None:
    build, x, depth = network
    model = build(())
    gm = repl_fx.capture(model, (x,), copy=True)
    repeats = repl_fx.find_repeats(gm)
    assert [len(repeat) for repeat in repeats] == [depth]
    plan = replace(repl_fx.make_plan(gm, repeats), replacements=())
    same = run_passes(gm, partial(replace_blocks, repeats=repeats, plan=plan))
    assert not any(result.modified for result in same.results)
    expected, found = _both_modes(model, x), _both_modes(same.graph_module, x)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    for outputs in (expected, found):
        outputs[1].square().mean().backward()  # type: ignore[no-untyped-call]
    theirs = dict(same.graph_module.named_parameters())
    for name, parameter in model.named_parameters():
        ours, other = parameter.grad, theirs[name].grad
        assert ours is not None and other is not None and torch.equal(ours, other)


@pytest.mark.slow
@given(network=residual_networks(), data=st.data())
@settings(max_examples=6)
def test_identity_equals_the_network_built_without_the_blocks(
    network: tuple[Callable[[Collection[int]], nn.Module], Tensor, int], data: st.DataObject
) -> None:
    build, x, depth = network
    gone = data.draw(st.sets(st.integers(1, depth - 2), min_size=1, max_size=depth - 2))
    model, smaller = build(()), build(gone)
    kept = [i for i in range(depth) if i not in gone]
    source = model.state_dict()

    def in_model(name: str) -> str:
        parts = name.split(".")
        return ".".join([parts[0], str(kept[int(parts[1])]), *parts[2:]]) if parts[0] == "blocks" else name

    smaller.load_state_dict({name: source[in_model(name)] for name in smaller.state_dict()})
    result = repl_fx.transform(model, (x,), surrogate="identity", blocks=[f"blocks.{i}" for i in gone], copy=True)
    expected, found = _both_modes(smaller, x), _both_modes(result.graph_module, x)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert sum(p.numel() for p in result.graph_module.parameters()) == sum(p.numel() for p in smaller.parameters())


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("kind", ["conv", "tokens", "post_norm"])
def test_each_surrogate_trains_and_folds(surrogate: str, kind: str) -> None:
    model = ConvNet(depth=3) if kind == "conv" else TokenNet(depth=3, post_norm=kind == "post_norm", dropout=0.1)
    x = images(8) if kind == "conv" else tokens(8)
    gm = repl_fx.transform(model, (x,), surrogate=surrogate).graph_module
    losses = _losses(gm, x)
    assert losses[-1] < losses[0]
    gm.eval()
    folded = repl_fx.fold(gm)
    assert not any(is_synthesis(folded, node) for node in folded.graph.nodes)
    assert torch.equal(folded(x), gm(x))
    assert torch.equal(folded(x[:3]), gm(x[:3]))


def test_every_second_block_goes_and_its_parameters_with_it() -> None:
    model = ConvNet(depth=7)
    result = repl_fx.transform(model, (images(),), surrogate="identity")
    assert [r.block for r in result.plan.replacements] == ["blocks.1", "blocks.3", "blocks.5"]
    assert [r.status for r in result.report] == ["kept", "replaced"] * 3 + ["kept"]
    names = {name.split(".")[1] for name, _ in result.graph_module.named_parameters() if name.startswith("blocks")}
    assert names == {"0", "2", "4", "6"}
    assert not [name for name, _ in result.graph_module.named_buffers() if name.startswith("blocks.1.")]
    assert all(row.parameters_after == 0 for row in result.report if row.status == "replaced")


@pytest.mark.parametrize(("every", "gone"), [(2, ["1", "3"]), (3, ["2"]), (4, ["3"])])
def test_every_k(every: int, gone: list[str]) -> None:
    result = repl_fx.transform(ConvNet(depth=5), (images(),), every=every, surrogate="identity")
    assert [r.block for r in result.plan.replacements] == [f"blocks.{i}" for i in gone]


def test_neighbours_of_adjacent_blocks_are_the_nearest_kept_ones() -> None:
    x = tokens()
    result = repl_fx.transform(TokenNet(depth=6), (x,), surrogate="blend", blocks=["blocks.2", "blocks.3"])
    assert [(r.before, r.after) for r in result.plan.replacements] == [("blocks.1", "blocks.4")] * 2
    assert torch.isfinite(result.graph_module(x)).all()


def test_adjacent_blocks_replaced_by_identity_chain_their_inputs() -> None:
    x = tokens()
    model = TokenNet(depth=5)
    result = repl_fx.transform(model, (x,), surrogate="identity", blocks=[2, 3, 4])
    expected = model.head(model.blocks[4](model.blocks[0](model.embed(x))).mean(1))
    assert torch.equal(result.graph_module(x), expected)


def test_source_model_is_not_changed_and_tensors_are_shared() -> None:
    model, x = TokenNet(depth=3), tokens()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = model(x)
    result = repl_fx.transform(model, (x,), surrogate="auto")
    assert torch.equal(model(x), expected)
    assert {n: t.equal(before[n]) for n, t in model.state_dict().items()} == dict.fromkeys(before, True)
    kept = dict(result.graph_module.named_parameters())
    assert kept["blocks.0.fc1.weight"] is model.get_parameter("blocks.0.fc1.weight")
    own = repl_fx.transform(model, (x,), surrogate="auto", copy=True).graph_module
    assert dict(own.named_parameters())["blocks.0.fc1.weight"] is not model.get_parameter("blocks.0.fc1.weight")


def test_result_is_an_ordinary_graph_module() -> None:
    model, x = TokenNet(depth=3, dropout=0.1), tokens()
    gm = repl_fx.transform(model, (x,)).graph_module
    assert isinstance(gm, fx.GraphModule)
    gm.eval()
    expected = gm(x)
    twin = copy.deepcopy(gm)
    assert torch.equal(twin(x), expected)
    assert twin.state_dict().keys() == gm.state_dict().keys()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not torch.equal(twin(x), expected)
    twin.load_state_dict(gm.state_dict())
    assert torch.equal(twin(x), expected)
    assert gm.to(torch.float64)(x.double()).dtype is torch.float64


def test_autocast_and_activation_checkpointing() -> None:
    model, x = TokenNet(depth=3), tokens(8)
    gm = repl_fx.transform(model, (x,)).graph_module
    losses = _losses(copy.deepcopy(gm), x, autocast=True)
    assert losses[-1] < losses[0]
    gm.train()
    grads = []
    for wrap in (False, True):
        gm.zero_grad()
        out = checkpoint(gm, x, use_reentrant=False) if wrap else gm(x)
        out.square().mean().backward()
        grads.append([p.grad.clone() for p in gm.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.slow
def test_torch_compile_agrees_with_eager() -> None:
    model, x = TokenNet(depth=3), tokens()
    gm = repl_fx.transform(model, (x,)).graph_module.eval()
    with warnings.catch_warnings():
        # The compiler's own dependencies deprecate things.
        warnings.simplefilter("ignore")
        torch._dynamo.reset()
        compiled = torch.compile(gm, backend="aot_eager", fullgraph=True)
        assert torch.allclose(compiled(x), gm(x), atol=1e-6)
        gm.train()
        compiled(x).sum().backward()
    assert all(p.grad is not None for n, p in gm.named_parameters() if n.startswith("surrogates"))


@pytest.mark.parametrize("surrogate", ["blend", "bottleneck"])
@pytest.mark.parametrize("train_neighbours", [True, False])
def test_gradients_reach_the_neighbours_unless_stopped(surrogate: str, train_neighbours: bool) -> None:
    x = tokens()
    model = TokenNet(depth=3)
    gm = repl_fx.transform(
        model, (x,), surrogate=surrogate, settings={"train_neighbours": train_neighbours}
    ).graph_module
    as_after_training(gm)
    synthesis = next(node for node in gm.graph.nodes if is_synthesis(gm, node))
    weights = [gm.get_parameter(str(node.target)) for node in synthesis.all_input_nodes]
    value = gm.get_submodule(str(synthesis.target))(*weights)
    sum(v.sum() for v in value).backward()
    assert all((w.grad is not None and bool(w.grad.any())) is train_neighbours for w in weights)


def test_nothing_to_replace_says_why() -> None:
    with pytest.raises(repl_fx.NothingToReplace, match="no repeated blocks were found"):
        repl_fx.transform(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6)), (torch.randn(2, 4),))
    with pytest.raises(repl_fx.NothingToReplace, match=r"found 2 blocks in blocks: .* needs a kept one on both sides"):
        repl_fx.transform(ConvNet(depth=2), (images(),))
    with pytest.raises(repl_fx.NothingToReplace, match=r"blocks.0: it is the first of its repeat"):
        repl_fx.transform(ConvNet(depth=3), (images(),), blocks=["blocks.0"])
    with pytest.raises(repl_fx.NothingToReplace, match=r"matches --ignore blocks.\*"):
        repl_fx.transform(ConvNet(depth=3), (images(),), ignore=["blocks.*"])


@pytest.mark.parametrize("budget", [None, {"params": 0.9}])
def test_a_name_to_ignore_that_the_model_does_not_have(budget: dict[str, float] | None) -> None:
    with pytest.raises(repl_fx.BadInput, match=r"matches --ignore block.1; did you mean blocks.1, "):
        repl_fx.transform(ConvNet(depth=3), (images(),), ignore=["head", "block.1"], budget=budget)


class _Choosy(nn.Module):
    """Looks at values behind each of its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
            x = torch.stack([row for row, value in zip(x, x.sum(1).tolist(), strict=True) if value > -9.0])
        return x


def test_parts_without_repeats_say_why_the_model_is_no_graph() -> None:
    parts = r"in blocks\.0, .*, which alone were captured: the model itself \(_Choosy\) stays eager: torch\.export"
    with pytest.raises(repl_fx.NothingToReplace, match=parts):
        repl_fx.transform(_Choosy(), (torch.randn(2, 4),))


def test_plan_replays_on_a_fresh_model_and_not_on_another() -> None:
    x = tokens()
    plan = repl_fx.transform(TokenNet(depth=3), (x,), seed=3).plan
    again = repl_fx.Plan.from_json(plan.to_json())
    assert again == plan
    model = TokenNet(depth=3)
    first, second = (repl_fx.transform(model, (x,), plan=again).graph_module for _ in range(2))
    assert str(first.graph) == str(second.graph)
    assert torch.equal(first.eval()(x), second.eval()(x))
    with pytest.raises(repl_fx.PlanMismatch, match="made for another model"):
        repl_fx.transform(TokenNet(depth=4), (x,), plan=plan)


def test_a_model_with_surrogates_is_not_rewritten_again() -> None:
    x = tokens(2)
    result = repl_fx.transform(TokenNet(depth=5), (x,), surrogate="bottleneck")
    for module in (result.model, result.graph_module):
        with pytest.raises(repl_fx.BadInput, match=r"TokenNet has surrogates already, such as .*blocks.1.*; give"):
            repl_fx.transform(module, (x,), surrogate="identity")
    again = repl_fx.transform(repl_fx.fold(result.module), (x,), surrogate="identity")
    assert again.plan.replacements


def test_bad_arguments() -> None:
    x = images()
    with pytest.raises(repl_fx.UnknownSurrogate, match=r"unknown surrogate 'magic'; known are auto, blend, bottleneck"):
        repl_fx.transform(ConvNet(), (x,), surrogate="magic")
    with pytest.raises(repl_fx.UnknownBlock, match=r"no block 'layer9'; the blocks are blocks.0, blocks.1"):
        repl_fx.transform(ConvNet(), (x,), blocks=["layer9"])
    with pytest.raises(repl_fx.BadInput, match="every is 1; it must be 2 or more"):
        repl_fx.transform(ConvNet(), (x,), every=1)
    with pytest.raises(repl_fx.BadInput, match="surrogate 'blend' has no setting 'ratio'"):
        repl_fx.transform(ConvNet(), (x,), surrogate="blend", settings={"ratio": 1})
    with pytest.raises(repl_fx.BadInput, match="per is 'row'; it can be tensor or channel"):
        repl_fx.transform(ConvNet(), (x,), surrogate="blend", settings={"per": "row"})
    with pytest.raises(repl_fx.BadInput, match=r"ratio is 2.0"):
        repl_fx.transform(ConvNet(), (x,), surrogate="bottleneck", settings={"ratio": 2.0})


@pytest.mark.usefixtures("own_surrogates")
def test_a_surrogate_of_the_users_own() -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class ScaleConfig:
        factor: float = 0.5

    @repl_fx.register_surrogate("scale", ScaleConfig)
    class Scale(repl_fx.Surrogate[ScaleConfig, repl_fx.Match]):
        def match(self, site: repl_fx.Site) -> repl_fx.Match:
            return repl_fx.Match()

        def build(self, site: repl_fx.Builder, match: repl_fx.Match) -> tuple[fx.Node, ...]:
            with site.before_node(min(site.block.nodes)):
                return (site.call(torch.mul, site.input, self.config.factor),)

    assert "scale" in repl_fx.known_surrogates()
    model, x = TokenNet(depth=3), tokens()
    result = repl_fx.transform(model, (x,), surrogate="scale", settings={"factor": 0.25})
    hidden = model.blocks[2](model.blocks[0](model.embed(x)) * 0.25)
    assert torch.equal(result.graph_module(x), model.head(hidden.mean(1)))
    assert result.plan.replacements[0].settings == {"factor": 0.25}


def _made(result: repl_fx.TransformResult) -> list[Tensor]:
    found = [p.detach() for name, p in result.module.named_parameters() if "surrogates." in name]
    assert found
    return found


@pytest.mark.slow
@pytest.mark.parametrize("in_parts", [False, True])
def test_a_seed_decides_what_surrogates_begin_with(in_parts: bool) -> None:
    torch.manual_seed(0)
    body = ConvNet(depth=3)
    model = Counts(body) if in_parts else body
    x = images()
    first, same, other = (
        repl_fx.transform(model, (x,), surrogate="bottleneck", seed=seed, check=False) for seed in (1, 1, 2)
    )
    assert first.captured_parts.whole is not in_parts
    replayed = repl_fx.transform(model, (x,), plan=first.plan, check=False)
    assert all(torch.equal(a, b) for a, b in zip(_made(first), _made(same), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(_made(first), _made(replayed), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(_made(first), _made(other), strict=True))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"surrogate": "blnd"}, "blnd"), ({"surrogate": "blend", "settings": {"per": "word"}}, "per")],
)
def test_a_misspelt_surrogate_is_refused_before_the_capture(wrong: dict[str, Any], message: str) -> None:
    told: list[str] = []
    with pytest.raises(repl_fx.ReplFxError, match=message):
        repl_fx.transform(ConvNet(), (images(),), progress=told.append, **wrong)
    assert told == []


def test_an_unknown_option_is_refused_before_any_work() -> None:
    unknown: dict[str, Any] = {"evry": 3}
    for function, arguments in ((repl_fx.transform, (nn.Linear(2, 2), ())), (repl_fx.make_plan, (None, ()))):
        call: Any = function
        with pytest.raises(TypeError, match=rf"{call.__name__}\(\) got an unexpected keyword argument 'evry'"):
            call(*arguments, **unknown)


@pytest.mark.parametrize("own", [False, True])
def test_weights_go_into_a_copy_of_the_source(own: bool, tmp_path: Path) -> None:
    source, trained, x = MlpNet(), MlpNet(), tokens()
    before = copy.deepcopy(source.state_dict())
    save_file(trained.state_dict(), tmp_path / "weights.safetensors")
    result = repl_fx.transform(source, (x,), weights=tmp_path / "weights.safetensors", copy=own)
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.state_dict().items())
    places = {tensor.data_ptr() for tensor in source.state_dict().values()}
    assert not places & {tensor.data_ptr() for tensor in result.module.state_dict().values()}
    assert torch.equal(result.module(x), repl_fx.transform(trained, (x,)).module(x))
    assert torch.equal(result.captured(x), trained(x))
    repl_fx.save(result, tmp_path / "out")
    assert torch.equal(repl_fx.load(tmp_path / "out", source)(x), result.module.eval()(x))
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.state_dict().items())


def test_weights_are_looked_at_before_anything_is_captured() -> None:
    told: list[str] = []
    with pytest.raises(repl_fx.BadInput, match=r"does not fit MlpNet: 16 keys of MlpNet are missing in it"):
        repl_fx.transform(MlpNet(2), (tokens(),), weights={"x": torch.ones(1)}, progress=told.append)
    with pytest.raises(repl_fx.BadInput, match=r"weights that are no numbers: head\.bias has 10 NaN"):
        state = MlpNet().state_dict()
        state["head.bias"] *= torch.nan
        repl_fx.transform(MlpNet(), (tokens(),), weights=state, progress=told.append)
    assert told == []


def test_a_model_with_none_of_its_blocks_replaced_is_the_source() -> None:
    result = repl_fx.transform(ConvNet(), (images(),), surrogate="blend")
    whole = unreplaced(result, "it is kept for the test")
    assert not whole.plan.replacements and whole.plan.fingerprint == result.plan.fingerprint
    assert "blocks.1 stays: it is kept for the test" in str(whole.plan)
    assert whole.structure == result.structure
    source, x = result.captured_parts.source, images()
    for model in (whole.model, whole.module, whole.graph_module):
        assert torch.equal(model.eval()(x), source.eval()(x))
    assert dict(whole.model.named_parameters()).keys() == dict(source.named_parameters()).keys()
    assert all(a is b for a, b in zip(whole.model.parameters(), source.parameters(), strict=True))
    # What a user gives is refused.
    with pytest.raises(repl_fx.NothingToReplace, match="it is kept for the test"):
        repl_fx.transform(ConvNet(), (images(),), plan=whole.plan)


def test_a_model_that_was_captured_is_not_captured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = TokenNet(depth=3), torch.randn(2, 6, 16)
    found = repl_fx.capture_parts(model, (x,))
    whole = repl_fx.transform(model, (x,), surrogate="blend", check=False)
    monkeypatch.setattr("repl_fx.pipeline.capture_parts", None)
    result = repl_fx.transform(model, (x,), surrogate="blend", check=False, captured=found)
    assert result.plan == whole.plan and torch.equal(result.graph_module(x), whole.graph_module(x))
    graph = found.parts[0].graph_module
    again = repl_fx.transform(model, (x,), surrogate="blend", check=False, captured=graph)
    assert again.plan == whole.plan and again.in_place.model is not None
    copied = repl_fx.capture(model, (x,), copy=True)
    for source, known in ((TokenNet(depth=3), graph), (model, copied), (model, again.graph_module)):
        with pytest.raises(repl_fx.BadInput, match="captured is of another model"):
            repl_fx.transform(source, (x,), captured=known)
    with pytest.raises(repl_fx.BadInput, match="transform takes a graph for captured, and this is a TransformResult"):
        repl_fx.transform(model, (x,), captured=whole)  # type: ignore[arg-type]
    wrong: list[tuple[nn.Module, Any]] = [(TokenNet(depth=3), {}), (model, {"weights": model.state_dict()})]
    for other, options in (*wrong, (model, {"copy": True})):
        with pytest.raises(repl_fx.BadInput, match="captured is of another model"):
            repl_fx.transform(other, (x,), captured=found, **options)


@pytest.mark.slow
class _AsksForAnInt(MlpNet):
    """A net to which the size of a trace is no number of Python's."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if isinstance(x.shape[1], int) else 3)


def test_a_graph_that_does_not_compute_what_the_model_does_is_refused() -> None:
    model, x = _AsksForAnInt(4), tokens()
    with pytest.raises(repl_fx.CaptureError, match="its graph does not compute what it computes itself in evaluation"):
        repl_fx.transform(model, (x,))
    assert repl_fx.transform(model, (x,), check=False).plan.replacements


def test_where_copies_of_alike_calls_differ_each_call_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_parts, "computes_as_source", lambda captured: not captured.copies)
    result = repl_fx.transform(MlpNet(5), (tokens(),))
    assert "a graph with copies of alike ones computed otherwise" in result.captured_parts.notes[0]


def test_notebooks_show_a_result_as_tables() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("<i>", TokenNet())

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.get_submodule("<i>")(x)
            return found

    Odd.__name__ = "<script>"
    result = repl_fx.transform(Odd(), (tokens(),), surrogate="blend", check=False)
    shown = result._repr_html_()
    assert shown.count("&lt;i&gt;.blocks.1") >= 1 and not re.search(r"<(i|script)>", shown)
    (head,) = (line for line in shown.splitlines() if "&lt;script&gt;: " in line)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (result.captured_parts.source, result.module))
    gone = f"{len(result.plan.replacements)} of {len(result.report)} blocks replaced"
    assert f"{gone}, {count(before)} parameters before and {count(after)} after" in head
    assert all(row.block.replace("<i>", "&lt;i&gt;") in shown for row in result.report)


def test_results_at_a_prompt_are_short() -> None:
    result = repl_fx.transform(TokenNet(), (tokens(),), surrogate="blend", check=False)
    head, *table = repr(result).splitlines()
    assert head.startswith("TokenNet: ") and len(table) <= len(result.report) + 5 * len(result.repeats) + 10
    assert all(any(row.block in line and row.status in line for line in table) for row in result.report)
    for shown in (result.captured_parts, result.plan):
        assert repr(shown) == str(shown)
    assert repr(result.found) == repr(result.repeats)
    assert all(len(one) < 100 and "\n" not in one for one in map(repr, result.parts))


@pytest.mark.parametrize("change", ["layer", "tensors", "setting"])
def test_a_model_that_changed_since_its_capture_is_captured_again(change: str) -> None:
    model, x = TokenNet(depth=3), tokens()
    before = repl_fx.capture_parts(model, (x,))
    if change == "layer":
        model.blocks[0] = copy.deepcopy(model.blocks[2])
    elif change == "tensors":
        model.load_state_dict({name: tensor + 1 for name, tensor in model.state_dict().items()}, assign=True)
    else:
        model.blocks[0].norm1.eps = 1.0  # type: ignore[union-attr]
    known = repl_fx.transform(model, (x,), surrogate="identity", captured=before)
    anew = repl_fx.transform(model, (x,), surrogate="identity")
    assert torch.equal(known.model.eval()(x), anew.model.eval()(x))
    assert torch.equal(known.module.eval()(x), anew.module.eval()(x))
