"""A report on objects: the document of a model, and the page that shows it."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
from torch import nn

from repl_fx.arguments import require_items, require_kind, require_module, require_path
from repl_fx.artifact.store import Artifact
from repl_fx.display.progress import shown, stage
from repl_fx.environment.files import write_whole
from repl_fx.errors import needing
from repl_fx.fitting.compression import Compression
from repl_fx.reporting.documents import scores_document
from repl_fx.reporting.model_graph.document import Document
from repl_fx.rewriting.result import HoldsResult, TransformResult, result_and_model
from repl_fx.tracing.parts.capture_parts import CapturedParts, capture_parts
from repl_fx.tracing.parts.part_repeats import ModelRepeats, find_in_parts

# Of a page in the cell of a notebook.
_HEIGHT = 720


@dataclass(frozen=True, eq=False)
class Report:
    """A report, which shows its page in a notebook.

    Attributes:
        document: all that is known of the model, as plain data.
    """

    document: Document

    @cached_property
    def page(self) -> str:
        """The page, as one HTML text that needs no network."""
        with needing("report", "report"):
            from repl_fx.reporting.page import render_page
        return render_page(self.document)

    def save(self, file: str | Path) -> Path:
        """Write the page to a file, which is replaced."""
        require_path(file, "the page to write")
        write_whole(Path(file), self.page)
        return Path(file)

    def __repr__(self) -> str:
        model = self.document.model
        return f"report on {model.spec}, a {model.type}; save('report.html') writes it"

    def _repr_html_(self) -> str:
        # Its scripts and styles stay its own.
        style = f"width: 100%; height: {_HEIGHT}px; border: 0"
        return f'<iframe sandbox="allow-scripts" style="{style}" srcdoc="{html.escape(self.page)}"></iframe>'


@shown("report")
def report(
    model: TransformResult | HoldsResult | ModelRepeats | CapturedParts | nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    title: str | None = None,
    notes: Sequence[str] = (),
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Show a model: a picture that opens down to its nodes, its costs, and what is known of plan, scores and figures.

    Args:
        model: what `transform`, `compress` or `load_artifact` returned, for before and after side by side; or
            what `capture_parts` returned, or a model. Its repeats are those of `find_repeats`, unless they are given
            with it.
        args, kwargs: example inputs of a model.
        title: the words for the model; its class by default.
        notes: remarks on it, a line each.
        progress: called with the name of each stage as it begins, in place of a bar (`REPL_FX_PROGRESS`).

    Raises:
        BadInput: no model, or a library of the extra `report` is missing.
        CaptureError: see `capture_parts`.
    """
    with needing("report", "report"):
        # The layouts of the document import it only when they are made.
        import igraph  # noqa: F401

        from repl_fx.reporting.model_graph.model_document import document_of, document_of_artifact
    require_kind(title, str | None, "report takes for title a text")
    require_items("notes", notes, str, "a list of lines")
    if isinstance(model, Artifact):
        stage("lay out")
        return Report(document_of_artifact(model, title or str(model.directory), notes))
    shown_model: TransformResult | ModelRepeats | CapturedParts | None
    if isinstance(model, CapturedParts | ModelRepeats):
        shown_model = model
    else:
        shown_model, module = result_and_model(model)
        if shown_model is None:
            require_module("report", module)
            stage("capture")
            shown_model = capture_parts(module, args, kwargs)
    stage("lay out")
    laid_out = find_in_parts(shown_model) if isinstance(shown_model, CapturedParts) else shown_model
    document = document_of(laid_out, title, notes)
    if isinstance(model, Compression):
        document = msgspec.structs.replace(document, scores=scores_document(model.scores))
    return Report(document)
