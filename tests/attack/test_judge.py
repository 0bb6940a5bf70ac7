"""The judge sees what it is there to see: each kind of defect, put in on purpose, is judged wrong."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import repl_fx
from repl_fx.surrogates.shared.site import surrogate_path
from tests.attack import judge as judging
from tests.attack.hooks import Counted
from tests.attack.judge import Judge, Verdict
from tests.attack.steps import Inputs


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.fc2(torch.tanh(self.fc1(self.norm(x)))), alpha=0.5)


def make() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks = [Block() for _ in range(4)]
        model = nn.Sequential(nn.Linear(5, 8), *blocks, nn.Linear(8, 3))
    blocks[0].fc1.register_forward_hook(Counted("forward@1.fc1", None, True))
    return model


def inputs(step: int, batch: int | None) -> Inputs:
    return (torch.randn(batch or 3, 5, generator=torch.Generator().manual_seed(step)),), {}


def judged(monkeypatch: pytest.MonkeyPatch, *surrogates: str, kept: bool = False) -> Verdict:
    """The verdict on the network above; without `kept`, what is saved and exported is not judged."""
    monkeypatch.setattr(judging, "SURROGATES", surrogates)
    if not kept:
        monkeypatch.setattr(judging.Judge, "judge_kept", lambda *_: None)
    return Judge(0, make, inputs, []).run()


def outcome(verdict: Verdict, stage: str) -> tuple[str, str]:
    return next((f.outcome, f.detail) for f in verdict.findings if f.stage == stage)


def broken(monkeypatch: pytest.MonkeyPatch, name: str, spoil: Callable[..., Any]) -> None:
    """Have a function of repl-fx give its result to `spoil` on the way out."""
    real = getattr(repl_fx, name)
    monkeypatch.setattr(repl_fx, name, lambda *args, **kwargs: spoil(real(*args, **kwargs), *args))


def test_a_graph_that_is_another_without_gradients_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(captured: Any, *_: Any) -> Any:
        def hook(module: nn.Module, args: Any, result: Tensor) -> Tensor:
            return result if torch.is_grad_enabled() else result * 1.01

        captured.module.register_forward_hook(hook)
        return captured

    broken(monkeypatch, "capture_parts", spoil)
    verdict = judged(monkeypatch)
    assert outcome(verdict, "capture") == ("wrong", "source and graph differ under no_grad")


@pytest.mark.slow
def test_nothing_is_wrong_where_nothing_is(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = judged(monkeypatch, "identity", "blend", "bottleneck", "reuse", kept=True)
    assert verdict.outcome == "right", str(verdict)
    assert outcome(verdict, "reuse")[0] == "refused"
    stages = {finding.stage for finding in verdict.findings if finding.outcome == "right"}
    assert {"capture", "identity", "blend", "bottleneck", "blend/fold", "bottleneck/fold"} <= stages
    for kept in ("/pickle", "/load", "/export"):
        assert any(stage.endswith(kept) for stage in stages)


def _in_other_mode(loaded: Any) -> Any:
    return loaded.eval()


def _of_other_statistics(loaded: Any) -> Any:
    loaded.get_submodule("1.norm").momentum = 0.3
    return loaded


def _with_nodes_that_know_nothing(loaded: Any) -> Any:
    for node in loaded.graph.nodes:
        node.meta.pop("val", None)
    return loaded


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_in_other_mode, "an unpickled network is in another mode"),
        (_of_other_statistics, "the unpickled network differs: .*buffer 1.norm.running_mean differs"),
        (_with_nodes_that_know_nothing, "a plan made of the unpickled capture is another|has no attribute|KeyError"),
    ],
)
def test_a_wrong_pickle_is_seen(monkeypatch: pytest.MonkeyPatch, spoil: Callable[..., Any], words: str) -> None:
    real = pickle.loads
    monkeypatch.setattr(pickle, "loads", lambda data: spoil(real(data)))
    found, detail = outcome(judged(monkeypatch, "identity"), "identity/pickle")
    assert found in ("wrong", "crashed") and re.search(words, detail), detail


class Viewed(nn.Module):
    """Captured in parts for its list; its buffer is a view of a parameter, which torch pickles apart."""

    turned: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.seen = make(), list[int]()
        self.square = nn.Parameter(torch.eye(5))
        self.register_buffer("turned", self.square.detach().t())

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.ndim)
        out: Tensor = self.inner(x @ self.turned + x @ self.square) * len(self.seen)
        return out


def test_views_that_torch_pickles_apart_are_no_fault_of_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "SURROGATES", ("identity",))
    monkeypatch.setattr(judging.Judge, "judge_kept", lambda *_: None)
    verdict = Judge(0, Viewed, inputs, []).run()
    assert outcome(verdict, "identity/pickle") == ("right", ""), str(verdict)


class Normed(Viewed):
    """Captured in parts, and with a parametrized layer, which torch does not pickle."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3, 3, bias=False)
        nn.init.eye_(self.out.weight)
        nn.utils.parametrizations.weight_norm(self.out)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.out(super().forward(x))
        return made


@pytest.mark.parametrize("pickled", [False, True])
def test_what_torch_does_not_pickle_is_no_fault_of_a_result(monkeypatch: pytest.MonkeyPatch, pickled: bool) -> None:
    monkeypatch.setattr(judging, "SURROGATES", ("identity",))
    monkeypatch.setattr(judging.Judge, "judge_kept", lambda *_: None)
    if pickled:
        monkeypatch.setattr(judging, "_is_pickled", lambda source: True)
    verdict = Judge(0, Normed, inputs, []).run()
    assert outcome(verdict, "identity/pickle")[0] == ("crashed" if pickled else "right"), str(verdict)


def _wrong_constant(captured: Any, *_: Any) -> Any:
    node = next(n for n in captured.module.graph.nodes if n.kwargs.get("alpha"))
    node.kwargs = {"alpha": 0.25}
    captured.module.recompile()
    return captured


def _dropped_hook(captured: Any, *_: Any) -> Any:
    for module in captured.module.modules():
        module._forward_hooks.clear()
    return captured


def _other_statistics(captured: Any, *_: Any) -> Any:
    captured.module.get_submodule("1.norm").momentum = 0.3
    return captured


def _moved_source(captured: Any, model: nn.Module, *_: Any) -> Any:
    model[1].norm.num_batches_tracked.add_(1)  # type: ignore[index]
    return captured


def _other_randomness(captured: Any, *_: Any) -> Any:
    captured.module.register_forward_hook(lambda *_: torch.rand(1) and None)
    return captured


def _other_gradient(captured: Any, *_: Any) -> Any:
    captured.module.get_submodule("1.fc2").register_full_backward_hook(lambda m, gi, go: (gi[0] * 2,))
    return captured


def _moved_generator(captured: Any, *_: Any) -> Any:
    torch.rand(1)
    return captured


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_wrong_constant, "output 0 differs"),
        (_dropped_hook, "hooks ran"),
        (_other_statistics, "buffer 1.norm.running_mean differs"),
        (_moved_source, "changed the source"),
        (_other_randomness, "another amount of randomness"),
        (_other_gradient, "gradient 0.weight differs"),
        (_moved_generator, "moved the random generator"),
    ],
)
def test_a_wrong_capture_is_seen(monkeypatch: pytest.MonkeyPatch, spoil: Callable[..., Any], words: str) -> None:
    broken(monkeypatch, "capture_parts", spoil)
    found, detail = outcome(judged(monkeypatch), "capture")
    assert found == "wrong" and words in detail, detail


class TwoLines(repl_fx.BadInput):
    def __str__(self) -> str:
        return "two\nlines"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (repl_fx.CaptureError("Net", ["no way"]), "refused"),
        (TwoLines(), "wrong"),
        (repl_fx.BadInput("Net has a compiled module"), "refused"),
        (repl_fx.BadInput("Net: RuntimeError: no with the example inputs (0: float32[2, 5])"), "wrong"),
        (ValueError("a defect"), "crashed"),
        (UserWarning("a warning"), "crashed"),
    ],
)
def test_only_an_honest_line_is_a_refusal(monkeypatch: pytest.MonkeyPatch, error: Exception, expected: str) -> None:
    def refuse(*_: Any) -> None:
        raise error

    broken(monkeypatch, "capture_parts", refuse)
    verdict = judged(monkeypatch)
    assert outcome(verdict, "capture")[0] == verdict.outcome == expected


def spoiled_rewrite(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Any], None]) -> None:
    real = judging.rewrite  # type: ignore[attr-defined]

    def rewrite(*args: Any) -> Any:
        result = real(*args)
        spoil(result)
        return result

    monkeypatch.setattr(judging, "rewrite", rewrite)


def _idle(result: Any, factor: float) -> None:
    """A parameter for each surrogate, multiplied by something and added to the result."""
    held = []
    for replacement in result.plan.replacements:
        path = surrogate_path(replacement.block).split(".")
        if not hasattr(result.module, path[0]):
            result.module.add_module(path[0], nn.Module())
        child = nn.Module()
        child.weight = nn.Parameter(torch.ones(1))
        result.module.get_submodule(path[0]).add_module(path[1], child)
        held.append(child)
    result.module.register_forward_hook(lambda m, args, out: out + factor * sum(c.weight for c in held))  # type: ignore[misc]


def test_a_surrogate_that_does_nothing_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled_rewrite(monkeypatch, lambda result: _idle(result, 0.0))
    found, detail = outcome(judged(monkeypatch, "identity"), "identity")
    assert found == "wrong" and "no gradient reaches the surrogate" in detail, detail


def test_a_surrogate_that_a_few_inputs_do_not_reach_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    def quiet_at_first(result: Any) -> None:
        factors = iter([0.0] * 3)
        _idle(result, 1.0)
        surrogates = [m for m in result.module.get_submodule("surrogates").children() if hasattr(m, "weight")]
        result.module.register_forward_hook(
            lambda m, args, out: out + (next(factors, 1.0) - 1) * sum(child.weight for child in surrogates)
        )

    spoiled_rewrite(monkeypatch, quiet_at_first)
    monkeypatch.setattr(judging.Judge, "check_pruned", lambda *_: None)
    monkeypatch.setattr(judging.Judge, "check_fold", lambda *_: None)
    assert outcome(judged(monkeypatch, "identity"), "identity") == ("right", "")


def test_a_surrogate_whose_gradient_is_no_effect_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ghost(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 0

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            return grads[0].sum()[None]

    def ghost(result: Any) -> None:
        _idle(result, 0.0)
        children = [m for m in result.module.get_submodule("surrogates").children() if hasattr(m, "weight")]
        result.module.register_forward_hook(
            lambda m, args, out: out + sum(Ghost.apply(child.weight) for child in children)
        )

    spoiled_rewrite(monkeypatch, ghost)
    found, detail = outcome(judged(monkeypatch, "identity"), "identity")
    assert found == "wrong" and "does nothing" in detail, detail


def test_a_rewrite_that_touches_what_stays_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def swap(result: Any) -> None:
        layer = result.module.get_submodule("1.fc1")
        layer.weight = nn.Parameter(layer.weight.detach() * 1.01)

    spoiled_rewrite(monkeypatch, swap)
    found, detail = outcome(judged(monkeypatch, "blend"), "blend")
    assert found == "wrong" and "1.fc1.weight has other values" in detail, detail


def test_a_rewrite_that_fixes_a_size_of_the_capture_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Any = vars(judging)["rewrite"]

    def rewrite(captured: Any, *args: Any) -> Any:
        (part,) = captured.parts
        int(next(n for n in part.graph_module.graph.nodes if n.op == "placeholder").meta["val"].shape[0])
        return real(captured, *args)

    monkeypatch.setattr(judging, "rewrite", rewrite)
    words = "the rewrite fixed a size of the captured graph"
    assert outcome(judged(monkeypatch, "identity"), "identity") == ("wrong", words)


def test_an_identity_that_is_no_pruning_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled_rewrite(
        monkeypatch,
        lambda result: setattr(result.module, "0", nn.Sequential(result.module.get_submodule("0"), nn.ReLU())),
    )
    monkeypatch.setattr(judging.Judge, "check_state", lambda *_: None)
    monkeypatch.setattr(judging, "prune", _without_the_second)
    found, detail = outcome(judged(monkeypatch, "identity"), "identity/pruned")
    assert found == "wrong" and "not the pruned network" in detail, detail


def _without_the_second(model: nn.Module, paths: list[str]) -> nn.Module:
    for path in paths:
        setattr(model, path, nn.Identity())
    return model


def test_an_identity_that_is_pruning_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "prune", _without_the_second)
    assert outcome(judged(monkeypatch, "identity"), "identity/pruned")[0] == "right"


def test_a_network_that_cannot_train_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled_rewrite(
        monkeypatch, lambda result: result.module.register_forward_hook(lambda m, args, out: out * float("nan"))
    )
    found, detail = outcome(judged(monkeypatch, "blend"), "blend")
    assert found == "wrong" and "not finite" in detail, detail


def test_a_wrong_fold_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def nudge(folded: nn.Module, *_: Any) -> nn.Module:
        folded.register_forward_hook(lambda m, args, out: out + 1e-7)
        return folded

    broken(monkeypatch, "fold", nudge)
    found, detail = outcome(judged(monkeypatch, "blend"), "blend/fold")
    assert found == "wrong" and "folded network differs" in detail, detail


def test_a_fold_that_folds_nothing_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, "fold", lambda folded, module: module)
    found, detail = outcome(judged(monkeypatch, "blend"), "blend/fold")
    assert found == "wrong" and "not folded" in detail, detail


def test_a_load_that_loses_weights_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(loaded: nn.Module, *_: Any) -> nn.Module:
        with torch.no_grad():
            loaded.get_submodule("0").weight.zero_()  # type: ignore[operator]
        return loaded

    broken(monkeypatch, "load", forget)
    monkeypatch.setattr(judging.Judge, "check_export", lambda *_: None)
    found, detail = outcome(judged(monkeypatch, "blend", kept=True), "blend/load")
    assert found == "wrong" and "other values" in detail, detail


@pytest.mark.slow
def test_a_wrong_file_is_seen_though_verification_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    def corrupt(path: Path, *_: Any) -> Path:
        model = onnx.load(path)
        weight = next(t for t in model.graph.initializer if numpy_helper.to_array(t).ndim == 2)
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.02, weight.name))
        onnx.save(model, path)
        return path

    broken(monkeypatch, "export_onnx", corrupt)
    monkeypatch.setattr(repl_fx, "verify_onnx", lambda *args: True)
    found, detail = outcome(judged(monkeypatch, "blend", kept=True), "blend/export")
    assert found == "wrong" and "of its scale" in detail, detail


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failure", "expected"),
    [("all of it", "wrong"), ("ONNX Runtime fails: GRU does not support double yet", "refused")],
)
def test_a_clean_file_that_fails_verification_is_seen_but_for_what_the_runtime_lacks(
    monkeypatch: pytest.MonkeyPatch, failure: str, expected: str
) -> None:
    class Failed:
        rows = ()
        failures = (failure,)

        def __bool__(self) -> bool:
            return False

    monkeypatch.setattr(repl_fx, "verify_onnx", lambda *args: Failed())
    found, detail = outcome(judged(monkeypatch, "blend", kept=True), "blend/export")
    assert found == expected and failure in detail, detail
