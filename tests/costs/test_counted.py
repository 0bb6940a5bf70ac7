"""Costs against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repl_fx
from repl_fx._torch import FakeTensor
from repl_fx.costs.counted import flops_by_node, kept_by_node, measure_costs
from repl_fx.running.example_inputs import ExampleInputs
from tests.captures import kept_in_a_run


class Residual(nn.Module):
    """x + down(relu(up(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(F.relu(self.up(x)))
        return out


class Attention(nn.Module):
    """Attention without parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)


class Tied(nn.Module):
    """Two linear layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4, bias=False)
        self.two = nn.Linear(4, 4, bias=False)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.two(self.one(x))
        return out


class NeedsValues(nn.Module):
    """Branches on a value, which a fake tensor does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum().item() > 0 else -x


def test_a_linear_layer() -> None:
    costs = measure_costs(nn.Linear(5, 7), (torch.randn(3, 5),))
    assert (costs.batch, costs.parameters, costs.weight_bytes) == (3, 5 * 7 + 7, 4 * (5 * 7 + 7))
    assert costs.flops == 2 * 3 * 5 * 7
    assert costs.flops_per_sample == 2 * 5 * 7
    # The input is kept for the gradient of the weight, and nothing else is.
    assert costs.activation_bytes == 4 * 3 * 5


def test_two_layers_keep_the_input_and_the_hidden_values() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    costs = measure_costs(net, (torch.randn(2, 4),))
    assert costs.flops == 2 * 2 * (4 * 8 + 8 * 3)
    # What ReLU returns is kept by it and by the next layer: one storage.
    assert costs.activation_bytes == 4 * 2 * (4 + 8)


def test_a_convolution_with_batch_norm() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
    costs = measure_costs(net, (torch.randn(2, 3, 6, 6),))
    assert costs.parameters == 8 * 3 * 9 + 2 * 8
    # Running mean and variance, and the counter of batches in 64 bits.
    assert costs.weight_bytes == 4 * (costs.parameters + 2 * 8) + 8
    assert costs.flops == 2 * 2 * 8 * 36 * 3 * 9
    # The input, what the convolution returns, and mean and inverse deviation of the batch.
    assert costs.activation_bytes == 4 * (2 * 3 * 36 + 2 * 8 * 36 + 8 + 8)


def test_fused_attention_counts_its_two_products() -> None:
    costs = measure_costs(Attention(), (torch.randn(2, 3, 16, 8),))
    assert costs.flops == 2 * (2 * 2 * 3 * 16 * 16 * 8)


@pytest.mark.slow
@pytest.mark.parametrize("width", [16, 48])
def test_attention_layers_of_torch_count_what_they_are_made_of(width: int) -> None:
    layer, x = nn.TransformerEncoderLayer(width, 2, 32, batch_first=True), torch.randn(2, 4, width)
    products = width * 3 * width + width * width + 2 * width * 32
    attention = 2 * 4 * width
    assert measure_costs(layer.eval(), (x,)).flops == 2 * 8 * (products + attention)
    attend = nn.MultiheadAttention(width, 2, batch_first=True).eval()
    assert measure_costs(attend, (x, x, x)).flops == 2 * 8 * (4 * width * width + attention)
    # As of a graph, in which such a layer stays whole, and as one that somebody has switched off.
    assert (
        sum((flops_by_node(repl_fx.capture(layer, (x,)), ExampleInputs((x,))) or {}).values())
        == measure_costs(layer, (x,)).flops
    )
    assert torch.backends.mha.get_fastpath_enabled()


class _Products(nn.Module):
    """Products of vectors, of rows by groups, summed over a batch, of three tensors, and of bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.vector, self.three = nn.Parameter(torch.randn(4)), nn.Bilinear(4, 5, 6)
        self.experts = nn.Parameter(torch.randn(3, 8, 16, dtype=torch.bfloat16))
        self.register_buffer("bytes", torch.ones(8, 16, dtype=torch.int8))

    def forward(self, x: Tensor, y: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        ends = torch.tensor([2, 4, 8], dtype=torch.int32, device=rows.device)
        untyped: Any = torch
        grouped = untyped._grouped_mm(rows, self.experts, offs=ends)
        summed = torch.addbmm(y.new_zeros(4, 5), x[..., None], y[:, None])
        whole = untyped._int_mm(rows[:, :4].to(torch.int8).repeat(4, 2), self.get_buffer("bytes"))
        return x @ self.vector, grouped, summed, self.three(x, y), whole, torch.vdot(y[0], y[1])


def test_products_that_the_counter_of_torch_does_not_know_count() -> None:
    given = torch.randn(2, 4), torch.randn(2, 5), torch.randn(8, 8, dtype=torch.bfloat16)
    found = flops_by_node(repl_fx.capture(_Products(), given), ExampleInputs(given)) or {}
    by_name = {node.name: count for node, count in found.items()}
    whole = 2 * 32 * 8 * 16, 2 * 5
    assert sorted(by_name.values()) == sorted((2 * 2 * 4, 2 * 8 * 8 * 16, 2 * 2 * 4 * 5, 2 * 2 * 6 * 4 * 5, *whole))
    assert measure_costs(_Products(), given).flops == sum(by_name.values())


@pytest.mark.zoo
def test_a_deformable_convolution_counts_as_one() -> None:
    layer = pytest.importorskip("torchvision.ops").DeformConv2d(4, 6, 3, padding=1, groups=2)
    x, offset = torch.randn(2, 4, 8, 8), torch.zeros(2, 18, 8, 8)
    plain = measure_costs(nn.Conv2d(4, 6, 3, padding=1, groups=2), (x,))
    assert measure_costs(layer, (x, offset)).flops == plain.flops == 2 * (2 * 6 * 8 * 8) * (2 * 9)


def test_recurrent_layers_count() -> None:
    costs = measure_costs(nn.LSTM(4, 8), (torch.randn(5, 2, 4),))
    assert costs.flops == 2 * 5 * 2 * 4 * 8 * (4 + 8)


class _AsksForKernels(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        # On CUDA a recurrent layer is one operator with cuDNN, of which the counter knows nothing.
        return x if torch.backends.cudnn.enabled else x @ x


def test_recurrent_layers_count_on_cuda_too() -> None:
    assert measure_costs(_AsksForKernels(), (torch.randn(4, 4),)).flops == 2 * 4 * 4 * 4
    assert torch.backends.cudnn.enabled


RECURRENT: dict[str, tuple[Callable[..., nn.RNNBase], dict[str, Any]]] = {
    "lstm": (nn.LSTM, {}),
    "both ways": (nn.LSTM, {"num_layers": 2, "bidirectional": True, "dropout": 0.3}),
    "no bias": (nn.LSTM, {"bias": False, "batch_first": True}),
    "projected": (nn.LSTM, {"proj_size": 3}),
    "gru": (nn.GRU, {"num_layers": 2, "bidirectional": True}),
    "rnn": (nn.RNN, {"nonlinearity": "relu"}),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("name", RECURRENT)
def test_what_recurrent_layers_keep_counts_with_the_workspace_of_their_kernels(name: str) -> None:
    kind, settings = RECURRENT[name]
    torch.manual_seed(0)
    net, x = kind(4, 8, **settings), torch.randn(5, 2, 4)
    costs = measure_costs(net, (x,))
    assert (costs.activation_bytes, costs.synthesis_bytes) == (kept_in_a_run(net, x), 0)


class Both(nn.Module):
    """Convolutions in pictures, attention over their positions, and a layer whose weight is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.norm(self.conv(x)).relu(), 2)
        return self.head(self.block(x.flatten(2).mT))  # type: ignore[no-any-return]


def test_what_is_counted_as_kept_is_what_a_run_keeps() -> None:
    torch.manual_seed(0)
    net, x = Both(), torch.randn(2, 3, 16, 16)
    costs = measure_costs(net, (x,))
    # The weight of the head, and its norm, are computed of parameters alone.
    assert costs.synthesis_bytes == 4 * (8 * 8 + 8)
    assert (costs.activation_bytes or 0) + costs.synthesis_bytes == kept_in_a_run(net, x)


def test_tied_weights_count_once() -> None:
    costs = measure_costs(Tied(), (torch.randn(2, 4),))
    assert (costs.parameters, costs.weight_bytes, costs.flops) == (16, 64, 2 * 2 * 2 * 16)


@pytest.mark.parametrize("within", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_costs_are_the_same_inside_of_other_modes(within: Callable[[], Any]) -> None:
    net, given = Residual(4), (torch.randn(2, 4),)
    with within():
        inside = measure_costs(net, given)
    assert inside == measure_costs(net, given) and inside.activation_bytes == 96


class _WithState(nn.Linear):
    def get_extra_state(self) -> object:
        return {"seen": [1, 2]}

    def set_extra_state(self, state: object) -> None:
        """Nothing changes what it has seen."""


def test_state_that_is_no_tensor_weighs_nothing() -> None:
    costs = measure_costs(_WithState(4, 4), (torch.randn(2, 4),))
    assert (costs.weight_bytes, costs.flops) == (4 * 20, 2 * 2 * 16)


class _PrintingBatches(nn.Module):
    """Prints the batches that it computes, as other traces of a run are removed; takes one `batch` alone, if given."""

    def __init__(self, batch: int | None = None) -> None:
        super().__init__()
        self.only, self.linear = batch, nn.Linear(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        if self.only is not None and x.shape[0] != self.only:
            raise ValueError(f"a batch of {self.only}")
        if not isinstance(x, FakeTensor):
            print("computed", x.shape[0])
        out: Tensor = self.linear(x)
        return out


@pytest.mark.parametrize(("only", "counted"), [(None, 2), (1, 1)])
def test_a_batch_of_one_is_widened_where_the_model_takes_that(
    only: int | None, counted: int, capsys: pytest.CaptureFixture[str]
) -> None:
    costs = measure_costs(_PrintingBatches(only), (torch.randn(1, 5),))

    assert (costs.batch, costs.flops) == (counted, counted * 2 * 5 * 7)
    assert capsys.readouterr().out == ""


def test_a_meta_model_of_any_size_costs_nothing_to_measure() -> None:
    with torch.device("meta"):
        net = nn.Linear(100_000, 100_000, bias=False)
        costs = measure_costs(net, (torch.empty(2, 100_000),))
    assert costs.parameters == 10**10
    assert costs.flops == 2 * 2 * 10**10


def test_a_half_precision_model_keeps_half_the_bytes() -> None:
    costs = measure_costs(nn.Linear(5, 7).half(), (torch.randn(3, 5).half(),))
    assert (costs.weight_bytes, costs.activation_bytes) == (2 * 42, 2 * 15)


def test_a_model_that_needs_values_says_so() -> None:
    costs = measure_costs(NeedsValues(), (torch.randn(2, 4),))
    assert costs.flops is None and costs.activation_bytes is None and costs.flops_per_sample is None
    assert costs.unknown is not None and "DataDependent" in costs.unknown


def test_the_module_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    net[2].eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    tensors = {name: id(tensor) for name, tensor in net.state_dict(keep_vars=True).items()}
    random = torch.default_generator.get_state()
    measure_costs(net, (torch.randn(2, 4, generator=torch.Generator()),))
    assert [module.training for module in net] == [True, True, False]
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert tensors == {name: id(tensor) for name, tensor in net.state_dict(keep_vars=True).items()}
    assert torch.equal(random, torch.default_generator.get_state())


@lru_cache
def _table(size: int) -> Tensor:
    return torch.arange(float(size))


class _Tabled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * _table(x.shape[-1])


def test_tables_that_code_keeps_hold_values_afterwards() -> None:
    measure_costs(_Tabled(), (torch.ones(2, 3),))
    assert _Tabled()(torch.ones(2, 3)).tolist() == [[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]


def test_a_graph_costs_what_its_model_costs() -> None:
    net = nn.Sequential(*(Residual(8) for _ in range(4)))
    inputs = (torch.randn(2, 8),)
    assert measure_costs(repl_fx.capture(net, inputs), inputs) == measure_costs(net, inputs)


def test_flops_of_nodes_add_up() -> None:
    net = nn.Sequential(*(Residual(8) for _ in range(4)))
    inputs = (torch.randn(2, 8),)
    gm = repl_fx.capture(net, inputs)
    flops = flops_by_node(gm, ExampleInputs(inputs))
    assert flops is not None
    assert sum(flops.values()) == measure_costs(gm, inputs).flops
    (repeat,) = repl_fx.find_repeats(gm)
    for block in repeat.blocks:
        assert sum(flops.get(node, 0) for node in block.nodes) == 2 * 2 * (2 * 8 * 16)


def test_a_module_that_changes_the_list_it_gets() -> None:
    class Extend(nn.Module):
        def forward(self, values: list[Tensor]) -> list[Tensor]:
            # What depends on the mode is called, not traced into.
            values.append(F.dropout(values[-1], 0.0, self.training) * 2)
            return values

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.extend = nn.Linear(3, 4), Extend()

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat(self.extend([self.fc(x)]))

    inputs = (torch.randn(2, 3),)
    gm = repl_fx.capture(Net(), inputs)
    assert "extend" in {node.target for node in gm.graph.nodes}
    flops = flops_by_node(gm, ExampleInputs(inputs))
    assert flops is not None and sum(flops.values()) == 2 * 2 * 3 * 4
    assert measure_costs(gm, inputs).activation_bytes == measure_costs(Net(), inputs).activation_bytes


def test_keyword_inputs_reach_their_nodes() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, scale: float = 1.0, *, y: Tensor) -> Tensor:
            return (x @ y) * scale

    gm = repl_fx.capture(Two(), (torch.randn(2, 3),), {"y": torch.randn(3, 5)})
    flops = flops_by_node(gm, ExampleInputs((torch.randn(2, 3),), {"y": torch.randn(3, 5)}))
    assert flops is not None and sum(flops.values()) == 2 * 2 * 3 * 5


def test_what_is_kept_for_a_synthesis_is_told_apart() -> None:
    net = nn.Sequential(*(Residual(8) for _ in range(5)))
    costs = []
    for batch in (2, 4):
        inputs = (torch.randn(batch, 8),)
        result = repl_fx.transform(net, inputs)
        costs.append(measure_costs(result.graph_module, inputs))
        in_place = measure_costs(result.model, inputs)
        assert in_place.synthesis_bytes == costs[-1].synthesis_bytes
        assert in_place.activation_bytes == costs[-1].activation_bytes
    small, large = costs
    assert small.synthesis_bytes is not None and small.synthesis_bytes > 0
    assert small.synthesis_bytes == large.synthesis_bytes
    assert large.activation_bytes == 2 * (small.activation_bytes or 0)
    before = measure_costs(result.captured, inputs)
    assert before.synthesis_bytes == 0
    assert (before.activation_bytes or 0) > (large.activation_bytes or 0)


@pytest.mark.gpu
def test_costs_do_not_depend_on_the_device() -> None:
    net = nn.Linear(5, 7)
    on_cpu = measure_costs(net, (torch.randn(3, 5),))
    assert measure_costs(net.cuda(), (torch.randn(3, 5).cuda(),)) == on_cpu


class _Hands(nn.Module):
    """Returns a parameter of its own, as the scale of a map that is the identity does."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self) -> Tensor:
        return self.scale


class _Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.scale = nn.Linear(4, 4), _Hands()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * self.scale()  # type: ignore[no-any-return]


def test_a_module_that_returns_a_parameter() -> None:
    costs = measure_costs(_Scaled(), (torch.randn(2, 4),))
    assert costs.flops == 2 * 2 * 4 * 4 and costs.unknown is None and costs.activation_bytes
    assert _Scaled().scale.scale.requires_grad


class Joined(Attention):
    """Attention whose heads are joined by a `view` that fits what the fused kernel returns, and no other."""

    def forward(self, x: Tensor) -> Tensor:
        heads = x.view(*x.shape[:2], 2, -1).transpose(1, 2)
        return super().forward(heads).transpose(1, 2).view(x.shape)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_is_counted_by_the_kernel_that_runs(device: str) -> None:
    x = torch.randn(2, 5, 8, device=device)
    model = Joined()
    costs = measure_costs(model, (x,))
    assert (costs.flops, costs.unknown) == (2 * 2 * 2 * 5 * 5 * 8, None)
    gm = repl_fx.capture(model, (torch.randn(2, 5, 8),))
    assert measure_costs(gm, (x,)) == costs
    assert sum((flops_by_node(gm, ExampleInputs((x,))) or {}).values()) == costs.flops


class Skips(nn.Module):
    """Layers that are skipped at random in training, behind a question about values."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if mask.any():
            x = x * mask
        for layer in self.layers:
            if self.training and torch.rand([]) < 0.5:
                continue
            x = x + layer(x).relu()
        return x


@pytest.mark.slow
def test_a_graph_that_decides_by_values_is_counted_with_all_its_layers() -> None:
    args = torch.randn(2, 4), torch.zeros(2, 4)
    model = Skips()
    assert measure_costs(model, args).unknown
    gm = repl_fx.capture(model, args)
    costs = measure_costs(gm, args)
    assert costs.unknown is None and costs.flops == 4 * 2 * 2 * 4 * 4
    # Of each layer the inputs of the product and of what follows.
    assert costs.activation_bytes == 2 * 4 * 4 * (4 + 4)


class Picks(nn.Module):
    """Goes on with as many rows as are above zero, which no shape tells."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.fc(x)).sum() + self.fc(x[x.sum(1) > 0]).sum()  # type: ignore[no-any-return]


def test_a_graph_that_has_to_have_values_is_run_on_copies() -> None:
    x = torch.ones(5, 4)
    x[3:] = -1.0
    model = Picks()
    gm = repl_fx.capture(model, (x,))
    before = {name: value.clone() for name, value in gm.state_dict().items()}
    state = torch.get_rng_state()
    assert measure_costs(model, (x,)).unknown
    costs = measure_costs(gm, (x,))
    assert (costs.flops, costs.unknown) == ((5 + 3) * 2 * 4 * 4, None)
    assert sum((flops_by_node(gm, ExampleInputs((x,))) or {}).values()) == costs.flops
    assert sum((kept_by_node(gm, ExampleInputs((x,))) or {}).values()) == costs.activation_bytes != 0
    assert all(torch.equal(value, before[name]) for name, value in gm.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in gm.parameters()) and torch.equal(
        torch.get_rng_state(), state
    )
    # Without values nobody knows.
    assert measure_costs(gm.to("meta"), (x.to("meta"),)).unknown
