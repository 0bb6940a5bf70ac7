"""Weights of the model as they act: a module may hold them in parts, or somebody else may have wrapped it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from repl_fx._torch import is_flattened, is_in_shards
from repl_fx.errors import CallRefused
from repl_fx.graph.captured import attribute

# The kinds of adapters in PEFT whose `get_delta_weight` is what they add to the weight; others turn or scale it.
_ADDED = frozenset(
    {
        *("lora_A", "hada_w1_a", "lokr_w1", "lokr_w1_a", "fourierft_spectrum", "vera_lambda_b", "randlora_lambda"),
        *("shira_weight", "waveft_spectrum", "c3a_kernel"),
    }
)
# The package of layers that quantise their weights by themselves.
_QUANTO = "optimum.quanto."
# The modules by which layers of torchao and torch.ao quantise their weights in training.
_FAKE = ("weight_fake_quantizer", "weight_fake_quant")


def weight_now(model: nn.Module, path: str, *, unbiased: bool = False, norm: str = "") -> Any:
    """The parameter, buffer, flag or layer at a path, as the module there would use it.

    Args:
        model: the model in place.
        path: of the tensor.
        unbiased: whether it is the weight of a layer that had no bias when it was captured.
        norm: the path of the batch norm behind the layer; fused into the layer, it is an identity, or gone.

    The path is followed at each call, so that the value is the one of now: after a swap of tensors
    (`torch.func.functional_call`), of modules (wrappers hand attributes on), or of the model's precision. Where an
    adapter of PEFT adds to a weight and has not been merged, the sum is the weight; where a hook of `torch.nn.utils`
    makes a weight before each forward of its layer, so does this, as that layer may run later. A weight that accelerate
    offloaded is where its layer would run, and one that torchao or quanto quantised, or quantises to train
    for that, has the values that its layer computes with.

    Raises:
        CallRefused: an adapter whose part cannot be added to the weight, or that differs by rows, a quantised layer,
            which has none, a shard, a layer that is gone, or one that a norm was fused into.
    """
    owner, _, name = path.rpartition(".")
    try:
        module: Any = attribute(model, owner) if owner else model
        own = module._parameters.get(name)
        has_bias = unbiased and module._parameters.get("bias") is not None
        if has_bias or (norm and isinstance(attribute(model, norm), nn.Identity)):
            changed = "has a bias now, as where a norm is fused into it" if has_bias else f"has {norm} fused into it"
            raise CallRefused(
                f"a surrogate is made from {path}, whose layer {changed}; fold the model instead: "
                "repl_fx.fold(result.module)"
            )
        by_quanto = name == "weight" and type(module).__module__.startswith(_QUANTO)
        computed = by_quanto or (name == "weight" and _fake(module) is not None)
        # Nearly always; to ask for attributes that are not there takes longer than all else here.
        if type(own) is nn.Parameter and not own.is_meta and not is_flattened(own) and not computed:
            return own
        if name in module._modules:
            return module._modules[name]
        value = _made(module, name, by_quanto)
    except AttributeError as problem:
        raise CallRefused(f"a surrogate is made from {path}, which the model has no more: {problem}") from problem
    return _as_used(model, module, path, value)


def _made(module: Any, name: str, by_quanto: bool) -> Any:
    """The value of a name that is no plain parameter of a layer, without a step of what makes it."""
    made_by = module._modules.get("parametrizations", {})
    if name in made_by:
        return _aside(made_by[name])
    # Until it is frozen, such a layer quantises its weight in each forward.
    quantised = module.qweight if by_quanto else None
    return getattr(module, name) if quantised is None else quantised


def _as_used(model: nn.Module, module: Any, path: str, value: Any) -> Any:
    """The value at a path, as the module that has it would use it."""
    name = path.rpartition(".")[2]
    if callable(value):
        raise CallRefused(
            f"a surrogate is made from {path}, which {type(module).__name__} has as a method; quantise a model whose "
            "surrogates are folded: repl_fx.fold(result.module)"
        )
    if is_flattened(value) or (type(value) is Tensor and name not in module._buffers):
        _require_whole(model, path)
    if module._forward_pre_hooks and name not in module._parameters:
        _require_one_adapter(module, path)
        value = _made_by_hook(module, name, value)
    if isinstance(value, Tensor) and value.is_meta:
        value = _offloaded(model, path, value)
    if type(value).__module__.startswith(("torchao.", _QUANTO)):
        value = value.dequantize()
    if name == "weight" and (fake := _fake(module)) is not None:
        value = _aside(fake, value)
    adapted = isinstance(value, Tensor) and hasattr(module, "base_layer") and hasattr(module, "active_adapters")
    return _adapted(module, path, value) if adapted else value


def _aside(made_by: nn.Module, *given: Any) -> Any:
    """The result of a module on copies of its buffers, which are for the forward of its layer alone."""
    return functional_call(made_by, {name: buffer.clone() for name, buffer in made_by.named_buffers()}, given)


def _fake(module: nn.Module) -> nn.Module | None:
    """The module by which a layer quantises its weight in each forward, to be trained for it; None where none does."""
    # torch.compile of torch 2.11 knows no name that is bound inside of a comprehension.
    return next(filter(None, map(module._modules.get, _FAKE)), None)


def _adapted(module: Any, path: str, value: Tensor) -> Tensor:
    """A parameter of a layer of PEFT, with what its adapters add."""
    if module.merged or module.disable_adapters:
        return value
    for adapter in module.active_adapters:
        kinds = {kind for kind in module.adapter_layer_names if adapter in getattr(module, kind, ())}
        if not kinds:
            continue
        known = (getattr(module, name, {}) for name in ("use_dora", "lora_bias", "lora_variant"))
        if kinds.isdisjoint(_ADDED) or any(more.get(adapter) for more in known) or hasattr(module, "parameter_name"):
            raise CallRefused(
                f"a surrogate is made from {path}, to which the adapter {adapter} ({', '.join(sorted(kinds))}) does "
                f"more than add; use plain LoRA, or exclude_modules={path.rpartition('.')[0]!r}"
            )
        if path.endswith(".weight"):
            value = value + module.get_delta_weight(adapter)
    return value


def _require_one_adapter(module: Any, path: str) -> None:
    """Refuse a call in which PEFT takes another adapter for each row, or one behind some positions alone.

    For such a call it hands its layers the names of the adapters, by a hook; no weight is that of the layer then.
    """
    for hook in module._forward_pre_hooks.values():
        named = hook.keywords if isinstance(hook, partial) else {}
        active = getattr(module, "active_adapters", ())
        if "alora_offsets" in named or ("adapter_names" in named and {*named["adapter_names"]} != {*active}):
            raise CallRefused(
                f"a surrogate is made from {path}, whose adapters this call chooses by rows or positions; make one "
                f"active with set_adapter and call the model without, or exclude_modules={path.rpartition('.')[0]!r}"
            )


def _made_by_hook(module: nn.Module, name: str, value: Any) -> Any:
    """The tensor that a hook of pruning, or of an older kind of norm on weights, will make before the next forward."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == name:
            return hook.apply_mask(module)  # type: ignore[no-untyped-call]
        if isinstance(hook, WeightNorm) and hook.name == name:
            return hook.compute_weight(module)
        if isinstance(hook, SpectralNorm) and hook.name == name:
            # The layer's own forward takes its step in place.
            given = {f"{name}_{part}": getattr(module, f"{name}_{part}") for part in ("orig", "u", "v")}
            copied: Any = SimpleNamespace(**given | {key: given[key].clone() for key in (f"{name}_u", f"{name}_v")})
            return hook.compute_weight(copied, do_power_iteration=module.training)
    return value


def _require_whole(model: nn.Module, path: str) -> None:
    """Refuse a weight that the first FSDP has sharded: outside of its module a part is there, or freed memory."""
    if any(is_in_shards(module) for module, _ in _around(model, path)):
        raise CallRefused(
            f"a surrogate is made from {path}, which FullyShardedDataParallel keeps in shards; use FSDP2: "
            "torch.distributed.fsdp.fully_shard, or fsdp_version=2 of accelerate and its Trainer"
        )


def _offloaded(model: nn.Module, path: str, value: Tensor) -> Tensor:
    """The tensor that a hook of accelerate will load before the layer, or a module around it, runs; or the value."""
    for module, name in _around(model, path):
        # Asked once: to ask whether it is there would read it from a disk, too.
        with suppress(KeyError):
            if (hook := _offloading_hook(module)) is not None:
                loaded: Tensor = hook.weights_map[name].to(hook.execution_device)
                return loaded
    return value


def _around(model: nn.Module, path: str) -> Iterator[tuple[nn.Module, str]]:
    """The modules around what lies at a path, from the innermost one out, and the path from each."""
    names = path.split(".")
    for depth in reversed(range(len(names))):
        yield model.get_submodule(".".join(names[:depth])), ".".join(names[depth:])


def _offloading_hook(module: nn.Module) -> Any:
    """The hook by which accelerate loads what a module has before it runs; None where there is none."""
    hook = getattr(module, "_hf_hook", None)
    return next((one for one in getattr(hook, "hooks", (hook,)) if getattr(one, "offload", False)), None)


@contextmanager
def loaded(block: nn.Module) -> Iterator[None]:
    """Load what accelerate offloaded of a surrogate, which reads parameters of layers that it never calls."""
    with ExitStack() as stack:
        for part in block.modules():
            if (hook := _offloading_hook(part)) is not None:
                hook.pre_forward(part)
                stack.callback(hook.post_forward, part, None)
        yield
