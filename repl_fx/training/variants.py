"""The models of one source that are trained side by side: as it is, without blocks, and with surrogates for them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from repl_fx.benchmarking.results import ORIGINAL, PRUNED, REWRITTEN
from repl_fx.pipeline import transform
from repl_fx.plan import Plan
from repl_fx.rewriting.result import TransformResult
from repl_fx.sources import Purpose, Source, load_source
from repl_fx.sources.input_shapes import shape_at_batch
from repl_fx.tracing.parts.capture_parts import CapturedParts
from repl_fx.training.train_config import FROM_SPEC, TrainConfig

VARIANTS = (ORIGINAL, PRUNED, REWRITTEN)


@dataclass(frozen=True, eq=False)
class Models:
    """Builds the variants of a model; those of one seed begin with the same weights wherever they have the same layers.

    Attributes:
        spec: the specification of the source.
        config: the settings.
        trust_remote_code: see `load_source`.
        purpose: the data that the model is for; see `load_source`.
    """

    spec: str
    config: TrainConfig
    trust_remote_code: bool = False
    purpose: Purpose | None = None

    def source(self, seed: int) -> Source:
        """The source, its weights drawn by a seed where its own code seeds nothing."""
        config = self.config
        options = {**config.source_options(), "trust_remote_code": self.trust_remote_code, "purpose": self.purpose}
        return load_source(self.spec, seed=seed, **options)

    def at_own_batch(self, captured: CapturedParts, batch: int) -> Models | None:
        """Models with example inputs of a batch, where a capture of others takes their batch alone; else None.

        Their settings give them that batch alone.
        """
        shape = shape_at_batch(captured, batch)
        if shape is None:
            return None
        return replace(self, config=self.config.changed(input_shape=shape, full_batches=True))

    def teacher(self) -> nn.Module | None:
        """The original model with weights of its own, to learn from; None where the settings name no teacher."""
        named = self.config.teacher
        if named is None:
            return None
        config = self.config if named == FROM_SPEC else self.config.changed(weights=named)
        return replace(self, config=config).source(config.seed).model

    def transform(self, source: Source, plan: Plan | None = None) -> TransformResult:
        """Rewrite a source as the settings say, or by a plan."""
        options = self.config.transform_options() | ({} if plan is None else {"plan": plan})
        return transform(source.model, source.args, source.kwargs, seed=self.config.seed, **options)

    def variant(self, name: str, seed: int, plan: Plan) -> nn.Module:
        """A variant of the source of a seed.

        Args:
            name: one of `VARIANTS`.
            plan: that was applied to the rewritten model; the depth-pruned one goes without the same blocks.
        """
        source = self.source(seed)
        if name == ORIGINAL:
            return source.model
        return self.transform(source, plan if name == REWRITTEN else plan.without_surrogates()).model
