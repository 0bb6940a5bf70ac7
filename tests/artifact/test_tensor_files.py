"""Tensors to files and back: tied ones, buffers in no state_dict, precision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import repl_fx
from repl_fx.artifact.store import load_artifact
from repl_fx.artifact.tensor_files import State, load_state, read_state, write_state
from repl_fx.graph.state import named_tensors
from repl_fx.sources import load_source
from tests.artifact.tables_net import X, transformed, write
from tests.nets import MlpBlock, TokenNet, tokens


class Shares(nn.Module):
    """Residual blocks, and buffers that look at the memory of a parameter in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual() for _ in range(3))
        self.tied = nn.Linear(8, 8)
        weight = self.tied.weight.detach()
        self.turned: Tensor
        self.bits: Tensor
        self.register_buffer("turned", weight.t())
        self.register_buffer("bits", weight.view(torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.tied(x) @ self.turned + (self.bits % 2).float().sum()  # type: ignore[no-any-return]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc(x).relu()  # type: ignore[no-any-return]


def test_a_buffer_whose_elements_share_their_memory_is_loaded(tmp_path: Path) -> None:
    class Spread(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.scale: Tensor
            self.register_buffer("scale", torch.tensor([value]).expand(8))

    write_state(Spread(2.0), tmp_path / "weights", tmp_path / "constants")
    load_state(loaded := Spread(1.0), read_state(tmp_path / "weights", tmp_path / "constants", {}))
    assert loaded.scale.tolist() == [2.0] * 8


def test_one_memory_seen_in_several_ways_is_no_alias(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 8)
    result = repl_fx.transform(Shares(), (x,), surrogate="identity")
    wanted = result.module.eval()(x)
    repl_fx.save(result, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["aliases"] == {}
    assert torch.equal(repl_fx.load(tmp_path / "out", Shares())(x), wanted)


def test_buffers_that_are_in_no_state_dict_are_those_that_were_saved(tmp_path: Path) -> None:
    source = load_source(str(write(tmp_path / "net.py")))
    result = repl_fx.transform(source.model, source.args)
    net = result.graph_module.train()
    net(X)
    net.scale.fill_(3.0)  # type: ignore[operator]
    wanted = net.eval()(X)
    repl_fx.save(result, tmp_path / "out", source=source)
    loaded = repl_fx.load(tmp_path / "out")
    assert torch.equal(loaded(X), wanted)
    assert loaded.seen.abs().sum() > 0  # type: ignore[operator]
    # Whatever the code computes by now.
    again = repl_fx.load(tmp_path / "out", str(write(tmp_path / "other.py", angle=1e-5, scale="4.0")))
    assert torch.equal(again(X), wanted)


class Table(nn.Module):
    """Makes a table, which is in no `state_dict`, for the length of its input when that is another one."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual() for _ in range(3))
        self.table: Tensor
        self.register_buffer("table", torch.zeros(1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.table.shape[1] != x.shape[1]:
            self.table = torch.arange(x.shape[1], dtype=x.dtype).view(1, -1, 1)
        for block in self.blocks:
            x = block(x + self.table)
        return x


def test_a_buffer_that_the_forward_made_anew_is_of_the_size_it_got(tmp_path: Path) -> None:
    x = torch.randn(3, 5, 8)
    result = repl_fx.transform(Table(), (x,), surrogate="identity")
    wanted = result.module.eval()(x)
    assert result.module.get_buffer("table").shape == (1, 5, 1)
    repl_fx.save(result, tmp_path / "out")
    loaded = repl_fx.load(tmp_path / "out", Table())
    assert loaded.get_buffer("table").shape == (1, 5, 1)
    assert torch.equal(loaded(x), wanted)


class Lazy(nn.Module):
    """Makes a table in its first forward, and reads it as long as it is long enough."""

    def __init__(self, persistent: bool, declared: bool = True) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual() for _ in range(3))
        self.table: Tensor
        self.persistent = persistent
        if declared:
            self.register_buffer("table", None, persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        table = getattr(self, "table", None)
        if table is None or table.shape[1] < x.shape[1]:
            made = torch.arange(x.shape[1], dtype=x.dtype).view(1, -1, 1) + 0.5
            self.register_buffer("table", made, persistent=self.persistent)
        for block in self.blocks:
            x = block(x + self.table[:, : x.shape[1]])
        return x


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("ran_before", [0, 5, 7])
def test_a_buffer_that_the_first_forward_makes(tmp_path: Path, persistent: bool, ran_before: int) -> None:
    def net(length: int) -> Lazy:
        made = Lazy(persistent)
        return made if not length else (made.eval()(torch.randn(2, length, 8)), made)[1]

    x = torch.randn(3, 5, 8)
    result = repl_fx.transform(net(ran_before), (x,), surrogate="identity")
    repl_fx.save(result, tmp_path / "fresh")
    wanted = result.module.eval()(x)
    repl_fx.save(result, tmp_path / "run")
    for directory in ("fresh", "run"):
        for length in (0, 5, 7):
            given = net(length)
            before = given._buffers["table"]
            loaded = repl_fx.load(tmp_path / directory, given)
            assert torch.equal(loaded(x), wanted)
            assert given._buffers["table"] is before


def test_a_buffer_that_the_first_forward_registers(tmp_path: Path) -> None:
    x, made = torch.randn(3, 5, 8), Lazy(False, declared=False)
    made(x)
    result = repl_fx.transform(made, (x,), surrogate="identity")
    wanted = result.module.eval()(x)
    repl_fx.save(result, tmp_path / "out")
    assert torch.equal(repl_fx.load(tmp_path / "out", Lazy(False, declared=False))(x), wanted)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_constant_of_the_code_that_changed_is_refused(tmp_path: Path, in_place: bool) -> None:
    _, out = transformed(tmp_path)
    # In place, the tensor is in the model's own code, and in no file of tensors.
    out = repl_fx.save(repl_fx.load(out), tmp_path / "again") if in_place else out
    with pytest.raises(repl_fx.ArtifactError, match=r"no longer fits its model: the constant \S*traced_constant_0 has"):
        repl_fx.load(out, str(write(tmp_path / "other.py", angle=0.1)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_keeps_the_precision_it_was_trained_in(tmp_path: Path, dtype: torch.dtype) -> None:
    result, _ = transformed(tmp_path)
    net = result.graph_module.eval().to(dtype)
    repl_fx.save(result, tmp_path / "again", source=load_source(str(tmp_path / "net.py")))
    # The class has a tensor that is neither parameter nor buffer, and that its `to` leaves as it is.
    loaded = repl_fx.load(tmp_path / "again", graph=True)
    assert {p.dtype for p in loaded.parameters()} == {dtype} == {b.dtype for b in loaded.buffers()}
    assert torch.equal(loaded(X.to(dtype)), net(X.to(dtype)))


class Tied(nn.Module):
    """Two layers with one weight, and a table that is in no state_dict."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.two.weight = self.one.weight
        self.register_buffer("table", torch.randn(3), persistent=False)


def test_tied_tensors_are_written_once_and_loaded_as_one(tmp_path: Path) -> None:
    files = tmp_path / "weights", tmp_path / "constants"
    written, loaded = Tied(), Tied()
    aliases = write_state(written, *files)
    assert aliases == {"two.weight": "one.weight"}
    load_state(loaded, read_state(*files, aliases))
    assert loaded.two.weight is loaded.one.weight and torch.equal(loaded.one.weight, written.one.weight)
    assert torch.equal(loaded.get_buffer("table"), written.get_buffer("table"))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Linear(4, 4), "2 tensors are missing, e.g. bias; 2 tensors are foreign, e.g. one.weight"),
        (Tied(5), r"one.weight is torch.float32\[4, 4\], the model has torch.float32\[5, 5\]"),
    ],
)
def test_tensors_of_another_module_are_refused(tmp_path: Path, other: nn.Module, message: str) -> None:
    files = tmp_path / "weights", tmp_path / "constants"
    state = read_state(*files, write_state(Tied(), *files))
    with pytest.raises(repl_fx.ArtifactError, match=message):
        load_state(other, state)


def test_tensors_without_values_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(repl_fx.OutputError, match="weight is on the meta device and has no values to save"):
        write_state(nn.Linear(2, 2, device="meta"), tmp_path / "weights", tmp_path / "constants")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.eye(2).to_sparse(), r"table is sparse \(torch.sparse_coo\), and an artifact holds dense tensors alone"),
        (torch.zeros(2, dtype=torch.complex128), "weights cannot hold tensors of torch.complex128, which safetensors"),
    ],
)
def test_tensors_that_no_file_can_hold_are_refused(tmp_path: Path, tensor: torch.Tensor, message: str) -> None:
    layer = nn.Linear(2, 2)
    layer.register_buffer("table", tensor)
    with pytest.raises(repl_fx.OutputError, match=message):
        write_state(layer, tmp_path / "weights", tmp_path / "constants")


def test_shards_are_no_whole_tensors(tmp_path: Path) -> None:
    distributed = pytest.importorskip("torch.distributed.tensor")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        layer = nn.Linear(2, 2)
        mesh = distributed.init_device_mesh("cpu", (1,))
        layer.weight = nn.Parameter(distributed.distribute_tensor(layer.weight.detach(), mesh, [distributed.Shard(0)]))
        with pytest.raises(repl_fx.OutputError, match="weight is sharded over processes; save the model with whole"):
            write_state(layer, tmp_path / "weights", tmp_path / "constants")
    finally:
        torch.distributed.destroy_process_group()


def test_the_other_form_of_a_model_has_the_same_tensors_under_its_names() -> None:
    names = ("surrogates.b1.gain", "surrogates.b12.gain", "b1.gain", "traced_constant_0")
    tensors = {name: torch.zeros(()) for name in names}
    state = State(Path("model.safetensors"), tensors, {"surrogates.b1.table": torch.ones(())})
    renamed = state.renamed({"surrogates.b1.": "b1.surrogate.", "surrogates.b12.": "b12.surrogate."})
    assert list(renamed.weights) == ["b1.surrogate.gain", "b12.surrogate.gain", "b1.gain"]
    assert list(renamed.constants) == ["b1.surrogate.table"] and renamed.file == state.file


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.net = nn.Embedding(8, 8), nn.Sequential(*(MlpBlock(8) for _ in range(3)))
        self.head = nn.Linear(8, 8, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.net(self.embed(ids)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("graph", [False, True])
def test_tensors_are_tied_where_they_were_when_they_were_saved(tmp_path: Path, graph: bool) -> None:
    ids = torch.randint(8, (2, 5))
    result = repl_fx.transform(_Tied(), (ids,))
    model = result.model
    model.get_submodule("head").weight = nn.Parameter(model.get_parameter("embed.weight").detach().clone())
    model.get_submodule("net.2.fc1").weight = model.get_parameter("net.0.fc1.weight")
    wanted = model.eval()(ids)
    assert torch.equal(result.module.eval()(ids), wanted)
    repl_fx.save(model, tmp_path / "one")
    repl_fx.save(repl_fx.load(tmp_path / "one", _Tied(), graph=graph), tmp_path / "two")
    for place in ("one", "two"):
        artifact = load_artifact(tmp_path / place, _Tied(), graph=graph)
        loaded, after = artifact.model, artifact.result.module
        names = {name for name, tensor in named_tensors(after).items() if tensor is named_tensors(loaded).get(name)}
        assert isinstance(loaded, _Tied) is not graph and names >= {"head.weight", "embed.weight", "net.2.fc1.weight"}
        assert loaded.get_parameter("net.2.fc1.weight") is loaded.get_parameter("net.0.fc1.weight")
        assert loaded.get_parameter("embed.weight") is not loaded.get_parameter("head.weight")
        with torch.no_grad():
            loaded.get_parameter("head.weight").add_(1)
            assert torch.equal(loaded(ids), after(ids)) and not torch.equal(loaded(ids), wanted)


@pytest.mark.parametrize("form", ["model", "graph", "result"])
def test_layers_in_a_wrapper_that_leaves_its_name_out_come_back(tmp_path: Path, form: str) -> None:
    def wrapped() -> Any:
        net: Any = TokenNet(depth=3)
        net.blocks = checkpoint_wrapper(net.blocks)
        return net

    x = tokens()
    result = repl_fx.transform(wrapped(), (x,), surrogate="blend")
    assert "blocks.0.norm1.weight" in result.model.state_dict()
    assert "blocks._checkpoint_wrapped_module.0.norm1.weight" in result.graph_module.state_dict()
    result.model.load_state_dict(result.model.state_dict())
    repl_fx.save(result.model if form == "model" else result, tmp_path / "out")
    loaded = repl_fx.load(tmp_path / "out", wrapped(), graph=form == "graph")
    assert torch.equal(loaded(x), result.model(x))


class _ReadsTied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(*(MlpBlock(8) for _ in range(3)))
        self.into = nn.Parameter(torch.randn(8, 8))
        self.out = self.into

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x @ self.into) @ self.out  # type: ignore[no-any-return]


def test_a_graph_that_reads_two_tensors_as_one_is_none_of_a_model_that_has_two(tmp_path: Path) -> None:
    result = repl_fx.transform(_ReadsTied(), (torch.randn(2, 8),), surrogate="identity")
    result.model.out = nn.Parameter(torch.randn(8, 8))
    with pytest.raises(repl_fx.BadInput, match=r"result\.module reads (into|out) and (into|out) as one tensor"):
        repl_fx.save(result, tmp_path / "out")
    repl_fx.save(result.model, tmp_path / "out")
    with pytest.raises(repl_fx.ArtifactError, match=r"whose graph reads (into|out) and (into|out) as one tensor"):
        repl_fx.load(tmp_path / "out", _ReadsTied())


class _ScaledBlock(Residual):
    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale: Tensor
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.fc(x).relu()  # type: ignore[no-any-return]


def _share_a_buffer() -> nn.Module:
    scale = torch.rand(8)
    return nn.Sequential(*(_ScaledBlock(scale) for _ in range(3)))


def test_a_buffer_that_blocks_share_is_one_again_where_a_converted_model_is_loaded(tmp_path: Path) -> None:
    x = torch.randn(2, 8)
    model = repl_fx.transform(_share_a_buffer(), (x,), surrogate="identity").model.eval()
    # As `.cuda()` does, it gives each module its own.
    wanted = model.double()(x.double())
    assert model.get_buffer("0.scale") is not model.get_buffer("2.scale")
    repl_fx.save(model, tmp_path / "out")
    for graph in (False, True):
        loaded = repl_fx.load(tmp_path / "out", _share_a_buffer(), graph=graph)
        assert torch.equal(loaded(x.double()), wanted)
        assert loaded.get_buffer("0.scale") is loaded.get_buffer("2.scale")
    model.get_buffer("2.scale").mul_(2)
    repl_fx.save(model, tmp_path / "out", force=True)
    with pytest.raises(repl_fx.ArtifactError, match=r"reads [02]\.scale and [02]\.scale as one tensor"):
        repl_fx.load(tmp_path / "out", _share_a_buffer())
