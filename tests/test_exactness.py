"""A captured graph computes what its source computes, bit for bit: outputs, gradients, buffers, random draws.

Each case is a small model with one thing that is easy to get wrong. All of them take one tensor.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint

from repl_fx.tracing.capture import CaptureInfo, capture, check_capture


class Net(nn.Module):
    """A model made of named parts and a function over them."""

    def __init__(self, run: Callable[..., Any], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


@dataclass(frozen=True)
class Case:
    """A model to capture.

    Attributes:
        build: makes the model.
        shape: of its input; token ids where `tokens` is set.
        literals, switches: what merging its modes must take.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3, 8)
    literals: int = 0
    switches: int = 0
    tokens: int = 0

    def example(self) -> Tensor:
        return torch.randint(self.tokens, self.shape) if self.tokens else torch.randn(self.shape)


def linear(features: int = 8) -> nn.Linear:
    return nn.Linear(features, features)


# --- functional randomness and normalisation ------------------------------------------------------------------------


def functional_dropout(net: Net, x: Tensor) -> Tensor:
    return net.b(F.dropout(F.relu(net.a(x)), 0.3, net.training))  # type: ignore[no-any-return]


def dropout_2d(net: Net, x: Tensor) -> Tensor:
    return F.dropout2d(net.a(x), 0.3, net.training)


def alpha_dropouts(net: Net, x: Tensor) -> Tensor:
    return F.feature_alpha_dropout(F.alpha_dropout(F.selu(net.a(x)), 0.3, net.training), 0.2, net.training)


def attention(net: Net, x: Tensor) -> Tensor:
    q, k, v = net.a(x).chunk(3, -1)
    return F.scaled_dot_product_attention(q, k, v, dropout_p=0.4 if net.training else 0.0)


def functional_batch_norm(net: Net, x: Tensor) -> Tensor:
    if net.training:
        net.num_batches_tracked.add_(1)
    return F.batch_norm(net.a(x), net.mean, net.var, net.weight, net.bias, net.training, 0.1)


def batch_norm_net() -> Net:
    state = {"mean": torch.zeros(4), "var": torch.ones(4), "num_batches_tracked": torch.tensor(0)}
    own = {"weight": nn.Parameter(torch.rand(4)), "bias": nn.Parameter(torch.rand(4))}
    return Net(functional_batch_norm, a=nn.Conv2d(4, 4, 3), **own, **state)


# --- branches on the mode -------------------------------------------------------------------------------------------


def different_operators(net: Net, x: Tensor) -> Tensor:
    x = net.a(x)
    x = x + torch.randn_like(x) * 0.1 if net.training else x.clamp(-0.5, 0.5)
    if net.training:
        x = torch.tanh(x)
    return x * 2


def evaluation_clamps(net: Net, x: Tensor) -> Tensor:
    x = net.a(x)
    return x if net.training else x.clamp(-0.5, 0.5)


def training_draws(net: Net, x: Tensor) -> Tensor:
    x = net.a(x)
    if net.training:
        x = torch.where(torch.rand(x.shape[0], 1) < 0.5, x, -x)
    return x


def training_runs_more(net: Net, x: Tensor) -> Tensor:
    x = net.a(x)
    return x + net.aux(x) if net.training else x


def training_returns_more(net: Net, x: Tensor) -> Any:
    x = net.a(x)
    return {"logits": net.b(x), "aux": (net.aux(x), x)} if net.training else net.b(x)


def training_swaps(net: Net, x: Tensor) -> Tensor:
    return net.b(net.a(x)) if net.training else net.a(net.b(x))  # type: ignore[no-any-return]


def state_read_early(net: Net, x: Tensor) -> Tensor:
    # Training reads the gain after evaluation does.
    if net.training:
        return net.a(x) * net.gain  # type: ignore[no-any-return]
    return net.a(x * net.gain)  # type: ignore[no-any-return]


def rows_depend_on_the_mode(net: Net, x: Tensor) -> Tensor:
    return net.a(x)[: 2 if net.training else 1]  # type: ignore[no-any-return]


# --- in place -------------------------------------------------------------------------------------------------------


def in_place_activations(net: Net, x: Tensor) -> Any:
    y = net.a(x)
    z = net.b(net.relu(y)).relu_()
    return net.dropout(z.add(1)), y


def in_place_on_passed_value(net: Net, x: Tensor) -> Tensor:
    # In evaluation dropout returns its argument itself, so the product changes both.
    y = net.a(x)
    z = net.dropout(y)
    z.mul_(2)
    return z + y  # type: ignore[no-any-return]


def in_place_views(net: Net, x: Tensor) -> Tensor:
    y = net.a(x).clone()
    y[:, 0] = 0
    y[:, 1:3].mul_(2)
    y[y > 0.5] = 0.1
    return y  # type: ignore[no-any-return]


def counts_and_averages(net: Net, x: Tensor) -> Tensor:
    net.count += 1
    y = net.a(x)
    if net.training:
        net.average.mul_(0.9).add_(y.detach().mean(0), alpha=0.1)
    return y + net.count - net.average  # type: ignore[no-any-return]


def replaces_a_buffer(net: Net, x: Tensor) -> Tensor:
    net.count = net.count + 1
    return net.a(x) + net.count  # type: ignore[no-any-return]


# --- regions, constants, functions ----------------------------------------------------------------------------------


def without_gradient(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        target = net.a(x) * 2
    y = net.b(x) + target
    with torch.no_grad():
        scale = y.abs().max()
        with torch.enable_grad():
            again = net.a(y)
    return y / scale + again  # type: ignore[no-any-return]


def in_low_precision(net: Net, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        low = net.a(x) @ net.b.weight
    with torch.autocast("cpu", enabled=False):
        return net.b(low.float())  # type: ignore[no-any-return]


def makes_constants(net: Net, x: Tensor) -> Tensor:
    table = torch.tensor([1.0, 2.0] * 4)
    return net.a(x) * table + torch.arange(8) + torch.tensor(3.0) + torch.zeros(8, device=x.device)  # type: ignore[no-any-return]


class Round(torch.autograd.Function):
    """Rounds, with a gradient that no other operator has."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * 3


def own_gradient(net: Net, x: Tensor) -> Any:
    return Round.apply(net.a(x) * 3)


rounded: Any = Round.apply


class Rounding(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return Round.apply(x)


def recomputes(net: Net, x: Tensor) -> Any:
    return checkpoint(net.body, x, use_reentrant=False) if net.training else net.body(x)


def per_row(net: Net, x: Tensor) -> Tensor:
    for row in range(3):
        x = x + net.a(x[row])
    return x


# --- modules --------------------------------------------------------------------------------------------------------


class DropPath(nn.Module):
    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0.0:
            return x
        return x * x.new_empty(x.shape[0], 1).bernoulli_(1 - self.probability) / (1 - self.probability)


def residual_with_drop_path() -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        for layer, path in zip(net.layers, net.paths, strict=True):
            x = x + path(layer(x))
        return x

    paths = nn.ModuleList(DropPath(0.2 * i) for i in range(4))
    return Net(run, layers=nn.ModuleList(linear() for _ in range(4)), paths=paths)


def hooked() -> Net:
    net = Net(lambda net, x: net.c(net.b(net.a(x))), a=linear(), b=linear(), c=nn.Sequential(linear()))
    net.a.register_forward_hook(lambda module, args, output: output * 2)
    net.b.register_forward_pre_hook(lambda module, args, kwargs: ((args[0] + 1,), kwargs), with_kwargs=True)
    net.c.register_forward_hook(lambda module, args, output: output - 1)
    return net


def parametrized() -> Net:
    norms = nn.utils.parametrizations
    first, second = norms.weight_norm(linear()), norms.spectral_norm(linear())
    return Net(lambda net, x: net.b(F.relu(net.a(x))), a=first, b=second)


def transformer_layers() -> Net:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return Net(lambda net, x: net.a(x), a=nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


def recurrent() -> Net:
    def run(net: Net, x: Tensor) -> Any:
        outputs, (hidden, _) = net.a(x)
        return net.b(outputs)[0], hidden

    return Net(run, a=nn.LSTM(8, 8, 2, dropout=0.2, batch_first=True), b=nn.GRU(8, 8, batch_first=True))


def tied_embedding() -> Net:
    head = nn.Linear(8, 10, bias=False)
    embedding = nn.Embedding(10, 8, padding_idx=0)
    head.weight = embedding.weight

    def run(net: Net, x: Tensor) -> Any:
        return net.head(net.embedding(x) + net.positions(net.numbers[:, : x.shape[1]]))

    numbers = torch.arange(512)[None]
    return Net(run, embedding=embedding, head=head, positions=nn.Embedding(512, 8), numbers=numbers)


class PartlyFrozen(nn.Module):
    """Its `train` leaves the norm, and a part with functional dropout, in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.dropout = linear(), nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.part = Net(functional_dropout, a=linear(), b=linear())

    def forward(self, x: Tensor) -> Any:
        return self.part(self.dropout(self.norm(self.a(x))))

    def train(self, mode: bool = True) -> PartlyFrozen:
        super().train(mode)
        self.norm.eval()
        self.part.eval()
        return self


def pair(run: Callable[..., Any]) -> Callable[[], Net]:
    return lambda: Net(run, a=linear(), b=linear())


def one(run: Callable[..., Any]) -> Callable[[], Net]:
    return lambda: Net(run, a=linear())


IMAGE = (2, 4, 8, 8)
SEQUENCE = (2, 5, 8)
CASES = {
    "functional dropout": Case(pair(functional_dropout), literals=1),
    "functional dropout of channels": Case(lambda: Net(dropout_2d, a=nn.Conv2d(4, 4, 3)), IMAGE, literals=1),
    "alpha dropouts": Case(lambda: Net(alpha_dropouts, a=nn.Conv2d(4, 4, 3)), IMAGE, literals=2),
    "attention dropout": Case(lambda: Net(attention, a=nn.Linear(8, 24)), SEQUENCE, literals=1),
    "functional batch norm": Case(batch_norm_net, IMAGE, literals=1, switches=1),
    "different operators": Case(one(different_operators), switches=1),
    "evaluation clamps": Case(one(evaluation_clamps), switches=1),
    "training draws": Case(one(training_draws), switches=1),
    "training calls a module more": Case(lambda: Net(training_runs_more, a=linear(), aux=linear()), switches=1),
    "training updates a norm": Case(
        lambda: Net(training_runs_more, a=linear(), aux=nn.BatchNorm1d(8, affine=False)), switches=1
    ),
    "training returns more": Case(
        lambda: Net(training_returns_more, a=linear(), b=linear(), aux=linear()), literals=1, switches=1
    ),
    "training swaps two modules": Case(pair(training_swaps), switches=2),
    "state read early": Case(lambda: Net(state_read_early, a=linear(), gain=nn.Parameter(torch.rand(8))), switches=2),
    "rows depend on the mode": Case(one(rows_depend_on_the_mode), literals=1),
    "nested mode branch": Case(lambda: Net(lambda net, x: net.part(x), part=batch_norm_net()), IMAGE, 1, 1),
    "in-place activations": Case(
        lambda: Net(
            in_place_activations,
            a=linear(),
            b=linear(),
            relu=nn.ReLU(inplace=True),
            dropout=nn.Dropout(0.2, inplace=True),
        )
    ),
    "in place on a passed value": Case(lambda: Net(in_place_on_passed_value, a=linear(), dropout=nn.Dropout(0.3))),
    "in-place views": Case(one(in_place_views)),
    "counts and averages": Case(
        lambda: Net(counts_and_averages, a=linear(), count=torch.zeros(()), average=torch.zeros(8)), switches=1
    ),
    "replaces a buffer": Case(lambda: Net(replaces_a_buffer, a=linear(), count=torch.zeros(()))),
    "no_grad regions": Case(pair(without_gradient)),
    "autocast regions": Case(pair(in_low_precision)),
    "constants": Case(one(makes_constants)),
    "autograd function": Case(one(own_gradient)),
    "autograd function taken before": Case(one(lambda net, x: rounded(net.a(x) * 3))),
    "autograd function in a leaf": Case(lambda: nn.Sequential(linear(), Rounding(), linear())),
    "activation checkpointing": Case(lambda: Net(recomputes, body=nn.Sequential(linear(), nn.Dropout(0.2), linear()))),
    "batch as a number": Case(one(per_row)),
    "drop path": Case(residual_with_drop_path),
    "hooks": Case(hooked),
    "parametrizations": Case(parametrized),
    "multi-head attention": Case(
        lambda: Net(lambda net, x: net.a(x, x, x), a=nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)),
        SEQUENCE,
        switches=1,
    ),
    "transformer encoder": Case(transformer_layers, SEQUENCE, literals=2),
    "recurrent": Case(recurrent, SEQUENCE),
    "tied embedding": Case(tied_embedding, (2, 5), tokens=10),
    "module called twice": Case(
        lambda: Net(lambda net, x: net.n(net.a(F.relu(net.n(net.a(x))))), a=linear(), n=nn.BatchNorm1d(8))
    ),
    "train is overridden": Case(PartlyFrozen),
}


@dataclass(frozen=True)
class Step:
    """Everything that one forward and backward leaves behind."""

    outputs: list[Any]
    gradients: dict[str, Tensor | None]
    buffers: dict[str, Tensor]
    generator: Tensor


def step(model: nn.Module, x: Tensor, *, training: bool, seed: int = 1) -> Step:
    model.train(training)
    model.zero_grad()
    torch.manual_seed(seed)
    given = x.clone().requires_grad_(x.is_floating_point())
    outputs = tree_leaves(model(given * 1 if x.is_floating_point() else given))
    sum(t.float().square().sum() for t in outputs if t.requires_grad).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    return Step(outputs, {**gradients, "input": given.grad}, buffers, torch.get_rng_state())


def assert_same(ours: Step, theirs: Step) -> None:
    assert len(ours.outputs) == len(theirs.outputs)
    for a, b in zip(ours.outputs, theirs.outputs, strict=True):
        assert a.dtype == b.dtype and a.requires_grad == b.requires_grad
        assert torch.equal(a, b)
    assert ours.gradients.keys() == theirs.gradients.keys()
    for name, gradient in theirs.gradients.items():
        found = ours.gradients[name]
        assert (found is None) == (gradient is None), name
        assert found is None or gradient is None or torch.equal(found, gradient), name
    for name, buffer in theirs.buffers.items():
        assert torch.equal(ours.buffers[name], buffer), name
    assert torch.equal(ours.generator, theirs.generator), "the generators have drawn differently"


@pytest.mark.parametrize("name", CASES)
def test_graph_computes_what_its_source_computes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPL_FX_CHECK", "1")
    case = CASES[name]
    model, x = case.build(), case.example()
    gm = capture(model, (x,))
    info: CaptureInfo = gm.meta["capture"]
    assert (info.tracer, info.literals, info.switches) == ("torch.export", case.literals, case.switches)
    assert list(gm.state_dict()) == list(model.state_dict())
    assert [n for n, _ in gm.named_parameters()] == [n for n, _ in model.named_parameters()]
    # On copies, because graph and source share their buffers. Evaluation follows a training step: statistics count.
    source, graph = copy.deepcopy(model), copy.deepcopy(gm)
    for training in (True, False, True):
        assert_same(step(graph, x, training=training), step(source, x, training=training))


@pytest.mark.parametrize("name", ["functional dropout", "training draws", "drop path", "recurrent"])
def test_check_capture_agrees_and_leaves_no_trace(name: str) -> None:
    case = CASES[name]
    model, x = case.build(), case.example()
    gm = capture(model, (x,))
    before = torch.get_rng_state()
    assert check_capture(model, gm, (x,))
    assert torch.equal(torch.get_rng_state(), before)


def test_check_capture_can_fail() -> None:
    model, x = CASES["functional dropout"].build(), torch.randn(3, 8)
    gm = capture(model, (x,))
    call = next(n for n in gm.graph.nodes if n.target == "b")
    call.args = (call.args[0].args[0],)
    gm.recompile()
    check = check_capture(model, gm, (x,))
    # Without dropout evaluation is still right.
    assert check.evaluation and not check.training and not check


def test_check_capture_puts_buffers_back() -> None:
    case = CASES["replaces a buffer"]
    model = case.build()
    gm = capture(model, (case.example(),))
    assert check_capture(model, gm, (case.example(),))
    assert model.get_buffer("count") is gm.get_buffer("count")
    assert model.get_buffer("count").item() == 0


def test_part_put_in_evaluation_by_itself_stays_there() -> None:
    part = Net(functional_dropout, a=linear(), b=linear())
    model = Net(lambda net, x: net.part(net.norm(x)), part=part, norm=nn.BatchNorm1d(8))
    x = torch.randn(6, 8)
    gm = capture(model, (x,))
    source, graph = copy.deepcopy(model), copy.deepcopy(gm)
    for root in (source, graph):
        root.train()
        root.get_submodule("part").eval()
        root.get_submodule("norm").eval()
        torch.manual_seed(0)
    assert torch.equal(graph(x), source(x))
    assert torch.equal(graph.get_buffer("norm.running_mean"), torch.zeros(8))
    graph.train()
    source.train()
    assert_same(step(graph, x, training=True), step(source, x, training=True))


def test_switch_stands_in_the_module_it_belongs_to_and_is_frozen_with_it() -> None:
    model = Net(lambda net, x: net.second(net.first(x)), first=batch_norm_net(), second=nn.BatchNorm2d(4))
    x = torch.randn(IMAGE)
    gm = copy.deepcopy(capture(model, (x,))).train()
    assert "mode_switch" in dict(gm.get_submodule("first").named_children())
    gm.get_submodule("first").eval()
    gm(x)
    assert gm.get_buffer("first.num_batches_tracked").item() == 0
    assert gm.get_buffer("second.num_batches_tracked").item() == 1


class DropsOut(nn.Module):
    """Traced into, and in two versions."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = linear()

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.fc(x), 0.5, self.training)


@pytest.mark.parametrize("make", [lambda: nn.Dropout(0.5), lambda: nn.BatchNorm1d(8), lambda: nn.RReLU(), DropsOut])
def test_a_layer_that_alone_evaluates_inside_what_trains(make: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(nn.Sequential(linear(), make(), linear()), nn.Dropout(0.3), make())
    x = torch.randn(16, 8)
    gm = capture(copy.deepcopy(model), (x,))
    for network in (model, gm):
        network.train()
        network.get_submodule("0.1").eval()
    for _ in range(2):
        results = []
        for network in (model, gm):
            torch.manual_seed(3)
            results.append(network(x))
        assert torch.equal(*results)
    theirs = dict(gm.named_buffers())
    assert all(torch.equal(buffer, theirs[name]) for name, buffer in model.named_buffers())


def test_module_of_one_mode_keeps_its_place() -> None:
    model = Net(training_runs_more, a=linear(), aux=linear())
    gm = capture(model, (torch.randn(3, 8),))
    moved = copy.deepcopy(gm).double()
    # One module at one path, so that what moves or loads the model reaches it.
    assert [n for n, m in moved.named_modules() if isinstance(m, nn.Linear)] == ["a", "aux"]
    moved.train()
    assert moved(torch.randn(3, 8, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    model = Net(functional_dropout, a=linear(), b=linear()).to(dtype)
    x = torch.randn(3, 8, dtype=dtype)
    gm = capture(model, (x,))
    assert check_capture(model, gm, (x,))
    assert gm(x).dtype == dtype


@pytest.mark.slow
def test_evaluation_is_the_plain_path_of_a_transformer_layer_without_gradients_too() -> None:
    # Under no_grad a TransformerEncoderLayer in evaluation takes a fused kernel; the graph holds what autograd records.
    model, x = transformer_layers().eval(), torch.randn(SEQUENCE)
    gm = capture(model, (x,)).eval()
    with torch.no_grad():
        fused, plain = model(x), gm(x)
    assert torch.equal(plain, model(x))
    torch.testing.assert_close(plain, fused, rtol=0.0, atol=2e-6)


def test_inputs_with_gradients_and_views_of_them() -> None:
    model = Net(lambda net, x: net.a(x[:, :8]) + net.a(x[:, 8:]), a=linear())
    x = torch.randn(3, 16)
    gm = capture(model, tree_map_only(Tensor, torch.clone, (x,)))
    assert_same(step(copy.deepcopy(gm), x, training=True), step(copy.deepcopy(model), x, training=True))
