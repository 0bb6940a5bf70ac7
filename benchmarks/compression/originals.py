"""Networks that are trained once, and their weights kept."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from benchmarks.training.tasks import Task
from repl_fx.costs.counted import measure_costs
from repl_fx.planning.scoring.score_blocks import score_blocks
from repl_fx.planning.scoring.scores import Scores
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.tracing.parts.capture_parts import CapturedParts, capture_parts
from repl_fx.training.calibration import calibration
from repl_fx.training.data.data_set import Data
from repl_fx.training.run import train_once
from repl_fx.training.train_config import TrainConfig

SAMPLES = 512
# The figure that says how good a network is, and whether more of it is better, by task.
_BEST = {"classification": ("accuracy", True), "language-modelling": ("bits_per_byte", False)}


@dataclass(frozen=True, eq=False)
class Original:
    """A trained network.

    Attributes:
        task: it and its data.
        model: with its trained weights.
        data: the data.
        config: how it was trained.
        steps: of its training.
    """

    task: Task
    model: nn.Module
    data: Data
    config: TrainConfig
    steps: int

    @property
    def best(self) -> str:
        """The figure that says how good a network is."""
        return _BEST[self.data.task][0]

    @property
    def higher_is_better(self) -> bool:
        """Whether more of it is better."""
        return _BEST[self.data.task][1]

    @cached_property
    def inputs(self) -> ExampleInputs:
        """Two inputs, as the network gets them."""
        (found,) = next(self.batches())
        return ExampleInputs((found[:2],))

    @cached_property
    def captured(self) -> CapturedParts:
        """Its graph."""
        return capture_parts(self.model, self.inputs.args)

    @cached_property
    def scores(self) -> Scores:
        """The influence of its blocks, on samples of the training data."""
        return score_blocks(self.captured, self.batches)

    @cached_property
    def flops(self) -> int:
        """Of one input in evaluation."""
        return flops_of(self.model, self.inputs)

    def batches(self) -> Iterator[tuple[Any, ...]]:
        """Samples of the training data, without targets, the same each time."""
        batches, _ = calibration(self.model, self.data, self.config, SAMPLES, with_loss=False)
        return (given for given, _ in batches())

    def copy(self) -> nn.Module:
        """A network with the same weights, of its own."""
        made = self.task.build()
        made.load_state_dict(self.model.state_dict())
        return made


def flops_of(model: nn.Module, inputs: ExampleInputs) -> int:
    """FLOPs of one input in evaluation."""
    found = measure_costs(model, inputs.args).flops_per_sample
    assert found is not None
    return int(found)


def original(task: Task, data: Data, seed: int, folder: Path) -> Original:
    """The network of a task, trained from a seed; its weights are read where they were kept.

    Args:
        folder: where weights are kept.
    """
    torch.manual_seed(seed)
    model = task.build()
    config = task.config.changed(seed=seed, device="auto")
    file = folder / f"{task.name.replace('/', '-')}-{seed}.safetensors"
    known = file.with_suffix(".json")
    if not known.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as place:
            made = train_once(model, data, config, Path(place))
        save_model(model.cpu(), str(file))
        known.write_text(json.dumps({"steps": made.steps, "figures": made.figures}) + "\n")
    load_model(model, str(file))
    return Original(task, model.eval(), data, config, json.loads(known.read_text())["steps"])


def first_tensor(inputs: ExampleInputs) -> Tensor:
    """The input of a network that takes one."""
    (found,) = inputs.args
    assert isinstance(found, Tensor)
    return found
