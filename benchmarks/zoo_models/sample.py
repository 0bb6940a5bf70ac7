"""A sample of the zoo that is the same for everyone: stratified by library, and by family within a library."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

from benchmarks.zoo_models.case import Case

# Of each library, however small its share.
FEWEST = 4


def sample(cases: Sequence[Case], number: int) -> list[Case]:
    """Pick models by the hash of their names, which knows nothing of their size or speed.

    Each library gets places by its share of the zoo, and at least four; each family of a library by its share of the
    library, and at least one where there are places for all of them. A model that joins the zoo later hardly changes
    what is picked.

    Args:
        cases: the zoo.
        number: how many to pick; all where it is no less than there are.

    Returns:
        The picked cases, in the order of the zoo.
    """
    picked: set[str] = set()
    libraries = _grouped(cases, lambda case: case.name.partition(":")[0])
    for library, places in _places(libraries, number, FEWEST).items():
        families = _grouped(libraries[library], lambda case: case.family)
        # Where families are more than places, as many as there are places have one.
        for family, few in _places(dict(list(families.items())[:places]), places, 1).items():
            picked.update(case.name for case in families[family][:few])
    return [case for case in cases if case.name in picked]


def _grouped(cases: Sequence[Case], kind: Callable[[Case], str]) -> dict[str, list[Case]]:
    """The cases of each kind, by their hashes."""
    groups: dict[str, list[Case]] = {}
    for case in sorted(cases, key=_hash):
        groups.setdefault(kind(case), []).append(case)
    return groups


def _places(groups: Mapping[str, Sequence[Case]], number: int, fewest: int) -> dict[str, int]:
    """How many of each group: some of each in any case, and the rest to the groups that lack most of their share."""
    places = {name: min(fewest, len(group)) for name, group in groups.items()}
    total = sum(map(len, groups.values()))
    while sum(places.values()) < min(number, total):
        lacking = {n: number * len(group) / total - places[n] for n, group in groups.items() if places[n] < len(group)}
        places[max(lacking, key=lambda name: (lacking[name], name))] += 1
    return places


def _hash(case: Case) -> str:
    return hashlib.sha256(case.name.encode()).hexdigest()
