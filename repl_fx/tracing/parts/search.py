"""The search for the largest modules of a model that can be captured, given what each was called with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from types import MethodType
from typing import Any

from torch import nn

from repl_fx.errors import BadInput, CaptureError
from repl_fx.graph.captured import CapturedModule
from repl_fx.graph.state import parameter_count
from repl_fx.running.holders import OWN_ATTRIBUTES
from repl_fx.tracing.alike import structure_of
from repl_fx.tracing.capture import trace_by_first, trace_widened
from repl_fx.tracing.dynamic_shapes import batch_dims
from repl_fx.tracing.leaves import is_leaf
from repl_fx.tracing.other_sizes import holds_at_other_sizes
from repl_fx.tracing.parts.calls import Call, obstacle_of, typical
from repl_fx.tracing.tracers import Tracer, trace_by_export

FREE_SIZES = "torch.export"
# Eager code chooses the sizes of what it hands to a module, and the next image may have others.
PART_TRACERS: Mapping[str, Tracer] = {
    FREE_SIZES: partial(trace_by_export, whole=False),
    "torch.export with fixed sizes": partial(trace_by_export, dims=batch_dims, whole=False),
}
# A model of hundreds of modules that all fail must come to an end.
MAX_ATTEMPTS = 40
# A replaced block has one before and one after it, each with a parameter at least.
_FEWEST_PARAMETERS = 3
_SMALLEST_SHARE = 0.01


@dataclass(frozen=True)
class Eager:
    """A module that was tried and stays as it is.

    Attributes:
        path: in the model; empty for the model itself.
        kind: name of its class.
        reason: why it is no part.
    """

    path: str
    kind: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path or 'the model itself'} ({self.kind}) stays eager: {self.reason}"


@dataclass(eq=False)
class Search:
    """The search for the largest modules that can be captured: `parts`, by path, and those that were tried in vain."""

    source: nn.Module
    calls: Mapping[str, list[Call]]
    methods: Mapping[str, list[str]]
    fixed: Sequence[str] = ()
    parts: dict[str, CapturedModule] = field(default_factory=dict)
    eager: list[Eager] = field(default_factory=list)
    _seen: set[int] = field(default_factory=set)
    _failed: dict[Any, str] = field(default_factory=dict)
    _attempts: int = 0

    @cached_property
    def _least(self) -> float:
        return _SMALLEST_SHARE * parameter_count(self.source)

    def descend(self, path: str) -> None:
        """Try the children of a module, the largest first."""
        module = self.source.get_submodule(path)
        children = [(f"{path}.{name}".lstrip("."), child) for name, child in module.named_children()]
        for child_path, child in sorted(children, key=lambda item: -parameter_count(item[1])):
            if id(child) not in self._seen and self._matters(child):
                self._seen.add(id(child))
                # A container is not called, nor a module that is used in another way.
                if child_path not in self.calls or not self._try(child_path, child):
                    self.descend(child_path)

    def reject(self, path: str, reason: str) -> None:
        """Take a part out again, and try its children."""
        module = self.source.get_submodule(path)
        del self.parts[path]
        self.eager.append(Eager(path, type(module).__name__, reason))
        self.descend(path)

    def require(self, paths: Iterable[str]) -> None:
        """Try exactly the modules at these paths."""
        for path in paths:
            if path in self.calls:
                self._try(path, self.source.get_submodule(path))
            else:
                self.eager.append(Eager(path, "module", "the model has no such module, or does not call it"))

    def _matters(self, module: nn.Module) -> bool:
        enough = sum(1 for _ in module.parameters()) >= _FEWEST_PARAMETERS and parameter_count(module) >= self._least
        return enough and not is_leaf(module)

    def _try(self, path: str, module: nn.Module) -> bool:
        reason = obstacle_of(self.calls[path])
        if path in self.methods:
            reason = f"the code around it calls its method {self.methods[path][0]}, which a graph has not"
        if reason is None:
            call = typical(self.calls[path])
            # Siblings that are alike fail alike.
            kind = structure_of(module, {}), call.shapes(), str(call.structure)
            if kind not in self._failed:
                try:
                    self.parts[path] = self._captured(module, call)
                except (CaptureError, BadInput) as problem:
                    self._failed[kind] = problem.obstacles[0] if isinstance(problem, CaptureError) else str(problem)
            reason = self._failed.get(kind)
        if reason is not None:
            self.eager.append(Eager(path, type(module).__name__, reason))
        return reason is None

    def _captured(self, module: nn.Module, call: Call) -> CapturedModule:
        self._attempts += 1
        if self._attempts > MAX_ATTEMPTS:
            raise CaptureError(type(module).__name__, [f"{MAX_ATTEMPTS} modules were tried before it"])
        gm, inputs = trace_widened(PART_TRACERS, module, call.inputs(), self.fixed)
        if gm.meta["capture"].tracer == FREE_SIZES and not holds_at_other_sizes(module, gm, inputs):
            others = {name: tracer for name, tracer in PART_TRACERS.items() if name != FREE_SIZES}
            gm = trace_by_first(others, module, inputs, self.fixed)
        keep_attributes(module, gm)
        return gm


def keep_attributes(source: nn.Module, gm: CapturedModule) -> None:
    """Let the graph have the plain attributes of its source: code outside reads `backbone.out_channels`."""
    containers = dict(gm.named_modules(remove_duplicate=False))
    for path, module in source.named_modules():
        plain = {
            name: value
            for name, value in vars(module).items()
            if name not in OWN_ATTRIBUTES and not isinstance(value, (nn.Module, MethodType))
        }
        if not path:
            gm.meta["attributes"] = plain
        # The modules that the graph calls have theirs.
        elif type(container := containers.get(path)) is nn.Module:
            container.__dict__.update({name: v for name, v in plain.items() if name not in container.__dict__})
