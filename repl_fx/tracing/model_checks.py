"""Checks of a model before it is traced, and the message when it does not run.

A model that no tracer can take, or whose copy would not train as the model does, is refused with the reason. It would
otherwise fail somewhere inside torch, with a message that says nothing about the model.
"""

from __future__ import annotations

import dis
import keyword
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from traceback import walk_tb
from typing import TypeGuard

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from repl_fx._torch import is_compiled, pytree
from repl_fx.arguments import require_ordinary_tensors
from repl_fx.errors import BadInput, ForeignError, Untraceable, first_line, foreign_code, listed
from repl_fx.graph.captured import CapturedModule
from repl_fx.graph.kinds import kind_of
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.opaque_outputs import all_finite
from repl_fx.running.untouched import device_of, in_mode
from repl_fx.surrogates.shared.synthesis import Synthesis
from repl_fx.tracing.asking import is_machinery, is_models_code

# Modules that call another one, and expect to be called themselves, by the packages they come from.
_WRAPPERS = ("torch.nn.parallel", "torch.distributed.fsdp")
_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torchao.", "bitsandbytes.")
# Live in such a package, and are of models that can be quantised and are not yet.
_FLOATING = ("FloatFunctional", "FXFloatFunctional")

# Attributes of the module that a graph is.
_TAKEN = frozenset(dir(CapturedModule(nn.Module(), fx.Graph()))) - frozenset(dir(nn.Module()))

# Remedies, by words of the messages that call for them.
_ADVICE = {
    "give inputs of the dtype the model takes, in args, example_inputs() or --input-shape, as in 2x8:float64": (
        r"dtype|scalar type|data type|have the same type|expected tensor for argument .* to have"
    ),
    "put the model and its inputs on one device": r"same device|is on (cpu|cuda|meta)|device type",
    "give inputs of the shape the model takes, in args, example_inputs() or --input-shape": (
        r"shape|size|dimension|\bdims?\b|channels|broadcast|index out of range|out of bounds|numel|\bmat1\b|"
        r"positional argument|required argument|unexpected keyword|missing a required|too many|not enough values"
    ),
}


def require_capturable(model: nn.Module, inputs: ExampleInputs) -> None:
    """Refuse a model that cannot be captured whatever its forward does.

    Raises:
        BadInput: says what of the model stands in the way, where it is, and what to give instead.
    """
    # A model without values is often made and captured in one place.
    require_ordinary_tensors(values=device_of(model, inputs).type != "meta")
    tensors = inputs.tensors
    reason = (
        _module_in_the_way(model)
        or _name_in_the_way(model)
        or _tensor_in_the_way(model, tensors)
        or _mode_in_the_way(model)
    )
    if reason is not None:
        raise BadInput(f"{type(model).__name__} {reason}")
    odd = next((name for name in inputs.kwargs if not _is_plain(name)), None)
    if odd is not None:
        raise BadInput(
            f"{type(model).__name__} takes an argument {odd!r}, which a graph cannot have, as Python has no such name; "
            "give it as a value of a dict"
        )
    first = next((tensor for tensor in tensors if tensor.ndim > 0), None)
    if first is not None and first.shape[0] == 0:
        raise BadInput(
            f"{type(model).__name__} has example inputs with a batch of 0 ({describe_inputs(inputs)}), "
            "which show nothing of what it computes; give a batch of 2 or more"
        )


def require_same_modes(model: nn.Module, switches: int) -> None:
    """Refuse a model whose modes differ where checkpointing is on: it turns off the cache of transformers in training.

    Its graph would be another one as soon as that is off, as it is in a model that an artifact is loaded with.

    Args:
        switches: the stretches of its graph of which each mode has its own version.
    """
    if switches and any(getattr(module, "gradient_checkpointing", False) is True for module in model.modules()):
        raise BadInput(
            f"{type(model).__name__} has gradient checkpointing on, and computes otherwise in training, as without a "
            "cache; turn it off before (model.gradient_checkpointing_disable()), and on again in the result"
        )


def _is_plain(name: str) -> bool:
    """Tell whether a name stays what it is in code, where Python reads letters under their normal form."""
    return name.isidentifier() and not keyword.iskeyword(name) and unicodedata.normalize("NFKC", name) == name


def require_finite(model: nn.Module) -> None:
    """Refuse a model with weights that are no numbers: what it computes cannot be compared, nor trained.

    Infinity in buffers and in parameters that are not trained is fine: masks are made of it.

    Raises:
        BadInput: names the tensors and how many of their values are NaN or infinite.
    """
    state = (*model.named_parameters(), *model.named_buffers())
    found = [f"{name} has {words}" for name, tensor in state if (words := _no_numbers(tensor))]
    if found:
        raise BadInput(
            f"{type(model).__name__} has weights that are no numbers: {listed(found, separator='; ')}; "
            "mend them, or go on all the same with --allow-nan (allow_nan=True)"
        )


def require_original(model: nn.Module) -> None:
    """Refuse a model whose surrogates are made from blocks that would go now.

    Raises:
        BadInput: names one.
    """
    made = next((path for path, module in model.named_modules() if isinstance(module, Synthesis)), None)
    if made is not None:
        raise BadInput(
            f"{type(model).__name__} has surrogates already, such as {made}; give the original, or what repl_fx.fold "
            "makes of the rewritten module"
        )


def misfit(model: nn.Module, problem: Exception, inputs: ExampleInputs) -> BadInput:
    """The error of a model that does not run on its example inputs, with advice where the problem is about these."""
    text = f"{obstacle(type(model).__name__, problem)} with the example inputs ({describe_inputs(inputs)})"
    # A model may speak of its inputs in an exception of any kind, and torch does so in words alone.
    advice = next((words for words, pattern in _ADVICE.items() if re.search(pattern, str(problem), re.IGNORECASE)), "")
    return BadInput(f"{text}{advice and f'; {advice}'}")


def obstacle(tracer: str, problem: BaseException) -> str:
    """One line: what a tracer stumbled over, and the file and line of the model where it did."""
    problem = problem.problem if isinstance(problem, ForeignError) else problem
    what = first_line(problem)
    kind = "" if isinstance(problem, Untraceable) else f"{type(problem).__name__}: "
    where = _model_line(problem)
    return f"{tracer}: {kind}{what[:200]}{f' (at {where})' if where else ''}"


def _model_line(problem: BaseException) -> str | None:
    """The innermost frame that is neither torch's, Python's nor this package's: the model's own line."""
    for cause in causes_of(problem):
        for frame, line in reversed(list(walk_tb(cause.__traceback__))):
            if is_models_code(frame):
                return f"{frame.f_code.co_filename}, line {line}"
    return None


def is_raised(problem: Exception) -> TypeGuard[ForeignError]:
    """Tell whether an exception comes from an `assert` or a `raise` of other code than torch's and repl-fx's."""
    place = problem.problem.__traceback__ if isinstance(problem, ForeignError) else None
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    if place is None or is_machinery(place.tb_frame):
        return False
    return place.tb_frame.f_code.co_code[place.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def causes_of(problem: BaseException) -> Iterator[BaseException]:
    """An exception, and those that it came from."""
    seen: BaseException | None = problem
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def describe_inputs(inputs: ExampleInputs) -> str:
    """Example inputs in words, for messages: `x: float32[2, 3, 32, 32], causal: True`."""
    named = (*enumerate(inputs.args), *inputs.kwargs.items())
    words = [
        f"{name}: {kind_of(leaf) if isinstance(leaf, Tensor) else repr(leaf)}"
        for name, value in named
        for leaf in pytree.tree_leaves(value)
        if isinstance(leaf, Tensor | bool | int | float | str)
    ]
    return ", ".join(words) or "none"


def _name_in_the_way(model: nn.Module) -> str | None:
    names = (name for m in model.modules() for name in (*m._modules, *m._parameters, *m._buffers))
    half = next((name for name in names if name.encode(errors="ignore").decode() != name), None)
    if half is not None:
        return f"has a name with half a letter, {half!a}, which no file can hold; rename it"
    return name_of_graphs(model)


def name_of_graphs(model: nn.Module) -> str | None:
    """The reason why a model cannot be one graph where something in it has the name of an attribute of graphs."""
    taken = next((name for name in (*model._modules, *model._parameters, *model._buffers) if name in _TAKEN), None)
    return None if taken is None else f"has {taken}, a name that a graph module of torch.fx has for itself; rename it"


def _module_in_the_way(model: nn.Module) -> str | None:
    for path, module in model.named_modules():
        kind, at = type(module).__name__, f" at {path}" if path else ""
        if isinstance(module, torch.jit.ScriptModule):
            return (
                f"is TorchScript{at}, whose code is compiled and cannot be traced; "
                "give the model as it was before torch.jit"
            )
        if is_compiled(module):
            return f"is compiled by torch.compile{at}; give the model as it was before, and compile the result"
        if _comes_from(type(module), _WRAPPERS):
            return f"is wrapped ({kind}{at}); give the module inside, and wrap the result"
        if kind not in _FLOATING and _comes_from(type(module), _QUANTISED):
            return f"is quantised ({kind}{at}); transform the model in floating point, and quantise the result"
    return None


def _comes_from(kind: type, packages: tuple[str, ...]) -> bool:
    # Of the class itself or of one it is derived from: `fully_shard` makes a class of its own for each module.
    return any(base.__module__.startswith(packages) for base in kind.__mro__)


def _tensor_in_the_way(model: nn.Module, inputs: Sequence[Tensor]) -> str | None:
    state = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in state:
        if is_lazy(tensor):
            return f"is lazy: {name} has no shape before the first forward; run the model once, then give it"
        if tensor.is_quantized or _comes_from(type(tensor), _QUANTISED):
            return f"is quantised ({name}); transform the model in floating point, and quantise the result"
        if _comes_from(type(tensor), ("torch.distributed",)):
            return f"is sharded ({name}); give the model as it was before, and shard the result"
        if tensor.layout is not torch.strided:
            layout = str(tensor.layout).removeprefix("torch.")
            return f"has a tensor of layout {layout} ({name}); repl-fx rewrites dense tensors (.to_dense())"
        if tensor.is_inference():
            return f"was made inside torch.inference_mode ({name}) and cannot be trained; make it outside of it"
    if len({tensor.is_meta for tensor in (*(tensor for _, tensor in state), *inputs)}) > 1:
        return without_values(state)
    return None


def without_values(state: Iterable[tuple[str, Tensor]]) -> str | None:
    """The message for a model with tensors on the meta device; None where there are none."""
    names = [name for name, tensor in state if tensor.is_meta]
    if not names:
        return None
    return (
        f"has tensors on the meta device, without values: {listed(names, 1)}; give them values in the factory "
        "(to_empty, then initialise), or inspect model and inputs together with --device meta"
    )


def _mode_in_the_way(model: nn.Module) -> str | None:
    for training in (True, False):
        try:
            with foreign_code(), in_mode(model, training):
                pass
        except ForeignError as failed:
            mode = "training" if training else "evaluation"
            words = " ".join(str(failed.problem).split())
            return f"refuses {mode} mode ({type(failed.problem).__name__}: {words}), and both modes are captured"
    return None


def _no_numbers(tensor: Tensor) -> str:
    """Say how many values of a tensor are no numbers; empty where it is as it may be."""
    if tensor.is_meta or not (tensor.is_floating_point() or tensor.is_complex()):
        return ""
    # Types of 8 bits know no such questions.
    values = tensor.detach().float() if tensor.element_size() == 1 else tensor.detach()
    if values.layout is torch.strided and all_finite(values):
        return ""
    nan = int(values.isnan().sum())
    infinite = int(values.isinf().sum()) if tensor.requires_grad else 0
    counts = [f"{count} {kind}" for count, kind in ((nan, "NaN"), (infinite, "infinite")) if count]
    return f"{' and '.join(counts)} of {tensor.numel()} values" if counts else ""
