"""A report as one HTML file: the document, the picture that a small script draws of it, charts and tables.

The file needs nothing besides itself, and its own policy forbids the browser to fetch anything or to run any other
script: names in a model are data of a stranger, and are shown as text wherever they stand.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from importlib.resources import files

from markupsafe import Markup

from repl_fx.display.numbers import change
from repl_fx.reporting.model_graph.document import COSTS, Document
from repl_fx.reporting.page.charts import draw
from repl_fx.reporting.page.sections import sections_of
from repl_fx.reporting.templates import template_of

# What could end the element that the document stands in, or a line of it in JavaScript's eyes.
_ESCAPED = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


def render_page(document: Document) -> str:
    """The text of the HTML file, which is to be written as UTF-8."""
    here = files(__package__)
    style, script = (here.joinpath(name).read_text("utf-8") for name in ("report.css", "report.js"))
    model, plan = document.model, document.plan
    page = template_of(__package__, "report.html").render(
        policy=_policy(style, script),
        style=Markup(style),
        script=Markup(script),
        document=embedded(document.to_json()),
        title=model.type,
        spec=model.spec,
        facts=_facts(document),
        costs=list(_costs(document)),
        change=change,
        views=["before"] if document.views.after is None else ["before", "after"],
        replaced=plan is not None and any(row.status == "replaced" for row in plan.blocks),
        sections=sections_of(document),
        draw=draw,
        made=f"Made by repl-fx {document.made.repl_fx} with torch {document.made.torch}, {document.made.at}",
    )
    # A name may hold half of a surrogate pair, which no file can.
    return page.encode("utf-8", "replace").decode("utf-8")


def embedded(json_text: str) -> Markup:
    """JSON as it may stand in a script element: the same JSON, with nothing in it that HTML reads as markup."""
    return Markup(json_text.translate(_ESCAPED))


def _costs(document: Document) -> Iterator[tuple[str, Callable[[int | None], str], int, int | None]]:
    """The name of each cost that is known, how it is written, and its numbers before and after."""
    for key, name, text in COSTS:
        before, after = (getattr(side, key, None) for side in (document.totals.before, document.totals.after))
        if before is not None:
            at = "" if key == "parameters" else f", batch {document.totals.batch}"
            yield f"{name[0].upper()}{name[1:]}{at}", text, before, after


def _policy(style: str, script: str) -> str:
    """The content security policy: nothing may be fetched, and only these two may run."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script))
    style_hash, script_hash = (f"'sha256-{value}'" for value in hashes)
    return (
        f"default-src 'none'; style-src {style_hash}; script-src {script_hash}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _facts(document: Document) -> list[str]:
    """Lines on the model: inputs, how it was captured, notes."""
    model = document.model
    inputs = ", ".join(f"{one.name} {one.value}" for one in model.inputs)
    captured = f"captured by {model.tracer}" if model.tracer else ""
    number = len(model.eager)
    eager = f"{number} module{'s' * (number != 1)} stay{'s' * (number == 1)} eager" if number else ""
    return [fact for fact in (inputs, captured, eager, *model.notes) if fact]
