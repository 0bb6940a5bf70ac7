"""Habits of users of transformers and PEFT."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import repl_fx
from benchmarks.habits.registry import habit, require
from benchmarks.habits.saving import require_same, shift
from benchmarks.habits.subject import GPT2, SOURCE, T5, VIT, WORDS, Subject, build
from benchmarks.habits.training import require_close, train


class Texts(Dataset[dict[str, Tensor]]):
    """Random texts.

    Args:
        subject: whose batch they are like.
    """

    def __init__(self, subject: Subject) -> None:
        inputs = subject.inputs
        self.rows = [{name: inputs[name][i % 4] for name in inputs} for i in range(8)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.rows[index]


def _trainer(subject: Subject, model: nn.Module, directory: str, **options: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        directory,
        **{
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 3e-3,
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_strategy": "no",
            "dataloader_pin_memory": False,
            **options,
        },
    )
    return Trainer(model, arguments, train_dataset=Texts(subject), eval_dataset=Texts(subject))


@habit("HF Trainer: train and evaluate", GPT2, T5, needs=("accelerate",))
def trainer(subject: Subject) -> None:
    """Training, evaluation and prediction."""
    with tempfile.TemporaryDirectory() as directory:
        work = _trainer(subject, subject.model(), directory)
        before = work.evaluate()["eval_loss"]
        work.train()
        after = work.evaluate()["eval_loss"]
        require(after < before, f"the loss does not fall: {before:.3f}, then {after:.3f}")
        predicted = work.predict(Texts(subject)).predictions
        logits = predicted[0] if isinstance(predicted, tuple) else predicted
        require(logits.shape[0] == 8, "the predictions are of another number")


@habit("HF Trainer: checkpoint and resume", GPT2, T5, needs=("accelerate",))
def trainer_resumes(subject: Subject) -> None:
    """Four steps at once give what two and two give."""
    saving = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        through, half = subject.model(), subject.model()
        _trainer(subject, through, one, **saving).train()
        _trainer(subject, half, two, **saving, **{"max_steps": 2}).train()
        resumed = subject.model()
        _trainer(subject, resumed, two, **saving).train(resume_from_checkpoint=f"{two}/checkpoint-2")
    require_same(subject, resumed, through)


@habit(
    "a checkpoint of HF Trainer is an artifact",
    GPT2,
    needs=("accelerate",),
    expected={SOURCE: "not for the source model"},
)
def trainer_artifact(subject: Subject) -> None:
    """`repl_fx.load` reads what the trainer wrote."""
    with tempfile.TemporaryDirectory() as directory:
        model = subject.model()
        _trainer(subject, model, directory, save_strategy="steps", save_steps=4).train()
        require_same(subject, repl_fx.load(f"{directory}/checkpoint-4", build(subject.network)), model)


@habit("save_pretrained", GPT2, T5)
def saved_pretrained(subject: Subject) -> None:
    """A directory from which the model comes back: `from_pretrained`, or `repl_fx.load` for a rewritten one."""
    model: Any = shift(subject.model())
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        require((Path(directory) / "config.json").is_file(), "there is no config.json")
        if subject.form == SOURCE:
            again = type(model).from_pretrained(directory)
        else:
            again = repl_fx.load(directory, build(subject.network))
    require(type(again) is type(model), f"it comes back as a {type(again).__name__}")
    require_same(subject, again, model)


def _generates(subject: Subject, **options: Any) -> None:
    model: Any = shift(subject.model()).eval()
    ids = subject.inputs["input_ids"]
    settings = {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False, **options}
    cached, plain = (model.generate(ids, use_cache=use, **settings) for use in (True, False))
    require(torch.equal(cached, plain), "the tokens differ with a cache and without")
    require(int((cached[:, -10:] < WORDS).sum()) == cached[:, -10:].numel(), "there are other tokens than words")


@habit("generate, greedy, with a cache and without", GPT2, T5)
def greedy(subject: Subject) -> None:
    """The same tokens both ways."""
    _generates(subject)


@habit("generate, beam search, with a cache and without", GPT2, T5)
def beams(subject: Subject) -> None:
    """The same tokens both ways."""
    _generates(subject, num_beams=3)


@habit("ONNX of a decoder with its cache", GPT2, quick=False)
def onnx_with_cache(subject: Subject) -> None:
    """Keys and values are inputs and outputs; ONNX Runtime computes what the model does behind a filled cache."""
    decoder = repl_fx.CachedDecoder(shift(subject.model()).eval())
    ids, mask, past = decoder.inputs(subject.inputs["input_ids"])
    whole = decoder.model(subject.inputs["input_ids"]).logits
    require_close(decoder(ids, mask, past)["logits"], whole[:, -2:], "logits with a cache and without", 1e-4)
    gm = repl_fx.capture(decoder, (ids, mask, past))
    with tempfile.TemporaryDirectory() as directory:
        file = repl_fx.export_onnx(gm, Path(directory) / "decoder.onnx", (ids, mask, past))
        check = repl_fx.verify_onnx(gm, file, (ids, mask, past))
    require(bool(check), check.summary())


@habit("PEFT: LoRA on kept blocks, trained and merged", VIT, GPT2, needs=("peft",))
def adapters(subject: Subject) -> None:
    """Adapters learn, and the merged model computes what the adapted one does."""
    from peft import LoraConfig, get_peft_model

    model = subject.model()
    name = "qkv" if subject.network == VIT else "c_attn"
    kept = [
        path
        for path, _ in model.named_modules()
        if path.endswith(name)
        and not any(re.search(rf"(^|\.){re.escape(block)}\.", path) for block in subject.replaced)
    ]
    require(len(kept) >= 3, "there is no such layer in the kept blocks")
    config = LoraConfig(target_modules=kept, r=4, fan_in_fan_out=subject.network == GPT2, init_lora_weights="gaussian")
    adapted: Any = get_peft_model(model, config)
    before = subject.output(adapted.eval())
    train(subject, adapted.train(), 8, optimizer=torch.optim.AdamW(adapted.parameters(), lr=2e-2))
    after = subject.output(adapted.eval())
    require(float((after - before).abs().max()) > 1e-2, "the adapters learn nothing")
    merged = adapted.merge_and_unload()
    require_close(subject.output(merged.eval()), after, "outputs, merged and not,", 1e-4)
