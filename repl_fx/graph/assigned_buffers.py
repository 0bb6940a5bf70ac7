"""Buffers that a forward rebinds (`self.m = 0.9 * self.m + x.mean()`), as updates in the graph.

    before   self.ema.m = new                          torch.export drops it, or copies into the buffers of the root
    after    assign_buffer(get_attr ema, "m", new)

The graph rebinds the buffer as the source does, so that shape, dtype and autograd history are the source's, and a
buffer saved for a backward pass is not overwritten. While a forward is traced, the new values leave it as further
outputs; `repl_fx.tracing.lift_modules` turns these into the updates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, fx, nn

from repl_fx._torch import buffer_hooks_restored
from repl_fx.errors import Untraceable
from repl_fx.graph.kinds import kind_of
from repl_fx.graph.runtime import ModeSwitch, assign_buffer

# The attribute by which nodes reach the graph module itself; see `CapturedModule.graph_root`.
ROOT = "graph_root"


class BufferAssignments:
    """The buffers that one forward rebinds.

    Attributes:
        buffers: path of the module and name of the buffer, of each.
        values: the new tensors, in the same order.
        reshaped: those that get another shape or type, with a line that says so.
    """

    def __init__(self) -> None:
        self.buffers: list[tuple[str, str]] = []
        self.values: list[Tensor] = []
        self.reshaped: dict[str, str] = {}

    @contextmanager
    def noted(self, model: nn.Module, stands_aside: Callable[[nn.Module], bool]) -> Iterator[None]:
        """Note what the forward of a model rebinds meanwhile, and undo it.

        Args:
            model: the model that is traced.
            stands_aside: whether calls of a module are not traced into; such a module keeps its state by itself.

        Raises:
            Untraceable: the forward adds a buffer, or takes one away.
        """
        paths = {module: path for path, module in model.named_modules()}
        before = {module: dict(module._buffers) for module in paths}
        aside = set(filter(stands_aside, paths))
        self.buffers, self.values, self.reshaped = [], [], {}
        with buffer_hooks_restored() as hooks:
            hooks.clear()
            yield
            for module, path in paths.items():
                if module not in aside:
                    self._note(path, before[module], module._buffers)
                    module._buffers.update(before[module])
                elif _identities(before[module]) != _identities(module._buffers):
                    raise Untraceable(f"the forward around {path} replaces a buffer of it")

    def _note(self, path: str, before: dict[str, Tensor | None], after: dict[str, Tensor | None]) -> None:
        where = path or "the model"
        if before.keys() != after.keys():
            changed = ", ".join(sorted(before.keys() ^ after.keys()))
            raise Untraceable(f"the forward of {where} registers or deletes a buffer ({changed})")
        for name, value in after.items():
            if value is before[name]:
                continue
            old = before[name]
            if value is None:
                raise Untraceable(f"the forward of {where} sets its buffer {name} to None")
            if old is not None and (old.dtype != value.dtype or tuple(old.shape) != tuple(value.shape)):
                self.reshaped[f"{path}.{name}".lstrip(".")] = (
                    f"the forward of {where} changes the shape or type of its buffer {name}, from {kind_of(old)} "
                    f"to {kind_of(value)}; the graph is made for the first"
                )
            self.buffers.append((path, name))
            self.values.append(value)


def _identities(buffers: dict[str, Tensor | None]) -> dict[str, int]:
    return {name: id(buffer) for name, buffer in buffers.items()}


def add_assignments(graph: fx.Graph, buffers: Sequence[tuple[str, str]], values: Sequence[fx.Node]) -> None:
    """Add the nodes that rebind buffers, each behind the node that makes the new value.

    Args:
        graph: under construction; its output node is not there yet.
        buffers: path of the module and name of the buffer, of each.
        values: the nodes of the new values.
    """
    if not buffers:
        return
    first = next(node for node in graph.nodes if node.op != "placeholder")
    read = {f"{path}.{name}".lstrip(".") for path, name in buffers}
    # An old value that is used after the update has to be read before it.
    for node in list(graph.nodes):
        if node.op == "get_attr" and node.target in read and node is not first:
            first.prepend(node)
    owners: dict[str, fx.Node] = {}
    for (path, name), value in zip(buffers, values, strict=True):
        if path not in owners:
            with graph.inserting_before(first):
                owners[path] = graph.create_node("get_attr", path or ROOT)
            owners[path].meta["val"] = None
        # A value that is there from the start would be read by nodes that want the old one.
        last = value if value.op in ("call_function", "call_module") else next(iter(reversed(graph.nodes)))
        with graph.inserting_after(last):
            node = graph.call_function(assign_buffer, (owners[path], name, value))
        node.meta = {key: value.meta[key] for key in ("nn_module_stack", "stack_trace") if key in value.meta}
        node.meta["val"] = None


def assigned_by(node: fx.Node) -> str | None:
    """Path of the buffer that a node rebinds; None where it rebinds none."""
    if node.target is not assign_buffer:
        return None
    owner, name = node.args[0], node.args[1]
    path = "" if not isinstance(owner, fx.Node) or owner.target == ROOT else str(owner.target)
    return f"{path}.{name}".lstrip(".")


def rebound_on(gm: fx.GraphModule, owner: fx.Node) -> set[str] | None:
    """Paths of the buffers that a graph rebinds on the module that a node reads; None where that is used otherwise.

    A mode switch may do so in training alone.
    """
    path = "" if owner.target == ROOT else f"{owner.target}."
    found = set[str]()
    for user in owner.users:
        uses = [(user, owner)]
        switch = gm.get_submodule(str(user.target)) if user.op == "call_module" else None
        if isinstance(switch, ModeSwitch):
            versions = (version.graph.find_nodes(op="placeholder") for version in switch.versions)
            given = (pair for inputs in versions for pair in zip(inputs, user.args, strict=True))
            uses = [(node, taken) for taken, value in given if value is owner for node in taken.users]
        for node, module in uses:
            if node.target is not assign_buffer or node.args[0] is not module:
                return None
            found.add(f"{path}{node.args[1]}")
    return found
