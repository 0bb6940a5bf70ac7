"""Costs of a model: parameters, FLOPs, activation memory, size on disk.

Everything is measured on fake tensors, which have a shape and no values: nothing is computed, so a model of any size,
on any device (the meta device too), is measured in the time its operators take to be dispatched.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.utils.flop_counter import FlopCounterMode

from repl_fx._torch import FakeTensorMode, OperatorsRun, forget_tensors, with_workspace
from repl_fx.errors import ForeignError, foreign_code
from repl_fx.graph.captured import copy_graph, share_tensors, tensors_in
from repl_fx.graph.decisions import is_decision
from repl_fx.graph.runtime import REGIONS, check_condition
from repl_fx.graph.state import parameter_count
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.meanwhile import attributes_set
from repl_fx.running.untouched import device_of, no_autocast, ordinary_attention, own_randomness, untouched
from repl_fx.tracing.capture import widen_batch, widened
from repl_fx.tracing.parts.capture_parts import Part

Measured = TypeVar("Measured")


@dataclass(frozen=True)
class Costs:
    """The costs of a model, with the example inputs they were measured on.

    Attributes:
        batch: size of the first dimension of the first input tensor; 1 where there is none. Inputs of batch 1 are
            widened to 2 first, as `repl_fx.capture` does.
        parameters: elements of all parameters; tied ones count once.
        weight_bytes: bytes of the parameters and persistent buffers, each tensor once: what a checkpoint holds.
        flops: floating point operations of one forward pass of that batch in evaluation mode; a multiplication and an
            addition are 2. Matrix products, convolutions and attention count, nothing else does; attention counts in
            full under a mask.
        activation_bytes: memory that autograd keeps for the backward pass of one training step on that batch: bytes of
            the storages saved in a forward pass in training mode, each storage once, without those of parameters and
            buffers. Inputs that are kept count.
        synthesis_bytes: memory that autograd keeps besides, of values computed from weights alone, such as those of
            surrogates; it does not grow with the batch.
        unknown: why `flops` and the two after it are None: the model does not run on shapes alone; None, too, where a
            step of training was not measured.
        parts: number of captured parts, where the model is no single graph: `flops` and the two after it are then those
            of one call of each part, and `batch` is that of the first.
    """

    batch: int
    parameters: int
    weight_bytes: int
    flops: int | None
    activation_bytes: int | None
    synthesis_bytes: int | None
    unknown: str | None = None
    parts: int | None = None

    @property
    def kept_bytes(self) -> int | None:
        """Memory that autograd keeps for the backward pass, in all."""
        known = self.activation_bytes, self.synthesis_bytes
        return None if known[0] is None or known[1] is None else known[0] + known[1]

    @property
    def flops_per_sample(self) -> int | None:
        """FLOPs of one forward pass, divided by the batch."""
        return None if self.flops is None else self.flops // self.batch

    @property
    def activation_bytes_per_sample(self) -> int | None:
        """Activation bytes, divided by the batch."""
        return None if self.activation_bytes is None else self.activation_bytes // self.batch


def measure_costs(
    gm: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, *, training: bool = True
) -> Costs:
    """Measure what a graph or any module costs, without computing anything where shapes alone are enough.

    Its modes, buffers and hooks, and the state of the random generators, stay as they are. A graph that has to have
    values is run. Where another module needs them, FLOPs and activation memory are None, and `unknown` says why.

    Args:
        gm: the graph or module.
        args, kwargs: example inputs.
        training: whether to measure a step of training, too; without it what autograd keeps is None.
    """
    given = ExampleInputs.of(args, kwargs)
    measures: list[Callable[[nn.Module, ExampleInputs], Any]] = [_flops, _saved_bytes] if training else [_flops]
    known = parameter_count(gm), _weight_bytes(gm)
    try:
        taken, (flops, *kept) = _measured(gm, given, *measures)
    except ForeignError as problem:
        return Costs(widen_batch(gm, given).batch, *known, None, None, None, unknown=str(problem))
    return Costs(taken.batch, *known, flops, *(kept[0] if kept else (None, None)))


def measure_form(model: nn.Module, graphs: nn.Module, parts: Sequence[Part], *, training: bool = True) -> Costs:
    """Measure what a model costs as it is; where its code needs values to run, what it costs with graphs in it."""
    costs = measure_parts(model, parts, training=training)
    return costs if costs.unknown is None or model is graphs else measure_parts(graphs, parts, training=training)


def measure_parts(module: nn.Module, parts: Sequence[Part], *, training: bool = True) -> Costs:
    """Measure what a model costs of which parts were captured, or its modules in their places; the one at the path ""
    is the model.
    """  # noqa: D205
    each = [measure_costs(module.get_submodule(part.path), part.args, part.kwargs, training=training) for part in parts]
    if [part.path for part in parts] == [""]:
        return each[0]
    return replace(
        each[0],
        parameters=parameter_count(module),
        weight_bytes=_weight_bytes(module),
        flops=_total(costs.flops for costs in each),
        activation_bytes=_total(costs.activation_bytes for costs in each),
        synthesis_bytes=_total(costs.synthesis_bytes for costs in each),
        unknown=next((costs.unknown for costs in each if costs.unknown), None),
        parts=len(each),
    )


def _measured(
    gm: nn.Module, given: ExampleInputs, *measures: Callable[[Any, ExampleInputs], Any]
) -> tuple[ExampleInputs, list[Any]]:
    """The costs of a module on shapes alone, or those of a graph that has to have values on these.

    Returns:
        The inputs, of a wider batch where the module takes that, as `widen_batch` gives them; and what each of the
        measures, which take a copy of the module and of the inputs, has returned.

    Raises:
        ForeignError: whatever the module raised.
    """
    is_graph = isinstance(gm, fx.GraphModule)
    needs_values = is_graph and device_of(gm, given).type != "meta"
    # In a caller's `inference_mode` nothing would be kept, and other things under its autocast.
    with torch.inference_mode(False), no_autocast(device_of(gm, given)):
        for inputs in dict.fromkeys((widened(given), given)):
            try:
                return inputs, [_on_shapes(gm, inputs, measure) for measure in measures]
            except ForeignError:
                if inputs is given and not needs_values:
                    raise
        inputs = widen_batch(gm, given)
        values = []
        for measure in measures:
            with _copied(gm, inputs, None) as (module, own), foreign_code():
                values.append(measure(module, own))
        return inputs, values


def _on_shapes(gm: nn.Module, given: ExampleInputs, measure: Callable[[Any, ExampleInputs], Measured]) -> Measured:
    # Code of the user's own may keep what it makes, such as a table in an `lru_cache`, which has no values here.
    left = nullcontext() if isinstance(gm, fx.GraphModule) else untouched(gm)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with left, _copied(gm, given, fake) as (module, inputs), foreign_code():
        return measure(module, inputs)


def _total(numbers: Iterable[int | None]) -> int | None:
    known = list(numbers)
    return None if None in known else sum(number or 0 for number in known)


def flops_of_parts(parts: Sequence[Part]) -> dict[fx.Node, int] | None:
    """FLOPs of each node of some graphs, for one call of each; None where one of them does not run on shapes."""
    every: dict[fx.Node, int] = {}
    for part in parts:
        flops = flops_by_node(part.graph_module, part.inputs)
        if flops is None:
            return None
        every.update(flops)
    return every


def flops_by_node(gm: fx.GraphModule, inputs: ExampleInputs) -> dict[fx.Node, int] | None:
    """FLOPs of the nodes of a graph that have any, as `Costs.flops` counts them; None where it does not run."""
    flops = _by_node(gm, inputs, _counting)
    return None if flops is None else {node: flops[node.name] for node in gm.graph.nodes if flops.get(node.name)}


class Interpreter(fx.Interpreter):
    """Runs a graph as its code does: a module may append to a list it is handed, and an error ends the regions."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self._mark: Callable[[], None] = lambda: None

    def run_marked(self, mark: Callable[[], None], inputs: ExampleInputs) -> None:
        """Run the graph, and call `mark` before it and behind each node."""
        # An interpreter takes the arguments in the order of the placeholders.
        bound = inspect.signature(self.module.forward).bind(*inputs.args, **inputs.kwargs)
        bound.apply_defaults()
        self._mark = mark
        mark()
        self.run(*bound.arguments.values())

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self._mark()
        return value

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph; values of its nodes are forgotten once they are used, that of a region when it ends."""
        try:
            return super().run(*args, **kwargs)
        except BaseException:
            for node, begun in reversed(self.env.items()):
                if node.target in REGIONS:
                    REGIONS[node.target](begun)
            raise

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        return tuple(_changeable(arg) for arg in args), {name: _changeable(arg) for name, arg in kwargs.items()}


def _changeable(value: Any) -> Any:
    if isinstance(value, immutable_list):
        return [_changeable(item) for item in value]
    if isinstance(value, immutable_dict):
        return {key: _changeable(item) for key, item in value.items()}
    return tuple(_changeable(item) for item in value) if type(value) is tuple else value


def kept_by_node(gm: fx.GraphModule, inputs: ExampleInputs) -> dict[str, int] | None:
    """Bytes that the nodes of a graph make autograd keep, by name, as `Costs.activation_bytes` counts them.

    A storage is that of the first node that keeps it. None where the graph does not run.
    """
    return _by_node(gm, inputs, lambda module: _Saved(module.train()).watching())


def _by_node(
    gm: fx.GraphModule,
    inputs: ExampleInputs,
    watching: Callable[[fx.GraphModule], AbstractContextManager[Callable[[], int]]],
) -> dict[str, int] | None:
    """By how much each node of a graph raises a total, by name; None where the graph does not run."""

    def raised(module: fx.GraphModule, given: ExampleInputs) -> dict[str, int]:
        with watching(module) as total:
            totals: list[int] = []
            Interpreter(module).run_marked(lambda: totals.append(total()), given)
        steps = zip(module.graph.nodes, pairwise(totals), strict=True)
        return {node.name: after - before for node, (before, after) in steps}

    try:
        # The copy's nodes have the names of the graph's.
        _, (by_node,) = _measured(gm, inputs, raised)
    except ForeignError:
        # `measure_costs` reports what the model's code raised.
        return None
    return dict(by_node)


@contextmanager
def _copied(
    gm: nn.Module, given: ExampleInputs, mode: FakeTensorMode | None
) -> Iterator[tuple[nn.Module, ExampleInputs]]:
    """A copy of a module and of its inputs, to run inside the block; fake in `mode`, where there is one.

    Parameters share their values with the module's; buffers, which a forward may change, do not.
    """
    module = _all_layers(copy_graph(gm)) if isinstance(gm, fx.GraphModule) else share_tensors(gm)

    @cache
    def copied(tensor: Tensor) -> Tensor:
        if mode is None:
            own = tensor.detach() if isinstance(tensor, nn.Parameter) else tensor.detach().clone()
            return own.requires_grad_(tensor.requires_grad)
        # Tensors that are neither parameters nor buffers are met as they are.
        if not tensor.is_meta:
            return mode.from_tensor(tensor)
        # The meta device has one kernel of attention alone, which keeps other memory than those of real devices.
        with mode:
            fake = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cpu")
        return fake.requires_grad_(tensor.requires_grad)

    for child in module.modules():
        # What is converted once is remembered, so tied tensors stay tied.
        for name, tensor in (*child._parameters.items(), *child._buffers.items()):
            state: dict[str, Any] = child._parameters if name in child._parameters else child._buffers
            state[name] = None if tensor is None else copied(tensor)
    inputs = given.map(lambda tensor: copied(tensor.detach()))
    if mode is not None:
        forget_tensors(mode)
    with mode or nullcontext(), own_randomness(device_of(module, inputs)):
        yield module, inputs


def _all_layers(gm: fx.GraphModule) -> fx.GraphModule:
    """The graph, changed to run each layer that it may skip and to check no values: shapes alone decide nothing."""
    for node in list(gm.graph.nodes):
        if is_decision(node):
            node.target = _no
        elif node.target is check_condition:
            gm.graph.erase_node(node)
    gm.recompile()
    return gm


def _no(*_: Any) -> bool:
    return False


@contextmanager
def _counting(module: nn.Module) -> Iterator[Callable[[], int]]:
    """Count FLOPs in evaluation mode; gives those so far."""
    # The counter asks for the gradient of what each module returns, and a parameter that is returned itself has none.
    module.eval().requires_grad_(False)
    # The counter has no formula for the recurrent layers of oneDNN and cuDNN; what they are made of it knows, and the
    # number is the same. Attention is not taken apart likewise: a `view` may fit the strides of the one kernel alone.
    # Setting the flags of oneDNN warns of Intel GPUs that are not there.
    with warnings.catch_warnings(action="ignore"):
        # Torchvision's operators are there once it has been imported.
        deformed = getattr(torch.ops.torchvision, "deform_conv2d", None)
        counter = FlopCounterMode(display=False, custom_mapping={**_FORMULAS, deformed: _flops_of_convolution})
        # The one operator of attention for inference is one that nobody counts.
        onednn = torch.backends.mkldnn.flags(enabled=False)
        cudnn = attributes_set([torch.backends.cudnn], "enabled", False)
        with torch.no_grad(), onednn, cudnn, ordinary_attention(), counter:
            yield counter.get_total_flops


def _flops_of_attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """FLOPs of both products of attention; shapes are (…, positions, features), the query's with all heads."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _flops_of_product(one: Sequence[int], other: Sequence[int], *_: Any, **__: Any) -> int:
    """FLOPs of (…, inner) with (inner), (…, inner, columns), or, row by row, one of several (…, inner, columns)."""
    return 2 * math.prod(one) * (other[-1] if len(other) > 1 else 1)


def _flops_of_bilinear(*given: Any, **_: Any) -> int:
    """FLOPs of a sum over products of three tensors, each with dimensions of one element put in."""
    shapes: list[list[int]] = [list(shape) for shape in given[:3]]
    for shape, places in zip(shapes, given[3:6], strict=True):
        for place in places:
            shape.insert(place, 1)
    sizes: list[int] = [max(along) for along in zip(*shapes, strict=True)]
    return 2 * math.prod(sizes)


def _flops_of_convolution(_: Any, weight: Sequence[int], *__: Any, out_shape: Sequence[int], **___: Any) -> int:
    """FLOPs of a convolution with a weight (features, inner, …)."""
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


_PRODUCTS = tuple(getattr(torch.ops.aten, name) for name in ("_grouped_mm", "_int_mm", "mv", "dot", "vdot"))
# Of operators that torch's counter does not know, and would count for nothing.
_FORMULAS: Mapping[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _flops_of_attention,
    **dict.fromkeys(_PRODUCTS, _flops_of_product),
    # Of what is added to something.
    **dict.fromkeys(
        (torch.ops.aten.addmv, torch.ops.aten.addbmm), lambda _, *product, **__: _flops_of_product(*product)
    ),
    torch.ops.aten._trilinear: _flops_of_bilinear,
}


def _flops(module: nn.Module, inputs: ExampleInputs) -> int:
    with _counting(module) as total:
        inputs.passed_to(module)
    return total()


class _Saved:
    """The storages that autograd saves, once each, without those of a module's own state."""

    def __init__(self, module: nn.Module) -> None:
        # While a storage is held here, its identity is its own; afterwards another one may get it.
        state = [tensor.untyped_storage() for tensor in (*module.parameters(), *module.buffers())]
        self._state = {id(storage): storage for storage in state}
        # Those of values that are computed from the state alone.
        self._weights: dict[int, torch.UntypedStorage] = {}
        self._kept: dict[int, torch.UntypedStorage] = {}
        self.activations = 0

    @contextmanager
    def watching(self) -> Iterator[Callable[[], int]]:
        """Note what is saved inside the block, of a forward pass in training mode; gives the activations so far."""
        hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        with torch.enable_grad(), hooks, OperatorsRun(self._run):
            yield lambda: self.activations

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in self._state and id(storage) not in self._kept:
            self._kept[id(storage)] = storage
            self.activations += 0 if id(storage) in self._weights else storage.nbytes()
        return tensor

    def _run(self, operator: Any, args: Any, kwargs: Any) -> Any:
        made = with_workspace(operator, args, kwargs, operator(*args, **kwargs))
        given = [id(tensor.untyped_storage()) for tensor in tensors_in((args, kwargs))]
        of_weights = bool(given) and all(one in self._state or one in self._weights for one in given)
        for tensor in tensors_in(made):
            storage = tensor.untyped_storage()
            if of_weights:
                self._weights[id(storage)] = storage
            else:
                self._weights.pop(id(storage), None)
        return made

    def sizes(self) -> tuple[int, int]:
        """Bytes that depend on the input, and bytes that do not."""
        return self.activations, sum(storage.nbytes() for storage in self._kept.values()) - self.activations


def _saved_bytes(module: nn.Module, inputs: ExampleInputs) -> tuple[int, int]:
    saved = _Saved(module.train())
    with saved.watching():
        inputs.passed_to(module)
    return saved.sizes()


def _weight_bytes(module: nn.Module) -> int:
    # Each with its storage, so that the identity of one is not that of a later one.
    seen: dict[tuple[Any, ...], tuple[torch.UntypedStorage, int]] = {}
    # A model's state may have more than tensors (`get_extra_state`).
    for tensor in tensors_in(module.state_dict(keep_vars=True)):
        storage = tensor.untyped_storage()
        key = id(storage), tensor.storage_offset(), tensor.shape
        seen[key] = storage, tensor.numel() * tensor.element_size()
    return sum(size for _, size in seen.values())
