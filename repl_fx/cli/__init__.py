"""The command line: `repl-fx COMMAND`.

Exit codes: 0 done; 1 a check failed; 2 bad usage, or input that cannot be used; 70 a defect of repl-fx (EX_SOFTWARE of
sysexits.h); 130 interrupted; 128 + N ended by signal N; 141 nobody reads stdout any more. An error is one line on
stderr; `-v` adds the traceback. With `--json`, stdout has one document in any case: `{"error": LINE, "exit_code": N}`
where a command ends without a result.

torch is imported inside the commands, so that `--help` and a mistyped option answer at once.
"""

from __future__ import annotations

from collections.abc import Callable
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


def _add(function: Callable[..., None], section: str, short_help: str, *lines: str) -> None:
    """Add a command to a section of the help, with examples."""
    name = function.__name__.removesuffix("_command")
    options: dict[str, Any] = {"cls": Command, "rich_help_panel": section, "short_help": short_help}
    app.command(name, epilog=examples(*lines), **options)(function)


_LOOK, _CHANGE, _MEASURE = "Look at a model", "Make it smaller", "Measure and prove"

_add(
    inspect_command,
    _LOOK,
    "Show what repeats in a model, and what it costs.",
    "repl-fx inspect model.py --input-shape 2x3x32x32",
    "repl-fx inspect timm:resnet50",
    "repl-fx inspect out --json",
    "repl-fx inspect model.py --weights trained.safetensors --data digits",
    "repl-fx inspect out --svg out.svg",
)
_add(
    report_command,
    _LOOK,
    "Write one HTML page that shows a model.",
    "repl-fx report out",
    "repl-fx report timm:resnet18 -o resnet18.html",
    "repl-fx report out --model-explorer out.json",
)
_add(
    diff_command,
    _LOOK,
    "Show how two plans or artifacts differ.",
    "repl-fx diff before after",
    "repl-fx diff out/plan.json other.json --json",
)
_add(
    doctor_command,
    _LOOK,
    "Show versions, devices and missing extras.",
    "repl-fx doctor",
    "repl-fx doctor --json",
)
_add(
    transform_command,
    _CHANGE,
    "Replace repeated blocks by light surrogates.",
    "repl-fx transform model.py -o out",
    "repl-fx transform timm:vit_tiny_patch16_224 --every 3 --surrogate reuse -o out",
    "repl-fx transform model.py --budget params=0.7 --dry-run",
    "repl-fx transform model.py --weights trained.safetensors --blocks 3,5 -o out",
)
_add(
    train_command,
    _CHANGE,
    "Train a rewritten model, resumable.",
    "repl-fx train model.py -o out --data digits --epochs 5",
    "repl-fx train out --data folder:pictures --config train.yaml",
    "repl-fx train out --resume",
    "repl-fx train model.py -o out --compare --seeds 3",
)
_add(
    heal_command,
    _CHANGE,
    "Train a cut model against the original.",
    "repl-fx heal out --data folder:pictures",
    "repl-fx heal out --data npz:calibration.npz --learn surrogates -o healed",
)
_add(
    compress_command,
    _CHANGE,
    "Cut a trained model to a budget, in one run.",
    "repl-fx compress model.py --weights trained.safetensors --data digits --budget params=0.7 -o out",
    "repl-fx compress out --resume",
)
_add(
    bench_command,
    _MEASURE,
    "Measure step time, memory and latency next to the original.",
    "repl-fx bench out",
    "repl-fx bench timm:resnet18 --only inference --batch-sizes 1,8",
)
_add(
    export_command,
    _MEASURE,
    "Write a transformed model as ONNX, and verify it.",
    "repl-fx export out",
    "repl-fx export out -o model.onnx --opset 20",
)
_add(
    verify_command,
    _MEASURE,
    "Compare an ONNX file with a model.",
    "repl-fx verify out out/model.onnx --per-layer",
    "repl-fx verify model.py model.onnx --weights trained.safetensors",
)


def main() -> None:
    """Entry point of `repl-fx` and of `python -m repl_fx`."""
    app(prog_name="repl-fx")
