"""The private names of torch that repl-fx needs, in one place.

Each is here because torch has no public way to the same thing; when one moves, this is the only file to mend.
"""

from __future__ import annotations

import importlib
import io
import keyword
import logging
import math
import operator
import sys
import traceback
import warnings
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, redirect_stderr, suppress
from copy import copy
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from itertools import accumulate, combinations
from threading import get_ident
from types import CodeType, FrameType, MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar
from unittest.mock import patch
from weakref import WeakValueDictionary

import sympy
import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import ShapeGuard, SLoc
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch._prims_common import infer_size
from torch._subclasses import fake_impls, fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager
from torch.autograd.function import BackwardCFunction
from torch.fx import _symbolic_trace, proxy
from torch.fx.experimental import proxy_tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot, set_proxy_slot
from torch.fx.experimental.sym_node import SymNode
from torch.fx.experimental.symbolic_shapes import (
    DimConstraints,
    GuardOnDataDependentSymNode,
    RuntimeAssert,
    ShapeEnv,
    ValueRangesSLoc,
    free_unbacked_symbols,
    uninteresting_files,
)
from torch.fx.graph import PythonCode
from torch.fx.graph_module import _forward_from_src
from torch.jit._fuser import optimized_execution
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._sympy import functions
from torch.utils._sympy.functions import Max
from torch.utils._sympy.numbers import IntInfinity, NegativeIntInfinity
from torch.utils._sympy.printers import PythonPrinter
from torch.utils._sympy.value_ranges import ValueRanges
from torch.utils._traceback import CapturedTraceback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

_Function = TypeVar("_Function", bound="Callable[..., Any]")
_Value = TypeVar("_Value")

SYMBOLIC: Mapping[type, type] = MappingProxyType({torch.SymInt: int, torch.SymFloat: float, torch.SymBool: bool})

_PLAIN_TENSORS = (Tensor, torch.nn.Parameter, FakeTensor)

# The path that torch.export writes for a node that it added for a check of sizes, in no module.
NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"
# Those names of torch that others import from here.
__all__ = [
    "FakeTensor", "FakeTensorMode", "HigherOrderOperator", "OpOverload", "ShapeEnv", "ValueRanges",
    "enable_python_dispatcher", "pytree",
]  # fmt: skip

# Graphs ask for sizes by an operator of which torch has no rule for `torch.vmap`, and whose number `torch.jit.trace`
# keeps without its warning; this holds while the object lives.
_RULES: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
_RULES.impl("sym_size.int", lambda tensor, dim: tensor.size(dim), "FuncTorchBatched")
with warnings.catch_warnings():
    # Of the rule that torch.jit.trace has before torch 2.15.
    warnings.filterwarnings("ignore", message="Warning only once for all operators")
    _RULES.impl("sym_size.int", lambda tensor, dim: int(tensor.size(dim)), "Tracer")


def module_stack(node: fx.Node) -> tuple[str, ...]:
    """Paths of the modules whose calls enclose a node, outermost first; empty at the top of the model.

    torch.export and `fx.Tracer` both keep `nn_module_stack`, and both write "" for the model itself.
    """
    stack = node.meta.get("nn_module_stack") or {}
    paths = (path_of_entry(entry) for entry in stack.values())
    return tuple(path for path in paths if path and path != NO_MODULE)


def path_of_entry(entry: Any) -> str:
    """The path of a module in `nn_module_stack`."""
    # A module called again is written "path@1" by torch.export; the call number is no part of its name.
    path = (entry[0] if isinstance(entry, tuple) else str(entry)).split("@")[0]
    return path.removeprefix("L['self']").removeprefix(".")


@contextmanager
def calls_replaced(
    modules: Sequence[torch.nn.Module], stand_in: Callable[[torch.nn.Module, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """For a while, let calls of modules run what `stand_in` makes of each and of the function it runs: hooks, forward.

    Overriding that on one object is the only way to see calls under torch.export, which binds `Module.__call__` when
    torch is imported.
    """
    try:
        for module in modules:
            vars(module)["_call_impl"] = stand_in(module, type(module)._call_impl.__get__(module))
        yield
    finally:
        for module in modules:
            vars(module).pop("_call_impl", None)


def constant_when_compiled(function: _Function) -> _Function:
    """Let compiled code ask a function once; the public way takes a second, for what it imports."""
    vars(function)["_dynamo_marked_constant"] = True
    return function


def import_dynamo() -> None:
    """Import torch._dynamo, and what torch.export imports when it is called."""
    importlib.import_module("torch._dynamo")
    importlib.import_module("torch.export._trace")


@contextmanager
def lean_tracing(fakes: Mapping[OpOverload, Callable[..., Any]], *, solved: bool) -> Iterator[None]:
    """For a while, have traces leave out what costs time and nobody here reads, and write sizes shortly.

    These are the notes on memory formats, which ask about strides, the lines of code of torch's own frames, the code of
    graphs that nobody calls, and the cache of fake results: where alike calls are traced once, most of what it looks up
    is not there, and with symbolic sizes looking up takes as long as computing.

    Args:
        fakes: for an operator, a function of the arguments that returns results of the right kind where sizes are
            symbolic, or None where torch is to find them.
        solved: solve the conditions on sizes, where sympy can, so that an export fails which two of them contradict.
    """
    config: Any = importlib.import_module("torch._dynamo.config")
    export: Any = importlib.import_module("torch.export._trace")
    known: Any = fake_impls.get_fast_op_impls()
    with (
        patch.object(proxy_tensor, "_extract_tensor_metadata", lambda *args, **kwargs: None),
        patch.object(proxy, "CapturedTraceback", _Stacks()),
        patch.object(FakeTensorMode, "from_tensor", _unwatched(FakeTensorMode.from_tensor)),
        patch.object(proxy_tensor, "track_tensor_tree", _unwatched(proxy_tensor.track_tensor_tree)),
        patch.object(export, "_replace_unbacked_bindings", _unwatched(export._replace_unbacked_bindings)),
        patch.object(fx.GraphModule, "recompile", _written_at_call(fx.GraphModule.recompile)),
        patch.object(SymNode, "maybe_as_int", _known_number),
        patch.object(DimConstraints, "solve", _attempted(DimConstraints.solve) if solved else lambda conditions: None),
        patch.dict(known, {operator: _fake(operator, result, known) for operator, result in fakes.items()}),
        config.patch(fake_tensor_cache_enabled=False),
        _multiples_written(),
    ):
        yield


def _attempted(solve: Callable[[DimConstraints], None]) -> Callable[[DimConstraints], None]:
    """Have conditions on sizes solved where sympy can; of some with several quotients it cannot tell."""

    def attempt(conditions: DimConstraints) -> None:
        with suppress(NotImplementedError):
            solve(conditions)

    return attempt


def _unwatched(look: Callable[..., Any]) -> Callable[..., Any]:
    """Have a trace look at tensors out of sight of modes, which take microseconds for each attribute."""

    def unwatched(*args: Any, **settings: Any) -> Any:
        # A kind of tensor of its own may say itself what its attributes are.
        own = any(type(leaf) not in _PLAIN_TENSORS for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor))
        with nullcontext() if own else torch._C.DisableTorchFunction():
            return look(*args, **settings)

    return unwatched


def _written_at_call(recompile: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Have the code of an `fx.GraphModule` written when it is first called; that of its subclasses is as it was."""

    def later(module: Any) -> Any:
        kind: Any = type(module)
        if kind.__bases__ != (fx.GraphModule,):
            return recompile(module)

        def forward(module: Any, *args: Any, **kwargs: Any) -> Any:
            recompile(module)
            return module.forward(*args, **kwargs)

        kind.forward = forward
        return None

    return later


def _known_number(size: SymNode) -> int | None:
    """The number that a size is known to be. Sympy makes one of each expression without symbols, as it is written."""
    expression = size.expr
    return int(expression) if expression.is_Integer else None


def _fake(operator: OpOverload, result: Callable[..., Any], fakes: dict[OpOverload, Any]) -> Callable[..., Any]:
    """A function of fake tensors by which torch runs an operator: what is known of its results, or else torch's own."""
    torchs = fakes.get(operator)

    def fake(mode: FakeTensorMode, *args: Any, **kwargs: Any) -> Any:
        with mode:
            known = result(*args, **kwargs)
            if known is not None:
                return known
            if torchs is None:
                with patch.dict(fakes):
                    del fakes[operator]
                    return operator(*args, **kwargs)
        return torchs(mode, *args, **kwargs)

    return fake


class _Stacks:
    """The stacks of frames that make nodes, innermost last, as far as torch keeps them: from the model's forward on.

    The frames outside of that, which are as many, and those of torch's files that it leaves out anyway have no summary.
    """

    def __init__(self) -> None:
        # By code and step of it: most frames that make one node make the next as well.
        self._known: dict[tuple[CodeType, int], traceback.FrameSummary] = {}

    def extract(self) -> _Stacks:
        """The stack of who calls, which `summary` looks at."""
        return self

    def summary(self) -> traceback.StackSummary:
        """Summaries of the frames. The code of a line is read when it is asked for."""
        left_out = uninteresting_files()
        frame: FrameType | None = sys._getframe(1)
        frames: list[FrameType] = []
        within = 0
        while frame is not None:
            is_forward = frame.f_code.co_name == "forward"
            if is_forward or frame.f_code.co_filename not in left_out:
                frames.append(frame)
            if is_forward:
                within = len(frames)
            frame = frame.f_back
        return traceback.StackSummary(map(self._summary, reversed(frames[:within])))

    def _summary(self, frame: FrameType) -> traceback.FrameSummary:
        code, step = frame.f_code, frame.f_lasti
        if (code, step) not in self._known:
            seen = traceback.FrameSummary(code.co_filename, frame.f_lineno, code.co_name, lookup_line=False)
            self._known[code, step] = seen
        return self._known[code, step]


@contextmanager
def module_attributes(knows: Callable[[Any, str], bool], look: Callable[[Any, str], Any]) -> Iterator[None]:
    """Serve attributes that modules do not have, where `knows` says so of a module and a name, by `look`."""
    owners: tuple[tuple[Any, str], ...] = ((torch.nn.Module, "__getattr__"), (_symbolic_trace, "_orig_module_getattr"))
    with ExitStack() as patches:
        for owner, name in owners:
            # fx puts a function of its own there while it traces, which calls the one that it met when imported.
            patches.enter_context(patch.object(owner, name, _serving(getattr(owner, name), knows, look)))
        yield


def _serving(own: Any, knows: Callable[[Any, str], bool], look: Callable[[Any, str], Any]) -> Callable[..., Any]:
    def attribute(module: Any, name: str) -> Any:
        # Where modules are shared, torch.export runs forwards on stand-ins, which tell calls of one module apart.
        is_stand_in = isinstance(module, proxy_tensor._AttrProxy)
        asked = module.get_base() if is_stand_in else module
        return look(asked, name) if knows(asked, name) else own(module, name)

    return attribute


def traced_node(tensor: Tensor) -> fx.Node | None:
    """The node that stands for a tensor in the trace that is going on; None where the trace does not know it."""
    mode = get_proxy_mode()
    known: Any = None if mode is None else get_proxy_slot(tensor, mode.tracer, None)
    return None if known is None else known.proxy.node


@contextmanager
def outside_of_trace() -> Iterator[None]:
    """Run operators on real tensors for themselves, unseen by a trace that is going on."""
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        yield


@contextmanager
def conversions_passed() -> Iterator[None]:
    """Let a module that is converted in a forward (`self.layer.to(x.device)`) stay, where no tensor of it changes.

    A trace has stand-ins in the places of its parameters, which torch cannot exchange.
    """
    own: Any = torch.nn.Module._apply

    def convert(module: torch.nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        kinds = {(t.ndim, t.dtype, t.device) for t in (*module.parameters(recurse), *module.buffers(recurse))}
        with outside_of_trace():
            samples = [torch.ones([2] * ndim, dtype=dtype, device=device) for ndim, dtype, device in kinds]
            if all(function(sample) is sample for sample in samples):
                return module
        return own(module, function, recurse)

    with patch.object(torch.nn.Module, "_apply", convert):
        yield


def hand_on_node(source: Any, target: Any) -> None:
    """Let a tensor, or a size, be in the trace that is going on what another one is."""
    mode: Any = get_proxy_mode()
    set_proxy_slot(target, mode.tracer, get_proxy_slot(source, mode.tracer))


def call_instead(made: Tensor, operator: OpOverload) -> Tensor:
    """A result in the trace that is going on, in whose node another operator is called."""
    mode = get_proxy_mode()
    if mode is not None:
        get_proxy_slot(made, mode.tracer).proxy.node.target = operator
    return made


def is_unbacked(size: Any) -> bool:
    """Tell whether a number depends on values of tensors."""
    return isinstance(size, tuple(SYMBOLIC)) and bool(free_unbacked_symbols(size))


def backward_pass() -> int:
    """The number of the backward pass that this thread is in; -1 outside of one, and in compiled code."""
    return -1 if torch.compiler.is_compiling() else torch._C._current_graph_task_id()


def function_of(graph: fx.Graph) -> Callable[..., Any]:
    """The function that a graph describes; its first argument is the module that attributes are read from.

    Graphs of one code have one function: torch.compile tells functions apart by the objects of their code.
    """
    code = graph.python_code("self")
    key = code_key(code)
    made = _FUNCTIONS.get(key)
    if made is None:
        made = _FUNCTIONS[key] = _forward_from_src(code.src, code.globals)
    return made


# A code and the objects that names in it stand for, by their ids: what holds the code keeps them alive.
CodeKey = tuple[str, tuple[tuple[str, int], ...]]
_FUNCTIONS: WeakValueDictionary[CodeKey, Callable[..., Any]] = WeakValueDictionary()


def code_key(code: PythonCode) -> CodeKey:
    """Give a key of the code of a graph: codes with equal keys do the same."""
    return code.src, tuple((name, id(value)) for name, value in sorted(code.globals.items()))


def is_compiled(module: torch.nn.Module) -> bool:
    """Tell whether a call of a module runs what `torch.compile(module)` or `module.compile()` made of it."""
    # The class of the first kind is not named: importing it takes seconds.
    kinds = (kind.__module__ for kind in type(module).__mro__)
    return module._compiled_call_impl is not None or any(kind.startswith("torch._dynamo") for kind in kinds)


@contextmanager
def autograd_calls(
    stand_in: Callable[[type[torch.autograd.Function], Callable[..., Any]], Callable[..., Any]],
) -> Iterator[None]:
    """Replace what `SomeFunction.apply` runs, for a while; in this thread also where code took it before.

    An `apply` that was taken before (`ste = Round.apply`) finds no other in the class. It makes a context, though, and
    then looks for the class's `forward`, which runs what stands in, once.

    `stand_in` gets the function's class and its own `apply`, and returns what runs instead. It is called before that
    `forward`, in which no gradients are recorded.
    """
    own, thread = torch.autograd.Function.__dict__["apply"], get_ident()
    let_through: set[type[torch.autograd.Function]] = set()

    def bound(cls: type[torch.autograd.Function]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            let_through.add(cls)
            try:
                return own.__get__(None, cls)(*args, **kwargs)
            finally:
                let_through.discard(cls)

        return stand_in(cls, run) if stands_aside(cls) else run

    def stands_aside(cls: type) -> bool:
        # The backward that a library registers for an operator stays with the operator, which is in the graph.
        return issubclass(cls, torch.autograd.Function) and cls.__module__ != torch._library.autograd.__name__

    def apply(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        return bound(cls)(*args, **kwargs)

    def begin(context: Any, *args: Any) -> None:
        cls = context._forward_cls
        if get_ident() != thread or not stands_aside(cls):
            return
        if cls in let_through:
            let_through.discard(cls)
            return
        call, original = bound(cls), cls.forward

        def forward(*given: Any) -> Any:
            if get_ident() != thread:
                return original(*given)
            stood.close()
            return call(*(given[1:] if given and given[0] is context else given))

        stood.enter_context(patch.object(cls, "forward", forward))

    of_class = patch.object(torch.autograd.Function, "apply", classmethod(apply))
    with ExitStack() as stood, of_class, patch.object(BackwardCFunction, "__init__", begin):
        yield


@contextmanager
def buffer_hooks_restored() -> Iterator[dict[Any, Any]]:
    """The global hooks on assignments to buffers, to change meanwhile.

    torch.export copies into the buffers of the root by such hooks, drops assignments to others, and leaves (2.11) its
    hooks behind when a trace fails.
    """
    hooks: Any = getattr(torch.nn.modules.module, "_global_buffer_registration_hooks", {})
    with patch.dict(hooks):
        yield hooks


def global_module_hooks() -> bool:
    """Tell whether anybody registered a hook on the calls of all modules."""
    module: Any = torch.nn.modules.module
    names = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    return any(getattr(module, f"_global_{name}", None) for name in names)


_FORMAT_TARGET = fx.graph._format_target


def _any_target(base: str, target: str) -> str:
    for name in target.split("."):
        # Python reads an attribute of other letters under their normal form, and torch quotes a name without escapes.
        plain = name.isascii() and (name.isidentifier() or name.isdigit()) and not keyword.iskeyword(name)
        base = _FORMAT_TARGET(base, name) if plain else f"getattr({base}, {name!a})"
    return base


def any_names() -> AbstractContextManager[Any]:
    """For a while, have torch.fx write code that reaches what has a name that is none of Python."""
    return patch.object(fx.graph, "_format_target", _any_target)


def translations_kept() -> AbstractContextManager[Any]:
    """For a while, have torch.onnx read its translations once a process: a fifth of the export of a small model."""
    registry = importlib.import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
    read = registry.from_torchlib

    def from_torchlib(**options: Any) -> Any:
        kept = _once(read, **options)
        # An export puts translations of its own in.
        made = copy(kept)
        made.functions = {operator: list(translations) for operator, translations in kept.functions.items()}
        return made

    return patch.object(registry, "from_torchlib", staticmethod(from_torchlib))


def asks_for_values(problem: BaseException) -> bool:
    """Tell whether a trace stopped at a condition on values of tensors alone, and on no size of an input."""
    cause: BaseException | None = problem
    while cause is not None and not isinstance(cause, GuardOnDataDependentSymNode):
        cause = cause.__cause__
    return cause is not None and cause.cond.free_symbols == set(free_unbacked_symbols(cause.cond))


def is_composite(operator: OpOverload) -> bool:
    """Tell whether an operator is made of others alone, so that its schema may not say what memory its result is."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(operator._name, "CompositeImplicitAutograd")


def decomposed_by(decompose: Callable[..., Any]) -> AbstractContextManager[Any]:
    """For a while, have torch.onnx decompose programs by another function, whose first argument is torch's own."""
    passes = importlib.import_module("torch.onnx._internal.exporter._fx_passes")
    return patch.object(passes, "decompose_with_registry", partial(decompose, passes.decompose_with_registry))


def results_known() -> AbstractContextManager[Any]:
    """For a while, have torch.onnx read the results of calls from the graph as it makes their dtypes alike.

    It runs the whole program for them: a quarter of an export.
    """
    promotion = importlib.import_module("torch.onnx._internal.fx.passes.type_promotion")
    interpreter = promotion._TypePromotionInterpreter
    run = interpreter.run_node

    def run_node(running: Any, node: fx.Node) -> Any:
        if node.op != "call_function" or "val" not in node.meta:
            return run(running, node)
        rule = promotion.get_type_promotion_rule(node, running.type_promotion_table)
        if rule is not None:
            dtype = node.meta["val"].dtype
            with running._set_current_node(node):
                # Notes the result of a call that comes to take others.
                running._maybe_promote_node(node, rule)
            if node.meta["val"].dtype != dtype:
                # The outputs of a program are told by their names, and an output is what is cast back.
                (cast,) = node.users
                node.name, cast.name = cast.name, node.name
        return node.meta["val"]

    return patch.object(interpreter, "run_node", run_node)


@lru_cache
def _once(read: Callable[..., _Value], **options: Any) -> _Value:
    return read(**options)


@contextmanager
def any_lengths() -> Iterator[None]:
    """For a while, let recurrent layers keep the length of a sequence free in a trace: one step has all of its shapes.

    torch itself runs them step by step on fake tensors, which fixes how many steps there are.
    """

    def shapes_of(own: Callable[..., Any]) -> Callable[..., Any]:
        def run(given: Tensor, *others: Any) -> Any:
            time = 1 if others[-1] else 0
            # Under a tracer the steps themselves are wanted.
            if get_proxy_mode() is not None or not isinstance(given.shape[time], torch.SymInt):
                return own(given, *others)
            made, *state = own(given.narrow(time, 0, 1), *others)
            made = made.transpose(0, time).expand(given.shape[time], -1, -1).contiguous()
            return made.transpose(0, time), *state

        return run

    table, aten = torch._decomp.decomposition_table, torch.ops.aten
    with ExitStack() as stack:
        for layer in (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input):
            stack.enter_context(patch.dict(table, {layer: shapes_of(table[layer])}))
            kernels = {key: shapes_of(own) for key, own in layer.py_kernels.items()}
            stack.enter_context(patch.dict(layer.py_kernels, kernels))
            stack.callback(layer._dispatch_cache.clear)
            layer._dispatch_cache.clear()
        yield


@contextmanager
def small_tensors_known() -> Iterator[None]:
    """Let a trace know the numbers in small tensors that a forward makes of numbers; torch has it know single ones."""
    with patch.object(fake_tensor, "CONSTANT_NUMEL_LIMIT", 64), patch.object(proxy_tensor, "CONSTANT_NUMEL_LIMIT", 64):
        yield


@contextmanager
def numbers_followed() -> Iterator[None]:
    """Let what torch.export has in the place of `min`, `max` and `math.pow` return for sizes what these do.

    It follows an extreme of two sizes alone, and has whole numbers for whole powers.
    """
    export: Any = importlib.import_module("torch.export._trace")
    utils: Any = importlib.import_module("torch._export.non_strict_utils")
    extreme_of_two = utils._tensor_min_max
    replaced, power = export._override_builtin_ops, math.pow

    def extreme(*given: Any, **settings: Any) -> Any:
        plain = len(given) > 2 and "key" not in settings and not any(isinstance(one, Tensor) for one in given)
        return extreme_of_two(*((given,) if plain else given), **settings)

    def raised(base: Any, exponent: Any) -> Any:
        known = not any(isinstance(one, (torch.SymInt, torch.SymFloat)) for one in (base, exponent))
        return power(base, exponent) if known else torch.sym_float(base) ** exponent

    @contextmanager
    def replacing() -> Iterator[None]:
        with replaced(), patch.object(math, "pow", raised):
            yield

    with (
        patch.object(utils, "_tensor_min_max", extreme),
        patch.object(export, "_override_builtin_ops", replacing),
    ):
        yield


@contextmanager
def quiet_tracing() -> Iterator[None]:
    """Keep what torch has to say about a model's style, and the graphs it dumps when a trace fails, off the terminal.

    The operation that the trace stumbled over is in the exception it raises.
    """
    disabled = logging.root.manager.disable
    try:
        logging.disable(logging.ERROR)
        with warnings.catch_warnings(action="ignore"), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)


# Operators live as long as their library.
_torch_library: Any = torch.library
_library: Any = _torch_library.Library("repl_fx", "FRAGMENT")


def define_operator(schema: str, fake: Callable[..., Any]) -> Any:
    """Define an operator that exists in traces alone, and return it."""
    name = schema.split("(")[0]
    # Called on constants alone, another one would be run at once for its values, and this one has no kernel.
    _library.define(schema, tags=(torch.Tag.nondeterministic_seeded,))
    _torch_library.register_fake(f"repl_fx::{name}", fake, lib=_library)
    return getattr(torch.ops.repl_fx, name).default


def fixed_size(size: int | torch.SymInt) -> int | None:
    """The one value that a dimension of a traced tensor can have; None where it may vary."""
    known = size if isinstance(size, int) else size.node.maybe_as_int()
    return None if known is None else int(known)


@contextmanager
def size_evaluations(
    before: Callable[[Any, FrameType], bool], after: Callable[[ShapeEnv, Any, Any, FrameType], None]
) -> Iterator[None]:
    """Tell of each question about symbolic sizes: the expression and the frame that asks, and then the answer too.

    Args:
        before: tells whether the trace is to know from then on that the answer is what it is.
    """
    own: Any = ShapeEnv.evaluate_expr

    def evaluate(sizes: ShapeEnv, expression: Any, *args: Any, **kwargs: Any) -> Any:
        frame = sys._getframe(1)
        with nullcontext() if before(expression, frame) else sizes.suppress_guards():
            answer = own(sizes, expression, *args, **kwargs)
        after(sizes, expression, answer, frame)
        return answer

    with patch.object(ShapeEnv, "evaluate_expr", evaluate):
        yield


def tidy_size(size: int | torch.SymInt) -> int | torch.SymInt:
    """A step between elements without the bound by which some operators write it: `Max(1, n)` for a size n.

    For all sizes but 0, of which no element is, both are the same number; the expressions are longer, and not equal.
    """
    sizes = None if isinstance(size, int) else size.node.shape_env
    if isinstance(size, int) or sizes is None or not size.node.expr.has(Max):
        return size
    expression = size.node.expr.replace(
        lambda part: isinstance(part, Max) and sympy.S.One in part.args and len(part.args) == 2,
        lambda part: next(one for one in part.args if one != sympy.S.One),
    )
    tidy: torch.SymInt = symbolic_number(torch.SymInt, sizes, expression, size.node.hint, None)
    return tidy


@contextmanager
def answers_of_the_example(mode: FakeTensorMode | None) -> Iterator[list[str]]:
    """Answer questions about sizes that vary from the example inputs, and leave the sizes as free as they are.

    Yields:
        The questions, but for those that are asked within another such context inside.
    """
    asked: list[str] = []
    sizes = None if mode is None else mode.shape_env
    if sizes is None:
        yield asked
        return

    def evaluate(expression: Any, *args: Any, **kwargs: Any) -> Any:
        if sizes._maybe_evaluate_static(expression) is None:
            asked.append(str(expression))
        return ShapeEnv.evaluate_expr(sizes, expression, *args, **kwargs)

    with sizes.suppress_guards(), patch.object(sizes, "evaluate_expr", evaluate):
        yield asked


def size_with(size: int | torch.SymInt, sizes: Mapping[str, int]) -> int:
    """The number that a size of a trace has where symbols, by their names, have others than in the example."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    numbers = {s: sympy.Integer(sizes[str(s)]) for s in expression.free_symbols if str(s) in sizes}
    return int(expression.xreplace(numbers))


def condition_of(expression: Any, answer: Any) -> Any:
    """The condition, of sympy, under which an expression of sizes has the answer that it has in a trace."""
    if is_truth(expression):
        return expression if answer else sympy.Not(expression)
    return sympy.Eq(expression, answer, evaluate=False) if expression.free_symbols else sympy.true


def may_not_fix(expression: Any) -> bool:
    """Tell whether an answer fixes no size: to a comparison, but for one of equality without rounded quotients."""
    equal = isinstance(expression, (sympy.Eq, sympy.Ne)) and not expression.has(functions.FloorDiv, functions.Mod)
    return is_truth(expression) and not equal


def is_truth(expression: Any) -> bool:
    """Tell whether an expression of sympy is true or false rather than a number."""
    return bool(expression.is_Boolean or expression.is_Relational)


def made_equal(conditions: Iterable[Any]) -> list[tuple[str, str]]:
    """Two symbols each, of which one is at most the other by one of some conditions, and at least by another."""
    differences = {c.lts - c.gts for c in conditions if isinstance(c, sympy.Le | sympy.Ge)}
    return sorted(
        (str(one), str(other))
        for one, other in combinations({s for less in differences for s in less.free_symbols}, 2)
        if {one - other, other - one} <= differences
    )


def fixed_symbols(sizes: ShapeEnv, expression: Any) -> set[str]:
    """All symbols that have but one value by now; none where those of an expression are still free."""
    if not any(sizes.replace(symbol).is_number for symbol in expression.free_symbols):
        return set()
    return {str(symbol) for symbol in sizes.var_to_range if sizes.replace(symbol).is_number}


def limited_symbols(sizes: ShapeEnv, expression: Any) -> list[str]:
    """The symbols of an expression that may have several values by now, but none above some number."""
    ranges = {symbol: sizes.var_to_range.get(symbol) for symbol in expression.free_symbols}
    return sorted(
        str(symbol)
        for symbol, bounds in ranges.items()
        if bounds is not None and bounds.upper.is_Integer and bounds.lower != bounds.upper
    )


def symbol_of(size: int | torch.SymInt) -> str | None:
    """The symbol that a size had when a trace began, whatever is known of it since; None where it had none."""
    return None if isinstance(size, int) else str(size.node._expr)


def code_of(condition: Any) -> str:
    """A condition on sizes as an expression of Python's.

    Raises:
        ValueError: it has no such form.
    """
    try:
        return str(PythonPrinter().doprint(condition))
    except (AssertionError, NotImplementedError, TypeError) as problem:
        raise ValueError(f"no expression of Python's: {condition}") from problem


# What torch.export notes where regions begin and end.
set_grad_enabled: Any = torch._C._set_grad_enabled
torch_enter_autocast: Any = torch.amp.autocast_mode._enter_autocast
torch_exit_autocast: Any = torch.amp.autocast_mode._exit_autocast


@contextmanager
def regions_as_written() -> Iterator[None]:
    """Keep `no_grad` and `autocast` regions of exported programs as the calls that begin and end them.

    torch.export packs each into a module; of `no_grad` inside of `autocast` it loses the one, and ends and begins the
    other around it, where weights are cast again.
    """
    passes: Any = "torch._export.passes.replace_{}_with_hop_pass"
    with ExitStack() as stack:
        for kind in ("set_grad", "autocast"):
            module: Any = importlib.import_module(passes.format(kind))
            stack.enter_context(
                patch.object(module, f"replace_{kind}_with_hop_pass", lambda gm, signature: (gm, signature))
            )
        yield


def enter_autocast(*settings: Any) -> Any:
    """Begin an autocast region; what it returns ends the region."""
    if not _notes_autocast():
        return torch_enter_autocast(*settings)
    region: Any = torch.amp.autocast_mode._UnmanagedAutocast(*settings)
    region.__enter__()
    return region


def exit_autocast(region: Any) -> None:
    """End an autocast region."""
    if _notes_autocast():
        region.__exit__(None, None, None)
    else:
        torch_exit_autocast(region)


def _notes_autocast() -> bool:
    """Tell whether torch's own functions may note a region in a trace, as torch.export's, without being in it."""
    return not torch.compiler.is_dynamo_compiling() and torch._C._is_torch_function_mode_enabled()


def has_no_value(tensor: Tensor) -> bool:
    """Tell whether a tensor is fake, and not a constant that the trace knows."""
    return isinstance(tensor, FakeTensor) and getattr(tensor, "constant", None) is None


def know_values(tensor: Tensor, values: Callable[..., Tensor]) -> None:
    """Let the trace that is going on know the values of a new tensor, if they are few.

    Args:
        tensor: without values.
        values: makes them on a device, each time anew: what is written into the tensor is written into all of them.
    """
    mode = get_proxy_mode()
    if not isinstance(tensor, FakeTensor) or mode is None or tensor.numel() > fake_tensor.CONSTANT_NUMEL_LIMIT:
        return
    slot = get_proxy_slot(tensor, mode.tracer)
    with outside_of_trace():
        tensor.constant, slot.constant = (values(device=tensor.fake_device) for _ in range(2))
    tensor.fake_mode.fake_tensor_converter.add_constant_storage_mapping(tensor)


def set_item(tensor: Tensor, number: int | torch.SymInt) -> None:
    """Tell a fake tensor of one element its number, which `item()` returns until the tensor is changed in place."""
    fake: Any = tensor
    fake.item_memo = number


def example_of(size: int | torch.SymInt) -> int:
    """The number that a size has for the example inputs, without a guard on it; see `has_example`."""
    hint: Any = size if isinstance(size, int) else size.node.hint
    return int(hint)


def has_example(size: int | torch.SymInt) -> bool:
    """Tell whether a size is known for the example inputs: one that depends on values (of a mask, say) is not."""
    return isinstance(size, int) or size.node.hint is not None


def fake_of(mode: Any, meta: Tensor, device: torch.device) -> Tensor:
    """A fake tensor of a mode, that says it is on `device`, from one on the meta device."""
    fake: Tensor = FakeTensor(mode, meta, device)
    return fake


def empty_beside(
    given: Tensor,
    sizes: Sequence[int | torch.SymInt],
    steps: Sequence[int | torch.SymInt] | None = None,
    layout: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """An empty tensor of the dtype and device of another one: a fake beside a fake, made without a dispatch.

    Args:
        given: the other tensor.
        sizes: of the empty tensor.
        steps: its strides; None for those of `layout`.
        layout: the memory format.
    """
    if steps is None and layout is torch.contiguous_format:
        # Torch's own are products of `Max(1, n)`, longer expressions for the same number.
        spaced = [max(size, 1) if isinstance(size, int) else size for size in sizes[:0:-1]]
        steps = [*accumulate(spaced, operator.mul, initial=1)][len(sizes) - 1 :: -1] if sizes else []

    def empty(device: torch.device | str) -> Tensor:
        if steps is None:
            return torch.empty(sizes, dtype=given.dtype, device=device, memory_format=layout)
        return torch.empty_strided(sizes, steps, dtype=given.dtype, device=device)

    if not isinstance(given, FakeTensor):
        return empty(given.device)
    with torch._C.DisableTorchFunction(), in_kernel_invocation_manager(given.fake_mode):
        meta = empty("meta")
    return fake_of(given.fake_mode, meta, given.fake_device)


def fake_like(mode: Any, tensor: Tensor) -> Tensor:
    """The fake tensor of a mode for a tensor, of fixed sizes."""
    fake: Tensor = mode.from_tensor(tensor, static_shapes=True)
    forget_tensors(mode)
    return fake


def forget_tensors(mode: Any) -> None:
    """Let a fake tensor mode forget the tensors that it made fakes of.

    It has weak references to them, and a tensor with one cannot be swapped (`torch.utils.swap_tensors`).
    """
    mode.fake_tensor_converter.meta_converter.describer.lookup_tensor.clear()


@contextmanager
def scripts_as_written() -> Iterator[None]:
    """Run functions of TorchScript operator by operator, and forget how they ran before.

    One that ran a few times computes on detached values, whose gradients it makes by itself; a first run of one asks
    for the sizes of its arguments, to be faster on them.
    """
    units: Any = torch.jit._state._python_cu
    for function in units.get_functions():
        # One that could not be compiled stays among them, has nothing to forget, and is compiled again to be asked.
        with suppress(RuntimeError):
            function._debug_flush_compilation_cache()
    with optimized_execution(False):
        yield


@contextmanager
def code_as_written() -> Iterator[None]:
    """Keep functions of TorchScript, and regions, as the code of the model has them."""
    with scripts_as_written(), regions_as_written():
        yield


class OperatorsRun(TorchDispatchMode):
    """Lets `run` run each operator: it gets the operator, its arguments and keyword arguments, and returns a result.

    A derived class may have a method of that name: as an attribute it would keep the mode, and all that this holds.
    """

    run: Callable[[Any, Any, Any], Any]

    def __init__(self, run: Callable[[Any, Any, Any], Any] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if run is not None:
            self.run = run

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})


# The result of an operator that is what its kernel keeps for the backward pass, by number; its fake is empty.
_WORKSPACES = {torch.ops.aten.mkldnn_rnn_layer.default: 3, torch.ops.aten._cudnn_rnn.default: 3}


def with_workspace(func: Any, args: Any, kwargs: Any, made: Any) -> Any:
    """The fake results of an operator, with what its kernel keeps as large as it is."""
    place = _WORKSPACES.get(func)
    if place is None:
        return made
    leaves, structure = pytree.tree_flatten((args, kwargs))
    known = tuple((tuple(leaf.shape), leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf for leaf in leaves)
    return (*made[:place], made[place].new_empty(_workspace(func, known, structure)), *made[place + 1 :])


@lru_cache(maxsize=256)
def _workspace(func: Any, known: tuple[Any, ...], structure: pytree.TreeSpec) -> tuple[int, ...]:
    """The shape of what a kernel keeps: the library behind it chooses that, so the kernel runs, on zeros."""
    # A kernel may keep nothing where no gradients are wanted.
    with _disable_current_modes(), torch.enable_grad():
        leaves = [torch.zeros(one[0], dtype=one[1], device=one[2]) if isinstance(one, tuple) else one for one in known]
        args, kwargs = pytree.tree_unflatten(leaves, structure)
        return tuple(func(*args, **kwargs)[_WORKSPACES[func]].shape)


def is_transformed() -> bool:
    """Tell whether `torch.func` transforms or forward-mode differentiation are under way.

    Autograd functions take part in them with rules of their own alone, and what they make must not outlive them.
    """
    untyped: Any = torch._C
    return untyped._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def runs_plainly() -> bool:
    """Tell whether operators run as they are called: no compiler, export or `torch.jit` traces, no transform is on.

    Autograd functions are for such runs alone.
    """
    untyped: Any = torch._C
    return not torch.compiler.is_compiling() and not untyped._is_tracing() and not is_transformed()


def applied(function: type[torch.autograd.Function], *args: Any) -> Any:
    """The results of a function of autograd's, to which leaves that want gradients are given as views.

    Of a leaf, `apply` waits for the lock on the node that collects its gradient while it holds Python's; where another
    thread's operator holds the node's and waits for Python's (since torch 2.15), neither goes on. Views have no such
    node.
    """
    untyped: Any = function
    views = (a.view_as(a) if isinstance(a, Tensor) and a.requires_grad and a.is_leaf else a for a in args)
    return untyped.apply(*views)


def end_with_parent(number: int) -> None:
    """Have Linux send this process a signal when the one that started it ends."""
    untyped: Any = torch.multiprocessing
    untyped._prctl_pr_set_pdeathsig(number)


def may_not_raise(frame: FrameType | None) -> bool:
    """Tell whether code runs by which C++ asks a fake tensor for its device: no error may leave that.

    Autograd asks in constructors that cannot fail, so that an exception ends the process.
    """
    asked = torch.ops.prim.device.default
    while frame is not None:
        found = list(frame.f_locals.values())
        if any(one is asked for value in found for one in (value if type(value) is tuple else (value,))):
            return True
        frame = frame.f_back
    return False


def is_flattened(tensor: Any) -> bool:
    """Tell whether FullyShardedDataParallel, the first FSDP, has made a parameter a part of one of its own."""
    return hasattr(tensor, "_fsdp_flattened")


def is_in_shards(module: torch.nn.Module) -> bool:
    """Tell whether a module is one of FullyShardedDataParallel, the first FSDP, and has shards alone at the moment."""
    # Its import takes half a second, and whoever has such a module has paid for it.
    known: Any = sys.modules.get("torch.distributed.fsdp")
    if known is None or torch.compiler.is_compiling() or not isinstance(module, known.FullyShardedDataParallel):
        return False
    handle: Any = module._handle
    return handle is not None and bool(handle.needs_unshard())


def memory_of(tensor: Tensor) -> int:
    """Equal for tensors that share their memory."""
    return int(tensor.untyped_storage()._cdata)


def shares_memory(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors lie in one piece of memory; those of other layouts lie in several, which is not told."""
    plain = all(tensor.layout is torch.strided and not tensor.is_meta for tensor in (one, other))
    return plain and memory_of(one) == memory_of(other)


def move_hooks(source: Tensor, target: Tensor) -> None:
    """Register on one tensor the hooks on the gradients of another."""
    untyped: Any = target
    for hook in (source._backward_hooks or {}).values():
        untyped.register_hook(hook)
    for hook in (getattr(source, "_post_accumulate_grad_hooks", None) or {}).values():
        untyped.register_post_accumulate_grad_hook(hook)


# The knowledge of a `ShapeEnv` about its symbols, as far as it is plain data.
_KNOWN = (
    "backed_var_to_val", "var_to_range", "replacements", "unbacked_renamings", "divisible", "size_like", "val_to_var",
    "unbacked_symfloat_counter", "unbacked_symint_counter", "unbacked_alloc_order", "pending_fresh_unbacked_symbols",
    "num_deferred_runtime_asserts", "frozen", "runtime_asserts_frozen",
)  # fmt: skip
# Where something was learned, which is not kept.
_NOWHERE = SLoc(None, None)


def known_of_sizes(sizes: ShapeEnv) -> dict[str, Any]:
    """The facts known of symbolic sizes, as plain data for `sizes_knowing`: values in the example, ranges, guards."""
    known: dict[str, Any] = {name: getattr(sizes, name) for name in _KNOWN}
    known["settings"] = {field.name: getattr(sizes.settings, field.name) for field in fields(sizes.settings)}
    known["guards"] = [(guard.expr, guard.size_oblivious) for guard in sizes.guards]
    known["asserts"] = {on: [(a.expr, a.msg) for a in found] for on, found in sizes.deferred_runtime_asserts.items()}
    return known


def sizes_knowing(known: Mapping[str, Any]) -> ShapeEnv:
    """Symbolic sizes of which as much is known as of those that `known_of_sizes` was asked about."""
    from torch._dynamo.source import ConstantSource

    sizes = ShapeEnv(**known["settings"])
    for name in _KNOWN:
        setattr(sizes, name, known[name])
    sizes.guards = [ShapeGuard(expr, _NOWHERE, oblivious) for expr, oblivious in known["guards"]]
    traceback: Any = CapturedTraceback
    here = traceback.extract()
    sizes.deferred_runtime_asserts = {
        on: [RuntimeAssert(expr, message, here) for expr, message in found] for on, found in known["asserts"].items()
    }
    for symbol in sizes.var_to_range:
        sizes.var_to_range_sloc[symbol] = ValueRangesSLoc(_NOWHERE, _NOWHERE)
        sizes.var_to_sources[symbol] = [ConstantSource(str(symbol))]
        sizes.var_to_stack[symbol] = here
    return sizes


def settings_of_mode(mode: FakeTensorMode) -> dict[str, bool]:
    """The keywords that make a fake tensor mode like this one, but for its symbolic sizes."""
    return {
        "allow_fallback_kernels": mode.allow_fallback_kernels,
        "allow_non_fake_inputs": mode.allow_non_fake_inputs,
        "static_shapes": mode.static_shapes,
        "export": mode.fake_tensor_converter.export,
    }


def expression_of(number: Any) -> tuple[ShapeEnv, Any, Any, Any]:
    """The makings of a symbolic number: its sizes, the expression, its value in the example, and its constant value."""
    node = number.node
    if not isinstance(node, SymNode) or node.shape_env is None:
        raise TypeError(f"{number} is no expression of sizes")
    return node.shape_env, node.expr, node.hint, node.constant


def symbolic_number(kind: type, sizes: ShapeEnv, expression: Any, hint: Any, constant: Any) -> Any:
    """A symbolic number of what `expression_of` says."""
    made: Any = kind
    return made(SymNode(expression, sizes, SYMBOLIC[kind], hint, constant))


@contextmanager
def _multiples_written() -> Iterator[None]:
    """For a while, write sizes that code pads up to a multiple (`n + (8 - n % 8) % 8`) as that: `8*((n + 7)//8)`.

    They are the same numbers for all sizes (in floats, as of `math.ceil(n / 8)`, for those below 2**53); but torch sees
    that the multiple has no rest and what its quotient is, and expressions stay as short from one padding to the next.
    """
    own: Any = torch.SymInt
    own_rest, own_largest = own.__mod__, own.__sym_max__
    floats: Any = torch.SymFloat
    own_ceil = floats.__ceil__

    def ceil(number: torch.SymFloat) -> Any:
        size, quotient = own_ceil(number), number.node.expr
        if (
            isinstance(size, torch.SymInt)
            and isinstance(quotient, functions.IntTrueDiv)
            and quotient.args[1].is_Integer
        ):
            return _written(size, _rounded_up(*quotient.args))
        return size

    def rest(size: torch.SymInt, other: Any) -> Any:
        left = own_rest(size, other)
        if not _is_rest(left) or not isinstance(other, int):
            return left
        number = left.node.expr.args[0]
        # The rest of 8 - n % 8, or of -n, is what n lacks of the next multiple.
        inner = other - number
        if isinstance(inner, _RESTS) and inner.args[1] == other:
            number = -inner.args[0]
        elif not number.could_extract_minus_sign():
            return left
        return _written(left, number + other * _rounded_up(-number, other))

    def largest(size: torch.SymInt, other: Any) -> Any:
        bounds = _bounds(size.node.expr) if isinstance(other, int) else None
        if bounds is None or bounds[0] < other < bounds[1]:
            return own_largest(size, other)
        return size if bounds[0] >= other else other

    def sum_by(own_sum: Callable[..., Any]) -> Callable[..., Any]:
        def add(size: torch.SymInt, other: Any) -> Any:
            total = own_sum(size, other)
            for left, whole in ((size, other), (other, size)):
                if _is_rest(left) and isinstance(whole, torch.SymInt) and left.node.expr.args == (whole.node.expr, 2):
                    return _written(total, 2 * _rounded_up(whole.node.expr, 2))
            return total

        return add

    answers: Any = {
        "__mod__": rest, "__sym_max__": largest, "__add__": sum_by(own.__add__), "__radd__": sum_by(own.__radd__),
    }  # fmt: skip
    with patch.multiple(own, **answers), patch.object(floats, "__ceil__", ceil):
        yield


_RESTS = functions.Mod, functions.PythonMod


def _is_rest(size: Any) -> bool:
    return isinstance(size, torch.SymInt) and isinstance(size.node.expr, _RESTS)


def _written(size: Any, expression: Any) -> Any:
    """A size by another expression for it; a graph computes it as before."""
    made = symbolic_number(torch.SymInt, size.node.shape_env, expression, size.node.hint, None)
    if get_proxy_mode() is not None:
        hand_on_node(size, made)
    return made


def _bounds(expression: Any) -> tuple[int, int] | None:
    """The least and the most that `n*ceil(size/n) - size`, with a number added, can be; None for all else."""
    for part in sympy.Add.make_args(expression):
        step, quotient = part.as_coeff_Mul()
        added, size = (step * quotient - expression).as_coeff_Add()
        if not _is_quotient(quotient) or not step.is_Integer or step < 2:
            continue
        # The size may have a number added itself.
        own = next((own for own in range(step) if quotient == _rounded_up(size + own, step)), None)
        if own is not None:
            return int(own - added), int(own - added + step - 1)
    return None


def _rounded_up(size: Any, step: int) -> Any:
    """The number of steps that a size takes, rounded up; of one that is so rounded itself, as one quotient."""
    less, whole = (size + step - 1).as_coeff_Add()
    if _is_quotient(whole):
        return functions.FloorDiv(whole.args[0] + less * whole.args[1], whole.args[1] * step)
    return functions.FloorDiv(size + step - 1, step)


def are_equal(one: torch.SymInt, other: torch.SymInt) -> bool:
    """Tell whether two sizes are one by their expressions; nothing is asked of the trace."""
    first, second = one.node.expr, other.node.expr
    return bool(first == second or sympy.expand(first - second) == 0)


def view_sizes(shape: Sequence[int | torch.SymInt], count: int | torch.SymInt) -> Sequence[int | torch.SymInt]:
    """The sizes of a view of so many elements, -1 among them replaced; the trace is asked whether the view is possible.

    Where all are given and rounded quotients among them (`n // 8`) come to `count` only without rests, each of these
    is asked for: the trace knows `n % 8 == 0` from then on, and makes nothing of a product that it cannot solve.
    """
    if all(not isinstance(size, int) or size >= 0 for size in shape):
        product = sympy.Mul(*map(_expression, shape))
        quotients = [part for part in sympy.Mul.make_args(product) if _is_quotient(part)]
        exact = _without_rests(product, quotients)
        if quotients and sympy.expand(exact - _expression(count)) == 0:
            sizes: Any = next(size.node.shape_env for size in shape if isinstance(size, torch.SymInt))
            for part in quotients:
                torch._check(symbolic_number(torch.SymInt, sizes, functions.Mod(*part.args), None, None) == 0)
    return infer_size(tuple(shape), count)  # type: ignore[arg-type]


def view_by_example(given: Tensor, sizes: Sequence[int | torch.SymInt]) -> Tensor:
    """A view as torch makes one of symbolic sizes: its number of elements and strides are right for the example."""
    own: Any = torch._refs
    made: Tensor = own._reshape_view_helper(given, *sizes, allow_copy=False)
    return made


@dataclass(frozen=True)
class QuotientForm:
    """A size that is `(factor * symbol + added) // over`, with factors and divisors from 1."""

    symbol: str
    factor: int
    added: int
    over: int

    @classmethod
    def of(cls, size: torch.SymInt) -> QuotientForm | None:
        """The form of a size; None where it has no such."""
        added, whole = size.node.expr.as_coeff_Add()
        whole, over = whole.args if _is_quotient(whole) else (whole, 1)
        inner, product = whole.as_coeff_Add()
        factor, symbol = product.as_coeff_Mul()
        if not symbol.is_Symbol or not factor.is_Integer or factor < 1 or over < 1:
            return None
        return cls(str(symbol), int(factor), int(inner + added * over), int(over))

    def told_by(self, other: QuotientForm) -> tuple[int, int] | None:
        """The numbers `plus` and `over` by which it is `(other + plus) // over`, for all sizes; None where none are."""
        times, rest = divmod(other.factor, self.factor)
        plus, over = self.added * times - other.added, self.over * times
        if self.symbol != other.symbol or rest or plus % other.over or over % other.over:
            return None
        return plus // other.over, over // other.over

    def least(self, name: str) -> str:
        """The least number that the symbol may be where the size has a name, in words of Python's."""
        return f"-(({self.added} - {self.over} * ({name})) // {self.factor})"

    def least_alike(self, number: int) -> int:
        """The least number that the symbol may be where the size is that for another number."""
        size = (self.factor * number + self.added) // self.over
        return -((self.added - self.over * size) // self.factor)


def _is_quotient(expression: Any) -> bool:
    return isinstance(expression, functions.FloorDiv) and bool(expression.args[1].is_Integer)


def _without_rests(expression: Any, quotients: Iterable[Any]) -> Any:
    """An expression in which some quotients are not rounded."""
    return expression.xreplace({part: part.args[0] / part.args[1] for part in quotients})


def _expression(size: int | torch.SymInt) -> Any:
    return sympy.Integer(size) if isinstance(size, int) else size.node.expr


def whole_number(number: torch.SymFloat) -> torch.SymInt | None:
    """The size that a quotient of sizes is; None where it is none, or not for all sizes.

    Floats hold such quotients exactly: of sizes below 2**53 that are divided without a rest.
    """
    sizes, expression, value, _ = expression_of(number)
    exact = expression.replace(functions.ToFloat, lambda size: size)
    quotients = exact.atoms(functions.FloorDiv)
    divided = (part for part in quotients if sizes.replace(functions.Mod(*part.args)) in sizes.divisible)
    exact = _without_rests(exact, divided)
    for quotient in (functions.IntTrueDiv, functions.FloatTrueDiv):
        exact = exact.replace(quotient, lambda over, under: over / under)
    exact = sympy.cancel(exact.replace(lambda part: part.is_Float, sympy.Rational))
    if value is None or not exact.is_integer:
        return None
    return symbolic_number(torch.SymInt, sizes, exact, int(value), None)  # type: ignore[no-any-return]


_OF_SYMPY = (
    sympy.Add, sympy.Mul, sympy.Pow, sympy.floor, sympy.ceiling, type(sympy.oo), type(-sympy.oo), IntInfinity,
    NegativeIntInfinity, sympy.Eq, sympy.Ne, sympy.Lt, sympy.Le, sympy.Gt, sympy.Ge, sympy.And, sympy.Or, sympy.Not,
    type(sympy.true), type(sympy.false),
)  # fmt: skip
# The classes of expressions of sizes that have parts, or are one value, by name.
EXPRESSIONS: Mapping[str, Any] = {kind.__name__: kind for kind in _OF_SYMPY} | {
    f"torch.{name}": kind
    for name, kind in vars(functions).items()
    if isinstance(kind, type) and issubclass(kind, sympy.Basic) and kind.__module__ == functions.__name__
}


def children_of(structure: pytree.TreeSpec) -> list[pytree.TreeSpec]:
    """The structures of the parts of a nested value."""
    # torch 2.11 has children_specs, later versions children().
    children = getattr(structure, "children", None)
    return list(children()) if callable(children) else list(structure.children_specs)


def leaf_structure() -> pytree.TreeSpec:
    """The structure of a leaf; making one of its own class would warn that the class is deprecated."""
    return pytree.tree_structure(None)


def operator_name(operator: Any) -> str | None:
    """The words behind `torch.ops.` that lead to an operator; None for what is none."""
    if isinstance(operator, OpOverload):
        return f"{operator.namespace}.{operator._schema.name.partition('::')[2]}.{operator._overloadname}"
    if isinstance(operator, OpOverloadPacket):
        return str(operator._qualified_op_name).replace("::", ".")
    return f"higher_order.{operator.__name__}" if isinstance(operator, HigherOrderOperator) else None


def standard_gamma(concentration: Tensor, generator: torch.Generator) -> Tensor:
    """Samples of Gamma(concentration, 1), in its shape, on its device; the public ways take no generator."""
    return torch._standard_gamma(concentration, generator)


def without_workers(loader: Any) -> None:
    """Let the next iteration of a DataLoader start its worker processes anew, where they would live on."""
    loader._iterator = None
