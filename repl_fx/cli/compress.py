"""`repl-fx compress`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from repl_fx.cli import common
from repl_fx.cli.completion import complete_model_or_artifact
from repl_fx.cli.flags import with_flags
from repl_fx.cli.group import CheckFailed
from repl_fx.training.compression.config import COMPRESSING, NOT_TO_COMPRESS, CompressConfig


@with_flags(CompressConfig, without=NOT_TO_COMPRESS, defaults=COMPRESSING)
def compress_command(
    spec: Annotated[
        str,
        typer.Argument(
            metavar="SPEC|DIR",
            help="A trained model, or with --resume DIR.",
            show_default=False,
            autocompletion=complete_model_or_artifact,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Where the artifact goes.", show_default=False),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run of DIR behind its last stage, with its settings.")
    ] = False,
    config_file: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="Settings in YAML; flags come before them.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an artifact or a run that is there already.")] = False,
    trust: common.TrustOption = False,
    as_json: common.JsonOption = False,
    verbose: common.VerboseOption = False,
    quiet: common.QuietOption = False,
    **given: Any,
) -> None:
    """Cut a trained model to a budget: score, replace, fit, heal if asked, evaluate, write as ONNX and verify.

    Examples:
        repl-fx compress model.py --weights trained.safetensors --data digits --budget params=0.7 -o out
        repl-fx compress out --resume
    """
    with common.running(as_json, verbose, quiet) as terminal:
        with common.needing("train", "compress"):
            from repl_fx.training.compression.compress import compress_source
        from repl_fx.display.comparisons import budget_table, figures_table

        noted: dict[str, list[str]] = {"note": [], "data": []}

        def note(kind: str, lines: Sequence[str]) -> None:
            noted[kind] += lines
            terminal.show(*(f"{kind}: {line}" for line in lines))

        done = compress_source(
            spec,
            output,
            given,
            config_file=config_file,
            resume=resume,
            force=force,
            trust_remote_code=trust,
            progress=terminal.stage,
            show=not (quiet or as_json),
            note=note,
        )
        terminal.show(budget_table(done.budget), *done.said, figures_table(done.figures))
        terminal.show(*(f"written: {one.file}" for one in done.exported.values()), f"written: {done.directory}")
        document = {name: value for name, value in vars(done).items() if name not in ("directory", "exported")}
        exported = {path: one.to_json() for path, one in done.exported.items()}
        terminal.document(
            {
                "directory": str(done.directory),
                "notes": noted["note"],
                "data": noted["data"],
                **document,
                "exported": exported,
            }
        )
        for path, one in done.exported.items():
            if one.verification is not None:
                said = f"{path}: {one.verification.summary()}".removeprefix(": ")
                if not one.verification:
                    raise CheckFailed(said)
                terminal.show(said)
