"""The commands that read data, on decoders, encoders and vision models of the zoo, by the specs that people type.

    inspected     `repl-fx inspect SPEC --data D --score influence`
    trained       `repl-fx train SPEC --data D`: two steps, and the held-out figures
    compressed    `repl-fx compress SPEC --data D`, under a budget of parameters
    healed        `repl-fx heal` of what was compressed: two steps
    benched       `repl-fx bench` of the same

Weights are random. Pictures lie in a folder for each class, in the size that the zoo builds a model for; text for
decoders is a folder of files, read as bytes; encoders get batches of token ids with their masks, and a head for
classification. A model of `hf:` is named by a directory with its config.json alone.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from typer.testing import CliRunner

from benchmarks.zoo_models import timm_models, torchvision_models
from benchmarks.zoo_models.case import PICTURES, TEXT, TOKENS, Case
from benchmarks.zoo_runner.stages import Record, alone, built, stage, stop
from repl_fx.cli import app

READING = ("inspected", "trained", "compressed", "healed", "benched")
# Shares of the parameters, the first of which that a plan can meet is the budget.
SHARES = (0.9, 0.97, 0.995, 0.9999)
CLASSES = 2
_FEW = ("--batch-size", "2", "--device", "cpu")
_STEPS = ("--steps", "2", "--log-every", "1")
_SAMPLES = ("--samples", "8", "--score", "influence")
_LENGTH = 16
# Bytes, and the end of a text.
_VOCABULARY = 257
_NOTHING = ("nothing to replace", "no repeat", "nothing repeats")
_LOADER = f"""
    import torch

    IDS, MASK = torch.randint(5, 90, (2, {_LENGTH})), torch.ones(2, {_LENGTH}, dtype=torch.int64)
    GIVEN = {{"input_ids": IDS, "attention_mask": MASK}}
    BATCHES = [({{name: GIVEN[name] for name in NAMES}}, torch.tensor([0, 1])) for _ in range(4)]


    def batches():
        return BATCHES, BATCHES
"""


class CommandError(Exception):
    """A command did not end with status 0; says how it ended.

    Attributes:
        refused: it ended in one line, with status 2.
    """

    def __init__(self, command: str, status: int, output: str) -> None:
        lines = [line for line in output.splitlines() if line.startswith("error:")] or output.splitlines()[-3:]
        super().__init__(f"{command} ended with status {status}: {' '.join(lines)}")
        self.refused = status == 2


def reading(case: Case, record: Record, place: Path, last: str, heavy: Any) -> None:
    """Run each command on a model with data of its kind."""
    model, args, kwargs = built(case, record, place, "build")
    record.parameters = sum(parameter.numel() for parameter in model.parameters())
    inputs = [*args, *kwargs.values()]
    spec, data = _spec(case, model, inputs[0].shape, place), _data(case, model, inputs, place)
    small = str(place / "small")
    del model, args, kwargs, inputs
    with alone(record, heavy):
        with stage(record, place, "inspected", last), _ending_where_nothing_repeats(record):
            _run("inspect", *spec, *data, *_SAMPLES, "--json", device=True)
        with stage(record, place, "trained", last), _ending_where_nothing_repeats(record):
            _run("train", *spec, "-o", str(place / "out"), *data, *_FEW, *_STEPS)
        with stage(record, place, "compressed", last):
            _compress(spec, data, small)
        with stage(record, place, "healed", last):
            _run("heal", small, *data, *_FEW, *_STEPS)
        with stage(record, place, "benched", last):
            _run("bench", small, "--rounds", "1", "--warm-up", "0", "--batch", "2", "--no-compile", device=True)


@contextmanager
def _ending_where_nothing_repeats(record: Record) -> Iterator[None]:
    try:
        yield
    except CommandError as problem:
        if not any(words in str(problem) for words in _NOTHING):
            raise
        record.nothing_repeats, record.reason = True, str(problem)
        stop()


def _compress(spec: Sequence[str], data: Sequence[str], small: str) -> None:
    """Compress under the smallest budget that a plan can meet."""
    for share in SHARES:
        try:
            _run("compress", *spec, *data, *_FEW, *_SAMPLES, "--budget", f"params={share}", "-o", small)
        except CommandError as problem:
            if share == SHARES[-1] or "no plan has" not in str(problem):
                raise
        else:
            return


def _run(command: str, *arguments: str, device: bool = False) -> None:
    """Run a command in this process.

    Raises:
        CommandError: it fails.
    """
    done = CliRunner().invoke(app, [command, *arguments, *(("--device", "cpu") if device else ())])
    if done.exit_code != 0:
        raise (
            done.exception
            if isinstance(done.exception, Exception)
            else CommandError(command, done.exit_code, done.output)
        )


def _spec(case: Case, model: Any, shape: Sequence[int], place: Path) -> list[str]:
    """The words that name a model to the commands."""
    library, _, name = case.name.partition(":")
    if library in ("timm", "torchvision"):
        fixed = _size_argument(library, name)
        size = ("--arg", f"{fixed}={shape[-1]}") if fixed else ("--input-shape", "x".join(map(str, shape)))
        return [case.name, "--arg", f"num_classes={CLASSES}", *size]
    config = model.config
    config.architectures = [type(model.base_model if case.data == TOKENS else model).__name__]
    if case.data == TEXT:
        config.vocab_size = _VOCABULARY
    else:
        config.num_labels = CLASSES
    config.save_pretrained(place / "config")
    return [f"hf:{place / 'config'}", *(("--task", "classification") if case.data == TOKENS else ())]


def _size_argument(library: str, name: str) -> str:
    """The argument that fixes the size of images when a model is built; empty for one that takes others."""
    if library == "torchvision":
        return next((one for prefix, one in torchvision_models.FIXED.items() if name.startswith(prefix)), "")
    import timm

    with torch.device("meta"), suppress(TypeError):
        timm.create_model(name, img_size=timm_models.size_of(name))
        return "img_size"
    return ""


def _data(case: Case, model: Any, inputs: Sequence[Any], place: Path) -> list[str]:
    """The words that name data of a model's kind, which are written."""
    if case.data == PICTURES:
        size = inputs[0].shape[-1]
        _write_pictures(place / "pictures", size)
        return ["--data", f"folder:{place / 'pictures'}", "--size", str(size)]
    if case.data == TEXT:
        (place / "text").mkdir()
        for name in ("one.txt", "other.txt"):
            (place / "text" / name).write_text("to be or not to be that is the question " * 20)
        return ["--data", f"text:{place / 'text'}", "--context", str(_LENGTH)]
    # What a tokenizer of such a model makes.
    names = [name for name in ("input_ids", "attention_mask") if name in inspect.signature(model.forward).parameters]
    (place / "batches.py").write_text(f"NAMES = {names}\n{textwrap.dedent(_LOADER)}")
    return ["--data", f"{place / 'batches.py'}:batches"]


def _write_pictures(place: Path, size: int) -> None:
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(8 * CLASSES):
        file = place / f"class{number % CLASSES}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
