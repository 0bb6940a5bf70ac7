"""The original's figures in `repl-fx compress` are those of an evaluation by the library's own recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repl_fx.training.compression.stages import CompressionState
from tests.caches import Caches, save_tokenizer, save_transformers
from tests.cli.results import document

if TYPE_CHECKING:
    from .conftest import Run

pytestmark = [pytest.mark.zoo, pytest.mark.slow]
FEW = ("--budget", "params=0.98", "--samples", "8", "--batch-size", "4", "--device", "cpu", "--json")
# Outputs of random weights hardly differ from input to input.
GAIN = 50.0
TEXT = "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer. "


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Caches:
    return Caches(tmp_path / "caches", monkeypatch)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Pictures of several sizes, in folders of three classes."""
    image, random = pytest.importorskip("PIL.Image"), np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 5)):
        for label in ("cat", "dog", "owl"):
            folder = tmp_path / "PICTURES" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (6, 5 + number, 3), dtype=np.uint8)
                image.fromarray(pixels).resize((200 + 20 * number, 180)).save(folder / f"{number}.png")
    return tmp_path / "PICTURES"


def _rounded(figures: Mapping[str, float]) -> dict[str, str]:
    return {name: f"{value:.4f}" for name, value in figures.items()}


def _original(run: Run, place: Path, *arguments: object) -> dict[str, str]:
    """The original's figures, of a command that is interrupted as soon as it has them."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with patch("repl_fx.fitting.compression.transform", interrupt):
        result = run("compress", *arguments, "-o", place, *FEW)
    assert result.exit_code == 130, result.output
    return _rounded(CompressionState(place).figures()["original"])


def _of_pictures(model: nn.Module, folder: Path, prepare: Callable[[Any], Tensor]) -> dict[str, str]:
    """The figures of a classifier, one picture after the other."""
    from PIL import Image

    files = sorted(folder.glob("val/*/*.png"))
    labels = torch.tensor([["cat", "dog", "owl"].index(file.parent.name) for file in files])
    with torch.no_grad():
        found = [model.eval()(prepare(Image.open(file).convert("RGB")).unsqueeze(0)) for file in files]
    return _figures(torch.cat([getattr(one, "logits", one) for one in found]), labels)


def _figures(logits: Tensor, labels: Tensor) -> dict[str, str]:
    right = (logits.argmax(-1) == labels).double().mean()
    return {"loss": f"{F.cross_entropy(logits, labels):.4f}", "accuracy": f"{right:.4f}"}


def test_a_model_of_timm_with_its_transforms(run: Run, caches: Caches, pictures: Path, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    caches.add_timm("test_vit.r160_in1k", GAIN)
    found = _original(
        run, tmp_path / "small", "timm:test_vit.r160_in1k", "--pretrained", "--data", f"folder:{pictures}"
    )
    model = timm.create_model("test_vit.r160_in1k", pretrained=True)
    prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    assert found == _of_pictures(model, pictures, prepare)


def test_a_model_of_torchvision_with_the_transforms_of_its_weights(
    run: Run, caches: Caches, pictures: Path, tmp_path: Path
) -> None:
    models = pytest.importorskip("torchvision.models")
    caches.add_torchvision("mobilenet_v3_small.IMAGENET1K_V1", GAIN)
    found = _original(
        *(run, tmp_path / "small", "torchvision:mobilenet_v3_small.IMAGENET1K_V1"),
        *("--pretrained", "--data", f"folder:{pictures}"),
    )
    weights = models.MobileNet_V3_Small_Weights.IMAGENET1K_V1
    model = models.mobilenet_v3_small(weights=weights)
    assert found == _of_pictures(model, pictures, weights.transforms())


def test_an_image_classifier_of_transformers_with_its_processor(
    run: Run, caches: Caches, pictures: Path, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")

    def write(path: Path) -> None:
        options: Any = {"image_size": 48, "patch_size": 8, "num_labels": 3}
        save_transformers(path, "ViTForImageClassification", GAIN, **options)
        transformers.ViTImageProcessor(size={"height": 48, "width": 48}).save_pretrained(path)

    caches.add("ORG/VIT", write)
    found = _original(run, tmp_path / "small", "hf:ORG/VIT", "--data", f"folder:{pictures}")
    model = transformers.AutoModelForImageClassification.from_pretrained("ORG/VIT")
    processor = transformers.AutoImageProcessor.from_pretrained("ORG/VIT")

    def prepare(picture: Any) -> Tensor:
        return processor(picture, return_tensors="pt")["pixel_values"][0]  # type: ignore[no-any-return]

    assert found == _of_pictures(model, pictures, prepare)


LOADERS = """
import torch
from transformers import AutoTokenizer, DataCollatorWithPadding

TEXTS = [({text!r} * (1 + number % 3))[number:] for number in range(24)]


def loaders():
    tokenizer = AutoTokenizer.from_pretrained("ORG/BERT")
    samples = [dict(tokenizer(text), label=number % 3) for number, text in enumerate(TEXTS)]
    train, test = (
        torch.utils.data.DataLoader(part, 4, collate_fn=DataCollatorWithPadding(tokenizer))
        for part in (samples[:12], samples[12:])
    )
    return train, test
"""


def test_a_text_classifier_with_its_tokenizer(
    run: Run, caches: Caches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")

    def write(path: Path) -> None:
        save_transformers(path, "BertForSequenceClassification", GAIN, num_labels=3)
        save_tokenizer(path, [TEXT])

    caches.add("ORG/BERT", write)
    monkeypatch.chdir(tmp_path)
    Path("data.py").write_text(LOADERS.format(text=TEXT))
    found = _original(run, Path("small"), "hf:ORG/BERT", "--data", "data.py:loaders")
    model = transformers.AutoModelForSequenceClassification.from_pretrained("ORG/BERT").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained("ORG/BERT")
    texts = [(TEXT * (1 + number % 3))[number:] for number in range(12, 24)]
    with torch.no_grad():
        logits = [model(**tokenizer(text, return_tensors="pt")).logits for text in texts]
    assert found == _figures(torch.cat(logits), torch.arange(12, 24) % 3)


def test_a_language_model_with_its_tokenizer(
    run: Run, caches: Caches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")

    def write(path: Path) -> None:
        save_transformers(path, "LlamaForCausalLM", GAIN)
        save_tokenizer(path, [TEXT])

    caches.add("ORG/LLAMA", write)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(TEXT * 60)
    # To the end, where the figures are printed.
    done = run(
        "compress", "hf:ORG/LLAMA", "--data", f"text:{corpus}", "--context", "32", "-o", tmp_path / "small", *FEW
    )
    assert done.exit_code == 0, done.output
    figures = document(done.stdout)["figures"]["original"]
    assert figures == CompressionState(tmp_path / "small").figures()["original"]
    found = _rounded(figures)
    model = transformers.AutoModelForCausalLM.from_pretrained("ORG/LLAMA").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained("ORG/LLAMA")
    held_out = corpus.read_bytes()[-round((corpus.stat().st_size + 1) * 0.1) + 1 :]
    ids = torch.tensor([*tokenizer(held_out.decode())["input_ids"], tokenizer.eos_token_id])
    losses = []
    for start in range(0, len(ids) - 32, 32):
        window = ids[None, start : start + 33]
        with torch.no_grad():
            losses.append(model(window, labels=window).loss)
    loss = float(torch.stack(losses).mean())
    bits = loss / math.log(2) * len(ids) / (len(held_out) + 1)
    assert found == {"loss": f"{loss:.4f}", "bits_per_byte": f"{bits:.4f}"}
