"""The models of the zoo benchmark: one list a library.

The lists are imported when they are asked for: each needs a library of its own.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from benchmarks.zoo_models.case import Case

LISTS = ("timm_models", "torchvision_models", "hugging_face", "diffusers_models", "torchaudio_models")


def all_cases() -> list[Case]:
    """Every model of every list, in the order of the lists.

    Raises:
        ValueError: two models have one name.
    """
    found: dict[str, Case] = {}
    for name in LISTS:
        path = f"{__name__}.{name}"
        if find_spec(path) is None:
            continue
        for case in import_module(path).cases():
            if case.name in found:
                raise ValueError(f"{case.name} is in the zoo twice")
            found[case.name] = case
    return list(found.values())


def sized_cases() -> list[Case]:
    """The models that are run at other sizes than those of their capture; small, and not counted in the zoo."""
    found: list[Case] = import_module(f"{__name__}.sized_models").cases()
    return found


def case_called(name: str) -> Case:
    """The one model of this name."""
    cases = sized_cases() if name.startswith("sized:") else all_cases()
    return next(case for case in cases if case.name == name)
