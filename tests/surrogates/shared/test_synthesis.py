"""When a synthesis runs, when its result is used again, and the values that weights begin with."""

import copy
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import repl_fx
from repl_fx.errors import BadInput, CallRefused, WeightsChanged
from repl_fx.surrogates.shared.synthesis import length, random_values, ratio
from tests.nets import TokenNet


class Sum(repl_fx.Synthesis):
    """Counts its runs."""

    def __init__(self) -> None:
        super().__init__(True)
        self.gain = nn.Parameter(torch.ones(()))
        self.runs = 0

    def synthesise(self, *weights: Tensor) -> Tensor:
        self.runs += 1
        a, b = (self.given(weight) for weight in weights)
        made: Tensor = self.gain * (a + b)
        return made


def _gradients(*parameters: nn.Parameter) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def _holding(parameter: nn.Parameter) -> nn.Module:
    module = nn.Module()
    module.register_parameter("parameter", parameter)
    return module


@pytest.fixture
def made() -> tuple[Sum, nn.Parameter, nn.Parameter]:
    return Sum(), nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))


def test_nothing_is_kept_without_gradients(made: tuple[Sum, nn.Parameter, nn.Parameter]) -> None:
    synthesis, a, b = made
    with torch.no_grad():
        for runs in (1, 2):
            assert not synthesis(a, b).requires_grad and synthesis.runs == runs
        a.data.add_(1)
        assert torch.equal(synthesis(a, b), a + b)
        synthesis.gain.data.numpy()[...] = 2
        assert torch.equal(synthesis(a, b), 2 * (a + b))
        for module in (synthesis, *map(_holding, (a, b))):
            module.double()
        assert synthesis(a, b).dtype == torch.float64
    # A weak reference to a parameter would forbid it.
    swap: Any = torch.utils.swap_tensors
    swap(a, nn.Parameter(torch.zeros(3)))
    assert torch.equal(synthesis(a, b), 2 * b)


def test_with_gradients_it_runs_every_time(made: tuple[Sum, nn.Parameter, nn.Parameter]) -> None:
    synthesis, a, b = made
    for runs in (1, 2):
        synthesis(a, b).sum().backward()
        assert synthesis.runs == runs
    assert a.grad is not None and torch.equal(a.grad, torch.full((3,), 2.0))


def test_inference_mode_and_meta(made: tuple[Sum, nn.Parameter, nn.Parameter]) -> None:
    synthesis, a, b = made
    with torch.inference_mode():
        assert torch.equal(synthesis(a, b), a + b)
        assert torch.equal(synthesis(a, torch.ones(3)), a + 1)
    with torch.no_grad():
        assert synthesis.to("meta")(a.to("meta"), b.to("meta")).is_meta


def test_copies_make_their_own(made: tuple[Sum, nn.Parameter, nn.Parameter]) -> None:
    synthesis, a, b = made
    with torch.no_grad():
        synthesis(a, b)
        for other in (copy.deepcopy(synthesis), pickle.loads(pickle.dumps(synthesis))):
            other.gain.fill_(3)
            assert torch.equal(other(a, b), 3 * (a + b))
        assert torch.equal(synthesis(a, b), a + b)


def _rewritten(surrogate: str) -> nn.Module:
    torch.manual_seed(0)
    model = TokenNet(depth=3)
    return repl_fx.transform(model, (torch.randn(2, 6, 16),), surrogate=surrogate).module.train()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@pytest.mark.parametrize("surrogate", ["bottleneck", "blend"])
def test_shared_synthesis_gives_the_gradients_of_the_whole_step(surrogate: str) -> None:
    batches = [torch.randn(2, 6, 16) for _ in range(3)]
    gradients = []
    for shared in (False, True):
        module = _rewritten(surrogate)
        with repl_fx.shared_synthesis(module) if shared else _nothing():
            for batch in batches:
                module(batch).square().mean().backward()
        gradients.append({name: p.grad for name, p in module.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, msg=name)


class Chain(nn.Module):
    """The second synthesis reads what the first one makes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Sum(), Sum()
        self.a, self.b = (nn.Parameter(torch.randn(3, 3)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        made = self.first(self.a, self.b)
        return torch.tanh(x @ made) @ self.second(made, self.b)  # type: ignore[no-any-return]


def test_shared_synthesis_hands_gradients_on_from_one_synthesis_to_the_other() -> None:
    torch.manual_seed(0)
    module = Chain()
    batches = [torch.randn(4, 3) for _ in range(3)]
    gradients = []
    for shared in (False, True):
        module.zero_grad()
        with repl_fx.shared_synthesis(module) if shared else _nothing():
            for batch in batches:
                module(batch).square().mean().backward()
        gradients.append({name: p.grad for name, p in module.named_parameters()})
    assert set(gradients[0]) == {"a", "b", "first.gain", "second.gain"}
    for name, expected in gradients[0].items():
        assert expected is not None and expected.abs().min() > 0
        torch.testing.assert_close(gradients[1][name], expected, msg=name)


def test_shared_synthesis_runs_each_synthesis_once(made: tuple[Sum, nn.Parameter, nn.Parameter]) -> None:
    synthesis, a, b = made
    with repl_fx.shared_synthesis(synthesis):
        for _ in range(3):
            synthesis(a, b).sum().backward()
        assert synthesis.runs == 1 and not _gradients(a)
    assert torch.equal(_gradients(a)[0], torch.full((3,), 3.0))
    synthesis(a, b)
    assert synthesis.runs == 2


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_shared_synthesis_serves_an_evaluation_between_passes_of_a_step(
    made: tuple[Sum, nn.Parameter, nn.Parameter], mode: Callable[[], AbstractContextManager[None]]
) -> None:
    synthesis, a, b = made
    with repl_fx.shared_synthesis(synthesis):
        with mode(), ThreadPoolExecutor(4) as threads:
            first = synthesis(a, b)
            assert not first.requires_grad and not first.is_inference()
            assert all(found is first for found in threads.map(lambda _: _evaluated(synthesis, a, b), range(8)))
        # Another one inside is none of its own.
        with repl_fx.shared_synthesis(synthesis):
            synthesis(a, b).sum().backward()
        synthesis(a, b).sum().backward()
        assert synthesis.runs == 2
    assert a.grad is not None and torch.equal(a.grad, torch.full((3,), 2.0))


def _evaluated(synthesis: Sum, *weights: Tensor) -> Any:
    with torch.no_grad():
        return synthesis(*weights)


def test_shared_synthesis_refuses_weights_that_changed(made: tuple[Sum, nn.Parameter, nn.Parameter]) -> None:
    synthesis, a, b = made
    with pytest.raises(WeightsChanged, match="step the optimizer after it"), repl_fx.shared_synthesis(synthesis):
        synthesis(a, b)
        with torch.no_grad():
            a.add_(1)
        synthesis(a, b)
    assert synthesis(a, b).requires_grad and a.grad is None


def test_training_then_evaluating_uses_the_new_weights(tmp_path: Path) -> None:
    module = _rewritten("bottleneck")
    x = torch.randn(2, 6, 16)
    with torch.no_grad():
        before = module.eval()(x)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    # In evaluation mode, as in fine-tuning with frozen statistics: no change of mode tells.
    F.mse_loss(module(x), torch.zeros_like(before)).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    with torch.no_grad():
        after = module(x)
        assert not torch.equal(before, after)
        assert torch.equal(after, module.eval()(x))


def test_random_values_are_those_of_the_seed_in_any_precision() -> None:
    made = []
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(1)
        made.append(random_values(torch.empty(0, dtype=dtype), 3, 4))
    assert [value.dtype for value in made] == [torch.float32, torch.float64]
    assert made[0].shape == (3, 4) and torch.equal(made[0].double(), made[1]) and made[0].std() > 0.5


def test_random_values_on_meta_draw_nothing() -> None:
    before = torch.get_rng_state()
    assert random_values(torch.empty(0, device="meta"), 3).is_meta
    assert torch.equal(torch.get_rng_state(), before)


def test_the_length_of_several_pieces_is_that_of_one_vector() -> None:
    assert length([torch.tensor([2.0]), torch.tensor([[3.0, 6.0]])]) == pytest.approx(7.0)
    # More than there is in half precision.
    assert length([torch.full((4,), 60_000.0, dtype=torch.float16)]) == pytest.approx(120_000.0)


def test_the_ratio_to_no_length_is_one() -> None:
    assert [ratio(3.0, 2.0), ratio(0.0, 2.0), ratio(3.0, 0.0)] == [1.5, 1.0, 1.0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("surrogate", ["blend", "reuse", "bottleneck"])
def test_a_graph_says_how_to_trace_and_to_quantise_it(surrogate: str) -> None:
    x = torch.randn(2, 17, 16)
    graph = repl_fx.transform(TokenNet(depth=3).eval(), (x,), surrogate=surrogate).graph_module.eval()
    with pytest.raises(BadInput, match="this is a graph already"):
        fx.symbolic_trace(graph)
    quantise: Any = torch.ao.quantization.quantize_dynamic
    with pytest.raises(CallRefused, match=r"fold\(result.module\)"):
        quantise(graph, {nn.Linear})(x)


def test_codes_and_what_fx_traces_are_no_weights(made: tuple[Sum, nn.Parameter, nn.Parameter]) -> None:
    synthesis, a, _ = made
    for dtype in (torch.int8, torch.uint8, torch.float8_e4m3fn):
        with pytest.raises(CallRefused, match=rf"one has codes \({dtype}\) for its weight; quantise a model whose"):
            synthesis(a, torch.ones(3).to(dtype))
    kind: Any = type("Int8Tensor", (Tensor,), {"__module__": "torchao.quantization"})
    with pytest.raises(CallRefused, match=r"one has codes \(Int8Tensor\) for its weight; quantise a model whose"):
        synthesis(a, torch.ones(3).as_subclass(kind))
    with pytest.raises(BadInput, match="this is a graph already"):
        synthesis(a, fx.Proxy(fx.Graph().placeholder("b")))
    assert not synthesis.runs and synthesis(a, torch.ones(3, dtype=torch.bool)).dtype == a.dtype


def test_gradients_by_samples_are_whole_or_refused(made: tuple[Sum, nn.Parameter, nn.Parameter]) -> None:
    synthesis, a, b = made
    vars(a)["grad_sample"] = None
    with pytest.raises(CallRefused, match=r"gradients by samples .* settings=\{'train_neighbours': False\}"):
        synthesis(a, b)
    with torch.no_grad():
        synthesis(a, b)
    synthesis.train_neighbours = False
    synthesis(a, b).sum().backward()
    assert a.grad is None and synthesis.runs == 2


@pytest.mark.parametrize("surrogate", ["blend", "bottleneck"])
def test_a_copy_whose_parameters_are_buffers_computes_the_same(surrogate: str) -> None:
    x = torch.randn(2, 6, 16)
    model = repl_fx.transform(TokenNet(depth=3), (x,), surrogate=surrogate).model.eval()
    frozen = copy.deepcopy(model)
    for module in frozen.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                del module._parameters[name]
                module.register_buffer(name, parameter.detach())
    assert torch.equal(frozen(x), model(x))
