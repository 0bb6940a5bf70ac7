"""A decoder with its cache as inputs and outputs: graph and ONNX file compute what the model in place computes."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import repl_fx
from tests.exporting import Exported
from tests.nets import MlpNet

pytest.importorskip("transformers")

from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

IDS = torch.randint(97, (2, 7), generator=torch.Generator().manual_seed(0))


@cache
def _in_place(kind: str, surrogate: str) -> Any:
    torch.manual_seed(0)
    small: dict[str, Any] = {"vocab_size": 97, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    model: Any
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(n_layer=3, n_head=4, n_embd=32, n_positions=64, **small))
    else:
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=3, **sizes, **small))
    rewritten: Any = repl_fx.transform(model, (IDS,), surrogate=surrogate, in_place=True).model.eval()
    with torch.no_grad():
        for name, parameter in rewritten.named_parameters():
            # Tokens that differ from step to step.
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
            if "surrogate" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return rewritten


@cache
def _captured(kind: str, surrogate: str) -> tuple[Any, tuple[Any, ...], Any]:
    """A decoder, its inputs and its graph, which no test changes."""
    decoder = repl_fx.CachedDecoder(_in_place(kind, surrogate))
    args = decoder.inputs(IDS)
    return decoder, args, repl_fx.capture(decoder, args)


def _greedy(file: Path, ids: Tensor, steps: int) -> Tensor:
    """Tokens by ONNX Runtime, from an empty cache on."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    past = {}
    for given in session.get_inputs():
        if given.name.startswith("past_key_values"):
            _, heads, _, width = given.shape
            past[given.name] = np.zeros((len(ids), heads, 0, width), np.float32)
    names = [output.name for output in session.get_outputs()]
    new = ids
    for _ in range(steps):
        mask = torch.ones_like(ids)
        made = session.run(None, {"input_ids": new.numpy(), "attention_mask": mask.numpy(), **past})
        results = dict(zip(names, made, strict=True))
        new = torch.from_numpy(results["logits"])[:, -1:].argmax(-1)
        ids = torch.cat([ids, new], 1)
        past = {name: results[name.replace("past_key_values", "present")] for name in past}
    return ids


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "surrogate", "layers"),
    [("gpt2", "bottleneck", "02"), ("llama", "reuse", "012")],
)
def test_onnx_runtime_generates_what_the_model_in_place_generates(
    kind: str, surrogate: str, layers: str, tmp_path: Path
) -> None:
    model = _in_place(kind, surrogate)
    _, args, gm = _captured(kind, surrogate)
    assert list(args[2]) == list(layers)
    exported = Exported(gm, tmp_path / "decoder.onnx", args)
    check = exported.verify()
    assert check, check.summary()
    expected = model.generate(IDS, max_new_tokens=6, do_sample=False, attention_mask=torch.ones_like(IDS))
    assert torch.equal(_greedy(exported.path, IDS, 6), expected)


@pytest.mark.slow
def test_a_graph_is_right_at_other_lengths_and_with_padding_in_front() -> None:
    shared, args, captured = _captured("llama", "reuse")
    decoder, gm = (copy.deepcopy(module).eval() for module in (shared, captured))
    for length, new in ((7, 1), (4, 3)):
        past = {
            layer: {name: torch.cat([value] * 2, 2)[:, :, :length] for name, value in kept.items()}
            for layer, kept in args[2].items()
        }
        mask = torch.ones(2, length + new, dtype=torch.long)
        mask[0, :2] = 0
        ours, theirs = (m(IDS[:, :new], mask, copy.deepcopy(past)) for m in (gm, decoder))
        # With a mask, kernels of another order of additions are chosen.
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_step_behind_a_cache_is_one_of_the_whole() -> None:
    model = _in_place("gpt2", "reuse")
    ids, mask, past = (decoder := repl_fx.CachedDecoder(model)).inputs(IDS)
    torch.testing.assert_close(decoder(ids, mask, past)["logits"], model(IDS).logits[:, -2:])


@pytest.mark.slow
def test_the_syntheses_fold() -> None:
    decoder = repl_fx.CachedDecoder(_in_place("gpt2", "blend"))
    gm = repl_fx.capture(decoder, decoder.inputs(IDS))
    called = [str(node.target) for node in gm.graph.nodes if node.op == "call_module"]
    assert "model.transformer.h.1.surrogate.blend" in called
    folded = {str(node.target) for node in repl_fx.fold(gm).graph.nodes if node.op == "call_module"}
    assert not any("surrogate" in target for target in folded)


def test_what_is_no_decoder_is_refused() -> None:
    with pytest.raises(repl_fx.BadInput, match="MlpNet is no decoder of transformers: its forward takes no cache"):
        repl_fx.CachedDecoder(MlpNet())
    sizes = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_heads": 2, "num_layers": 1, "vocab_size": 16}
    with pytest.raises(repl_fx.BadInput, match="has an encoder, whose values are cached too"):
        repl_fx.CachedDecoder(T5ForConditionalGeneration(T5Config(**sizes)))
    decoder = repl_fx.CachedDecoder(_in_place("gpt2", "blend"))
    with pytest.raises(repl_fx.BadInput, match="of length 4 or more"):
        decoder.inputs(IDS[:, :3])
    with pytest.raises(repl_fx.BadInput, match="GPT2LMHeadModel fails on the token ids: index out of range"):
        decoder.inputs(IDS + 97)


def test_a_decoder_of_another_kind_of_cache_is_refused() -> None:
    class Other(nn.Module):
        config: Any = object()

        def forward(
            self, input_ids: Tensor, past_key_values: Any, attention_mask: Any, use_cache: bool, **more: Any
        ) -> Any:
            return type("Made", (), {"past_key_values": []})

    with pytest.raises(repl_fx.BadInput, match="Other keeps a list, which is no DynamicCache"):
        repl_fx.CachedDecoder(Other()).inputs(IDS)
