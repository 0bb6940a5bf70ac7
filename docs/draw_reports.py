"""Pictures of reports for the documents: a vision transformer, a ResNet, a language model and a detector in parts.

    python docs/draw_reports.py                 all of docs/pictures/report-*.png
    python docs/draw_reports.py vit gpt         some

Needs the extras `report`, `zoo` and `test`, and a Chromium on the machine.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from playwright.sync_api import Page, sync_playwright

import repl_fx
from repl_fx.reporting.model_graph.model_document import document_of
from repl_fx.reporting.page import render_page
from repl_fx.sources import load_source

PICTURES = Path(__file__).parent / "pictures"


@dataclass(frozen=True)
class Picture:
    """A picture of a report.

    Attributes:
        spec: the model.
        opened: labels of the boxes that are clicked, one after the other.
        from_top: whether it begins at the top of the page, or at the picture of the model.
    """

    spec: str
    opened: Sequence[str] = ()
    theme: Literal["light", "dark"] = "light"
    from_top: bool = False


DRAWN = {
    "vit": Picture("examples/vit.py", from_top=True),
    "gpt": Picture("examples/gpt.py", ("blocks",), "dark"),
    "resnet": Picture("torchvision:resnet18", ("layer1",)),
    "detector": Picture("torchvision:fasterrcnn_mobilenet_v3_large_320_fpn", ("backbone", "body")),
}


def main(names: Sequence[str]) -> None:
    """Draw the pictures of these names; without any, all."""
    browser_file = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as scratch:
        browser = playwright.chromium.launch(executable_path=browser_file)
        for name in names or DRAWN:
            picture = DRAWN[name]
            source = load_source(picture.spec)
            result = repl_fx.transform(source.model, source.args, source.kwargs, check=False)
            file = Path(scratch) / f"{name}.html"
            file.write_text(render_page(document_of(result, picture.spec, source.notes)), "utf-8")
            page = browser.new_page(color_scheme=picture.theme, viewport={"width": 1440, "height": 1000})
            said = _heard(page)
            page.goto(file.as_uri())
            for label in picture.opened:
                page.locator(f'#view-before .box[aria-label^="{label},"]').click()
            if not picture.from_top:
                page.evaluate("() => document.getElementById('picture').scrollIntoView({ behavior: 'instant' })")
            page.mouse.move(1435, 500)
            page.screenshot(path=PICTURES / f"report-{name}.png")
            # The page itself, and pictures in it.
            unwanted = [text for text in said if text != file.as_uri() and not text.startswith("data:")]
            if unwanted:
                raise SystemExit(f"the report of {picture.spec} is not quiet: {unwanted}")
            page.close()
        browser.close()


def _heard(page: Page) -> list[str]:
    """A list to which a page adds what it says, and what it asks for."""
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda asked: said.append(asked.url))
    return said


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    main(sys.argv[1:])
