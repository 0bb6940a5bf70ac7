"""The second tracer takes what torch.export refuses, in the dialect of the first, or names what it cannot keep."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repl_fx.errors import BadInput, CaptureError
from repl_fx.graph.runtime import check_constant, check_items, check_shape
from repl_fx.tracing.capture import capture, check_capture
from tests.tracing.nets import Linear, info_of


def refuse_export(x: Tensor) -> None:
    """Tell the fake tensors of torch.export from real ones and from the proxies of fx."""
    if isinstance(x, Tensor) and type(x) is not Tensor:
        raise RuntimeError("this model must not be exported")


class Refused(Linear):
    """What torch.export alone cannot take."""

    def forward(self, x: Tensor, flip: bool = False) -> Tensor:
        refuse_export(x)
        y = F.dropout(self.fc(x), 0.5, self.training).relu()
        return -y if flip else y


def test_second_rung_takes_what_torch_export_refuses() -> None:
    model, x = Refused(), torch.randn(3, 8)
    gm = capture(model, (x,), {"flip": True})
    info = info_of(gm)
    assert info.tracer == "fx.symbolic_trace"
    assert len(info.obstacles) == 1
    assert info.obstacles[0].startswith("torch.export: RuntimeError: this model must not be exported (at ")
    assert check_capture(model, gm, (x,), {"flip": True})
    assert info.literals == 1
    assert list(gm.state_dict()) == list(model.state_dict())
    x = torch.randn(5, 8)
    assert torch.equal(gm.eval()(x, flip=True), model.eval()(x, True))
    with pytest.raises(BadInput, match="argument 'flip' was captured as True, not False"):
        gm(x, False)


@pytest.mark.parametrize("way", ["class", "table"])
def test_ways_that_proxies_go_otherwise_than_tensors_and_numbers_are_refused(way: str) -> None:
    class Asks(Linear):
        def forward(self, x: Tensor) -> Tensor:
            refuse_export(x)
            known = isinstance(x, Tensor) if way == "class" else {8: True}.get(x.shape[1])
            return self.fc(x) * (2 if known else 3)  # type: ignore[no-any-return]

    with pytest.raises(CaptureError, match="and it computes otherwise then"):
        capture(Asks(), (torch.randn(3, 8),))


class RefusedRegion(Linear):
    def __init__(self, region: Callable[[], Any]) -> None:
        super().__init__()
        self.region = region

    def forward(self, x: Tensor) -> Tensor:
        refuse_export(x)
        with self.region():
            return self.fc(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("region", "word"), [(torch.no_grad, "no_grad"), (lambda: torch.autocast("cpu", torch.bfloat16), "autocast")]
)
def test_second_rung_refuses_regions_it_would_leave_out(region: Callable[[], Any], word: str) -> None:
    with pytest.raises(CaptureError, match=f"fx cannot trace a torch.{word} region"):
        capture(RefusedRegion(region), (torch.randn(3, 8),))


class Noisy(Linear):
    def forward(self, x: Tensor) -> Tensor:
        refuse_export(x)
        return self.fc(x) + torch.rand(8)  # type: ignore[no-any-return]


def test_an_obstacle_names_the_line_of_the_model_and_not_of_repl_fx() -> None:
    with pytest.raises(CaptureError, match=r"fx would bake in what aten\.rand\.default draws") as caught:
        capture(Noisy(), (torch.randn(3, 8),))
    assert all(f"(at {__file__}, line " in obstacle for obstacle in caught.value.obstacles)


class Triple(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * 3


triple: Any = Triple.apply


@pytest.mark.parametrize("apply", [lambda x: Triple.apply(x), triple], ids=["asked for", "taken before"])
def test_second_rung_keeps_own_gradients(apply: Callable[[Tensor], Any]) -> None:
    class Model(Linear):
        def forward(self, x: Tensor) -> Any:
            refuse_export(x)
            return apply(self.fc(x))

    model = Model()
    gm = capture(model, (torch.randn(3, 8),), copy=True)
    gm(torch.ones(1, 8)).sum().backward()
    assert info_of(gm).tracer == "fx.symbolic_trace"
    assert torch.equal(gm.get_parameter("fc.weight").grad, torch.full((8, 8), 3.0))  # type: ignore[arg-type]


class Dialects(nn.Module):
    """Constants, an optional argument, items written in place, and a nested result: each spelt in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.gate = nn.Linear(8, 8), nn.Parameter(torch.ones(8))
        self.steps = torch.arange(8.0)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, axes: tuple[int, ...] = (0, 1)) -> Any:
        refuse_export(x)
        y = torch.relu(self.fc(x)) @ x.T @ x + torch.arange(8.0) * self.steps * self.gate
        y = y if mask is None else y * mask
        return {"out": [y.view(x.shape[0], -1), F.gelu(y)], "summed": y.sum(axes[1])}


@pytest.mark.parametrize("kwargs", [{}, {"mask": torch.arange(8.0)}, {"axes": (1, 0)}], ids=["plain", "mask", "axes"])
def test_second_rung_speaks_the_dialect_of_the_first(kwargs: dict[str, Any]) -> None:
    model, args = Dialects(), (torch.randn(3, 8),)
    gm = capture(model, args, kwargs)
    assert info_of(gm).tracer == "fx.symbolic_trace" and info_of(gm).dynamic["x"] == (0,)
    assert check_capture(model, gm, args, kwargs)
    assert not any(node.op == "call_method" for node in gm.graph.nodes)
    called = {node.target for node in gm.graph.nodes if node.op == "call_function"}
    operators = {target for target in called if isinstance(target, torch._ops.OpOverload)}
    assert called - operators <= {operator.getitem, check_shape, check_constant, check_items}
    made, expected = gm(torch.ones(5, 8), **kwargs), model(torch.ones(5, 8), **kwargs)
    assert type(made) is dict and type(made["out"]) is list
    assert torch.equal(made["out"][1], expected["out"][1])


class Passes(Linear):
    def forward(self, x: Tensor, **others: Any) -> Tensor:
        refuse_export(x)
        return self.fc(x) + others["y"]  # type: ignore[no-any-return]


def test_second_rung_refuses_arguments_without_a_name() -> None:
    with pytest.raises(CaptureError, match=r"fx cannot tell what the forward takes by \*\*others"):
        capture(Passes(), (torch.randn(3, 8),), {"y": torch.randn(3, 8)})
