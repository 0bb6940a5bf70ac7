"""The parts of a rewritten model that do not learn: neighbours of replaced blocks, or all but the surrogates."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from repl_fx.errors import BadInput
from repl_fx.rewriting.result import TransformResult
from repl_fx.surrogates.shared.synthesis import OwnWeights, Synthesis, SynthesisBatch


@contextmanager
def treated(model: nn.Module, result: TransformResult, how: str, learn: str = "all") -> Iterator[None]:
    """Let neighbours be treated in some way meanwhile, or let surrogates alone learn.

    Args:
        model: the rewritten model that is trained.
        result: what is known of it.
        how: `train`; `detach`, which lets no gradient go through a synthesis into their weights; or `freeze`, which
            leaves their parameters as they are. Their running statistics go on: they follow what goes through them.
        learn: `all`; or `surrogates`, which leaves all parameters of the source as they are.

    Raises:
        BadInput: there is nothing to detach or to freeze, or nothing to train beside what is frozen.
    """
    with ExitStack() as stack:
        if learn == "surrogates":
            own = {name for name, _ in result.captured_parts.source.named_parameters(remove_duplicate=False)}
            stack.enter_context(_frozen(model, own, "learn=surrogates", "no surrogate has parameters"))
        if how == "detach":
            stack.enter_context(_detached(model))
        elif how == "freeze":
            around = neighbours_of(result)
            if not around:
                raise BadInput("neighbours=freeze is for surrogates between kept blocks; here is none")
            stack.enter_context(_frozen(model, around, "neighbours=freeze", "all parameters are those of neighbours"))
        yield


def neighbours_of(result: TransformResult) -> frozenset[str]:
    """The parameters of the kept blocks that surrogates are made from, by name in the model."""
    names = {name for r in result.plan.replacements for name in r.neighbours}
    blocks = (block for repeat in result.repeats for block in repeat.blocks)
    return frozenset(path for block in blocks if block.name in names for path in block.parameters)


@contextmanager
def _frozen(model: nn.Module, names: Collection[str], setting: str, why: str) -> Iterator[None]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found = {id(p): p for name, p in parameters.items() if name in names and p.requires_grad}
    if not any(p.requires_grad and id(p) not in found for p in parameters.values()):
        raise BadInput(f"{setting} leaves nothing to train: {why}")
    try:
        for parameter in found.values():
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in found.values():
            parameter.requires_grad_(True)


@contextmanager
def _detached(model: nn.Module) -> Iterator[None]:
    found = [synthesis for synthesis in _syntheses(model) if synthesis.train_neighbours]
    if not found:
        raise BadInput("neighbours=detach is for surrogates made from neighbours' weights; here is none")
    try:
        for synthesis in found:
            synthesis.train_neighbours = False
        yield
    finally:
        for synthesis in found:
            synthesis.train_neighbours = True


def _syntheses(model: nn.Module) -> Iterator[Synthesis]:
    """The syntheses of a model that read neighbours' weights."""
    for module in model.modules():
        if isinstance(module, SynthesisBatch):
            yield from module.members
        elif isinstance(module, Synthesis) and not isinstance(module, OwnWeights):
            yield module
