"""The command line: `repl-fx COMMAND`.

Exit codes: 0 done; 1 a check failed; 2 bad usage, or input that cannot be used; 70 a defect of repl-fx (EX_SOFTWARE of
sysexits.h); 130 interrupted; 128 + N ended by signal N; 141 nobody reads stdout any more. An error is one line on
stderr; `-v` adds the traceback. With `--json`, stdout has one document in any case: `{"error": LINE, "exit_code": N}`
where a command ends without a result.

torch is imported inside the commands, so that `--help` and a mistyped option answer at once.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import cleandoc
from typing import Annotated, Any

import typer

from repl_fx.cli.bench import bench_command
from repl_fx.cli.compress import compress_command
from repl_fx.cli.diff import diff_command
from repl_fx.cli.doctor import doctor_command
from repl_fx.cli.export import export_command
from repl_fx.cli.group import Commands
from repl_fx.cli.heal import heal_command
from repl_fx.cli.help import Command, examples
from repl_fx.cli.inspect import inspect_command
from repl_fx.cli.report import report_command
from repl_fx.cli.train import train_command
from repl_fx.cli.transform import transform_command
from repl_fx.cli.verify import verify_command

app = typer.Typer(
    cls=Commands,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from repl_fx import __version__

        typer.echo(f"repl-fx {__version__}")
        raise typer.Exit


@app.callback(
    epilog="Exit codes: 0 done, 1 a check failed, 2 bad usage or input, 70 a defect of repl-fx, 130 interrupted.\n\n"
    + examples(
        "repl-fx inspect timm:vit_tiny_patch16_224",
        "repl-fx transform model.py -o out",
        "repl-fx train out --data digits",
        "repl-fx export out",
        "repl-fx --install-completion",
    )
)
def _repl_fx(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Replacement Learning for any PyTorch model: find its repeated blocks, replace some by light surrogates made from
    the blocks around them, export the result to ONNX and prove it equivalent.

    SPEC is model.py, model.py:FACTORY, timm:NAME, torchvision:NAME, hf:TYPE, hf:DIR or hf:CONFIG. A model.py defines
    model(), and example_inputs() unless --input-shape is given.
    """  # noqa: D205 - this is the help text, and its first line is a paragraph
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _add(function: Callable[..., None], section: str, short_help: str) -> None:
    """Add a command to a section of the help; the examples of its docstring come last."""
    text, _, lines = cleandoc(function.__doc__ or "").partition("\n\nExamples:\n")
    options: dict[str, Any] = {"cls": Command, "rich_help_panel": section, "short_help": short_help, "help": text}
    app.command(function.__name__.removesuffix("_command"), epilog=examples(*lines.splitlines()), **options)(function)


_LOOK, _CHANGE, _MEASURE = "Look at a model", "Make it smaller", "Measure and prove"

_add(inspect_command, _LOOK, "Show what repeats in a model, and what it costs.")
_add(report_command, _LOOK, "Write one HTML page that shows a model.")
_add(diff_command, _LOOK, "Show how two plans or artifacts differ.")
_add(doctor_command, _LOOK, "Show versions, devices and missing extras.")
_add(transform_command, _CHANGE, "Replace repeated blocks by light surrogates.")
_add(train_command, _CHANGE, "Train a rewritten model, resumable.")
_add(heal_command, _CHANGE, "Train a cut model against the original.")
_add(compress_command, _CHANGE, "Cut a trained model to a budget, in one run.")
_add(bench_command, _MEASURE, "Measure step time, memory and latency next to the original.")
_add(export_command, _MEASURE, "Write a transformed model as ONNX, and verify it.")
_add(verify_command, _MEASURE, "Compare an ONNX file with a model.")


def main() -> None:
    """Entry point of `repl-fx` and of `python -m repl_fx`."""
    app(prog_name="repl-fx")
