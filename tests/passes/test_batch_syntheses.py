"""All syntheses of a graph in one call."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import repl_fx
from repl_fx.passes.batch_syntheses import batch_syntheses
from repl_fx.passes.driver import run_passes
from repl_fx.passes.fold_surrogates import is_synthesis
from repl_fx.passes.replace_blocks import replace_blocks
from repl_fx.surrogates.shared.synthesis import SynthesisBatch
from tests.nets import ConvNet, TokenNet, images, tokens


def _parts(surrogate: str) -> tuple[fx.GraphModule, Tensor]:
    """A graph whose syntheses are still apart, with gains as after some training."""
    torch.manual_seed(0)
    model, x = (ConvNet(depth=5), images()) if surrogate in ("bottleneck", "coarse") else (TokenNet(depth=5), tokens())
    gm = repl_fx.capture(model, (x,))
    repeats = repl_fx.find_repeats(gm)
    plan = repl_fx.make_plan(gm, repeats, surrogate=surrogate)
    rewritten = run_passes(gm, partial(replace_blocks, repeats=repeats, plan=plan)).graph_module
    for name, parameter in rewritten.named_parameters():
        if name.startswith("surrogates"):
            nn.init.normal_(parameter, std=0.3)
    return rewritten, x


def _results(gm: fx.GraphModule, x: Tensor) -> dict[str, Tensor]:
    """Output and gradients, by name."""
    gm = copy.deepcopy(gm).double().train()
    made = gm(x.double())
    torch.autograd.backward(made.square().sum())
    return {"output": made, **{n: p.grad for n, p in gm.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize("surrogate", ["reuse", "bottleneck", "blend", "coarse"])
def test_outputs_gradients_and_names_stay(surrogate: str) -> None:
    gm, x = _parts(surrogate)
    apart = [node for node in gm.graph.nodes if is_synthesis(gm, node)]
    run = run_passes(gm, batch_syntheses)
    joined = run.graph_module
    assert run.results[0].changed == tuple(node.name for node in apart)
    assert len(apart) == 2
    together = [node for node in joined.graph.nodes if is_synthesis(joined, node)]
    assert [str(node.target) for node in together] == ["surrogates.together"]
    assert list(joined.state_dict()) == list(gm.state_dict())
    before, after = _results(gm, x), _results(joined, x)
    assert before.keys() == after.keys()
    for name, wanted in before.items():
        torch.testing.assert_close(after[name], wanted, msg=name)


def test_one_synthesis_stays_alone() -> None:
    x = tokens()
    gm = repl_fx.transform(TokenNet(depth=3), (x,), surrogate="reuse").graph_module
    assert not batch_syntheses(gm).modified
    assert not any(isinstance(module, SynthesisBatch) for module in gm.modules())


@pytest.mark.slow
def test_a_transformed_model_copies_saves_folds_and_shares(tmp_path: Any) -> None:
    x = tokens(4)
    result = repl_fx.transform(TokenNet(), (x,), surrogate="reuse")
    gm = result.graph_module
    assert sum(isinstance(module, SynthesisBatch) for module in gm.modules()) == 1
    for name, parameter in gm.named_parameters():
        if name.startswith("surrogates"):
            nn.init.normal_(parameter)
    gm.eval()
    with torch.no_grad():
        wanted = gm(x)
        repl_fx.save(result, tmp_path / "artifact")
        for other in (copy.deepcopy(gm), repl_fx.load(tmp_path / "artifact", TokenNet())):
            torch.testing.assert_close(other.eval()(x), wanted, rtol=0, atol=0)
        folded = repl_fx.fold(gm)
        torch.testing.assert_close(folded(x), wanted, rtol=0, atol=0)
        made = {n.partition(".folded")[0]: p.requires_grad for n, p in folded.named_parameters() if "surrogates" in n}
        assert made == {"surrogates.blocks_1": False, "surrogates.blocks_3": False}
        # A write that leaves no trace.
        gm.get_parameter("surrogates.blocks_1.branch_0.gain").data.add_(1)
        assert not torch.equal(gm(x), wanted)
    gm.train()
    with repl_fx.shared_synthesis(gm):
        for part in x.split(2):  # type: ignore[no-untyped-call]
            torch.autograd.backward(gm(part).square().sum())
    shared = {n: p.grad.clone() for n, p in gm.named_parameters() if p.grad is not None}
    gm.zero_grad()
    torch.autograd.backward(gm(x).square().sum())
    for name, parameter in gm.named_parameters():
        torch.testing.assert_close(shared[name], parameter.grad, msg=name)


@pytest.mark.slow
def test_compiled_it_is_the_same() -> None:
    gm, x = _parts("reuse")
    compiled = torch.compile(run_passes(gm, batch_syntheses).graph_module, backend="aot_eager")
    torch.testing.assert_close(compiled(x), gm(x))
