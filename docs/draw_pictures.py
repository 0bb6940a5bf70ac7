"""Draw the pictures of the README and of the first pages into docs/pictures/: `python docs/draw_pictures.py`."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import NamedTuple

import repl_fx
from repl_fx.sources import load_source

PICTURES = Path(__file__).parent / "pictures"
TUTORIAL = Path(__file__).parent / "tutorial.md"

INK, LINE, KEPT, REPLACED, PAPER = "#1f2937", "#6b7280", "#c7d2fe", "#fde68a", "#ffffff"
STEPS = (
    ("model", "yours, unchanged"),
    ("capture", "one torch.fx graph"),
    ("find repeats", "by structure alone"),
    ("plan", "which blocks go"),
    ("replace", "surrogates in place"),
    ("train", "any loop"),
    ("fold", "plain constants"),
    ("export, verify", "ONNX, with proof"),
)


class Box(NamedTuple):
    """A box with two lines of text.

    Args:
        place: left, top, width and height, in pixels.
    """

    place: tuple[float, float, float, float]
    texts: tuple[str, str]
    fill: str = PAPER
    dashed: bool = False

    def drawn(self) -> str:
        """SVG."""
        x, y, width, height = self.place
        dash = ' stroke-dasharray="5 3"' if self.dashed else ""
        first, second = map(escape, self.texts)
        return (
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{self.fill}" stroke="{LINE}"{dash}/>'
            f'<text x="{x + width / 2}" y="{y + height / 2 - 4}" font-size="13" font-weight="600">{first}</text>'
            f'<text x="{x + width / 2}" y="{y + height / 2 + 13}" font-size="10.5">{second}</text>'
        )


def picture(width: float, height: float, title: str, shapes: Iterable[str]) -> str:
    """A whole SVG file, on paper of its own so that it reads on dark pages too."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" font-family="sans-serif" '
        f'fill="{INK}" text-anchor="middle"><title>{escape(title)}</title>'
        f'<defs><marker id="end" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 8 4 0 8z" fill="{LINE}"/></marker></defs>'
        f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}"/>\n' + "\n".join(shapes) + "\n</svg>\n"
    )


def arrow(path: str) -> str:
    """An arrow along a path."""
    return f'<path d="{path}" fill="none" stroke="{LINE}" stroke-width="1.5" marker-end="url(#end)"/>'


def pipeline() -> str:
    """The steps from a model to a verified file, in two rows."""
    shapes = []
    for number, texts in enumerate(STEPS):
        row, column = divmod(number, 4)
        x, y = 15 + 180 * column, 15 + 85 * row
        shapes.append(Box((x, y, 150, 55), texts, KEPT if row == 0 else REPLACED).drawn())
        if column < 3:
            shapes.append(arrow(f"M{x + 150} {y + 27} h28"))
    shapes.append(arrow("M630 70 v8 h-540 v20"))
    return picture(720, 170, "From a model to an ONNX file", shapes)


def replaced_blocks() -> str:
    """The blocks of the tutorial's network in a row, as the plan of a transform leaves them."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "net.py"
        file.write_text(model_of_the_tutorial())
        source = load_source(str(file))
    result = repl_fx.transform(source.model, source.args)
    shapes, step, width = [], 84, 70
    for number, report in enumerate(result.report):
        x = 12 + step * number
        replaced = report.status == "replaced"
        texts = (f"block {report.block}", f"{report.parameters_after:,}")
        shapes.append(Box((x, 62, width, 52), texts, REPLACED if replaced else KEPT, dashed=replaced).drawn())
        if number:
            shapes.append(arrow(f"M{x - step + width} 88 h{step - width - 1}"))
        if replaced:
            middle = x + width / 2
            for side in (-1, 1):
                shapes.append(arrow(f"M{middle + side * step} 62 q{-side * step / 2} -42 {-side * (step - 14)} -2"))
            shapes.append(f'<text x="{middle}" y="132" font-size="11">{report.surrogate}</text>')
    first = next(report for report in result.report if report.status == "replaced")
    shapes.append(
        f'<text x="340" y="22" font-size="12">weights of a replaced block are made from its neighbours: '
        f"{first.parameters_after:,} parameters in place of {first.parameters_before:,}</text>"
    )
    return picture(12 + step * len(result.report), 146, "Blocks of a network, kept and replaced", shapes)


def model_of_the_tutorial() -> str:
    """The code of net.py."""
    code = re.search(r'```python title="net.py"\n(.*?)```', TUTORIAL.read_text(), re.DOTALL)
    assert code is not None
    return code[1]


def main() -> None:
    """Write the pictures."""
    PICTURES.mkdir(exist_ok=True)
    (PICTURES / "pipeline.svg").write_text(pipeline())
    (PICTURES / "replaced_blocks.svg").write_text(replaced_blocks())


if __name__ == "__main__":
    main()
