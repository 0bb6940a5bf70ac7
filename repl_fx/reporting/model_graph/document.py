"""The document of a model: structures that JSON is written from, and msgspec reads back, schema `repl-fx/report/1`.

A field that has its default is left out. Large tables are arrays in place of objects: `Node`, `Box` and `Route` have
their fields in the order in which they stand here. Words, values, groups and nodes are named by their places, from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from repl_fx.display.numbers import count, size
from repl_fx.rewriting.block_reports import Status

SCHEMA: Literal["repl-fx/report/1"] = "repl-fx/report/1"

NodeKind = Literal["input", "output", "layer", "operator", "parameter", "synthesis"]
GroupKind = Literal["graph", "module", "repeat", "block", "surrogate"]


class _Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """A part of the document."""


class _TableRow(msgspec.Struct, frozen=True, array_like=True):
    """A row of a table, which is an array in JSON."""


class Value(_Record, frozen=True):
    """A kind of value.

    Attributes:
        text: the value in words, such as `2×197×768 float32`.
        shape: of a tensor; sizes of the example inputs where they are dynamic.
        dtype: of a tensor.
    """

    text: str
    shape: tuple[int, ...] | None = None
    dtype: str | None = None


class Node(_TableRow, frozen=True):
    """A node of a graph.

    Attributes:
        name: of the node in the graph, and in its counterpart before or after.
        label: place in `Graph.words` of the word to show.
        kind: `parameter` has buffers and constants too; `synthesis` computes weights of a surrogate.
        group: place of the group that holds it.
        target: place in `Graph.words` of the operator, or of the path of the layer or tensor.
        value: place in `Graph.values`.
        parameters: elements of the parameters it reads itself; a surrogate's are without those of other blocks.
        flops, kept: floating point operations of a forward pass, and bytes that it makes autograd keep for the backward
            pass; null where the model does not run on shapes alone.
        source: place in `Graph.words` of file and line; null where it is not known.
    """

    name: str
    label: int
    kind: NodeKind
    group: int
    target: int
    value: int
    parameters: int
    flops: int | None
    kept: int | None
    source: int | None


class Group(_Record, frozen=True):
    """A group of nodes: a module, a repeat, one of its blocks or what stands in for it.

    Attributes:
        name: path of the module, name of the repeat or of the block, as `--blocks` takes it; unique with the kind but
            for modules that blocks cut into pieces.
        label: the short word to show.
        children: what lies in it directly, in program order: a node by its place, group number i as -1 - i.
        layout: key of its layout in `Document.layouts`; groups that look the same have the same.
        nodes: number of nodes in it, at any depth.
        parameters: elements of the parameters that its nodes read, each tensor once.
        flops, kept: sums over its nodes.
        parent: place of the group around it; the first group has none.
        inputs: nodes outside whose values its nodes take.
        outputs: nodes inside whose values others take.
        type: class of the module.
        aliases: other names of a block, as one repeat may lie across others.
        repeat: name of the repeat that a block is one of.
        copies: number of blocks of a repeat.
        status: of a block; of nothing else.
        surrogate: key of what stands in for a block that is replaced.
        reason: why a block was refused, or why it has no other surrogate.
        counterpart: place of the same group in the other view.
    """

    name: str
    label: str
    kind: GroupKind
    children: tuple[int, ...]
    layout: str
    nodes: int
    parameters: int
    flops: int | None = None
    kept: int | None = None
    parent: int | None = None
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    type: str | None = None
    aliases: tuple[str, ...] = ()
    repeat: str | None = None
    copies: int | None = None
    status: Status | None = None
    surrogate: str | None = None
    reason: str | None = None
    counterpart: int | None = None


class Graph(_Record, frozen=True):
    """A graph: the whole model, or a part of it.

    Attributes:
        id: path of the part; empty for the whole model.
        label: class of the module.
        tracer: by which it was captured.
        groups: the tree; the first is all of it, and parents stand before their children.
        nodes: in program order.
        edges: pairs of nodes, from a value to one that reads it.
    """

    id: str
    label: str
    tracer: str
    words: tuple[str, ...]
    values: tuple[Value, ...]
    groups: tuple[Group, ...]
    nodes: tuple[Node, ...]
    edges: tuple[tuple[int, int], ...]

    def above(self, place: int) -> list[int]:
        """The places of the groups around a group, from the outermost."""
        parent = self.groups[place].parent
        return [] if parent is None else [*self.above(parent), parent]

    def inside(self, place: int) -> list[int]:
        """The places of the groups that lie directly in a group."""
        return [-1 - child for child in self.groups[place].children if child < 0]


class View(_Record, frozen=True):
    """The graphs of a model, those of all parts in the order of their first calls."""

    graphs: tuple[Graph, ...]


class Views(_Record, frozen=True):
    """The graphs before, and after where the model was transformed."""

    before: View
    after: View | None = None


class Box(_TableRow, frozen=True):
    """The place of one thing in a layout: its upper left corner and its size, in pixels; of size 0 it is not drawn."""

    x: int
    y: int
    width: int
    height: int


class Route(_TableRow, frozen=True):
    """An edge in a layout: the boxes it joins by place, and its points as x, y, x, y and so on."""

    source: int
    target: int
    points: tuple[int, ...]


class Layout(_Record, frozen=True):
    """The picture of a group with each group inside it as one box.

    Attributes:
        boxes: of the group's `children`, then of its `inputs`, then of its `outputs`.
    """

    width: int
    height: int
    boxes: tuple[Box, ...]
    routes: tuple[Route, ...]


class Cost(_Record, frozen=True):
    """Costs of a model; `flops` and `kept` are of one call of each part; null where it does not run on shapes alone."""

    parameters: int
    flops: int | None = None
    kept: int | None = None


# The costs of a model or a part of it: their field, their name, and how they are written.
COSTS: tuple[tuple[str, str, Callable[[int | None], str]], ...] = (
    ("parameters", "parameters", count),
    ("flops", "forward FLOPs", count),
    ("kept", "bytes kept for backward", size),
)


class Totals(_Record, frozen=True):
    """Costs before and after, with the batch that they were counted at."""

    batch: int
    before: Cost
    after: Cost | None = None


class MadeBy(_Record, frozen=True):
    """Versions that made the document, and when."""

    repl_fx: str
    torch: str
    at: str


class Input(_Record, frozen=True):
    """An example input; `dynamic` are its dimensions that stayed dynamic."""

    name: str
    value: str
    dynamic: tuple[int, ...] = ()


class EagerModule(_Record, frozen=True):
    """A module that is no graph, and why."""

    path: str
    type: str
    reason: str


class ModelFacts(_Record, frozen=True):
    """The model.

    Attributes:
        spec: as it was given.
        type: its class.
        eager: modules that were tried and are no graphs.
        notes: remarks, a line each.
    """

    spec: str
    type: str
    tracer: str
    inputs: tuple[Input, ...]
    eager: tuple[EagerModule, ...] = ()
    notes: tuple[str, ...] = ()


class RepeatRow(_Record, frozen=True):
    """A repeat: its blocks, and the elements of all its parameters."""

    name: str
    blocks: tuple[str, ...]
    nodes_per_block: int
    parameters: int
    kind: Literal["exact", "similar", "shared"]


class BlockRow(_Record, frozen=True):
    """The outcome for a block, and its costs before and after.

    Attributes:
        number: as `--blocks` takes it.
        neighbours: the blocks that its surrogate is made from.
        left: what is left of a block that stands in for itself in a smaller size.
        layers: of a block that is a part of the module with its name, the children that it has.
        score: the score of the block that the plan was made from.
    """

    number: int
    block: str
    repeat: str
    status: Status
    parameters_before: int
    parameters_after: int
    surrogate: str | None = None
    neighbours: tuple[str, ...] = ()
    left: str = ""
    layers: tuple[str, ...] = ()
    settings: Mapping[str, Any] | None = None
    reason: str | None = None
    flops_before: int | None = None
    flops_after: int | None = None
    kept_before: int | None = None
    kept_after: int | None = None
    score: float | None = None


class PlanTable(_Record, frozen=True):
    """The plan with what became of each block.

    Attributes:
        options: `seed`, and of a plan for a budget what it expected to be left of each cost.
    """

    options: Mapping[str, Any]
    blocks: tuple[BlockRow, ...]


class Curve(_Record, frozen=True):
    """One figure over a run: pairs of step and value. `run` names one of several."""

    name: str
    points: tuple[tuple[int, float], ...]
    run: str = ""

    @property
    def label(self) -> str:
        """The name of the run, where there are several, else its own."""
        return self.run or self.name

    def thinned(self, most: int) -> Curve:
        """The curve with about so many points, in even distances, with its first and its last."""
        stride = -(-len(self.points) // most) or 1
        ends = () if (len(self.points) - 1) % stride == 0 else self.points[-1:]
        return msgspec.structs.replace(self, points=(*self.points[::stride], *ends))


class VariantOutcome(_Record, frozen=True):
    """The outcome of one variant of a comparison.

    Attributes:
        variant: original, depth-pruned or rewritten.
        parameters: of the model that was trained.
        figures: of the last evaluation, by name: a value for each seed.
        inputs_per_second: in training, by seed; empty for runs that were interrupted.
        memory_mib: most memory of the device in training, by seed; empty on a CPU.
        reason: why the variant was not trained; empty where it was.
    """

    variant: str
    parameters: int = 0
    figures: Mapping[str, Sequence[float]] = {}
    inputs_per_second: Sequence[float] = ()
    memory_mib: Sequence[float] = ()
    reason: str = ""


class TrainingFacts(_Record, frozen=True):
    """The facts of a training run.

    Attributes:
        curves: learning curves.
        figures: those of the last evaluation, by the name of the model: `trained`, or `original`, `cut`, `healed`.
        comparison: of variants of the model.
    """

    curves: tuple[Curve, ...] = ()
    figures: Mapping[str, Mapping[str, float]] = {}
    comparison: tuple[VariantOutcome, ...] | None = None


class Layer(_Record, frozen=True):
    """An inner value of the exported graph compared with PyTorch's; numbers that JSON cannot write are words.

    Attributes:
        node: its name in the graph.
        module: path of the module it calls, or block that it stands in for; empty for other operators.
        max_abs: largest difference.
        scale: largest number of PyTorch's.
    """

    node: str
    module: str
    max_abs: float | str
    scale: float | str
    passed: bool

    @property
    def error(self) -> float:
        """The largest difference as a part of the largest number."""
        return float(self.max_abs) / (float(self.scale) or 1.0)


class Verified(_Record, frozen=True):
    """The comparison of an ONNX file with PyTorch.

    Attributes:
        part: path of the part; empty for the whole model.
        summary: the verdict in a line.
        outputs: a row for each output and batch size, as `Difference` has them.
        layers: in the order of execution; empty where they were not compared.
    """

    part: str
    equivalent: bool
    summary: str
    outputs: tuple[Mapping[str, Any], ...] = ()
    layers: tuple[Layer, ...] = ()
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Document(_Record, frozen=True, kw_only=True):
    """All that is known of a model.

    Attributes:
        layouts: by the keys that groups have.
        scores: as `Scores.to_json` writes them.
        verify: one for each part that was exported.
        bench: as `repl-fx bench` writes it.
    """

    schema: Literal["repl-fx/report/1"]
    made: MadeBy
    model: ModelFacts
    totals: Totals
    views: Views
    layouts: Mapping[str, Layout]
    repeats: tuple[RepeatRow, ...]
    plan: PlanTable | None = None
    scores: Mapping[str, Any] | None = None
    training: TrainingFacts | None = None
    verify: tuple[Verified, ...] | None = None
    bench: Mapping[str, Any] | None = None

    def to_json(self) -> str:
        """The document as JSON text on one line; no markup in it is escaped."""
        return msgspec.json.encode(self).decode()
