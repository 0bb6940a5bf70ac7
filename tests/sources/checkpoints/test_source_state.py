"""A checkpoint of the source goes into the rewritten model: what fits is loaded, and the rest is said."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, fx, nn

import repl_fx
from repl_fx.graph.state import SOURCE_STATE, state_shapes
from tests.nets import Counts, MlpNet, as_after_training, tokens


@pytest.fixture
def trained() -> MlpNet:
    """A source of other weights than a new one."""
    return MlpNet(5)


@pytest.fixture
def net() -> fx.GraphModule:
    """A rewritten model of untrained weights; blocks 1 and 3 are gone."""
    return repl_fx.transform(MlpNet(5), (tokens(),)).graph_module


def _removed(state: dict[str, Any], prefix: str = "") -> set[str]:
    return {name for name in state if name.startswith((f"{prefix}blocks.1.", f"{prefix}blocks.3."))}


def test_what_fits_is_loaded_and_the_rest_is_said(trained: MlpNet, net: fx.GraphModule, tmp_path: Path) -> None:
    save_file(trained.state_dict(), tmp_path / "weights.safetensors")
    as_after_training(net)
    before = copy.deepcopy(net.state_dict())
    found = repl_fx.load_source_state(net, tmp_path / "weights.safetensors")
    state, now = trained.state_dict(), net.state_dict()
    assert set(found.loaded) == state.keys() & now.keys() and len(found.loaded) > 10
    assert all(torch.equal(now[name], state[name]) for name in found.loaded)
    assert set(found.left_out) == state.keys() - now.keys() <= _removed(state)
    assert set(found.own) == now.keys() - state.keys() and all(name.startswith("surrogates.") for name in found.own)
    assert found.own and all(torch.equal(now[name], before[name]) for name in found.own)
    first = ", ".join(found.left_out[:3])
    assert f"{len(found.loaded)} tensors loaded; {len(found.left_out)} left out, of replaced blocks: {first}" in str(
        found
    )


def test_it_computes_what_a_transform_of_the_loaded_source_computes(trained: MlpNet, net: fx.GraphModule) -> None:
    x = tokens()
    repl_fx.load_source_state(net, trained.state_dict())
    assert torch.equal(net(x), repl_fx.transform(trained, (x,)).graph_module(x))
    assert not torch.equal(net(x), repl_fx.transform(MlpNet(5), (x,)).graph_module(x))


@pytest.mark.slow
def test_copies_pickles_wrappers_and_artifacts_know_their_source(
    trained: MlpNet, net: fx.GraphModule, tmp_path: Path
) -> None:
    x = tokens()
    repl_fx.save(repl_fx.transform(MlpNet(5), (x,)), tmp_path / "out")
    modules = {
        "copy": copy.deepcopy(net),
        "pickle": pickle.loads(pickle.dumps(net)),
        "wrapper": nn.DataParallel(net),
        "compiled": torch.compile(copy.deepcopy(net), backend="eager"),
        "artifact": repl_fx.load(tmp_path / "out", MlpNet(5)),
    }
    expected = repl_fx.transform(trained, (x,)).graph_module(x)
    for name, module in modules.items():
        found = repl_fx.load_source_state(module, {f"module.{k}": v for k, v in trained.state_dict().items()})
        assert found.left_out, name
        assert torch.equal(module.train()(x), expected), name


class _Scaled(Counts):
    """A parameter of its own beside the part that is a graph."""

    def __init__(self, body: nn.Module, scale: float) -> None:
        super().__init__(body)
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


@pytest.mark.slow
def test_a_model_in_parts(trained: MlpNet) -> None:
    x, source = tokens(), _Scaled(trained, 2.0)
    net = repl_fx.transform(_Scaled(MlpNet(5), 1.0), (x,)).module
    assert not isinstance(net, fx.GraphModule)
    found = repl_fx.load_source_state(net, source.state_dict())
    gone = source.state_dict().keys() - net.state_dict().keys()
    assert set(found.left_out) == gone <= _removed(source.state_dict(), "body.")
    assert all(name.startswith("body.surrogates.") for name in found.own) and found.own
    assert torch.equal(net.eval()(x), 2 * repl_fx.transform(trained, (x,)).graph_module.eval()(x))


def _edited(state: dict[str, Any], **edits: Any) -> dict[str, Any]:
    edited = {**state, **{name.replace("__", "."): value for name, value in edits.items()}}
    return {name: value for name, value in edited.items() if value is not None}


@pytest.mark.parametrize(
    ("edits", "line"),
    [
        ({"other__weight": torch.ones(1)}, r"1 key in it is not in \w+ \(other.weight\)"),
        # Of a block that is gone, and still not the source's.
        ({"blocks__1__fc9__weight": torch.ones(1)}, r"1 key in it is not in \w+ \(blocks.1.fc9.weight\)"),
        ({"blocks__1__fc1__weight": torch.ones(3)}, r"1 key is of another shape \(blocks.1.fc1.weight 3 there and 32x"),
        ({"head__bias": torch.ones(3)}, r"1 key is of another shape \(head.bias 3 there and 10 here\)"),
        ({"head__bias": None}, r"1 key of \w+ is missing in it \(head.bias\)"),
        ({"head__bias": torch.ones(10, dtype=torch.int8)}, "head.bias is int8 in the given state"),
        ({"head__bias": [1.0] * 10}, "head.bias of the given state is of class list, no plain tensor"),
    ],
)
def test_a_checkpoint_of_another_model_changes_nothing(
    trained: MlpNet, net: fx.GraphModule, edits: dict[str, Any], line: str
) -> None:
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(repl_fx.BadInput, match=line):
        repl_fx.load_source_state(net, _edited(trained.state_dict(), **edits))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_a_module_in_place_of_a_block_may_tell_what_the_block_had(trained: MlpNet) -> None:
    net = MlpNet(5)
    gone = state_shapes(net.blocks[1])
    net.blocks[1] = nn.Identity()
    vars(net.blocks[1])["meta"] = {SOURCE_STATE: gone}
    found = repl_fx.load_source_state(net, trained.state_dict())
    assert set(found.left_out) == {f"blocks.1.{name}" for name in gone} and found.own == ()
    assert torch.equal(net.head.weight, trained.head.weight)


class _Told(nn.Linear):
    """A layer with more state than tensors."""

    told = 0

    def get_extra_state(self) -> dict[str, int]:
        return {"told": self.told}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.told = state["told"]


def test_state_that_is_no_tensor_is_loaded_too() -> None:
    nets: list[Any] = [MlpNet(5), MlpNet(5)]
    for net in nets:
        net.head = _Told(16, 10)
        for block in net.blocks:
            block.fc2 = _Told(32, 16)
    nets[1].head.told = 7
    rewritten: Any = repl_fx.transform(nets[0], (tokens(),)).model
    found = repl_fx.load_source_state(rewritten, nets[1].state_dict())
    assert rewritten.head.told == 7 and {"head._extra_state", "blocks.2.fc2._extra_state"} <= set(found.loaded)
    assert {"blocks.1.fc2.weight", "blocks.1.fc2._extra_state"} <= set(found.left_out)
    assert all("surrogate" in name for name in found.own)


def test_a_checkpoint_of_the_rewritten_model_is_another(net: fx.GraphModule) -> None:
    with pytest.raises(repl_fx.BadInput, match=r"in it are not in \w+ \(surrogates"):
        repl_fx.load_source_state(net, net.state_dict())


def test_blocks_that_are_gone_may_be_gone_from_the_checkpoint(trained: MlpNet, net: fx.GraphModule) -> None:
    kept = {name: tensor for name, tensor in trained.state_dict().items() if name in net.state_dict()}
    found = repl_fx.load_source_state(net, kept)
    assert found.left_out == () and set(found.loaded) == kept.keys()


def test_a_head_of_ones_own_has_the_shape_of_now(trained: MlpNet, net: fx.GraphModule) -> None:
    net.head = nn.Linear(16, 3)
    with pytest.raises(repl_fx.BadInput, match=r"2 keys are of another shape \(head.weight 10x16 there and 3x16 here"):
        repl_fx.load_source_state(net, trained.state_dict())


def test_modules_without_a_source_are_refused(trained: MlpNet, net: fx.GraphModule) -> None:
    for module in (MlpNet(5), repl_fx.capture(MlpNet(5), (tokens(),)), repl_fx.fold(net)):
        with pytest.raises(
            repl_fx.BadInput, match=r"takes a module from repl_fx\.transform or repl_fx\.load, and this"
        ):
            repl_fx.load_source_state(module, trained.state_dict())
    with pytest.raises(repl_fx.BadInput, match=r"give result\.module"):
        repl_fx.load_source_state(repl_fx.transform(MlpNet(5), (tokens(),)), {})  # type: ignore[arg-type]


def test_tied_weights_are_given_once() -> None:
    def tied() -> MlpNet:
        model = MlpNet(5)
        model.blocks[4].norm.weight = model.blocks[0].norm.weight  # type: ignore[union-attr]
        return model

    x, source = tokens(), tied()
    with torch.no_grad():
        source.blocks[0].norm.weight += 1  # type: ignore[operator, union-attr]
    net = repl_fx.transform(tied(), (x,), every=2).graph_module
    state = {name: t for name, t in source.state_dict().items() if name != "blocks.4.norm.weight"}
    repl_fx.load_source_state(net, state)
    assert torch.equal(net.get_parameter("blocks.4.norm.weight"), source.state_dict()["blocks.4.norm.weight"])
    state["blocks.4.norm.weight"] = state["blocks.0.norm.weight"] + 1
    with pytest.raises(repl_fx.BadInput, match=r"are one tensor in .* and differ"):
        repl_fx.load_source_state(net, state)
