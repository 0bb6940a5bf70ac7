"""The base class of surrogates, and the registry of all of them.

A surrogate is a frozen dataclass of settings and one class, in one file, registered by a key (docs/extending.md).
A package offers surrogates by entry points of the group `repl_fx.surrogates`: the key, and the module that registers
it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from torch import Tensor, fx, nn

from repl_fx.arguments import require_kind
from repl_fx.config import load_offered, offered
from repl_fx.errors import BadInput, UnknownSurrogate, close_matches, is_ours
from repl_fx.plan import Refusal

if TYPE_CHECKING:
    from repl_fx.surrogates.shared.builder import Builder
    from repl_fx.surrogates.shared.site import Site

Config = TypeVar("Config")
# Where a thin surrogate can have its weights from.
_SOURCES = ("neighbours", "own")
_GROUP = "repl_fx.surrogates"
_REGISTRY: dict[str, tuple[type[Any], type[Any]]] = {}
Kind = TypeVar("Kind", bound=type[Any])


@dataclass(frozen=True)
class Match:
    """The result of a surrogate's look at a block that it can stand in for; a subclass holds the needs of its `build`.

    Attributes:
        kept_parameters: which of the block's own parameters may still be read afterwards; None for those that no branch
            mixes with (`Site.unmixed_parameters`).
        left: what is left of a block that is there in a smaller size, in words, such as `32 of 64 hidden units`.
    """

    kept_parameters: Collection[str] | None = field(default=None, kw_only=True)
    left: str = field(default="", kw_only=True)


Found = TypeVar("Found", bound=Match)


@dataclass(frozen=True)
class Traits:
    """The traits of a surrogate by which plans, passes and models in place tell it from others.

    Attributes:
        source: what it is made from. `neighbours`: the kept blocks around, so that no two blocks in a row can go;
            `block`: the block itself in a smaller size, so that blocks at the ends of a repeat can go too, and the
            block can be the neighbour of others; `stream`: the stream alone, so that one stand-in, in the place of the
            last, does the work of several blocks in a row, and the others go; `nothing`: nothing stays of the block,
            and nothing is made in its place.
        keeps_nodes: whether the block's nodes stay, on other values of its parameters, so that what is used outside of
            it (attention maps, inner features) is still there. Nodes that make such values have the note `STANDS_FOR`:
            a model in place runs the block's own code on them.
        reads_stream_alone: whether the stand-in is a function of the block's stream, whatever else the block is handed:
            a mask, a cache, a flag. Else a model in place refuses calls that differ from those of the trace in such.
        fills_buffers: whether what stays of the block computes anew, as the block did, the buffers that each forward
            fills before it reads them.
        changes_neighbours: whether it changes a layer of the block before, which in the model's own tree stays the
            model's.
        error_left: the share of a removed block's error that is left with it in the block's place, as measured on
            trained networks: where a budget may choose between surrogates, a block is worth its score times that.
    """

    source: Literal["neighbours", "block", "stream", "nothing"] = "neighbours"
    keeps_nodes: bool = False
    reads_stream_alone: bool = False
    fills_buffers: bool = False
    changes_neighbours: bool = False
    error_left: float = 1.0

    @property
    def changes_sizes(self) -> bool:
        """Tell whether it can stand in for a block whose output has other sizes than its input."""
        return self.source in ("block", "stream")


class Surrogate(ABC, Generic[Config, Found]):
    """A kind of stand-in for replaced blocks, with its settings."""

    key: ClassVar[str]
    traits: Traits = Traits()

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def builds_by_ours(self) -> bool:
        """Tell whether `build` is repl-fx's own, so that what fails in it is a defect, and not a package's affair."""
        return is_ours(self.build.__module__)

    def made_from(self, before: str, after: str) -> tuple[str, ...]:
        """The blocks around that its weights or values come from, by name."""
        own = self.traits.source != "neighbours" or getattr(self.config, "weights", "") == "own"
        return () if own else tuple(filter(None, (before, after)))

    def sizes(self) -> tuple[Surrogate[Any, Any], ...]:
        """The same where its size is open: smaller and smaller ones, of which a budget takes the first it can meet."""
        return (self,)

    @abstractmethod
    def match(self, site: Site) -> Found | Refusal:
        """Work the block at `site` out, once for planning and building.

        Returns:
            The match that `build` takes, or `site.refusal(reason)` where this surrogate cannot stand in for the block.
        """

    @abstractmethod
    def build(self, site: Builder, match: Found) -> tuple[fx.Node, ...]:
        """Make the nodes that stand in for the block.

        Nodes of the block that nobody uses afterwards, and parameters that only they used, are removed by the caller.

        Args:
            site: the site that was matched, in a copy of its graph.
            match: from `match`; it serves for several copies.

        Returns:
            The values that take the place of the block's outputs, one for each.
        """

    def whole_weights(self, match: Found, own: nn.Module, read: Callable[[str], Tensor]) -> Mapping[str, Tensor]:
        """The values of full size that the surrogate has, for a whole block that takes its place.

        Args:
            match: from `match`.
            own: the surrogate's own modules, as `build` named them.
            read: the tensor of now at a path of the graph.

        Returns:
            Parameters and buffers of the block by path in the graph; a mean of the neighbours' is for the others.
        """
        return {}

    def settings(self) -> dict[str, Any]:
        """The settings as plain data, for the plan."""
        config: Any = self.config
        return asdict(config)


def register_surrogate(key: str, config: type[Any]) -> Callable[[Kind], Kind]:
    """Register a class of surrogates, or of policies that choose them (`repl_fx.planning.policies`), under a key.

    Args:
        key: its name in `--surrogate` and in plans. Registering a key again replaces the old entry.
        config: its frozen dataclass of settings, every one with a default.

    Raises:
        BadInput: a key that is no text, no dataclass, or a setting without a default.
    """
    require_kind(key, str, "register_surrogate takes a key")
    if not (isinstance(config, type) and is_dataclass(config)):
        raise BadInput(f"surrogate {key!r}: config is {config!r}; give the frozen dataclass of its settings")
    try:
        config()
    except TypeError as problem:
        raise BadInput(f"surrogate {key!r}: every setting of {config.__name__} needs a default ({problem})") from None

    def register(cls: Kind) -> Kind:
        vars_of: Any = cls
        vars_of.key = key
        _REGISTRY[key] = (cls, config)
        return cls

    return register


def known_surrogates() -> tuple[str, ...]:
    """The registered keys, and those that installed packages offer."""
    return tuple(sorted({*_REGISTRY, *offered(_GROUP)}))


def make_surrogate(key: str, settings: Mapping[str, Any] | None = None) -> Surrogate[Any, Any]:
    """Make a surrogate from its key and settings.

    Raises:
        UnknownSurrogate: nobody registered the key; lists the known ones.
        BadInput: a setting the surrogate does not have, or a value it refuses; or a package that fails.
    """
    if key not in _REGISTRY and key in offered(_GROUP):
        load_offered(_GROUP, key)
    if key not in _REGISTRY:
        raise UnknownSurrogate(key, known_surrogates())
    cls, config = _REGISTRY[key]
    known = {field.name: field.default for field in fields(config)}
    for name, value in (settings or {}).items():
        if name not in known:
            listed = ", ".join(sorted(known)) or "none"
            close = close_matches(name, known)
            raise BadInput(f"surrogate {key!r} has no setting {name!r}{close}; its settings are {listed}")
        if isinstance(known[name], bool) and not isinstance(value, bool):
            raise BadInput(f"{key}: {name} is {value!r}; it can be true or false")
    try:
        made: Surrogate[Any, Any] = cls(config(**(settings or {})))
    except TypeError as problem:
        given = ", ".join(f"{name}={value!r}" for name, value in (settings or {}).items())
        raise BadInput(f"surrogate {key!r} cannot be set to {given}: {problem}") from None
    return made


def check_thin_settings(key: str, ratio: Any, name: str, count: Any, weights: Any) -> None:
    """Check the settings that the thin surrogates share; the one called `name` overrides `ratio` by a number.

    Raises:
        BadInput: one makes no sense; names the setting and what it can be.
    """
    if not isinstance(ratio, (int, float)) or not isinstance(count, int | None):
        raise BadInput(f"{key}: ratio is {ratio!r} and {name} is {count!r}; they must be a number and a whole one")
    if not 0 < ratio <= 1:
        raise BadInput(f"{key}: ratio is {ratio}; it must be above 0 and at most 1")
    if weights not in _SOURCES:
        raise BadInput(f"{key}: weights is {weights!r}; it can be {' or '.join(_SOURCES)}")
    if count is not None and count < 1:
        raise BadInput(f"{key}: {name} is {count}; it must be 1 or more")
