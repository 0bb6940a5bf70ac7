"""Where the repeats of a model come from: found by structure, by a finder of the user's, or named by pattern or plan.

A finder is a function `(graph) -> repeats`; those that are not of `find_repeats` it makes by `repl_fx.repeat_of`. A
package offers finders by entry points of the group `repl_fx.finders`: the name, and the function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from repl_fx.arguments import in_words
from repl_fx.config import load_offered, offered
from repl_fx.errors import BadInput, ReplFxError, close_matches, foreign_code, one_line
from repl_fx.finding.blocks import Repeat
from repl_fx.finding.find_repeats import find_repeats
from repl_fx.finding.own_repeats import described, is_pattern, modules_matching, own_repeat, repeat_of, require_several
from repl_fx.plan import Plan
from repl_fx.tracing.parts.capture_parts import CapturedParts, Part, qualified_name

Finder = Callable[[fx.GraphModule], Sequence[Repeat]]
Find = Callable[[Part], Sequence[Repeat]]
_GROUP = "repl_fx.finders"


def by_structure(part: Part) -> Sequence[Repeat]:
    """The repeats that `find_repeats` finds."""
    return find_repeats(part.graph_module)


def by_plan(plan: Plan) -> Find:
    """The repeats that a plan has itself; beside them the found ones, where it takes blocks of these too."""
    if not plan.repeats:
        return by_structure
    own = {qualified_name(repeat.part, repeat.name) for repeat in plan.repeats}
    named = {one.repeat for one in plan.replacements} | {one.repeat for one in plan.refusals}
    beside = not named <= own

    def find(part: Part) -> Sequence[Repeat]:
        made = [own_repeat(part.graph_module, repeat) for repeat in plan.repeats if repeat.part == part.path]
        return (*made, *(by_structure(part) if beside else ()))

    return find


def by_options(captured: CapturedParts, blocks: Sequence[str | int], finder: str | Finder | None) -> Find:
    """The repeats that the patterns among some blocks name, or a finder finds.

    Raises:
        BadInput: both are given, a pattern that matches fewer than two modules, or a finder that nobody offers.
    """
    patterns = [str(block) for block in blocks if is_pattern(block)]
    if patterns and finder is not None:
        raise BadInput(f"{patterns[0]!r} names the blocks of a repeat, and so does the finder; leave out one of them")
    if finder is not None:
        return _by_finder(finder_of(finder))
    if not patterns:
        return by_structure
    matching = {
        (pattern, part.path): modules_matching(part.graph_module, pattern, part.path)
        for pattern in patterns
        for part in captured.parts
    }
    for pattern in patterns:
        most = max((matching[pattern, part.path] for part in captured.parts), key=len)
        if len(most) < 2 and not captured.whole:
            why = "".join(f"; {eager}" for eager in captured.eager[:1])
            raise BadInput(
                f"{pattern!r} matches no two modules of one graph, as the blocks of a repeat are: "
                f"{type(captured.source).__name__} was captured in parts{why}"
            )
        require_several(pattern, most)
    return lambda part: [
        repeat_of(part.graph_module, paths) for pattern in patterns if len(paths := matching[pattern, part.path]) > 1
    ]


def without_patterns(blocks: Sequence[str | int] | None) -> Sequence[str | int] | None:
    """The blocks that are to go; a pattern among them names the blocks of a repeat."""
    return [block for block in blocks if not is_pattern(block)] or None if blocks else blocks


def require_repeats(gm: fx.GraphModule, repeats: Sequence[Repeat]) -> tuple[Repeat, ...]:
    """Repeats of a graph as they were given, of which those that the user made are checked once more.

    Raises:
        BadInput: they are no repeats, do not hold, or two blocks have one name.
    """
    if not isinstance(repeats, Sequence) or not all(isinstance(repeat, Repeat) for repeat in repeats):
        what = in_words(repeats) if not isinstance(repeats, Sequence) else f"one of {', '.join(map(in_words, repeats))}"
        raise BadInput(f"repeats are given in a sequence, each of find_repeats or repeat_of, and this is {what}")
    found = tuple(own_repeat(gm, described(repeat)) if repeat.own else repeat for repeat in repeats)
    names: dict[str, str] = {}
    for repeat in found:
        for block in repeat.blocks:
            if block.name in names:
                raise BadInput(
                    f"block {block.name} is in {names[block.name]} and in {repeat.name}; leave out one of them"
                )
            names[block.name] = repeat.name
    return found


def _by_finder(finder: Finder) -> Find:
    name = getattr(finder, "__name__", type(finder).__name__)

    def find(part: Part) -> Sequence[Repeat]:
        fails = f"the finder {name} fails"
        with foreign_code(lambda problem: BadInput(f"{fails}: {one_line(problem)}; mend it"), passing=ReplFxError):
            found: Any = finder(part.graph_module)
        return require_repeats(part.graph_module, found)

    return find


def finder_of(finder: str | Finder) -> Finder:
    """The function of a finder that is given as one, or by the name under which a package offers it."""
    if not isinstance(finder, str):
        if not callable(finder):
            raise BadInput(f"finder is {in_words(finder)}; give a function of a graph, or the name of one")
        return finder
    known = offered(_GROUP)
    if finder not in known:
        listed = f"known are {', '.join(sorted(known))}" if known else "no installed package offers one"
        raise BadInput(f"unknown finder {finder!r}{close_matches(finder, known)}; {listed}")
    loaded: Finder = load_offered(_GROUP, finder)
    return loaded
