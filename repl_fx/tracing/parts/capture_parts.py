"""Capture a model in parts: the last tracer.

Detection models, and others whose code depends on the values of tensors, are no one graph. Their largest modules that
are graphs (backbone, pyramid, heads) take the place of the originals in a copy of the module tree; the code around them
stays as it is, and calls them.

    before   Detector.forward -> backbone(x), then boxes by nonzero, nms, …
    after    Detector.forward -> graph of the backbone, then boxes by nonzero, nms, …

The model is run once in each mode, to see what its modules are called with. Then the tree is searched from the top: a
module is tried on what it was called with, and where that fails, its children are. At the end the model with its parts
has to return, in each mode, what the source returned, bit for bit, and what it returns on other values; a part that
spoils this is taken out, and its children are tried.

Never touches: the source; tensors are shared with it. A model that is one graph is one part, at the path "".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any

import torch
from torch import Tensor, fx, nn

from repl_fx._torch import pytree
from repl_fx.arguments import require_items, require_module
from repl_fx.display.html import Displayed
from repl_fx.display.progress import shown, tell
from repl_fx.errors import BadInput, CaptureError
from repl_fx.graph.axes import dimensions_of
from repl_fx.graph.captured import CapturedModule, copy_model, has_attribute, refer_to_copies, share_tensors
from repl_fx.graph.state import named_tensors, parameter_count
from repl_fx.running.alone import alone
from repl_fx.running.example_inputs import ExampleInputs, HasInputs
from repl_fx.running.holders import OWN_ATTRIBUTES
from repl_fx.running.source_mark import source_mark
from repl_fx.running.untouched import Outcome, device_of, outcome_of
from repl_fx.tracing.attempt import each_call_traced
from repl_fx.tracing.capture import TRACERS, trace_widened, untraced, widen_batch
from repl_fx.tracing.check import STEPS, CaptureCheck, check_of
from repl_fx.tracing.dynamic_shapes import names_in, require_known
from repl_fx.tracing.leaves import is_leaf
from repl_fx.tracing.model_checks import misfit, obstacle, require_capturable
from repl_fx.tracing.other_sizes import takes_sizes
from repl_fx.tracing.parts.calls import Call, calls_seen, methods_seen
from repl_fx.tracing.parts.search import PART_TRACERS, Eager, Search, keep_attributes
from repl_fx.tracing.questions import computes_alike
from repl_fx.tracing.side_by_side import is_long_to_run


@dataclass(frozen=True, eq=False, repr=False)
class Part(Displayed, HasInputs):
    """A module of a model that is a graph.

    Attributes:
        path: of the module in the model; empty where the whole model is one graph.
        graph_module: the graph, whose `meta["capture"]` says how it was captured.
        inputs: those it was called with while the model ran.
    """

    path: str
    graph_module: fx.GraphModule
    inputs: ExampleInputs

    def __str__(self) -> str:
        size = parameter_count(self.graph_module)
        tracer = self.graph_module.meta["capture"].tracer
        return f"{self.path or 'the whole model'}: captured by {tracer}, {size:,} parameters"


@dataclass(frozen=True, eq=False, repr=False)
class CapturedParts(Displayed):
    """A model with its parts in place.

    Attributes:
        source: the model, or the copy of it that the parts share their tensors with.
        module: the model with graphs in place of the modules that were captured; the graph where it is one.
        parts: the graphs, in the order of their first calls.
        inputs: the example inputs of the model.
        eager: modules that were tried and stay eager, with the reason; empty where the model is one graph.
        check: the comparison of source and `module`; None where none was made.
        fixed: names of dimensions that stay as in the example, because they were asked to.
        stored: the text that the capture was read from (`repl_fx.tracing.parts.stored`); empty where it was traced.
    """

    source: nn.Module
    module: nn.Module
    parts: tuple[Part, ...]
    inputs: ExampleInputs
    eager: tuple[Eager, ...] = ()
    check: CaptureCheck | None = None
    fixed: tuple[str, ...] = ()
    stored: str = ""

    @classmethod
    def of_graph(cls, gm: fx.GraphModule, inputs: ExampleInputs, source: nn.Module | None = None) -> CapturedParts:
        """A graph that was captured before, of `source`, or by itself."""
        return cls(source or gm, gm, (Part("", gm, inputs),), inputs)

    @property
    def whole(self) -> bool:
        """Tell whether the model is one graph."""
        return [part.path for part in self.parts] == [""]

    @property
    def sizes(self) -> tuple[str, ...]:
        """The sizes that the graphs take, a line for each: `sizes: batch any; length 16 alone (model.py, line 23)`."""
        known = ((part.path, "; ".join(map(str, dimensions_of(part.graph_module)))) for part in self.parts)
        return tuple(f"sizes{f' of {path}' if path else ''}: {words}" for path, words in known if words)

    @property
    def copies(self) -> int:
        """The number of calls in the graphs that are copies of alike ones, which alone were traced."""
        return sum(part.graph_module.meta["capture"].copies for part in self.parts)

    @property
    def notes(self) -> tuple[str, ...]:
        """A line for each reason why calls were traced one by one, though alike."""
        reasons = dict.fromkeys(part.graph_module.meta["capture"].unlike for part in self.parts)
        return tuple(f"each call of a module was traced by itself: {reason}" for reason in reasons if reason)

    def with_graphs(self, graphs: Mapping[str, fx.GraphModule]) -> nn.Module:
        """The model with these graphs, by path, in place of its modules."""
        return graphs[""] if self.whole else assemble(self.source, graphs)

    def __str__(self) -> str:
        return "\n".join(str(line) for line in (*self.parts, *self.eager))


@shown("capture")
@alone()
def capture_parts(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    copy: bool = False,
    paths: Sequence[str] | None = None,
    fixed: Sequence[str] = (),
) -> CapturedParts:
    """Capture a model as one graph, or else the largest modules inside it that are graphs.

    Args:
        model: any module; it is not changed, and its modes are left as they are.
        args, kwargs: example inputs. A model that needs targets in training mode should get them here.
        copy: give the parts parameters of their own instead of sharing the model's.
        paths: capture exactly the modules at these paths; "" is the whole model.
        fixed: dimensions that stay as in the example, see `capture`; of all parts that have inputs with them.

    Returns:
        The model with its parts. Outputs equal the source's in both modes, bit for bit; training mode is left out
        where the model itself does not run in it on these inputs.

    Raises:
        BadInput: the model does not run on these inputs, or is of a kind that cannot be captured.
        CaptureError: nothing of the model could be captured, or not all of `paths`.
    """
    require_module("capture_parts", model)
    if paths is not None:
        require_items("paths", paths, str, "a list of paths of modules, such as ['layers.1']")
    given = ExampleInputs.of(args, kwargs)
    require_capturable(model, given)
    source = copy_model(model) if copy else model
    names = names_in(fixed)
    obstacles: tuple[str, ...] = ()
    if paths is None or list(paths) == [""]:
        try:
            gm, inputs = trace_widened(TRACERS, source, given, names)
        except CaptureError as problem:
            if paths is not None:
                raise untraced(model, given, problem) from problem
            obstacles = problem.obstacles
        else:
            require_known(names, [gm])
            return CapturedParts(source, gm, (Part("", gm, inputs),), inputs, fixed=names)
    inputs = widen_batch(source, given)
    reference, calls, methods = _observe(source, inputs)
    search = Search(source, calls, methods, names)
    if paths is None:
        search.descend("")
    else:
        search.require(paths)
    called = _settle(search, reference, inputs)
    if not search.parts or (paths is not None and set(paths) != search.parts.keys()):
        raise CaptureError(type(model).__name__, [*obstacles, *map(str, search.eager)])
    require_known(names, search.parts.values())
    eager = [*(Eager("", type(model).__name__, why) for why in obstacles[:1]), *search.eager]
    parts = tuple(Part(path, search.parts[path], called[path]) for path in calls if path in called)
    module = assemble(source, search.parts)
    tell("compare with the model")
    # Gradients and buffers too; outputs are equal already.
    check = check_of(source, module, inputs, [mode for mode in reference if reference[mode].problem is None])
    if check.differences:
        lines = [f"with graphs in it, it differs in {line}" for line in check.differences]
        raise CaptureError(type(model).__name__, lines)
    return CapturedParts(source, module, parts, inputs, tuple(eager), check, names)


def capture_compared(model: nn.Module, *given: Any, **options: Any) -> CapturedParts:
    """Capture as `capture_parts` does, and compare a whole graph with the model, see `computes_as_source`.

    Raises:
        BadInput: see `capture_parts`.
        CaptureError: likewise; or the graph does not compute what the model does, without copies of alike calls either.
    """
    captured = capture_parts(model, *given, **options)
    if not computes_as_source(captured):
        with each_call_traced("a graph with copies of alike ones computed otherwise than the model"):
            captured = capture_parts(model, *given, **options)
        if not computes_as_source(captured):
            why = "its graph does not compute what it computes itself in evaluation mode"
            raise CaptureError(type(model).__name__, [why], "check=False of transform goes on all the same")
    return captured


def computes_as_source(captured: CapturedParts) -> bool:
    """Tell whether a graph returns what its model does in evaluation mode; models in parts are compared when captured.

    Models that would take longer than a trace of them, or have no values, are not run.
    """
    has_values = device_of(captured.source, captured.inputs).type != "meta"
    if not captured.whole or not has_values or is_long_to_run(captured.parts[0].graph_module):
        return True
    return computes_alike(captured.parts[0].graph_module, captured.source, captured.inputs)


def captured_before(
    captured: CapturedParts | fx.GraphModule, model: nn.Module, inputs: ExampleInputs
) -> CapturedParts | None:
    """The capture of a model that was made before, with these inputs; None where it is of another, or of a copy."""
    wider, whole = widen_batch(model, inputs), captured.module if isinstance(captured, CapturedParts) else captured
    if not isinstance(whole, CapturedModule) or takes_sizes(whole, model, wider):
        inputs = wider
    if isinstance(captured, CapturedParts):
        return replace(captured, inputs=inputs) if captured.source is model else None
    require_module("transform", captured, graph=True, name="captured")
    info, own = captured.meta.get("capture"), dict(model.named_parameters(remove_duplicate=False))
    shares = all(own.get(name) is parameter for name, parameter in captured.named_parameters())
    known = info is not None and info.model == type(model).__name__ and shares
    return CapturedParts.of_graph(captured, inputs, model) if known else None


def is_as_captured(captured: CapturedParts) -> bool:
    """Tell whether the source of a capture is as it was, as far as it has a mark, and its graphs hold its tensors."""
    for part in captured.parts:
        if part.path and not has_attribute(captured.source, part.path):
            return False
        gm, module = part.graph_module, captured.source.get_submodule(part.path)
        own, held = named_tensors(module), named_tensors(gm).items()
        mark = gm.meta["capture"].mark
        if any(own.get(n, t) is not t for n, t in held) or (mark and not source_mark(module).fits(mark)):
            return False
    return True


def capture_as_called(
    model: nn.Module,
    inputs: ExampleInputs,
    calls: Mapping[str, ExampleInputs],
    tracers: Mapping[str, str],
    fixed: Sequence[str] = (),
) -> CapturedParts:
    """Capture modules of a model on inputs that are known already: the model is not run, and nothing is compared.

    Each is given, by path, with its inputs and with the name of the tracer that took it before; `fixed` as it was then,
    and `inputs` are those of the model.

    Raises:
        CaptureError: a module cannot be captured on these inputs.
    """
    parts = []
    for path, given in calls.items():
        try:
            module = model.get_submodule(path)
        except AttributeError as problem:
            raise CaptureError(type(model).__name__, [f"it has no module {path}"]) from problem
        known = {name: tracer for name, tracer in PART_TRACERS.items() if name == tracers.get(path)} or PART_TRACERS
        gm, taken = trace_widened(known, module, given, fixed)
        keep_attributes(module, gm)
        parts.append(Part(path, gm, taken))
    graphs = {part.path: part.graph_module for part in parts}
    return CapturedParts(model, assemble(model, graphs), tuple(parts), inputs, fixed=tuple(fixed))


def assemble(source: nn.Module, instead: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of a model's tree with others, by path, in place of modules; parameters and buffers are shared.

    A module that stands at several paths is replaced at all of them.
    """
    memo: dict[int, nn.Module] = {id(source.get_submodule(path)): module for path, module in instead.items()}
    given = set(map(id, instead.values()))
    result = share_tensors(source, memo)
    refer_to_copies(memo, given)
    for module in source.modules():
        copied = memo.get(id(module))
        if copied is None or id(copied) in given or isinstance(copied, fx.GraphModule):
            continue
        for name, value in vars(module).items():
            # Modules in plain lists, and methods kept in attributes, would still be the source's.
            if name not in OWN_ATTRIBUTES:
                copied.__dict__[name] = _moved(value, memo, copied.__dict__[name])
    return result


def graphs_in(module: nn.Module) -> dict[str, CapturedModule]:
    """The captured graphs in a module, by path; the module itself where it is one."""
    found: dict[str, CapturedModule] = {}
    for path, child in module.named_modules():
        # A module that a graph calls is part of the graph.
        if isinstance(child, CapturedModule) and not any(path.startswith(qualified_name(outer, "")) for outer in found):
            found[path] = child
    return found


def qualified_name(path: str, name: str) -> str:
    """A name inside a part as a name in the model."""
    return f"{path}.{name}" if path else name


def _moved(value: Any, memo: Mapping[int, nn.Module], unchanged: Any) -> Any:
    """`value` with the modules of the copy in place of the source's; `unchanged` where there is none in it."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, MethodType) and id(leaf.__self__) in memo:
            return MethodType(leaf.__func__, memo[id(leaf.__self__)])
        return memo.get(id(leaf), leaf) if isinstance(leaf, nn.Module) else leaf

    leaves, structure = pytree.tree_flatten(value)
    moved = [one(leaf) for leaf in leaves]
    same = all(before is after for before, after in zip(leaves, moved, strict=True))
    return unchanged if same else pytree.tree_unflatten(moved, structure)


def _observe(
    source: nn.Module, inputs: ExampleInputs
) -> tuple[dict[bool, Outcome], dict[str, list[Call]], dict[str, list[str]]]:
    """Run a model in each mode.

    Returns:
        The results of the model; the calls of its modules, by path, in the order of first calls; and methods of modules
        that code around them called, by path.

    Raises:
        BadInput: the model does not run in evaluation mode.
    """
    modules = {path: module for path, module in source.named_modules() if path and not is_leaf(module)}
    calls: dict[str, list[Call]] = {}
    reference: dict[bool, Outcome] = {}
    methods: dict[str, list[str]] = {}
    for training in (False, True):

        def note(path: str, inputs: ExampleInputs, training: bool = training) -> None:
            calls.setdefault(path, []).append(Call.of(inputs, training))

        with methods_seen(source, methods), calls_seen(modules, note):
            reference[training] = outcome_of(source, inputs, training, steps=STEPS)
    problem = reference[False].problem
    if problem is not None:
        raise misfit(source, problem, inputs) from problem
    return reference, calls, methods


def _settle(search: Search, reference: Mapping[bool, Outcome], inputs: ExampleInputs) -> dict[str, ExampleInputs]:
    """Reject parts until the model with the rest computes what the source does; inputs of each part, by path."""
    others = inputs.map(_other_values)
    # To a trace, what a hook kept in an earlier forward is a constant, which is right for the values of that one.
    expected = {
        training: (outcome, outcome_of(search.source, others, training))
        for training, outcome in reference.items()
        if outcome.problem is None
    }
    while search.parts:
        called, why = _trial(search, search.parts, expected, (inputs, others))
        if why is None:
            # As they were traced.
            return {path: widen_batch(search.parts[path], called[path]) for path in search.parts}
        culprits = {}
        if len(search.parts) > 1:
            alone = {p: _trial(search, {p: gm}, expected, (inputs, others))[1] for p, gm in search.parts.items()}
            culprits = {path: reason for path, reason in alone.items() if reason is not None}
        for path, reason in (culprits or dict.fromkeys(search.parts, why)).items():
            search.reject(path, reason)
    return {}


def _trial(
    search: Search,
    graphs: Mapping[str, CapturedModule],
    expected: Mapping[bool, tuple[Outcome, Outcome]],
    given: tuple[ExampleInputs, ExampleInputs],
) -> tuple[dict[str, ExampleInputs], str | None]:
    """Run a model with parts in each mode, as `expected` on two inputs.

    Returns:
        The most telling inputs of each part, and why the parts cannot stay.
    """
    module = assemble(search.source, graphs)
    inputs, others = given
    called: dict[str, ExampleInputs] = {}
    fewest: dict[str, int] = {}
    for training, (outcome, on_others) in expected.items():
        counts: Counter[str] = Counter()

        def note(path: str, given: ExampleInputs, counts: Counter[str] = counts) -> None:
            counts[path] += 1
            degenerate = Call.of(given, False).degenerate
            if degenerate < fewest.get(path, degenerate + 1):
                fewest[path] = degenerate
                called[path] = given.fresh()

        with calls_seen(graphs, note):
            found = outcome_of(module, inputs, training, steps=STEPS)
        mode = "training" if training else "evaluation"
        if found.problem is not None:
            return called, f"with its graph in place, {obstacle(f'{mode} mode', found.problem)}"
        if not found.equals(outcome):
            return called, f"with its graph in place, the model returns something else in {mode} mode"
        for path in graphs:
            if counts[path] != sum(call.training is training for call in search.calls[path]):
                return called, f"the model reaches it by another way than its path in {mode} mode"
        found = outcome_of(module, others, training)
        if on_others.problem is None and not isinstance(found.problem, BadInput) and not found.equals(on_others):
            return called, f"with its graph in place, the model returns something else for other values in {mode} mode"
    return called, None


def _other_values(tensor: Tensor) -> Tensor:
    """Values of the same range and kind, as far as one can tell: pixels, tokens, masks."""
    if tensor.layout is not torch.strided:
        return tensor
    moved = tensor.roll(1)
    return (moved + 1) / 2 if tensor.is_floating_point() else moved
