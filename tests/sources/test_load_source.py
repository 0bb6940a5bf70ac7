"""Model specifications: what each kind builds, and what each mistake is told."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from repl_fx.errors import BadInput, SourceError
from repl_fx.sources import Source, load_source
from repl_fx.sources.input_shapes import InputShape, parse_input_shape, random_tensor

Write = Callable[..., Path]
Test = TypeVar("Test", bound=Callable[..., None])

MODEL = """
import torch
from torch import nn

def model(width=8):
    return nn.Linear(4, width)

def example_inputs():
    return (torch.randn(2, 4),)
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A function that writes a Python file and returns its path."""

    def write_file(code: str, name: str = "model.py") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(code), encoding="utf-8")
        return path

    return write_file


def needs(package: str) -> Callable[[Test], Test]:
    missing = importlib.util.find_spec(package) is None
    skip = pytest.mark.skipif(missing, reason=f"{package} is not installed")

    def mark(function: Test) -> Test:
        marked: Test = pytest.mark.zoo(skip(function))
        return marked

    return mark


def run(source: Source) -> Any:
    with torch.no_grad():
        return source.model.eval()(*source.args, **source.kwargs)


# The grammar of input shapes


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("2x3x32x32", (InputShape((2, 3, 32, 32)),)),
        ("4", (InputShape((4,)),)),
        ("2x16:int64", (InputShape((2, 16), None, torch.int64),)),
        ("ids:2x16", (InputShape((2, 16), "ids"),)),
        (
            "2x4, ids:2x16:int64,mask:1x16:bool",
            (
                InputShape((2, 4)),
                InputShape((2, 16), "ids", torch.int64),
                InputShape((1, 16), "mask", torch.bool),
            ),
        ),
    ],
)
def test_input_shapes(text: str, shapes: tuple[InputShape, ...]) -> None:
    assert parse_input_shape(text) == shapes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no sizes|starts with neither"),
        ("2x", "starts with neither sizes nor the name"),
        ("-2x3", "starts with neither sizes nor the name"),
        ("2x3,,2x3", "starts with neither sizes nor the name"),
        ("ids", "'ids' has no sizes; write it like 2x3x224x224"),
        ("ids:int64", "'ids:int64' has no sizes"),
        ("ids:2x3:int64:x", "has no sizes"),
        ("2x0", "has a size of 0"),
        ("0x8", "has a size of 0"),
        (f"2x{10**19}", "has a size that no tensor can have"),
        ("1x3x8x8", "has a batch of 1"),
        ("2x3:int46", "no type 'int46'; known are float16"),
        ("a:2x3,a:2x3", "gives 'a' twice"),
        ("a:2x3,2x3", "an input without a name after one with"),
    ],
)
def test_bad_input_shapes(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        parse_input_shape(text)


def test_random_tensors_stay_in_range() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = random_tensor((50, 50), torch.int64, generator, low=3, high=7)
    assert set(ids.flatten().tolist()) == {3, 4, 5, 6}
    assert set(random_tensor((50,), torch.bool, generator).tolist()) == {False, True}
    assert set(random_tensor((50,), torch.int32, generator).tolist()) == {0, 1}
    assert random_tensor((2, 3), torch.bfloat16, generator).dtype == torch.bfloat16


# Python files


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


def test_the_source_can_be_built_again_from_its_options(write: Write) -> None:
    source = load_source(str(write(MODEL)), input_shape="3x4", options={"width": 5}, seed=7)
    again = load_source(source.spec, **json.loads(json.dumps(source.options)))
    assert torch.equal(source.args[0], again.args[0])
    assert torch.equal(run(source), run(again))


def test_the_seed_decides_weights_and_inputs_and_the_global_state_stays(write: Write) -> None:
    path = str(write(MODEL))
    state = torch.get_rng_state()
    first, same, other = (load_source(path, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.args[0], same.args[0]) and torch.equal(run(first), run(same))
    assert not torch.equal(first.args[0], other.args[0])
    assert not torch.equal(first.model.get_parameter("weight"), other.model.get_parameter("weight"))


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


def test_nested_inputs_follow_the_device(write: Write) -> None:
    path = write(MODEL.replace("(torch.randn(2, 4),)", "({'a': [torch.ones(2, 4), 3]},)"))
    source = load_source(str(path), device="meta")
    assert source.args[0]["a"][0].device.type == "meta"
    assert source.args[0]["a"][1] == 3
    assert source.model.get_parameter("weight").device.type == "meta"


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


def test_empty_specification() -> None:
    with pytest.raises(SourceError, match="the model specification is empty"):
        load_source("")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=re.escape(f"no file {tmp_path / 'nothing.py'}; give a path")):
        load_source(str(tmp_path / "nothing.py"))


def test_directory(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is a directory with no model in it"):
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


@pytest.fixture
def _interrupts() -> Iterator[None]:
    """Python's own handler of Ctrl-C, which a process that a shell started in the background has not."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("_interrupts")
@pytest.mark.parametrize("where", ["import", "model"])
def test_ctrl_c_still_interrupts(write: Write, where: str) -> None:
    press = "import signal\nsignal.raise_signal(signal.SIGINT)\n"
    body = textwrap.indent(press, "    ")
    code = (
        press + MODEL if where == "import" else MODEL.replace("def model(width=8):\n", f"def model(width=8):\n{body}")
    )
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        load_source(str(write(code)))
    assert signal.getsignal(signal.SIGINT) is handler
    # A KeyboardInterrupt that the file raises later is not taken for it.
    with pytest.raises(SourceError, match="KeyboardInterrupt"):
        load_source(str(write("raise KeyboardInterrupt\n")))


def test_a_file_may_be_loaded_in_another_thread(write: Write) -> None:
    good, bad = str(write(MODEL)), str(write("raise KeyboardInterrupt\n", "bad.py"))
    with ThreadPoolExecutor(1) as pool:
        assert run(pool.submit(load_source, good).result()).shape == (2, 8)
        assert isinstance(pool.submit(load_source, bad).exception(), SourceError)


def test_a_handler_of_the_file_stays(write: Write) -> None:
    handler = signal.getsignal(signal.SIGINT)
    try:
        load_source(str(write(f"import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n{MODEL}")))
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, handler)


def test_meta_parameters(write: Write) -> None:
    path = str(write(MODEL.replace("nn.Linear(4, width)", "nn.Linear(4, width, device='meta')")))
    with pytest.raises(SourceError, match=r"tensors on the meta device, without values: weight and 1 more; give them"):
        load_source(path)
    assert load_source(path, device="meta").model.get_parameter("weight").is_meta


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


def test_options_have_to_be_json(write: Write) -> None:
    with pytest.raises(BadInput, match="serialisable as JSON"):
        load_source(str(write(MODEL)), options={"width": torch.float32})


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


@pytest.mark.parametrize("device", ["nowhere", "cuda:99"])
def test_a_device_that_is_not_there(write: Write, device: str) -> None:
    with pytest.raises(BadInput, match=f"device '{device}' cannot be used here .*'cpu' always can"):
        load_source(str(write(MODEL)), device=device)


@pytest.mark.gpu
def test_a_device_gets_the_same_weights_and_keeps_its_random_state(write: Write) -> None:
    path = str(write(MODEL))
    state = torch.cuda.get_rng_state()
    there, here = load_source(path, device="cuda"), load_source(path)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert there.args[0].is_cuda and torch.equal(there.args[0].cpu(), here.args[0])
    assert torch.equal(there.model.get_parameter("weight").cpu(), here.model.get_parameter("weight"))


# Zoos


@pytest.mark.parametrize("zoo", ["timm", "torchvision", "hf"])
def test_a_zoo_without_a_name(zoo: str) -> None:
    with pytest.raises(SourceError, match=f"names no model; write {zoo}:NAME"):
        load_source(f"{zoo}:")


def test_an_unknown_zoo() -> None:
    with pytest.raises(
        SourceError, match=r"no kind of model 'tim'; did you mean timm\?; known are timm:, torchvision:, hf:"
    ):
        load_source("tim:resnet18")


@pytest.mark.parametrize(("zoo", "package"), [("timm", "timm"), ("torchvision", "torchvision"), ("hf", "transformers")])
def test_a_zoo_that_is_not_installed(zoo: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SourceError, match=rf"needs {package}, which is not installed; pip install 'repl-fx\[zoo\]'"):
        load_source(f"{zoo}:resnet18")


@needs("timm")
def test_timm() -> None:
    source = load_source("timm:resnet18", options={"num_classes": 5}, input_shape="2x3x64x64")
    assert run(source).shape == (2, 5)
    assert source.files == {} and source.absolute == source.spec
    assert load_source("timm:test_vit").args[0].shape == (2, 3, 160, 160)


@needs("timm")
def test_timm_builds_a_model_of_fixed_size_for_the_input_shape() -> None:
    source = load_source("timm:test_vit", input_shape="2x1x64x32")
    assert source.args[0].shape == (2, 1, 64, 32)
    assert run(source).shape == (2, 1000)


@needs("timm")
@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("timm:resnt18", {}, r"timm has no model 'resnt18'; did you mean resnet18"),
        ("timm:resnet18", {"no_such": 1}, r"timm:resnet18 could not be built: TypeError: .*no_such"),
    ],
)
def test_timm_errors(spec: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        load_source(spec, options=options)


@needs("timm")
def test_a_zoo_of_positional_inputs_takes_no_names() -> None:
    with pytest.raises(BadInput, match="takes its inputs by position; leave the name 'x' out"):
        load_source("timm:resnet18", input_shape="x:2x3x64x64")


@needs("torchvision")
def test_torchvision() -> None:
    source = load_source("torchvision:resnet18", options={"num_classes": 5}, input_shape="2x3x64x64")
    assert run(source).shape == (2, 5)


@needs("torchvision")
@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("squeezenet1_1", [(2, 3, 224, 224)]),
        ("googlenet", [(2, 3, 224, 224)]),
        ("inception_v3", [(2, 3, 299, 299)]),
        ("r3d_18", [(2, 3, 16, 112, 112)]),
        ("raft_small", [(2, 3, 224, 224), (2, 3, 224, 224)]),
        ("lraspp_mobilenet_v3_large", [(2, 3, 224, 224)]),
    ],
)
def test_torchvision_inputs(name: str, shapes: list[tuple[int, ...]]) -> None:
    assert [a.shape for a in load_source(f"torchvision:{name}").args] == shapes


@needs("torchvision")
def test_torchvision_detection_takes_images_and_what_is_in_them() -> None:
    images, targets = load_source("torchvision:ssdlite320_mobilenet_v3_large", input_shape="2x3x64x96").args
    assert [image.shape for image in images] == [(3, 64, 96)] * 2
    for target in targets:
        left, top, right, bottom = target["boxes"].unbind(1)
        assert bool((left >= 0).all() and (left < right).all() and (right <= 96).all())
        assert bool((top >= 0).all() and (top < bottom).all() and (bottom <= 64).all())
        assert target["masks"].shape == (2, 64, 96) and target["keypoints"].shape == (2, 17, 3)
        assert all(mask.any() for mask in target["masks"])


@needs("torchvision")
def test_torchvision_builds_a_transformer_for_the_input_shape() -> None:
    assert run(load_source("torchvision:vit_b_32", input_shape="2x3x64x64")).shape == (2, 1000)
    with pytest.raises(BadInput, match="takes square images, not 64x32"):
        load_source("torchvision:vit_b_32", input_shape="2x3x64x32")


@needs("torchvision")
def test_torchvision_unknown_name() -> None:
    with pytest.raises(SourceError, match="torchvision has no model 'resnt18'; did you mean resnet18"):
        load_source("torchvision:resnt18")


@needs("transformers")
@pytest.mark.parametrize(
    ("spec", "inputs"),
    [
        ("hf:bert", {"input_ids": (2, 16), "attention_mask": (2, 16)}),
        ("hf:llama", {"input_ids": (2, 16), "attention_mask": (2, 16)}),
        ("hf:t5", {"input_ids": (2, 16), "attention_mask": (2, 16), "decoder_input_ids": (2, 16)}),
        ("hf:vit", {"pixel_values": (2, 3, 224, 224)}),
        ("hf:whisper", {"input_features": (2, 80, 128), "decoder_input_ids": (2, 16)}),
        ("hf:clip", {"input_ids": (2, 16), "pixel_values": (2, 3, 224, 224), "attention_mask": (2, 16)}),
        ("hf:bart:BartForSequenceClassification", None),
        ("hf:gpt2:AutoModelForSequenceClassification", None),
    ],
)
def test_transformers_types_are_small_and_run(spec: str, inputs: dict[str, tuple[int, ...]] | None) -> None:
    source = load_source(spec)
    if inputs is not None:
        assert {name: tuple(t.shape) for name, t in source.kwargs.items()} == inputs
    output = run(source)
    assert output[0].isfinite().all()
    assert sum(p.numel() for p in source.model.parameters()) < 1_000_000


@needs("transformers")
def test_transformers_config_is_small_eager_and_without_cache() -> None:
    config: Any = load_source("hf:qwen2").model.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (4, 64, 4)
    assert (config.intermediate_size, config.vocab_size, config.use_cache) == (128, 256, False)
    assert config._attn_implementation == "eager"


@needs("transformers")
def test_transformers_class_options_and_shape() -> None:
    source = load_source(
        "hf:bert:BertForSequenceClassification",
        options={"num_hidden_layers": 2, "num_labels": 7},
        input_shape="input_ids:3x9,attention_mask:3x9",
    )
    assert type(source.model).__name__ == "BertForSequenceClassification"
    assert source.kwargs["input_ids"].dtype == source.kwargs["attention_mask"].dtype == torch.int64
    assert run(source).logits.shape == (3, 7)
    assert source.kwargs["input_ids"].min() > 2


@needs("transformers")
def test_transformers_shape_without_a_name_is_for_the_main_input() -> None:
    source = load_source("hf:vit", input_shape="3x3x224x224")
    assert {name: tuple(t.shape) for name, t in source.kwargs.items()} == {"pixel_values": (3, 3, 224, 224)}


@needs("transformers")
@pytest.mark.parametrize("suffix", ["", "/config.json"])
def test_transformers_config_file_is_taken_as_it_is(tmp_path: Path, suffix: str) -> None:
    values = {
        "model_type": "bert",
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "vocab_size": 40,
    }
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    source = load_source(f"hf:{tmp_path}{suffix}")
    file = (tmp_path / "config.json").resolve()
    assert source.files == {file: hashlib.sha256(file.read_bytes()).hexdigest()}
    assert source.absolute == f"hf:{file if suffix else tmp_path}"
    assert run(source).last_hidden_state.shape == (2, 16, 24)
    assert load_source(f"hf:{tmp_path}{suffix}:BertForMaskedLM").model.get_parameter("cls.predictions.bias").shape == (
        40,
    )


@needs("transformers")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("brt", r"transformers has no model type 'brt'; did you mean bert"),
        ("bert:BertForNothing", r"transformers has no model class 'BertForNothing'; did you mean BertFor"),
        ("bert:BertConfig", r"transformers has no model class 'BertConfig'"),
        ("gpt2:BertModel", "BertModel takes a BertConfig, not a GPT2Config"),
        ("some/model", "no file .*/some/model; nothing is downloaded"),
        ("lxmert:LxmertForNothing", "no model class 'LxmertForNothing'"),
    ],
)
def test_transformers_errors(name: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        load_source(f"hf:{name}")


@needs("transformers")
@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not JSON"), ("[]", "has no model_type"), ('{"model_type": "brt"}', "no model type 'brt'; did you mean")],
)
def test_transformers_config_files_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(SourceError, match=message):
        load_source(f"hf:{tmp_path}")


@needs("transformers")
def test_transformers_misspelt_option_and_input() -> None:
    with pytest.raises(BadInput, match=r"BertConfig has no option 'hiden_size'; did you mean hidden_size"):
        load_source("hf:bert", options={"hiden_size": 32})
    with pytest.raises(
        BadInput,
        match=r"takes no input 'input_id'; did you mean input_ids, .*; by default it gets input_ids, attention_mask",
    ):
        load_source("hf:bert", input_shape="input_id:2x16")
    with pytest.raises(BadInput, match="has 'input_ids' as its main input"):
        load_source("hf:bert", input_shape="2x16,2x16")
