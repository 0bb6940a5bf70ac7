"""How much of the error of a removed block is left with a surrogate in its place, on trained networks.

    python -m benchmarks.block_errors --data DIR        the networks of benchmarks.trained, of the first seed
    python -m benchmarks.block_errors --data DIR --only '*/vit' text/gpt --docs DIR

Each block that may go is replaced alone, and its surrogate fitted on samples of the training data. The error is the
share of the variance of what leaves the block that is not there: that with the surrogate is divided by that without the
block. The medians are `Traits.error_left`, by which a budget chooses between surrogates.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

import repl_fx
from benchmarks.compression.originals import Original, original
from benchmarks.training.tasks import SCALES, tasks
from repl_fx.environment.machine import cpu_model
from repl_fx.errors import ReplFxError
from repl_fx.surrogates import make_surrogate

ROOT = Path(__file__).resolve().parent.parent
MAP = "linear"
RATIOS = (0.75, 0.5, 0.25, 0.125)
SURROGATES: tuple[tuple[str, Mapping[str, Any]], ...] = ((MAP, {}), *(("narrow", {"ratio": ratio}) for ratio in RATIOS))


def errors_left(own: Original) -> Iterator[tuple[str, list[float]]]:
    """A surrogate with its settings, and the share of the error that it leaves of each block."""
    blocks = list(own.scores.of("influence"))
    # Results share the kept weights, which no fit changes: the network is traced once.
    options: Any = {"check": False, "captured": own.captured}
    every = repl_fx.transform(own.model, own.inputs.args, surrogate=MAP, blocks=blocks, **options)
    may_go = [one.block for one in every.plan.replacements]
    without: dict[str, float] = {}
    for surrogate, settings in SURROGATES:
        left = []
        for block in may_go:
            chosen = {**options, "surrogate": surrogate, "settings": settings, "blocks": [block]}
            try:
                result = repl_fx.transform(own.model, own.inputs.args, **chosen)
            except repl_fx.NothingToReplace:
                # It has no hidden units that any can go of.
                continue
            (fitted,) = repl_fx.fit(result, own.batches).surrogates
            if fitted.before is None or fitted.after is None:
                continue
            if surrogate == MAP:
                # A map begins as the identity: before the fit the block is not there.
                without[block] = fitted.before
            left.append(fitted.after / without[block])
        yield " ".join((surrogate, *(f"{name}={value:g}" for name, value in settings.items()))), left


def written(found: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """The page: a row for each surrogate, a column for each network, and the number that budgets take."""
    lines = [
        "# Errors that surrogates leave",
        "",
        "Written by `python -m benchmarks.block_errors`. Each block that may go of a trained network is replaced",
        "alone, and its surrogate fitted. A cell is the error behind the block, as a share of the error without the",
        "block: the median of the blocks, with the least and the greatest. One seed;",
        f"{cpu_model()}, torch {torch.__version__}.",
        "",
        "The last column is `Traits.error_left`: where a [budget](surrogates.md#trained) chooses between",
        "surrogates, a block's score times that is lost. For `narrow` it is e^(-4.5 ratio) / 4.",
        "",
        f"| surrogate | {' | '.join(found)} | `error_left` |",
        f"|---|{'--:|' * (len(found) + 1)}",
    ]
    for (key, settings), name in zip(SURROGATES, next(iter(found.values())), strict=True):
        cells = [_cell(by_surrogate[name]) for by_surrogate in found.values()]
        lines.append(f"| {name} | {' | '.join(cells)} | {make_surrogate(key, settings).traits.error_left:.3f} |")
    return "\n".join(lines) + "\n"


def _cell(left: Sequence[float]) -> str:
    return f"{median(left):.3f} ({min(left):.3f}–{max(left):.3f})" if left else "none fits"


def main(argv: Sequence[str] | None = None) -> int:
    """Fit, and write docs/block_errors.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "build" / "data", help="directory of the data sets")
    parser.add_argument("--download", action="store_true", help="fetch data sets that are not there")
    parser.add_argument("--scale", choices=SCALES, default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="GLOB", help="networks, such as 'cifar10/vit'")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "trained", help="where trained weights are kept")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the page goes")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    found: dict[str, dict[str, list[float]]] = {}
    try:
        for name, task in tasks(given.scale).items():
            if any(fnmatch.fnmatchcase(name, glob) for glob in given.only):
                data = task.load(given.data, download=given.download)
                own = original(task, data, 0, given.out / "weights" / given.scale)
                found[name] = dict(errors_left(own))
                # After each network: a run that is cut off keeps those that are done.
                (given.docs / "block_errors.md").write_text(written(found))
    except ReplFxError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    if not found:
        print(
            f"error: no network is called {' or '.join(given.only)}; {', '.join(tasks(given.scale))} are there",
            file=sys.stderr,
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
