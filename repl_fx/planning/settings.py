"""Settings of a model and of a plan for it, as flags and YAML files have them; commands extend them by their own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, get_args, get_type_hints

import msgspec
from msgspec import Meta

from repl_fx.errors import BadInput, close_matches
from repl_fx.planning.written_options import (
    parse_blocks,
    parse_budget,
    parse_list,
    parse_settings,
    read_plan,
    read_scores,
)

FLAGS = "the flags"
# What a plan says, which is given in their place.
_CHOOSING = ("every", "blocks", "finder", "budget", "scores", "ignore", "surrogate", "set")

Settings = TypeVar("Settings", bound="ModelSettings")


class ModelSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a model that a specification names; each has a flag of its name, with its line here for help.

    Attributes:
        weights: Trained weights: a safetensors file, a file of torch.save, or a directory with them.
        pretrained: Take the weights that timm or torchvision have for it, from their cache or downloaded.
        arg: An argument of what builds the model, such as num_classes=10 or depth=6; repeatable.
        input_shape: Shapes of the example inputs, such as 2x3x224x224 or ids:2x16:int64,mask:2x16:bool.
        fixed: Dimensions of the inputs that stay as in the example: height,width or x.2; by default none.
    """

    weights: str | None = None
    pretrained: bool = False
    arg: tuple[str, ...] = ()
    input_shape: str | None = None
    fixed: str | None = None

    def changed(self, **given: Any) -> Self:
        """The same with other settings, see `given_among`.

        Raises:
            BadInput: an unknown setting, or a value that is none for it; names it.
        """
        return self.changed_in(FLAGS, given)

    def changed_in(self, where: str, given: Mapping[str, Any]) -> Self:
        """The same with other settings, given in that place: see `changed`."""
        return converted(type(self), msgspec.to_builtins(self) | given_among(given), where)

    def require_consistent(self, where: str) -> None:
        """Refuse settings that do not go together.

        Args:
            where: the place that the settings are from, for messages.

        Raises:
            BadInput: names them.
        """
        if self.pretrained and self.weights is not None:
            raise BadInput(f"{where}: pretrained and weights both say which weights the model has; leave out one")

    def source_options(self) -> dict[str, Any]:
        """The options of `load_source`, but for the seed, the device and permissions.

        Raises:
            BadInput: an item of `arg` is no argument.
        """
        return {
            "input_shape": self.input_shape,
            "options": parse_settings(self.arg, option="--arg", like="num_classes=10"),
            "weights": True if self.weights is None else Path(self.weights),
            "pretrained": self.pretrained,
        }

    @property
    def fixed_names(self) -> tuple[str, ...]:
        """The dimensions that stay as in the example, by name.

        Raises:
            BadInput: one of the names is empty.
        """
        return () if self.fixed is None else tuple(parse_list(self.fixed, "--fixed", like="height,width"))


class PlanSettings(ModelSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a plan and of its model.

    Attributes:
        every: Replace each K-th block of each repeat.
        blocks: Replace these blocks, by number or name (3,5), or some of the modules of a pattern (layers.*).
        finder: Take the repeats from this finder of an installed package.
        budget: What may be left of a cost, such as params=0.7; repeatable.
        scores: With a budget, what each block is worth: a JSON file, by name.
        ignore: Keep blocks that match by name, or by a module or parameter inside; repeatable.
        surrogate: What stands in for a replaced block.
        set: A setting of the surrogate, such as ratio=0.25; repeatable.
        plan: Do what this plan.json says, in place of the options above.
        graph: Take the graph, also where the model could be in place.
        checkpoint_blocks: Compute kept blocks again in the backward pass, to keep less.
    """

    every: Annotated[int, Meta(ge=1)] = 2
    blocks: str | None = None
    finder: str | None = None
    budget: tuple[str, ...] = ()
    scores: str | None = None
    ignore: tuple[str, ...] = ()
    surrogate: str = "auto"
    set: tuple[str, ...] = ()
    plan: str | None = None
    graph: bool = False
    checkpoint_blocks: bool = False

    def require_consistent(self, where: str) -> None:
        """See `ModelSettings`."""
        super().require_consistent(where)
        changed = [name for name in _CHOOSING if not _is_default(self, name)]
        if self.plan is not None and changed:
            named = map(flag_of, changed) if where == FLAGS else changed
            raise BadInput(f"{where}: plan says which blocks go; leave out {', '.join(named)}")

    def planning_options(self) -> Any:
        """Those options of `transform` that say which blocks go, with what they say early: before a model is loaded.

        Raises:
            BadInput: they are none, or do not go together.
        """
        # Here, as `--help` of what has these flags need not wait for torch.
        from repl_fx.planning.budgets import budget_among

        options = {
            "every": None if self.budget and _is_default(self, "every") else self.every,
            "blocks": None if self.blocks is None else parse_blocks(self.blocks),
            "budget": parse_budget(self.budget),
            "scores": None if self.scores is None else read_scores(Path(self.scores)),
        }
        given = {name: value for name, value in options.items() if value is not None}
        budget_among(given)
        return given

    def transform_options(self) -> dict[str, Any]:
        """The options of `transform`, but for the seed and the model.

        Raises:
            BadInput, PlanMismatch: see `planning_options` and `read_plan`.
        """
        return {
            "surrogate": self.surrogate,
            "ignore": self.ignore,
            "settings": parse_settings(self.set) or None,
            "finder": self.finder,
            "fixed": self.fixed_names,
            "graph": self.graph,
            "checkpoint_blocks": self.checkpoint_blocks,
            "plan": None if self.plan is None else read_plan(Path(self.plan)),
            **self.planning_options(),
        }


def flag_of(name: str) -> str:
    """The flag of a setting."""
    return f"--{name.replace('_', '-')}"


def given_among(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The values of flags that were given: those that are not have None, or an empty list."""
    return {name: value for name, value in flags.items() if value not in (None, [])}


def converted(kind: type[Settings], values: Any, where: str) -> Settings:
    """Settings of a class from plain values.

    Args:
        where: the place that the values are from, for messages.

    Raises:
        BadInput: an unknown setting, a value that is none for it, or settings that do not go together.
    """
    try:
        settings = msgspec.convert(values, kind)
    except msgspec.ValidationError as problem:
        raise BadInput(f"{where}: {_told(str(problem), kind, values)}") from problem
    settings.require_consistent(where)
    return settings


def _told(problem: str, kind: type[ModelSettings], values: Any) -> str:
    """A complaint of msgspec, with the names and the value that it does not say."""
    if found := re.fullmatch(r"Object contains unknown field `(.*)`", problem):
        known = kind.__struct_fields__
        return f"no setting {found[1]!r}{close_matches(found[1], known)}; the settings are {', '.join(known)}"
    if found := re.fullmatch(r"Invalid enum value '(.*)' - at `\$\.(\w+)`", problem):
        known = get_args(get_type_hints(kind)[found[2]])
        return f"{found[2]} is {found[1]!r}{close_matches(found[1], known)}; it can be {', '.join(known)}"
    if found := re.fullmatch(r"Expected `([^`]*)`(?:( [<>]=? \S+)|, got .*) - at `\$\.(\w+)`", problem):
        return f"{found[3]} is {values[found[3]]!r}; it must be {found[1]}{found[2] or ''}"
    return problem


def _is_default(settings: PlanSettings, name: str) -> bool:
    return bool(getattr(settings, name) == getattr(PlanSettings(), name))
