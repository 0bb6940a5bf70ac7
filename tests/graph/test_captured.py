"""Edits and copies of a graph module."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torchmetrics import Accuracy

import repl_fx
from repl_fx.errors import CallRefused
from repl_fx.graph.captured import (
    AlikeGraphModule,
    CapturedModule,
    attribute,
    copy_graph,
    copy_model,
    drop_dead,
    erase_dead,
    get_attr,
    has_effect,
    in_double_precision,
    share_tensors,
    unique_name,
)
from repl_fx.tracing.capture import capture
from tests.graph.nets import call
from tests.nets import ConvNet, MlpNet, images


def test_copies_share_tensors_and_nothing_else(gm: fx.GraphModule) -> None:
    twin = copy_graph(gm)
    assert list(twin.state_dict()) == list(gm.state_dict())
    assert all(twin.get_parameter(n) is p for n, p in gm.named_parameters())
    assert all(twin.get_buffer(n) is b for n, b in gm.named_buffers())
    twin.eval()
    assert gm.training and gm.get_submodule("norm").training and not twin.get_submodule("norm").training
    twin.get_submodule("fc").register_forward_hook(lambda module, args, output: output * 2)
    assert not gm.get_submodule("fc")._forward_hooks
    twin.double()
    lstm: Any = gm.get_submodule("lstm")
    assert lstm._flat_weights[0].dtype == torch.float64, "data moves in place for both, as torch has it"


def test_code_that_is_not_written_yet_is_written_by_the_first_call() -> None:
    x = torch.randn(2, 4, 16)
    gm = repl_fx.capture(MlpNet(), (x,))
    twin = copy_graph(gm, compiled=False)
    assert torch.equal(twin(x), gm(x))
    assert twin.code == gm.code
    assert torch.equal(copy_graph(gm, compiled=False)(x=x), gm(x))


def test_a_copy_of_a_copy_computes_the_same(gm: fx.GraphModule) -> None:
    x = torch.randn(3, 8)
    twin = copy_graph(copy_graph(gm))
    for training in (True, False):
        assert torch.equal(twin.train(training)(x), gm.train(training)(x))


def test_a_module_at_two_paths_stays_one() -> None:
    layer = nn.Linear(2, 2)
    twin: Any = share_tensors(nn.ModuleList([layer, nn.Sequential(layer), nn.ReLU()]))
    assert twin[0] is twin[1][0] and twin[0] is not layer and twin[0].weight is layer.weight


def test_what_a_graph_does_not_save_its_copies_do_not_save() -> None:
    gm = capture(nn.Linear(2, 2), (torch.randn(2, 2),))
    gm.register_buffer("aside", torch.ones(1), persistent=False)
    for twin in (copy_graph(gm), share_tensors(gm)):
        assert list(twin.state_dict()) == ["weight", "bias"] and "aside" in dict(twin.named_buffers())


def test_effects_and_dead_nodes(gm: fx.GraphModule) -> None:
    fc = call(gm, "fc")
    assert has_effect(fc)
    with gm.graph.inserting_after(fc):
        pure = gm.graph.call_function(torch.relu, (fc,))
        random = gm.graph.call_function(torch.ops.aten.bernoulli.p, (fc, 0.5))
        mutates = gm.graph.call_function(torch.ops.aten.relu_.default, (fc,))
    assert [has_effect(n) for n in (pure, random, mutates)] == [False, True, True]
    drop_dead(gm.graph)
    assert pure not in gm.graph.nodes and {random, mutates} <= set(gm.graph.nodes)
    erase_dead(gm.graph, [random, mutates, fc])
    # What is used stays, even when asked for.
    assert {random, mutates}.isdisjoint(gm.graph.nodes) and fc in gm.graph.nodes


def test_names_and_places(gm: fx.GraphModule) -> None:
    assert unique_name(gm, "fc") == "fc_1" and unique_name(gm, "new") == "new"
    gm.add_submodule("one.two", nn.ReLU())
    assert isinstance(attribute(gm, "one.two"), nn.ReLU)
    with gm.graph.inserting_before(call(gm, "fc")):
        node = get_attr(gm, "fc.weight")
    assert node.meta["val"].shape == (8, 8) and type(node.meta["val"]) is not nn.Parameter
    with pytest.raises(AttributeError):
        attribute(gm, "one.three")


def test_a_shallow_copy_has_the_modules_own_tensors() -> None:
    module: Any = capture(nn.Sequential(nn.Linear(8, 8)), (torch.randn(2, 8),))
    module.tag = "x"
    twin = copy.copy(module)
    assert isinstance(twin, CapturedModule) and twin.tag == "x" and twin is not module
    assert next(twin.parameters()) is next(module.parameters())


def test_the_name_of_a_copy_is_that_of_the_module() -> None:
    module = capture(ConvNet(), (images(),))
    assert type(copy.deepcopy(module)).__name__ == "ConvNet" == type(module).__name__


def _negation() -> fx.Graph:
    graph = fx.Graph()
    graph.output(graph.call_function(torch.neg, (graph.placeholder("x"),)))
    return graph


def test_modules_of_one_code_are_of_one_class_until_one_is_changed() -> None:
    one, other = (AlikeGraphModule(nn.Module(), _negation()) for _ in range(2))
    assert type(one) is type(other)
    x = torch.ones(2)
    assert type(copy.deepcopy(one)) is type(one) and type(pickle.loads(pickle.dumps(one))) is type(one)
    next(node for node in one.graph.nodes if node.op == "call_function").target = torch.exp
    one.recompile()
    assert torch.equal(one(x), x.exp())
    assert torch.equal(other(x), -x)
    renamed = AlikeGraphModule(nn.Module(), other.graph, "Renamed")
    assert type(renamed).__name__ == "Renamed" and type(other).__name__ == "GraphModule"


def test_a_class_that_somebody_derived_stays() -> None:
    one, other = (AlikeGraphModule(nn.Module(), _negation()) for _ in range(2))
    one.__class__ = derived = type("Derived", (type(one),), {})
    next(node for node in one.graph.nodes if node.op == "call_function").target = torch.exp
    other.__class__ = derived
    x = torch.ones(2)
    one.recompile()
    assert type(one).__name__ == "Derived" and torch.equal(one(x), x.exp())
    assert type(other) is derived and torch.equal(other(x), -x)
    for way in (copy.copy, copy.deepcopy):
        twin = way(one)
        assert type(twin).__name__ == "Derived" and torch.equal(twin(x), x.exp())


class _Shifted(nn.Module):
    """A model with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.fc = nn.Parameter(torch.randn(8)), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        shifted: Tensor = self.fc(x + self.shift)
        return shifted


class _Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight / 2


def test_a_graph_whose_own_parameter_is_parametrised_is_copied_and_folded() -> None:
    x = torch.randn(2, 8)
    module = capture(_Shifted(), (x,))
    before = module(x)
    parametrize.register_parametrization(module, "shift", _Doubled())
    copies = [copy.deepcopy(module), copy.copy(module), copy_graph(module), copy_graph(module, compiled=False)]
    for twin in copies:
        assert torch.equal(twin(x), before)
    assert torch.equal(repl_fx.fold(module.eval())(x), before)
    own = copies[0]
    with torch.no_grad():
        own.get_parameter("parametrizations.shift.original").zero_()
    parametrize.remove_parametrizations(own, "shift")
    assert not own.get_parameter("shift").any() and not torch.equal(own(x), before)
    assert parametrize.is_parametrized(module) and torch.equal(module(x), before)


def test_shared_copies_keep_their_kind() -> None:
    module = AlikeGraphModule(nn.Module(), _negation())
    assert type(share_tensors(module)) is type(module)


def test_casts_to_other_dtypes_stay_in_double_precision() -> None:
    class Casting(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.to(torch.float32), x.to(dtype=torch.bfloat16)

    gm = fx.symbolic_trace(Casting())
    made = in_double_precision(gm, {torch.float32: 1e-3})(torch.ones(2, dtype=torch.float64))
    assert [tensor.dtype for tensor in made] == [torch.float64, torch.bfloat16]
    assert gm(torch.ones(2))[0].dtype == torch.float32


class _Keeps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.utils.weight_norm(nn.Conv1d(4, 4, 3, padding=1))
        self.last: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.last = [x + self.conv(x)]
        return self.last[0]


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_a_model_that_keeps_values_with_a_history_is_copied() -> None:
    model, x = _Keeps(), torch.randn(2, 4, 5)
    expected = model(x)
    copied: Any = copy_model(model)
    assert torch.equal(copied.last[0], expected) and copied.last[0].is_leaf and not expected.is_leaf
    with torch.no_grad():
        copied.conv.weight_g.mul_(2)
    assert not torch.equal(copied(x), expected) and torch.equal(model(x), expected)


class _Ends(nn.Module):
    def __del__(self) -> None: ...


class _EndsToo(_Ends): ...


def test_a_module_whose_end_may_reach_what_a_copy_shares_is_not_copied() -> None:
    with pytest.raises(repl_fx.BadInput, match=r"_EndsToo has a __del__, .*\(del _Ends.__del__\)"):
        share_tensors(nn.Sequential(_EndsToo()))


def test_the_metric_of_a_copy_counts_for_itself() -> None:
    class Measured(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.accuracy = Accuracy(task="multiclass", num_classes=2)

    model = Measured()
    copied: Any = share_tensors(model)
    wrong, right = torch.tensor([1, 0]), torch.tensor([0, 1])
    assert [float(copied.accuracy(guess, right)) for guess in (wrong, right)] == [0, 1]
    copied.accuracy.reset()
    copied.accuracy.update(right, right)
    assert copied.accuracy.compute() == 1 and not model.accuracy.update_called


class _ReadsPrecision(nn.Module):
    """Computes in float32, and gives back the precision of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.layer(x.float().softmax(-1).to(x.dtype))
        return made


def test_a_graph_that_stops_in_another_precision_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    gm = capture(_ReadsPrecision(), (torch.randn(2, 4),))
    with pytest.raises(CallRefused, match=r"in another precision than torch\.bfloat16, and stops in that \(.*;"):
        gm.bfloat16()(torch.randn(2, 4).bfloat16())
    assert gm.float()(torch.randn(3, 4)).shape == (3, 4)
    # What fails in its own precision is an error as torch has it.
    gm.get_submodule("layer").register_forward_hook(lambda *_: torch.randn(2) @ torch.randn(3))
    with pytest.raises(RuntimeError) as raised:
        gm(torch.randn(3, 4))
    assert type(raised.value) is RuntimeError
    assert "FX-traced" not in capsys.readouterr().err


class _ReadsWeight(nn.Module):
    """Computes with the weight of a layer that it does not call, beside one that it calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.other.bias  # type: ignore[no-any-return]


def test_a_graph_that_reads_a_weight_without_values_says_so() -> None:
    gm = capture(_ReadsWeight(), (torch.randn(2, 4),))
    gm.get_submodule("other").to("meta")
    with pytest.raises(CallRefused, match=r"of _ReadsWeight reads other\.bias outside of its layer, where it has no"):
        gm(torch.randn(2, 4))
    gm.to("meta")
    assert gm(torch.randn(3, 4, device="meta")).shape == (3, 4)
    gm.get_submodule("layer").register_forward_hook(lambda *_: torch.randn(2) @ torch.randn(3))
    with pytest.raises(RuntimeError) as raised:
        gm(torch.randn(3, 4, device="meta"))
    assert type(raised.value) is RuntimeError


class _ReadsMatrix(_ReadsWeight):
    """Computes as a layer would that it does not call."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.layer(x), self.other.weight)


@pytest.mark.parametrize("hooked", ["", "other"])
def test_a_graph_whose_weight_is_offloaded_says_so_where_torch_would_read_other_memory(hooked: str) -> None:
    gm = capture(_ReadsMatrix(), (torch.randn(2, 4),))
    gm.get_submodule("other").to("meta")
    # By which accelerate knows what it offloads.
    vars(gm.get_submodule(hooked))["_hf_hook"] = object()
    with pytest.raises(CallRefused, match=r"of _ReadsMatrix reads other\.weight outside of its layer, where it has no"):
        gm(torch.randn(2, 4))
    gm.get_submodule("other").to_empty(device="cpu")
    assert gm(torch.randn(3, 4)).shape == (3, 4)
