"""`save_pretrained` of a model in place: a directory that transformers and repl-fx both read."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import repl_fx
from repl_fx.artifact.manifest import MANIFEST, read_manifest, sealed
from repl_fx.artifact.store import WEIGHTS
from repl_fx.sources import load_source
from repl_fx.sources.checkpoints.weight_files import read_weights
from tests.nets import MlpNet

transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

TOKENS = torch.randint(3, 50, (2, 7), generator=torch.Generator().manual_seed(0))


def _config(**options: Any) -> Any:
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": 50}
    return transformers.GPT2Config(n_embd=16, n_head=2, n_layer=3, n_positions=32, **tokens, **options)


def _in_place() -> Any:
    torch.manual_seed(0)
    source = transformers.GPT2LMHeadModel(_config())
    result = repl_fx.transform(source, (), {"input_ids": TOKENS, "labels": TOKENS}, surrogate="bottleneck")
    with torch.no_grad():
        for parameter in result.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return result.model.eval()


def _logits(model: nn.Module) -> Tensor:
    logits: Tensor = model.eval()(TOKENS)["logits"]
    return logits


@pytest.mark.slow
def test_what_save_pretrained_wrote_is_loaded_without_any_other_argument(tmp_path: Path) -> None:
    model = _in_place()
    model.generation_config.max_new_tokens = 5
    model.save_pretrained(tmp_path / "net")
    again: Any = repl_fx.load(tmp_path / "net")
    assert type(again) is transformers.GPT2LMHeadModel
    assert torch.equal(_logits(again), _logits(model))
    assert again.generation_config.max_new_tokens == 5
    # Tied embeddings stay one tensor.
    assert again.lm_head.weight is again.transformer.wte.weight
    # And once more, over what is there and beside it.
    with torch.no_grad():
        again.transformer.h[0].ln_1.weight.mul_(2)
    again.save_pretrained(tmp_path / "net")
    assert torch.equal(_logits(repl_fx.load(tmp_path / "net")), _logits(again))
    repl_fx.save(again, tmp_path / "other")
    with pytest.raises(repl_fx.ArtifactError, match="name the model"):
        repl_fx.load(tmp_path / "other")


@pytest.mark.slow
def test_a_model_that_is_converted_afterwards_is_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    source = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=50, **sizes))
    model: Any = repl_fx.transform(source, (), {"input_ids": TOKENS}).model.to(torch.bfloat16)
    with torch.no_grad():
        for step in range(2):
            model.save_pretrained(tmp_path / f"net{step}")
            again = repl_fx.load(tmp_path / f"net{step}")
            assert torch.equal(_logits(again), _logits(model))
            assert _logits(again).dtype == torch.bfloat16
            model = again


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_from_pretrained_refuses_what_it_would_load_half(tmp_path: Path) -> None:
    model = _in_place()
    model.save_pretrained(tmp_path / "checkpoint")
    model.save_pretrained(tmp_path / "variant", variant="x")
    changed = copy.deepcopy(model)
    changed.transformer.h[0].mlp.c_fc = nn.Linear(16, 64)
    changed.save_pretrained(tmp_path / "changed", max_shard_size="20KB")
    causal, words = transformers.GPT2LMHeadModel, "as repl-fx rewrote this model: load the directory with repl_fx.load$"
    loads: list[Any] = [causal, transformers.GPT2Model, transformers.AutoModel, transformers.AutoModelForCausalLM]
    for directory, variant in (("checkpoint", None), ("variant", "x"), ("changed", None)):
        for kind in loads:
            with pytest.raises(ValueError, match=words) as refused:
                kind.from_pretrained(tmp_path / directory, variant=variant)
            assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="as repl-fx rewrote this model"):
        transformers.pipeline("text-generation", model=str(tmp_path / "checkpoint"))
    with pytest.raises(repl_fx.SourceError, match="is an artifact of repl-fx, and no source model"):
        load_source(f"hf:{tmp_path / 'checkpoint'}:GPT2LMHeadModel")
    # The config itself says nothing of it, wherever it goes from here.
    assert not hasattr(model.config, "transformers_weights")
    assert not hasattr(repl_fx.load(tmp_path / "checkpoint").config, "transformers_weights")


def test_from_pretrained_finds_no_weights_in_what_save_wrote(tmp_path: Path) -> None:
    model = _in_place()
    model.save_pretrained(tmp_path / "checkpoint")
    graph = repl_fx.load(tmp_path / "checkpoint", graph=True)
    for name, saved in (("place", model), ("graph", graph)):
        repl_fx.save(saved, tmp_path / name)
        loaded = repl_fx.load(tmp_path / name, transformers.GPT2LMHeadModel(_config()))
        assert torch.equal(_logits(loaded), _logits(model))
        repl_fx.save(loaded, tmp_path / name, force=True)
        assert not (tmp_path / name / WEIGHTS).exists()
        # Neither with a config of the user's, nor with one that was put there.
        for config in (_config(), None):
            with pytest.raises(OSError, match=r"no file named model\.safetensors"):
                transformers.GPT2LMHeadModel.from_pretrained(tmp_path / name, config=config)
            _config().save_pretrained(tmp_path / name)
    assert read_weights(tmp_path / "place").keys() == load_file(tmp_path / "place/repl-fx.safetensors").keys()


def test_a_mixin_of_a_hub_writes_and_finds_no_half_of_a_model(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")

    class Hubbed(MlpNet, hub.PyTorchModelHubMixin):  # type: ignore[misc, name-defined]
        pass

    x = torch.randn(2, 5, 16)
    model = repl_fx.transform(Hubbed(), (x,), surrogate="bottleneck").model.eval()
    with pytest.raises(repl_fx.BadInput, match=r"save_pretrained would write .*; use repl_fx.save"):
        model.save_pretrained(tmp_path / "no")  # type: ignore[operator]
    repl_fx.save(model, tmp_path / "out")
    with pytest.raises(OSError, match=WEIGHTS):
        Hubbed.from_pretrained(str(tmp_path / "out"))
    assert torch.equal(repl_fx.load(tmp_path / "out", Hubbed())(x), model(x))


class Encoder(nn.Module):
    """A model of transformers in one of another library, which saves it by its own method (sentence-transformers)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = transformers.GPT2Model(_config())
        self.config = self.inner.config

    def forward(self, tokens: Tensor) -> Tensor:
        mean: Tensor = self.inner(tokens).last_hidden_state.mean(1)
        return mean

    def save_pretrained(self, directory: str, safe_serialization: bool = True) -> str:
        self.inner.save_pretrained(f"{directory}/inner", safe_serialization=safe_serialization)
        return directory


@pytest.mark.slow
def test_no_part_of_a_rewritten_model_is_found_with_blocks_made_anew(tmp_path: Path) -> None:
    model: Any = repl_fx.transform(Encoder(), (TOKENS,), surrogate="bottleneck").model
    with pytest.warns(UserWarning, match="is no artifact"):
        model.inner.save_pretrained(tmp_path / "part" / "inner")
    with pytest.warns(UserWarning, match="whole has weights, and is no artifact .*; use repl_fx.save"):
        model.save_pretrained(tmp_path / "whole", safe_serialization=True)
    for name in ("part", "whole"):
        assert load_file(tmp_path / name / "inner" / WEIGHTS).keys() == model.inner.state_dict().keys()
        with pytest.raises(ValueError, match=r"load the directory with repl_fx\.load"):
            transformers.GPT2Model.from_pretrained(tmp_path / name / "inner")
    repl_fx.save(model, tmp_path / "out")
    assert torch.equal(repl_fx.load(tmp_path / "out", Encoder()).eval()(TOKENS), model.eval()(TOKENS))


@pytest.mark.slow
def test_a_part_without_surrogates_is_saved_as_ever(tmp_path: Path) -> None:
    net = MlpNet()
    net.other = transformers.GPT2Model(_config())
    model: Any = repl_fx.transform(net, (torch.randn(2, 5, 16),), surrogate="bottleneck").model
    model.other.save_pretrained(tmp_path)
    transformers.GPT2Model.from_pretrained(tmp_path)


def test_what_would_be_uploaded_without_its_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(repl_fx.BadInput, match=r"use model\.push_to_hub"):
        _in_place().save_pretrained(tmp_path, push_to_hub=True)


def test_copies_and_pickles_save_themselves(tmp_path: Path) -> None:
    model = _in_place()
    for number, other in enumerate((copy.deepcopy(model), pickle.loads(pickle.dumps(model)))):
        with torch.no_grad():
            other.transformer.wte.weight.mul_(2)
        other.save_pretrained(tmp_path / str(number))
        loaded = repl_fx.load(tmp_path / str(number), transformers.GPT2LMHeadModel(_config()))
        assert torch.equal(_logits(loaded), _logits(other))
        assert not torch.equal(_logits(loaded), _logits(model))


def test_shards_become_one_file_and_a_given_state_is_what_is_written(tmp_path: Path) -> None:
    model = _in_place()
    doubled = {name: tensor * 2 for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=dict(doubled), max_shard_size="20KB")
    weights = sorted(path.name for path in tmp_path.iterdir() if "model" in path.name)
    assert weights == [WEIGHTS]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    expected = copy.deepcopy(model)
    expected.load_state_dict(doubled)
    assert torch.equal(_logits(repl_fx.load(tmp_path)), _logits(expected))


def _vit(**options: Any) -> tuple[Any, Tensor]:
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=3, **options)
    torch.manual_seed(0)
    return transformers.ViTForImageClassification(config), torch.randn(2, 3, 16, 16)


@pytest.mark.slow
@pytest.mark.parametrize("shards", ["50GB", "8KB"])
def test_names_are_those_that_transformers_writes_and_lead_back(tmp_path: Path, shards: str) -> None:
    source, x = _vit()
    model: Any = repl_fx.transform(source, (x,), surrogate="bottleneck", copy=True).model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    model.save_pretrained(tmp_path / "net", max_shard_size=shards)
    source.save_pretrained(tmp_path / "source")
    written, kept = load_file(tmp_path / "net" / WEIGHTS), load_file(tmp_path / "source" / WEIGHTS)
    assert {name for name in written if ".surrogate." not in name} <= kept.keys()
    assert any(name not in model.state_dict() for name in written)
    for again in (repl_fx.load(tmp_path / "net"), repl_fx.load(tmp_path / "net", _vit()[0])):
        assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))
    graph = repl_fx.load(tmp_path / "net", graph=True)
    torch.testing.assert_close(graph(x)["logits"], model(x).logits)
    # As the Trainer of transformers reads it, in a wrapper too.
    for wrapped in (lambda one: one, lambda one: nn.ModuleDict({"inner": one})):
        fresh: Any = repl_fx.load(tmp_path / "net")
        with torch.no_grad():
            fresh.classifier.weight.zero_()
            fresh.vit.layers[0].mlp.fc1.weight.zero_()
        prefix = "" if wrapped(fresh) is fresh else "inner."
        wrapped(fresh).load_state_dict({prefix + name: tensor for name, tensor in written.items()})
        assert torch.equal(fresh(x).logits, model(x).logits)


@pytest.mark.slow
def test_attributes_that_no_forward_reads_leave_checkpoints_artifacts(tmp_path: Path) -> None:
    model = _in_place()
    model.accepts_loss_kwargs, model.is_parallelizable, model.model_parallel = False, True, False
    model.name_or_path, model.hf_device_map, model.tags = "net", {"": 0}, ["x"]
    model.config.mine, model.loss_type = 3, None
    model.save_pretrained(tmp_path)
    assert torch.equal(_logits(repl_fx.load(tmp_path)), _logits(model))


def test_another_process_than_the_main_one_writes_nothing(tmp_path: Path) -> None:
    _in_place().save_pretrained(tmp_path, is_main_process=False)
    assert not (tmp_path / MANIFEST).exists()


def test_a_model_that_was_changed_is_saved_as_transformers_does(tmp_path: Path) -> None:
    model = _in_place()
    model.transformer.h[0].mlp.c_fc = nn.Linear(16, 64)
    with pytest.warns(UserWarning, match="is no artifact for repl_fx.load: .* was changed since"):
        model.save_pretrained(tmp_path)
    assert (tmp_path / WEIGHTS).is_file()
    assert not (tmp_path / MANIFEST).exists()


def test_a_file_of_others_stays_and_so_do_the_weights(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("mine")
    with pytest.warns(UserWarning, match="is not as repl-fx wrote it"):
        _in_place().save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "plan.json").read_text() == "mine"
    assert (tmp_path / f"{WEIGHTS}.index.json").is_file()
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1


def test_a_config_that_was_changed_is_refused(tmp_path: Path) -> None:
    _in_place().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_head": 4}))
    with pytest.raises(repl_fx.ArtifactError, match=r"config.json that is gone or changed; name the model"):
        repl_fx.load(tmp_path)
    assert repl_fx.load(tmp_path, transformers.GPT2LMHeadModel(_config())) is not None


def test_code_beside_a_config_never_runs(tmp_path: Path) -> None:
    _in_place().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    text = json.dumps({**config, "auto_map": {"AutoModel": "evil.Net"}, "model_type": "unheard"})
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    manifest.pop("sha256")
    manifest["model"]["files"]["config.json"] = hashlib.sha256(text.encode()).hexdigest()
    (tmp_path / MANIFEST).write_text(sealed(manifest))
    assert read_manifest(tmp_path).model is not None
    with pytest.raises(repl_fx.SourceError, match="no model type 'unheard'"):
        repl_fx.load(tmp_path, trust_remote_code=True)


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_writes_artifacts_and_resumes_from_them(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")

    def trained(model: Any, steps: int, **options: Any) -> Any:
        arguments = transformers.TrainingArguments(
            str(tmp_path),
            max_steps=steps,
            save_steps=1,
            save_strategy="steps",
            lr_scheduler_type="constant",
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
        )
        rows = [{"input_ids": row, "labels": row} for row in TOKENS]
        trainer = transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
        trainer.train(**options)
        return trainer

    start = _in_place()
    through = copy.deepcopy(start)
    trainer = trained(through, 2)
    assert trainer.evaluate()["eval_loss"] > 0
    last = repl_fx.load(tmp_path / "checkpoint-2")
    assert torch.equal(_logits(last), _logits(through))
    resumed = copy.deepcopy(start)
    trained(resumed, 2, resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert torch.equal(_logits(resumed), _logits(through))


def test_a_model_without_such_a_method_is_refused() -> None:
    with pytest.raises(repl_fx.BadInput, match=r"a Linear has no save_pretrained; use repl_fx.save"):
        repl_fx.save_pretrained(nn.Linear(2, 2), "anywhere")
