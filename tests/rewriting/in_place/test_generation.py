"""`generate` on transformed language models, with and without a cache."""

from __future__ import annotations

import copy
import functools
import inspect
from typing import Any

import pytest
import torch
from torch import nn

import repl_fx
from tests.nets import as_after_training

transformers = pytest.importorskip("transformers")

_TOKENS = torch.randint(3, 50, (2, 7), generator=torch.Generator().manual_seed(0))
_NAMED = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": 50}


def _gpt2() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.GPT2Config(n_embd=16, n_head=2, n_layer=3, n_positions=64, **_NAMED)
    return transformers.GPT2LMHeadModel(config), {"input_ids": _TOKENS, "use_cache": True}


def _llama() -> tuple[nn.Module, dict[str, Any]]:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3}
    config = transformers.LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes, **_NAMED)
    return transformers.LlamaForCausalLM(config), {"input_ids": _TOKENS}


def _t5() -> tuple[nn.Module, dict[str, Any]]:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 3, "num_decoder_layers": 3, "num_heads": 2}
    config = transformers.T5Config(decoder_start_token_id=0, **sizes, **_NAMED)
    return transformers.T5ForConditionalGeneration(config), {"input_ids": _TOKENS, "labels": _TOKENS[:, :5].clone()}


def _gpt_neo() -> tuple[nn.Module, dict[str, Any]]:
    sizes = {"hidden_size": 16, "num_layers": 3, "num_heads": 2, "max_position_embeddings": 64}
    config = transformers.GPTNeoConfig(attention_types=[[["global"], 3]], **sizes, **_NAMED)
    return transformers.GPTNeoForCausalLM(config), {"input_ids": _TOKENS}


def _gemma(layers: int = 8) -> tuple[nn.Module, dict[str, Any]]:
    """Layers that see a window and layers that see all by turns: a block is two of them, or half of one where few."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "head_dim": 8, "sliding_window": 5}
    config = transformers.Gemma2Config(
        num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=1, **sizes, **_NAMED
    )
    return transformers.Gemma2ForCausalLM(config), {"input_ids": _TOKENS}


@functools.cache
def _in_place(make: Any) -> tuple[Any, Any, dict[str, Any]]:
    """The model in place, the rewritten graph and the inputs; surrogates as if trained."""
    torch.manual_seed(0)
    source, inputs = make()
    with torch.no_grad():
        for parameter in source.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    result = repl_fx.transform(source.eval(), (), inputs)
    # A position that is mixed by a map of another is what a cache can get wrong.
    assert {replacement.surrogate for replacement in result.plan.replacements} == {"reuse"}
    assert not result.in_place.refusals
    model: Any = result.model.eval()
    as_after_training(model)
    return model, result.graph_module.eval(), inputs


@pytest.mark.slow
@pytest.mark.parametrize("make", [_gpt2, _gpt_neo, _llama, _t5, _gemma])
@pytest.mark.filterwarnings("ignore")
def test_generation_is_the_same_with_a_cache_and_without(make: Any) -> None:
    model, graph_module, inputs = _in_place(make)
    assert torch.equal(model(**inputs)["logits"], graph_module(**inputs)["logits"])
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    for beams in (1, 3):
        ways = [model.generate(_TOKENS, use_cache=cached, num_beams=beams, **settings) for cached in (True, False)]
        assert torch.equal(*ways)


@pytest.mark.slow
@pytest.mark.parametrize("surrogate", ["auto", "linear"])
@pytest.mark.filterwarnings("ignore")
def test_a_cache_that_evaluation_alone_hands_to_a_block_is_filled_around_it(surrogate: str) -> None:
    # In training Mamba has none. Its layers go through a text position by position, which a short one has few of.
    config = transformers.MambaConfig(hidden_size=16, state_size=4, num_hidden_layers=4, **_NAMED)
    result = repl_fx.transform(transformers.MambaForCausalLM(config).eval(), (_TOKENS[:, :3],), surrogate=surrogate)
    assert not result.in_place.refusals
    model: Any = result.model.eval()
    as_after_training(model)
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    assert torch.equal(*(model.generate(_TOKENS, use_cache=cached, **settings) for cached in (True, False)))


@pytest.mark.parametrize("make", [_gpt2, _gpt_neo, _llama])
@pytest.mark.filterwarnings("ignore")
def test_gradients_are_the_same_with_a_cache_and_without(make: Any) -> None:
    model, _, inputs = _in_place(make)
    tokens = inputs["input_ids"]

    def gradients(logits: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        torch.autograd.backward(logits.square().mean())
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients(model(tokens, use_cache=False).logits)
    filled = gradients(model(tokens, use_cache=True).logits)
    assert plain.keys() == filled.keys()
    assert all(torch.equal(plain[name], filled[name]) for name in plain)
    # What later positions read from the cache has gradients as well.
    first = model(tokens[:, :4], use_cache=True)
    second = model(tokens[:, 4:], use_cache=True, past_key_values=first.past_key_values)
    split = gradients(torch.cat([first.logits, second.logits], 1))
    torch.testing.assert_close(split, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cache_with_room_for_the_removed_block_holds_thin_values_too() -> None:
    model, _, _ = _in_place(_llama)
    cache = transformers.StaticCache(config=model.config, max_cache_len=9)
    cache.early_initialization(2, 2, 4, torch.float32, "cpu")
    with torch.no_grad():
        whole = model(input_ids=_TOKENS, use_cache=False).logits
        steps = [model(input_ids=ids, past_key_values=cache).logits for ids in torch.split(_TOKENS, [4, 1, 2], 1)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole)
    # As transformers exports it.
    static = {"cache_implementation": "static", "max_length": 9, "cache_config": {"batch_size": 1, "max_cache_len": 9}}
    exported = copy.deepcopy(model)
    exported.generation_config = transformers.GenerationConfig(use_cache=True, **static)
    executorch = pytest.importorskip("transformers.integrations.executorch")
    exporter = executorch.TorchExportableModuleForDecoderOnlyLM(exported, batch_size=1, max_cache_len=9, device="cpu")
    program = exporter.export(input_ids=_TOKENS[:1, :1], cache_position=torch.tensor([0]))
    step = program.module()(input_ids=_TOKENS[:1, :1], cache_position=torch.tensor([0]))
    torch.testing.assert_close(step, whole[:1, :1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("surrogate", ["auto", "identity"])
def test_layers_that_see_all_before_layers_that_see_a_window_generate(surrogate: str) -> None:
    kinds = ["full_attention"] * 3 + ["sliding_attention"] * 3
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 6, "layer_types": kinds}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "use_sliding_window": True, "sliding_window": 5}
    source = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes, **heads, **_NAMED))
    result = repl_fx.transform(source.eval(), (), {"input_ids": _TOKENS}, surrogate=surrogate)
    model: Any = result.model.eval()
    # A mask is made for more positions than the window alone, so that each kind of layer asks for the length.
    assert [r.block for r in result.plan.replacements] == ["model.layers.1", "model.layers.4"]
    made = [model.generate(_TOKENS, max_new_tokens=4, do_sample=False, use_cache=cached) for cached in (True, False)]
    assert torch.equal(*made)


def _mistral() -> tuple[nn.Module, dict[str, Any]]:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 5, "sliding_window": 4}
    config = transformers.MistralConfig(num_attention_heads=2, num_key_value_heads=1, **sizes, **_NAMED)
    return transformers.MistralForCausalLM(config), {"input_ids": _TOKENS}


# Older releases of transformers crop layers that keep all positions, and hold none, without asking for that.
_CROPS_ALL = pytest.mark.xfail(
    "is_initialized" not in inspect.getsource(transformers.cache_utils.DynamicLayer.crop),
    reason="assisted decoding without an attention that keeps all positions, see docs/concepts/two_forms.md",
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "surrogate"),
    [
        (_mistral, "identity"),
        (_mistral, "bottleneck"),
        pytest.param(_gemma, "identity", marks=_CROPS_ALL),
        (_gemma, "reuse"),
    ],
)
def test_windows_of_a_cache_are_cropped_where_tokens_are_guessed(make: Any, surrogate: str) -> None:
    torch.manual_seed(0)
    source, inputs = make()
    model: Any = repl_fx.transform(source.eval(), (), inputs, every=2, surrogate=surrogate).model
    plain, guessed, assisted = (
        model.generate(_TOKENS[:1], max_new_tokens=12, min_new_tokens=12, do_sample=False, **how)
        for how in ({}, {"prompt_lookup_num_tokens": 3}, {"assistant_model": source})
    )
    assert torch.equal(guessed, plain) and torch.equal(assisted, plain)


@pytest.mark.filterwarnings("ignore")
def test_a_cache_that_another_model_filled_is_refused() -> None:
    model, _, _ = _in_place(_llama)
    theirs, ours = transformers.DynamicCache(), transformers.DynamicCache()
    source = transformers.LlamaForCausalLM(model.config)
    with torch.no_grad():
        source(input_ids=_TOKENS[:, :4], past_key_values=theirs)
        with pytest.raises(repl_fx.errors.CallRefused, match="keys and values of another model in layer 1"):
            model(input_ids=_TOKENS[:, 4:], past_key_values=theirs)
        model(input_ids=_TOKENS[:, :4], past_key_values=ours)
        # Of the same sizes, they are told apart by what they are.
        theirs = transformers.DynamicCache()
        for number, layer in enumerate(ours.layers):
            theirs.update(torch.randn_like(layer.keys), torch.randn_like(layer.values), number)
        with pytest.raises(repl_fx.errors.CallRefused, match="start with an empty cache"):
            model(input_ids=_TOKENS[:, 4:], past_key_values=theirs)
        assert model(input_ids=_TOKENS[:, 4:], past_key_values=copy.deepcopy(ours)).logits.isfinite().all()


@pytest.mark.slow
def test_the_cache_changes_nothing_in_what_auto_takes() -> None:
    torch.manual_seed(0)
    source, inputs = _gpt2()
    source.eval()
    chosen = [repl_fx.transform(source, (), {**inputs, "use_cache": use}).plan.replacements for use in (True, False)]
    assert chosen[0] == chosen[1]


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_is_converted_afterwards_generates() -> None:
    model, _, inputs = _in_place(_llama)
    converted = copy.deepcopy(model).to(torch.bfloat16)
    with torch.no_grad():
        whole = converted(**inputs, use_cache=False).logits
        first = converted(_TOKENS[:, :4], use_cache=True)
        second = converted(_TOKENS[:, 4:], use_cache=True, past_key_values=first.past_key_values).logits
    torch.testing.assert_close(whole.float(), model(**inputs).logits, rtol=0.1, atol=0.1)
    torch.testing.assert_close(torch.cat([first.logits, second], 1), whole, rtol=0.1, atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "surrogate", "block"),
    [(8, "bottleneck", "model.layers.3-4"), (8, "blend", "model.layers.3-4"), (4, "bottleneck", "model.layers.1")],
)
@pytest.mark.filterwarnings("ignore")
def test_a_graph_is_no_place_for_attention_with_a_cache(layers: int, surrogate: str, block: str) -> None:
    """A graph leaves nothing in a cache: attention that stays, in a blend or beside half a block, has no place."""
    source, inputs = _gemma(layers)
    result = repl_fx.transform(source.eval(), (), inputs, surrogate=surrogate)
    model: Any = result.model
    assert result.plan.replacements[0].block == block
    has_place = (layers, surrogate) == (8, "bottleneck")
    assert (result.in_place.model is not None) == has_place
    if not has_place:
        assert "reads and changes" in result.in_place.reason or "is outside of" in result.in_place.reason
    else:
        made = [model.generate(**inputs, use_cache=cached, max_new_tokens=9) for cached in (True, False)]
        assert torch.equal(*made)
