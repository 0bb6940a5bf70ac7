"""Graphs as JSON: what is read is what was written, and whatever a writer does not write is refused."""

from __future__ import annotations

import json
import math
import operator
import random
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import repl_fx
from repl_fx.artifact.store import text_of
from repl_fx.graph.boundaries import boundaries
from repl_fx.graph.decisions import Comparison, Condition, Decision
from repl_fx.graph.plain import NotPlain, Reader, Writer, _file_of, _module_of, is_bare
from repl_fx.graph.runtime import SizeCheck, check_shape, select_mode
from repl_fx.tracing.fingerprint import lines_of_graph
from tests.nets import ConvNet, TokenNet, images


def through_json(gm: fx.GraphModule) -> fx.Graph:
    writer = Writer()
    nodes, tables = json.loads(json.dumps([writer.graph(gm.graph), writer.tables]))
    return Reader(tables).graph(nodes, gm)


@pytest.mark.parametrize(
    ("model", "args"), [(TokenNet(depth=2), (torch.randn(2, 6, 16),)), (ConvNet(), (images(),))], ids=["tokens", "conv"]
)
def test_a_captured_graph_comes_back(model: nn.Module, args: tuple[Tensor, ...]) -> None:
    gm = repl_fx.capture(model, args)
    read = through_json(gm)
    assert text_of(read) == text_of(gm.graph)
    for ours, theirs in zip(read.nodes, gm.graph.nodes, strict=True):
        assert ours.meta.keys() == theirs.meta.keys()
        value, was = ours.meta.get("val"), theirs.meta.get("val")
        if isinstance(was, Tensor):
            assert str(value.shape) == str(was.shape) and value.stride() is not None and value.dtype is was.dtype
            assert value.fake_mode is next(iter(read.nodes)).meta["val"].fake_mode
        for name in ("nn_module_stack", "stack_trace", "passes_through"):
            assert ours.meta.get(name) == theirs.meta.get(name)
        known, before = boundaries(ours), boundaries(theirs)
        assert [(b.call.path, b.argument, b.leaf, len(b.call.calls)) for b in known] == [
            (b.call.path, b.argument, b.leaf, len(b.call.calls)) for b in before
        ]
        assert [b.call.given.keys() for b in known] == [b.call.given.keys() for b in before]
    again = fx.GraphModule(gm, read)
    assert torch.equal(again.eval()(*args), gm.eval()(*args))
    assert lines_of_graph(gm)


ARGUMENTS: list[Any] = [
    None, True, 1, 0.5, math.inf, "a'b", torch.float16, torch.device("cpu"), torch.strided, torch.channels_last,
    torch.Size([2, 3]), slice(1, None, 2), ..., (1, (2, [3])), {"a": [1]},
]  # fmt: skip


@pytest.mark.parametrize("value", ARGUMENTS, ids=str)
def test_constants_come_back(value: Any) -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(select_mode, (x, value, [x, value])))
    writer = Writer()
    read = Reader(writer.tables).graph(json.loads(json.dumps(writer.graph(graph))))
    call = list(read.nodes)[1]
    assert call.args[1] == value and type(call.args[1]) is type(list(graph.nodes)[1].args[1])


def test_a_number_that_is_none_comes_back() -> None:
    written = json.loads(json.dumps(Writer().value(math.nan)))
    assert math.isnan(Reader(Writer().tables)._value(written))


TARGETS: list[Callable[..., Any]] = [
    SizeCheck("max(s0, 4) % 2 == 0 and -s0 < math.floor(3 / 2)", (("s0", 0, 0),), "x.shape[0] is even", " (at x)"),
    Condition(skips_when=True),
    Decision(Comparison(random.random, (), operator.lt, 0.5), skips_when=True),
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: type(target).__name__)
def test_calls_of_objects_come_back(target: Any) -> None:
    graph = fx.Graph()
    graph.output(graph.call_function(target, (graph.placeholder("x"),)))
    writer = Writer()
    made = list(Reader(writer.tables).graph(json.loads(json.dumps(writer.graph(graph)))).nodes)[1].target
    assert type(made) is type(target)
    assert {k: v for k, v in vars(made).items() if k not in ("draw", "_truth")} == {
        k: v for k, v in vars(target).items() if k not in ("draw", "_truth")
    }
    assert vars(made).get("draw") == vars(target).get("draw")


class Secret:
    pass


@pytest.mark.parametrize("value", [Secret(), object(), print, {Secret}, torch.ones(2)], ids=lambda v: type(v).__name__)
def test_other_values_are_no_data(value: Any) -> None:
    graph = fx.Graph()
    graph.output(graph.placeholder("x"))
    next(iter(graph.nodes)).meta["val"] = [value]
    # A class says what it is.
    if value == {Secret}:
        Writer().graph(graph)
        return
    with pytest.raises(NotPlain):
        Writer().graph(graph)


@pytest.mark.parametrize("target", [print, torch.relu, torch.ops.aten.from_file.default, torch.ops.prims.cos.default])
def test_other_calls_are_no_data(target: Any) -> None:
    graph = fx.Graph()
    graph.output(graph.call_function(target, (graph.placeholder("x"),)))
    if target is torch.ops.aten.from_file.default:
        with pytest.raises(ValueError, match="from_file"):
            Reader(Writer().tables).graph(Writer().graph(graph))
        return
    with pytest.raises(NotPlain):
        Writer().graph(graph)


INPUT = ["x", "placeholder", "x", ["tuple"], ["dict"], {}]
OUTPUT = ["output", "output", "output", ["tuple", ["node", 0]], ["dict"], {}]


def call(target: Any, *args: Any, name: str = "a", kwargs: Any = ("dict",), op: str = "call_function") -> list[Any]:
    return [name, op, target, ["tuple", *args], list(kwargs), {}]


@pytest.mark.parametrize(
    "nodes",
    [
        [call(["function", "os.system"], "true")],
        [call(["operator", "aten.from_file.default"], "/etc/passwd")],
        [call(["operator", "aten.load_library.x"])],
        [call(["operator", "prims.cos.default"], ["node", 0])],
        [call(["size check", "__import__('os').system('true')", [["s0", 0, 0]], "", "", False, ""])],
        [call(["size check", "s0.__class__ == 1", [["s0", 0, 0]], "", "", False, ""])],
        [call(["size check", "[s0 for s0 in (1,)] == 1", [["s0", 0, 0]], "", "", False, ""])],
        [call(["function", "builtins.getattr"], ["node", 0], "__class__")],
        [call(["function", "runtime.call_module"], ["class", "subprocess", "Popen"], "true")],
        [call(["function", "runtime.select_mode"], ["class", "subprocess", "Popen"])],
        [call(["function", "operator.add"], ["node", 0], name="a\nimport os")],
        [call(["function", "operator.add"], ["node", 0], name="x")],
        [call(["function", "operator.add"], ["node", 7])],
        [call(["function", "operator.add"], ["node", 0], kwargs=["dict", ["a=print()", 1]])],
        [call("relu", ["node", 0], op="call_method")],
        [call("weight", op="get_attr")],
        [call("layer", ["node", 0], op="call_module")],
        [["x=print()", "placeholder", "x=print()", ["tuple"], ["dict"], {}]],
        [[*call(["function", "operator.add"])[:5], {"val": ["object", ["class", "pathlib", "Path"], ["dict"]]}]],
        [[*call(["function", "operator.add"])[:5], {"val": ["tree", [["class", "subprocess", "Popen"], None]]}]],
        [[*call(["function", "operator.add"])[:5], {"val": ["dtype", "nn"]}]],
        [[*call(["function", "operator.add"])[:5], {"other": 1}]],
    ],
    ids=str,
)
@pytest.mark.parametrize("has_root", [False, True])
def test_what_no_writer_writes_is_refused(nodes: list[Any], has_root: bool) -> None:
    root = nn.Sequential(nn.Linear(2, 2)) if has_root else None
    assert Reader(Writer().tables).graph([INPUT, OUTPUT], root)
    with pytest.raises((ValueError, LookupError, TypeError, AttributeError)):
        Reader(Writer().tables).graph([INPUT, *nodes, OUTPUT], root)


def test_a_graph_ends_with_its_output() -> None:
    for nodes in ([], [INPUT], [OUTPUT, INPUT], [INPUT, OUTPUT, OUTPUT]):
        with pytest.raises((ValueError, LookupError)):
            Reader(Writer().tables).graph(nodes)


def test_a_module_has_only_parts_that_are_its_own() -> None:
    root = nn.Sequential(nn.Linear(2, 2))
    reader = Reader(Writer().tables)
    assert reader.graph([INPUT, call("0.weight", op="get_attr"), OUTPUT], root)
    assert reader.graph([INPUT, call("0.training", op="get_attr"), OUTPUT], root)
    for path in ("0.forward", "0.__class__", "0.forward.__globals__", "forward"):
        with pytest.raises((ValueError, AttributeError)):
            reader.graph([INPUT, call(path, op="get_attr"), OUTPUT], root)


@pytest.mark.parametrize("row", [["symbol", "s0; print()", {}], ["Symbol", 0], ["torch.open", 0], ["fraction", "1", 2]])
def test_expressions_are_made_of_known_classes(row: Any) -> None:
    with pytest.raises((ValueError, TypeError, LookupError)):
        Reader({**Writer().tables, "expressions": [row]})


class Bare:
    def __init__(self) -> None:
        self.a = 1


class Noisy(Bare):
    def __del__(self) -> None:
        pass


class Slotted:
    __slots__ = ("a",)


def test_objects_are_of_classes_for_which_no_code_runs_unasked() -> None:
    package = __name__.partition(".")[0]
    assert is_bare(Bare, {package}) and not is_bare(Bare, {"torch"})
    assert not is_bare(Noisy, {package}) and not is_bare(Slotted, {package})


def test_files_lie_where_they_lie_here() -> None:
    tables = Writer().tables
    tables["files"] = {"/there/net.py": "", "/there/site-packages/json/__init__.py": "json", "/there/gone.py": "gone"}
    tables["texts"] = [f'  File "{file}", line 3, in forward\n    x + 1' for file in tables["files"]]
    found = Reader(tables, ["/here/net.py"])._texts
    assert [text.split('"')[1] for text in found] == ["/here/net.py", json.__file__, "/there/gone.py"]


class ImportsItselfLater(ModuleType):
    """A module as some packages leave in place of optional ones: any attribute imports it."""

    def __getattr__(self, name: str) -> Any:
        raise ImportError(name)


def test_modules_that_import_themselves_at_the_first_use_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    later = ImportsItselfLater("later")
    monkeypatch.setitem(sys.modules, "later", later)
    assert _file_of("later") is None and _module_of.__wrapped__(json.__file__) == "json"


def test_checks_name_functions_of_the_run_time() -> None:
    gm = repl_fx.capture(TokenNet(depth=2), (torch.randn(2, 6, 16),))
    assert any(node.target is check_shape for node in through_json(gm).nodes)
