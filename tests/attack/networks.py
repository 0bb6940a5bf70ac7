"""Random networks, drawn from seeds: a stem, one or two repeats of a random block, a head, and features at random.

    make(seed)              the network; the same for the same seed, in any process
    example_inputs(seed)    its inputs, (args, kwargs); other values for each step
    describe(seed)          what is in it

A network that does not run in both modes, warns, or has values that are not finite is drawn again.
"""

from __future__ import annotations

import random
import warnings
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tests.attack import hooks, state
from tests.attack.blocks import draw_block
from tests.attack.net import Net, NetSpec, RepeatSpec

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
CONTAINERS = ("sequential", "list", "list", "enumerate", "attributes", "history", "add_from", "between", "dict")
INPUTS = ("plain", "plain", "plain", "optional", "dict", "tuple", "named", "keyword", "scale")
OUTPUTS = ("tensor", "tensor", "tensor", "tuple", "dict", "dataclass", "named", "list", "nested", "with_none", "number")
MODEL = (
    "frozen_stem", "frozen_norms", "frozen_block", "pinned", "no_grad_stem", "aux_in_training", "training_scale",
    "shared_norm", "shared_block", "tied_head", "transposed_buffer", "double", "half", "bfloat16", "unused", "detach",
)  # fmt: skip
BLOCK = (
    "tensor_hook", "tensor_hook_counts", "map_kept", "side", "autocast", "no_grad", "drop_grows",
)  # fmt: skip


class Drawn(NamedTuple):
    """A network's spec, and the hooks that go on it."""

    spec: NetSpec
    hooks: tuple[str, ...]
    hook_seed: int


def draw(rng: random.Random) -> Drawn:
    """A spec at random: sizes and containers always, and none to three of the rarer features."""
    stream = rng.choice(["tokens", "tokens", "tokens", "pictures", "pictures", "vectors", "loose"])
    width, length = rng.choice([4, 6, 8, 12, 16]), rng.choice([1, 3, 5, 8, 9])
    if stream == "pictures":
        length = rng.choice([1, 4, 5, 7, 8])
    groups = [("state", tuple(state.KINDS)), ("hook", tuple(hooks.KINDS)), ("model", MODEL), ("block", BLOCK)]
    picked = [rng.choice(groups) for _ in range(rng.choice([0, 0, 1, 1, 1, 2, 2, 3]))]
    chosen = [(group, rng.choice(names)) for group, names in picked]
    states = [name for group, name in chosen if group == "state"]
    in_block = {name for group, name in chosen if group == "block"}
    if stream not in ("tokens", "loose"):
        in_block -= {"map_kept", "side"}
    if stream != "tokens":
        in_block -= {"side"}
    inside = frozenset(in_block | set(states[:1] if rng.random() < 0.6 else []))
    repeats = []
    for number in range(rng.choice([1] * 9 + [2])):
        block = draw_block(rng, stream, width, length, inside if number == 0 else frozenset(inside & {"side"}))
        depth = rng.choice([4] * 12 + [5, 5, 6, 7])
        other = draw_block(rng, stream, width, length, frozenset()) if rng.random() < 0.15 else None
        repeats.append(RepeatSpec(block, depth, rng.choice(CONTAINERS), other, rng.randrange(1, depth)))
    if "side" in inside:
        repeats = [replace(repeat, container="list") for repeat in repeats]
    spec = NetSpec(
        stream,
        width,
        length,
        rng.choice([2, 2, 3]),
        tuple(repeats),
        "side" if "side" in inside else rng.choice(INPUTS),
        rng.choice(OUTPUTS),
        rng.choice(["ids", "float"]) if stream == "tokens" else "float",
        rng.choice(["pool", "flat", "first", "each"]),
        frozenset(name for group, name in chosen if group == "model"),
        states[0] if states and states[0] not in inside else None,
    )
    return Drawn(spec, tuple(name for group, name in chosen if group == "hook"), rng.randrange(1 << 30))


def _built(seed: int, drawn: Drawn) -> tuple[nn.Module, list[str]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Net(drawn.spec)
        if any(isinstance(m, nn.LazyLinear) for m in model.modules()):
            args, kwargs = _inputs(seed, drawn.spec, 0, None)
            with torch.no_grad():
                model.eval()(*args, **kwargs)
                model.train()
        rng = random.Random(drawn.hook_seed)
        words = [hooks.attach(model, kind, rng) for kind in drawn.hooks]
    return model, words


def _inputs(seed: int, spec: NetSpec, step: int, batch: int | None) -> Inputs:
    generator = torch.Generator().manual_seed(1000 * seed + step)
    batch = batch or spec.batch
    leading = () if spec.stream == "loose" else (batch,)
    if spec.stem == "ids":
        x = torch.randint(0, Net.VOCABULARY, (batch, spec.length), generator=generator)
    elif spec.stream == "pictures":
        x = torch.randn(batch, 3, spec.length, spec.length, generator=generator).to(spec.dtype)
    elif spec.stream == "vectors":
        x = torch.randn(batch, 5, generator=generator).to(spec.dtype)
    else:
        x = torch.randn(*leading, spec.length, 5, generator=generator).to(spec.dtype)
    other = torch.randn(*leading, spec.width, generator=generator).to(spec.dtype)
    mask = torch.rand(batch, spec.length, generator=generator) > 0.3
    mask[:, 0] = True
    return Net.arguments(spec.inputs, x, other, mask)


def _sound(seed: int, drawn: Drawn) -> bool:
    """Whether the network runs in both modes, without warnings, on finite values, and is a function of its inputs."""
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("error")
            model, _ = _built(seed, drawn)
            for step, training in enumerate([True, True, False, True]):
                torch.manual_seed(step)
                args, kwargs = _inputs(seed, drawn.spec, step, None)
                result = model.train(training)(*args, **kwargs)
                leaves = [leaf for leaf in pytree.tree_leaves(open_result(result)) if isinstance(leaf, Tensor)]
                floating = [leaf for leaf in leaves if leaf.requires_grad]
                if not floating:
                    return False
                sum(leaf.float().square().sum() for leaf in floating).backward()  # type: ignore[union-attr]
                grads = [p.grad for p in model.parameters() if p.grad is not None]
                if not all(bool(value.isfinite().all()) for value in (*leaves, *grads)):
                    return False
                if max(float(value.detach().abs().max()) for value in (*floating, *grads)) > 1e4:
                    return False
    except Exception:
        # What torch refuses is no network; repl-fx has no part in this.
        return False
    finally:
        hooks.LEDGER.clear()
    return True


def open_result(result: Any) -> Any:
    """A result as pytree takes it: dataclasses as dicts."""
    return vars(result) if hasattr(result, "__dataclass_fields__") else result


@lru_cache(maxsize=64)
def network(seed: int) -> Drawn:
    """The spec for a seed: the first draw that is sound."""
    for attempt in range(200):
        drawn = draw(random.Random(f"repl-fx/{seed}/{attempt}"))
        if _sound(seed, drawn):
            return drawn
    raise AssertionError(f"no network for seed {seed}")


def make(seed: int) -> nn.Module:
    """The network for a seed, in training mode."""
    return _built(seed, network(seed))[0]


def example_inputs(seed: int, step: int = 0, batch: int | None = None) -> Inputs:
    """Inputs of a network.

    Args:
        seed: of the network.
        step: other values for each.
        batch: another size of the batch than the network's own.
    """
    return _inputs(seed, network(seed).spec, step, batch)


def describe(seed: int) -> list[str]:
    """The features of a network."""
    drawn = network(seed)
    spec = drawn.spec
    found = [f"stream:{spec.stream}", f"width:{spec.width}", f"length:{spec.length}", f"batch:{spec.batch}"]
    found += [f"in:{spec.inputs}", f"out:{spec.outputs}", f"stem:{spec.stem}", f"head:{spec.head}"]
    found += [f"model:{name}" for name in sorted(spec.features)]
    if spec.state:
        found.append(f"state:{spec.state}")
    for repeat in spec.repeats:
        found.append(f"repeat:{repeat.depth}x{repeat.container}{' with another' if repeat.other else ''}")
        found += repeat.block.labels()
    return found + [f"hook:{words}" for words in _built(seed, drawn)[1]]
