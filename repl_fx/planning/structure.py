"""The text of a model: what it is told from others by, before it is rewritten and after."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from repl_fx.planning.part_repeats import PartRepeats
from repl_fx.tracing.fingerprint import lines_around, lines_of_code
from repl_fx.tracing.parts.capture import graphs_in

# The word before the shape of a tensor of fractions.
_PRECISION = re.compile(r"\b(?:bfloat|float|complex)\d\w*(?=\[)")


def structure_of(parts: Sequence[PartRepeats], model: nn.Module | None) -> tuple[str, ...]:
    """The text of all parts, and of the model around them; that of the graph where the whole model is one."""
    if model is None:
        return parts[0].lines
    return _text({part.path: part.lines for part in parts}, model)


def lines_made(module: nn.Module) -> tuple[str, ...]:
    """The text of the code of a rewritten module: its graphs, and what stays Python around them.

    Precision, and subclasses that a library makes of a layer's class to wrap it, leave no trace in it.
    """
    text = _text({path: lines_of_code(gm) for path, gm in graphs_in(module).items()}, module)
    return tuple(_PRECISION.sub("", line) for line in text)


def _text(graphs: Mapping[str, Iterable[str]], model: nn.Module) -> tuple[str, ...]:
    """The lines of graphs, by path, and of the model around them; those of the graph where the whole model is one."""
    if "" in graphs:
        return tuple(graphs[""])
    inside = (f"{path}: {line}" for path in sorted(graphs) for line in graphs[path])
    return *inside, *lines_around(model, graphs)
