"""`repl-fx heal`."""

from __future__ import annotations

from typing import Any

from repl_fx.cli import common
from repl_fx.cli.flags import RunFlags
from repl_fx.cli.train import in_a_run, show_run
from repl_fx.training.train_config import HEALING, NOT_TO_HEAL, TrainConfig


@common.command(RunFlags, TrainConfig, without=NOT_TO_HEAL, defaults=HEALING)
def heal_command(terminal: common.Terminal, flags: RunFlags, directory: common.DirectoryArgument, **given: Any) -> None:
    """Train a model that was cut against the original: its logits and values, and the targets where there are some.

    Examples:
        repl-fx heal out --data folder:pictures
        repl-fx heal out --data npz:calibration.npz --learn surrogates -o healed
    """
    with common.needing("train", "heal"):
        from repl_fx.training.command import heal_directory
        from repl_fx.training.healing import settings_to_heal
    from repl_fx.artifact.manifest import read_manifest
    from repl_fx.display.comparisons import figures_table

    # A model that was not cut has nothing to heal.
    read_manifest(directory)
    run, healed = in_a_run(terminal, flags, heal_directory, str(directory), given, defaults=settings_to_heal())
    known = {"steps": healed.trained.steps, "figures": healed.figures}
    show_run(terminal, run, [figures_table(healed.figures)], known)
