"""The table of the pieces, in the order of their value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.gpu_pieces.setting import (
    COMPILED,
    EAGER,
    GPT12,
    NAMES,
    OTHERS,
    RECOMMENDED,
    RESNET50,
    TOY,
    VIT_BASE,
    Piece,
)

SMOKE = ("resnet32", "vit", "gpt")
MODES = (EAGER, COMPILED)
# Of a piece that runs steps.
SECONDS = {EAGER: 90, COMPILED: 180}
TARGET_NETWORKS = (VIT_BASE, RESNET50)
TASKS = ("cifar10/vit-small", "text/gpt", "cifar10/resnet110", "fashion-mnist/vit-small")
# Each group of those is trained from all seeds before the next begins.
VARIANTS = (
    ("full", "identity@2", "auto@2"),
    ("identity@3", "auto@3"),
    ("auto:weights=own@2", "blend:per=tensor@2"),
    ("auto:weights=own@3", "blend:per=tensor@3"),
)
CUT = ("cifar10/resnet56", "cifar10/vit", "text/gpt")
SEEDS = (0, 1, 2)
# The file of a data set that says whether it is there; text is that of the running Python.
FILES = {"cifar10": "cifar10.npz", "fashion-mnist": "FashionMNIST/raw/train-images-idx3-ubyte", "text": None}


def pieces(scale: str) -> list[Piece]:
    """The pieces of a scale; the toy run has some of each kind, which all targets follow from."""
    return list(_toy() if scale == TOY else _all())


def _all() -> Iterator[Piece]:
    # Those that compile, first: others run in the meantime.
    yield from (_step(name, COMPILED, 2) for name in TARGET_NETWORKS)
    yield from (_smoke(model) for model in SMOKE)
    yield _tests()
    yield from (_step(name, EAGER, 2) for name in TARGET_NETWORKS)
    yield from (_largest(name, 2) for name in TARGET_NETWORKS)
    yield _train()
    yield from _accuracies(VARIANTS[:1])
    yield from (_kernels(name, mode) for mode in reversed(MODES) for name in TARGET_NETWORKS)
    yield from (_compress(task, 0) for task in CUT)
    yield _processes()
    yield from (_runtimes(name) for name in TARGET_NETWORKS)
    for name in NAMES[2:]:
        yield _largest(name, 2)
        yield from (_step(name, mode, 2) for mode in MODES)
    yield from _accuracies(VARIANTS[1:2])
    yield from (_step(name, mode, 2, OTHERS) for mode in MODES for name in NAMES)
    yield from (_step(name, mode, 3, which) for mode in MODES for which in (RECOMMENDED, OTHERS) for name in NAMES)
    yield from _accuracies(VARIANTS[2:])
    yield from (_compress(task, seed) for seed in SEEDS[1:] for task in CUT)
    yield from (_largest(name, *rest) for rest in ((2, OTHERS), (3, RECOMMENDED), (3, OTHERS)) for name in NAMES)
    yield from (_kernels(name, EAGER) for name in NAMES[2:])


def _toy() -> Iterator[Piece]:
    yield from (_smoke(model) for model in SMOKE)
    yield _tests()
    for name in TARGET_NETWORKS:
        yield _largest(name, 2)
        yield from (_step(name, mode, 2) for mode in MODES)
    yield _train()
    # In one process: most of the time goes into the start of one.
    yield from (_accuracy(task, (*VARIANTS[0], "auto@3"), 0) for task in TASKS)
    yield _kernels(GPT12, EAGER)
    yield from (_compress(task, 0) for task in CUT)
    yield _processes()
    yield _runtimes(VIT_BASE)
    yield from (_step(name, EAGER, 3, OTHERS) for name in NAMES[2:])


def _smoke(model: str) -> Piece:
    return Piece(f"smoke/{model}", "checks:smoke", 60, {"model": model})


def _tests() -> Piece:
    return Piece("tests", "checks:marked_tests", 120)


def _step(name: str, mode: str, every: int, which: str = RECOMMENDED) -> Piece:
    arguments = {"name": name, "mode": mode, "every": every, "which": which}
    return Piece(f"step/{name}/{mode}/{every}/{which}", "steps:step_cost", SECONDS[mode], arguments)


def _largest(name: str, every: int, which: str = RECOMMENDED) -> Piece:
    arguments = {"name": name, "every": every, "which": which}
    return Piece(f"largest/{name}/{every}/{which}", "steps:largest_batches", 90, arguments)


def _kernels(name: str, mode: str) -> Piece:
    arguments = {"name": name, "mode": mode, "every": 2}
    return Piece(f"kernels/{name}/{mode}", "steps:kernels", SECONDS[mode], arguments)


def _train() -> Piece:
    return Piece("train", "loops:beside_a_bare_loop", 90, needs=FILES["cifar10"])


def _processes() -> Piece:
    return Piece(f"processes/{VIT_BASE}", "loops:wrapped", 45, {"name": VIT_BASE})


def _runtimes(name: str) -> Piece:
    return Piece(f"runtimes/{name}", "runtimes:runtimes", 60, {"name": name})


def _accuracies(groups: tuple[tuple[str, ...], ...]) -> Iterator[Piece]:
    for variants in groups:
        for seed in SEEDS:
            for task in TASKS:
                yield from (_accuracy(task, (variant,), seed) for variant in variants)


def _accuracy(task: str, variants: tuple[str, ...], seed: int) -> Piece:
    arguments = {"task": task, "variants": variants, "seed": seed}
    return _training(f"accuracy/{task}/{'+'.join(variants)}/{seed}", "accuracy", 240, arguments)


def _compress(task: str, seed: int) -> Piece:
    return _training(f"compress/{task}/{seed}", "compression", 270, {"task": task, "seed": seed})


def _training(key: str, function: str, seconds: int, arguments: dict[str, Any]) -> Piece:
    needs = FILES[arguments["task"].partition("/")[0]]
    return Piece(key, f"trainings:{function}", seconds, arguments, needs=needs)
