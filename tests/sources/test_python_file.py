"""Python files as specifications: what they build, and what each mistake is told."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import pytest
import torch

from repl_fx.errors import BadInput, SourceError
from repl_fx.sources import load_source
from tests.sources.model_file import MODEL, Write, run


def test_file_with_the_default_factory(write: Write) -> None:
    path = write(MODEL)
    source = load_source(str(path))
    assert run(source).shape == (2, 8)
    assert source.spec == str(path)
    assert list(source.files) == [path.resolve()]
    assert str(source) == f"{path}: Linear, 40 parameters"


def test_file_with_a_named_factory_and_options(write: Write) -> None:
    path = write(MODEL.replace("def model", "def build"))
    source = load_source(f"{path}:build", options={"width": 3}, seed=5)
    assert run(source).shape == (2, 3)
    assert source.options == {"input_shape": None, "seed": 5, "options": {"width": 3}}


def test_inputs_do_not_depend_on_the_weights(write: Write) -> None:
    path = str(write(MODEL))
    narrow, wide = (load_source(path, options={"width": width}) for width in (2, 20))
    assert torch.equal(narrow.args[0], wide.args[0])


def test_input_shape_replaces_example_inputs(write: Write) -> None:
    path = write(
        """
        import torch
        class Net(torch.nn.Module):
            def forward(self, x, *, ids, mask):
                return x[ids] * mask
        def model():
            return Net()
        """
    )
    source = load_source(str(path), input_shape="2x4,ids:3:int64,mask:3x4:bool")
    assert [a.dtype for a in source.args] == [torch.float32]
    assert {name: t.dtype for name, t in source.kwargs.items()} == {"ids": torch.int64, "mask": torch.bool}
    assert run(source).shape == (3, 4)


@pytest.mark.parametrize(
    ("returned", "args", "kwargs"),
    [("torch.ones(2, 4)", 1, 0), ("[torch.ones(2, 4)]", 1, 0), ("{'input': torch.ones(2, 4)}", 0, 1)],
)
def test_example_inputs_may_be_a_tensor_a_list_or_a_dict(write: Write, returned: str, args: int, kwargs: int) -> None:
    source = load_source(str(write(MODEL.replace("(torch.randn(2, 4),)", returned))))
    assert (len(source.args), len(source.kwargs)) == (args, kwargs)
    assert run(source).shape == (2, 8)


def test_files_beside_it_can_be_imported_and_do_not_leak_into_the_next(write: Write) -> None:
    code = MODEL.replace("import torch\n", "import torch\nimport h_layers\n", 1).replace(
        "width=8", "width=h_layers.WIDTH"
    )
    first = write(code, "a/model.py")
    second = write(code, "b/model.py")
    beside = write("WIDTH = 3\n", "a/h_layers.py")
    write("WIDTH = 5\n", "b/h_layers.py")
    path = list(sys.path)
    source = load_source(str(first))
    assert run(source).shape == (2, 3)
    assert list(source.files) == [first.resolve(), beside.resolve()]
    assert run(load_source(str(second))).shape == (2, 5)
    assert sys.path == path


def test_a_file_may_leave_the_working_directory(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths of the caller's, such as that of an artifact to write, stay what they were."""
    monkeypatch.chdir(tmp_path.parent)
    for code in (
        f"import os\nos.chdir('/')\n{MODEL}",
        MODEL.replace("return nn", "import os; os.chdir('/'); return nn"),
    ):
        assert "chdir" in code and run(load_source(str(write(code)))).shape == (2, 8)
        assert Path.cwd() == tmp_path.parent


def test_a_file_of_a_package_imports_relative_to_itself(write: Write) -> None:
    line = "from . import h_sizes\nfrom ..h_layers import WIDTH\n"
    code = MODEL.replace("import torch\n", f"import torch\n{line}", 1).replace("width=8", "width=WIDTH + h_sizes.MORE")
    first, second = (write(code, f"{place}/h_package/inner/model.py") for place in "ab")
    others = [write("", f"{place}/h_package/{name}__init__.py") for place in "ab" for name in ("", "inner/")]
    for place, width in (("a", 3), ("b", 5)):
        others.append(write(f"WIDTH = {width}\n", f"{place}/h_package/h_layers.py"))
        others.append(write("MORE = 1\n", f"{place}/h_package/inner/h_sizes.py"))
    path = list(sys.path)
    for file, shape in ((first, (2, 4)), (second, (2, 6))):
        source = load_source(str(file))
        assert run(source).shape == shape
        package = file.parents[1]
        assert {*source.files} == {file, *(other for other in others if other.is_relative_to(package))}
    assert sys.path == path


def test_a_changed_file_is_read_anew(write: Write) -> None:
    path = write(MODEL)
    assert run(load_source(str(path))).shape == (2, 8)
    write(MODEL.replace("width=8", "width=9"))
    assert run(load_source(str(path))).shape == (2, 9)


def test_dataclasses_and_late_annotations_work_in_the_file(write: Write) -> None:
    path = write(
        """
        from __future__ import annotations
        from dataclasses import dataclass
        import torch
        @dataclass
        class Config:
            width: int = 6
        def model() -> torch.nn.Module:
            return torch.nn.Linear(4, Config().width)
        """
    )
    assert run(load_source(str(path), input_shape="2x4")).shape == (2, 6)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=re.escape(f"no file {tmp_path / 'nothing.py'}; give a path")):
        load_source(str(tmp_path / "nothing.py"))


def test_directory(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"what repl-fx writes is rewritten already; give the model\.py"):
        load_source(str(tmp_path))


def test_not_a_python_file(write: Write) -> None:
    with pytest.raises(SourceError, match=r"model\.txt is not a \.py file"):
        load_source(str(write("", "model.txt")))


def test_no_factory_lists_the_callables_of_the_file(write: Write) -> None:
    path = write("from math import sin\ndef build(): ...\nclass Net: ...\ndef _hidden(): ...\n")
    message = r"has no factory 'model'; callables there are build, Net; define model\(\) or write model\.py:FACTORY"
    with pytest.raises(SourceError, match=message):
        load_source(str(path))


def test_no_callables_at_all(write: Write) -> None:
    with pytest.raises(SourceError, match="has no factory 'model'; there are no callables in it"):
        load_source(str(write("x = 1\n")))


def test_a_model_in_place_of_a_factory(write: Write) -> None:
    with pytest.raises(SourceError, match="'model' is a model, not a factory"):
        load_source(str(write("import torch\nmodel = torch.nn.Linear(4, 8)\n")))


def test_a_number_in_place_of_a_factory(write: Write) -> None:
    with pytest.raises(SourceError, match="has an int, not a factory, called 'model'"):
        load_source(str(write("model = 3\n")))


def test_a_colon_without_a_factory(write: Write) -> None:
    with pytest.raises(SourceError, match="names no factory after the colon"):
        load_source(f"{write(MODEL)}:")


def test_a_factory_that_raises_says_where(write: Write) -> None:
    path = write("def model():\n    return helper()\ndef helper():\n    raise ValueError('no\\nluck')\n")
    with pytest.raises(
        SourceError, match=rf"model\.py:model raised ValueError: no luck \({re.escape(str(path))}, line 4\)"
    ):
        load_source(str(path))


def test_the_line_is_of_the_file_when_a_library_raises(write: Write) -> None:
    path = write("import torch\ndef model():\n    return torch.zeros(2, 3) @ torch.zeros(2, 3)\n")
    with pytest.raises(SourceError, match=rf"raised RuntimeError: .*\({re.escape(str(path))}, line 3\)"):
        load_source(str(path))


def test_example_inputs_that_raise_say_where(write: Write) -> None:
    path = write(MODEL.replace("(torch.randn(2, 4),)", "1 / 0"))
    with pytest.raises(SourceError, match=r"model\.py:example_inputs raised ZeroDivisionError: .*line 9"):
        load_source(str(path))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def model(:\n", r"could not be executed: SyntaxError: .*line 1\)"),
        ("import no_such_package\n", r"ModuleNotFoundError: No module named 'no_such_package' .*line 1\)"),
        ("\nraise SystemExit(3)\n", r"SystemExit: 3 .*line 2\)"),
    ],
)
def test_a_file_that_fails_leaves_no_module_behind(write: Write, code: str, message: str) -> None:
    before = set(sys.modules)
    with pytest.raises(SourceError, match=message):
        load_source(str(write(code)))
    assert not {name for name in set(sys.modules) - before if name.startswith("repl_fx_source_")}


@pytest.mark.parametrize("raised", ["SystemExit(0)", "KeyboardInterrupt", "GeneratorExit", "Odd('bad')"])
@pytest.mark.parametrize("where", ["import", "model", "example_inputs"])
def test_an_exception_of_any_kind_is_an_error_of_the_file(write: Write, raised: str, where: str) -> None:
    stop = f"    raise {raised}\n"
    code = "class Odd(BaseException):\n    pass\n" + MODEL
    if where == "import":
        code += f"if True:\n{stop}"
    else:
        head = next(line for line in code.splitlines() if line.startswith(f"def {where}("))
        code = code.replace(f"{head}\n", f"{head}\n{stop}")
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SourceError, match=rf"{raised.split('(')[0]}.*, line \d+\)") as problem:
        load_source(str(write(code)))
    assert "\n" not in str(problem.value)
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_factory_that_returns_a_class(write: Write) -> None:
    with pytest.raises(SourceError, match=r"returned the class Linear, not a model of it; return Linear\(…\)"):
        load_source(str(write("from torch import nn\ndef model():\n    return nn.Linear\n")))


def test_a_factory_that_returns_something_else(write: Write) -> None:
    with pytest.raises(SourceError, match=r"returned a dict, not a torch\.nn\.Module"):
        load_source(str(write("def model():\n    return {}\n")))


def test_a_factory_that_needs_arguments(write: Write) -> None:
    path = str(write(MODEL.replace("width=8", "width, depth")))
    with pytest.raises(SourceError, match="needs the arguments width, depth; give them defaults"):
        load_source(path)
    with pytest.raises(SourceError, match="needs the arguments depth;"):
        load_source(path, options={"width": 3})


def test_an_option_that_the_factory_does_not_take(write: Write) -> None:
    with pytest.raises(BadInput, match=r"takes no argument 'widht'; did you mean width\?"):
        load_source(str(write(MODEL)), options={"widht": 3})


def test_no_example_inputs_tells_both_ways(write: Write) -> None:
    path = write(MODEL.replace("example_inputs", "other"))
    with pytest.raises(SourceError, match=r"has no example_inputs\(\); define one .* or give --input-shape"):
        load_source(str(path))


@pytest.mark.parametrize(
    ("returned", "message"), [("3", "returned an int; return a tuple"), ("()", "returned nothing")]
)
def test_example_inputs_of_a_wrong_kind(write: Write, returned: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        load_source(str(write(MODEL.replace("(torch.randn(2, 4),)", returned))))
