"""Networks whose modules, parameters, buffers, arguments and results have names that are no names of Python.

Each is the same small network, but for its names: quotes, newlines, backslashes, braces, lookalikes of a dot, letters
that Python reads under another form, keywords, and names that torch.fx, the exporters and repl-fx give to things of
their own.
"""

from __future__ import annotations

from functools import partial
from random import Random

import torch
from torch import Tensor, nn

from tests.attack.judge import Judge, Verdict
from tests.attack.steps import Inputs

QUOTES = ('a"b', "a'b", "a'\"b", '"""', "'''")
CONTROL = ("a\nb", "a\rb", "a\tb", "a\x00b", "a\\", "a\\nb", "\\x41", "\u2028")
MARKS = ("a{b}", "{", "%s", "{0!r}", "#", "a b", " ", "1a", "0", "-", "a/b", "$", "a:b", "a, b", "a)", "f(self)")
LETTERS = ("größe", "层", "\ufb01", "a\u2024b", "\U0001d499", "\u0130", "e\u0301", "🙂", "\udc80")
WORDS = ("class", "lambda", "None", "True", "print", "__class__x", "_", "__init", "async", "match")
TAKEN = (
    "self", "forward_", "x", "input_1", "output", "placeholder", "get_attr", "graph", "code", "meta", "torch",
    "linear", "root", "graph_root", "surrogates", "synthesis", "traced_constant_0", "device_anchor", "folded_weight",
    "lifted", "batch", "out_0", "args_0", "L", "args", "kwargs", "surrogate_1",
)  # fmt: skip
# Arguments have names of Python, but for one that is to be refused.
ARGUMENTS = ("größe", "graph", "output", "root", "L", "input_1", "a b")
NAMES = QUOTES + CONTROL + MARKS + LETTERS + WORDS + TAKEN


class NamedBlock(nn.Module):
    """A residual block; a name each for a layer, a parameter and a buffer."""

    def __init__(self, layer: str, scale: str, offset: str) -> None:
        super().__init__()
        self.layer, self.scale, self.offset = layer, scale, offset
        self.add_module(layer, nn.Linear(8, 8))
        self.add_module("last", nn.Linear(8, 8))
        self.register_parameter(scale, nn.Parameter(torch.rand(8)))
        self.register_buffer(offset, torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.get_submodule(self.layer)(x) * self._parameters[self.scale] + self._buffers[self.offset]
        made: Tensor = x + self.get_submodule("last")(torch.tanh(hidden))
        return made


class NamedNet(nn.Module):
    """Three such blocks under a name of their own; an argument and a result by name."""

    def __init__(self, names: list[str], by_name: bool) -> None:
        super().__init__()
        self.names, self.by_name = names, by_name
        self.stem = nn.Linear(5, 8)
        self.add_module(names[0], nn.ModuleList(NamedBlock(*names[1:4]) for _ in range(3)))

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor | dict[str, Tensor]:
        x = self.stem(kwargs[self.names[4]] if self.by_name else args[0])
        for block in self._modules[self.names[0]].children():  # type: ignore[union-attr]
            x = block(x)
        return {self.names[5]: x} if self.by_name else x


def draw(seed: int) -> tuple[list[str], bool]:
    """Names for the places that have one, all of them different; and whether arguments and results have one, too."""
    chance = Random(f"names/{seed}")
    first = NAMES[seed % len(NAMES)]
    others = chance.sample([name for name in NAMES if name != first and name not in ARGUMENTS], 5)
    others[3] = chance.choice([name for name in ARGUMENTS if name != first])
    return [first, *others] if chance.random() < 0.5 else [others[0], first, *others[1:]], chance.random() < 0.3


def make(names: list[str], by_name: bool) -> nn.Module:
    """The network with some names."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return NamedNet(names, by_name)


def inputs(names: list[str], by_name: bool, step: int, batch: int | None) -> Inputs:
    """Inputs of the network."""
    x = torch.randn(batch or 3, 5, generator=torch.Generator().manual_seed(step))
    return ((), {names[4]: x}) if by_name else ((x,), {})


def judge_names(seed: int) -> Verdict:
    """Judge the network of a seed."""
    names, by_name = draw(seed)
    features = [f"names:{names!a}", f"by name:{by_name}"]
    return Judge(seed, partial(make, names, by_name), partial(inputs, names, by_name), features).run()
