"""The origin of a rewritten module: all that is known of it besides tensors and graphs; the module itself has it.

    transform -> Origin, an attribute of each form of the model -> save -> manifest.json, plan.json, … -> load -> Origin

What `manifest.json` says of it are the fields of `Described`, as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from repl_fx.plan import Plan
from repl_fx.tracing.parts.inputs import Inputs
from repl_fx.tracing.parts.search import Eager

# The config of a model of transformers, which `save_pretrained` writes beside the manifest.
CONFIG = "config.json"


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a manifest; a field that it does not know is an error."""


class SourceOptions(Strict, frozen=True):
    """Keyword arguments of `load_source`."""

    input_shape: str | None
    seed: int
    options: dict[str, Any]
    pretrained: bool = False


class Preprocessing(Strict, frozen=True):
    """The way of a picture into a trained model, as its library prepares it for evaluation.

    Attributes:
        by: whose it is, in words.
        resize: the pixels that the shorter side is brought to, or height and width; empty leaves the size.
        interpolation: of the resizing, as PIL names it: `bilinear`, `bicubic`, `nearest`, `lanczos`, `box`, `hamming`.
        crop: height and width of the middle that is taken; empty takes all.
        mean, std: of each channel, from 0 to 1, by which it is standardised; empty where it is not.
        rounds: whether half a pixel beside the crop is rounded to even, as timm does; else it is left out.
    """

    by: str
    resize: tuple[int, ...] = ()
    interpolation: str = "bilinear"
    crop: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    rounds: bool = True

    def __str__(self) -> str:
        """The sizes, in words."""
        to = " x ".join(map(str, self.resize))
        words = [f"{'the shorter side' if len(self.resize) == 1 else 'it is'} brought to {to} pixels"] if to else []
        words += [f"{self.interpolation}"] if to else []
        words += [f"the middle {' x '.join(map(str, self.crop))} taken"] if self.crop else []
        return ", ".join(words)


class Weights(Strict, frozen=True):
    """The weights that a model had when it was transformed; an artifact does not hold those of replaced blocks.

    Attributes:
        file: the file or directory they were loaded from; None for those that the specification alone leads to.
        sha256: see `repl_fx.sources.checkpoints.digest`; empty for weights without values.
    """

    file: str | None
    sha256: str


class Model(Strict, frozen=True, rename={"kind": "class"}):
    """The recipe of the source model.

    Attributes:
        spec: see `repl_fx.sources`; the path of a file is absolute, but for that of the config beside the manifest.
        options: the other arguments of `load_source`.
        kind: name of its class.
        files: the files that it was made from, each with the SHA-256 of what was read.
        weights: those of the model before; None where they are not known.
        preprocessing: of pictures, where the weights come with it.
    """

    spec: str
    options: SourceOptions
    kind: str
    files: dict[str, str]
    weights: Weights | None = None
    preprocessing: Preprocessing | None = None

    @property
    def is_beside(self) -> bool:
        """Tell whether the model is built from the config beside the manifest alone, which is no code."""
        return self.spec == f"hf:{CONFIG}:{self.kind}" and self.files.keys() == {CONFIG}


class Captured(Strict, frozen=True, rename={"kind": "class"}):
    """A captured part that holds what was replaced.

    Attributes:
        path: of the module; empty where the whole model is one graph.
        kind: name of its class.
        dynamic: for each tensor argument, the dimensions that stayed dynamic.
        refused_sizes: the conditions under which the graph takes inputs of other sizes.
    """

    path: str
    kind: str
    tracer: str
    dynamic: dict[str, tuple[int, ...]]
    inputs: Inputs
    refused_sizes: tuple[str, ...]


class Described(Strict, frozen=True, kw_only=True):
    """The part of a manifest on the origin of a module.

    Attributes:
        code: hash of the code of the user's own classes in the model, as it was then.
        model: how the source is built; None where it was given in Python.
        parts: the captured parts that hold what was replaced.
        eager: modules that were tried and are no parts.
        inputs: the example inputs of the model.
        fixed: names of the dimensions of inputs that stay as in the example, because they were asked to.
        in_place: whether the module is the model in place, under the names of whose tensors the weights are.
        checkpoint_blocks: whether the model in place computes its kept blocks again in the backward pass.
        by_graph: the surrogates of the model in place that run their graph where their block's own code would compute
            otherwise; None where there is no model in place, or none that was compared with the graph.
    """

    code: str
    model: Model | None = None
    parts: tuple[Captured, ...]
    eager: tuple[Eager, ...]
    inputs: Inputs
    fixed: tuple[str, ...] = ()
    in_place: bool = False
    checkpoint_blocks: bool = False
    by_graph: tuple[str, ...] | None = None

    def described(self) -> dict[str, Any]:
        """These fields by name."""
        return {name: getattr(self, name) for name in Described.__struct_fields__}


class Origin(Described, frozen=True, kw_only=True):
    """All that `save` needs to know of a rewritten module besides its tensors.

    Attributes:
        structure: the text of what was captured (`repl_fx.tracing.fingerprint`).
        made: the text of the code of the module, as it was made.
        scores: what each block was worth, where the plan was made from that.
        pretrained: see `repl_fx.rewriting.in_place.pretrained.has_from_pretrained`.
        captured: the captured parts as text (`repl_fx.tracing.parts.stored`); empty where there is none.
    """

    plan: Plan
    structure: tuple[str, ...]
    made: tuple[str, ...]
    scores: Mapping[str, float] = msgspec.field(default_factory=dict)
    pretrained: bool = False
    captured: str = ""

    def __deepcopy__(self, memo: dict[int, Any]) -> Origin:
        return self
