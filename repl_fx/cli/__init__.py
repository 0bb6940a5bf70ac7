"""The command line: `repl-fx COMMAND`.

Exit codes: 0 done; 1 a check failed; 2 bad usage, or input that cannot be used; 70 a defect of repl-fx (EX_SOFTWARE of
sysexits.h); 130 interrupted; 141 nobody reads stdout any more. An error is one line on stderr; `-v` adds the traceback.

torch is imported inside the commands, so that `--help` and a mistyped option answer at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from repl_fx.cli.bench import bench_command
from repl_fx.cli.compress import compress_command
from repl_fx.cli.doctor import doctor_command
from repl_fx.cli.export import export_command
from repl_fx.cli.group import Commands
from repl_fx.cli.heal import heal_command
from repl_fx.cli.inspect import inspect_command
from repl_fx.cli.train import train_command
from repl_fx.cli.transform import transform_command
from repl_fx.cli.verify import verify_command

app = typer.Typer(
    cls=Commands,
    add_completion=False,
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
    epilog="Exit codes: 0 done, 1 a check failed, 2 bad usage or input, 70 a defect of repl-fx, 130 interrupted."
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


app.command("inspect", short_help="Show what repeats in a model, and what it costs.")(inspect_command)
app.command("transform", short_help="Replace repeated blocks by light surrogates.")(transform_command)
app.command("train", short_help="Train a rewritten model, resumable.")(train_command)
app.command("heal", short_help="Train a cut model against the original.")(heal_command)
app.command("compress", short_help="Cut a trained model to a budget, in one run.")(compress_command)
app.command("bench", short_help="Measure step time, memory and latency next to the original.")(bench_command)
app.command("export", short_help="Write a transformed model as ONNX, and verify it.")(export_command)
app.command("verify", short_help="Compare an ONNX file with a model.")(verify_command)
app.command("doctor", short_help="Show versions, devices and missing extras.")(doctor_command)


def main() -> None:
    """Entry point of `repl-fx` and of `python -m repl_fx`."""
    app(prog_name="repl-fx")
