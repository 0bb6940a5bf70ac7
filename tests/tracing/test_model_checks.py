"""Models that are refused before they are traced, each with one line that says why."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.errors import BadInput, CaptureError, ForeignError
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.tracing.capture import trace_by_first
from repl_fx.tracing.model_checks import (
    describe_inputs,
    is_raised,
    misfit,
    require_capturable,
    require_finite,
)

X = torch.linspace(-1, 1, 16).reshape(2, 8)


class Block(nn.Module):
    """A residual block with a last layer of the caller's choice."""

    def __init__(self, last: Callable[[], nn.Module] = nn.Identity) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.last = last()

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.last(self.down(self.up(self.norm(x)).relu()))
        return x + changed


def net(last: Callable[[], nn.Module] = nn.Identity) -> nn.Sequential:
    return nn.Sequential(*(Block(last) for _ in range(5)), nn.Linear(8, 3))


def with_state(change: Callable[[nn.Linear], None]) -> nn.Sequential:
    model = net()
    head = model[5]
    assert isinstance(head, nn.Linear)
    change(head)
    return model


class Quantised(nn.Module):
    """A linear layer on 8-bit weights, written out."""

    def __init__(self, dtype: torch.dtype = torch.int8) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8, 8).to(dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.to(x.dtype)


class OneMode(nn.Linear):
    """A layer that cannot be trained, and says so."""

    def train(self, mode: bool = True) -> OneMode:
        if mode:
            raise RuntimeError("made for inference\nalone")
        return super().train(mode)


def made_in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return net()


class Params4bit(Tensor):
    """A weight as bitsandbytes has them."""

    __module__ = "bitsandbytes.nn.modules"


def weight(make: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    def change(head: nn.Linear) -> None:
        head.weight = nn.Parameter(make(head.weight.detach()), requires_grad=False)

    return lambda: with_state(change)


def buffer(value: Tensor) -> Callable[[], nn.Module]:
    return lambda: with_state(lambda head: head.register_buffer("table", value))


def compiled_in_place() -> nn.Module:
    model = net()
    model[2].compile()
    return model


def scripted() -> nn.Module:
    return net(lambda: torch.jit.script(nn.Linear(8, 8)))


def traced(model: nn.Module) -> nn.Module:
    trace: Any = torch.jit.trace  # Without annotations in torch, as the next.
    made: nn.Module = trace(model, X)
    return made


def quantised() -> nn.Module:
    quantise: Any = torch.ao.quantization.quantize_dynamic
    made: nn.Module = quantise(net(), {nn.Linear})
    return made


def all_nan() -> nn.Module:
    model = net()
    for parameter in model.parameters():
        nn.init.constant_(parameter, float("nan"))
    return model


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (scripted, "Sequential is TorchScript at 0.last, whose code is compiled"),
        (lambda: net(lambda: traced(nn.Linear(8, 8))), "Sequential is TorchScript at 0.last, whose code is compiled"),
        (lambda: torch.jit.script(net()), "is TorchScript, whose code is compiled"),
        (lambda: traced(net()), "is TorchScript, whose code is compiled"),
        (lambda: torch.compile(net()), "is compiled by torch.compile; give the model as it was before"),
        (compiled_in_place, r"Sequential is compiled by torch.compile at 2; give"),
        (lambda: nn.DataParallel(net()), r"is wrapped \(DataParallel\); give the module inside"),
        (lambda: net(lambda: nn.DataParallel(nn.Linear(8, 8))), r"is wrapped \(DataParallel at 0.last\)"),
        (quantised, r"is quantised \(Linear at 0.up\); transform the model in floating point"),
        (
            weight(lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8)),
            r"is quantised \(5.weight\); transform the model in floating point",
        ),
        (
            weight(lambda w: w.as_subclass(Params4bit)),
            r"is quantised \(5.weight\); transform the model in floating point",
        ),
        (weight(Tensor.to_sparse), r"of layout sparse_coo \(5.weight\); repl-fx rewrites dense tensors"),
        (weight(Tensor.to_sparse_csr), "of layout sparse_csr"),
        (buffer(torch.eye(3).to_sparse()), r"of layout sparse_coo \(5.table\)"),
        (made_in_inference_mode, r"was made inside torch.inference_mode \(0.norm.weight\) and cannot be trained"),
        (weight(lambda w: w.to("meta")), "has tensors on the meta device, without values: 5.weight; give them values"),
        (buffer(torch.ones(2, device="meta")), "without values: 5.table; give"),
        (lambda: net().to("meta"), "without values: 0.norm.weight and 31 more; give"),
        (lambda: net(lambda: nn.LazyLinear(8)), "is lazy: 0.last.weight has no shape before the first forward"),
        (lambda: OneMode(8, 8), r"refuses training mode \(RuntimeError: made for inference alone\)"),
        (lambda: torch.export.export(net(), (X,)).module(), "refuses training mode"),
        (lambda: nn.Linear, "Linear is a class, not a model; call it"),
        (lambda: lambda x: x, "takes a module, and this is a function; give a torch.nn.Module"),
        (lambda: None, "takes a module, and this is None; give a torch.nn.Module"),
    ],
)
def test_a_model_that_cannot_be_captured(make: Callable[[], Any], message: str) -> None:
    model = make()
    modes = [module.training for module in model.modules()] if isinstance(model, nn.Module) else []
    for function in (repl_fx.capture, repl_fx.capture_parts, repl_fx.transform):
        with pytest.raises(BadInput, match=message) as refusal:
            function(model, (X,))
        assert "\n" not in str(refusal.value) and "shape the model takes" not in str(refusal.value)
    if isinstance(model, nn.Module):
        assert modes == [module.training for module in model.modules()]


@pytest.mark.parametrize(
    ("args", "kwargs", "refused"),
    [
        ((X[:0],), {}, True),
        ((), {"x": X[:0], "mask": torch.ones(0)}, True),
        ((torch.tensor(1.0), X[:0]), {}, True),
        # A detection model is shown images without objects, and one token without a past.
        ((X,), {"boxes": torch.ones(0, 4)}, False),
        ((torch.ones(2, 0),), {}, False),
        ((torch.tensor(1.0),), {}, False),
        ((), {}, False),
    ],
)
def test_a_batch_of_nothing(args: tuple[Any, ...], kwargs: dict[str, Any], refused: bool) -> None:
    if not refused:
        return require_capturable(nn.ReLU(), ExampleInputs(args, kwargs))
    with pytest.raises(BadInput, match=r"ReLU has example inputs with a batch of 0 \(.*; give a batch of 2 or more"):
        require_capturable(nn.ReLU(), ExampleInputs(args, kwargs))


@pytest.mark.parametrize("name", ["a b", "class", 'a"b', "\ufb01"])
def test_an_argument_whose_name_is_none_of_python(name: str) -> None:
    with pytest.raises(BadInput, match=r"ReLU takes an argument '.*', which a graph cannot have"):
        require_capturable(nn.ReLU(), ExampleInputs((), {name: X}))


@pytest.mark.parametrize(
    ("name", "why"), [("graph", "for itself"), ("meta", "for itself"), ("\udc80", "half a letter")]
)
def test_a_module_whose_name_no_graph_can_have(name: str, why: str) -> None:
    with pytest.raises(BadInput, match=f"Sequential has .*{why}.*; rename it"):
        require_capturable(nn.Sequential(OrderedDict({name: nn.ReLU()})), ExampleInputs((X,)))
    if name != "\udc80":
        with pytest.raises(CaptureError, match=f"Sequential could not be captured: it has {name}, .*; rename it"):
            trace_by_first({}, nn.Sequential(OrderedDict({name: nn.ReLU()})), ExampleInputs((X,)))
        require_capturable(nn.Sequential(nn.Sequential(OrderedDict({name: nn.ReLU()}))), ExampleInputs((X,)))


class Cached(nn.Module):
    """Returns a cache too, but in training with checkpointing, as models of transformers do."""

    def __init__(self, *, cached: bool = True) -> None:
        super().__init__()
        self.fc, self.cached, self.gradient_checkpointing = nn.Linear(8, 8), cached, False

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        kept = self.cached and not (self.gradient_checkpointing and self.training)
        return self.fc(x), 2 * x if kept else None


def test_checkpointing_is_turned_on_after_the_transform() -> None:
    model = Cached()
    assert repl_fx.capture(model, (X,)).meta["capture"].switches == 0
    model.gradient_checkpointing = True
    with pytest.raises(BadInput, match=r"Cached has gradient checkpointing on, .*; turn it off before .*_disable\(\)"):
        repl_fx.capture(model, (X,))
    model.cached = False
    repl_fx.capture(model, (X,))


def test_a_model_on_the_meta_device_is_captured_with_inputs_there() -> None:
    gm = repl_fx.capture(net().to("meta"), (X.to("meta"),))
    assert [len(repeat) for repeat in repl_fx.find_repeats(gm)] == [5]


def test_inference_mode_of_the_caller() -> None:
    with torch.inference_mode(), pytest.raises(BadInput, match=r"inside torch\.inference_mode no gradient"):
        repl_fx.capture(net(), (X,))


def test_the_meta_device_as_the_default_of_the_caller() -> None:
    model = net()
    with torch.device("meta"), pytest.raises(BadInput, match=r"torch\.device\('meta'\) is the default"):
        repl_fx.capture(model, (X,))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    "model",
    [
        torch.ao.nn.quantized.FloatFunctional(),
        nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
        nn.ParameterList([torch.ones(3).expand(2, 3), torch.ones(0), torch.ones(2, dtype=torch.complex64)]),
        nn.ReLU(),
        nn.SyncBatchNorm(8),
        torch.fx.symbolic_trace(nn.Sequential(nn.ReLU())),
    ],
)
def test_a_model_that_only_looks_odd(model: nn.Module) -> None:
    require_capturable(model, ExampleInputs((X,)))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_integer_weights_are_captured_and_no_surrogate_is_made_from_them(dtype: torch.dtype) -> None:
    model = net(lambda: Quantised(dtype))
    gm = repl_fx.capture(model, (X,))
    assert repl_fx.check_capture(model, gm, (X,))
    repeats = repl_fx.find_repeats(gm)
    for surrogate in set(repl_fx.known_surrogates()) - {"identity"}:
        reasons = [refusal.reason for refusal in repl_fx.make_plan(gm, repeats, surrogate=surrogate).refusals]
        kind = str(dtype).removeprefix("torch.")
        why = f"last.weight is {kind}, and weights can be made from floating point ones alone"
        assert reasons == [f"1.{why}", f"3.{why}"]
    # Nothing is made from weights where blocks are only left out.
    assert len(repl_fx.make_plan(gm, repeats, surrogate="identity").replacements) == 2


def spoilt(value: float, name: str = "2.up.weight") -> nn.Sequential:
    model = net(lambda: nn.BatchNorm1d(8))
    with torch.no_grad():
        {**dict(model.named_parameters()), **dict(model.named_buffers())}[name].flatten()[:3] = value
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            spoilt(float("nan")),
            "2.up.weight has 3 NaN of 128 values; mend them, or go on all the same with --allow-nan",
        ),
        (spoilt(float("-inf"), "1.norm.bias"), "1.norm.bias has 3 infinite of 8 values"),
        (spoilt(float("nan"), "4.last.running_var"), "4.last.running_var has 3 NaN of 8 values"),
        (all_nan(), "0.norm.bias has 8 NaN of 8 values; .* and 29 more;"),
        (weight(lambda w: (w * float("nan")).to(torch.float8_e4m3fn))(), "5.weight has 24 NaN of 24 values"),
        (nn.ParameterList([torch.full((2,), float("nan"), dtype=torch.complex64)]), "0 has 2 NaN of 2 values"),
    ],
)
def test_weights_that_are_no_numbers(model: nn.Module, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        require_finite(model)
    with pytest.raises(BadInput, match=message):
        repl_fx.transform(model, (X,))


def test_infinity_in_masks_is_no_matter_and_nan_can_be_allowed() -> None:
    masked = with_state(lambda head: head.register_buffer("mask", torch.full((2, 2), float("-inf"))))
    masked.register_parameter("limit", nn.Parameter(torch.tensor(float("inf")), requires_grad=False))
    require_finite(masked)
    assert repl_fx.transform(spoilt(float("nan")), (X,), allow_nan=True).plan.replacements


@pytest.mark.parametrize(
    ("problem", "advice"),
    [
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x9 and 8x8)"), "inputs of the shape"),
        (RuntimeError("Given groups=1, expected input[2, 4] to have 3 channels"), "inputs of the shape"),
        (TypeError("missing a required argument: 'mask'"), "inputs of the shape"),
        (IndexError("index out of range in self"), "inputs of the shape"),
        (RuntimeError("mat1 and mat2 must have the same dtype, but got Half and Float"), "inputs of the dtype"),
        (RuntimeError("mixed dtype (CPU): expect parameter to have scalar type of Float"), "inputs of the dtype"),
        (RuntimeError("Expected all tensors to be on the same device, but got mat2 is on cuda:0"), "on one device"),
        (NotImplementedError('Module [Net] is missing the required "forward" function'), None),
        (KeyError("tokens"), None),
        (ZeroDivisionError("division by zero"), None),
    ],
)
def test_advice_is_about_the_problem(problem: Exception, advice: str | None) -> None:
    line = str(misfit(nn.Identity(), problem, ExampleInputs((X,))))
    assert line.startswith(f"Identity: {type(problem).__name__}: {problem} with the example inputs (0: float32[2, 8])")
    assert line.endswith(")") if advice is None else f"; {'put' if 'device' in advice else 'give'} " in line
    assert advice is None or advice in line


def test_words_for_inputs() -> None:
    given = describe_inputs(ExampleInputs((torch.zeros(2, 3),), {"m": [torch.ones(1, dtype=torch.bool)]}))
    assert given == "0: float32[2, 3], m: bool[1]"
    assert describe_inputs(ExampleInputs()) == "none"


def _asserts() -> None:
    assert not X.numel()


def _raises() -> None:
    raise ValueError("no")


@pytest.mark.parametrize(
    ("code", "expected"), [(_asserts, True), (_raises, True), (lambda: [][1], False), (lambda: X.view(7), False)]
)
def test_an_assertion_is_told_from_an_operation_that_fails(code: Callable[[], object], expected: bool) -> None:
    with pytest.raises(Exception) as caught:
        code()
    assert is_raised(ForeignError(caught.value)) is expected
