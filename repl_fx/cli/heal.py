"""`repl-fx heal`."""

from __future__ import annotations

from typing import Any

import typer

from repl_fx.cli import common
from repl_fx.cli.flags import ArtifactFlags, Directory, File, Switch
from repl_fx.training.config import HEALING, NOT_TO_HEAL, TrainConfig


class HealFlags(ArtifactFlags, frozen=True, kw_only=True):
    """Flags of the command.

    Attributes:
        output: Where the healed model goes.  [default: DIR itself]
        resume: Go on with the run of DIR, with its settings.
        config: Settings in YAML; flags come before them.
        force: Replace a run or an artifact that is there already.
    """

    output: Directory | None = None
    resume: Switch = False
    config: File | None = None
    force: Switch = False


@common.command(HealFlags, TrainConfig, without=NOT_TO_HEAL, defaults=HEALING)
def heal_command(
    terminal: common.Terminal, flags: HealFlags, directory: common.DirectoryArgument, **given: Any
) -> None:
    """Train a model that was cut against the original: its logits and values, and the targets where there are some.

    Examples:
        repl-fx heal out --data folder:pictures
        repl-fx heal out --data npz:calibration.npz --learn surrogates -o healed
    """
    with common.needing("train", "heal"):
        from repl_fx.training.command import begin
        from repl_fx.training.healing import heal_directory, settings_to_heal
        from repl_fx.training.processes import Ended, ending_together
    from repl_fx.artifact.manifest import read_manifest
    from repl_fx.display.comparisons import figures_table

    # A model that was not cut has nothing to heal.
    read_manifest(directory)
    try:
        with ending_together():
            run = begin(
                str(directory),
                flags.output,
                given,
                config_file=flags.config,
                resume=flags.resume,
                force=flags.force,
                model=flags.model,
                trust_remote_code=flags.trust_remote_code,
                defaults=settings_to_heal(),
                progress=terminal.stage,
                stdout=terminal.descriptor,
            )
            if run.processes.first:
                terminal.show(*common.data_lines(run.changes))
            healed = heal_directory(run, show=not (terminal.quiet or terminal.as_json), progress=terminal.stage)
    except Ended as end:
        raise typer.Exit(int(end.code or 0)) from None
    if not run.processes.first:
        return
    terminal.show(figures_table(healed.figures))
    terminal.show(f"written: {run.directory}", f"next:    repl-fx export {run.directory}")
    known = {"directory": str(run.directory), "data": list(run.changes)}
    terminal.document({**known, "steps": healed.trained.steps, "figures": healed.figures})
