"""The options by which a plan is made."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypedDict

from repl_fx.errors import BadInput, close_matches
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
        ignore: globs over block and parameter names; what matches stays.
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
    ignore: Sequence[str]
    settings: Mapping[str, Any] | None
    seed: int
    budget: Mapping[str, float] | None
    scores: Mapping[str, float] | None


def _are_all(values: Any, *kinds: type) -> bool:
    # A text is a collection of letters, each of which is a glob.
    return isinstance(values, Collection) and not isinstance(values, str) and all(isinstance(v, kinds) for v in values)


# The options whose kind nothing else asks for: whether a value is of it, and words for that.
_KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "every": (lambda every: isinstance(every, int), "an int, 2 or more"),
    "seed": (lambda seed: isinstance(seed, int), "an int"),
    "surrogate": (lambda key: isinstance(key, str), "the key of a surrogate, such as 'blend'"),
    "ignore": (lambda globs: _are_all(globs, str), "a list of globs, such as ['head']"),
    "blocks": (
        lambda blocks: blocks is None or _are_all(blocks, str, int),
        "a list of names and numbers, such as [2, 'layers.4']",
    ),
}


def require_options(function: str, options: Options) -> None:
    """Refuse an option that `function` does not have, as Python does, or that is of another kind.

    Raises:
        TypeError: names the nearest one.
        BadInput: says which kind it has.
    """
    for name, value in options.items():
        if name not in Options.__annotations__:
            close = close_matches(name, Options.__annotations__)
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}{close}")
        is_kind, words = _KINDS.get(name, (lambda value: True, ""))
        if not is_kind(value):
            raise BadInput(f"{name} is {value!r}; give {words}")


def policy_among(options: Options) -> Policy:
    """The policy, or the one surrogate, that options name, with their settings.

    Raises:
        UnknownSurrogate, BadInput: see `make_surrogate`.
    """
    return policy_of(options.get("surrogate", "auto"), options.get("settings"))
