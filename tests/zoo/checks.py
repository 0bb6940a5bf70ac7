"""What every real model must pass; used by the test files of this folder, one for each family of models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

import repl_fx
from repl_fx.passes.fold_surrogates import is_synthesis
from repl_fx.pipeline import rewrite
from repl_fx.planning.options import Options
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.tracing.parts.capture_parts import CapturedParts
from tests.exporting import Exported


@dataclass(frozen=True)
class Case:
    """A model, its inputs and the repeats it was configured with.

    Attributes:
        build: makes the model, the same each time but for its weights.
        inputs: makes its keyword or positional example inputs, batch 2.
        repeats: copies of each exact repeat that must be found, by name.
        similar: blocks of each similar repeat.
        replaced: how many blocks go when every second one does.
        modes_differ: whether training computes something else than evaluation (dropout, batch norm).
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]
    repeats: Mapping[str, int] = field(default_factory=dict)
    similar: tuple[int, ...] = ()
    replaced: int | None = None
    modes_differ: bool = True

    def __str__(self) -> str:
        return self.name

    def going(self, surrogate: str) -> int:
        """How many blocks go: of exact repeats all but the ends, of similar ones where the surrogate adapts sizes."""
        exact = sum((copies - 1) // 2 for copies in self.repeats.values())
        return exact if surrogate == "blend" or self.replaced is None else self.replaced


def with_surrogates(cases: Sequence[Case], surrogates: Mapping[str, str]) -> list[tuple[Case, str | None]]:
    """The models, some with a surrogate, by name; `benchmarks/zoo.py` takes every model through every stage."""
    assert surrogates.keys() <= {case.name for case in cases}
    return [(case, surrogates.get(case.name)) for case in cases]


def floats(outputs: Any) -> list[Tensor]:
    """The floating tensors of an output."""
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def check_model(case: Case, surrogate: str | None, place: Path) -> None:
    """A model is captured exactly; with a surrogate, the graph goes through every stage."""
    torch.manual_seed(0)
    model = case.build()
    inputs = ExampleInputs(*case.inputs())
    captured = repl_fx.capture_parts(model, inputs.args, inputs.kwargs)
    assert captured.whole
    _check_capture(case, model, captured.parts[0].graph_module, inputs)
    if surrogate is not None:
        _check_surrogate(case, captured, surrogate, inputs, place)


def _check_capture(case: Case, model: nn.Module, gm: fx.GraphModule, inputs: ExampleInputs) -> None:
    """The captured graph computes what the source computes, to the bit, in both modes, gradients included."""
    args, kwargs = inputs.args, inputs.kwargs
    assert list(gm.state_dict()) == list(model.state_dict())
    results = []
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for module in (model, gm):
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                if name in statistics:
                    buffer.copy_(statistics[name])
        module.eval()
        evaluated = floats(module(*args, **kwargs))
        module.train()
        module.zero_grad()
        torch.manual_seed(1)
        trained = floats(module(*args, **kwargs))
        sum(((out - 0.5) ** 2).mean() for out in trained).backward()  # type: ignore[union-attr]
        grads = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
        buffers = {n: b.clone() for n, b in module.named_buffers() if n in statistics}
        results.append((evaluated, trained, grads, buffers))
    (eval_a, train_a, grads_a, buffers_a), (eval_b, train_b, grads_b, buffers_b) = results
    assert len(eval_a) == len(eval_b) > 0
    assert all(torch.equal(a, b) for a, b in zip(eval_a, eval_b, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(train_a, train_b, strict=True))
    assert case.modes_differ == any(not torch.equal(a, b) for a, b in zip(eval_a, train_a, strict=True))
    assert grads_a.keys() == grads_b.keys()
    assert [n for n in grads_a if not torch.equal(grads_a[n], grads_b[n])] == []
    assert [n for n in buffers_a if not torch.equal(buffers_a[n], buffers_b[n])] == []
    repeats = repl_fx.find_repeats(gm)
    assert {repeat.name: len(repeat) for repeat in repeats if not repeat.similar} == dict(case.repeats)
    assert tuple(len(repeat) for repeat in repeats if repeat.similar) == case.similar
    for key in ("auto", "bottleneck"):
        assert len(repl_fx.make_plan(gm, repeats, surrogate=key).replacements) == case.going(key)


def _check_surrogate(case: Case, captured: CapturedParts, surrogate: str, inputs: ExampleInputs, place: Path) -> None:
    """A transformed model trains, reloads, folds, exports and verifies."""
    args, kwargs = inputs.args, inputs.kwargs
    total = sum(p.numel() for p in captured.source.parameters())
    result = rewrite(captured, Options(surrogate=surrogate))
    gm = result.graph_module
    assert len(result.plan.replacements) == case.going(surrogate)
    assert sum(p.numel() for p in gm.parameters()) < total
    assert surrogate == "identity" or any(isinstance(module, repl_fx.Synthesis) for module in gm.modules())
    losses = _train(gm, args, kwargs)
    assert min(losses[1:]) < losses[0], losses
    unused = [n for n, p in gm.named_parameters() if n.startswith("surrogates") and p.grad is None]
    assert unused == []
    gm.eval()
    with torch.no_grad():
        expected = floats(gm(*args, **kwargs))
        repl_fx.save(result, place / "artifact")
        again = repl_fx.load(place / "artifact", case.build())
        assert all(torch.equal(a, b) for a, b in zip(floats(again(*args, **kwargs)), expected, strict=True))
        folded = repl_fx.fold(gm)
        assert not any(is_synthesis(folded, node) for node in folded.graph.nodes)
        assert all(torch.equal(a, b) for a, b in zip(floats(folded(*args, **kwargs)), expected, strict=True))
    check = Exported(gm, place / "model.onnx", args, kwargs).verify()
    assert check, check.summary()
    assert {row.batch for row in check.rows} == {1, 2, 5}


def _train(gm: nn.Module, args: Any, kwargs: Any, steps: int = 4) -> list[float]:
    gm.train()
    optimizer = torch.optim.AdamW(gm.parameters(), 1e-3)
    target: Tensor | None = None
    losses = []
    for step in range(steps):
        # The same dropout each step, so that the loss can be compared.
        torch.manual_seed(2)
        out = next(t for t in floats(gm(*args, **kwargs)) if t.requires_grad)
        if target is None:
            target = torch.randn_like(out)
        loss = nn.functional.mse_loss(out, target)
        losses.append(loss.item())
        if step < steps - 1:
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return losses
