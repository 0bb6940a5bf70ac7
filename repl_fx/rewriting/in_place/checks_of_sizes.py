"""Checks of sizes that a surrogate makes in the place of the code of its block.

The graph asks at the inputs of the model; a module asks for the sizes of what it is handed.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from torch import fx

from repl_fx._torch import QuotientForm
from repl_fx.finding.blocks import Block
from repl_fx.graph.axes import size_checks
from repl_fx.graph.boundaries import at_boundaries
from repl_fx.graph.captured import dimension_called, is_tensor
from repl_fx.graph.extracting import quotients_of
from repl_fx.graph.runtime import SizeCheck
from repl_fx.rewriting.in_place.placing import NotInPlace, place_of
from repl_fx.tracing.parts.part_repeats import PartRepeats

_SIZES_TRIED = 1024


def checks_for(
    path: str, blocks: Sequence[Block], given: Iterable[fx.Node], graph: fx.Graph, part: PartRepeats
) -> Iterator[tuple[SizeCheck, list[fx.Node]]]:
    """The checks of sizes by which the code of the repeat's blocks goes its way, on arguments of a module.

    Args:
        path: the module, in the part.
        blocks: those that it stands for.
        given: the values that it is handed.
        graph: the rewritten one, which has the checks.
        part: the repeats of the graph before.

    Raises:
        NotInPlace: the module is not handed what tells a size.
    """
    repeats = [repeat for repeat in part.inside if not {*blocks}.isdisjoint(repeat.blocks)]
    standing = (place_of(part, block) for repeat in repeats for block in repeat.blocks)
    inside = tuple({f"{place}." for places in standing for place in places})
    tensors = list(filter(is_tensor, given))
    # By the names of their sizes, those that arguments have after a division alone.
    rounded: dict[tuple[str, ...], list[SizeCheck]] = {}
    for _, check in size_checks(graph):
        if check.limit or not any(f"{place}.".startswith(inside) for place in check.within):
            continue
        found = [dimension_called(name, tensors) for name, _, _ in check.sizes]
        if not all(found):
            rounded.setdefault(tuple(name for name, _, _ in check.sizes), []).append(check)
            continue
        taken = list(dict.fromkeys(one[0] for one in found if one))
        sizes = ((name, *one) for (name, _, _), one in zip(check.sizes, found, strict=True) if one)
        yield replace(check, sizes=tuple((name, taken.index(node), dim) for name, node, dim in sizes)), taken
    known = {form.symbol: (node, dim, form) for node, dim, form in quotients_of(tensors)}
    for names, checks in rounded.items():
        _require_told(names, checks, part)
        if not known.keys() >= set(names):
            raise NotInPlace(f"the way that its code goes depends on a size that {path} is not handed")
        yield _of_quotients(checks, {name: known[name] for name in names})


def _require_told(names: Sequence[str], checks: Sequence[SizeCheck], part: PartRepeats) -> None:
    """Refuse conditions on a size by which code goes that is handed nothing which tells it."""
    for check in checks:
        for path in check.within:
            bounds = at_boundaries(part.graph_module.graph, path)
            tensors = [node for node, bound in bounds if bound.argument and is_tensor(node)]
            if not all(_is_told(check, name, tensors) for name in names):
                raise NotInPlace(f"the way that {path} goes depends on a size that it is not handed")


def _of_quotients(
    checks: Sequence[SizeCheck], known: Mapping[str, tuple[fx.Node, int, QuotientForm]]
) -> tuple[SizeCheck, list[fx.Node]]:
    """A check that conditions on the same sizes hold for some of those that are rounded to the sizes of arguments.

    The code of a block goes by the sizes that it is handed. Where conditions on sizes before rounding have it
    go one way, it goes that way for all that are rounded to the same.

    Args:
        known: an argument and the dimension of it, by the name of the size that is rounded to that one.
    """
    taken = list(dict.fromkeys(node for node, _, _ in known.values()))
    sizes = tuple((f"own_{name}", taken.index(node), dim) for name, (node, dim, _) in known.items())
    condition = " and ".join(f"({check.condition})" for check in checks)
    for name, (_, _, form) in known.items():
        least, behind = (form.least(size) for size in (f"own_{name}", f"(own_{name} + 1)"))
        condition += f" for {name} in range({least}, {behind})"
    words = " and ".join(check.words for check in checks)
    return replace(checks[-1], condition=f"any({condition})", sizes=sizes, words=words), taken


def _is_told(check: SizeCheck, name: str, tensors: Sequence[fx.Node]) -> bool:
    """Tell whether a condition asks for one of its sizes by those of tensors alone: sizes are tried."""
    if dimension_called(name, tensors) is not None:
        return True
    drawn, forms = random.Random(0), [form for _, _, form in quotients_of(tensors) if form.symbol == name]
    for size in range(1, _SIZES_TRIED):
        sizes = {own: drawn.randrange(1, _SIZES_TRIED) for own, _, _ in check.sizes} | {name: size}
        holds = check.holds_for(*sizes.values())
        alike = (sizes | {name: form.least_alike(size)} for form in forms)
        pairs = zip(forms, alike, strict=True)
        forms = [form for form, one in pairs if one[name] < 1 or check.holds_for(*one.values()) == holds]
    return bool(forms)
