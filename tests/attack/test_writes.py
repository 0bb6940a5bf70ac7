"""Weights written in ways that raise no version: each forward, file and folded form reads them as they are now.

The ways are fused optimizers, `.data`, foreach, numpy, swapped and assigned tensors, and communication; the forms, the
model in place, the graph, and a loaded artifact.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, fx, nn
from torch.optim import SGD, Adagrad, Adam, AdamW

import repl_fx
from repl_fx.running.collection import collection_paused
from tests.nets import ConvNet, TokenNet, as_after_training, images, tokens

SURROGATES: dict[str, tuple[Callable[..., nn.Module], Callable[[], Tensor]]] = {
    "blend": (TokenNet, tokens),
    "linear": (TokenNet, tokens),
    "reuse": (TokenNet, tokens),
    "narrow": (TokenNet, tokens),
    "bottleneck": (ConvNet, images),
    "slim": (ConvNet, images),
    "coarse": (ConvNet, images),
}
FORMS = ("in place", "graph", "artifact")
Write = Callable[[nn.Module], Any]


class Forms(NamedTuple):
    """One rewritten network in several forms, which share no parameters.

    Attributes:
        kind: the class of the source.
        nets: by form.
        states: the values that they begin each test with, by form.
        graph: the network as a graph once more, which no test runs.
        prefixes: of the names of surrogates' tensors in the graph, and in place.
        x: the input.
    """

    kind: Callable[..., nn.Module]
    nets: Mapping[str, nn.Module]
    states: Mapping[str, Mapping[str, Tensor]]
    graph: fx.GraphModule
    prefixes: Mapping[str, str]
    x: Tensor

    def begin(self, form: str) -> nn.Module:
        """The network in a form, in evaluation mode, with the values of the beginning."""
        self.nets[form].load_state_dict(self.states[form])
        return self.nets[form].eval()

    def folded(self, net: nn.Module) -> nn.Module:
        """The folded form of what a network holds now, by a graph that has computed nothing before."""
        state = net.state_dict()
        for there, here in self.prefixes.items():
            state = {there + n.removeprefix(here) if n.startswith(here) else n: t for n, t in state.items()}
        self.graph.load_state_dict(state)
        return repl_fx.fold(self.graph.eval())


@pytest.fixture(scope="module", params=SURROGATES)
def forms(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Forms:
    torch.manual_seed(0)
    kind, inputs = SURROGATES[request.param]
    x, place = inputs(), tmp_path_factory.mktemp("writes") / "artifact"
    # Two blocks are replaced, so that the graph makes their weights together.
    result = repl_fx.transform(kind(depth=5), (x,), surrogate=request.param)
    as_after_training(result.graph_module)
    assert result.in_place.model is not None, result.in_place.reason
    repl_fx.save(result.model, place)
    nets = {
        "in place": copy.deepcopy(result.model),
        "graph": copy.deepcopy(result.graph_module),
        "artifact": repl_fx.load(place, model=kind(depth=5)),
    }
    states = {form: {name: t.clone() for name, t in net.state_dict().items()} for form, net in nets.items()}
    return Forms(kind, nets, states, result.graph_module, result.in_place.prefixes, x)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_nothing_refers_weakly_to_a_parameter(surrogate: str, tmp_path: Path) -> None:
    kind, inputs = SURROGATES[surrogate]
    # Such a parameter cannot be swapped, and garbage would be gone by chance.
    with collection_paused():
        result = repl_fx.transform(kind(depth=5), (inputs(),), surrogate=surrogate)
        loaded: nn.Module = repl_fx.load(repl_fx.save(result, tmp_path / "artifact"), model=kind(depth=5))
        for net in (result.model, result.module, loaded):
            assert [name for name, p in net.named_parameters() if weakref.getweakrefs(p)] == []


@pytest.fixture(scope="module", autouse=True)
def _one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path_factory.mktemp('store') / 'file'}", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


def _changed(net: nn.Module) -> dict[str, Tensor]:
    """Other values for the parameters of a network, by name."""
    return {name: p.detach() * 1.1 + 0.01 for name, p in net.named_parameters()}


def _one_by_one(net: nn.Module, write: Callable[[nn.Parameter, Tensor], Any]) -> None:
    changed = _changed(net)
    for name, parameter in net.named_parameters():
        write(parameter, changed[name])


def _step(kind: Callable[..., torch.optim.Optimizer], net: nn.Module) -> None:
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    kind(net.parameters(), lr=0.01, fused=True).step()
    net.zero_grad()


def _by_numpy(parameter: nn.Parameter, value: Tensor) -> None:
    parameter.detach().numpy()[...] = value.numpy()


def _swap(parameter: nn.Parameter, value: Tensor) -> None:
    swap: Any = torch.utils.swap_tensors
    swap(parameter, nn.Parameter(value))


def _flat(net: nn.Module) -> None:
    flat = nn.utils.parameters_to_vector(net.parameters()).detach()
    nn.utils.vector_to_parameters(1.1 * flat + 0.01, net.parameters())


def _broadcast(parameter: nn.Parameter, value: Tensor) -> None:
    # One process alone gets nothing new by a broadcast: the value lies where it was sent from.
    parameter.detach().numpy()[...] = value.numpy()
    dist.broadcast(parameter.data, 0)


WRITES: dict[str, Write] = {
    **{f"fused {kind.__name__}": partial(_step, kind) for kind in (AdamW, Adam, SGD, Adagrad)},
    "data.copy_": partial(_one_by_one, write=lambda p, value: p.data.copy_(value)),
    "data.mul_": partial(_one_by_one, write=lambda p, value: p.data.mul_(1.1)),
    "new data": partial(_one_by_one, write=lambda p, value: setattr(p, "data", value)),
    "foreach": lambda net: torch._foreach_mul_([p.data for p in net.parameters()], 1.1),
    "numpy": partial(_one_by_one, write=_by_numpy),
    "storage": partial(_one_by_one, write=lambda p, value: p.untyped_storage().copy_(value.untyped_storage())),
    "swap_tensors": partial(_one_by_one, write=_swap),
    "assign": lambda net: net.load_state_dict(net.state_dict() | _changed(net), assign=True),
    "vector_to_parameters": _flat,
    "scatter": partial(_one_by_one, write=lambda p, value: dist.scatter(p.data, [value], 0)),
    "broadcast": partial(_one_by_one, write=_broadcast),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("way", WRITES)
def test_the_next_forward_reads_what_was_written(forms: Forms, way: str, form: str) -> None:
    net, x = forms.begin(form), forms.x
    with torch.no_grad():
        before = [net(x) for _ in range(2)][1]
    WRITES[way](net)
    with torch.no_grad():
        after, fresh, folded = net(x), copy.deepcopy(net)(x), forms.folded(net)(x)
    with torch.inference_mode():
        inferred = net(x)
    assert not torch.allclose(before, after), "nothing was written"
    assert not after.requires_grad
    assert torch.equal(after, fresh) and torch.equal(after, folded) and torch.equal(after, inferred)
    torch.testing.assert_close(after, net(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ("in place", "artifact"))
def test_a_model_that_is_tuned_in_evaluation_mode_is_validated_and_kept_as_it_is(
    forms: Forms, form: str, tmp_path: Path
) -> None:
    net, x = forms.begin(form), forms.x
    optimizer = AdamW(net.parameters(), lr=0.01, fused=True)
    seen: list[Tensor] = []
    for step in range(3):
        with torch.no_grad():
            seen.append(net(x))
            assert torch.equal(seen[-1], forms.folded(net)(x)), step
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
        if step == 1:
            repl_fx.save(net, tmp_path / "artifact")
            loaded = repl_fx.load(tmp_path / "artifact", model=forms.kind(depth=5))
            with torch.no_grad():
                assert torch.equal(loaded(x), net(x))
    assert not torch.allclose(seen[0], seen[1]) and not torch.allclose(seen[1], seen[2])


@pytest.mark.slow
@pytest.mark.parametrize("forms", ("linear", "slim"), indirect=True)
def test_a_file_that_is_written_between_steps_has_the_weights_of_then(forms: Forms, tmp_path: Path) -> None:
    net, x, file = forms.begin("graph"), forms.x, tmp_path / "net.onnx"
    with torch.no_grad():
        before = net(x)
    _step(AdamW, net)
    repl_fx.export_onnx(net, file, (x,))
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    wanted = forms.folded(net)(x).detach()
    assert not torch.allclose(before, wanted, atol=1e-3)
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-5)
    check = repl_fx.verify_onnx(net, file, (x,))
    assert check, check.summary()
    _step(AdamW, net)
    assert not repl_fx.verify_onnx(net, file, (x,)), "verification read the weights of before"
