"""Settings of a training run."""

from __future__ import annotations

from pathlib import Path

import pytest

import repl_fx
from repl_fx.cli.flags import lines_of_help
from repl_fx.errors import BadInput
from repl_fx.training.train_config import (
    COMPRESSING,
    NOT_TO_COMPRESS,
    CompressConfig,
    TrainConfig,
    read_config,
    settings_to_compress,
)


def test_settings_go_out_and_in(tmp_path: Path) -> None:
    config = TrainConfig(lr=0.1, optimizer="sgd", save_every=5)
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    assert read_config(file, TrainConfig()) == config
    file.write_text("")
    assert read_config(file, TrainConfig()) == TrainConfig()


def test_flags_come_before_and_what_is_not_given_stays() -> None:
    config = TrainConfig(lr=0.1).changed(lr=None, epochs=3, augment=False)
    assert (config.lr, config.epochs, config.augment) == (0.1, 3, False)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("lr: -1", "lr is -1; it must be float > 0.0"),
        ("rate: 1", "no setting 'rate'.*; the settings are weights, pretrained"),
        ("optimizer: adam", r"optimizer is 'adam'; did you mean adamw\?; it can be adamw, sgd"),
        ("save_every: 0", "save_every is 0; give 1 or more steps"),
        ("epochs: 3\nreplace_at: 3", "replace_at is 3 and epochs is 3; give 1 or more, and fewer than all epochs"),
        ("restore_at: 0", "restore_at is 0 and epochs is 10; give 1 or more"),
        ("replace_at: 4\nrestore_at: 4", "restore_at is 4 and replace_at is 4; blocks are restored after they were"),
        (
            "replace_at: 4\nseeds: 2",
            "neighbours and learn are for one run; leave out compare and seeds",
        ),
        ("restore_at: 4\nteacher: original\nteacher_values: 1", "give teacher_values 0"),
        ("neighbours: stop", "neighbours is 'stop'; it can be train, freeze, detach"),
        ("{plan: p.json, every: 3, set: [ratio=1]}", "plan says which blocks go; leave out every, set"),
        ("seeds: 0", "seeds is 0; it must be int"),
        ("- 1", "Expected `object`"),
        ("{", "cannot be read in line 1: "),
        ("epochs: 3\nlr: 0.1\nepochs: 4", "cannot be read in line 3: epochs stands twice"),
    ],
)
def test_what_is_no_setting_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(repl_fx.BadInput, match=problem):
        read_config(file, TrainConfig())


def test_a_rate_is_written_as_in_python(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    for text, rate in (("1e-3", 0.001), ("2E+1", 20.0), ("1.5e1", 15.0), ("3", 3.0)):
        file.write_text(f"lr: {text}")
        assert read_config(file, TrainConfig()).lr == rate
    file.write_text("data: 1e-3x")
    assert read_config(file, TrainConfig()).data == "1e-3x"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(repl_fx.BadInput, match=r"none.yaml cannot be read: .*No such file"):
        read_config(tmp_path / "none.yaml", TrainConfig())


def test_each_setting_has_a_line_of_help() -> None:
    lines = lines_of_help(TrainConfig)
    assert lines.keys() == set(TrainConfig.__struct_fields__)
    assert lines_of_help(CompressConfig).keys() == set(CompressConfig.__struct_fields__)
    assert set(NOT_TO_COMPRESS) < set(CompressConfig.__struct_fields__)
    assert all(line.endswith((".", "…")) and "\n" not in line for line in lines.values())


def test_a_budget_takes_the_place_of_every() -> None:
    config = TrainConfig().changed(budget=["params=0.7"])
    assert config.planning_options() == {"budget": {"params": 0.7}}
    assert TrainConfig().planning_options() == {"every": 2}
    with pytest.raises(BadInput, match="leave out every, or the budget"):
        config.changed(every=3).planning_options()
    with pytest.raises(BadInput, match="a budget of latency is measured, and by each process in another way"):
        TrainConfig().changed(budget=["latency=0.7"], devices=2)


def test_healing_has_the_settings_but_those_of_the_cut() -> None:
    config = settings_to_compress().changed(budget=["flops=0.7"], weights="w.pt", epochs=3, data="npz:d", lr=0.1)
    healing = config.healing()
    assert type(healing) is TrainConfig
    assert (healing.epochs, healing.data, healing.lr, healing.teacher) == (3, "npz:d", 0.1, "original")
    assert (healing.budget, healing.weights, healing.surrogate) == ((), None, "auto")
    assert config.surrogate == COMPRESSING["surrogate"] == "trained"


def test_settings_of_a_file_come_before_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("budget: [params=0.5]\nsamples: 64\n")
    config = read_config(file, settings_to_compress())
    assert isinstance(config, CompressConfig) and (config.samples, config.surrogate) == (64, "trained")
    file.write_text("samples: 0\n")
    with pytest.raises(BadInput, match="samples"):
        read_config(file, settings_to_compress())
    file.write_text("sampels: 3\n")
    with pytest.raises(BadInput, match=r"the settings are .*samples"):
        read_config(file, settings_to_compress())
