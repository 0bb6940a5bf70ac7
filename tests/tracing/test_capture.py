"""What capture promises besides equal numbers: the interface, the state, the untouched source, the errors."""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from repl_fx._torch import fixed_size
from repl_fx.errors import BadInput, BrokenGraph, CaptureError
from repl_fx.passes import merge_modes
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.tracing.capture import capture, check_capture, widen_batch
from repl_fx.tracing.parts.capture_parts import capture_parts
from tests.tracing.nets import Linear, info_of

# --- outputs --------------------------------------------------------------------------------------------------------


@dataclass
class Pair:
    first: Tensor
    second: Tensor | None = None


class ModelOutput(OrderedDict[str, Any]):
    """What Hugging Face models return: a mapping with attributes, registered as a pytree."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


torch.export.register_dataclass(Pair, serialized_type_name="test_capture.Pair")
pytree.register_pytree_node(
    ModelOutput,
    lambda output: (list(output.values()), list(output)),
    lambda values, names: ModelOutput(zip(names, values, strict=True)),
    serialized_type_name="test_capture.ModelOutput",
)


class Returns(Linear):
    def __init__(self, pack: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.pack = pack

    def forward(self, x: Tensor) -> Any:
        return self.pack(F.dropout(self.fc(x), 0.5, self.training))


@pytest.mark.parametrize(
    "pack",
    [
        lambda y: y,
        lambda y: (y, y + 1),
        lambda y: [y, (y + 1, None)],
        lambda y: {"b": y, "a": [y + 1, 3]},
        lambda y: (y,),
        lambda y: Pair(y, y + 1),
        lambda y: (Pair(y), "text"),
        lambda y: ModelOutput(logits=y, hidden=(y + 1, y + 2)),
    ],
    ids=["tensor", "tuple", "list", "dict", "single", "dataclass", "nested", "model output"],
)
def test_outputs_keep_their_structure(pack: Callable[[Tensor], Any]) -> None:
    model, x = Returns(pack).eval(), torch.randn(3, 8)
    gm = capture(model, (x,))
    ours, theirs = gm(x), model(x)
    assert type(ours) is type(theirs)
    assert pytree.tree_structure(ours) == pytree.tree_structure(theirs)
    assert check_capture(model, gm, (x,))


# --- inputs ---------------------------------------------------------------------------------------------------------


class Nested(Linear):
    def forward(self, batch: dict[str, Any], pair: tuple[Tensor, Tensor] | None = None, *, point: Any = None) -> Tensor:
        x = self.fc(batch["x"]) * batch["more"][0]
        if pair is not None:
            x = x + pair[1]
        return x if point is None else x - point.first  # type: ignore[no-any-return]


def test_nested_inputs() -> None:
    model = Nested()
    batch = {"x": torch.randn(3, 8), "more": [torch.randn(3, 8), torch.randn(2)]}
    pair, point = (torch.randn(3, 8), torch.randn(3, 8)), Pair(torch.randn(3, 8))
    gm = capture(model, (batch, pair), {"point": point})
    assert check_capture(model, gm, (batch, pair), {"point": point})
    assert torch.equal(gm(point=point, pair=pair, batch=batch), model(batch, pair, point=point))


class Settings(Linear):
    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        scale: float = 2.0,
        act: str = "relu",
        flip: bool = False,
        sizes: Any = (),
    ) -> Tensor:
        y = getattr(F, act)(self.fc(x)) * scale
        if mask is not None:
            y = y * mask
        for size in sizes:
            y = y + size
        return -y if flip else y  # type: ignore[no-any-return]


class Masked(Linear):
    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.rand(4, 8))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.fc(x) * mask + x * self.mask  # type: ignore[no-any-return]


@pytest.mark.parametrize("take", [capture, lambda *given: capture_parts(*given).module])
def test_an_example_that_is_one_tensor_in_several_places(take: Callable[..., nn.Module]) -> None:
    model, x, mask = Masked(), torch.rand(4, 8), torch.rand(4, 8)
    for example in ((x, x), (x, model.mask), (model.mask, x)):
        assert torch.equal(take(model, example)(x, mask), model(x, mask))


def test_defaults_stand_before_passed_keywords() -> None:
    model, x = Settings(), torch.randn(3, 8)
    gm = capture(model, (x,), {"flip": True})
    # The same positional call means the same for both.
    assert torch.equal(gm(x, None, 2.0, "relu", True), model(x, None, 2.0, "relu", True))
    assert torch.equal(gm(x=x, flip=True), model(x, flip=True))


@pytest.mark.parametrize(
    ("captured", "other", "message"),
    [
        ({"scale": 3.0}, {"scale": 4.0}, "argument 'scale' was captured as 3.0, not 4.0"),
        ({"act": "gelu"}, {"act": "relu"}, "argument 'act' was captured as 'gelu', not 'relu'"),
        ({"flip": True}, {"flip": False}, "argument 'flip' was captured as True, not False"),
        ({"mask": None}, {"mask": torch.ones(8)}, "argument 'mask' was captured as None"),
        ({"sizes": [1, 2]}, {"sizes": [1, 3]}, r"argument 'sizes' at \[1\] was captured as 2, not 3"),
    ],
)
def test_constant_arguments_are_checked(captured: dict[str, Any], other: dict[str, Any], message: str) -> None:
    model, x = Settings(), torch.randn(3, 8)
    gm = capture(model, (x,), captured)
    assert torch.equal(gm(x, **captured), model(x, **captured))
    with pytest.raises(BadInput, match=message):
        gm(x, **other)
    # An argument that is left out has the default of the source.
    if captured == {"mask": None}:
        assert torch.equal(gm(x), model(x))
    else:
        with pytest.raises(BadInput, match="captured"):
            gm(x)


class Many(Linear):
    def forward(self, *xs: Tensor, weight: Tensor | None = None, **more: Tensor) -> Tensor:
        y = self.fc(sum(xs))
        if weight is not None:
            y = y * weight
        for value in more.values():
            y = y + value
        return y  # type: ignore[no-any-return]


def test_variable_arguments() -> None:
    model = Many()
    xs = tuple(torch.randn(3, 8) for _ in range(3))
    kwargs = {"extra": torch.randn(3, 8), "weight": torch.randn(3, 8)}
    gm = capture(model, xs, kwargs)
    assert check_capture(model, gm, xs, kwargs)
    assert [str(n.target) for n in gm.graph.nodes if n.op == "placeholder"] == [
        "xs_0",
        "xs_1",
        "xs_2",
        "weight",
        "extra",
    ]


def test_argument_and_attribute_of_one_name() -> None:
    class Same(Linear):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(torch.randn(8))

        def forward(self, x: Tensor, input: Tensor) -> Tensor:
            return self.fc(x) * self.x + input  # type: ignore[no-any-return]

    model, args = Same(), (torch.randn(3, 8), torch.randn(3, 8))
    gm = capture(model, args)
    assert torch.equal(gm(input=args[1], x=args[0]), model(*args))


# --- sizes ----------------------------------------------------------------------------------------------------------


def test_batch_of_one_is_widened() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    gm = capture(model, (torch.randn(1, 3, 8, 8),))
    assert info_of(gm).dynamic == {"input": (0,)}
    x = torch.randn(5, 3, 8, 8)
    assert torch.equal(gm(x), model(x))
    inputs = widen_batch(model, ExampleInputs((torch.randn(1, 2), torch.randn(3)), {"k": 1}))
    assert [tuple(a.shape) for a in inputs.args] == [(1, 2), (3,)] and inputs.kwargs == {"k": 1}


class OfOne(Linear):
    """Does something else with a batch of one, or goes through the batch; or neither."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "another way" and len(x) == 1:
            return -self.fc(x)  # type: ignore[no-any-return]
        return torch.stack([self.fc(row) for row in x]) if self.way == "one by one" else self.fc(x)


@pytest.mark.parametrize("way", ["another way", "one by one", "as asked"])
def test_a_batch_of_one_stays_where_a_graph_of_a_wider_one_would_not_take_it(way: str) -> None:
    model, x = OfOne(way), torch.randn(1, 8)
    fixed = ["batch"] if way == "as asked" else []
    gm = capture(model, (x,), fixed=fixed)
    assert torch.equal(gm(x), model(x))
    assert check_capture(model, gm, (x,))
    with pytest.raises(BadInput, match=r"captured as \[1, 8\]"):
        gm(torch.randn(2, 8))
    parts = capture_parts(model, (x,), fixed=fixed)
    assert [tuple(one.shape) for one in parts.inputs.args] == [(1, 8)]


@pytest.mark.parametrize("whole", [True, False])
def test_a_model_that_is_traced_with_a_wider_batch_is_not_run(monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    runs = []
    own = nn.Linear.forward

    def forward(layer: nn.Linear, x: Tensor) -> Tensor:
        runs.append(type(x))
        return own(layer, x)

    monkeypatch.setattr(nn.Linear, "forward", forward)
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(1, 4)
    gm = capture(model, (x,)) if whole else capture_parts(model, (x,)).module
    assert runs and Tensor not in runs
    assert info_of(gm).dynamic == {"input": (0,)}


def test_sizes_the_trace_has_fixed_are_refused() -> None:
    class Loops(Linear):
        def forward(self, x: Tensor) -> Tensor:
            for row in range(x.shape[0]):
                x = x + self.fc(x[row])
            return x

    gm = capture(Loops(), (torch.randn(3, 8),))
    assert info_of(gm).dynamic == {"x": ()}
    assert gm(torch.randn(3, 8)).shape == (3, 8)
    with pytest.raises(BadInput, match=r"argument 'x' has shape \[4, 8\], but was captured as \[3, 8\]"):
        gm(torch.randn(4, 8))
    gm = capture(nn.Conv2d(3, 4, 3), (torch.randn(2, 3, 8, 8),))
    with pytest.raises(BadInput, match=r"\[1, 2, 9, 9\], but was captured as \[any, 3, any, any\]"):
        gm(torch.randn(1, 2, 9, 9))


# --- state ----------------------------------------------------------------------------------------------------------


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Parameter(torch.randn(8))
        self.unused = nn.Parameter(torch.randn(2))
        self.register_buffer("kept", torch.ones(8))
        self.register_buffer("hidden", torch.full((8,), 2.0), persistent=False)
        self.register_buffer("nothing", None)
        self.fc = nn.Linear(8, 8, bias=False)
        self.head = nn.ModuleDict({"b": nn.Linear(8, 8, bias=False), "a": nn.Linear(8, 3)})
        self.head["b"].weight = self.fc.weight
        self.again = self.fc

    def forward(self, x: Tensor) -> Tensor:
        hidden: Any = self.hidden
        return self.head["b"](self.again(self.fc(x))) * self.late + self.kept * hidden  # type: ignore[no-any-return]


def test_state_keeps_its_keys_order_and_tensors() -> None:
    model = Stateful()
    gm = capture(model, (torch.randn(3, 8),))
    assert list(gm.state_dict()) == list(model.state_dict())
    assert all(gm.state_dict()[name] is not None for name in model.state_dict())
    for name, parameter in model.named_parameters(remove_duplicate=False):
        assert gm.get_parameter(name) is parameter
    assert gm.get_buffer("hidden") is model.hidden
    assert gm.get_submodule("again") is gm.get_submodule("fc")
    assert gm.load_state_dict(model.state_dict()).missing_keys == []


def test_deepcopy_keeps_everything_and_shares_nothing() -> None:
    model, x = Stateful(), torch.randn(3, 8)
    gm = capture(model, (x,))
    twin = copy.deepcopy(gm)
    assert list(twin.state_dict()) == list(gm.state_dict())
    assert [n for n, _ in twin.named_buffers()] == [n for n, _ in gm.named_buffers()]
    assert twin.get_parameter("fc.weight") is twin.get_parameter("head.b.weight")
    assert twin.get_parameter("fc.weight") is not gm.get_parameter("fc.weight")
    assert twin.get_submodule("again") is twin.get_submodule("fc")
    assert info_of(twin) == info_of(gm)
    assert torch.equal(twin(x), gm(x))
    with torch.no_grad():
        twin.get_buffer("hidden").zero_()
    assert not torch.equal(twin(x), gm(x))
    assert torch.equal(copy.deepcopy(twin)(x), twin(x))


def test_copy_gives_parameters_of_its_own() -> None:
    model = Stateful()
    gm = capture(model, (torch.randn(3, 8),), copy=True)
    assert gm.get_parameter("late") is not model.late
    assert torch.equal(gm.get_parameter("late"), model.late)


# --- the source is not touched --------------------------------------------------------------------------------------


class Busy(nn.Module):
    """Keeps an activation and a total in its forward, as real models do."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.dropout, self.norm = nn.Linear(8, 8), nn.Dropout(0.5), nn.BatchNorm1d(8)
        self.calls, self.log, self.cache = 0, ["made"], {"a": 1}
        self.total: Tensor
        self.register_buffer("total", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.latest = x
        self.cache["latest"] = x  # type: ignore[assignment]
        self.total = self.total + 1
        return self.norm(self.dropout(self.fc(x)))  # type: ignore[no-any-return]


def snapshot(model: nn.Module) -> list[tuple[str, list[str], dict[str, Any]]]:
    def frozen(value: Any) -> Any:
        return copy.copy(value) if isinstance(value, (dict, list, set)) else value

    return [(name, list(vars(m)), {k: frozen(v) for k, v in vars(m).items()}) for name, m in model.named_modules()]


def assert_untouched(model: nn.Module, before: list[tuple[str, list[str], dict[str, Any]]]) -> None:
    after = snapshot(model)
    assert [(name, keys) for name, keys, _ in after] == [(name, keys) for name, keys, _ in before]
    for (_, _, now), (_, _, then) in zip(after, before, strict=True):
        for key, value in then.items():
            if isinstance(value, dict):
                assert list(now[key].items()) == list(value.items()) or all(
                    a is b for a, b in zip(now[key].values(), value.values(), strict=True)
                ), key
            else:
                assert now[key] is value or now[key] == value, key


def test_source_is_left_as_it_was() -> None:
    model = Busy()
    model.norm.eval()
    hook = model.fc.register_forward_hook(lambda module, args, output: output * 2)
    before = snapshot(model)
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.get_rng_state()
    gm = capture(model, (torch.randn(3, 8, generator=torch.Generator()),))
    assert_untouched(model, before)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in values.items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert gm.training and not gm.get_submodule("norm").training

    gm.eval()
    assert model.training and model.fc.training and model.dropout.training
    hook.remove()
    assert not model.fc._forward_hooks and gm.get_submodule("fc")._forward_hooks


class Follower(nn.Module):
    """A teacher that follows a student in the forward of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = nn.Linear(8, 8), nn.Linear(8, 8).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for old, new in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                old.mul_(0.9).add_(new, alpha=0.1)
        # A question about a setting, for which graph and source run.
        return self.student(x) - self.teacher(x) if torch.is_grad_enabled() else x


def test_parameters_that_a_forward_writes_into_are_left_as_they_were() -> None:
    model, x = Follower(), torch.randn(3, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gm = capture(model, (x,), copy=True)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(torch.equal(before[name], value) for name, value in gm.state_dict().items())
    assert torch.equal(gm(x), model(x)) and torch.equal(gm(x), model(x))


def test_source_is_left_as_it_was_after_a_failure() -> None:
    class Fails(Busy):
        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.log.append("called")
            y = super().forward(x)
            return y.relu() if y.sum() > 0 else y.tanh()

    model = Fails()
    before, apply = snapshot(model), torch.autograd.Function.__dict__["apply"]
    with pytest.raises(CaptureError):
        capture(model, (torch.randn(3, 8),))
    with pytest.raises(BadInput):
        capture(model, (torch.randn(3, 7),))
    assert_untouched(model, before)
    assert torch.autograd.Function.__dict__["apply"] is apply
    assert model.total.item() == 0


@pytest.mark.parametrize("training", [True, False])
def test_graph_is_in_the_mode_of_its_source(training: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)).train(training)
    gm = capture(model, (torch.randn(3, 8),))
    assert gm.training is training and gm.get_submodule("1").training is training


def test_regions_of_the_caller_are_not_traced() -> None:
    model, x = Linear(), torch.randn(3, 8)
    model.forward = lambda x: model.fc(x) @ model.fc.weight
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        gm = capture(model, (x,))
    assert gm(x).requires_grad and gm(x).dtype == torch.float32
    assert [str(n.target) for n in gm.graph.nodes if n.op == "call_function" and n.meta["val"] is None] == [
        str(n.target) for n in gm.graph.nodes if "check_shape" in n.name
    ]


class Opaque:
    """A container that torch.export does not know."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((torch.randn(2, 7),), {}, r"shapes cannot be multiplied.*\(0: float32\[2, 7\]\).*--input-shape"),
        ((), {}, r"missing a required argument.*\(none\)"),
        ((torch.randn(2, 8), torch.randn(3)), {}, r"too many positional.*\(0: float32\[2, 8\], 1: float32\[3\]\)"),
        ((torch.randn(2, 8),), {"y": torch.zeros(2)}, r"unexpected keyword argument 'y'.*y: float32\[2\]"),
    ],
)
def test_inputs_that_do_not_fit(args: tuple[Any, ...], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        capture(nn.Linear(8, 8), args, kwargs)
    assert "\n" not in str(caught.value)


class Branches(Linear):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x)
        for _ in range(int(y.sum().abs()) % 3):  # the obstacle
            y = y.relu()
        return y


def test_a_model_that_no_tracer_takes(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Branches(), (torch.randn(2, 8),))
    message = str(caught.value)
    text = Path(__file__).read_text(encoding="utf-8").splitlines()
    line = next(number for number, line in enumerate(text, start=1) if "# the obstacle" in line)
    assert "\n" not in message
    assert message.startswith("Branches could not be captured: torch.export: ")
    assert [o.split(":")[0] for o in caught.value.obstacles] == ["torch.export"]
    assert all(o.endswith(f"(at {__file__}, line {line})") for o in caught.value.obstacles)
    # torch.export dumps the graph it had so far; an error is one line.
    assert capfd.readouterr() == ("", "")


def test_an_argument_that_no_graph_can_hold() -> None:
    class Odd(Linear):
        def forward(self, x: Tensor, factor: Opaque) -> Tensor:
            return self.fc(x) * factor.value  # type: ignore[no-any-return]

    with pytest.raises(CaptureError, match="argument 'factor' is a Opaque"):
        capture(Odd(), (torch.randn(3, 8), Opaque(torch.ones(8))))


def test_a_pass_that_breaks_the_graph_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def merge_modes_(gm: fx.GraphModule, **others: Any) -> merge_modes.MergeResult:
        result = merge_modes.merge_modes_(gm, **others)
        next(n for n in gm.graph.nodes if n.op == "call_module").meta.pop("val")
        return result

    # `repl_fx.capture` is the function; the module of that name stands behind it.
    monkeypatch.setattr(sys.modules["repl_fx.tracing.capture"], "merge_modes_", merge_modes_)
    capture(nn.Sequential(nn.Linear(8, 8)), (torch.randn(2, 8),))
    monkeypatch.setenv("REPL_FX_CHECK", "1")
    with pytest.raises(BrokenGraph, match=r"^merge_modes_: node .*: it has no fake value"):
        capture(nn.Sequential(nn.Linear(8, 8)), (torch.randn(2, 8),))


@pytest.mark.parametrize("kind", [AssertionError, TypeError])
@pytest.mark.parametrize(("module", "step"), [("capture", "merge_modes_"), ("tracers", "lift_modules")])
def test_a_defect_of_a_step_surfaces(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception], module: str, step: str
) -> None:
    calls = []

    def fails(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        raise kind("a defect")

    monkeypatch.setattr(sys.modules[f"repl_fx.tracing.{module}"], step, fails)
    # Neither another tracer nor smaller modules are tried.
    with pytest.raises(kind, match="a defect"):
        capture_parts(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), (torch.randn(2, 8),))
    assert len(calls) == 1


class Upsampled(nn.Module):
    """Convolutions on an image whose channels lie innermost in evaluation, and outermost in training."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x.permute(0, 3, 1, 2)))
        if self.training:
            x = x.contiguous()
        changed: Tensor = self.second(x)
        return changed


def test_a_layout_that_one_mode_alone_asks_for() -> None:
    model, args = Upsampled(), (torch.randn(2, 16, 16, 4),)
    gm = capture(model, args)
    assert check_capture(model, gm, args)
    for training in (True, False):
        ours, theirs = (module.train(training)(*args) for module in (gm, model))
        assert ours.stride() == theirs.stride()


def test_a_capture_that_fails_leaves_the_buffers_alone() -> None:
    class Lists(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * float(x.detach().numpy().sum())

    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), Lists())
    with pytest.raises(CaptureError):
        capture(model, (torch.randn(2, 3, 4, 4),))
    assert [int(value) for name, value in model.named_buffers() if "num_batches" in name] == [0]


def test_a_norm_that_averages_over_all_batches() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, momentum=None), nn.ReLU()), torch.randn(2, 3, 4, 4)
    assert check_capture(model, capture(model, (x,)), (x,))


def test_a_first_dimension_that_is_no_batch_stays_one() -> None:
    class Flat(Linear):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.fc(x).flatten())  # type: ignore[no-any-return]

    model, x = Flat(), torch.randn(1, 8)
    gm = capture(model, (x,))
    assert check_capture(model, gm, (x,))
    with pytest.raises(BadInput, match=r"captured as \[1, 8\]"):
        gm(torch.randn(2, 8))


@cache
def table(length: int) -> Tensor:
    return torch.arange(length).float()


@pytest.mark.parametrize("batch", [1, 2])
def test_results_that_a_function_keeps_are_no_ones_of_a_trace(batch: int) -> None:
    class Shifts(Linear):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(x)
            return y + table(8)

    table.cache_clear()
    capture(model := Shifts(), (torch.randn(batch, 8),))
    assert type(model(torch.randn(2, 8))) is Tensor and type(table(8)) is Tensor


def test_the_tensors_of_a_captured_model_can_be_swapped() -> None:
    model, x = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), torch.randn(2, 3)
    swap: Any = torch.utils.swap_tensors
    gm = capture(model, (x,))
    for parameter in model.parameters():
        swap(parameter, nn.Parameter(torch.zeros_like(parameter)))
    assert not model(x).any() and not gm(x).any()


def test_sizes_that_a_guard_fixed_are_numbers_as_behind_a_pickle() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.layer = nn.Linear(8, 8), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.layer(x)
            mixed: Tensor = self.mix(torch.fft.fft(x, dim=1).real.transpose(1, 2))
            return x + mixed.transpose(1, 2)

    gm = capture(Mixed(), (torch.randn(2, 8, 4),))
    values = [node.meta["val"] for node in gm.graph.nodes if isinstance(node.meta.get("val"), Tensor)]
    assert all(type(size) is int or fixed_size(size) is None for value in values for size in value.shape)
    assert gm(torch.randn(3, 8, 4)).shape == (3, 8, 4)


class Doubled(Linear):
    """Code around its forward that a trace, which begins at the forward, does not see."""

    factor = 2.0

    def __call__(self, x: Tensor) -> Tensor:
        made: Tensor = self.factor * super().__call__(x)
        return made

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.fc(x)
        return made


def test_a_class_that_computes_around_its_forward_is_refused() -> None:
    x = torch.randn(2, 8)
    with pytest.raises(CaptureError, match=r"its class computes in a __call__ of its own, around its forward"):
        capture(Doubled(), (x,))
    with pytest.raises(CaptureError, match=r"__call__ of its own"):
        capture(Doubled().to("meta"), (x.to("meta"),))
    # A signature for type checkers.
    model = Doubled()
    model.factor = 1.0
    assert torch.equal(capture(model, (x,))(x), model(x))


class _Casts(nn.Module):
    """A weight that is cast twice, or once and kept, in a region of autocast."""

    def __init__(self, cache: bool | None) -> None:
        super().__init__()
        self.cache, self.weight = cache, nn.Parameter(torch.randn(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=self.cache):
            for _ in range(4):
                x = torch.tanh(F.linear(x, self.weight))
        return x.float()


@pytest.mark.parametrize("cache", [None, True, False])
def test_regions_of_autocast_keep_casts_as_the_source_does(cache: bool | None) -> None:
    torch.manual_seed(0)
    model, x = _Casts(cache), torch.randn(4, 16)
    gm = capture(model, (x,))
    gradients = [torch.autograd.grad(module(x).square().sum(), model.weight)[0] for module in (model, gm)]
    assert torch.equal(*gradients) and torch.is_autocast_cache_enabled()


class Branching(nn.Module):
    """Computes otherwise in training."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        return x.cos().sin() if self.training else x.exp()


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_graph_computes_in_the_mode_that_the_model_has(training: bool) -> None:
    model, x = nn.Sequential(Branching(), Branching()).train(training), torch.randn(2, 4)
    gm = capture(model, (x,))
    assert torch.equal(gm(x), model(x))
