"""Weights in directories of transformers, and what is said about them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from repl_fx.errors import BadInput, SourceError
from repl_fx.sources import load_source
from tests.sources.packages import needs
from tests.sources.saved_model import BERT, SIZES, same, write

pytestmark = [*needs("transformers"), pytest.mark.usefixtures("_another_seed")]


def test_the_weights_of_a_directory_are_loaded(bert: Path) -> None:
    source = load_source(f"hf:{bert}:BertForMaskedLM")
    state = source.model.state_dict()
    written = load_file(bert / "model.safetensors")
    assert written and all(torch.equal(state[name], tensor) for name, tensor in written.items())
    # What is not in the file is there under another name.
    assert source.model.get_parameter("cls.predictions.decoder.weight") is source.model.get_parameter(
        "bert.embeddings.word_embeddings.weight"
    )
    assert source.notes == ()
    assert list(source.files) == [bert / "config.json"]
    assert source.absolute == f"hf:{bert}:BertForMaskedLM"


def test_a_loaded_model_computes_what_transformers_computes(transformers: Any, bert: Path) -> None:
    source = load_source(f"hf:{bert}:BertForMaskedLM")
    theirs = transformers.BertForMaskedLM.from_pretrained(bert, attn_implementation="eager")
    config: Any = source.model.config
    assert config._attn_implementation == "eager" and config.use_cache is False
    with torch.no_grad():
        assert torch.equal(source.model.eval()(**source.kwargs).logits, theirs(**source.kwargs).logits)


def test_weights_that_are_given_take_the_place_of_those_of_the_directory(transformers: Any, bert: Path) -> None:
    # One tensor is there under one name alone, as the head is tied to the embedding.
    state = load_file(bert / "model.safetensors")
    (bert / "model.safetensors").rename(bert / "trained.safetensors")
    save_file({name: torch.zeros_like(tensor) for name, tensor in state.items()}, bert / "model.safetensors")
    for spec in (f"hf:{bert}:BertForMaskedLM", f"hf:{bert / 'config.json'}:BertForMaskedLM"):
        source = load_source(spec, weights=bert / "trained.safetensors")
        found = source.model.state_dict()
        assert found.keys() > state.keys() and all(torch.equal(found[name], state[name]) for name in state)
        # No word of random ones.
        assert source.notes == (f"weights are those of {bert / 'trained.safetensors'}, {len(state)} tensors",)


def test_shards_are_loaded(transformers: Any, bert: Path, tmp_path: Path) -> None:
    model = transformers.BertForMaskedLM.from_pretrained(bert)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="4KB")
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 2
    assert same(load_source(f"hf:{tmp_path / 'sharded'}:BertForMaskedLM").model.state_dict(), model.state_dict())


@pytest.mark.parametrize("kind", ["T5Model", "MixtralForCausalLM"])
def test_names_dtypes_and_experts_are_as_transformers_makes_them(transformers: Any, tmp_path: Path, kind: str) -> None:
    # T5 keeps layers in float32 in a model of halves; Mixtral's experts are one tensor each in files.
    t5 = {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 2, "num_heads": 2, "vocab_size": 40}
    mixtral = {**SIZES, "num_key_value_heads": 2, "num_local_experts": 2, "vocab_size": 40}
    config = transformers.T5Config(**t5) if kind == "T5Model" else transformers.MixtralConfig(**mixtral)
    model_class = getattr(transformers, kind)
    model_class(config).to(torch.float16).save_pretrained(tmp_path)
    source = load_source(f"hf:{tmp_path}:{kind}")
    theirs = model_class.from_pretrained(tmp_path)
    assert same(source.model.state_dict(), theirs.state_dict())
    assert len({t.dtype for t in theirs.state_dict().values()}) == (2 if kind == "T5Model" else 1)
    assert same(dict(source.model.named_buffers()), dict(theirs.named_buffers()))


@pytest.mark.parametrize("kind", ["BertModel", "T5Model"])
def test_without_weights_all_else_is_the_same(transformers: Any, tmp_path: Path, kind: str) -> None:
    small = {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 2, "num_heads": 2, "vocab_size": 40}
    config = transformers.BertConfig(**BERT) if kind == "BertModel" else transformers.T5Config(**small)
    getattr(transformers, kind)(config).to(torch.float16).save_pretrained(tmp_path)
    full = load_source(f"hf:{tmp_path}")
    # Not read, so it may be damaged.
    (tmp_path / "model.safetensors").write_bytes(b"")
    bare = load_source(f"hf:{tmp_path}", weights=False)

    def kinds(model: nn.Module) -> dict[str, tuple[Any, ...]]:
        return {
            name: (tensor.dtype, tensor.shape, tensor.requires_grad)
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
        }

    assert kinds(full.model) == kinds(bare.model)
    assert [m.training for m in full.model.modules()] == [m.training for m in bare.model.modules()]
    assert all(torch.equal(full.kwargs[name], tensor) for name, tensor in bare.kwargs.items())
    assert (full.files, full.options, full.absolute) == (bare.files, bare.options, bare.absolute)
    assert bare.notes == ()
    assert not same(full.model.state_dict(), bare.model.state_dict())


def test_a_config_without_a_dtype_takes_that_of_the_weights(transformers: Any, bert: Path) -> None:
    transformers.BertForMaskedLM.from_pretrained(bert).to(torch.bfloat16).save_pretrained(bert)
    write(bert, dtype=None)
    source = load_source(f"hf:{bert}:BertForMaskedLM")
    assert {p.dtype for p in source.model.parameters()} == {torch.bfloat16}
    assert source.options["options"] == {"dtype": "bfloat16"}
    bare = load_source(source.spec, **source.options, weights=False)
    assert {p.dtype for p in bare.model.parameters()} == {torch.bfloat16}


def test_another_dtype_than_that_of_the_files_is_told(bert: Path) -> None:
    source = load_source(f"hf:{bert}:BertForMaskedLM", options={"dtype": "bfloat16"})
    assert {p.dtype for p in source.model.parameters()} == {torch.bfloat16}
    assert source.notes == (f"weights are float32 in {bert} and bfloat16 here, as the config says",)


def test_missing_and_unexpected_weights_are_notes(bert: Path) -> None:
    notes = load_source(f"hf:{bert}:AutoModel").notes
    assert notes == (
        f"2 weights are not in {bert}, so random: pooler.dense.bias, pooler.dense.weight",
        f"5 weights are in {bert} (it was saved from BertForMaskedLM) but not in BertModel: cls.predictions.bias, "
        "cls.predictions.transform.LayerNorm.bias, cls.predictions.transform.LayerNorm.weight and 2 more",
    )
    first, second = (
        load_source(f"hf:{bert}:AutoModel", seed=1).model.get_parameter("pooler.dense.weight") for _ in range(2)
    )
    assert torch.equal(first, second)


def test_options_go_with_weights(bert: Path) -> None:
    source = load_source(f"hf:{bert}:BertForMaskedLM", options={"num_hidden_layers": 1})
    assert not [name for name, _ in source.model.named_parameters() if ".layer.1." in name]
    assert len(source.notes) == 1 and source.notes[0].startswith("16 weights are in ")
    labelled = load_source(f"hf:{bert}:BertForSequenceClassification", options={"num_labels": 5})
    assert labelled.model.get_parameter("classifier.weight").shape == (5, 16)
    with pytest.raises(BadInput, match="has no option 'num_hiden_layers'; did you mean num_hidden_layers"):
        load_source(f"hf:{bert}", options={"num_hiden_layers": 1})


def test_weights_of_other_shapes_are_refused(bert: Path) -> None:
    shapes = r"embeddings\.word_embeddings\.weight is 40x16 there and 41x16 here; .* and 4 more"
    with pytest.raises(SourceError, match=f"do not fit BertModel: {shapes}; take the"):
        load_source(f"hf:{bert}:AutoModel", options={"intermediate_size": 48, "vocab_size": 41})


def test_weights_of_another_model_are_refused(bert: Path) -> None:
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, bert / "model.safetensors")
    with pytest.raises(SourceError, match=r"none of the weights of .* is in BertModel: they are a, b; its own are"):
        load_source(f"hf:{bert}:AutoModel")


def test_weights_that_should_be_tied_and_differ_are_refused(bert: Path) -> None:
    state = load_file(bert / "model.safetensors")
    word = state["bert.embeddings.word_embeddings.weight"]
    save_file({**state, "cls.predictions.decoder.weight": word + 1}, bert / "model.safetensors")
    with pytest.raises(SourceError, match=r"are one tensor by config\.json and differ in .*; set tie_word_emb"):
        load_source(f"hf:{bert}:BertForMaskedLM")
    write(bert, tie_word_embeddings=False)
    model = load_source(f"hf:{bert}:BertForMaskedLM").model
    assert torch.equal(model.get_parameter("cls.predictions.decoder.weight"), word + 1)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.int8])
def test_quantised_weights_are_refused(bert: Path, kind: torch.dtype) -> None:
    state = load_file(bert / "model.safetensors")
    name = "bert.encoder.layer.0.output.dense.weight"
    save_file({**state, name: state[name].to(kind)}, bert / "model.safetensors")
    with pytest.raises(
        SourceError, match=rf"are quantised \({name} is {str(kind).removeprefix('torch.')}\); dequantise"
    ):
        load_source(f"hf:{bert}")


@pytest.mark.parametrize(
    ("config", "file", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, None, r"are quantised \(quantization_config\)"),
        ({}, "adapter_config.json", r"holds an adapter too \(adapter_config.json\), which is not applied"),
        ({"transformers_weights": "adapter_model.bin"}, "adapter_model.bin", "weights in 'adapter_model.bin' are not"),
        ({"transformers_weights": "../model.safetensors"}, None, "they have to be safetensors in"),
        ({"transformers_weights": "gone.safetensors"}, None, "gone.safetensors cannot be read: FileNotFoundError"),
        ({"configuration_files": ["config.4.0.0.json"]}, None, r"names other configs \(configuration_files\)"),
    ],
)
def test_directories_that_are_not_simply_a_model(
    bert: Path, config: dict[str, Any], file: str | None, message: str
) -> None:
    write(bert, **config)
    if file is not None:
        (bert / file).write_text("{}")
    with pytest.raises(SourceError, match=message) as error:
        load_source(f"hf:{bert}")
    assert "\n" not in str(error.value)


def test_a_file_of_weights_that_the_config_names(bert: Path) -> None:
    (bert / "model.safetensors").rename(bert / "other.safetensors")
    write(bert, transformers_weights="other.safetensors")
    assert load_source(f"hf:{bert}:BertForMaskedLM").notes == ()


@pytest.mark.parametrize("keep", [0, 4, 100, -8])
def test_damaged_weights_are_refused(bert: Path, keep: int) -> None:
    file = bert / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(SourceError, match=r"model.safetensors cannot be read: .*; copy the directory again") as error:
        load_source(f"hf:{bert}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "cannot be read: JSONDecodeError"),
        ("[]", "cannot be read: TypeError"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "gone.safetensors cannot be read: FileNotFoundError"),
        ('{"weight_map": {"a": "../bert/b.safetensors"}}', "they have to be safetensors in"),
        ('{"weight_map": {"a": "one.bin"}}', "weights in 'one.bin' are not read"),
        ('{"weight_map": {"a": "shard.safetensors"}}', "names weights that its files do not hold: a"),
    ],
)
def test_an_index_that_leads_nowhere_is_refused(bert: Path, index: str, message: str) -> None:
    (bert / "model.safetensors").rename(bert / "shard.safetensors")
    (bert / "model.safetensors.index.json").write_text(index)
    with pytest.raises(SourceError, match=message):
        load_source(f"hf:{bert}")


class _Marks:
    """Leaves a file where it is unpickled."""

    def __init__(self, at: Path) -> None:
        self.at = at

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.at,)


def test_nothing_is_unpickled_and_random_weights_are_told(bert: Path, tmp_path: Path) -> None:
    (bert / "pytorch_model.bin").write_bytes(pickle.dumps(_Marks(tmp_path / "ran")))
    (bert / ".metadata").write_bytes(pickle.dumps(_Marks(tmp_path / "ran")))
    (bert / "__0_0.distcp").write_bytes(b"")
    assert load_source(f"hf:{bert}:BertForMaskedLM").notes == ()
    (bert / "model.safetensors").unlink()
    assert load_source(f"hf:{bert}:AutoModel").notes == (
        f"weights are random: {bert} has no model.safetensors; pytorch_model.bin is not read, as it would be unpickled",
    )
    assert not (tmp_path / "ran").exists()
    (bert / "model.fp16.safetensors").write_bytes(b"")
    assert (
        load_source(f"hf:{bert}:AutoModel").notes[0].endswith("model.fp16.safetensors, pytorch_model.bin are not read")
    )


def test_a_config_alone_has_random_weights_and_says_so(bert: Path) -> None:
    file = bert / "config.json"
    source = load_source(f"hf:{file}:AutoModel")
    assert source.notes == (f"weights are random: {file} is a config alone; hf:{bert} has weights too",)
    assert source.absolute == f"hf:{file}:AutoModel"
    assert load_source("hf:bert").notes == ()
    (bert / "model.safetensors").unlink()
    assert load_source(f"hf:{file}:AutoModel").notes == (f"weights are random: {file} is a config alone",)
    assert load_source(f"hf:{bert}:AutoModel").notes == (f"weights are random: {bert} has no model.safetensors",)
