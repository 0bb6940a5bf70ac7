"""`repl-fx compress`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from repl_fx.cli import common
from repl_fx.cli.completion import complete_model_or_artifact
from repl_fx.cli.flags import RunFlags
from repl_fx.training.train_config import COMPRESSING, NOT_TO_COMPRESS, CompressConfig

_Spec = Annotated[
    str, common.argument("SPEC|DIR", "A trained model, or with --resume DIR.", complete_model_or_artifact)
]


@common.command(RunFlags, CompressConfig, without=(*NOT_TO_COMPRESS, "model"), defaults=COMPRESSING)
def compress_command(terminal: common.Terminal, flags: RunFlags, spec: _Spec, **given: Any) -> None:
    """Cut a trained model to a budget: score, replace, fit, heal if asked, evaluate, write as ONNX and verify.

    Examples:
        repl-fx compress model.py --weights trained.safetensors --data digits --budget params=0.7 -o out
        repl-fx compress out --resume
    """
    with common.needing("train", "compress"):
        from repl_fx.training.command import RunRequest
        from repl_fx.training.compression.compress import compress_source
    from repl_fx.display.comparisons import budget_table, figures_table
    from repl_fx.rewriting.block_reports import BlockReport, blocks_table

    noted: dict[str, list[str]] = {"note": [], "data": []}

    def note(kind: str, lines: Sequence[str]) -> None:
        noted[kind] += lines
        terminal.show(*(f"{kind}: {line}" for line in lines))

    asked = flags.some("config", "resume", "force", "trust_remote_code")
    done = compress_source(RunRequest(spec, flags.output, given, **asked), note)
    cut = [blocks_table(msgspec.convert(done.blocks, list[BlockReport]))] if done.blocks else []
    terminal.show(*cut, budget_table(done.budget), *done.said, figures_table(done.figures))
    terminal.show(*(f"written: {one.file}" for one in done.exported.values()), f"written: {done.directory}")
    begin = {"directory": str(done.directory), "notes": noted["note"], "data": noted["data"]}
    known = {name: value for name, value in vars(done).items() if name not in ("directory", "exported")}
    exported = {path: one.to_json() for path, one in done.exported.items()}
    terminal.document({**begin, **known, "exported": exported})
    verified = {path: one.verification for path, one in done.exported.items() if one.verification is not None}
    common.show_verified(terminal, verified)
