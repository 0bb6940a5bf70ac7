"""Alike calls of modules are traced once, and what tells them apart does."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import repl_fx
from repl_fx._torch import module_stack, pytree
from repl_fx.graph.boundaries import boundaries
from repl_fx.tracing.capture import capture, check_capture
from repl_fx.tracing.stamping import Stamps

SCALE = 1.0


class Block(nn.Module):
    """A residual block with an inner module; `number` is read where `by_number` says so."""

    def __init__(self, number: int = 0, by_number: bool = False) -> None:
        super().__init__()
        self.number, self.by_number = number, by_number
        self.norm, self.inner = nn.LayerNorm(8), Inner()
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(self.norm(x)) * self.gain
        made: Tensor = x + (y * self.number if self.by_number else y)
        return made


class Inner(nn.Module):
    """Two layers, with a drop between them."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.drop, self.down = nn.Linear(8, 16), nn.Dropout(0.1), nn.Linear(16, 8)
        self.register_buffer("shift", torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.drop(self.up(x).relu())) + self.shift  # type: ignore[no-any-return]


class Chain(nn.Module):
    """Blocks, one after the other."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale
        for number, block in enumerate(self.blocks):
            x = self.step(number, block, x)
        return x

    def step(self, number: int, block: nn.Module, x: Tensor) -> Tensor:
        """One of the blocks."""
        return block(x)  # type: ignore[no-any-return]


@pytest.fixture
def stamped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The classes of the modules of which calls are stamped, one for each call."""
    found: list[str] = []
    own = Stamps._stamped

    def note(self: Stamps, region: Any, module: nn.Module, *rest: Any) -> Any:
        found.append(type(module).__name__)
        return own(self, region, module, *rest)

    monkeypatch.setattr(Stamps, "_stamped", note)
    return found


def described(gm: fx.GraphModule) -> list[Any]:
    """The nodes of a graph, up to their names, with what passes read from them."""
    numbers = {node: number for number, node in enumerate(n for n in gm.graph.nodes if n.op != "get_attr")}

    def shown(node: fx.Node) -> Any:
        return str(node.target) if node.op == "get_attr" else numbers[node]

    found = []
    for node in numbers:
        given = pytree.tree_map_only(fx.Node, shown, (list(node.args), dict(node.kwargs)))
        values = [(str(v.shape), v.dtype) for v in pytree.tree_leaves(node.meta.get("val")) if isinstance(v, Tensor)]
        at = sorted((b.call.path, len(b.call.calls), str(b.argument), b.leaf) for b in boundaries(node))
        target = "" if node.op == "output" else str(node.target)
        found.append(
            (node.op, target, str(given), values, module_stack(node), at, bool(node.meta.get("passes_through")))
        )
    return found


def whole(model: nn.Module, args: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> fx.GraphModule:
    """The graph of a model every call of which is traced."""
    with monkeypatch.context() as patch:
        patch.setenv("REPL_FX_STAMP", "0")
        return capture(model, args)


def test_one_of_each_kind_is_traced_and_the_graph_is_the_same(
    stamped: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = Chain(*(Block(n) for n in range(5))), torch.randn(2, 3, 8)
    gm = capture(model, (x,))
    assert stamped == ["Block"] * 4
    assert described(gm) == described(whole(model, (x,), monkeypatch))
    assert check_capture(model, gm, (x,))
    assert {name for name, _ in gm.named_parameters()} == {name for name, _ in model.named_parameters()}


def test_the_setting_turns_it_off(stamped: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPL_FX_STAMP", "0")
    capture(Chain(Block(), Block()), (torch.randn(2, 3, 8),))
    assert not stamped


class Rated(nn.Module):
    """Drops by a function at the rate of its layer, as attention does."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.up, self.drop = nn.Linear(8, 8), nn.Dropout(rate)

    def forward(self, x: Tensor) -> Tensor:
        return x + nn.functional.dropout(self.up(x), self.drop.p, self.training)


class Counting(Block):
    """Counts its calls, in the file's globals or in an object that all share."""

    def __init__(self, count: Callable[[], float]) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.count()


class Assigns(Block):
    """Rebinds a buffer in each call."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 1))
        return x + self.mean


class Shared(Chain):
    """Hands its first activation on by an object that all blocks read, past their arguments."""

    def __init__(self) -> None:
        self.store = SimpleNamespace(first=None)
        super().__init__(*(Reads(self.store) for _ in range(3)))

    def step(self, number: int, block: nn.Module, x: Tensor) -> Tensor:
        self.store.first = x if number == 0 else self.store.first
        return block(x)  # type: ignore[no-any-return]


class Reads(Block):
    """Adds what an object outside holds."""

    def __init__(self, store: SimpleNamespace) -> None:
        super().__init__()
        self.store = store

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (self.store.first if self.store.first is not None else 0)


class Loop(Chain):
    """Blocks that are called in a way of their own."""

    def __init__(self, call: Callable[[int, nn.Module, Tensor], Tensor], kind: type[nn.Module] = Block) -> None:
        super().__init__(*(kind() for _ in range(4)))
        self.call = call

    def step(self, number: int, block: nn.Module, x: Tensor) -> Tensor:
        return self.call(number, block, x)


class Takes(Block):
    """Takes a number and other tensors."""

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        for other in others:
            x = x + other
        return super().forward(x)


def _taking(others: Callable[[int, Tensor], tuple[Any, ...]]) -> nn.Module:
    """Blocks that are handed other arguments each."""
    return Loop(lambda number, block, x: block(x, *others(number, x)), Takes)


class Writes(Block):
    """Writes to its argument."""

    def forward(self, x: Tensor) -> Tensor:
        x[:, 0].add_(1)
        return super().forward(x)


class Over(Block):
    """Writes its result over its argument, and returns that."""

    def forward(self, x: Tensor) -> Tensor:
        x += self.inner(self.norm(x))
        return x


class Strided(Block):
    """A convolution whose setting no parameter shows."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 8, 3, stride=stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(super().forward(x).mT).mT  # type: ignore[no-any-return]


class Outer(Block):
    """A block inside a block, whose number the inner one reads."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.reads = Block(number + 1, by_number=True)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.reads(x)  # type: ignore[no-any-return]


class Recurs(Block):
    """A layer that keeps a list of its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.rnn(x)[0]  # type: ignore[no-any-return]


class Draws(Block):
    """Takes another way by a number of Python's generator."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training and random.random() < 0.5 else super().forward(x)


class Noisy(Block):
    """Adds noise of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand_like(x)


def _hooked() -> nn.Module:
    model = Chain(*(Block() for _ in range(3)))
    model.blocks[1].register_forward_hook(lambda module, args, result: result * 2)
    return model


def _tied() -> nn.Module:
    model = Chain(*(Block() for _ in range(4)))
    model.blocks[2].gain = model.blocks[0].gain
    return model


def _frozen() -> nn.Module:
    model = Chain(*(Block() for _ in range(3)))
    model.blocks[1].gain.requires_grad_(False)
    return model


def _parted() -> nn.Module:
    model = Chain(*(Block() for _ in range(3)))
    model.blocks[2].inner.drop = nn.Identity()  # type: ignore[union-attr]
    return model


def _counter() -> Callable[[], float]:
    calls = [0]

    def count() -> float:
        calls[0] = calls[0] % 3 + 1
        return float(calls[0])

    return count


def _in_another_mode(number: int, block: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=number > 1):
        return block(x).float()  # type: ignore[no-any-return]


def _without_gradients(number: int, block: nn.Module, x: Tensor) -> Tensor:
    if number != 1:
        return block(x)  # type: ignore[no-any-return]
    with torch.no_grad():
        return block(x)  # type: ignore[no-any-return]


_count = _counter()
# What must tell calls apart: the model, and how many of its blocks are stamped all the same.
APART: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "a number that the forward reads": (lambda: Chain(*(Block(n + 1, by_number=True) for n in range(3))), 0),
    "a hook": (_hooked, 1),
    "a parameter shared with one of them": (_tied, 2),
    "a parameter without a gradient": (_frozen, 1),
    "a layer of another class": (_parted, 1),
    "an autocast region": (lambda: Loop(_in_another_mode), 2),
    "a region without gradients": (lambda: Loop(_without_gradients), 2),
    "a number among the arguments": (lambda: _taking(lambda number, x: (number,)), 0),
    "arguments that are one object": (lambda: _taking(lambda n, x: (x, x) if n < 2 else (x, x * 2)), 2),
    "arguments that share memory": (lambda: _taking(lambda n, x: (x.view(x.shape),) if n < 2 else (x.clone(),)), 2),
    "other sizes": (lambda: _taking(lambda n, x: (x[:1] if n == 1 else x,)), 2),
    "a value that comes past the arguments": (Shared, 0),
    "an argument that is written to": (lambda: Chain(*(Writes() for _ in range(3))), 0),
    "an argument that is written over": (lambda: Chain(*(Over() for _ in range(3))), 0),
    "a setting of a layer": (lambda: Chain(*(Strided(1 + n // 3) for n in range(4))), 1),
    "a rate that the code around its layer reads": (lambda: Chain(*(Rated(0.1 * (n + 1)) for n in range(3))), 0),
    "a list of parameters": (lambda: Chain(*(Recurs() for _ in range(3))), 0),
    "a number that a module inside reads": (lambda: Chain(*(Outer(n) for n in range(3))), 0),
    "a buffer that is assigned": (lambda: Chain(*(Assigns() for _ in range(3))), 0),
    "a count that each call moves on": (lambda: Chain(*(Counting(_count) for _ in range(3))), 0),
}


@pytest.mark.parametrize("kind", APART)
def test_what_tells_calls_apart(kind: str, stamped: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    make, count = APART[kind]
    torch.manual_seed(0)
    model, x = make(), torch.randn(2, 3, 8)
    gm = capture(model, (x,))
    assert sum(name != "Inner" for name in stamped) == count
    assert described(gm) == described(whole(model, (x,), monkeypatch))
    assert check_capture(model, gm, (x,))


def test_surrogates_in_place_that_are_made_from_other_blocks(stamped: list[str]) -> None:
    x = torch.randn(2, 3, 8)
    model = repl_fx.transform(Chain(*(Block() for _ in range(5))), (x,), surrogate="blend", copy=True).model
    assert [type(module).__name__ for module in model.modules()].count("Block") == 3
    gm = capture(model, (x,))
    # Of the blocks that stay; each surrogate reads the weights of its own neighbours.
    assert [name for name in stamped if name != "Inner"][-2:] == ["Block"] * 2
    assert check_capture(model, gm, (x,))


def test_a_layer_that_is_skipped_by_a_draw(stamped: list[str]) -> None:
    model, x = Chain(*(Draws() for _ in range(3))), torch.randn(2, 3, 8)
    gm = capture(model, (x,))
    assert check_capture(model, gm, (x,))


def test_random_operators_draw_anew_in_each_copy(stamped: list[str]) -> None:
    model, x = Chain(*(Noisy() for _ in range(3))), torch.randn(2, 3, 8)
    gm = capture(model, (x,))
    assert stamped == ["Noisy"] * 2
    assert check_capture(model, gm, (x,))


def test_a_number_that_no_code_reads_tells_nothing_apart(stamped: list[str]) -> None:
    model, x = Chain(*(Block(number) for number in range(3))), torch.randn(2, 3, 8)
    capture(model, (x,))
    assert stamped == ["Block"] * 2
    # The attributes are where they were.
    assert [block.number for block in model.blocks] == [0, 1, 2]
    assert all("number" in vars(block) and "training" in vars(block) for block in model.blocks)


def test_one_module_that_is_called_again_and_again(stamped: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    block = Block()
    model, x = Chain(*[block] * 6), torch.randn(2, 3, 8)
    gm = capture(model, (x,))
    assert stamped == ["Block"] * 4
    assert described(gm) == described(whole(model, (x,), monkeypatch))
    assert check_capture(model, gm, (x,))


def test_a_result_that_only_later_calls_need() -> None:
    class Pair(Block):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            y = super().forward(x)
            return y, (y * 3).sum(-1)

    class Collects(Chain):
        def forward(self, x: Tensor) -> Tensor:
            x = x * self.scale
            for number, block in enumerate(self.blocks):
                x, extra = block(x)
                x = x + extra[..., None] if number == 2 else x
            return x

    model, x = Collects(*(Pair() for _ in range(3))), torch.randn(2, 3, 8)
    assert check_capture(model, capture(model, (x,)), (x,))


def test_an_argument_that_comes_back_as_it_was() -> None:
    class Through(Block):
        def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            return super().forward(x) * mask, mask

    class Hands(Chain):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
            for block in self.blocks:
                x, mask = block(x, mask)
            return x + mask

    model, args = Hands(*(Through() for _ in range(4))), (torch.randn(2, 3, 8), torch.rand(2, 3, 8))
    assert check_capture(model, capture(model, args), args)


def test_an_attribute_that_is_read_past_the_ways_of_python_is_not_put_aside() -> None:
    class Odd(Block):
        def forward(self, x: Tensor) -> Tensor:
            scale: int = vars(self).get("number", 5)
            return super().forward(x) * scale

    model, x = Chain(*(Odd(number) for number in range(3))), torch.randn(2, 3, 8)
    assert check_capture(model, capture(model, (x,)), (x,))


@pytest.mark.slow
def test_layers_whose_values_are_handed_out_by_hooks_are_traced_each() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    source = transformers.Dinov2Backbone(transformers.Dinov2Config(out_features=["stage1", "stage3"], **sizes)).eval()
    x = torch.randn(2, 3, 8, 8)
    gm = capture(source, (x,)).eval()
    with torch.no_grad():
        ours, theirs = (module(x).feature_maps for module in (gm, source))
    assert len(ours) == 2 and all(map(torch.equal, ours, theirs))
