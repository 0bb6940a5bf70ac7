"""The variants of a model, and which of its modules are blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.benchmarking.model_variants import Variant, block_modules, checkpoint_, variants_of
from repl_fx.benchmarking.training import kept_bytes
from repl_fx.passes.fold_surrogates import is_synthesis
from tests.nets import ConvNet, MlpBlock, RawNet, TokenNet, as_after_training, images, tokens

X = tokens()


def _made(result: repl_fx.TransformResult) -> dict[str, Variant]:
    return {name: make() for name, make in variants_of(result, result.model).items()}


@pytest.mark.slow
def test_the_variants_of_a_model() -> None:
    source = TokenNet(depth=5)
    result = repl_fx.transform(source, (X,), surrogate="reuse")
    as_after_training(result.module)
    made = _made(result)
    assert list(made) == ["original", "rewritten", "unfolded", "depth-pruned", "checkpointed"]
    assert [variant.form for variant in made.values()] == ["source", *["in place"] * 3, "source"]
    assert made["original"].module is source and made["rewritten"].module is result.model
    out = {name: variant.module.eval()(X) for name, variant in made.items()}
    assert torch.equal(out["original"], out["checkpointed"])
    for name in ("rewritten", "depth-pruned"):
        assert not torch.allclose(out[name], out["original"])
        inference, graph = made[name].inference, made[name].graph
        assert inference is not None and graph is not None
        torch.testing.assert_close(inference.eval()(X), out[name])
        torch.testing.assert_close(graph.eval()(X), out[name])
        folded: Any = inference
        assert not any(is_synthesis(folded, node) for node in folded.graph.nodes)
    assert made["unfolded"].inference is made["rewritten"].module and made["unfolded"].graph is None
    # The plan is the same, and nothing stands in for the blocks.
    pruned = repl_fx.transform(source, (X,), surrogate="identity").module.eval()
    assert torch.equal(out["depth-pruned"], pruned(X))
    # Who checkpoints keeps less, and the original has no checkpoints.
    kept = {n: kept_bytes(v.module.train(), lambda m: m(X).square().mean()) for n, v in made.items()}
    assert kept["checkpointed"] < 0.7 * kept["original"] and made["checkpointed"].inference is None


def test_a_model_without_places_is_measured_as_a_graph() -> None:
    result = repl_fx.transform(RawNet(), (torch.randn(4, 8),), surrogate="blend")
    makers = variants_of(result, result.model)
    assert [makers[name]().form for name in ("original", "rewritten", "depth-pruned")] == ["source", "graph", "graph"]
    with pytest.raises(repl_fx.BadInput, match="none of its blocks is one module"):
        makers["checkpointed"]()


def test_blocks_are_modules_of_the_repeats_and_those_beside_them_of_their_class() -> None:
    stack = nn.Sequential(nn.Linear(16, 16), *(MlpBlock(16) for _ in range(3)), nn.Linear(16, 4))
    repeats = repl_fx.find_repeats(repl_fx.capture(stack, (torch.randn(2, 16),)))
    assert block_modules(stack, repeats) == ["1", "2", "3"]
    # One block fewer in the repeat than the model has.
    short = [type(repeat)(**{**vars(repeat), "blocks": repeat.blocks[1:]}) for repeat in repeats]
    assert block_modules(stack, short) == ["1", "2", "3"]
    assert block_modules(stack, []) == []
    # Nobody calls a list, around which a checkpoint would do nothing.
    stack.blocks, (repeat,) = nn.ModuleList(nn.ModuleList([MlpBlock(16)]) for _ in range(3)), short
    blocks = tuple(replace(block, module_path=f"blocks.{i}") for i, block in enumerate(repeat.blocks))
    assert block_modules(stack, [replace(repeat, blocks=blocks)]) == []
    net = ConvNet()
    found = block_modules(net, repl_fx.find_repeats(repl_fx.capture(net, (images(),))))
    assert found and all(path.startswith("blocks.") and path.count(".") == 1 for path in found)


def test_checkpoints_change_no_gradient() -> None:
    def step(model: nn.Module) -> list[Tensor | None]:
        torch.manual_seed(1)
        model.train()(X).square().mean().backward()
        return [p.grad for p in model.parameters()]

    plain, again = TokenNet(depth=3, dropout=0.1), TokenNet(depth=3, dropout=0.1)
    again.load_state_dict(plain.state_dict())
    checkpoint_(again, ["blocks.0", "blocks.2"])
    for a, b in zip(step(plain), step(again), strict=True):
        assert a is not None and b is not None and torch.equal(a, b)
