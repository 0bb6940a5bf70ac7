"""The options by which a plan is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, TypedDict

from repl_fx.arguments import require_items, require_kind, require_number
from repl_fx.errors import close_matches
from repl_fx.planning.policies import Policy, policy_of


class Options(TypedDict, total=False):
    """The options of `make_plan` and `transform`.

    Attributes:
        every: replace the k-th, 2k-th, … block of each repeat, every second by default; the ends of a repeat stay, but
            for surrogates that are made from their block alone.
        surrogate: key of the surrogate; by default `auto`.
        blocks: names or numbers (from 1) of the blocks to replace; overrides `every`. A pattern of module paths among
            them, such as `layers.*`, says for `transform` which modules are the blocks of a repeat, in place of what
            `find_repeats` finds; see `repeat_of`.
        ignore: globs over names of blocks, modules and parameters; a block stays that matches, or has one inside.
        settings: settings of the surrogate.
        seed: of the surrogates' initial values; 0 by default.
        budget: what may be left of the costs `params`, `flops`, `memory` (kept for the backward pass) and `latency`, as
            shares of the original: the blocks are those of the plan with the highest score under it. In place of
            `every` and `blocks`.
        scores: with a budget, what each block is worth, by its name; by default all are worth the same.
    """

    every: int
    surrogate: str
    blocks: Sequence[str | int] | None
    ignore: Sequence[str] | None
    settings: Mapping[str, Any] | None
    seed: int
    budget: Mapping[str, float] | None
    scores: Mapping[str, float] | None


def require_known(function: str, options: Options) -> None:
    """Refuse an option that `function` does not have, as Python does, and a value of another kind.

    Raises:
        TypeError: names the nearest one.
        BadInput: names the option and its value.
    """
    unknown = next((name for name in options if name not in Options.__annotations__), None)
    if unknown is not None:
        close = close_matches(unknown, Options.__annotations__)
        raise TypeError(f"{function}() got an unexpected keyword argument {unknown!r}{close}")
    for name in ("every", "seed"):
        require_number(name, options.get(name, 2))
    for name, kinds in (("blocks", (str, Integral)), ("ignore", str)):
        if options.get(name) is not None:
            require_items(name, options.get(name), kinds, "a list of names, such as ['blocks.1']")
    require_kind(options.get("surrogate", "auto"), str, f"{function} takes for surrogate its key, such as 'blend'")
    require_kind(options.get("settings"), Mapping | None, f"{function} takes for settings a dict of them by name")


def policy_among(options: Options) -> Policy:
    """The policy, or the one surrogate, that options name, with their settings.

    Raises:
        UnknownSurrogate, BadInput: see `make_surrogate`.
    """
    return policy_of(options.get("surrogate", "auto"), options.get("settings"))
