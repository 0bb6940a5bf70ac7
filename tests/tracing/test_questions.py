"""Questions of a model: a size of 1 that it treats otherwise is refused, and an export is kept from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from repl_fx.errors import BadInput, CaptureError
from repl_fx.tracing.capture import capture
from repl_fx.tracing.questions import computes_alike


class Asks(nn.Module):
    def __init__(self, question: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.fc, self.question = nn.Linear(8, 8), question

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * 3 if self.question(x) else self.fc(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "question",
    [
        lambda x: x.shape[0] == 1,
        lambda x: x.size(0) > 1,
        lambda x: x.size(0) < 2,
        lambda x: x.shape[0] != 1,
        lambda x: x.shape[0] // (x.shape[0] - 1) > 0,
    ],
    ids=["is one", "more than one", "less than two", "is not one", "divides by zero at one"],
)
def test_a_question_that_one_answers_otherwise(question: Callable[[Tensor], bool]) -> None:
    model = Asks(question)
    gm = capture(model, (torch.randn(2, 8),))
    for batch in (2, 5):
        x = torch.randn(batch, 8)
        assert torch.equal(gm(x), model(x))
    with pytest.raises(BadInput, match=r"the model goes another way with them than where .*x\.shape\[0\]"):
        gm(torch.randn(1, 8))


def test_a_question_that_one_answers_alike() -> None:
    model = Asks(lambda x: x.shape[0] > 0)
    gm = capture(model, (torch.randn(2, 8),))
    x = torch.randn(1, 8)
    assert torch.equal(gm(x), model(x))


class AsksAlike(nn.Module):
    """The answer has no part in the value, as with the causal mask of one token."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
        summed = x.cumsum(1) if x.shape[1] > 1 else x
        return self.fc(summed) * scale  # type: ignore[no-any-return]


def test_a_size_of_one_that_makes_no_difference_is_taken() -> None:
    model = AsksAlike()
    gm = capture(model, (torch.randn(2, 4, 8),), {"scale": torch.randn(4, 1)})
    for length in (1, 3):
        x, scale = torch.randn(2, length, 8), torch.randn(length, 1)
        assert torch.equal(gm(x, scale=scale), model(x, scale=scale))


def test_each_size_is_asked_about_by_itself() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            first = x.cumsum(0) if x.shape[0] > 1 else x
            second = -y if y.shape[0] > 1 else y
            return torch.cat([first, second])

    gm = capture(Both(), (torch.randn(3, 8), torch.randn(4, 8)))
    assert gm(torch.randn(1, 8), torch.randn(5, 8)).shape == (6, 8)
    with pytest.raises(BadInput, match=r"where y\.shape\[0\] > 1"):
        gm(torch.randn(3, 8), torch.randn(1, 8))


class AsksForExport(nn.Module):
    """Computes otherwise when it is exported; by its length, it may do so when it is not."""

    def __init__(self, longest: int | None = None) -> None:
        super().__init__()
        self.longest = longest
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        if not torch.compiler.is_exporting() and (self.longest is None or x.shape[1] < self.longest):
            return x * 2
        return x * 2 + torch.zeros_like(x)


def test_the_graph_is_of_the_way_that_the_model_runs() -> None:
    gm = capture(AsksForExport(), (torch.randn(2, 3, 4),))
    assert not any("zeros_like" in node.name for node in gm.graph.nodes)


def test_a_way_for_short_inputs_alone_is_not_taken() -> None:
    gm = capture(AsksForExport(longest=8), (torch.randn(2, 3, 4),))
    assert any("zeros_like" in node.name for node in gm.graph.nodes)
    assert gm.meta["capture"].dynamic == {"x": (0, 1)}


class ComputesOtherwiseForExport(nn.Module):
    """Computes otherwise for an export, and goes a way for short inputs alone where it is none."""

    def __init__(self, gain: float, longest: int = 8, *, traced: bool = True) -> None:
        super().__init__()
        self.gain, self.longest, self.traced = gain, longest, traced

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return x * self.gain
        if not self.traced:
            return x * float(x.detach().numpy().max() < 1e9) + x
        return x * 2 if x.shape[1] < self.longest else x.cumsum(1)


@pytest.mark.parametrize("gain", [2 + 1e-6, 3.0], ids=["rounded", "other"])
def test_a_way_for_short_inputs_is_taken_where_the_one_for_exports_computes_otherwise(gain: float) -> None:
    model, x = ComputesOtherwiseForExport(gain), torch.randn(2, 3, 4)
    gm = capture(model, (x,))
    assert torch.equal(gm(x), model(x))
    longer = torch.randn(2, 9, 4)
    with pytest.raises(BadInput, match="the model goes another way"):
        gm(longer)


def test_a_way_for_exports_that_computes_otherwise_is_refused_where_a_run_cannot_be_traced() -> None:
    x = torch.randn(2, 3, 4)
    with pytest.raises(CaptureError, match=rf"asks torch\.compiler\.is_exporting\(\), .* \(at {__file__}, line \d+\)"):
        capture(ComputesOtherwiseForExport(3.0, traced=False), (x,))
    model = ComputesOtherwiseForExport(2.0, traced=False)
    assert torch.equal(capture(model, (x,))(x), model(x))


def test_torch_answers_as_before_afterwards() -> None:
    own = torch.compiler.is_exporting
    capture(AsksForExport(), (torch.randn(2, 3, 4),))
    assert torch.compiler.is_exporting is own


@contextmanager
def default_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


class Times(nn.Module):
    """Doubles its input where a question has the answer of the trace."""

    def __init__(self, question: Callable[[], bool], otherwise: float = 3.0) -> None:
        super().__init__()
        self.question, self.otherwise = question, otherwise

    def forward(self, x: Tensor) -> Tensor:
        return x * (2.0 if self.question() else self.otherwise)


@pytest.mark.parametrize(
    ("question", "within"),
    [
        (lambda: torch.is_grad_enabled(), torch.no_grad),
        (lambda: not torch.is_inference_mode_enabled(), torch.inference_mode),
        (lambda: not torch.are_deterministic_algorithms_enabled(), deterministic),
        (lambda: torch.get_default_dtype() is torch.float32, default_float64),
        (lambda: not torch.is_autocast_enabled("cpu"), partial(torch.autocast, "cpu", torch.bfloat16)),
        (
            lambda: torch.get_autocast_dtype("cpu") is torch.bfloat16,
            partial(torch.autocast, "cpu", torch.float16),
        ),
        (lambda: torch.get_float32_matmul_precision() == "highest", None),
        (lambda: torch.get_num_threads() > 0, None),
    ],
    ids=["gradients", "inference", "deterministic", "dtype", "autocast", "autocast-dtype", "precision", "threads"],
)
def test_a_setting_that_the_forward_asks_for(
    question: Callable[[], bool], within: Callable[[], AbstractContextManager[object]] | None
) -> None:
    x = torch.randn(3, 4)
    gm = capture(Times(question), (x,))
    assert torch.equal(gm(x), 2 * x)
    if within is not None:
        with within(), pytest.raises(BadInput, match=rf"the model asks for torch\.\w+\(.*\) at {__file__}, line \d+, "):
            gm(x)
        assert torch.equal(gm(x), 2 * x)
        # A question that makes no difference refuses nothing.
        gm = capture(Times(question, otherwise=2.0), (x,))
        with within():
            assert torch.equal(gm(x), 2 * x)


def test_the_region_of_a_model_answers_for_itself() -> None:
    class Region(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return x * (3.0 if torch.is_grad_enabled() else 2.0)

    x = torch.randn(3, 4)
    gm = capture(Region(), (x,))
    with torch.no_grad():
        assert torch.equal(gm(x), 2 * x)
    assert torch.equal(gm(x), 2 * x)


def test_a_model_that_asks_whether_it_is_compiled_is_captured_as_it_runs() -> None:
    x = torch.randn(3, 4)
    model = Times(lambda: torch.compiler.is_compiling())
    assert torch.equal(capture(model, (x,))(x), 3 * x)
    assert not torch.compiler.is_compiling()


class SkipsMask(nn.Module):
    """Leaves out a mask that hides nothing, but where it is compiled."""

    def __init__(self, asks_values: bool) -> None:
        super().__init__()
        self.asks_values = asks_values

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or not self.asks_values or not bool(mask.all()):
            x = x * mask
        return x * 1.0


@pytest.mark.parametrize("asks_values", [False, True])
def test_the_way_for_compilers_is_compared_where_values_decide_that_of_a_run(asks_values: bool) -> None:
    x, mask = torch.randn(3, 4), torch.ones(3, 4)
    with patch("repl_fx.tracing.capture.computes_alike", wraps=computes_alike) as compared:
        gm = capture(SkipsMask(asks_values), (x, mask))
    assert compared.called is asks_values
    assert torch.equal(gm(x, mask * 0), x * 0)


class Draws(nn.Module):
    """Skips a layer at random while it trains, and asks whether it is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            raise RuntimeError("not for compilers")
        if self.training and torch.rand([]) < 0.5:
            return x
        return self.fc(x)  # type: ignore[no-any-return]


def test_a_way_that_is_drawn_is_not_traced_for_compilers() -> None:
    model, x = Draws(), torch.randn(3, 4)
    gm = capture(model, (x,))
    for seed in range(4):
        torch.manual_seed(seed)
        expected = model(x)
        torch.manual_seed(seed)
        assert torch.equal(gm(x), expected)


class Strict(nn.Module):
    """Refuses odd sizes where it is not compiled, and may compute otherwise where it is."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return x * self.factor
        if x.shape[1] % 2:
            raise RuntimeError(f"{x.shape[1]} is odd")
        return x * 1.0


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_sizes_that_a_model_refuses_unless_it_is_compiled_are_refused(factor: float) -> None:
    x = torch.randn(3, 8)
    gm = capture(Strict(factor), (x,))
    assert torch.equal(gm(x[:, :6]), x[:, :6])
    with pytest.raises(BadInput, match=r"x\.shape\[1\] % 2"):
        gm(x[:, :5])


class OtherSums(nn.Module):
    """A layer that is summed in another order where it is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 64, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return self.fc(x)  # type: ignore[no-any-return]
        return x[:, :31] @ self.fc.weight[:, :31].t() + x[:, 31:] @ self.fc.weight[:, 31:].t()


def test_sums_in_another_order_are_the_same_inside_of_autocast_too() -> None:
    torch.manual_seed(0)
    model, x = OtherSums(), torch.randn(2, 64)
    outside = capture(model, (x,))
    with torch.autocast("cpu", torch.bfloat16):
        inside = capture(model, (x,))
    assert inside.code == outside.code
