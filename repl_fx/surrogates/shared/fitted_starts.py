"""Notes of surrogates for those who fit them to a trained network: the parameters that their output is affine in.

A surrogate ends in an operator whose value goes to the stream by additions alone, so that its output is affine in the
parameters of that operator; those of the others stay as they start. `Builder.fitted` puts such notes on the node that
calls the module that has the parameters: a synthesis, or a norm.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from repl_fx.graph.notes import Note


@dataclass(frozen=True)
class Term:
    """Some numbers of a parameter of one dimension: one for each channel of the output, or a single one for all.

    Attributes:
        parameter: its path in the module.
        start, count: which of its numbers.
    """

    parameter: str
    start: int
    count: int


@dataclass(frozen=True)
class ChannelTerms:
    """Parameters of which each channel of the output is an affine function of its own: gains of its units, a bias.

    Attributes:
        silent: whether the output is that of the stream alone where all of them are zero; else they are drawn to where
            they start.
    """

    terms: tuple[Term, ...]
    silent: bool = True


@dataclass(frozen=True)
class LastLayer:
    """The weight (out, in, …), or (in, out), and bias of a linear layer or convolution.

    Attributes:
        weight, bias: for each, which result of the module it is, and the parameter that makes it.
        gains: whether that of the weight holds gains of its columns; else it is the weight.
        transposed: whether the weight is stored (in, out).
    """

    weight: tuple[int, str]
    bias: tuple[int, str] | None
    gains: bool
    transposed: bool = False

    @classmethod
    def among(
        cls, names: Iterable[str], weight: str, bias: str, *, gains: str = "", transposed: bool = False
    ) -> LastLayer:
        """The layer of a weight, and of a bias where there is one, that are among the named results of a module.

        Each is made by the parameter of its own name, or the weight by `gains`.
        """
        places = {name: (place, name) for place, name in enumerate(names)}
        return cls((places[weight][0], gains or weight), places.get(bias), bool(gains), transposed)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the parameters that make the weight and the bias."""
        return tuple(name for _, name in filter(None, (self.weight, self.bias)))


@dataclass(frozen=True)
class WholeMap:
    """All of a linear map of the stream, or, where it is merged, of the part that the block before adds to it."""

    merged: bool


@dataclass(frozen=True)
class UnitsOf:
    """Hidden units of a block, of which some stay.

    Attributes:
        value: name of the node of the captured graph whose value the layers behind them read.
        axis: of the units in it.
        size, count: how many there were, and how many stay.
        group: how many in a row stay or go together.
    """

    value: str
    axis: int
    size: int
    count: int
    group: int = 1


@dataclass(frozen=True)
class CutLayer:
    """A linear layer or convolution that lost rows, columns or both.

    Attributes:
        weight, bias: names of the parameters, (out, in, …) and (out).
        of_weight, of_bias: paths of those that they are cut from.
        transposed: whether weights are stored (in, out).
        rows, columns: the hidden units that it makes, and those that it reads, by number.
    """

    weight: str
    bias: str | None
    of_weight: str
    of_bias: str | None
    transposed: bool
    rows: int | None
    columns: int | None


@dataclass(frozen=True)
class CutVector:
    """A number for each hidden unit, of a norm: its path, that of those that it is cut from, and which units."""

    path: str
    of: str
    units: int


@dataclass(frozen=True)
class KeptUnits:
    """The hidden units of a block that stay: those that tell most of what all of them write."""

    hidden: tuple[UnitsOf, ...]
    layers: tuple[CutLayer, ...]
    vectors: tuple[CutVector, ...] = ()


FittedStart = ChannelTerms | LastLayer | WholeMap | KeptUnits
# On a node that calls a module of a surrogate's own: what of it can be fitted, one after the other.
FITTED: Note[tuple[FittedStart, ...]] = Note("fitted", tuple)
