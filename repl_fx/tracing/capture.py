"""Capture a model as one graph in normal form: right in training and in evaluation mode, on any device.

The tracer is torch.export: first with all sizes free, then with those fixed that the code needs as numbers. Each that
fails says why in one line. `repl_fx.tracing.parts.capture_parts` captures the largest modules inside other models.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from repl_fx._torch import (
    FakeTensor,
    answers_of_the_example,
    empty_beside,
    example_of,
    fixed_size,
    forget_tensors,
    has_example,
    pytree,
)
from repl_fx.arguments import require_module, require_number
from repl_fx.display.progress import shown, tell
from repl_fx.errors import BadInput, CaptureError, ForeignError, Untraceable
from repl_fx.graph.axes import ASKED, size_checks, tensor_inputs
from repl_fx.graph.boundaries import note_objects_
from repl_fx.graph.captured import (
    CapturedModule,
    container_of,
    copy_model,
    fake_mode_of,
    is_tensor,
    memory_of,
    share_tensors,
    traced_constant,
    writes_in_place,
)
from repl_fx.graph.runtime import ModeSwitch
from repl_fx.graph.signature import BoundInputs, bind_arguments, left_out
from repl_fx.passes.driver import run_passes
from repl_fx.passes.follow_device import follow_device_
from repl_fx.passes.merge_modes import Deciding, MergeResult, merge_modes_
from repl_fx.running.alone import alone
from repl_fx.running.collection import collection_paused
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.python_state import PythonState
from repl_fx.running.source_mark import source_mark
from repl_fx.running.untouched import (
    device_of,
    no_autocast,
    note_written,
    outcome_of,
    own_randomness,
    untouched,
    writes_restored,
)
from repl_fx.tracing.attempt import Learned
from repl_fx.tracing.check import CaptureCheck, check_of
from repl_fx.tracing.control_flow import match_decisions_
from repl_fx.tracing.dynamic_shapes import fix_dims_, names_in, require_known
from repl_fx.tracing.hooks import hooks_followed
from repl_fx.tracing.leaves import has_own_call
from repl_fx.tracing.model_checks import misfit, name_of_graphs, obstacle, require_capturable, require_same_modes
from repl_fx.tracing.other_sizes import other_sizes_of, takes_sizes, try_checks_
from repl_fx.tracing.questions import (
    Settings,
    Told,
    computes_alike,
    computes_the_same,
    require_settings_,
    settings_asked,
    stops_alike,
)
from repl_fx.tracing.size_questions import FIXED, ask_of_cuts_in_both_, sizes_numbers
from repl_fx.tracing.state_changes import (
    StateChanges,
    changes_noted,
    require_leaves_left,
    require_settled,
    require_sizes_forgotten,
)
from repl_fx.tracing.tracers import Tracer, trace_by_export

TRACERS: dict[str, Tracer] = {"torch.export": trace_by_export}


@dataclass(frozen=True)
class CaptureInfo:
    """The record of the capture of a graph; kept in `graph_module.meta["capture"]`.

    Attributes:
        model: class name of the source.
        tracer: which tracer took it.
        obstacles: why earlier tracers did not, one line each.
        literals: arguments that had to be made dependent on the mode.
        switches: stretches of which each mode has its own version.
        dynamic: for each tensor argument, the dimensions that stayed dynamic.
        fixed: why others did not, as the end of a phrase, by input and number of the dimension: `x.2`. It has the line
            of the model that asks for a number, where one does.
        mark: of the model's source as it was then (`repl_fx.running.source_mark`); empty where it has none.
        copies: how many calls of modules are copies of alike ones, which alone were traced.
        unlike: why each call was traced by itself, where alike ones could have been traced once.
    """

    model: str
    tracer: str
    obstacles: tuple[str, ...]
    literals: int = 0
    switches: int = 0
    dynamic: dict[str, tuple[int, ...]] = field(default_factory=dict)
    fixed: dict[str, str] = field(default_factory=dict)
    mark: str = ""
    copies: int = 0
    unlike: str = ""


@shown("capture")
@alone()
def capture(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    copy: bool = False,
    fixed: Sequence[str] = (),
) -> fx.GraphModule:
    """Capture a model as an `fx.GraphModule` in normal form.

    Args:
        model: any module; it is not changed, and its modes are left as they are.
        args: positional example inputs. A batch (first dimension) of 1 is widened to 2, because tracing would take 1
            for a constant; it stays 1 where the graph would not take it then.
        kwargs: keyword example inputs.
        copy: give the graph parameters of its own instead of sharing the model's.
        fixed: dimensions of the inputs that stay as in the example: `height`, `x.height` or, by number, `x.2`. All
            others are free where the model takes other sizes.

    Returns:
        A graph module with the model's arguments, outputs, module paths and `state_dict` keys, in the model's mode.

    Raises:
        BadInput: the model itself does not run on these inputs, or is of a kind that cannot be captured; or a name in
            `fixed` is that of no dimension.
        CaptureError: no tracer took the model; says why, with the model's file and line.
            `repl_fx.capture_parts` captures what it can of such a model.
    """
    require_module("capture", model)
    given = ExampleInputs.of(args, kwargs)
    require_capturable(model, given)
    source = copy_model(model) if copy else model
    names = names_in(fixed)
    try:
        gm, _ = trace_widened(TRACERS, source, given, names)
    except CaptureError as problem:
        raise untraced(model, given, problem) from problem
    require_known(names, [gm])
    return gm


def untraced(model: nn.Module, inputs: ExampleInputs, problem: CaptureError) -> BadInput | CaptureError:
    """The error for a model that could not be traced; a run of it tells whether the inputs do not fit."""
    wider, failed = _as_run(model, inputs)
    if failed is not None:
        return misfit(model, failed, wider)
    hint = "repl_fx.capture_parts captures what it can of the modules inside"
    return CaptureError(type(model).__name__, problem.obstacles, hint)


def trace_widened(
    tracers: Mapping[str, Tracer], model: nn.Module, inputs: ExampleInputs, fixed: Sequence[str] = ()
) -> tuple[CapturedModule, ExampleInputs]:
    """Capture a model by the first tracer that takes it, and return the inputs too, as `widen_batch` gives them.

    What that asks of the model is asked of the trace: the model runs where it cannot be traced with a wider batch. A
    graph of that batch alone, or of the way that wider ones go, gives place to one of the inputs as they are.
    """
    wider = widened(inputs)
    try:
        gm = trace_by_first(tracers, model, wider, fixed)
    except CaptureError:
        if wider is inputs or widen_batch(model, inputs) is not inputs:
            raise
        return trace_by_first(tracers, model, inputs, fixed), inputs
    if wider is inputs or takes_sizes(gm, model, inputs):
        return gm, wider
    asked = {dim: ASKED for dim, reason in gm.meta["capture"].fixed.items() if reason == ASKED}
    with suppress(CaptureError):
        own = trace_by_first(tracers, model, inputs, [*fixed, *asked])
        # These are one in the example, and have names by that of a wider one.
        own.meta["capture"].fixed.update(asked)
        return own, inputs
    return gm, wider


def trace_by_first(
    tracers: Mapping[str, Tracer], model: nn.Module, inputs: ExampleInputs, fixed: Sequence[str] = ()
) -> CapturedModule:
    """Capture a model by the first tracer that takes it.

    Args:
        tracers: the tracers to try, best first, by name.
        inputs: example inputs; only their shapes and the arguments that are no tensors matter.
        fixed: names of dimensions that stay as in the example, where the model's inputs have them.

    Raises:
        BadInput: the forward does not take these arguments.
        CaptureError: no tracer took it, it has hooks that a graph would drop, or Python state that a graph has not.
    """
    try:
        bound = bind_arguments(model, inputs)
    except TypeError as problem:
        raise misfit(model, problem, inputs) from problem
    if taken := name_of_graphs(model):
        raise CaptureError(type(model).__name__, [f"it {taken}"])
    obstacles: list[str] = []
    named = [_NamedTracer(name, trace) for name, trace in tracers.items()]
    for tracer in named:
        try:
            with writes_restored():
                gm = _trace_by(tracer, model, bound, tuple(obstacles), fixed)
            require_same_modes(model, gm.meta["capture"].switches)
            return gm
        except (Untraceable, ForeignError) as problem:
            obstacles.append(obstacle(tracer.name, problem))
            if "SymInt" in obstacles[-1] and not tracer.numbers:
                # Where no tracer can keep the sizes free.
                named.append(replace(tracer, numbers=True))
    raise CaptureError(type(model).__name__, obstacles)


@dataclass(frozen=True)
class _NamedTracer:
    """A tracer with its name.

    Attributes:
        numbers: it may fix sizes that the code needs as numbers, such as for keys or text.
        limited: it takes the way of a run where that is for sizes up to a number alone, too, see `Learned`.
    """

    name: str
    trace: Tracer
    numbers: bool = False
    limited: bool = False


def _trace_by(
    tracer: _NamedTracer,
    model: nn.Module,
    bound: BoundInputs,
    obstacles: tuple[str, ...],
    fixed: Sequence[str],
) -> CapturedModule:
    """The graph by one tracer.

    A model that asks whether it is compiled is told that it is not, and so goes the way of a run. Where inputs decide
    that way, or it cannot be traced, the way for compilers stands for it, if that computes the same.
    """
    inputs = bound.inputs
    graph_of = partial(_graph_of, tracer, model, bound, obstacles, fixed)
    running, compiling = Told("is_compiling", False), Told("is_compiling", None)
    try:
        return graph_of(running, straight=True)
    except (Untraceable, ForeignError):
        if not running.asked:
            raise
    gm = graph_of(compiling)
    if device_of(model, inputs).type == "meta":
        return gm
    alike = computes_alike(gm, model, inputs)
    other = other_sizes_of(gm, model, inputs) if alike else None
    if alike and (other is None or stops_alike(gm, model, other)):
        return gm
    try:
        run = graph_of(running)
    except (Untraceable, ForeignError):
        if alike:
            return gm
        raise
    if computes_alike(run, model, inputs):
        return run
    raise Untraceable(
        f"the forward asks torch.compiler.is_compiling(), and a trace goes another way than a run (at {running.asked})"
    )


def _graph_of(
    tracer: _NamedTracer,
    model: nn.Module,
    bound: BoundInputs,
    obstacles: tuple[str, ...],
    fixed: Sequence[str],
    compiling: Told,
    *,
    straight: bool = False,
) -> CapturedModule:
    """The graph of the way that a model goes with an answer to whether it is compiled; see `Learned.straight`."""
    inputs, asked = bound.inputs, Settings()
    learned = Learned(numbers=tracer.numbers, limited=tracer.limited, compiling=compiling, straight=straight)
    traces = _traced(tracer, model, bound, learned, asked)
    note_written(_parameters_written(model, traces.graphs.values()))
    for training, changed in traces.changes.items():
        require_leaves_left(model, changed)
        require_settled(model, changed, inputs, training)
    info = CaptureInfo(type(model).__name__, tracer.name, obstacles, mark=source_mark(model).digest)
    gm = _assembled(model, inputs, info, traces, fixed)
    has_values = device_of(model, inputs).type != "meta"
    if any(traces.changes.values()) and has_values and (other := other_sizes_of(gm, model, inputs)) is not None:
        for training, changed in traces.changes.items():
            if changed:
                require_sizes_forgotten(model, changed, inputs, other, training)
    # Asked only where something makes it doubtful, as it runs both.
    alike = cache(lambda: has_values and computes_alike(gm, model, inputs))
    if traces.learned.stopped and has_values and not alike():
        raise traces.learned.stopped
    if traces.learned.worded and not tracer.numbers and not (alike() and _alike_at_other_sizes(gm, model, inputs)):
        numbers = replace(tracer, numbers=True)
        return _graph_of(numbers, model, bound, obstacles, fixed, compiling, straight=straight)
    if learned.aware and has_values and not computes_the_same(gm, model, inputs):
        with suppress(Untraceable, ForeignError):
            run = _graph_of(replace(tracer, limited=True), model, bound, obstacles, fixed, compiling, straight=straight)
            if computes_the_same(run, model, inputs) or not alike():
                return run
        if not alike():
            raise Untraceable(
                "the forward asks torch.compiler.is_exporting(), and a trace goes another way than a run "
                f"(at {learned.aware})"
            )
    # Most classes with a `__call__` of their own repeat its signature alone.
    if has_own_call(type(model)) and not alike():
        raise Untraceable("its class computes in a __call__ of its own, around its forward; move that into it")
    if asked:
        run_passes(gm, partial(require_settings_, model=model, inputs=inputs, asked=asked))
    return gm


def _parameters_written(model: nn.Module, graphs: Iterable[fx.Graph]) -> list[Tensor]:
    """The parameters that a forward writes into, such as those of a teacher that follows a student."""
    named = dict(model.named_parameters(remove_duplicate=False))
    made = (memory_of(node) for graph in graphs for node in graph.nodes if writes_in_place(node))
    return [named[str(node.target)] for node in made if node.op == "get_attr" and str(node.target) in named]


def _alike_at_other_sizes(gm: CapturedModule, model: nn.Module, inputs: ExampleInputs) -> bool:
    """Tell whether a graph computes what its model does on inputs of other sizes, where it takes any."""
    # Of one size a text may be that of the example by chance, as that of a length which is padded.
    found = [other_sizes_of(gm, model, inputs, smallest=smallest) for smallest in (False, True)]
    others = [other for other in found if other is not None]
    ran = [other for other in others if outcome_of(model, other, training=False).problem is None]
    modes = (False, True)
    return bool(ran or not others) and all(computes_alike(gm, model, one, mode) for one in ran for mode in modes)


@dataclass
class _Traces:
    """The traces of a model in both modes, by whether it trains.

    Attributes:
        pinned: the modules, by path, that the model keeps in one mode, with that.
        changes: to its Python state.
    """

    learned: Learned
    graphs: dict[bool, fx.Graph] = field(default_factory=dict)
    pinned: dict[str, bool] = field(default_factory=dict)
    changes: dict[bool, StateChanges] = field(default_factory=dict)


def _traced(tracer: _NamedTracer, model: nn.Module, bound: BoundInputs, learned: Learned, asked: Settings) -> _Traces:
    """Trace a model in both modes, or in one where the other would have the same trace."""
    traces = _Traces(learned)
    device = device_of(model, bound.inputs)
    for training in (False, True):
        tell(f"{tracer.name}, {'training' if training else 'evaluation'} mode")
        # A region of the caller's must not be traced as one of the model's.
        # Shapes are found on fake tensors, yet a norm that counts its batches adds one to a buffer that is none.
        with untouched(model, buffers=True), own_randomness(device), torch.enable_grad(), no_autocast(device):
            if not training:
                traces.learned.of_one_mode = _of_one_mode(model)
            model.train(training)
            if not training:
                evaluating = PythonState(model)
            changes = traces.changes
            if training and not (traces.learned.by_mode or changes[False] or evaluating.changes(PythonState(model))):
                # Only leaves read the mode.
                traces.graphs[True], changes[True] = traces.graphs[False], changes[False]
            else:
                # Torch looks up keys that the forward has put into a dict after the trace, too.
                with (
                    sizes_numbers() if tracer.numbers else nullcontext(),
                    hooks_followed(model),
                    changes_noted(model) as changes[training],
                    settings_asked(asked),
                    learned.compiling.answered(),
                ):
                    traces.graphs[training] = tracer.trace(model, bound, traces.learned)
            traces.pinned.update({p: m.training for p, m in model.named_modules() if m.training is not training})
    return traces


def _of_one_mode(model: nn.Module) -> set[nn.Module]:
    """The modules that a model keeps in the mode they have, as one that stays in evaluation mode does its own."""
    modes = []
    for training in (True, False):
        model.train(training)
        modes.append({module: module.training for module in model.modules()})
    return {module for module, training in modes[0].items() if modes[1].get(module) is training}


@collection_paused()
def _assembled(
    model: nn.Module, inputs: ExampleInputs, info: CaptureInfo, traces: _Traces, wanted_fixed: Sequence[str]
) -> CapturedModule:
    """The module for the graphs of both modes, with the model's own module tree."""
    graphs, learned = traces.graphs, traces.learned
    called = (str(node.target) for graph in graphs.values() for node in graph.nodes if node.op == "call_module")
    root = module_tree(model, called, [tensor.detach().clone() for tensor in learned.tensors])
    fixed: dict[str, str] = {}
    for graph in dict.fromkeys(graphs.values()):
        for name, node in tensor_inputs(graph).items():
            fixed.update({f"{name}.{dim}": reason for dim, reason in node.meta.pop(FIXED, {}).items()})
        fixed.update(dict.fromkeys(fix_dims_(graph, wanted_fixed), ASKED))
        _settle_sizes_(graph)
    _drop_limits_of_one_mode_(graphs[True], graphs[False])
    ask_of_cuts_in_both_(graphs[True], graphs[False])
    match_decisions_(graphs[True], graphs[False])
    note_objects_(graphs[True], graphs[False])
    gm = captured_module(root, graphs[True], model, traces.pinned)
    for mode in filter(None, map(fake_mode_of, graphs.values())):
        forget_tensors(mode)
    run = run_passes(
        gm,
        partial(merge_modes_, evaluation=graphs[False], asking=_asking(model, learned)),
        partial(follow_device_, device=device_of(model, inputs)),
        partial(try_checks_, model=model, inputs=inputs),
    )
    merged = next(result for result in run.results if isinstance(result, MergeResult))
    found: Any = {"literals": merged.literals, "switches": merged.switches, "dynamic": _dynamic_dims(gm)}
    gm.meta["capture"] = replace(info, **found, fixed=fixed, copies=learned.copies, unlike=learned.unlike)
    return gm


def _asking(model: nn.Module, learned: Learned) -> Deciding:
    """The modules of a model whose code asks for a mode, and those that are called otherwise in each mode."""
    modules = dict(model.named_modules(remove_duplicate=False))
    modes, beside = {}, {}
    for path, module in modules.items():
        asked = learned.asked.get(type(module), set()) - {None}
        alone = next((one for one in asked if len(asked) == 1), "")
        if asked and (one := f"{path}.{alone}".strip(".")) in modules:
            modes[path] = one
            inside = (f"{path}.{other}".strip(".") for other in asked)
            beside[path] = [other for other in inside if other in modules]
    train, evaluation = (learned.called.get(training, {}) for training in (True, False))
    told = {path for path in (*train, *evaluation) if train.get(path) != evaluation.get(path)}
    return Deciding(modes, beside, told if len(learned.called) > 1 else ())


def _drop_limits_of_one_mode_(*graphs: fx.Graph) -> None:
    """Leave limits to the model itself that it has in one mode alone: a batch norm that trains wants more than one."""
    alike = set.intersection(*({check for _, check in size_checks(graph)} for graph in graphs))
    for graph in graphs:
        for node, check in size_checks(graph):
            if check.limit and check not in alike:
                graph.erase_node(node)


def _settle_sizes_(graph: fx.Graph) -> None:
    """Give values whose sizes are symbols that a guard has fixed their numbers, as a graph has them after a pickle."""

    def settled(value: FakeTensor) -> Tensor:
        if value.layout is not torch.strided:
            return value
        numbers = (*value.shape, *value.stride())
        known = [size if (number := fixed_size(size)) is None else number for size in numbers]
        if all(map(operator.is_, numbers, known)):
            return value
        return empty_beside(value, known[: value.ndim], known[value.ndim :])

    # An empty tensor asks whether it is contiguous, and the answers for the example would fix sizes.
    with answers_of_the_example(fake_mode_of(graph)):
        for node in graph.nodes:
            if "val" in node.meta:
                node.meta["val"] = pytree.tree_map_only(FakeTensor, settled, node.meta["val"])


@alone()
def check_capture(
    model: nn.Module, gm: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None, *, seed: int = 0
) -> CaptureCheck:
    """Run source and graph side by side, two steps in each mode, and compare outputs, buffers and gradients.

    Args:
        model: the source; it and the graph are afterwards as they were.
        gm: the graph captured from it, or the model with graphs in place of some of its modules.
        args, kwargs: inputs both can take. Gradients are those of all parameters and of floating inputs.
        seed: for dropout and the like.

    Raises:
        BadInput: an argument is of another kind, or the source does not run on these inputs.
    """
    require_module("check_capture", model)
    require_module("check_capture", gm, name="gm")
    require_number("seed", seed)
    inputs, failed = _as_run(model, ExampleInputs.of(args, kwargs))
    if failed is not None:
        raise misfit(model, failed, inputs)
    given = ExampleInputs.of(args, kwargs)
    if isinstance(gm, CapturedModule) and not takes_sizes(gm, model, inputs) and takes_sizes(gm, model, given):
        inputs = given
    return check_of(model, gm, inputs, seed=seed)


def widen_batch(model: nn.Module, inputs: ExampleInputs) -> ExampleInputs:
    """Repeat example inputs of batch 1 to batch 2, where every tensor among them has it and the model takes it.

    torch.export takes a dimension of size 1 for a constant. A first dimension need not be a batch: where the model
    runs on the inputs as they are and not on wider ones, they stay as they are.
    """
    return inputs if widened(inputs) is inputs else _as_run(model, inputs)[0]


def _as_run(model: nn.Module, inputs: ExampleInputs) -> tuple[ExampleInputs, Exception | None]:
    """Example inputs, of a wider batch where the model takes that or takes neither, and why it does not run on them."""
    wider = widened(inputs)
    problem = outcome_of(model, wider, training=False).problem
    if problem is None or wider is inputs or outcome_of(model, inputs, training=False).problem is not None:
        return wider, problem
    return inputs, None


def widened(inputs: ExampleInputs) -> ExampleInputs:
    """Inputs of batch 1, repeated to batch 2, where every tensor among them has it; others as they are."""
    if not inputs.tensors or any(tensor.ndim == 0 or tensor.shape[0] != 1 for tensor in inputs.tensors):
        return inputs
    return inputs.map(lambda tensor: torch.cat([tensor, tensor]))


def example_inputs_of(gm: fx.GraphModule) -> ExampleInputs:
    """Inputs of the shapes that a graph was captured with, of zeros where they are tensors.

    Raises:
        BadInput: a shape that is not known.
    """
    device = device_of(gm)

    def zeros(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if not all(has_example(size) for size in value.shape):
            raise BadInput("the sizes of the example inputs are not known; use transform, which has the inputs")
        return torch.zeros([example_of(size) for size in value.shape], dtype=value.dtype, device=device)

    values = {str(n.target): n.meta.get("val") for n in gm.graph.nodes if n.op == "placeholder"}
    return ExampleInputs((), {name: pytree.tree_map(zeros, value) for name, value in values.items()})


def captured_module(root: nn.Module, graph: fx.Graph, source: nn.Module, pinned: dict[str, bool]) -> CapturedModule:
    """The module of a graph whose code is still to be written, in the mode of its source."""
    gm = CapturedModule(root, graph, type(source).__name__, compiled=False)
    gm.training = source.training
    for path, module in gm.named_modules():
        if isinstance(module, ModeSwitch):
            module.training = gm.get_submodule(path.rpartition(".")[0]).training
    gm.meta.update(pinned=pinned, fake_mode=fake_mode_of(graph), left_out=left_out(source, graph))
    return gm


def module_tree(model: nn.Module, called: Iterable[str], constants: Iterable[Tensor]) -> nn.Module:
    """The source's module tree: modules that graphs call as they are, plain containers with their state elsewhere.

    Constants that the code of the source itself holds are buffers of it.
    """
    modules = {model.get_submodule(path) for path in set(called)}
    memo: dict[int, nn.Module] = {}

    def build(module: nn.Module) -> nn.Module:
        if id(module) in memo:
            return memo[id(module)]
        if module in modules:
            return share_tensors(module, memo)
        container = memo[id(module)] = container_of(module)
        for name, child in module._modules.items():
            container._modules[name] = None if child is None else build(child)
        return container

    root = build(model)
    for index, tensor in enumerate(constants):
        root.register_buffer(traced_constant(index), tensor, persistent=False)
    return root


def _dynamic_dims(gm: fx.GraphModule) -> dict[str, tuple[int, ...]]:
    return {
        str(node.target): tuple(i for i, size in enumerate(node.meta["val"].shape) if fixed_size(size) is None)
        for node in gm.graph.nodes
        if node.op == "placeholder" and is_tensor(node)
    }
