"""Settings of a training run: one table for the YAML file, the flags of `repl-fx train` and the artifact.

Those of a compression are the settings of a run that heals, and a few more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import yaml
from msgspec import Meta

from repl_fx.errors import BadInput, one_line
from repl_fx.planning.settings import PlanSettings, converted
from repl_fx.planning.written_options import parse_budget

# How pictures are standardised: by mean and deviation of the data or of ImageNet, not at all, or by these, of each
# channel, from 0 to 1.
Scale = Literal["data", "imagenet", "none"] | tuple[tuple[float, ...], tuple[float, ...]]
# Settings of which data are read, and how.
READING = ("data", "data_dir", "download", "context", "size", "normalise", "mean", "std", "task")
# The teacher that has the weights of the specification itself.
FROM_SPEC = "original"
# Settings of which model is made, which an artifact has already.
MAKING = tuple(name for name in PlanSettings.__struct_fields__ if name != "graph")
# Settings of a run that heals, where none are given. A model that is nearly right is not shaken by a high rate.
HEALING: Mapping[str, Any] = {"teacher": FROM_SPEC, "teacher_values": 1.0, "epochs": 1, "lr": 3e-4}
# Settings that count, where they are given, from 1, and of what.
_COUNTS = {"save_every": "steps", "steps": "steps", "devices": "processes", "nodes": "machines", "size": "pixels"}
# Settings of what is learned from a teacher.
OF_TEACHER = ("teacher_logits", "teacher_values", "target_weight", "temperature")
# Settings of the steps of a training, of which a compression takes some with `heal` alone.
OF_HEALING = (
    *("epochs", "steps", "accumulate", "optimizer", "lr", "momentum", "weight_decay", "warmup", "clip", "ema"),
    *("teacher", *OF_TEACHER, "neighbours", "learn", "augment", "mixup", "cutmix"),
    *("save_every", "log_every", "tensorboard"),
)
# Settings that are for training from scratch.
NOT_TO_HEAL = (*MAKING, "compare", "seeds", "replace_at", "restore_at")
# Settings of a compression, where none are given.
COMPRESSING: Mapping[str, Any] = {**HEALING, "surrogate": "trained"}
# What a compression says by itself, or has no use for.
NOT_TO_COMPRESS = (
    *("every", "scores", "plan", "compare", "seeds", "replace_at", "restore_at"),
    *("devices", "nodes", "strategy", "find_unused", "sync_batchnorm"),
)


Config = TypeVar("Config", bound="TrainConfig")


class TrainConfig(PlanSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a training run; each has a flag of its name, with its line here for help.

    Attributes:
        compare: Train the original and the depth-pruned model too.
        seeds: Runs, each with the next seed.
        data: Data set: digits, cifar10, npz:PATH, folder:PATH, text:PATH, …
        data_dir: Directory of the files of named data sets.
        download: Download a named data set that is not there.
        context: Bytes in one input of text.
        size: Pixels that the sides of pictures in files are brought to; by default none.
        normalise: Standardise channels of pictures; by default as weights want, or as named data are.
        mean: Mean of each channel, from 0 to 1: 0.5 or 0.48,0.46,0.41.
        std: Deviation of each channel, likewise.
        task: Task of loaders: classification, …; or file.py:CLASS, a LightningModule.
        epochs: Passes over the training data.
        steps: Steps of the optimizer after which a run ends, in the place of epochs.
        batch_size: Inputs in a batch, of all processes together.
        full_batches: Give the model batches of this size alone; what fills none is left out, held-out data too.
        accumulate: Batches whose gradients make one step.
        optimizer: adamw or sgd.
        lr: Highest learning rate.
        momentum: Momentum of sgd.
        weight_decay: Decay of weights; not of norms, biases and gains.
        warmup: Share of the steps in which the rate rises.
        clip: Largest norm of the gradient; 0 for any.
        label_smoothing: Share of the target spread over all classes.
        teacher: Learn from the original model: its weights, a file; or `original`, as SPEC has it.
        teacher_logits: Weight of the teacher's logits in the loss.
        teacher_values: Weight of the teacher's values behind replaced blocks in the loss.
        target_weight: Weight of the targets beside a teacher.
        temperature: Temperature of the logits beside a teacher.
        augment: Shift and flip training pictures; by default those of data sets with a name alone.
        mixup: Alpha of mixup; 0 for none.
        cutmix: Alpha of cutmix; 0 for none.
        ema: Decay of an average of the weights; 0 for none.
        precision: float32, bfloat16 or float16.
        compile: Compile the model, by blocks where they are in place.
        save_every: Steps between checkpoints, besides those at the end of epochs.
        log_every: Steps between lines of the log.
        tensorboard: Write logs for TensorBoard too.
        deterministic: Use deterministic algorithms alone, on a GPU too.
        replace_at: Epochs before blocks are replaced; by default they are from the start.
        restore_at: Epochs before replaced blocks are whole again; by default they never are.
        neighbours: Neighbours of replaced blocks: train, freeze, or detach (no gradients from surrogates).
        learn: Parameters that learn: all, or those of surrogates alone.
        seed: Seed of order, augmentation and dropout.
        device: cpu, cuda or auto.
        devices: Processes on this machine, one a GPU; by default 1, or those of torchrun.
        nodes: Machines; by default those of torchrun, which starts them.
        strategy: Of several processes: ddp (auto), or fsdp2, which shards.
        find_unused: Let parameters take no part in some losses, with ddp.
        sync_batchnorm: Statistics of batch norms over all processes, on GPUs with ddp; else of each process alone.
    """

    compare: bool = False
    seeds: Annotated[int, Meta(ge=1)] = 1
    data: str = "digits"
    data_dir: str | None = None
    download: bool = False
    context: Annotated[int, Meta(ge=2)] = 256
    size: int | None = None
    normalise: Literal["data", "imagenet", "none"] | None = None
    mean: str | None = None
    std: str | None = None
    task: str | None = None
    epochs: Annotated[int, Meta(ge=1)] = 10
    steps: int | None = None
    batch_size: Annotated[int, Meta(ge=1)] = 64
    full_batches: bool = False
    accumulate: Annotated[int, Meta(ge=1)] = 1
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: Annotated[float, Meta(gt=0)] = 1e-3
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Meta(ge=0)] = 0.05
    warmup: Annotated[float, Meta(ge=0, le=1)] = 0.05
    clip: Annotated[float, Meta(ge=0)] = 1.0
    label_smoothing: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    teacher: str | None = None
    teacher_logits: Annotated[float, Meta(ge=0)] = 1.0
    teacher_values: Annotated[float, Meta(ge=0)] = 0.0
    target_weight: Annotated[float, Meta(ge=0)] = 1.0
    temperature: Annotated[float, Meta(gt=0)] = 2.0
    augment: bool | None = None
    mixup: Annotated[float, Meta(ge=0)] = 0.0
    cutmix: Annotated[float, Meta(ge=0)] = 0.0
    ema: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False
    save_every: int | None = None
    log_every: Annotated[int, Meta(ge=1)] = 10
    tensorboard: bool = False
    deterministic: bool = False
    replace_at: int | None = None
    restore_at: int | None = None
    neighbours: Literal["train", "freeze", "detach"] = "train"
    learn: Literal["all", "surrogates"] = "all"
    # Those of torch.manual_seed.
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    device: str = "auto"
    devices: int | None = None
    nodes: int | None = None
    strategy: Literal["auto", "ddp", "fsdp2"] = "auto"
    find_unused: bool = False
    sync_batchnorm: bool = False

    @property
    def has_own_module(self) -> bool:
        """Tell whether the task is a LightningModule of the user."""
        return self.task is not None and names_python_file(self.task)

    @property
    def is_scheduled(self) -> bool:
        """Tell whether the run is more than the training of all of one model: it has phases, or what does not learn."""
        return self.has_phases or self.neighbours != "train" or self.learn != "all"

    @property
    def has_phases(self) -> bool:
        """Tell whether blocks are there for some of the epochs alone."""
        return self.replace_at is not None or self.restore_at is not None

    @property
    def scale(self) -> Scale | None:
        """The standardisation of pictures that is asked for; None leaves it to the model and the data."""
        if self.mean is None or self.std is None:
            return self.normalise
        mean, std = (tuple(map(float, values.split(","))) for values in (self.mean, self.std))
        return mean, std

    def to_yaml(self) -> str:
        """All settings as YAML."""
        return msgspec.yaml.encode(self).decode()

    def require_consistent(self, where: str) -> None:
        """See `PlanSettings`."""
        super().require_consistent(where)
        wrong = next(_problems(self), None)
        if wrong is not None:
            raise BadInput(f"{where}: {wrong}")


class CompressConfig(TrainConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a compression; those of training are for healing.

    Attributes:
        score: How blocks are scored; gradient and loss need targets.
        samples: Training samples to score and fit on, at most.
        heal: Train the cut model against the original.
    """

    score: Literal["influence", "change", "gradient", "loss"] = "influence"
    samples: Annotated[int, Meta(ge=1)] = 512
    heal: bool = False

    def healing(self) -> TrainConfig:
        """The settings of the run that heals, whose artifact has its blocks replaced already."""
        own = msgspec.to_builtins(self)
        shared = {name: own[name] for name in TrainConfig.__struct_fields__ if name not in MAKING}
        return TrainConfig().changed(**shared)


def settings_to_compress() -> CompressConfig:
    """The settings where none are given."""
    return CompressConfig().changed(**COMPRESSING)


def _problems(config: TrainConfig) -> Iterator[str]:
    """A line for each setting that cannot be, or does not go with others; behind the first they count for nothing."""
    for name, what in _COUNTS.items():
        value = getattr(config, name)
        if value is not None and value < 1:
            yield f"{name} is {value}; give 1 or more {what}"
    yield from _problems_of_scale(config)
    if config.teacher is not None and not (config.teacher_logits or config.teacher_values):
        yield "a teacher with teacher_logits 0 and teacher_values 0 teaches nothing; give one of them"
    if (config.devices or 1) * (config.nodes or 1) > 1 and "latency" in (parse_budget(config.budget) or {}):
        yield (
            "a budget of latency is measured, and by each process in another way; make the plan first "
            "(repl-fx transform), and give it with plan"
        )
    yield from _problems_of_phases(config)


def _problems_of_scale(config: TrainConfig) -> Iterator[str]:
    """Means and deviations that are no numbers, or not both there."""
    if (config.mean is None) != (config.std is None) or (config.mean is not None and config.normalise is not None):
        yield "give mean and std, both, or else normalise"
    try:
        scale = config.scale
        right = not isinstance(scale, tuple) or (len(scale[0]) == len(scale[1]) and min(scale[1]) > 0)
    except ValueError:
        right = False
    if not right:
        yield (
            f"mean is {config.mean!r} and std {config.std!r}; give one number for each channel, such as "
            "0.485,0.456,0.406, and deviations above 0"
        )


def _problems_of_phases(config: TrainConfig) -> Iterator[str]:
    """Phases without an epoch, and what does not go with phases."""
    for name in ("replace_at", "restore_at"):
        epochs = getattr(config, name)
        if epochs is not None and not 1 <= epochs < config.epochs:
            yield f"{name} is {epochs} and epochs is {config.epochs}; give 1 or more, and fewer than all epochs"
    if config.steps is not None and config.has_phases:
        yield "replace_at and restore_at are counted in epochs; give epochs, and leave out steps"
    if config.replace_at is not None and config.restore_at is not None and config.restore_at <= config.replace_at:
        yield (
            f"restore_at is {config.restore_at} and replace_at is {config.replace_at}; blocks are restored after they "
            "were replaced"
        )
    if config.is_scheduled and (config.compare or config.seeds > 1):
        yield "replace_at, restore_at, neighbours and learn are for one run; leave out compare and seeds, or them"
    if config.has_phases and config.teacher is not None and config.teacher_values:
        yield (
            "teacher_values compares what is behind surrogates, which are there for some epochs alone with replace_at "
            "and restore_at; give teacher_values 0"
        )


def names_python_file(spec: str) -> bool:
    """Tell whether a specification is `file.py` or `file.py:name`."""
    return spec.endswith(".py") or (":" in spec and spec.rpartition(":")[0].endswith(".py"))


class _SettingsLoader(yaml.SafeLoader):
    """Reads YAML where `1e-3` is a number, as in YAML 1.2, and a name stands once; PyYAML takes the last of several."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """See PyYAML."""
        names = [name.value for name, _ in node.value]
        for at, name in enumerate(names):
            if name in names[:at]:
                raise yaml.MarkedYAMLError(problem=f"{name} stands twice", problem_mark=node.value[at][0].start_mark)
        return super().construct_mapping(node, deep)


_SettingsLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_config(file: Path, base: Config) -> Config:
    """The settings in a YAML file.

    Args:
        base: settings that those of the file come before.

    Raises:
        BadInput: the file cannot be read, or a setting in it is unknown or has a value that is none for it.
    """
    try:
        values = yaml.load(file.read_bytes(), _SettingsLoader)
    except yaml.MarkedYAMLError as problem:
        at = f" in line {problem.problem_mark.line + 1}" if problem.problem_mark else ""
        raise BadInput(f"the settings {file} cannot be read{at}: {problem.problem}") from problem
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as problem:
        raise BadInput(f"the settings {file} cannot be read: {one_line(problem)}") from problem
    if isinstance(values, dict | None):
        values = {**msgspec.to_builtins(base), **(values or {})}
    return converted(type(base), values, str(file))


def require_said(file: Path) -> None:
    """Refuse the settings of a run that was begun when all pictures were standardised, and augmented, in silence.

    Raises:
        BadInput: says how to go on as it began.
    """
    if b"normalise:" not in file.read_bytes():
        raise BadInput(
            f"{file} is of an older repl-fx and does not say whether pictures are standardised, as they were then; "
            "add `normalise: data` (and `size: PIXELS` for pictures in files) to go on as it began, or train anew"
        )
