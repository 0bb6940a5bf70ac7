"""Trainers of other libraries, each with the models of transformers in place, with each surrogate that fits them.

A trainer trains four steps and keeps a checkpoint every two; a fresh model that resumes from the first one ends with
the same weights; the best model, by a score that calls the first checkpoint the best, is loaded at the end; and what
transformers' `save_pretrained` writes is an artifact. Models are small, of random weights and without dropout.
"""

from __future__ import annotations

import copy
import functools
import itertools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import repl_fx
from benchmarks.habits.registry import require
from benchmarks.habits.shapes import SHAPES, Shape

STEPS, HALF, BATCH = 4, 2, 4
# A model that nothing is replaced in.
NONE = "none"
SURROGATES = ("auto", "blend", "coarse", "reuse", "slim", "bottleneck", "identity")


@dataclass(frozen=True)
class Case:
    """A model with one surrogate, or with `NONE`."""

    shape: str
    surrogate: str

    def model(self) -> Any:
        """The model, on tensors of its own; the same at each call."""
        return copy.deepcopy(_made(self.shape, self.surrogate)).train()

    def loaded(self, directory: str | Path) -> nn.Module:
        """The model that a directory of `save_pretrained` holds."""
        if self.surrogate == NONE:
            kind: Any = type(self.of.build())
            source: nn.Module = kind.from_pretrained(directory)
            return source
        return repl_fx.load(directory)

    @property
    def of(self) -> Shape:
        """The shape."""
        return SHAPES[self.shape]

    @property
    def batch(self) -> dict[str, Tensor]:
        """A batch of examples."""
        return self.of.inputs()


def offered(shape: str, surrogates: Sequence[str]) -> dict[str, str]:
    """Which of some surrogates the shape's plans have, each with the kinds that it puts in place of blocks."""
    found: dict[str, str] = {}
    for surrogate in surrogates:
        try:
            plan = _transformed(shape, surrogate).plan
        except repl_fx.errors.NothingToReplace:
            continue
        kinds = ", ".join(dict.fromkeys(one.surrogate for one in plan.replacements))
        if kinds not in found.values():
            found[surrogate] = kinds
    return found


@functools.cache
def _transformed(shape: str, surrogate: str) -> repl_fx.TransformResult:
    this = SHAPES[shape]
    return repl_fx.transform(this.build(), (), this.inputs(), every=2, surrogate=surrogate, copy=True, in_place=True)


@functools.cache
def _made(shape: str, surrogate: str) -> nn.Module:
    if surrogate == NONE:
        return SHAPES[shape].build()
    model = _transformed(shape, surrogate).model
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".surrogate." in name:
                # Branches begin at zero, where much is equal that should not be.
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def require_equal(one: nn.Module, other: nn.Module, what: str) -> None:
    """Fail where two models have other weights."""
    found, wanted = one.state_dict(), other.state_dict()
    require(found.keys() == wanted.keys(), f"{what}: other tensors")
    differ = [name for name, tensor in found.items() if not torch.equal(tensor, wanted[name])]
    require(not differ, f"{what}: {len(differ)} tensors differ, e.g. {next(iter(differ), '')}")


class Rows(Dataset[dict[str, Tensor]]):
    """The examples of a batch, twice."""

    def __init__(self, batch: dict[str, Tensor]) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 2 * BATCH

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: values[index % BATCH] for name, values in self.batch.items()}


def _arguments(directory: str, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": directory,
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": BATCH,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "logging_strategy": "no",
        "save_strategy": "steps",
        "save_steps": HALF,
        "eval_strategy": "steps",
        "eval_steps": HALF,
        "load_best_model_at_end": True,
        "metric_for_best_model": "score",
        "greater_is_better": False,
        **more,
    }


def _rising() -> Callable[[Any], dict[str, float]]:
    """A metric that calls the first model the best."""
    numbers = itertools.count()
    return lambda _: {"score": float(next(numbers))}


def _trainer(case: Case, model: Any, directory: str, **more: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    rows = Rows(case.batch)
    arguments = TrainingArguments(**_arguments(directory, **more))
    return Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, compute_metrics=_rising())


def _runs(case: Case, make: Callable[..., Any], read: Callable[[str], nn.Module], bare: Callable[[Any], Any]) -> Any:
    """Train, resume and compare with a trainer of transformers' kind; the model with the best weights."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        work = make(one)
        before = {name: p.detach().clone() for name, p in work.model.named_parameters() if p.requires_grad}
        work.train()
        require(str(work.state.best_model_checkpoint).endswith(f"-{HALF}"), "the best checkpoint is another one")
        best = bare(work.model)
        require_equal(best, read(f"{one}/checkpoint-{HALF}"), "the best model")
        moved = [name for name, p in work.model.named_parameters() if p.requires_grad and not p.equal(before[name])]
        require(len(moved) > len(before) // 2, "little was trained")
        resumed = make(two, load_best_model_at_end=False)
        resumed.train(resume_from_checkpoint=f"{one}/checkpoint-{HALF}")
        require_equal(bare(resumed.model), read(f"{one}/checkpoint-{STEPS}"), "the resumed model")
        return best


def hugging_face(case: Case) -> None:
    """`Trainer`: its checkpoints are artifacts."""
    _runs(case, lambda directory, **more: _trainer(case, case.model(), directory, **more), case.loaded, lambda m: m)


def lightning(case: Case) -> None:
    """Lightning: checkpoints of `ModelCheckpoint`, by the score too."""
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import ModelCheckpoint

    class Training(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.numbers = case.model(), itertools.count()

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            return torch.as_tensor(self.model(**batch).loss)

        def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
            self.model(**batch)

        def on_validation_epoch_end(self) -> None:
            self.log("score", float(next(self.numbers)))

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=3e-3)

    quiet: dict[str, Any] = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "num_sanity_val_steps": 0,
    }
    rows = DataLoader(Rows(case.batch), BATCH)

    def fit(directory: str, start: str | None = None) -> tuple[Any, Any]:
        best = ModelCheckpoint(directory, "best-{step}", monitor="score")
        every = ModelCheckpoint(directory, "all-{step}", save_top_k=-1, every_n_epochs=1)
        module = Training()
        trainer = pl.Trainer(accelerator="cpu", devices=1, max_epochs=STEPS // HALF, callbacks=[best, every], **quiet)
        trainer.fit(module, rows, rows, ckpt_path=start)
        return module, best

    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        module, kept = fit(one)
        require(Path(kept.best_model_path).name == f"best-step={HALF}.ckpt", "the best checkpoint is another one")
        resumed, _ = fit(two, kept.best_model_path)
        require_equal(resumed.model, module.model, "the resumed model")
        best = Training.load_from_checkpoint(kept.best_model_path)
        half = torch.load(f"{one}/all-step={HALF}.ckpt", weights_only=True)["state_dict"]
        require(all(half[name].equal(tensor) for name, tensor in best.state_dict().items()), "the best model differs")
        repl_fx.save(best.model, f"{one}/artifact") if case.surrogate != NONE else None


def accelerated(case: Case) -> None:
    """accelerate: `save_state` and `load_state`, and `save_pretrained` of the unwrapped model."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)

    def prepared() -> tuple[Any, Any, Any]:
        model = case.model()
        parts: tuple[Any, Any, Any] = accelerator.prepare(
            model, torch.optim.AdamW(model.parameters(), lr=3e-3), DataLoader(Rows(case.batch), BATCH)
        )
        return parts

    def steps(model: Any, optimizer: Any, loader: Any) -> None:
        for batch in loader:
            with accelerator.accumulate(model), accelerator.autocast():
                accelerator.backward(model(**batch).loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()

    with tempfile.TemporaryDirectory() as directory:
        through = prepared()
        steps(*through)
        accelerator.save_state(f"{directory}/half")
        best = copy.deepcopy(accelerator.unwrap_model(through[0]))
        steps(*through)
        accelerator.free_memory()
        resumed = prepared()
        accelerator.load_state(f"{directory}/half")
        require_equal(accelerator.unwrap_model(resumed[0]), best, "the best model")
        steps(*resumed)
        model = accelerator.unwrap_model(resumed[0])
        require_equal(model, accelerator.unwrap_model(through[0]), "the resumed model")
        state = accelerator.get_state_dict(resumed[0])
        model.save_pretrained(f"{directory}/out", state_dict=state, is_main_process=accelerator.is_main_process)
        require_equal(case.loaded(f"{directory}/out"), model, "the artifact")


def adapted(case: Case) -> str:
    """PEFT: LoRA in transformers' Trainer; the best adapter, merged, is saved as an artifact."""
    from peft import LoraConfig, PeftModel, get_peft_model

    # Layers of replaced blocks that are there, and have no weight of their own.
    bare = [
        name
        for name, module in case.model().named_modules()
        if name.endswith(tuple(f".{one}" for one in case.of.adapted)) and getattr(module, "weight", None) is None
    ]

    def made() -> Any:
        torch.manual_seed(0)
        config = LoraConfig(target_modules=list(case.of.adapted), exclude_modules=bare or None, r=2)
        return get_peft_model(case.model(), config)

    def trainer(directory: str, **more: Any) -> Any:
        return _trainer(case, made(), directory, label_names=["labels"], **more)

    def read(directory: str) -> Any:
        return PeftModel.from_pretrained(case.model(), directory)

    best = _runs(case, trainer, read, lambda m: m).eval()
    before = best(**case.batch).logits
    merged = best.merge_and_unload()
    differ = float((merged(**case.batch).logits - before).abs().max())
    require(differ < 1e-4, f"outputs, merged and not, differ by {differ:.0e}")
    with tempfile.TemporaryDirectory() as directory:
        merged.save_pretrained(directory)
        if case.surrogate != NONE:
            require_equal(case.loaded(directory), merged, "the artifact of the merged model")
    return "with `exclude_modules` for the layers whose weights a surrogate makes" if bare else ""


def trl(case: Case) -> str:
    """TRL: `RewardTrainer` for a model that judges texts, `SFTTrainer` for all others."""
    from datasets import Dataset as Table
    from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

    made, options = (RewardTrainer, RewardConfig) if case.of.judges else (SFTTrainer, SFTConfig)
    known = {name: values.tolist() for name, values in case.batch.items()}
    ids = known.get("input_ids", [])
    columns = {"chosen_ids": ids, "rejected_ids": ids[::-1]} if case.of.judges else {"input_ids": ids} if ids else known
    table = Table.from_dict({name: 2 * values for name, values in columns.items()})

    def trainer(directory: str, **more: Any) -> Any:
        return made(
            case.model(),
            options(**_arguments(directory, **more), max_length=None),
            train_dataset=table,
            eval_dataset=table,
            processing_class=_words(),
            compute_metrics=_rising(),
        )

    _runs(case, trainer, case.loaded, lambda model: model)
    return f"by {made.__name__}"


def _words() -> Any:
    """A tokenizer of as many words as the model knows."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, 64)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


TRAINERS: dict[str, tuple[str, Callable[[Case], str | None]]] = {
    "Trainer": ("accelerate", hugging_face),
    "Lightning": ("pytorch_lightning", lightning),
    "accelerate": ("accelerate", accelerated),
    "PEFT": ("peft", adapted),
    "TRL": ("trl", trl),
}
