"""A headless Chromium for the session, and reports of small models."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

import repl_fx
from repl_fx.reporting.model_graph.document import Document
from repl_fx.reporting.model_graph.model_document import document_of
from repl_fx.reporting.page import render_page
from repl_fx.sources import load_source

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parents[3]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# A detector whose number of boxes depends on the image: its body is a graph, the rest stays eager.
DETECTOR = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(torch.relu(self.conv1(x)))

class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(*(Block(8) for _ in range(3)))
        self.head = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 5, 1))

    def forward(self, images):
        found = self.head(self.body(images)).flatten(2).transpose(1, 2)
        return [boxes[boxes[:, 4] > 0] if boxes[:, 4].max().item() > 0 else boxes for boxes in found]

def model():
    return Detector()

def example_inputs():
    return (torch.randn(2, 8, 8, 8),)
"""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A Chromium of the machine, or Playwright's own."""
    playwright = pytest.importorskip("playwright.sync_api")
    installed = next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as started:
        if installed is None and not Path(started.chromium.executable_path).exists():
            pytest.skip(f"no browser: none of {', '.join(BROWSERS)}, and no `playwright install chromium`")
        opened = started.chromium.launch(executable_path=installed)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Document]:
    """The documents of a small model of each kind, before and after a transform."""
    place = tmp_path_factory.mktemp("models")
    (place / "detector.py").write_text(DETECTOR)
    examples = ROOT / "examples"
    specs = {
        "vit": (f"{examples}/vit.py:VisionTransformer", "2x3x8x8", {"image": 8, "patch": 4, "width": 24, "depth": 3}),
        "resnet": (f"{examples}/resnet32.py:ResNet", "2x3x8x8", {"depth": 3, "width": 4}),
        "gpt": (f"{examples}/gpt.py:GPT", "ids:2x8:int64", {"context": 8, "width": 16, "depth": 3, "heads": 2}),
        "detector": (f"{place}/detector.py", None, {}),
    }
    return {name: _transformed(*spec) for name, spec in specs.items()}


def _transformed(spec: str, shape: str | None, options: dict[str, int]) -> Document:
    source = load_source(spec, input_shape=shape, options=options)
    result = repl_fx.transform(source.model, source.args, source.kwargs, surrogate="blend", check=False)
    return document_of(result, spec, source.notes)


@dataclass
class Opened:
    """A page in the browser, with what it said and asked for.

    Attributes:
        said: lines of the console, and errors.
        asked: addresses of requests.
    """

    page: Page
    said: list[str]
    asked: list[str]


Open = Callable[..., Opened]


@pytest.fixture
def open_page(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """Opens the page of a document from disk, in one of the themes."""
    contexts = []

    def call(document: Document, theme: Literal["light", "dark"] = "light") -> Opened:
        file = tmp_path / "report.html"
        file.write_text(render_page(document), "utf-8")
        contexts.append(browser.new_context(color_scheme=theme, viewport={"width": 1440, "height": 1000}))
        page, said, asked = contexts[-1].new_page(), [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        page.wait_for_selector("#view-before .box")
        return Opened(page, said, asked)

    yield call
    for context in contexts:
        context.close()
