"""Graph modules through pickle, torch.save, shared memory and deepcopy: what comes out is what went in."""

from __future__ import annotations

import copy
import functools
import io
import operator
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing  # Registers how tensors go through shared memory.
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor, fx, nn
from torch.fx._symbolic_trace import PH
from torch.package.package_exporter import PackageExporter
from torch.package.package_importer import PackageImporter
from torch.utils import _pytree as pytree

import repl_fx
from repl_fx._torch import FakeTensor
from repl_fx.graph.captured import CapturedModule, PlainGraphModule
from repl_fx.graph.decisions import Comparison, Condition, Decision, choose
from repl_fx.graph.pickling import as_data, function_as_data
from repl_fx.graph.runtime import ModeSwitch
from repl_fx.graph.signature import PackOutput
from repl_fx.passes.replace_blocks import replace_blocks
from repl_fx.running.opaque_outputs import open_objects
from repl_fx.tracing.capture import capture
from repl_fx.tracing.fingerprint import lines_of_graph
from tests.exporting import Exported
from tests.nets import ConvNet, TokenNet, as_after_training, images, rewritten, tokens


def through_pickle(module: Any) -> Any:
    return pickle.loads(pickle.dumps(module))


def through_torch(module: Any) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def through_shared_memory(module: Any) -> Any:
    return pickle.loads(ForkingPickler.dumps(module))


WAYS = (through_pickle, through_torch, through_shared_memory, copy.deepcopy)
ways = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)


def outcome(module: nn.Module, inputs: tuple[Any, ...], training: bool) -> list[Any]:
    """Outputs, gradients and buffers of one step, with the randomness that is left."""
    module.train(training)
    module.zero_grad()
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    leaves = [leaf for leaf in pytree.tree_leaves(open_objects(module(*inputs))) if isinstance(leaf, Tensor)]
    sum(leaf.square().sum() for leaf in leaves).backward()  # type: ignore[union-attr]
    drawn = torch.rand(1), random.random(), float(np.random.rand())
    found = [*leaves, *(p.grad for p in module.parameters()), *module.buffers(), *drawn]
    module.zero_grad()
    return found


def assert_same(a: nn.Module, b: nn.Module, *inputs: Any) -> None:
    """Same state, same ties, and bit for bit the same steps in both modes, from the same state on."""
    assert a.training is b.training
    assert list(a.state_dict()) == list(b.state_dict())
    named = [[n for n, _ in m.named_parameters(remove_duplicate=False)] for m in (a, b)]
    assert named[0] == named[1] and len(list(a.parameters())) == len(list(b.parameters()))
    for (name, ours), (other, theirs) in zip(a.named_modules(), b.named_modules(), strict=True):
        assert (name, ours.training) == (other, theirs.training)
    before = a.training
    for training in (True, False, True):
        for ours, theirs in zip(*(outcome(m, inputs, training) for m in (a, b)), strict=True):
            assert type(ours) is type(theirs)
            assert torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours == theirs
    a.train(before), b.train(before)


SUBJECTS = [
    pytest.param(ConvNet, images, "blend", id="conv-blend"),
    pytest.param(ConvNet, images, "slim", id="conv-slim"),
    pytest.param(ConvNet, images, "coarse", id="conv-coarse"),
    pytest.param(functools.partial(TokenNet, dropout=0.3), tokens, "auto", id="tokens-auto"),
    pytest.param(functools.partial(TokenNet, dropout=0.3), tokens, "bottleneck", id="tokens-bottleneck"),
    pytest.param(TokenNet, tokens, "identity", id="tokens-identity"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("make", "inputs", "surrogate"), SUBJECTS)
def test_rewritten_and_folded_modules(
    make: Callable[[], nn.Module], inputs: Callable[[], Tensor], surrogate: str, tmp_path: Path
) -> None:
    x = inputs()
    module = rewritten(make(), x, surrogate).graph_module
    as_after_training(module)
    for way in WAYS:
        again = way(module)
        assert type(again).__name__ == type(module).__name__ and isinstance(again, CapturedModule)
        assert again.code == module.code and lines_of_graph(again) == lines_of_graph(module)
        assert_same(copy.deepcopy(module), way(again), x)
    folded = repl_fx.fold(module.eval())
    assert torch.equal(repl_fx.fold(again.eval())(x), folded(x))
    assert torch.equal(through_pickle(folded)(x), folded(x))
    assert not any(isinstance(m, repl_fx.Synthesis) for m in through_pickle(folded).modules())


@pytest.mark.slow
def test_an_unpickled_module_is_exported_and_verified(tmp_path: Path) -> None:
    x = images()
    again = through_pickle(rewritten(ConvNet(depth=3), x, "auto").graph_module)
    assert Exported(again, tmp_path / "net.onnx", [x]).verify(per_layer=True)


@pytest.mark.slow
def test_what_torch_keeps_in_a_file_another_process_reads(tmp_path: Path) -> None:
    x = tokens()
    result = repl_fx.transform(TokenNet(depth=3, dropout=0.2), (x,))
    repl_fx.save(result, tmp_path / "artifact")
    net = repl_fx.load(tmp_path / "artifact", TokenNet(depth=3, dropout=0.2), graph=True)
    torch.save((net, x, net(x)), tmp_path / "net.pt")
    code = f"""
import torch
net, x, wanted = torch.load({str(tmp_path / "net.pt")!r}, weights_only=False)
assert not net.training and torch.equal(net(x), wanted)
import repl_fx
print(type(net).__name__, torch.equal(repl_fx.fold(net)(x), wanted))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["TokenNet", "True"], done.stderr


class Masked(nn.Module):
    """Two inputs of one batch, which only the forward says, and blocks that repeat."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x) * mask[:, :, None]
        return x.reshape(x.shape[0] * 2, x.shape[1] // 2, 8) if x.shape[1] % 2 == 0 else x


@functools.cache
def masked() -> tuple[fx.GraphModule, Tensor]:
    x, mask = torch.randn(3, 6, 8), torch.ones(3, 6)
    return capture(Masked(), (x, mask)), mask


@ways
def test_an_unpickled_capture_can_be_planned_and_rewritten(way: Callable[[Any], Any]) -> None:
    captured, mask = masked()
    again = way(captured)
    outcomes = []
    for gm in (captured, again):
        repeats = repl_fx.find_repeats(gm)
        plan = repl_fx.make_plan(gm, repeats, surrogate="blend")
        after = replace_blocks(gm, repeats, plan).graph_module
        shapes = [str(node.meta.get("val")) for node in (*gm.graph.nodes, *after.graph.nodes)]
        outcomes.append((plan, lines_of_graph(after), shapes))
    assert outcomes[0][0].replacements and outcomes[0] == outcomes[1]
    # Sizes that the trace found to be one size are one size again, for new values too.
    sizes = [[str(n.meta["val"].shape[0]) for n in gm.graph.nodes if n.op == "placeholder"] for gm in (captured, again)]
    assert sizes[0] == sizes[1]
    with pytest.raises(repl_fx.BadInput, match="has shape"):
        again(torch.randn(3, 6, 7), mask)


def test_fake_values_are_of_one_mode_again() -> None:
    captured = capture(TokenNet(depth=3, dropout=0.2), (tokens(),))
    again, twin = through_pickle((captured, captured))
    assert again is twin
    values = [node.meta["val"] for node in again.graph.nodes if "val" in node.meta]
    fakes = [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, FakeTensor)]
    assert fakes and {id(fake.fake_mode) for fake in fakes} == {id(again.meta["fake_mode"])}
    kinds = [[type(node.meta.get("val")) for node in gm.graph.nodes] for gm in (again, captured)]
    assert kinds[0] == kinds[1]


class Mixed(nn.Module):
    """What else a graph may hold: a region, tied weights, a buffer that moves; a mode switch, or layers to skip."""

    mean: Tensor

    def __init__(self, skips: bool) -> None:
        super().__init__()
        self.skips = skips
        self.first, self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.norm, self.drop, self.frozen = nn.BatchNorm1d(8), nn.Dropout(0.5), nn.BatchNorm1d(8)
        self.register_buffer("mean", torch.zeros(8), persistent=False)
        self.unused = nn.Parameter(torch.ones(3))

    def train(self, mode: bool = True) -> Mixed:
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, x: Tensor) -> dict[str, Any]:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        x = self.frozen(self.norm(self.first(x))) - self.mean
        if self.training and not self.skips:
            x = x + torch.rand(1) * self.third(x)
        for layer in (self.second, self.third):
            if self.skips and self.training and torch.rand([]) < 0.5:
                continue
            x = x + layer(x).relu()
        if self.skips and self.training and random.random() < 0.5:
            pass
        else:
            x = x + self.third(x)
        with torch.no_grad():
            scale = x.abs().amax()
        return {"x": self.drop(x) / scale, "both": [x, (scale.detach(), 3)]}


@functools.cache
def mixed(skips: bool) -> fx.GraphModule:
    return capture(Mixed(skips), (torch.randn(4, 8),))


@ways
@pytest.mark.parametrize("skips", [True, False])
def test_modes_regions_ties_and_skipped_layers(way: Callable[[Any], Any], skips: bool) -> None:
    x, module = torch.randn(4, 8), mixed(skips)
    again = way(module)
    assert again.get_parameter("first.weight") is again.get_parameter("second.weight")
    assert "mean" not in again.state_dict() and "unused" in again.state_dict()
    assert again.train().get_submodule("frozen").training is False and again.get_submodule("norm").training
    assert any(isinstance(node.target, Decision) for node in again.graph.nodes) is skips
    assert any(isinstance(child, ModeSwitch) for child in again.modules()) is not skips
    assert again.code == module.code and ("if skip_layer" in again.code) is skips
    state = copy.deepcopy(module)
    for seed in range(8):
        results = []
        for each in (state.train(), again.train()):
            torch.manual_seed(seed)
            random.seed(seed)
            results.append(each(x)["x"])
        assert torch.equal(*results)
    assert torch.is_grad_enabled()


def test_draws_come_from_the_generators_of_the_process() -> None:
    for function, seed in ((random.random, random.seed), (np.random.rand, np.random.seed)):
        drawn = through_pickle(Decision(Comparison(function, (), operator.lt, 0.5), True))
        assert drawn.draw.function is function
        numbers = []
        for _ in range(2):
            seed(3)
            numbers.append([drawn() for _ in range(20)])
        assert numbers[0] == numbers[1] and len(set(numbers[0])) == 2


def _skips() -> CapturedModule:
    graph = fx.Graph()
    x = graph.placeholder("x")
    truth = graph.call_function(torch.any, (graph.call_function(torch.gt, (x, 5)),))
    skip = graph.call_function(Condition(True), (truth,))
    doubled = graph.call_function(torch.mul, (x, 2))
    graph.output(graph.call_function(choose, (skip, x, doubled)))
    return CapturedModule(nn.Module(), graph)


def test_code_that_jumps_over_layers() -> None:
    again = through_pickle(_skips())
    assert "if skip_if:" in again.code
    assert torch.equal(again(torch.tensor([1.0, 6.0])), torch.tensor([1.0, 6.0]))
    assert torch.equal(again(torch.tensor([1.0])), torch.tensor([2.0]))


@dataclass
class Result:
    """An output that pytree is told about."""

    x: Tensor
    note: str


torch.export.register_dataclass(Result)


class Cache:
    """An output that pytree is not told about, which says where its tensors are."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.device, self.dtype = x, x.device, x.dtype


class Returns(nn.Module):
    def __init__(self, kind: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.fc, self.kind = nn.Linear(8, 8), kind

    def forward(self, x: Tensor) -> Any:
        return self.kind(self.fc(x))


def as_result(x: Tensor) -> Any:
    return [Result(x, "seen"), x.chunk(2)]


def as_cache(x: Tensor) -> Any:
    return {"cache": Cache(x), "none": None}


@ways
def test_structured_outputs(way: Callable[[Any], Any]) -> None:
    x = torch.randn(3, 8)
    for kind in (as_result, as_cache):
        module = capture(Returns(kind), (x,))
        assert_same(module, way(module), x)
    made = way(module).to("meta")(x.to("meta"))
    assert type(made["cache"]) is Cache and made["cache"].device == torch.device("meta")
    assert made["none"] is None and made["cache"].dtype is torch.float32
    assert any(isinstance(node.target, PackOutput) for node in module.graph.nodes)


class Pooled(nn.Module):
    """Calls a function of torch that Python cannot find by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv(x), 2).flatten(1)


def test_graphs_of_models_that_cannot_be_pickled() -> None:
    class Local(nn.Module):
        """Cannot be pickled, and is no part of its graph."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = Pooled()

        def forward(self, x: Tensor) -> Any:
            return self.inner(x)

    module = capture(nn.Sequential(Local()), (images(),))
    assert_same(module, through_pickle(module), images())


class Branches(nn.Module):
    """No single graph: which way it goes depends on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.body = ConvNet()
        self.threshold = 1e9

    def forward(self, x: Tensor) -> Tensor:
        logits = self.body(x)
        return logits if float(logits.detach().sum()) < self.threshold else -logits  # type: ignore[no-any-return]


@functools.cache
def in_parts() -> tuple[repl_fx.TransformResult, Tensor]:
    x = images()
    return repl_fx.transform(Branches(), (x,), surrogate="blend"), x


@ways
def test_models_in_parts(way: Callable[[Any], Any]) -> None:
    result, x = in_parts()
    assert not result.captured_parts.whole
    module: Any = copy.deepcopy(result.module)
    module.tag, module.history = "x", [1, 2]
    module.register_forward_hook(_doubled)
    again: Any = way(module)
    assert isinstance(again, Branches) and isinstance(again.body, CapturedModule)
    assert vars(again)["tag"] == "x" and vars(again)["history"] == [1, 2]
    assert vars(again)["history"] is not module.history
    twin = copy.deepcopy(module)
    assert_same(twin, again, x)
    assert torch.equal(repl_fx.fold(again.eval())(x), repl_fx.fold(twin.eval())(x))
    captured = copy.deepcopy(result.captured_parts.module)
    assert_same(captured, way(captured), x)


def _doubled(module: nn.Module, args: Any, out: Any) -> Any:
    return 2 * out


@ways
@pytest.mark.parametrize("kind", [CapturedModule, nn.Linear], ids=["graph", "plain"])
def test_attributes_and_hooks_are_kept_as_those_of_any_module(way: Callable[[Any], Any], kind: type) -> None:
    x = torch.randn(3, 8)
    module: Any = nn.Linear(8, 8) if kind is nn.Linear else capture(nn.Sequential(nn.Linear(8, 8)), (x,))
    module.tag, module.ema_decay, module.history = "x", 0.9, [1, [2]]
    module.itself = module.forward if kind is nn.Linear else None
    module.register_forward_hook(_doubled)
    module.register_forward_pre_hook(_unchanged)
    module.register_full_backward_hook(_seen)
    next(module.parameters()).register_hook(_seen_gradient)
    again = way(module)
    assert (again.tag, again.ema_decay, again.history) == ("x", 0.9, [1, [2]])
    assert again.history[1] is not module.history[1]
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
        assert list(vars(again)[hooks].values()) == list(vars(module)[hooks].values()) != []
    assert torch.equal(again(x), module(x))
    # As torch has it, copies of parameters are without what was registered on their gradients.
    assert not next(again.parameters())._backward_hooks


def _unchanged(module: nn.Module, args: Any) -> None: ...


def _seen(module: nn.Module, given: Any, made: Any) -> None: ...


@torch.utils.hooks.unserializable_hook  # type: ignore[untyped-decorator]
def _seen_gradient(gradient: Tensor) -> None: ...


class Calls:
    """A hook that knows its module."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.count = module, 0

    def __call__(self, module: nn.Module, args: Any) -> None:
        assert module is self.module
        self.count += 1


@ways
def test_a_hook_that_holds_its_module_holds_the_copy(way: Callable[[Any], Any]) -> None:
    module = capture(nn.Sequential(nn.Linear(8, 8)), (torch.randn(2, 8),))
    hook = Calls(module)
    module.register_forward_pre_hook(hook)
    again = way(module)
    again(torch.randn(2, 8))
    (copied,) = again._forward_pre_hooks.values()
    assert copied.module is again and (copied.count, hook.count) == (1, 0)


class Views(nn.Module):
    """Has a buffer that shows the memory of a parameter."""

    turned: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.square = nn.Parameter(torch.randn(8, 8))
        self.register_buffer("turned", self.square.detach().t()[2:])

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.square + x[:, :6] @ self.turned


@pytest.mark.parametrize("way", WAYS[:3])
def test_buffers_that_show_the_memory_of_parameters_still_do(way: Callable[[Any], Any]) -> None:
    module = capture(Views(), (torch.randn(3, 8),))
    before = module.get_buffer("turned").clone()
    again = way(module)
    with torch.no_grad():
        again.get_parameter("square").mul_(2)
    assert torch.equal(again.get_buffer("turned"), again.get_parameter("square").t()[2:])
    assert torch.equal(again.get_buffer("turned"), 2 * before)


@pytest.mark.slow
def test_models_without_values() -> None:
    with torch.device("meta"):
        module = rewritten(TokenNet(depth=3), tokens(), "identity").graph_module
    for way in WAYS:
        again = way(module)
        assert all(parameter.is_meta for parameter in again.parameters())
        assert again(tokens(4).to("meta")).shape == (4, 10)


def test_attributes_of_the_source_are_copied_with_the_module() -> None:
    module: Any = capture(nn.Sequential(nn.Linear(8, 8)), (torch.randn(2, 8),))
    module.meta["attributes"] = {"out_channels": 8, "sizes": [1, 2]}
    for way in WAYS:
        again = way(module)
        again.sizes.append(3)
        assert again.out_channels == 8 and module.sizes == [1, 2]


def test_a_class_that_was_made_for_one_module_is_refused() -> None:
    module = capture(nn.Sequential(nn.Linear(8, 8)), (torch.randn(2, 8),))
    module.__class__ = type("FSDPNet", (type(module),), {})
    with pytest.raises(pickle.PicklingError, match="Sequential has become a FSDPNet, a class that was made for it"):
        pickle.dumps(module)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_graphs_go_into_a_package_of_torch() -> None:
    x = torch.randn(2, 8)
    blocks = nn.Sequential(*(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)) for _ in range(4)))
    module = repl_fx.transform(blocks, (x,), surrogate="blend").graph_module
    file = io.BytesIO()
    with PackageExporter(file) as exporter:
        exporter.extern("**")
        exporter.save_pickle("models", "net.pkl", {"one": module, "same": module})
    file.seek(0)
    read = PackageImporter(file).load_pickle("models", "net.pkl")
    assert read["one"] is read["same"] and torch.equal(read["one"](x), module(x))
    assert torch.equal(repl_fx.fold(read["one"].eval())(x), repl_fx.fold(module.eval())(x))


def test_an_operator_of_a_library_that_is_not_imported_is_named() -> None:
    module = capture(nn.Sequential(nn.Linear(8, 8)), (torch.randn(2, 8),))
    torch.library.define("repl_fx_test::same", "(Tensor x) -> Tensor")
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    with module.graph.inserting_before(output):
        called = module.graph.call_function(torch.ops.repl_fx_test.same.default, (output.args[0],))
    output.args = (called,)
    data = pickle.dumps(module).replace(b"repl_fx_test.same", b"repl_fx_test.gone")
    with pytest.raises(pickle.UnpicklingError, match=r"calls the operator repl_fx_test\.gone\.default, which torch"):
        pickle.loads(data)


@pytest.mark.slow
def test_sizes_of_another_torch_are_refused() -> None:
    captured = capture(TokenNet(depth=3), (tokens(),))
    version = str(torch.__version__).encode()
    data = pickle.dumps(captured).replace(b"var_to_range", b"var_to_other").replace(version, b"9" * len(version))
    with pytest.raises(pickle.UnpicklingError, match=r"was pickled with torch 9+, and torch .* keeps them otherwise"):
        pickle.loads(data)


def test_a_local_function_is_pickles_own_error() -> None:
    module = capture(nn.Sequential(nn.Linear(8, 8)), (torch.randn(2, 8),))
    module.register_forward_hook(lambda m, args, out: out)
    with pytest.raises((AttributeError, pickle.PicklingError), match=r"Can't (pickle|get) local object"):
        pickle.dumps(module)


def test_a_result_says_what_of_it_can_be_pickled() -> None:
    result, _ = in_parts()
    for way in (pickle.dumps, copy.deepcopy):
        with pytest.raises(pickle.PicklingError, match=r"pickle result\.module, and keep all of it with repl_fx\.save"):
            way(result)
    assert copy.copy(result).plan is result.plan


def test_operators_and_functions_are_found_by_name() -> None:
    aten = torch.ops.aten
    for function in (
        aten.add.Tensor, aten.relu.default, aten.relu, F.max_pool2d, F.relu, torch.relu, torch.Tensor.view, getattr,
        operator.getitem, torch.ops.higher_order.wrap_with_set_grad_enabled, random.random, np.random.rand,
    ):  # fmt: skip
        assert through_pickle(function_as_data(function)) == function


# Values as nodes note them, with symbolic sizes in them at any depth.
SIZES = st.lists(st.integers(2, 9), min_size=1, max_size=3)


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.tuples(inner, inner),
            st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
            st.builds(Result, inner, st.just("note")),
        ),
        max_leaves=5,
    )


@pytest.mark.slow
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(sizes=SIZES, picks=nested(st.integers(0, 7)))
def test_values_of_nodes_at_any_depth(sizes: list[int], picks: Any) -> None:
    class Sizes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.transpose(0, -1).reshape(-1) * x.shape[0]

    program = torch.export.export(
        Sizes(), (torch.ones(sizes),), dynamic_shapes=({i: torch.export.Dim.AUTO for i in range(len(sizes))},)
    )
    values = [node.meta["val"] for node in program.graph.nodes if "val" in node.meta]
    known = [*values, None, 2, "word", torch.float32, values[0].shape[0] * 2 + 1]
    value = pytree.tree_map(lambda pick: known[pick % len(known)] if isinstance(pick, int) else pick, picks)
    again = through_pickle(as_data(value))
    assert pytree.tree_structure(again) == pytree.tree_structure(value)
    for ours, theirs in zip(pytree.tree_leaves(again), pytree.tree_leaves(value), strict=True):
        assert type(ours) is type(theirs) and str(ours) == str(theirs)
        if isinstance(ours, Tensor):
            assert (ours.dtype, ours.device, str(ours.stride())) == (theirs.dtype, theirs.device, str(theirs.stride()))
            assert [s if isinstance(s, int) else s.node.hint for s in ours.shape] == [
                s if isinstance(s, int) else s.node.hint for s in theirs.shape
            ]


def test_graphs_inside_graphs_are_data_too() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(torch.ops.aten.relu.default, (x,)))
    module = PlainGraphModule(nn.Module(), graph)
    again = through_pickle(module)
    assert type(again).__mro__[1] is PlainGraphModule
    assert torch.equal(again(torch.tensor([-1.0, 2.0])), torch.tensor([0.0, 2.0]))
    assert [node.name for node in again.graph.nodes] == [node.name for node in graph.nodes]


def test_graphs_that_take_and_return_nested_values() -> None:
    def swapped(given: dict[str, Any]) -> Any:
        return {"b": given["a"] + 1, "a": [given["b"]]}

    traced = fx.symbolic_trace(swapped, concrete_args={"given": {"a": PH, "b": PH}})
    module = PlainGraphModule(nn.Module(), traced.graph)
    module.graph.on_generate_code(lambda _: lambda lines: lines)
    again = through_pickle(module)
    assert again({"a": 1, "b": 2}) == {"b": 2, "a": [2]}


class Laid(nn.Module):
    """Tensors that its code makes in a memory format."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.empty_like(x, memory_format=torch.contiguous_format).fill_(2.0)
        return y * x.contiguous(memory_format=torch.channels_last)


def test_memory_formats_go_through_torch_save() -> None:
    x = torch.randn(2, 3, 4, 4)
    gm = capture(Laid(), (x,))
    file = io.BytesIO()
    torch.save(gm, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again(x), gm(x)) and again(x).stride() == gm(x).stride()
