"""`repl-fx report`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repl_fx.cli import common
from repl_fx.cli.flags import File, SpecFlags, Switch
from repl_fx.planning.settings import ModelSettings

if TYPE_CHECKING:
    from repl_fx.reporting.report import Report
    from repl_fx.tracing.parts.part_repeats import ModelRepeats


class ReportFlags(SpecFlags, frozen=True, kw_only=True):
    """Flags of the command.

    Attributes:
        output: The HTML file.  [default: DIR/report.html, or NAME-report.html]
        model_explorer: Write the graphs as a graph collection of Google's Model Explorer, too.
        force: Replace the files if they exist.
    """

    output: File | None = None
    model_explorer: File | None = None
    force: Switch = False


@common.command(ReportFlags, ModelSettings)
def report_command(terminal: common.Terminal, flags: ReportFlags, spec: common.AnySpecArgument, **given: Any) -> None:
    """Write one HTML page that shows a model: a picture that opens down to its nodes, and its costs.

    Plan, scores, training, verification and benchmark are on it as far as they are known; for a directory, before and
    after side by side. The page is one file that needs no network. With --json, its document goes to stdout, too.

    Examples:
        repl-fx report out
        repl-fx report timm:resnet18 -o resnet18.html
        repl-fx report out --model-explorer out.json
    """
    from repl_fx.artifact import REPORT, adding
    from repl_fx.reporting.model_graph.model_explorer import graph_collection

    require_renderer("report")
    directory = Path(spec) if flags.output is None and Path(spec).is_dir() else None
    written = directory / REPORT if directory else flags.output or Path(f"{name_of(spec)}-report.html")
    files = [written, *filter(None, [flags.model_explorer])]
    for file in files[1:] if directory else files:
        common.require_free_file(file, force=flags.force, read=spec)
    terminal.stage("load")
    target = common.load_target(spec, flags, ModelSettings().changed(**given))
    # What cannot be written should not cost the work.
    with adding(target.artifact if directory else None, REPORT) as place:
        made = report_on(target, spec, terminal)
        terminal.stage("draw")
        page = made.page
        terminal.stage("save")
        common.write_whole(place / REPORT if place else written, page)
        if flags.model_explorer is not None:
            common.write_whole(flags.model_explorer, json.dumps(graph_collection(made.document)))
    terminal.show(target.title, *common.note_lines(target.notes), *(f"written: {file}" for file in files))
    terminal.document(json.loads(made.document.to_json()))


def require_renderer(command: str) -> None:
    """Refuse a command without the libraries of a page, before any work is done."""
    with common.needing("report", command):
        import igraph  # noqa: F401

        import repl_fx.reporting.page  # noqa: F401


def report_on(
    target: common.Target,
    spec: str,
    terminal: common.Terminal,
    found: ModelRepeats | None = None,
) -> Report:
    """The report on a target; a model is captured, unless its repeats were found before."""
    from repl_fx import capture_parts, report

    model: Any = target.artifact or found
    if model is None:
        terminal.stage("capture")
        model = capture_parts(target.module, target.inputs.args, target.inputs.kwargs, fixed=target.fixed)
    return report(model, title=spec, notes=target.notes)


def name_of(spec: str) -> str:
    """A name for a file from a specification: `vit` of `examples/vit.py`, `resnet18` of `torchvision:resnet18`."""
    file, is_python, _ = spec.partition(".py")
    last = Path(file).name if is_python else spec.rstrip("/").rpartition(":")[2].rpartition("/")[2]
    return re.sub(r"[^\w.-]+", "-", last).strip("-.") or "model"
