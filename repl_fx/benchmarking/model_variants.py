"""The variants of a model that are measured side by side.

    original        the model as it is
    rewritten       with surrogates: the model in place, where there is one, else the graph
    unfolded        the same in inference as it was trained, which makes its weights in each forward pass
    depth-pruned    the same plan with nothing in place of the blocks (`identity`): the floor for time and memory
    checkpointed    the original, whose blocks are computed again in the backward pass (`torch.utils.checkpoint`)

Inference is that of the folded graphs, which is what is shipped; the original has nothing to fold, and beside the
rewritten one stands what an evaluation without a fold takes. Checkpoints change training alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import fx, nn

from repl_fx.benchmarking.results import CHECKPOINTED, ORIGINAL, PRUNED, REWRITTEN, UNFOLDED
from repl_fx.errors import BadInput
from repl_fx.finding.blocks import Repeat
from repl_fx.pipeline import rewrite_again
from repl_fx.rewriting.folding import fold
from repl_fx.rewriting.in_place.wrapped_forward import CheckpointedForward
from repl_fx.rewriting.result import TransformResult
from repl_fx.tracing.parts.capture_parts import qualified_name


@dataclass(frozen=True, eq=False)
class Variant:
    """One way to have a model, on the host.

    Attributes:
        form: of the module that is trained: `source`, `in place` or `graph`.
        module: the module that is trained.
        inference: the module that is run for its outputs; None where another variant is the same.
        graph: the graph that is exported; None where the model is no single graph.
    """

    form: str
    module: nn.Module
    inference: nn.Module | None
    graph: fx.GraphModule | None


def variants_of(result: TransformResult, model: nn.Module) -> dict[str, Callable[[], Variant]]:
    """The variants of a model by name, each made when it is called for.

    Args:
        result: of the transform.
        model: the rewritten model with its weights: `result.model`, or what was loaded from an artifact.
    """
    source = result.captured_parts.source
    return {
        ORIGINAL: lambda: Variant("source", source, source, _graph_of(result.captured_parts.module)),
        REWRITTEN: lambda: Variant(_form(result), model, fold(result.module), _graph_of(result.module)),
        UNFOLDED: lambda: Variant(_form(result), model, model, None),
        PRUNED: lambda: _pruned(result),
        CHECKPOINTED: lambda: _checkpointed(result),
    }


def _pruned(result: TransformResult) -> Variant:
    pruned = rewrite_again(result.captured_parts, result.plan.without_surrogates(), check=False)
    # In the form of the rewritten model, so that the two differ in nothing but the surrogates.
    module = pruned.model if _form(result) == "in place" else pruned.module
    form = _form(pruned) if _form(result) == "in place" else "graph"
    return Variant(form, module, fold(pruned.module), _graph_of(pruned.module))


def _checkpointed(result: TransformResult) -> Variant:
    model = copy.deepcopy(result.captured_parts.source)
    paths = block_modules(model, result.repeats)
    if not paths:
        raise BadInput("none of its blocks is one module, which a checkpoint could be put around")
    checkpoint_(model, paths)
    return Variant("source", model, None, None)


def _form(result: TransformResult) -> str:
    return "graph" if result.in_place.model is None else "in place"


def _graph_of(module: nn.Module) -> fx.GraphModule | None:
    return module if isinstance(module, fx.GraphModule) else None


def block_modules(model: nn.Module, repeats: Iterable[Repeat]) -> list[str]:
    """Paths of the modules that are blocks, in the order of the model's tree.

    A module beside a block and of its class counts as one: the first block of a stage often differs a little from the
    others. A block inside another one does not count, nor a list of modules, which nobody calls.
    """
    found: dict[str, None] = {}
    for path in (block.module_path for repeat in repeats for block in repeat.blocks if block.module_path):
        parent, kind = path.rpartition(".")[0], type(model.get_submodule(path))
        beside = model.get_submodule(parent).named_children() if kind.forward is not nn.Module.forward else ()
        found.update({qualified_name(parent, name): None for name, child in beside if type(child) is kind})
    ordered = [path for path, _ in model.named_modules() if path in found]
    return [path for path in ordered if not any(path.startswith(f"{other}.") for other in ordered)]


def checkpoint_(model: nn.Module, paths: Iterable[str]) -> None:
    """Let the modules at some paths of a model be computed again in the backward pass."""
    for path in paths:
        CheckpointedForward.put_on(model.get_submodule(path))
