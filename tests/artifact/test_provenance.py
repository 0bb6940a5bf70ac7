"""What `save` knows of a module that `load` returned: it can be saved again, as it is and unchanged."""

from __future__ import annotations

import copy
import importlib.util
import json
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor, nn

import repl_fx
from repl_fx.artifact import load_artifact
from repl_fx.artifact.provenance import first_difference, require_as_made
from repl_fx.plan import Plan
from repl_fx.tracing.parts.inputs import Inputs
from repl_fx.tracing.parts.origin import Origin
from repl_fx.tracing.parts.part_repeats import lines_made
from tests.artifact.edits import edit_manifest
from tests.artifact.tables_net import X, transformed
from tests.nets import ConvNet, MlpNet, images, tokens


def _train(net: nn.Module, x: Tensor) -> None:
    optimizer = torch.optim.SGD(net.train().parameters(), 1e-3)
    for _ in range(2):
        net(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def _pickled(net: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(net))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("surrogate", "copied"), [("bottleneck", lambda net: net), ("blend", copy.deepcopy), ("bottleneck", _pickled)]
)
def test_what_was_loaded_is_saved_again_with_its_spec_and_inputs(
    tmp_path: Path, surrogate: str, copied: Callable[[nn.Module], nn.Module]
) -> None:
    _, out = transformed(tmp_path, surrogate=surrogate)
    net = copied(repl_fx.load(out))
    _train(net, X)
    # Evaluation keeps the weights that a synthesis makes; they are no change of the model.
    net.eval()(X)
    repl_fx.save(net, out, force=True)
    again = load_artifact(out)
    assert torch.equal(again.module(X), net.eval()(X))
    assert again.manifest.model is not None and again.manifest.model.spec == f"{tmp_path / 'net.py'}:model"
    assert again.plan.replacements and again.plan == load_artifact(out).plan
    assert again.inputs.args[0].shape == (2, 6, 8)
    # And once more, from there.
    repl_fx.save(again.module, tmp_path / "third")
    assert torch.equal(repl_fx.load(tmp_path / "third")(X), net(X))


def test_the_model_file_that_was_named_at_load_is_the_one_that_is_saved(tmp_path: Path) -> None:
    _, out = transformed(tmp_path)
    (tmp_path / "net.py").rename(tmp_path / "moved.py")
    repl_fx.save(repl_fx.load(out, str(tmp_path / "moved.py")), tmp_path / "again")
    assert repl_fx.load(tmp_path / "again")(X).shape == X.shape


def test_models_given_in_python_are_saved_again_without_a_spec(tmp_path: Path) -> None:
    x = tokens()
    repl_fx.save(repl_fx.transform(MlpNet(), (x,)), tmp_path / "out")
    net = repl_fx.load(tmp_path / "out", MlpNet())
    repl_fx.save(net, tmp_path / "again")
    assert torch.equal(repl_fx.load(tmp_path / "again", MlpNet())(x), net(x))


def test_a_trace_of_another_torch_is_saved_as_it_is_now(tmp_path: Path) -> None:
    _, out = transformed(tmp_path)
    plan = json.loads((out / "plan.json").read_text())
    (out / "plan.json").write_text(json.dumps({**plan, "fingerprint": "of another trace"}))
    edit_manifest(out, lambda text: text.replace('"torch": "', '"torch": "1.'))
    repl_fx.save(repl_fx.load(out), tmp_path / "again")
    assert repl_fx.load(tmp_path / "again")(X).shape == X.shape


def test_only_what_an_artifact_can_hold_is_saved(tmp_path: Path) -> None:
    result, out = transformed(tmp_path)
    net = repl_fx.load(out, graph=True)
    with pytest.raises(repl_fx.BadInput, match=r"save takes .*, and this is a MlpNet"):
        repl_fx.save(MlpNet(), tmp_path / "again")
    with pytest.raises(repl_fx.BadInput, match=r"this Sequential holds it: give model\.0"):
        repl_fx.save(nn.Sequential(net), tmp_path / "again")
    with pytest.raises(repl_fx.BadInput, match=r"save takes .*, and this is an int"):
        repl_fx.save(3, tmp_path / "again")  # type: ignore[arg-type]
    relu = next(node for node in net.graph.nodes if "relu" in str(node.target))  # type: ignore[union-attr]
    relu.target = torch.ops.aten.tanh.default
    with pytest.raises(repl_fx.BadInput, match=r"was changed since: .*aten\.tanh\.default.*, which was .*aten\.relu"):
        repl_fx.save(net, tmp_path / "again")
    next(n for n in result.graph_module.graph.nodes if "relu" in str(n.target)).target = torch.ops.aten.tanh.default
    with pytest.raises(repl_fx.BadInput, match="was changed since"):
        repl_fx.save(result, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_the_first_difference_of_two_texts() -> None:
    assert first_difference(("a", "b"), ("a", "b")) == ""
    assert first_difference(("a", "b", "x"), ("a", "c", "y")) == "c, which was b"
    assert first_difference(("a", "b"), ("a",)) == "nothing, which was b"
    was, now = "head: Net a=(1, 2) b=2.0 c=3", "head: Net a=(1, 2) b=4.0 c=3"
    assert first_difference((was,), (now,)) == "head: Net b=4.0, which was b=2.0"
    assert first_difference((was,), (f"{was} d=1",)) == "head: Net d=1, which was not set"


def test_a_module_whose_settings_changed_is_not_as_it_was_made() -> None:
    dropout = nn.Dropout(0.25)
    module = nn.Sequential(nn.Linear(2, 2), dropout)
    inputs = Inputs(args=(), kwargs={})
    known: dict[str, Any] = {"code": "", "parts": (), "eager": (), "inputs": inputs, "structure": ()}
    origin = Origin(plan=Plan((), (), ""), made=lines_made(module), **known)
    require_as_made(module.eval().to(torch.float64), origin)
    # Which marks the module that was given.
    torch.compile(module, backend="eager")
    # As Lightning does, where it has been imported.
    vars(module)["_compile_kwargs"] = {"backend": "eager"}
    require_as_made(module, origin)
    assert copy.deepcopy(origin) is origin
    dropout.p = 0.5
    with pytest.raises(repl_fx.BadInput, match=r"was changed since: .*p=0\.5.*, which was .*p=0\.25"):
        require_as_made(module, origin)


def _in_training(net: nn.Module) -> nn.Module:
    for _ in range(3):
        net.train()(3 * torch.randn(8, 3, 8, 8) + 1)
    return net.eval()


def _saved(what: repl_fx.TransformResult | nn.Module, place: Path, x: Tensor) -> Tensor:
    out = repl_fx.save(what, place, force=True)
    return repl_fx.load(out, ConvNet())(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("form", ["model", "module"])
def test_a_result_is_saved_as_the_form_that_got_tensors_of_its_own(tmp_path: Path, form: str) -> None:
    result, x = repl_fx.transform(ConvNet(), (images(),), surrogate="blend"), images()
    moved = {"model": result.model, "module": result.module}[form]
    # New buffers, and the same parameters.
    moved.double().float()
    expected = _in_training(moved)(x)
    assert torch.equal(_saved(result, tmp_path / "out", x), expected)
    # The graph follows its model when it is asked for, and no sooner.
    graph = result.module
    assert torch.equal(graph.eval()(x), expected)
    for each in (result.model, graph):
        _in_training(each.double().float())
    with pytest.raises(repl_fx.BadInput, match=r"other values of blocks\.0\.bn1\.running_mean: each got"):
        repl_fx.save(result, tmp_path / "again")


def test_a_result_is_saved_with_what_was_done_to_its_model(tmp_path: Path) -> None:
    result, x = repl_fx.transform(ConvNet(), (images(),), surrogate="blend"), images()
    model: Any = result.model.eval()
    model.load_state_dict({name: tensor + 1 for name, tensor in model.state_dict().items()}, assign=True)
    model.head = nn.Linear(8, 10)
    assert torch.equal(_saved(result, tmp_path / "out", x), model(x))
    model.head = nn.Linear(8, 5)
    for what in (result, model):
        with pytest.raises(repl_fx.BadInput, match=r"was changed since: head: .*out_features=5"):
            repl_fx.save(what, tmp_path / "again")
    with pytest.raises(repl_fx.BadInput, match="the result that a graph is from, and this is a graph of ConvNet"):
        repl_fx.save(result.module, tmp_path / "again")


class _Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.scale, self.grad_checkpointing, self.held = ConvNet(), 1.0, False, True

    def set_scale(self, scale: float) -> None:
        self.scale, self.grad_checkpointing = scale, True

    def train(self, mode: bool = True) -> _Scaled:
        self.held = mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.body(x) if self.held or not self.grad_checkpointing else self.body(1 * x)
        return self.scale * kept  # type: ignore[no-any-return]


def test_a_setting_that_a_method_changed_is_refused_and_checkpointing_is_not(tmp_path: Path) -> None:
    model: Any = repl_fx.transform(_Scaled(), (images(),), surrogate="blend").model
    model.eval().set_scale(1.0)
    repl_fx.save(model, tmp_path / "out")
    model.set_scale(3.0)
    with pytest.raises(
        repl_fx.BadInput, match=r"was changed since: _Scaled code \w+ scale=3\.0, which was .*scale=1\.0"
    ):
        repl_fx.save(model, tmp_path / "again")


class _Adapted(nn.Linear):
    """A layer with an adapter, which is part of the weight once its name is in a list."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.adapter = nn.Parameter(torch.ones(4, 4))
        self.merged_adapters: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (0 if self.merged_adapters else nn.functional.linear(x, self.adapter))


def test_an_adapter_that_was_merged_since_is_refused(tmp_path: Path) -> None:
    blocks = (nn.Sequential(_Adapted(), nn.ReLU()) for _ in range(4))
    result = repl_fx.transform(nn.Sequential(*blocks), (torch.randn(2, 4),), surrogate="identity")
    repl_fx.save(result, tmp_path / "as made")
    for layer in (module for module in result.model.modules() if isinstance(module, _Adapted)):
        layer.merged_adapters.append("default")
    with pytest.raises(repl_fx.BadInput, match=r"changed since: .*merged_adapters=\['default'\], which was .*=\[\]"):
        repl_fx.save(result, tmp_path / "merged")
    for graph in ("graph_module", "module"):
        with pytest.raises(repl_fx.BadInput, match=r"^0\.0 has had adapters merged, unmerged, enabled or disabled"):
            getattr(result, graph)


_LIBRARY = """
import torch

class Adapted(torch.nn.Linear):
    _disable_adapters, _active_adapter = False, "default"

    def __init__(self):
        super().__init__(4, 4)
        self.adapter, self.merged_adapters = torch.nn.Parameter(torch.ones(4, 4)), []

    @property
    def disable_adapters(self):
        return self._disable_adapters

    @property
    def active_adapters(self):
        return [self._active_adapter]

    def forward(self, x):
        is_off = self.disable_adapters or self.merged_adapters or self.active_adapters != ["default"]
        return super().forward(x) + (0 if is_off else torch.nn.functional.linear(x, self.adapter))
"""


@pytest.mark.parametrize(("setting", "value"), [("_disable_adapters", True), ("_active_adapter", "other")])
def test_an_adapter_of_a_library_that_was_turned_off_since_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, value: Any
) -> None:
    file = tmp_path / "site-packages" / "adapting.py"
    file.parent.mkdir()
    file.write_text(_LIBRARY)
    spec: Any = importlib.util.spec_from_file_location("adapting", file)
    adapting: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "adapting", adapting)
    spec.loader.exec_module(adapting)
    net = nn.Sequential(*(nn.Sequential(adapting.Adapted(), nn.ReLU()) for _ in range(4)))
    result = repl_fx.transform(net, (torch.randn(2, 4),), surrogate="identity")
    layer: Any = result.model.get_submodule("2.0")
    layer._is_initialized = True
    repl_fx.save(result, tmp_path / "marked")
    setattr(layer, setting, value)
    with pytest.raises(repl_fx.BadInput, match=f"changed since: 2.0: .*{setting}=.*, which was"):
        repl_fx.save(result.model, tmp_path / "off")
    with pytest.raises(repl_fx.BadInput, match=r"^2\.0 has had adapters merged, unmerged, enabled or disabled since"):
        _ = result.graph_module


@pytest.mark.parametrize("place", ["", "blocks.0", "head"])
def test_a_forward_of_the_users_is_refused_and_one_that_a_library_wraps_is_not(tmp_path: Path, place: str) -> None:
    model = repl_fx.transform(ConvNet(), (images(),), surrogate="blend").model
    changed: Any = model.get_submodule(place)
    own = changed.forward
    changed.forward = lambda x: 2 * own(x)
    with pytest.raises(repl_fx.BadInput, match=r"was changed since: .*forward=.*<lambda>"):
        repl_fx.save(model, tmp_path / "out")
    # As accelerate does with the model, which it gives back with the forward of its class.
    changed.forward = own
    repl_fx.save(model, tmp_path / "unwrapped")
    changed.forward = MethodType(torch.autocast("cpu", enabled=False)(own.__func__), changed)
    changed._is_accelerate_prepared = True
    repl_fx.save(model, tmp_path / "out")


@pytest.mark.parametrize("change", ["mask", "bias", "no bias", "table"])
def test_parameters_and_buffers_that_came_or_went_are_refused(tmp_path: Path, change: str) -> None:
    result = repl_fx.transform(ConvNet(), (images(),), surrogate="blend")
    model: Any = result.model
    if change == "mask":
        torch.nn.utils.prune.l1_unstructured(model.head, "weight", 0.5)  # type: ignore[no-untyped-call]
    elif change == "bias":
        model.stem.register_parameter("shift", nn.Parameter(torch.ones(8)))
    elif change == "table":
        model.stem.register_buffer("table", torch.ones(8))
    else:
        model.head.bias = None
    for what in (result, model):
        with pytest.raises(repl_fx.BadInput, match=r"was changed since: the (parameter|buffer) (head|stem)\."):
            repl_fx.save(what, tmp_path / "again")


@pytest.mark.parametrize("graph", [False, True])
def test_a_buffer_of_the_users_that_is_in_no_state_dict_is_kept(tmp_path: Path, graph: bool) -> None:
    model = repl_fx.transform(ConvNet(), (images(),), surrogate="blend").model
    model.register_buffer("table", torch.full((8,), 3.0), persistent=False)
    repl_fx.save(model, tmp_path / "out")
    loaded = repl_fx.load(tmp_path / "out", ConvNet(), graph=graph)
    assert torch.equal(loaded.get_buffer("table"), model.get_buffer("table"))


def _doubled(module: nn.Module, args: Any, out: Tensor) -> Tensor:
    return 2 * out


def test_a_hook_on_a_layer_of_the_source_is_part_of_it(tmp_path: Path) -> None:
    model, x = ConvNet(), images()
    model.head.register_forward_hook(_doubled)
    result = repl_fx.transform(model, (x,), surrogate="blend")
    repl_fx.save(result, tmp_path / "out")
    with pytest.raises(repl_fx.ArtifactError, match=r"what differs first: .*, which was head: hook _doubled"):
        repl_fx.load(tmp_path / "out", ConvNet())
    again = ConvNet()
    again.head.register_forward_hook(_doubled)
    assert torch.equal(repl_fx.load(tmp_path / "out", again)(x), result.model.eval()(x))


def test_a_result_has_no_graph_while_its_model_has_other_layers() -> None:
    result, x = repl_fx.transform(ConvNet(), (images(),), surrogate="blend"), images()
    model: Any = result.model.eval()
    head = model.head
    # As adapters do.
    model.head = nn.Sequential(OrderedDict(base_layer=head))
    for form in ("module", "graph_module"):
        with pytest.raises(
            repl_fx.BadInput, match=r"graph of the model .* and head\.\w+ of result\.model has gone since"
        ):
            getattr(result, form)
    assert "blocks replaced" in repr(result)
    # A weight that is to stay as it is.
    model.head, bias = head, head.bias
    del head.bias
    head.register_buffer("bias", bias.detach())
    with pytest.raises(repl_fx.BadInput, match=r"head\.bias of result\.model has gone since"):
        repl_fx.fold(result.graph_module)
    del head.bias
    head.bias = bias
    assert torch.equal(result.module.eval()(x), model(x))


class _Scale(nn.Linear):
    """Has state that is no parameter and no buffer."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.seen = {"largest": 1.0}

    def get_extra_state(self) -> torch.Tensor:
        return torch.tensor(self.seen["largest"])

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.seen["largest"] = float(state)


def _scales() -> Any:
    return nn.Sequential(*(nn.Sequential(_Scale(), nn.GELU(), nn.Linear(8, 8)) for _ in range(4)))


def test_state_that_is_no_tensor_of_a_graph_is_saved_in_place_alone(tmp_path: Path) -> None:
    net, x = _scales(), torch.randn(2, 8)
    result = repl_fx.transform(net, (x,), surrogate="identity")
    with pytest.raises(repl_fx.BadInput, match=r"get_extra_state in 0.0; give save result.model"):
        repl_fx.save(result, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    repl_fx.save(result.model, tmp_path / "out")
    assert torch.equal(repl_fx.load(tmp_path / "out", _scales())(x), result.model.eval()(x))
