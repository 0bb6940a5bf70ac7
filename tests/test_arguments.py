"""What public functions are given by mistake: one line each, with what was given and what to give."""

from __future__ import annotations

import functools
import re
from collections import UserDict, UserList
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import fx, nn

import repl_fx
from repl_fx.arguments import require_args
from repl_fx.sources import load_source
from tests.nets import ConvNet, Counts, images

X = torch.randn(2, 3, 8, 8)


@functools.cache
def whole() -> repl_fx.TransformResult:
    return repl_fx.transform(ConvNet(), (X,), surrogate="identity", check=False)


@functools.cache
def parts() -> repl_fx.TransformResult:
    return repl_fx.transform(Counts(ConvNet()), (X,), surrogate="identity", check=False)


def refused(function: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(repl_fx.BadInput) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def call(name: str, given: Any) -> Any:
    """A public function on what was given for its module, with all else as it should be."""
    function = getattr(repl_fx, name)
    if name in ("capture", "capture_parts", "transform"):
        return function(given, (X,))
    if name == "check_capture":
        return function(given, whole().graph_module, (X,))
    if name in ("export_onnx", "verify_onnx"):
        return function(given, "never.onnx", (X,))
    if name == "make_plan":
        return function(given, ())
    if name == "shared_synthesis":
        with function(given):
            return None
    return function(given)


WITH_INPUTS = ("capture", "capture_parts", "transform", "check_capture", "export_onnx", "verify_onnx")
MODULES = (*WITH_INPUTS, "fold", "shared_synthesis")
GRAPHS = ("find_repeats", "make_plan")


@pytest.mark.parametrize("name", (*MODULES, *GRAPHS))
def test_what_is_no_module(name: str) -> None:
    takes = f"{name} takes a {'graph' if name in GRAPHS else 'module'}"
    for value, words in (
        (None, "this is None; give a "),
        (torch.ones(2), "this is a tensor; give a "),
        (ConvNet, "ConvNet is a class, not a model; call it and give what it returns"),
        (lambda: ConvNet(), "this is a function; give a "),
        ("timm:resnet18", "this is a str; give the model itself: repl_fx.sources.load_source(spec).model, or"),
        (Path("artifact"), "Path; give the model itself: "),
        ({"weight": torch.ones(2)}, "this is a dict; give the model that has this state"),
        ((ConvNet(), X), "this is a tuple; give a "),
    ):
        message = refused(call, name, value)
        assert message.startswith(takes) and words in message, message


@pytest.mark.parametrize("name", MODULES)
def test_what_holds_a_module(name: str) -> None:
    assert refused(call, name, whole()) == f"{name} takes a module, and this is a TransformResult; give result.module"
    captured = parts().captured_parts
    assert refused(call, name, captured) == f"{name} takes a module, and this is a CapturedParts; give parts.module"
    words = f"{name} takes a module, and this is a Part; give part.graph_module"
    assert refused(call, name, captured.parts[0]) == words


@pytest.mark.parametrize("name", GRAPHS)
def test_what_holds_graphs(name: str) -> None:
    takes = f"{name} takes a graph, and "
    words = "this is a TransformResult; give a graph of its parts: result.captured_parts.parts[0].graph_module"
    assert refused(call, name, parts()) == takes + words
    words = "this is a CapturedParts; give a graph of its parts: parts.parts[0].graph_module"
    assert refused(call, name, parts().captured_parts) == takes + words
    words = "ConvNet is a model; capture it first: repl_fx.capture(model, args)"
    assert refused(call, name, ConvNet()) == takes + words
    for graph in (parts().captured_parts.parts[0].graph_module, whole().captured_parts.parts[0].graph_module):
        assert isinstance(graph, fx.GraphModule) and call(name, graph) is not None


@pytest.mark.parametrize("name", WITH_INPUTS)
def test_what_are_no_arguments(name: str, tmp_path: Path) -> None:
    before = {
        "check_capture": (ConvNet(), whole().graph_module),
        "export_onnx": (whole().graph_module, tmp_path / "net.onnx"),
        "verify_onnx": (whole().graph_module, tmp_path / "net.onnx"),
    }.get(name, (ConvNet(),))
    function = functools.partial(getattr(repl_fx, name), *before)
    assert refused(function, X) == "args is a tensor; give a tuple: (x,)"
    assert refused(function, {"x": X}) == "args is a dict; give it as kwargs, or a tuple: (inputs,)"
    assert refused(function, None).startswith("args is None; give a tuple with one item for each argument")
    assert refused(function, "x").startswith("args is a str; give a tuple")
    assert refused(function, X.numpy()).startswith("args is a ndarray; give a tuple")
    assert refused(function, (X,), X) == "kwargs is a tensor; give a dict of arguments by their names"
    assert refused(function, (X,), (X,)) == "kwargs is a tuple; give a dict of arguments by their names"
    assert refused(function, (X,), {1: X}) == "kwargs has the key 1; its keys are the names of arguments"
    assert not any(tmp_path.iterdir())


NUMBERS = st.integers()
PLAIN = st.one_of(st.none(), NUMBERS, st.text(), st.binary(), st.sets(NUMBERS), st.dictionaries(st.text(), NUMBERS))


@pytest.mark.slow
@given(given=st.one_of(PLAIN, st.builds(torch.ones, st.just(2)), st.builds(np.ones, st.just(2)), st.just(ConvNet)))
def test_all_but_sequences_are_refused_as_args(given: Any) -> None:
    message = refused(require_args, given)
    assert re.fullmatch(r"args is (None|an? \w+|the class \w+); give (a tuple|it as kwargs).*", message)


@given(items=st.lists(PLAIN), named=st.dictionaries(st.text(), PLAIN))
def test_sequences_and_mappings_of_all_kinds_are_taken(items: list[Any], named: dict[str, Any]) -> None:
    for args in (items, tuple(items), UserList(items)):
        for kwargs in (None, named, UserDict(named)):
            require_args(args, kwargs)


@pytest.mark.slow
def test_a_list_of_arguments_is_taken(tmp_path: Path) -> None:
    module = repl_fx.capture(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), [images()])
    repl_fx.export_onnx(module, tmp_path / "net.onnx", [images()])
    assert repl_fx.verify_onnx(module, tmp_path / "net.onnx", [images()])


def test_places_that_are_none(tmp_path: Path) -> None:
    module = whole().graph_module
    is_path = "is a path, and this is {}; give a str or a pathlib.Path"
    message = refused(repl_fx.export_onnx, module, (X,), "net.onnx")
    assert message == f"the file to write {is_path.format('a tuple')}"
    assert refused(repl_fx.verify_onnx, module, None, (X,)) == f"the ONNX file {is_path.format('None')}"
    artifact = f"the directory of an artifact {is_path}"
    assert refused(repl_fx.load, None) == artifact.format("None")
    assert refused(repl_fx.load, whole()) == artifact.format("a TransformResult")
    assert refused(repl_fx.save, whole(), None) == artifact.format("None")


def _refused_as_a_place(place: Path, why: str) -> None:
    """Assert that a place is refused wherever something is written or read."""
    assert refused(repl_fx.save, whole(), place) == f"the directory of an artifact {why}"
    assert refused(repl_fx.load, place) == f"the directory of an artifact {why}"
    assert refused(repl_fx.export_onnx, whole().module, place, (X,)) == f"the file to write {why}"


def test_places_with_a_null_character(tmp_path: Path) -> None:
    place = tmp_path / "a\0b"
    no_name = f"is {str(place)!r}, and no name holds a null character; leave it out"
    _refused_as_a_place(place, no_name)
    assert refused(repl_fx.train, ConvNet(), [X], directory=place) == f"the directory of a run {no_name}"
    assert refused(repl_fx.report(whole()).save, place) == f"the page to write {no_name}"


def test_places_whose_names_are_not_utf_8(tmp_path: Path) -> None:
    place = tmp_path / "caf\udce9"
    _refused_as_a_place(place, f"is {str(place)!r}, and names that are not UTF-8 are not taken; rename it")
    file = place / "net.py"
    place.mkdir()
    file.write_text("")
    with pytest.raises(repl_fx.BadInput, match=r"the model file is .* not UTF-8"):
        load_source(str(file))


def test_places_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for place, why in ((tmp_path / ("x" * 300), "File name too long"), (loop, "Too many levels of symbolic links")):
        _refused_as_a_place(place, f"is {str(place)!r}, which cannot be reached: {why}; choose another")
    below = tmp_path / "gone"
    below.mkdir()
    monkeypatch.chdir(below)
    below.rmdir()
    gone = "the directory of an artifact is 'a', and the working directory is gone; give an absolute path"
    assert refused(repl_fx.save, whole(), "a") == refused(repl_fx.load, "a") == gone
    repl_fx.save(whole(), tmp_path / "a")


def test_what_is_saved_and_what_for_it_is_loaded(tmp_path: Path) -> None:
    takes = "save takes what transform returned, its model, or a module from load (torch.save keeps any other)"
    for value, words in ((ConvNet(), "a ConvNet"), (parts().captured_parts, "a CapturedParts"), (None, "None")):
        assert refused(repl_fx.save, value, tmp_path / "artifact") == f"{takes}, and this is {words}"
    words = (
        "save takes the result that a graph is from, and this is a graph of ConvNet; "
        "weights of a copy go in by result.graph_module.load_state_dict(copy.state_dict())"
    )
    assert refused(repl_fx.save, whole().module, tmp_path / "artifact") == words
    assert not any(tmp_path.iterdir())
    words = "load takes a module for model, and "
    result = refused(repl_fx.load, tmp_path / "artifact", whole())
    assert result == f"{words}this is a TransformResult; give result.module"
    assert refused(repl_fx.load, tmp_path, ConvNet).startswith(f"{words}ConvNet is a class, not a model")


def test_what_is_no_plan_and_what_are_no_repeats() -> None:
    words = "transform takes for plan what repl_fx.make_plan returned, or Plan.from_json(text), and this is "
    assert refused(repl_fx.transform, ConvNet(), (X,), plan="plan.json") == f"{words}a str"
    assert refused(repl_fx.transform, ConvNet(), (X,), plan=whole()) == f"{words}a TransformResult"
    gm = whole().captured
    words = "make_plan takes for repeats what repl_fx.find_repeats(gm) returned, and this is "
    assert refused(repl_fx.make_plan, gm, whole().plan) == f"{words}a Plan"


def test_the_second_module_of_a_check() -> None:
    message = refused(repl_fx.check_capture, Counts(ConvNet()), parts().captured_parts, (X,))
    assert message == "check_capture takes a module for gm, and this is a CapturedParts; give parts.module"


def test_numbers_that_are_none() -> None:
    gm, batches = whole().graph_module, [X] * 4
    for seed in ("a", 1.5, True, 2**70):
        assert refused(repl_fx.check_capture, ConvNet(), gm, (X,), seed=seed) == f"seed is {seed!r}; {WHOLE}"
        assert refused(repl_fx.verify_onnx, gm, "net.onnx", (X,), seed=seed) == f"seed is {seed!r}; {WHOLE}"
    for value in ("a", -1, float("nan"), float("inf")):
        words = f"is {value!r}; it must be a number, 0 or more"
        assert refused(repl_fx.verify_onnx, gm, "net.onnx", (X,), rtol=value) == f"rtol {words}"
        assert refused(repl_fx.verify_onnx, gm, "net.onnx", (X,), atol=value) == f"atol {words}"
        assert refused(repl_fx.fit, whole(), batches, ridge=value) == f"ridge {words}"
    assert refused(repl_fx.score_blocks, gm, batches, greedy="a") == f"greedy is 'a'; {WHOLE}, 0 or more"
    assert refused(repl_fx.verify_onnx, gm, "net.onnx", (X,), batches=3).startswith("batches is 3; give one positive")
    for number in ("rounds", "warm_up", "seed"):
        settings: Any = {number: None}
        assert refused(repl_fx.bench, whole(), **settings).startswith(f"{number} is None; {WHOLE}")
    assert "opset 18 does not exist" in refused(repl_fx.export_onnx, gm, "net.onnx", (X,), opset="18")


WHOLE = "it must be a whole number"


def test_what_is_of_another_kind(tmp_path: Path) -> None:
    words = "fit takes what transform returned, with the original in it, and this is "
    assert refused(repl_fx.fit, whole().model, [X]) == f"{words}a ConvNet"
    words = "compress takes for scores what repl_fx.score_blocks returned, and this is a dict"
    assert refused(repl_fx.compress, ConvNet(), [X], budget={"params": 0.8}, scores={"1": 1.0}) == words
    assert (
        refused(repl_fx.compress, ConvNet(), [X], budget={"params": 0.8}, args=X)
        == "args is a tensor; give a tuple: (x,)"
    )
    words = "save takes for source what repl_fx.sources.load_source returned, and this is a str"
    assert refused(repl_fx.save, whole(), tmp_path / "artifact", source="net.py") == words
    words = "bench takes for inputs ExampleInputs.of(args, kwargs), and this is a tuple"
    assert refused(repl_fx.bench, whole(), inputs=(X,)) == words
    assert refused(repl_fx.train, ConvNet(), [X], teacher=3).startswith("train takes a module for teacher, and this is")
    assert refused(repl_fx.train, ConvNet(), [X], config=3).startswith("train takes a TrainConfig for config")
    assert refused(repl_fx.heal, whole(), [X], original=3).startswith("heal takes a module for original, and this is")


def test_lists_that_are_none() -> None:
    net, gm = ConvNet(), whole().graph_module
    for wrong in (3, "layers.1", [3]):
        words = f"paths is {wrong!r}; give a list of paths of modules, such as ['layers.1']"
        assert refused(repl_fx.capture_parts, net, (X,), paths=wrong) == words
        words = f"layer_nodes is {wrong!r}; give a list of names of nodes"
        assert refused(repl_fx.verify_onnx, gm, "net.onnx", (X,), layer_nodes=wrong) == words
        assert refused(repl_fx.report, whole(), notes=wrong) == f"notes is {wrong!r}; give a list of lines"
    assert refused(repl_fx.bench, whole(), batch_sizes=3) == "batch_sizes is 3; give numbers of inputs, such as (1, 8)"
    assert refused(repl_fx.score_blocks, gm, [X], kinds=[None]).startswith("kinds is [None]; give some of ")
    words = "score_blocks takes for repeats what repl_fx.find_repeats(gm) returned, or some of it, and this is "
    assert refused(repl_fx.score_blocks, gm, [X], repeats=3) == f"{words}an int"
    assert refused(repl_fx.score_blocks, gm, [X], repeats=iter(())) == f"{words}a tuple_iterator"
    for batches in (lambda: None, int):
        assert refused(repl_fx.score_blocks, gm, batches).startswith("batches is ")


def test_surrogates_and_settings_of_another_kind() -> None:
    for name, wrong in (("surrogate", ["blend"]), ("settings", [3]), ("settings", "ratio=1")):
        for function in (repl_fx.transform, functools.partial(repl_fx.compress, budget={"params": 0.8})):
            options: Any = {name: wrong}
            assert f" takes for {name} " in refused(function, ConvNet(), (X,), **options)
    assert "takes for score the" in refused(repl_fx.compress, ConvNet(), [X], budget={"params": 0.8}, score=["loss"])
    assert refused(repl_fx.register_surrogate, 3, int) == "register_surrogate takes a key, and this is an int"
    for config in (3, int, lambda: None):
        assert refused(repl_fx.register_surrogate, "mine", config).startswith("surrogate 'mine': config is ")


def test_functions_that_are_none_and_classes_of_them() -> None:
    loss: Any = nn.CrossEntropyLoss
    words = "loss is the class CrossEntropyLoss; give a function, such as CrossEntropyLoss()"
    assert refused(repl_fx.compress, ConvNet(), [X], budget={"params": 0.8}, loss=loss) == words
    assert refused(repl_fx.score_blocks, whole().captured, [X], kinds=("loss",), loss=loss) == words
    for name in ("evaluate", "progress"):
        options: Any = {name: 3}
        words = f"{name} is an int; give a function"
        assert refused(repl_fx.compress, ConvNet(), [X], budget={"params": 0.8}, **options) == words
    for function, args in (
        *((repl_fx.transform, (ConvNet(), (X,))), (repl_fx.score_blocks, (whole().captured, [X]))),
        *((repl_fx.bench, (whole(),)), (repl_fx.report, (whole(),))),
        *((repl_fx.train, (ConvNet(), [X])), (repl_fx.heal, (whole(), [X]))),
    ):
        assert refused(function, *args, progress=3) == words
    assert refused(repl_fx.score_blocks, whole().captured, [X], kinds=3).startswith("kinds is 3; give some of ")


def test_a_check_of_a_model_that_does_not_run() -> None:
    message = refused(repl_fx.check_capture, ConvNet(), whole().captured, (X[:, :2],))
    assert message.startswith("ConvNet: RuntimeError: ") and "give inputs of the shape" in message
