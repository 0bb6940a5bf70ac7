"""Settings of a compression."""

from __future__ import annotations

from pathlib import Path

import pytest

from repl_fx.cli.flags import lines_of_help
from repl_fx.errors import BadInput
from repl_fx.training.compression.compress_config import (
    COMPRESSING,
    NOT_TO_COMPRESS,
    CompressConfig,
    settings_to_compress,
)
from repl_fx.training.train_config import TrainConfig, read_config


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


def test_each_setting_has_a_line_of_help() -> None:
    assert lines_of_help(CompressConfig).keys() == set(CompressConfig.__struct_fields__)
    assert set(NOT_TO_COMPRESS) < set(CompressConfig.__struct_fields__)
