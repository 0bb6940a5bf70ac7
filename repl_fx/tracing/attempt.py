"""One export of a model, and all that it changes of the process for its time.

torch has no way to see what a trace asks, or to have it leave a thing alone, but to put other functions in the place of
its own. Each patch is a context manager of its own, in the file of what it is for; `Attempt.watched` enters all of
them, and nothing else does:

    of the model     calls of modules (`leaf_calls`, `module_calls`), attributes (`attributes_aside`), hooks on buffers,
                     `forward` (`_spelled_out`)
    of Python        `len`, `min` and `max` (`size_questions.lengths_symbolic`), `int` in modules that ask for whole
                     numbers (`whole_symbolic`), the seeds of `random` and of numpy, the truth of a `SymBool`
                     (`data_dependent`)
    of torch         `is_exporting` (`questions`), hooks on tensors (`hooks`), `ShapeEnv.evaluate_expr`
                     (`size_questions`), autograd functions (`leaf_calls`), warnings and what costs time (`_torch`)

What the whole of a capture changes stands in `capture._trace_by`: modes, buffers, random generators, and torch's
settings. A process has each of these once: `alone` lets one thread at a time change them.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from repl_fx._torch import (
    any_names,
    buffer_hooks_restored,
    code_as_written,
    conversions_passed,
    fixed_size,
    lean_tracing,
    pytree,
    quiet_tracing,
    shares_memory,
    small_tensors_known,
)
from repl_fx.config import stamp_calls
from repl_fx.errors import ForeignError, Untraceable, foreign_code, one_line
from repl_fx.graph.assigned_buffers import BufferAssignments, assigned_by
from repl_fx.graph.bridge import digraph, leading_to
from repl_fx.graph.captured import is_traced_constant, memory_of, traced_constant, writes_in_place
from repl_fx.graph.known_shapes import FAKES
from repl_fx.running.meanwhile import attributes_set, forward_replaced, set_by
from repl_fx.running.opaque_outputs import equal_leaves, open_objects
from repl_fx.tracing.attributes_aside import AttributesAside, ModeReads
from repl_fx.tracing.data_attributes import DataAttributes
from repl_fx.tracing.data_dependent import DECISION, DataDependentBranches, Place, recorded
from repl_fx.tracing.hooks import no_tensor_hooks
from repl_fx.tracing.layouts import Layouts
from repl_fx.tracing.leaf_calls import Callee, LeafCalls, LeafNotOpaque, record_leaf_calls
from repl_fx.tracing.leaves import has_own_call
from repl_fx.tracing.model_checks import causes_of, is_raised
from repl_fx.tracing.module_calls import record_module_calls
from repl_fx.tracing.parameters_outside import ParametersOutside
from repl_fx.tracing.questions import Told, autocast_cache_as_outside, is_bounded
from repl_fx.tracing.size_questions import SizeQuestions, lengths_symbolic, whole_symbolic
from repl_fx.tracing.size_tensors import SizeTensors
from repl_fx.tracing.sizes_kept import SizesKept
from repl_fx.tracing.stamping import Stamps

_unlike: ContextVar[str] = ContextVar("unlike", default="")


def each_call_traced(reason: str) -> AbstractContextManager[None]:
    """Trace each call of a module by itself in captures inside, alike ones too; the captures keep the reason."""
    return set_by(_unlike.set, reason, _unlike.get())


@dataclass
class Learned:
    """The knowledge that one trace of a model hands to the next, in this mode and in the other.

    Attributes:
        tensors: those that a trace itself made (`torch.tensor(…)` in a forward).
        read: all that one of these stands for, as equal ones are one constant, by its name.
        written: the names of those that a forward writes into.
        involved: why inner sizes, such as those of pictures, are not asked for; empty where they are.
        decides: the forward goes its way by values or at random, so that several traces have to be joined.
        inlined: leaves that cannot stand aside.
        aware: where the way the model takes when it runs cannot be traced, it is told that it is exported: the line
            that asks; empty where it is told that it is not.
        limited: it is told that it is not, also where that way is for sizes up to a number alone.
        reasons: why sizes are not asked for, by the number of the input and the dimension.
        pinned: sizes, by the inputs' ids and dimensions, that a trace with them free showed to be one alone.
        whole_numbers: the modules, by the ids of their names, whose `int` of a size may be symbolic; None where that
            fails.
        worded: the code makes text of sizes that stay free.
        numbers: sizes are plain numbers where the code has no other use for them.
        plainly: comparisons of sizes are answered when the code makes them, as a function takes plain answers alone.
        compiling: the answer to whether the model is compiled.
        straight: the forward is not traced where its inputs decide its way, once it has asked `compiling`.
        compared: where the forward takes numbers out of tensors that it compares.
        survived: the answers to questions of which the model does not survive the other, by who asks.
        stopped: the exception that such another answer led to.
        unlike: why each call is traced by itself; empty where alike ones are traced once.
        copies: how many calls of modules are copies of others.
        by_mode: a trace in the other mode may be another.
        of_one_mode: the modules that the model keeps in the mode they have.
        asked: see `ModeReads`.
        called: in each mode, by the paths of modules with parameters, the plain values that each call of one is given.
    """

    tensors: list[Tensor] = field(default_factory=list)
    read: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    written: set[str] = field(default_factory=set)
    involved: str = ""
    decides: bool = False
    inlined: set[Callee] = field(default_factory=set)
    aware: str = ""
    limited: bool = False
    reasons: dict[tuple[int, int], str] = field(default_factory=dict)
    pinned: set[tuple[int, int]] = field(default_factory=set)
    whole_numbers: dict[int, dict[str, Any]] | None = field(default_factory=dict)
    worded: bool = False
    numbers: bool = False
    plainly: bool = False
    compiling: Told = field(default_factory=lambda: Told("is_compiling", None))
    straight: bool = False
    compared: set[Place] = field(default_factory=set)
    survived: dict[Place, bool] = field(default_factory=dict)
    stopped: ForeignError | None = None
    unlike: str = ""
    copies: int = 0
    by_mode: bool = True
    asked: defaultdict[type, set[str | None]] = field(default_factory=lambda: defaultdict(set))
    of_one_mode: set[nn.Module] = field(default_factory=set)
    called: dict[bool, dict[str, list[Any]]] = field(default_factory=dict)

    def name(self, tensor: Tensor) -> str:
        """The attribute name of a constant; an equal one that is known already is used again."""
        alike = (t is tensor or (not tensor.is_meta and equal_leaves(t, tensor)) for t in self.tensors)
        index = next((index for index, is_alike in enumerate(alike) if is_alike), len(self.tensors))
        if index == len(self.tensors):
            self.tensors.append(tensor)
        self.read[traced_constant(index)].append(tensor)
        return traced_constant(index)

    def require_written_alone(self, graph: fx.Graph) -> None:
        """Refuse that a forward writes into a tensor of its own where the graph has the same for another one.

        Raises:
            Untraceable: such as a second cache of zeros, or a view of what is written.
        """
        writes = (memory_of(node) for node in graph.nodes if writes_in_place(node))
        self.written |= {str(node.target) for node in writes if is_traced_constant(str(node.target))}
        for name in self.written:
            own = self.read[name][0]
            others = [t for one, read in self.read.items() for t in read if one == name or shares_memory(t, own)]
            if any(other is not own for other in others):
                raise Untraceable(
                    f"the forward writes into a tensor {list(own.shape)} that is no buffer, beside another that holds "
                    "the same or shares its memory, and a graph does not keep the two apart; register them as buffers"
                )


class Attempt:
    """One export of a model, with all that watches it.

    Attributes:
        calls: those of leaves.
        questions: those about sizes that the program has one answer to.
        stamps: the calls of modules that are to be copies of others.
        branches: decides for the model where it asks for values.
    """

    def __init__(self, model: nn.Module, answers: Sequence[bool], learned: Learned) -> None:
        self.model = model
        self.learned = learned
        self.calls = LeafCalls(learned.inlined)
        self.exporting = Told("is_exporting", None if learned.aware else False)
        self.assigned = BufferAssignments()
        # With inner sizes fixed, other sizes may be equal where a layer is left out.
        apart = learned.decides and bool(learned.involved)
        self.questions = SizeQuestions(
            self.calls.is_running, learned.reasons, learned.involved, apart, learned.numbers, learned.plainly,
            lambda: self.unaware,
        )  # fmt: skip
        self.branches = DataDependentBranches(answers, learned.survived, self.calls.is_running)
        self.branches.compared = learned.compared
        self.aside = AttributesAside(self.calls.is_running)
        self.modes = ModeReads(model, self.aside, learned.of_one_mode)
        learned.unlike = learned.unlike or _unlike.get()
        self.stamps = Stamps(model, self.calls, self.aside, self.branches, on=stamp_calls() and not learned.unlike)

    @contextmanager
    def watched(self, kwargs: Mapping[str, Any]) -> Iterator[None]:
        """Watch the export that runs inside, on these keyword arguments."""
        running = self.calls.is_running
        outside = DataAttributes(running), ParametersOutside(self.model, running)
        with (
            record_leaf_calls(self.model, self.calls),
            self.aside.served(),
            self.modes.noted(),
            record_module_calls(self.model, self.stamps),
            buffer_hooks_restored(),
            conversions_passed(),
            no_tensor_hooks(self.calls.is_running),
            quiet_tracing(),
            small_tensors_known(),
            lean_tracing(FAKES, solved=False),
            autocast_cache_as_outside(),
            any_names(),
            _spelled_out(self.model, kwargs, self.calls, self.assigned),
            self.questions.noted(),
            lengths_symbolic(),
            whole_symbolic((self.learned.whole_numbers or {}).values()),
            code_as_written(),
            recorded(self.branches, Layouts(self.calls), SizeTensors(), SizesKept(), *outside),
            self.exporting.answered(),
            foreign_code(),
        ):
            yield

    @property
    def unaware(self) -> bool:
        """Tell whether the forward asked if it is exported, was told that it is not, and may be told that it is."""
        return bool(self.exporting.asked) and not self.learned.aware and not self.learned.limited

    @property
    def rebound(self) -> Sequence[tuple[str, str]] | None:
        """The buffers that the program returns new values of; None where it returns its own outputs alone."""
        return None if _is_interpreted(self.model) else self.assigned.buffers

    def learn_from_failure(self, problem: Exception) -> bool:
        """Learn what the next attempt may do otherwise; whether there is anything."""
        learned = self.learned
        place, answer = self.branches.given[-1] if self.branches.given else (None, False)
        if place is not None and place not in learned.survived and is_raised(problem):
            # An assertion, most likely.
            learned.survived[place], learned.stopped = not answer, learned.stopped or problem
            return True
        learned.survived.pop(place, None)
        if learned.whole_numbers:
            learned.whole_numbers = None
        elif self.questions.exceeded is not None and not learned.involved:
            learned.involved = f", as the arithmetic on sizes is too involved to follow{self.questions.exceeded}"
        elif places := self.branches.places_in(problem) - learned.compared:
            learned.compared |= places
        elif "SymBool" in str(problem) and not learned.plainly:
            # `is_causal=mask is None and q.shape[2] > 1` of a size that is computed.
            learned.plainly = True
        elif "SymBool" in str(problem) and not learned.involved:
            # Of a truth that was made otherwise.
            learned.involved = f", as a function of torch takes no question about sizes ({problem})"
        elif self.calls.inlined != learned.inlined and any(
            LeafNotOpaque.__name__ in repr(cause) for cause in causes_of(problem)
        ):
            learned.inlined.update(self.calls.inlined)
        elif self.unaware:
            learned.aware = self.exporting.asked
        elif self.stamps.regions and not learned.unlike and isinstance(problem, ForeignError):
            learned.unlike = f"a trace with copies of alike ones failed ({one_line(problem)})"
        else:
            return False
        return True

    def learn_from(self, program: ExportedProgram) -> bool:
        """Learn what the export has shown; whether it has to be made again with that."""
        learned = self.learned
        learned.worded = learned.worded or any(fixed_size(size) is None for size in self.questions.worded)
        if toggled := self.calls.toggled():
            learned.inlined.update(toggled)
        elif self.unaware and is_bounded(program):
            learned.aware = self.exporting.asked
        elif self.branches.asked and not learned.decides:
            if learned.straight and learned.compiling.asked and _decided_by_inputs(program):
                raise Untraceable("its inputs decide which way the forward goes")
            learned.decides = True
        elif learned.whole_numbers is not None and self.questions.whole.keys() - learned.whole_numbers.keys():
            learned.whole_numbers.update(self.questions.whole)
        elif new := _pinned(program, self.questions):
            learned.pinned.update(new)
            learned.reasons.update(self.questions.pinned)
        else:
            return False
        return True


def _pinned(program: ExportedProgram, questions: SizeQuestions) -> set[tuple[int, int]]:
    """The sizes that are symbolic in a program and can be no other: `id` of the example input, and the dimension."""
    traced = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    inputs = zip(program.graph_signature.user_inputs, pytree.tree_leaves(program.example_inputs), strict=True)
    tensors = [(given, value.shape) for name, given in inputs if isinstance(value := traced.get(str(name)), Tensor)]
    return {(id(tensors[number][0]), dim) for number, dim in questions.settle([shape for _, shape in tensors])}


def _decided_by_inputs(program: ExportedProgram) -> bool:
    """Tell whether the forward of a program decides by its inputs, and not at random alone."""
    nodes = program.graph.nodes
    read = leading_to(digraph(nodes), (node for node in nodes if node.target is DECISION))
    return any(node.name in program.graph_signature.user_inputs for node in read)


def _hooked(model: nn.Module, hooks: Mapping[int, Any], args: Any, kwargs: Any, results: Any) -> Any:
    """The results of a forward after the model's forward hooks."""
    for key, hook in hooks.items():
        given = (args, kwargs) if key in model._forward_hooks_with_kwargs else (args,)
        changed = hook(model, *given, results)
        results = results if changed is None else changed
    return results


def _is_interpreted(model: nn.Module) -> bool:
    """Tell whether torch.export runs a model node by node, past its forward, which keeps what the nodes note.

    One that rebinds buffers is traced like any other module, as its forward has to say which.
    """
    graphs = [module.graph for module in model.modules() if isinstance(module, fx.GraphModule)]
    return isinstance(model, fx.GraphModule) and not any(assigned_by(node) for graph in graphs for node in graph.nodes)


@contextmanager
def _spelled_out(
    model: nn.Module, kwargs: Mapping[str, Any], calls: LeafCalls, assigned: BufferAssignments
) -> Iterator[None]:
    """Let the forward say what torch.export cannot see by itself.

    Its signature names what is passed through its `**kwargs`, objects in its result show the tensors they hold, and the
    buffers it rebinds leave it as further results.
    """
    if isinstance(model, fx.GraphModule) and not _is_interpreted(model):
        kind = type(model)
        plain: Any = type(kind.__name__, (nn.Module,), {"forward": kind.forward, "graph_root": property(lambda gm: gm)})
        with attributes_set([model], "__class__", plain), _spelled_out(model, kwargs, calls, assigned):
            yield
        return
    own = model.forward
    signature = inspect.signature(own)
    named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    passed = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY) for n in kwargs if n not in signature.parameters]

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.begin(model)
        with assigned.noted(model, lambda module: module is not model and calls.stands_aside(module)):
            results = open_objects(_hooked(model, hooks, args, kwargs, own(*args, **kwargs)))
        return results, list(assigned.values)

    spelled: Any = forward
    spelled.__signature__ = signature.replace(parameters=[*named, *passed]) if passed else signature
    # Hooks on the model's result must not see the buffers.
    hooks = dict(model._forward_hooks)
    with patch.dict(model._forward_hooks, clear=True), forward_replaced(model, forward), _begun_at_forward(type(model)):
        yield


def _begun_at_forward(kind: type[nn.Module]) -> AbstractContextManager[object]:
    """Let the trace of a class with a `__call__` of its own go past it; whether it adds anything is compared later."""
    if not has_own_call(kind):
        return nullcontext()
    # A trace has another one of modules meanwhile.
    return patch.object(kind, "__call__", lambda module, *args, **kwargs: nn.Module.__call__(module, *args, **kwargs))
