"""The search for parts: which tracer a part takes, and which modules are not tried again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from tests.tracing.parts.nets import Chosen


class EvenOnly(nn.Module):
    """Halves what is even: a trace at an even size takes it for granted that every size is."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x) * (2 if x.shape[-1] % 2 == 0 else 3)  # type: ignore[no-any-return]


def test_a_size_that_code_asks_about_is_checked() -> None:
    model = Chosen(EvenOnly())
    captured = repl_fx.capture_parts(model, (torch.randn(2, 4, 6, 8),))
    (part,) = captured.parts
    assert part.graph_module.meta["capture"].tracer == "torch.export"
    with pytest.raises(repl_fx.BadInput, match=r"shape\[3\] % 2\) == 0 \(at .*as it was captured"):
        captured.module(torch.randn(2, 4, 6, 7))


def test_a_graph_that_does_not_hold_at_other_sizes_takes_those_of_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repl_fx.tracing.parts.search.holds_at_other_sizes", lambda *given: False)
    model = Chosen(nn.Sequential(*(nn.Linear(8, 8) for _ in range(2))))
    captured = repl_fx.capture_parts(model, (torch.randn(2, 4, 6, 8),))
    (part,) = captured.parts
    assert part.graph_module.meta["capture"].tracer == "torch.export with fixed sizes"
    x = torch.randn(3, 4, 6, 8)
    assert torch.equal(captured.module(x), model(x))
    with pytest.raises(repl_fx.BadInput, match="but was captured as"):
        captured.module(torch.randn(2, 4, 7, 8))


@pytest.mark.slow
def test_siblings_that_are_alike_are_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    trace_widened: Callable[..., Any] = repl_fx.tracing.parts.capture_parts.trace_widened  # type: ignore[attr-defined]

    def counted(tracers: Any, model: nn.Module, *rest: Any) -> Any:
        tried.append(type(model).__name__)
        return trace_widened(tracers, model, *rest)

    monkeypatch.setattr("repl_fx.tracing.parts.search.trace_widened", counted)
    model = Chosen(nn.Sequential(*(Chosen(nn.Linear(4, 4)) for _ in range(5))))
    with pytest.raises(repl_fx.CaptureError, match=r"Chosen could not be captured: torch\.export"):
        repl_fx.capture_parts(model, (torch.randn(2, 4),))
    assert tried == ["Sequential"]
    model = Chosen(nn.Sequential(*(Chosen(nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))) for _ in range(5))))
    tried.clear()
    captured = repl_fx.capture_parts(model, (torch.randn(2, 4),))
    assert [part.path for part in captured.parts] == [f"inner.{i}.inner" for i in range(5)]
    assert tried == ["Sequential", "Chosen", *["Sequential"] * 5]
