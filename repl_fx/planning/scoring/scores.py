"""The scores of a model's blocks: frozen, printable, and kept as JSON."""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from repl_fx.display.html import Displayed
from repl_fx.display.numbers import several
from repl_fx.errors import BadInput, close_matches
from repl_fx.plan import of_schema

SCHEMA = 1
Kind = Literal["influence", "change", "gradient", "loss"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class BlockScore:
    """The scores of one block; None stands for one that was not asked for, or that the block has not.

    Attributes:
        block, repeat: names.
        influence: one minus the cosine of what enters and what leaves.
        change: the norm of what the block adds, relative to the norm of what enters.
        gradient: the first-order estimate of how much the loss of a sample changes without the block.
        loss: the mean loss without the block.
        greedy_rank: the place of the block among those that go one after the other, from 1.
        greedy_loss: the mean loss without it and all that went before it.
        reasons: why the block has no score of a kind that was asked for, by kind.
    """

    block: str
    repeat: str
    influence: float | None = None
    change: float | None = None
    gradient: float | None = None
    loss: float | None = None
    greedy_rank: int | None = None
    greedy_loss: float | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        shown = [f"{kind} {value:.4g}" for kind in KINDS if (value := getattr(self, kind)) is not None]
        if self.greedy_rank is not None:
            shown.append(f"goes as number {self.greedy_rank}, loss {self.greedy_loss:.4g} then")
        shown += [f"no {kind}: {reason}" for kind, reason in self.reasons.items()]
        return f"{self.block}: {', '.join(shown)}"


@dataclass(frozen=True)
class StretchScore:
    """The influence of two or more blocks back to back, as if they were one.

    Attributes:
        repeat: name of the repeat.
        first, last: names of the blocks at the ends.
        length: number of blocks.
        influence: one minus the cosine of what enters the first and what leaves the last.
    """

    repeat: str
    first: str
    last: str
    length: int
    influence: float

    def __str__(self) -> str:
        return f"{self.first} to {self.last}: influence {self.influence:.4g}"


@dataclass(frozen=True, repr=False)
class Scores(Displayed):
    """The scores of the blocks of a model.

    Attributes:
        blocks: in program order.
        stretches: those that have an influence, by repeat, first block and length.
        samples: number of samples that were seen.
        kinds: of the scores.
        loss: the mean loss of the whole model; None where no loss was asked for.
    """

    blocks: tuple[BlockScore, ...]
    stretches: tuple[StretchScore, ...]
    samples: int
    kinds: tuple[Kind, ...]
    loss: float | None = None

    def of(self, kind: str) -> dict[str, float]:
        """The importance of each block, by name; of `loss`, the rise without the block.

        Blocks that have no score of this kind are left out; `BlockScore.reasons` says why.

        Raises:
            BadInput: the scores hold none of this kind.
        """
        if kind not in KINDS:
            raise BadInput(f"no score {kind!r}{close_matches(kind, KINDS)}; known are {', '.join(KINDS)}")
        if kind not in self.kinds:
            raise BadInput(f"no {kind} was scored, but {', '.join(self.kinds)}; give score_blocks kinds=({kind!r},)")
        base = self.loss or 0.0 if kind == "loss" else 0.0
        found = ((score.block, getattr(score, kind)) for score in self.blocks)
        return {block: value - base for block, value in found if value is not None}

    def planning_options(self, kind: Kind, ignore: Sequence[str] = ()) -> dict[str, Any]:
        """The options `scores` and `ignore` of `transform` under a budget; see `of`.

        A block without a score, such as one whose input and output differ in shape, stays.

        Args:
            ignore: what stays anyway.
        """
        worth = self.of(kind)
        unscored = (glob.escape(score.block) for score in self.blocks if score.block not in worth)
        return {"scores": worth, "ignore": (*ignore, *unscored)}

    @property
    def greedy(self) -> tuple[str, ...]:
        """The blocks that go one after the other, the least important first."""
        ranked = [score for score in self.blocks if score.greedy_rank is not None]
        return tuple(score.block for score in sorted(ranked, key=lambda score: score.greedy_rank or 0))

    def __str__(self) -> str:
        over = several(self.samples, "sample")
        shown = f"{several(len(self.blocks), 'block')} by {', '.join(self.kinds)}, over {over}"
        return shown if self.loss is None else f"{shown}; loss {self.loss:.4g}"

    def details(self) -> str:
        """The scores of each block and stretch, one a line."""
        return "\n".join([str(self), *(f"  {one}" for one in (*self.blocks, *self.stretches))])

    def to_json(self) -> str:
        """The scores as JSON text."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Scores:
        """Scores from their JSON text.

        Raises:
            BadInput: the text holds no scores, and says where, or was written by a newer version.
        """
        return of_schema(text, cls, SCHEMA, ("scores", "the scores have"), BadInput)[0]
