"""A net that shares the trace of another is captured and rewritten as it would be alone."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from tests import captures
from tests.nets import ConvNet, Counts, MlpNet, images, tokens

capturing = importlib.import_module("repl_fx.tracing.capture")


@pytest.mark.parametrize(("build", "x"), [(lambda: MlpNet(depth=3), tokens()), (lambda: ConvNet(depth=3), images())])
def test_shared_traces_give_what_transform_gives(build: Callable[[], nn.Module], x: Tensor) -> None:
    repl_fx.capture(build(), (x,))
    model = build()
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    shared = repl_fx.transform(model, (x,), surrogate="blend")
    with captures.traced_alone():
        alone, traced = repl_fx.transform(model, (x,), surrogate="blend"), repl_fx.capture(model, (x,))
    assert shared.plan == alone.plan and shared.report == alone.report
    assert shared.structure == alone.structure and shared.made == alone.made and shared.code == alone.code
    theirs = dict(alone.graph_module.named_parameters())
    for name, parameter in shared.graph_module.named_parameters():
        assert parameter is theirs[name] or (name.startswith("surrogates.") and torch.equal(parameter, theirs[name]))
    assert str(repl_fx.capture(model, (x,)).graph) == str(traced.graph)
    assert repl_fx.check_capture(model, repl_fx.capture(model, (x,)), (x,)).differences == ()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())


def test_what_a_test_does_to_its_graph_is_its_own() -> None:
    x = images()
    graph = repl_fx.capture(ConvNet(depth=3), (x,))
    written = graph.code
    graph.graph.eliminate_dead_code()
    graph.get_submodule("blocks.1").bn1 = nn.Identity()
    graph.add_module("more", nn.Linear(2, 2))
    again = repl_fx.capture(ConvNet(depth=3), (x,))
    assert again.code == written and isinstance(again.get_submodule("blocks.1.bn1"), nn.BatchNorm2d)
    assert not hasattr(again, "more")


def test_what_is_traced_after_a_patch_is_for_the_test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    trace, calls, known = capturing._trace_by, list[str](), dict(captures._graphs)

    def counted(tracer: Any, *given: Any, **named: Any) -> Any:
        calls.append(tracer.name)
        return trace(tracer, *given, **named)

    monkeypatch.setattr(capturing, "_trace_by", counted)
    graphs = [repl_fx.capture(nn.Sequential(nn.Linear(3, 5), nn.Tanh()), (torch.zeros(2, 3),)) for _ in range(2)]
    assert len(calls) == 1 and captures._graphs == known and len({id(gm) for gm in graphs}) == 2


class _Scaled(nn.Module):
    def __init__(self, factor: object) -> None:
        super().__init__()
        self.factor, self.linear = factor, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.factor  # type: ignore[no-any-return]


class _Number:
    value = 2.0

    def __rmul__(self, other: Tensor) -> Tensor:
        return other * self.value


def test_nets_that_are_built_in_another_way_are_traced_anew() -> None:
    x = torch.randn(2, 4)
    tied = nn.Sequential(_Scaled(2.0), _Scaled(2.0))
    tied[1] = tied[0]
    hooked = _Scaled(2.0)
    hooked.register_forward_hook(lambda module, args, out: out + 1)
    object_inside = _Scaled(_Number())
    object_inside.factor.value = 5.0  # type: ignore[attr-defined]
    wide, frozen = _Scaled(2.0), _Scaled(2.0)
    wide.double()
    frozen.linear.requires_grad_(False)
    for model in (_Scaled(2.0), _Scaled(3.0), _Scaled(_Number()), object_inside, tied, hooked, wide, frozen):
        given = x.to(next(model.parameters()).dtype)
        assert torch.equal(repl_fx.capture(model, (given,))(given), model(given))
    model = nn.Sequential(_Scaled(2.0), _Scaled(2.0))
    assert torch.equal(repl_fx.capture(model, (x,))(x), model(x))
    assert len(list(repl_fx.capture(tied, (x,)).parameters())) == 2
    assert not any(p.requires_grad for p in repl_fx.capture(frozen, (x,)).parameters())
    assert not repl_fx.capture(_Scaled(2.0).eval(), (x,)).training


@pytest.mark.slow
def test_what_is_no_single_graph_is_captured_in_parts() -> None:
    for _ in range(2):
        assert [part.path for part in repl_fx.capture_parts(Counts(ConvNet(depth=3)), (images(),)).parts] == ["body"]
