"""The nesting of a graph's nodes: which modules, repeats and blocks each lies in, outermost first.

    blocks.3.attn.qkv  ->  repeat blocks / block blocks.3 / module blocks.3.attn

A node's steps are its way down a tree, so the groups of a graph are a tree and each node lies in one, whatever modules
and blocks have in common: a module that two blocks cut is a group in each of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import fx

from repl_fx._torch import module_stack
from repl_fx.finding.blocks import Block, Repeat
from repl_fx.finding.node_table import common_path
from repl_fx.graph.grouping import grouped
from repl_fx.passes.replace_blocks import block_of

_Path = tuple[str, ...]


@dataclass(frozen=True)
class StepDown:
    """One step down: into a module by its path, into a repeat or into a block by its name."""

    kind: Literal["module", "repeat", "block"]
    name: str


Steps = tuple[StepDown, ...]


@dataclass(frozen=True, eq=False)
class _Frame:
    """The nodes of a repeat or of a block.

    Attributes:
        path: of the module that it lies in, of a repeat; that it takes the place of, of a block.
        names: of a block; the one in its step is the first.
    """

    step: StepDown
    path: _Path
    nodes: frozenset[fx.Node]
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Nesting:
    """The steps to each node of a graph.

    Attributes:
        steps: by the name of the node.
        blocks: the steps to each block that is a group, by each of its names.
        names: the names of each block that is a group, by the one in its step.
        modules: the path of each block that has the place of one module, by the name in its step.
    """

    steps: Mapping[str, Steps]
    blocks: Mapping[str, Steps]
    names: Mapping[str, tuple[str, ...]]
    modules: Mapping[str, str]


def nest(gm: fx.GraphModule, repeats: Sequence[Repeat], replaced: Iterable[str] = ()) -> Nesting:
    """Nest the nodes of a graph.

    Of blocks that overlap, as those of similar repeats may, the first is a group: replaced ones before all others,
    then those of exact repeats. Blocks of the same nodes are one group.

    Args:
        gm: a captured graph.
        repeats: found in it.
        replaced: names of blocks that are to be groups.
    """
    frames = _frames(repeats, set(replaced))
    # The larger of two that share nodes holds the smaller; of equal ones a repeat holds its one block.
    outer_first = sorted(frames, key=lambda frame: (-len(frame.nodes), frame.step.kind == "block"))
    inside = grouped((node, frame) for frame in outer_first for node in frame.nodes)
    homes = _homes(frames, inside)
    steps: dict[fx.Node, Steps | None] = {}
    for node in gm.graph.nodes:
        path = _path(node)
        if node in inside:
            steps[node] = _way(inside[node], path or ())
        elif node.op in ("placeholder", "output"):
            steps[node] = ()
        elif path is None:
            steps[node] = None
        else:
            home = next((homes[path[:end]] for end in range(len(path), 0, -1) if path[:end] in homes), ())
            # Of several blocks at one path nothing but the readers tells which a node belongs to.
            steps[node] = None if home is None else _way(home, path)
    found = _settled(gm.graph, _shortened(steps))
    blocks: dict[str, Steps] = {}
    for frame in frames:
        way = found[next(iter(frame.nodes)).name]
        blocks |= dict.fromkeys(frame.names, way[: way.index(frame.step) + 1])
    names = {frame.step.name: tuple(frame.names) for frame in frames if frame.names}
    modules = {home[-1].step.name: ".".join(path) for path, home in homes.items() if home is not None}
    return Nesting(found, blocks, names, modules)


def nest_rewritten(graph: fx.Graph, before: Nesting) -> Mapping[str, Steps]:
    """The steps to each node of a rewritten graph, by its name; what stands in for a block lies where the block lay."""
    steps: dict[fx.Node, Steps | None] = {}
    for node in graph.nodes:
        block = block_of(node)
        if "replaces" not in node.meta and node.name in before.steps:
            steps[node] = before.steps[node.name]
        else:
            steps[node] = None if block is None else before.blocks.get(block)
    return _settled(graph, steps)


def _frames(repeats: Sequence[Repeat], replaced: set[str]) -> list[_Frame]:
    """Repeats and blocks none of which overlaps another but by holding it."""
    frames: list[_Frame] = []

    def at(repeat: Repeat) -> tuple[bool, bool]:
        return not any(block.name in replaced for block in repeat.blocks), repeat.similar

    for repeat in [inner for outer in sorted(repeats, key=at) for inner in _with_children(outer)]:
        added = [
            _Frame(StepDown("block", block.name), _own_path(block), block.node_set, [block.name])
            for block in repeat.blocks
        ]
        if not repeat.similar:
            around = _frame_around(repeat, added)
            if not all(_fits(frame, frames) for frame in (around, *added)):
                continue
            frames.append(around)
        for frame in added:
            same = next((one for one in frames if one.step.kind == "block" and one.nodes == frame.nodes), None)
            if same is not None:
                same.names.append(frame.step.name)
            elif _fits(frame, frames):
                frames.append(frame)
    return frames


def _frame_around(repeat: Repeat, added: Sequence[_Frame]) -> _Frame:
    """The frame of a repeat around those of its blocks."""
    pairs = zip(added, repeat.blocks, strict=True)
    paths = [frame.path[:-1] if block.module_path else frame.path for frame, block in pairs]
    everything = frozenset().union(*(frame.nodes for frame in added))
    return _Frame(StepDown("repeat", repeat.name), common_path(paths), everything)


def _with_children(repeat: Repeat) -> Iterator[Repeat]:
    """A repeat, and those inside its copies whose blocks are modules."""
    yield repeat
    first = repeat.blocks[0]
    places = {node: k for k, node in enumerate(first.nodes)}
    for child in repeat.children:
        if any(block.module_path is None or not places.keys() >= block.node_set for block in child.blocks):
            continue
        yield from _with_children(child)
        for number, copy in enumerate(repeat.blocks[1:], start=1):
            # Node k of one copy does what node k of another does.
            blocks = tuple(_moved(block, [copy.nodes[places[node]] for node in block.nodes]) for block in child.blocks)
            yield replace(child, name=f"{child.name}#{number}", blocks=blocks, children=())


def _moved(block: Block, nodes: Sequence[fx.Node]) -> Block:
    paths = [path for node in nodes if (path := _path(node)) is not None]
    own = ".".join(common_path(paths))
    return replace(block, name=own or f"{block.name}@{nodes[0].name}", nodes=tuple(nodes), module_path=own or None)


def _fits(frame: _Frame, frames: Sequence[_Frame]) -> bool:
    return all(
        frame.nodes <= other.nodes or other.nodes <= frame.nodes or frame.nodes.isdisjoint(other.nodes)
        for other in frames
    )


def _own_path(block: Block) -> _Path:
    """The path that a block lies at: by its parameters, as additions often stand in the module around."""
    if block.module_path is not None:
        return tuple(block.module_path.split("."))
    owners = [tuple(path.split(".")[:-1]) for path in block.parameters]
    return common_path(owners or [_path(node) or () for node in block.nodes])


def _path(node: fx.Node) -> _Path | None:
    """The path of the module that a node is code of; None where it is not known."""
    stack = module_stack(node)
    if not stack:
        # A module's own stack says less than its name; that of the model itself is empty, too.
        if node.op == "call_module":
            return tuple(str(node.target).split(".")[:-1])
        return () if node.meta.get("nn_module_stack") else None
    path = tuple(stack[-1].split("."))
    return path[:-1] if node.op == "call_module" and stack[-1] == node.target else path


def _homes(frames: Iterable[_Frame], inside: Mapping[fx.Node, list[_Frame]]) -> dict[_Path, list[_Frame] | None]:
    """The frames around what lies at the path of a block; None where several blocks lie there."""
    homes: dict[_Path, list[_Frame] | None] = {}
    for frame in frames:
        if frame.step.kind == "block" and frame.path:
            around = inside[next(iter(frame.nodes))]
            homes[frame.path] = None if frame.path in homes else around[: around.index(frame) + 1]
    return homes


def _way(frames: Sequence[_Frame], path: _Path) -> Steps:
    """The steps through some frames, and through modules between and below them, to a path."""
    steps: list[StepDown] = []
    at: _Path = ()

    def descend(to: _Path) -> None:
        nonlocal at
        shared = len(common_path([at, to]))
        steps.extend(StepDown("module", ".".join(to[:end])) for end in range(shared + 1, len(to) + 1))
        at = to if len(to) > shared else at

    for frame in frames:
        if frame.step.kind == "repeat":
            descend(frame.path)
        else:
            descend(frame.path[:-1])
            if frame.path[: len(at)] == at:
                at = frame.path
        steps.append(frame.step)
    descend(path)
    return tuple(steps)


def _settled(graph: fx.Graph, steps: Mapping[fx.Node, Steps | None]) -> dict[str, Steps]:
    """The steps to all nodes: one that says of itself not where it lies, lies with its readers, outside of repeats."""
    known: dict[fx.Node, Steps] = {}
    for node in reversed(graph.nodes):
        way = steps[node]
        if way is None:
            way = common_path(known[user] for user in node.users)
            if way and way[-1].kind == "repeat":
                way = way[:-1]
        known[node] = way
    return {node.name: known[node] for node in graph.nodes}


def _shortened(steps: Mapping[fx.Node, Steps | None]) -> dict[fx.Node, Steps | None]:
    """The steps without modules that hold one other group and nothing else."""
    ways = {way for way in steps.values() if way is not None}
    below = grouped((way[:end], step) for way in ways for end, step in enumerate((*way, None)))
    alone = {way for way, found in below.items() if len({*found}) == 1 and None not in found}
    empty = {way for way in alone if way and way[-1].kind == "module"}

    def short(way: Steps) -> Steps:
        return tuple(step for end, step in enumerate(way, start=1) if way[:end] not in empty)

    return {node: None if way is None else short(way) for node, way in steps.items()}
