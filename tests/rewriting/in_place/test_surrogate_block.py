"""The classes of surrogates in place, and how they take their arguments."""

from __future__ import annotations

import copy
import inspect
import pickle
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint, checkpoint as computed_again

import repl_fx
from repl_fx.errors import CallRefused
from repl_fx.rewriting.in_place.placing import OWN
from repl_fx.rewriting.in_place.surrogate_block import Argument, SurrogateBlock, surrogate_class, surrogate_graphs
from tests.nets import MlpBlock, MlpNet, TokenNet, TransformerBlock

X = torch.randn(2, 6, 16)


class _Block(nn.Module):
    def forward(self, x: Tensor, *more: Tensor, mask: Tensor | None = None, scale: float = 2.0, **flags: Any) -> Tensor:
        return x


def test_a_class_is_the_blocks_and_has_its_signature() -> None:
    kind = surrogate_class(_Block, False)
    assert surrogate_class(_Block, False) is kind
    assert surrogate_class(_Block, True) is not kind
    assert issubclass(kind, (_Block, SurrogateBlock))
    assert kind.__name__ == "_BlockSurrogate"
    assert inspect.signature(kind.forward) == inspect.signature(_Block.forward)


def test_arguments_are_bound_as_python_binds_them() -> None:
    bind = surrogate_class(_Block, False)._bind
    assert bind(1, 2, 3, mask=4, late=5) == {"x": 1, "more": (2, 3), "mask": 4, "scale": 2.0, "flags": {"late": 5}}
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        bind(mask=4)


def test_an_argument_is_found_and_has_its_fixed_sizes() -> None:
    argument = Argument(("more", 1), {1: 4}, 2)
    assert argument.of({"more": (X, x := torch.ones(3, 4))}, "b") is x
    with pytest.raises(RuntimeError, match=r"computes with more, which was a tensor .* and is None now"):
        argument.of({"more": (X,)}, "b")
    with pytest.raises(RuntimeError, match=r"captured with more of shape \(any, 4\), and is called with \(3, 5\)"):
        argument.of({"more": (X, torch.ones(3, 5))}, "b")


class _Frozen(TransformerBlock):
    """A block that keeps a norm in evaluation mode."""

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.norm2.eval()
        return self


class _FrozenNet(TokenNet):
    def __init__(self) -> None:
        super().__init__(depth=3)
        self.blocks = nn.Sequential(*(_Frozen(16) for _ in range(3)))


@pytest.mark.parametrize("surrogate", ["bottleneck", "identity", "blend"])
def test_modes_are_those_that_the_block_keeps_also_where_a_child_is_gone(surrogate: str) -> None:
    model: Any = repl_fx.transform(_FrozenNet(), (X,), surrogate=surrogate).model
    for mode in (True, False):
        block = model.train(mode).blocks[1]
        assert isinstance(block, SurrogateBlock)
        assert block.training is mode
        assert all(child.training is (mode and path != "norm2") for path, child in block.named_modules())


def test_values_in_the_place_of_parameters_are_gone_behind_the_call() -> None:
    model: Any = repl_fx.transform(TokenNet(depth=3), (X,), surrogate="blend").model
    block = model.blocks[1]
    model(X)
    assert block.fc1._parameters["weight"] is None
    assert OWN in block._modules
    with pytest.raises(RuntimeError):
        block(X[..., :3])
    assert block.fc1._parameters["weight"] is None
    assert OWN in block._modules
    assert list(surrogate_graphs(model)) == ["blocks.1"]


class _Convolved(nn.Module):
    """A block with a layer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.line, self.plane, self.space = nn.Conv1d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv3d(4, 4, 1)
        self.fc = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        turned: Tensor = self.space(self.plane(self.line(x).relu()[..., None])[..., None])[..., 0, 0]
        made: Tensor = x + self.fc(turned.relu())
        return made


@pytest.mark.parametrize("copied", [lambda net: net, copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_layers_whose_weights_are_made_are_of_no_class_that_has_weights(copied: Any) -> None:
    source, x = nn.Sequential(*(_Convolved() for _ in range(3))), torch.randn(2, 4, 5)
    result = repl_fx.transform(source, (x,), surrogate="blend")
    net = copied(result.model)
    emptied = [module for module in net.modules() if "weight" in module._parameters and module.weight is None]
    names = ["Kernel1dSurrogate", "Kernel2dSurrogate", "Kernel3dSurrogate", "MatrixSurrogate"]
    assert [type(module).__name__ for module in emptied] == names
    assert not any(isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) for module in emptied)
    assert all(
        repr(ours).endswith(repr(theirs).partition("(")[2])
        for ours, theirs in zip(emptied, source[1].children(), strict=True)
    )
    for module in emptied:
        with pytest.raises(CallRefused, match="has a weight only while its block runs; call the block"):
            module(x)
    assert torch.equal(net.eval()(x), result.module.eval()(x))


def test_functions_that_draw_weights_by_the_names_of_classes_or_anew_pass_over_those_that_are_made() -> None:
    def draw(module: nn.Module) -> None:
        if any(kind in type(module).__name__ for kind in ("Conv", "Linear")):
            nn.init.normal_(module.weight.data)  # type: ignore[arg-type]
        if callable(again := getattr(module, "reset_parameters", None)):
            again()

    x, layers = torch.randn(2, 6, 16), (nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(3))
    result = repl_fx.transform(nn.Sequential(*layers), (x,), surrogate="blend")
    net = result.model
    before = net.eval()(x)
    net.apply(draw)
    assert not torch.equal(net(x), before) and torch.equal(net(x), result.module.eval()(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("surrogate", ["reuse", "blend", "bottleneck", "narrow"])
def test_symbolic_and_torchscript_traces_compute_what_the_model_does(surrogate: str) -> None:
    model: Any = repl_fx.transform(TokenNet(depth=3), (X,), surrogate=surrogate).model.eval()
    with torch.no_grad():
        for parameter in model.blocks[1].parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    traced = fx.symbolic_trace(model)
    leaves = [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]
    assert "blocks.1" in leaves and "blocks.2.fc1" in leaves
    jit: Any = torch.jit
    scripted = jit.trace(model, X, check_trace=False)
    with torch.no_grad():
        for x in (X, torch.randn(2, 6, 16)):
            assert torch.equal(traced(x), model(x))
            torch.testing.assert_close(scripted(x), model(x))


class _Chained(nn.Sequential):
    """A block whose forward runs all of its children, with a sum around them."""

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return x + made


def _chains() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(_Chained(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(5)))


@pytest.fixture
def quick_switches() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.parametrize("surrogate", ["blend", "narrow", "bottleneck", "reuse"])
@pytest.mark.usefixtures("quick_switches")
def test_threads_may_evaluate_one_model_and_copies_of_it(surrogate: str) -> None:
    for model in (TokenNet(depth=5), _chains()):
        if surrogate == "reuse" and not isinstance(model, TokenNet):
            continue
        net = repl_fx.transform(model, (X,), surrogate=surrogate).model.eval()
        for one in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            with torch.no_grad():
                wanted = one(X)
            with ThreadPoolExecutor(4) as threads:
                found = list(threads.map(lambda _, net=one: _evaluated(net), range(40)))
            assert all(torch.equal(value, wanted) for value in found)


@pytest.mark.usefixtures("quick_switches")
def test_threads_may_train_side_by_side() -> None:
    net = repl_fx.transform(TokenNet(depth=5), (X,), surrogate="blend").model
    parameters = list(net.parameters())
    wanted = torch.autograd.grad(net(X).square().sum(), parameters)

    def gradients(_: int) -> Sequence[Tensor]:
        return torch.autograd.grad(net(X).square().sum(), parameters)

    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(gradients, range(12)):
            assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def _evaluated(net: nn.Module) -> Tensor:
    with torch.no_grad():
        made: Tensor = net(X)
    return made


@pytest.mark.parametrize("surrogate", ["blend", "narrow"])
def test_a_call_changes_no_module(surrogate: str) -> None:
    net = repl_fx.transform(_chains(), (X,), surrogate=surrogate).model.eval()
    before = {path: (id(m._parameters), id(m._modules), dict.copy(m._modules)) for path, m in net.named_modules()}
    with torch.no_grad():
        net(X)
    after = {path: (id(m._parameters), id(m._modules), dict.copy(m._modules)) for path, m in net.named_modules()}
    assert before == after and net.get_submodule("1.0").weight is None
    # Another thread may save all of it meanwhile.
    seen: list[dict[str, Tensor]] = []
    with ThreadPoolExecutor(1) as threads:
        net.get_submodule("1.1").register_forward_hook(lambda *_: seen.append(threads.submit(net.state_dict).result()))
        net(X)
    assert [list(state) for state in seen] == [list(net.state_dict())]


class _Careful(nn.Module):
    """A block whose norm is computed in single precision, whatever that of the model is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(width))
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        single = x.to(torch.float32)
        normed = single * torch.rsqrt(single.square().mean(-1, keepdim=True) + 1e-6)
        made: Tensor = x + self.narrow(torch.relu(self.wide(self.scale * normed.to(x.dtype))))
        return made


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_that_is_converted_afterwards_has_one_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    source = nn.Sequential(*(_Careful(8) for _ in range(3)), nn.Linear(8, 2))
    x = torch.randn(4, 8)
    result = repl_fx.transform(source, (x,), every=2, surrogate="bottleneck", in_place=True)
    model = result.model.eval()
    wanted = model(x)
    model.to(dtype)
    made = model(x.to(dtype))
    assert made.dtype == dtype
    torch.testing.assert_close(made.float(), wanted, rtol=0.05, atol=0.05)
    made.sum().backward()
    assert all(p.grad is None or p.grad.dtype == dtype for p in model.parameters())
    with torch.no_grad():
        assert torch.equal(model(x.to(dtype)), made)


def test_a_size_of_one_is_no_batch_to_give() -> None:
    """Tables for all examples (rotary ones) have a first dimension of 1."""
    argument = Argument(("tables",), {0: 1}, 2)
    assert argument.of({"tables": torch.ones(1, 3)}, "layers.1").shape == (1, 3)
    with pytest.raises(repl_fx.ReplFxError, match=r"called with \(2, 3\); capture the model with such inputs"):
        argument.of({"tables": torch.ones(2, 3)}, "layers.1")


class _Branched(nn.Module):
    """Two layers side by side, which are one for inference."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.act = nn.Linear(8, 8), nn.ReLU()
        self.other: nn.Module | None = nn.Linear(8, 8)

    def reparameterize(self) -> None:
        made = nn.Linear(8, 8)
        assert isinstance(self.other, nn.Linear)
        made.weight.data = self.one.weight + self.other.weight
        made.bias.data = self.one.bias + self.other.bias
        self.one, self.other = made, None

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x) if self.other is None else self.one(x) + self.other(x)
        return x + self.act(y)  # type: ignore[no-any-return]


@pytest.mark.parametrize("surrogate", ["identity", "bottleneck", "blend"])
def test_layers_that_are_fused_for_inference_are_no_surrogates(surrogate: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8)
    model: Any = repl_fx.transform(
        nn.Sequential(*(_Branched() for _ in range(3))), (x,), surrogate=surrogate
    ).model.eval()
    before = model(x)
    with torch.no_grad():
        model[0].reparameterize()
        if surrogate == "identity":
            assert model[1].reparameterize() is model[1]
            torch.testing.assert_close(model(x), before)
        else:
            with pytest.raises(repl_fx.errors.CallRefused, match=r"the surrogate of 1 is made .*; fold the model"):
                model[1].reparameterize()


@pytest.mark.parametrize("form", ["model", "graph_module"])
@pytest.mark.parametrize("surrogate", ["identity", "bottleneck", "blend"])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_results_are_no_torch_script_and_can_be_traced(surrogate: str, form: str) -> None:
    x = torch.randn(2, 4, 16)
    result = repl_fx.transform(nn.Sequential(*(MlpBlock(16) for _ in range(3))), (x,), surrogate=surrogate)
    module = getattr(result, form).eval()
    script: Any = torch.jit.script  # Without annotations in torch, as the next.
    with pytest.raises(CallRefused, match=r"cannot be compiled by torch\.jit\.script.*torch\.jit\.trace"):
        script(nn.Sequential(module))
    trace: Any = torch.jit.trace
    other = torch.randn(3, 5, 16)
    torch.testing.assert_close(trace(module, (x,))(other), module(other), rtol=0, atol=0)


class _Recomputing(MlpBlock):
    """Computes its branch again in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = checkpoint(lambda x: self.fc2(self.fc1(self.norm(x)).relu()), x, use_reentrant=False)
        return x + branch


class _RecomputingByAnotherName(MlpBlock):
    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = computed_again(lambda x: self.fc2(self.fc1(self.norm(x)).relu()), x, use_reentrant=False)
        return x + branch


def _branch_again(block: MlpBlock, x: Tensor) -> Tensor:
    again: Tensor = checkpoint(lambda x: block.fc2(block.fc1(block.norm(x)).relu()), x, use_reentrant=False)
    return again


class _RecomputingInAFunction(MlpBlock):
    def forward(self, x: Tensor) -> Tensor:
        return x + _branch_again(self, x)


@pytest.mark.parametrize(
    ("surrogate", "block"),
    [
        ("blend", _Recomputing),
        ("narrow", _Recomputing),
        ("blend", _RecomputingByAnotherName),
        ("blend", _RecomputingInAFunction),
    ],
)
def test_blocks_that_compute_again_in_their_backward_pass_train(surrogate: str, block: type[MlpBlock]) -> None:
    net, x = nn.Sequential(*(block(8) for _ in range(4))), torch.randn(2, 8)
    result = repl_fx.transform(net, (x,), surrogate=surrogate)
    assert result.in_place.model is not None
    gradients = []
    for model in (result.model, result.graph_module):
        torch.autograd.backward(model.train()(x).square().sum())
        named = result.in_place.tensors_of(model)
        gradients.append({name: tensor.grad for name, tensor in named.items() if tensor.grad is not None})
        model.zero_grad()
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(grad, gradients[1][name]) for name, grad in gradients[0].items())


@pytest.mark.parametrize("surrogate", ["blend", "bottleneck"])
def test_a_block_that_was_moved_takes_no_weights_of_others(surrogate: str) -> None:
    net = repl_fx.transform(MlpNet(7), (X,), surrogate=surrogate, blocks=["blocks.3"]).model
    wrapped, wanted = copy.deepcopy(net), net(X)
    assert isinstance(net.blocks, nn.Sequential) and isinstance(wrapped.blocks, nn.Sequential)
    wrapped.blocks[3] = nn.Sequential(wrapped.blocks[3])
    assert torch.equal(wrapped(X), wanted) and torch.equal(copy.deepcopy(wrapped)(X), wanted)
    alone, before = nn.Sequential(*net.blocks[2:]), net.blocks[2:](X)
    assert torch.equal(alone(X), before) and torch.equal(copy.deepcopy(alone)(X), before)
    net.blocks = net.blocks[:5]
    net(X)
    net.blocks = nn.Sequential(MlpBlock(16), MlpBlock(16), *net.blocks)
    with pytest.raises(CallRefused, match=r"the surrogate of blocks\.3 lies elsewhere in the model now"):
        net(X)
