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
