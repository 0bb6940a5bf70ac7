"""Models of transformers: by type, by a config file, and by a directory."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from repl_fx.errors import BadInput, SourceError
from repl_fx.sources import Purpose, load_source
from repl_fx.sources.hugging_face import own_code
from tests.sources.hub import Hub
from tests.sources.model_file import run
from tests.sources.packages import needs
from tests.sources.saved_model import write

pytestmark = [*needs("transformers"), pytest.mark.usefixtures("_another_seed")]


def test_files_that_are_links_are_followed_where_they_lie(bert: Path, tmp_path: Path) -> None:
    # A cache of the hub keeps contents by their hash elsewhere.
    (tmp_path / "blobs").mkdir()
    for number, file in enumerate(sorted(bert.iterdir())):
        file.rename(tmp_path / "blobs" / str(number))
        file.symlink_to(tmp_path / "blobs" / str(number))
    source = load_source(f"hf:{bert}:BertForMaskedLM")
    assert source.notes == () and list(source.files) == [bert / "config.json"]
    assert load_source(source.absolute).notes == ()


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


def test_transformers_config_is_small_eager_and_without_cache() -> None:
    config: Any = load_source("hf:qwen2").model.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (4, 64, 4)
    assert (config.intermediate_size, config.vocab_size, config.use_cache) == (128, 256, False)
    assert config._attn_implementation == "eager"


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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("brt", r"transformers has no model type 'brt'; did you mean bert"),
        ("bert:BertForNothing", r"transformers has no model class 'BertForNothing'; did you mean BertFor"),
        ("bert:BertConfig", r"transformers has no model class 'BertConfig'"),
        ("gpt2:BertModel", "BertModel takes a BertConfig, not a GPT2Config"),
        ("./some/model", "no file .*/some/model; nothing is downloaded"),
        ("lxmert:LxmertForNothing", "no model class 'LxmertForNothing'"),
    ],
)
def test_transformers_errors(name: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        load_source(f"hf:{name}")


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not JSON"), ("[]", "has no model_type"), ('{"model_type": "brt"}', "no model type 'brt'; did you mean")],
)
def test_transformers_config_files_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(SourceError, match=message):
        load_source(f"hf:{tmp_path}")


def test_numbers_that_json_has_none_for_are_read_as_transformers_writes_them(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 1}
    made: Any = load_source("hf:mamba2", options=sizes).model.config
    made.save_pretrained(tmp_path)
    assert "__float__" in (tmp_path / "config.json").read_text()
    read: Any = load_source(f"hf:{tmp_path}").model.config
    assert tuple(read.time_step_limit) == tuple(made.time_step_limit)


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


def test_the_class_is_the_one_that_a_config_names(bert: Path) -> None:
    source = load_source(f"hf:{bert}")
    assert type(source.model).__name__ == "BertForMaskedLM" and source.absolute == f"hf:{bert}:BertForMaskedLM"
    assert source.notes == (
        "the class is BertForMaskedLM; another one is named behind the path, such as hf:DIR:AutoModel",
    )
    assert type(load_source(f"hf:{bert}:AutoModel").model).__name__ == "BertModel"
    # One that transformers does not have.
    write(bert, architectures=["BertForNothing"])
    assert type(load_source(f"hf:{bert}").model).__name__ == "BertModel"


@pytest.mark.parametrize(
    ("spec", "purpose", "kind", "shape", "options"),
    [
        ("gpt2", Purpose("language-modelling", 300, (200,)), "GPT2LMHeadModel", (2, 16, 300), {"n_positions": 200}),
        ("vit", Purpose("classification", 7, (1, 32, 32)), "ViTForImageClassification", (2, 7), {"image_size": 32}),
        ("bert", Purpose("classification", 4, (20,)), "BertForSequenceClassification", (2, 4), {}),
        ("llama", Purpose("language-modelling"), "LlamaForCausalLM", (2, 16, 256), {}),
    ],
)
def test_a_type_gets_the_head_and_the_sizes_that_the_data_want(
    spec: str, purpose: Purpose, kind: str, shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    source = load_source(f"hf:{spec}", purpose=purpose)
    assert type(source.model).__name__ == kind and source.absolute == f"hf:{spec}:{kind}"
    assert run(source).logits.shape == shape and options.items() <= source.options["options"].items()
    assert source.notes[0] == f"the class is {kind}, for {purpose.task}"
    assert ("attention_mask" in source.kwargs) == (spec != "vit")
    # The same again, without the data.
    again = load_source(source.absolute, **json.loads(json.dumps(source.options)))
    assert run(again).logits.shape == shape and again.kwargs.keys() == source.kwargs.keys()


def test_a_bare_directory_gets_the_head_and_keeps_its_sizes(tmp_path: Path, transformers: Any) -> None:
    bare = transformers.GPT2Model(
        transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=32)
    )
    bare.save_pretrained(tmp_path / "bare")
    source = load_source(f"hf:{tmp_path / 'bare'}", purpose=Purpose("language-modelling"))
    assert type(source.model).__name__ == "GPT2LMHeadModel" and run(source).logits.shape == (2, 16, 40)
    assert torch.equal(source.model.get_parameter("transformer.wte.weight"), bare.wte.weight)
    with pytest.raises(SourceError, match="transformers has no gpt2 for segmentation"):
        load_source(f"hf:{tmp_path / 'bare'}", purpose=Purpose("segmentation"))


def test_a_type_with_two_bare_classes_gets_the_head() -> None:
    source = load_source("hf:funnel", purpose=Purpose("classification", shape=(16,), classes=3))
    assert type(source.model).__name__ == "FunnelForSequenceClassification" and run(source).logits.shape == (2, 3)


def test_models_come_from_the_cache_of_the_hub(bert: Path, hub: Hub) -> None:
    for commit, scale in (("a" * 40, 1.0), ("b" * 40, 2.0)):
        place = hub.add("some/bert", commit)
        shutil.copytree(bert, place, dirs_exist_ok=True)
        tensors = {name: scale * tensor for name, tensor in load_file(bert / "model.safetensors").items()}
        save_file(tensors, place / "model.safetensors", {"format": "pt"})
    main, first = load_source("hf:some/bert"), load_source(f"hf:some/bert@{'a' * 40}:BertForMaskedLM")
    assert main.absolute == f"hf:some/bert@{'b' * 40}:BertForMaskedLM" and first.notes == ()
    name = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(main.model.get_parameter(name), 2 * first.model.get_parameter(name))
    assert torch.equal(load_source(main.absolute).model.get_parameter(name), main.model.get_parameter(name))
    assert own_code(f"some/bert@{'a' * 40}") == {}
    with pytest.raises(
        SourceError, match=r"the files of some/gpt are not in the cache .*fetch https://huggingface.co/some/gpt"
    ):
        load_source("hf:some/gpt")
