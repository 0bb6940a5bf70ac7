"""Settings of a compression: those of a run that heals, and a few more."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from repl_fx.training.train_config import HEALING, MAKING, TrainConfig

# Where none are given.
COMPRESSING: Mapping[str, Any] = MappingProxyType({**HEALING, "surrogate": "trained"})
# What a compression says by itself, or has no use for.
NOT_TO_COMPRESS = (
    *("every", "scores", "plan", "compare", "seeds", "replace_at", "restore_at"),
    *("devices", "nodes", "strategy", "find_unused", "sync_batchnorm"),
)


class CompressConfig(TrainConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a compression; those of training are for healing.

    Attributes:
        score: How blocks are scored; gradient and loss need targets.
        samples: Training samples to score and fit on, at most.
        heal: Train the cut model against the original.
    """

    score: Literal["influence", "change", "gradient", "loss"] = "influence"
    samples: Annotated[int, Meta(ge=1)] = 512
    heal: bool = False

    def healing(self) -> TrainConfig:
        """The settings of the run that heals, whose artifact has its blocks replaced already."""
        own = msgspec.to_builtins(self)
        shared = {name: own[name] for name in TrainConfig.__struct_fields__ if name not in MAKING}
        return TrainConfig().changed(**shared)


def settings_to_compress() -> CompressConfig:
    """The settings where none are given."""
    return CompressConfig().changed(**COMPRESSING)
