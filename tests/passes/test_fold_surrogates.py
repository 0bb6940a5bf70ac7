from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations, parametrize, prune

import repl_fx
from repl_fx.passes.driver import run_passes
from repl_fx.passes.fold_surrogates import fold_surrogates, is_synthesis
from repl_fx.surrogates import Synthesis
from tests.nets import ConvNet, MlpNet, TokenNet, as_after_training, images, tokens


@pytest.mark.parametrize("surrogate", ["blend", "bottleneck", "slim"])
def test_fold_leaves_no_synthesis_and_changes_no_bit(surrogate: str) -> None:
    x = images()
    gm = repl_fx.transform(ConvNet(depth=3), (x,), surrogate=surrogate).graph_module.eval()
    as_after_training(gm)
    before, names = str(gm.graph), set(gm.state_dict())
    found = [node for node in gm.graph.nodes if is_synthesis(gm, node)]
    run = run_passes(gm, fold_surrogates)
    folded = run.graph_module
    assert found and len(run.results[0].changed) == len(found)
    assert not any(isinstance(m, Synthesis) for m in folded.modules())
    assert torch.equal(folded(x), gm(x))
    # The graph that was given is as it was, and training it further does not reach the folded one.
    assert str(gm.graph) == before and set(gm.state_dict()) == names
    expected = folded(x)
    with torch.no_grad():
        for module in gm.modules():
            if isinstance(module, Synthesis):
                for parameter in module.parameters():
                    parameter.add_(1)
    assert torch.equal(folded(x), expected)
    assert not torch.equal(gm(x), expected)


def test_a_second_fold_and_a_graph_without_surrogates_change_nothing() -> None:
    x = tokens()
    gm = repl_fx.transform(TokenNet(depth=3), (x,), surrogate="blend").graph_module
    once = fold_surrogates(gm).graph_module
    twice = fold_surrogates(once)
    assert not twice.modified and str(twice.graph_module.graph) == str(once.graph)
    captured = repl_fx.capture(TokenNet(depth=3), (x,))
    assert not fold_surrogates(captured).modified


def test_folded_graph_drops_what_only_the_syntheses_needed() -> None:
    x = tokens()
    gm = repl_fx.transform(TokenNet(depth=3), (x,), surrogate="bottleneck").graph_module
    folded = repl_fx.fold(gm)
    constants = {n: p for n, p in folded.named_parameters() if n.startswith("surrogates")}
    assert sorted(tuple(p.shape) for p in constants.values()) == sorted([(4, 16), (16, 4), (4,), (16,)])
    assert not any(p.requires_grad for p in constants.values())


def test_weights_of_a_folded_graph_are_parameters_to_tools_that_fuse_layers() -> None:
    """As a parameter torchao's `prepare_pt2e` puts back the weight of a convolution with the batch norm fused in."""
    x = images()
    folded = repl_fx.fold(repl_fx.transform(ConvNet(depth=3), (x,), surrogate="blend").graph_module.eval())
    exported: Any = torch.export.export(folded, (x,)).module()
    weights = [str(n.args[1].target) for n in exported.graph.nodes if n.target is torch.ops.aten.conv2d.default]
    assert any("folded" in name for name in weights) and {*weights} <= dict(exported.named_parameters()).keys()


def test_a_synthesis_that_reads_an_activation_cannot_be_folded() -> None:
    x = tokens()
    gm = repl_fx.transform(TokenNet(depth=3), (x,), surrogate="blend").graph_module
    synthesis = next(n for n in gm.graph.nodes if is_synthesis(gm, n))
    placeholder = next(n for n in gm.graph.nodes if n.op == "placeholder")
    synthesis.args = (placeholder, *synthesis.args[1:])
    with pytest.raises(repl_fx.NotFoldable, match=f"synthesis {synthesis.name} depends on {placeholder.name}"):
        fold_surrogates(gm)


class Noisy(nn.Module):
    """A weight that is drawn."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + torch.randn_like(weight)


def _with_made_weight(make: Any) -> tuple[nn.Module, fx.GraphModule]:
    """A rewritten model in which a layer makes its weight in each forward, and its graph, in evaluation."""
    model = repl_fx.transform(MlpNet(depth=3), (tokens(),), surrogate="bottleneck").model.eval()
    make(model.get_submodule("blocks.0.fc2"))
    return model, repl_fx.capture(model, (tokens(),)).eval()


MADE = {
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),  # type: ignore[no-untyped-call]
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
}


@pytest.mark.parametrize("made", MADE)
def test_a_weight_that_is_made_of_state_is_folded_with_what_a_surrogate_makes_of_it(made: str) -> None:
    (model, gm), x = _with_made_weight(MADE[made]), tokens()
    folded = run_passes(gm, fold_surrogates).graph_module
    assert not any(is_synthesis(folded, n) or "mode_switch" in str(n.target) for n in folded.graph.nodes)
    assert torch.equal(folded(x), model(x))


def test_a_weight_that_is_drawn_or_depends_on_the_mode_is_no_constant() -> None:
    _, gm = _with_made_weight(lambda layer: parametrize.register_parametrization(layer, "weight", Noisy()))
    with pytest.raises(repl_fx.NotFoldable, match=r"depends on \w+, which is no parameter"):
        fold_surrogates(gm)
    _, gm = _with_made_weight(parametrizations.spectral_norm)
    with pytest.raises(repl_fx.NotFoldable, match=r"depends on \w+, which is no parameter"):
        fold_surrogates(gm.train())


def test_a_weight_of_a_buffer_that_the_forward_writes_is_no_constant() -> None:
    _, gm = _with_made_weight(MADE["pruned"])
    mask = next(n for n in gm.graph.nodes if "mask" in str(n.target))
    with gm.graph.inserting_after(mask):
        gm.graph.call_function(torch.ops.aten.add_.Scalar, (mask, 1.0))
    with pytest.raises(repl_fx.NotFoldable, match=r"depends on \w+, which is no parameter"):
        fold_surrogates(gm)


def test_a_fold_is_a_model_of_its_own() -> None:
    """Training on, freezing or halving one of the two does not reach the other."""
    x = tokens()
    gm = repl_fx.transform(TokenNet(depth=3), (x,), surrogate="bottleneck").graph_module.eval()
    gm.get_submodule("blocks.0.fc2").weight = gm.get_submodule("blocks.2.fc2").weight
    folded = repl_fx.fold(gm)
    expected = folded(x)
    with torch.no_grad():
        for parameter in gm.parameters():
            parameter.data.mul_(1.5)
    assert torch.equal(folded(x), expected) and not torch.equal(gm(x), expected)
    tied = [folded.get_submodule(f"blocks.{i}.fc2").weight for i in (0, 2)]
    assert tied[0] is tied[1]
    folded.half().requires_grad_(False)
    assert {(p.dtype, p.requires_grad) for p in gm.parameters()} == {(torch.float32, True)}


def test_a_fold_made_in_inference_mode_is_used_outside_of_it_too() -> None:
    x = tokens()
    gm = repl_fx.transform(TokenNet(depth=3), (x,), surrogate="bottleneck").graph_module.eval()
    with torch.inference_mode():
        folded = repl_fx.fold(gm)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(folded(x).sum(), x)
    assert not any(tensor.is_inference() for tensor in folded.state_dict().values()) and gradient.any()


@pytest.mark.slow
def test_a_fold_of_recurrent_layers_computes_with_its_own_weights() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.net = nn.LSTM(16, 16, batch_first=True), TokenNet(depth=3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(self.lstm(x)[0])
            return out

    x = tokens()
    gm = repl_fx.transform(Recurrent(), (x,), surrogate="bottleneck").graph_module.eval()
    folded = repl_fx.fold(gm)
    expected = gm(x)
    with torch.no_grad():
        gm.get_parameter("lstm.weight_hh_l0").mul_(3)
    assert torch.equal(folded(x), expected) and not torch.equal(gm(x), expected)
    folded.get_parameter("lstm.weight_hh_l0").data.mul_(3)
    assert torch.equal(folded(x), gm(x))


def test_a_model_in_place_is_not_folded_in_silence() -> None:
    result = repl_fx.transform(TokenNet(depth=3), (tokens(),), surrogate="bottleneck")
    with pytest.raises(
        repl_fx.BadInput, match=r"TokenNet has its surrogates in place; give result.module, or what load"
    ):
        repl_fx.fold(result.model)
