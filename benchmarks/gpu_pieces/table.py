"""The table of the pieces, in the order of their value."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks.gpu_pieces import checks, loops, runtimes, steps, trainings
from benchmarks.gpu_pieces.networks import GPT12, NAMES, RESNET50, VIT_BASE
from benchmarks.gpu_pieces.setting import TOY, Piece
from benchmarks.gpu_smoke import MODELS

MODES = ("eager", "compile")
TARGET_NETWORKS = (VIT_BASE, RESNET50)
TASKS = ("cifar10/vit-small", "text/gpt", "cifar10/resnet110", "fashion-mnist/vit-small")
# Each of those is trained from all seeds before the next begins.
VARIANTS = (
    ("full", "identity@2", "auto@2"),
    ("identity@3", "auto@3"),
    ("auto:weights=own@2", "blend:per=tensor@2"),
    ("auto:weights=own@3", "blend:per=tensor@3"),
)
CUT = ("cifar10/resnet56", "cifar10/vit", "text/gpt")
SEEDS = (0, 1, 2)


def pieces(scale: str) -> list[Piece]:
    """The pieces of a scale; the toy run has some of each kind, which all targets follow from."""
    return list(_toy() if scale == TOY else _all())


def _all() -> Iterator[Piece]:
    for model in MODELS:
        yield _smoke(model)
    yield _tests()
    for name in TARGET_NETWORKS:
        yield _largest(name, 2)
        for mode in MODES:
            yield _step(name, mode, 2, steps.RECOMMENDED)
    for name in TARGET_NETWORKS:
        yield _kernels(name)
    yield _train()
    for name in NAMES:
        if name not in TARGET_NETWORKS:
            yield _largest(name, 2)
            yield _step(name, "eager", 2, steps.RECOMMENDED)
    yield from _accuracies(VARIANTS[:1])
    for task in CUT:
        yield _compress(task, 0)
    yield _processes()
    yield _runtimes(VIT_BASE)
    yield _runtimes(RESNET50)
    yield from _accuracies(VARIANTS[1:2])
    yield from (
        _step(name, mode, every, which)
        for every in (2, 3)
        for mode in MODES
        for which in (steps.RECOMMENDED, steps.OTHERS)
        for name in NAMES
        if (every, which) != (2, steps.RECOMMENDED) or (mode == "compile" and name not in TARGET_NETWORKS)
    )
    yield from _accuracies(VARIANTS[2:])
    for seed in SEEDS[1:]:
        for task in CUT:
            yield _compress(task, seed)
    yield from (_largest(name, 3) for name in NAMES)
    yield from (_kernels(name) for name in NAMES if name not in TARGET_NETWORKS)


def _toy() -> Iterator[Piece]:
    yield _smoke(MODELS[-1])
    yield _tests()
    for name in TARGET_NETWORKS:
        yield _largest(name, 2)
        for mode in MODES:
            yield _step(name, mode, 2, steps.RECOMMENDED)
    yield from (_step(name, "eager", 3, steps.OTHERS) for name in NAMES[1:])
    yield _kernels(GPT12)
    yield _train()
    for task in TASKS:
        for variant in (*VARIANTS[0], "auto@3"):
            yield _accuracy(task, variant, 0)
    yield from (_compress(task, 0) for task in CUT)
    yield _processes()
    yield _runtimes(VIT_BASE)


def _smoke(model: str) -> Piece:
    return Piece(f"smoke/{model}", partial(checks.smoke, model=model), 60)


def _tests() -> Piece:
    return Piece("tests", checks.marked_tests, 120)


def _step(name: str, mode: str, every: int, which: str) -> Piece:
    seconds = 240 if mode == steps.COMPILED else 90
    work = partial(steps.step_cost, name=name, mode=mode, every=every, which=which)
    return Piece(f"step/{name}/{mode}/{every}/{which}", work, seconds)


def _largest(name: str, every: int) -> Piece:
    return Piece(f"largest/{name}/{every}", partial(steps.largest_batches, name=name, every=every), 150)


def _kernels(name: str) -> Piece:
    return Piece(f"kernels/{name}/2", partial(steps.kernels, name=name, every=2), 60)


def _train() -> Piece:
    return Piece("train", loops.beside_a_bare_loop, 90)


def _processes() -> Piece:
    return Piece(f"processes/{VIT_BASE}", partial(loops.wrapped, name=VIT_BASE), 45)


def _runtimes(name: str) -> Piece:
    return Piece(f"runtimes/{name}", partial(runtimes.runtimes, name=name), 60)


def _accuracies(groups: tuple[tuple[str, ...], ...]) -> Iterator[Piece]:
    for variants in groups:
        for seed in SEEDS:
            for task in TASKS:
                yield from (_accuracy(task, variant, seed) for variant in variants)


def _accuracy(task: str, variant: str, seed: int) -> Piece:
    work = partial(trainings.accuracy, task=task, variant=variant, seed=seed)
    return Piece(f"accuracy/{task}/{variant}/{seed}", work, 240, beside=True)


def _compress(task: str, seed: int) -> Piece:
    work = partial(trainings.compression, task=task, seed=seed)
    return Piece(f"compress/{task}/{seed}", work, 270, beside=True)
