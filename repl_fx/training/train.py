"""Training in Python: a model or the result of a transform, and data; what `repl-fx train` does with directories."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from repl_fx.arguments import require_kind, require_module, require_ordinary_tensors, require_path
from repl_fx.display.progress import shown, stage
from repl_fx.errors import BadInput, needing
from repl_fx.rewriting.result import HoldsResult, TransformResult, result_and_model
from repl_fx.training.data.data_set import Data, UserData
from repl_fx.training.data.user_code import as_data
from repl_fx.training.train_config import MAKING, TrainConfig

if TYPE_CHECKING:
    from repl_fx.training.run import TrainingResult


@shown("train")
def train(
    model: TransformResult | HoldsResult | nn.Module,
    data: Any,
    *,
    config: TrainConfig | None = None,
    teacher: nn.Module | None = None,
    directory: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[str], None] | None = None,
    **settings: Any,
) -> TrainingResult:
    """Train a model, which has its trained weights behind the call.

    Args:
        model: any model, or what `transform`, `compress` or `load_artifact` returned, whose `model` is trained: with
            the tensors that it shares with the source, unless it was transformed with `copy=True`.
        data: a pair of loaders (train, test), each a DataLoader, a Dataset, a list of batches or a function that
            returns batches, of (inputs, targets); or one of them, whose batches are held out as well; or
            `repl_fx.training.data.Data`, a LightningDataModule, or a specification such as "cifar10".
        config: settings that others come before.
        teacher: the original model, to learn from.
        directory: of the run: its checkpoints, log and figures go into `train_state`. By default no file stays.
        resume: go on from the last checkpoint in the directory.
        progress: called with the name of each stage as it begins, in place of a bar (`REPL_FX_PROGRESS`).
        **settings: those of `repl-fx train`, such as `epochs=3, lr=1e-3, batch_size=64`; a schedule (`replace_at`,
            `restore_at`, `neighbours`, `learn`) wants the result of a transform.

    Returns:
        The figures and the model: the one that was given, but for a schedule, which may end with another.

    Raises:
        BadInput: settings that are none, data and model that do not fit, a loss that is no number, or nothing to go on
            from.
        OutputError: the directory cannot be written.
    """
    with needing("train", "train"):
        from repl_fx.training.run import train_once
        from repl_fx.training.schedules import train_in_phases
    result, trained = result_and_model(model)
    require_module("train", trained)
    if teacher is not None:
        require_module("train", teacher, name="teacher")
    if directory is not None:
        require_path(directory, "the directory of a run")
    require_ordinary_tensors()
    if chosen := next((name for name in (*MAKING, "data", "compare", "seeds") if name in settings), None):
        raise BadInput(f"{chosen} is a setting of repl-fx train, which makes the models; leave it out")
    config = settings_for("train", config or TrainConfig(), data, settings)
    if resume and directory is None:
        raise BadInput("resume goes on with the run of a directory; give directory")
    given = data_of(data, config)
    stage("train")
    how: Any = {"resume": resume, "kept": directory is not None, "teacher": teacher}
    with TemporaryDirectory() if directory is None else nullcontext(directory) as place:
        if not config.is_scheduled:
            return train_once(trained, given, config, Path(place), **how)
        if result is None:
            raise BadInput("replace_at, restore_at, neighbours and learn are for the result of a transform; give that")
        return train_in_phases(result, given, config, Path(place), **how)


def settings_for(call: str, config: TrainConfig, data: Any, settings: Mapping[str, Any]) -> TrainConfig:
    """The settings of a call, which name the data where those are a specification.

    Args:
        call: its name, for messages.
        config: the settings that others come before.
        data, settings: what the call was given, see `train`.

    Raises:
        BadInput: settings that are none.
    """
    require_kind(config, TrainConfig, f"{call} takes a TrainConfig for config")
    named = {"data": data} if isinstance(data, str) else {}
    return config.changed_in(call, {**settings, **named})


def data_of(given: Any, config: TrainConfig) -> Data | UserData:
    """The data of a call, see `train`; a specification is in the settings, see `settings_for`.

    Raises:
        BadInput: they are none.
    """
    if isinstance(given, UserData):
        return given
    if isinstance(given, str):
        from repl_fx.training.loading import read_data

        return read_data(config)
    several = given if isinstance(given, tuple) else (given,)
    pair = isinstance(given, tuple)
    made = tuple(_loader(one, config, shuffle=not n, drop_last=pair and not n) for n, one in enumerate(several))
    found = made if pair else made[0]
    return as_data(found, lambda: found, "data", "data")


def _loader(given: Any, config: TrainConfig, *, shuffle: bool, drop_last: bool) -> Any:
    """A loader for a data set; all else as it is."""
    if not isinstance(given, Dataset):
        return given
    if isinstance(given, IterableDataset):
        return DataLoader(given, config.batch_size)
    # What is left may be one sample, of which a batch norm has no variance; of a small data set it is all.
    drop_last = drop_last and isinstance(given, Sized) and len(given) > config.batch_size
    return DataLoader(given, config.batch_size, shuffle=shuffle, drop_last=drop_last)
