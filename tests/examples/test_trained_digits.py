"""The example that trains weights to compress."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from examples.digits import example_inputs, model
from examples.trained_digits import data, main


@pytest.mark.slow
def test_it_writes_weights_that_the_model_takes(tmp_path: Path) -> None:
    main(tmp_path / "digits.safetensors", epochs=3)
    net = model()
    before = net(*example_inputs()).shape
    net.load_state_dict(load_file(tmp_path / "digits.safetensors"))
    _, held_out = data()
    with torch.no_grad():
        right = [(net.eval()(pictures).argmax(1) == classes).float() for pictures, classes in held_out]
    assert before == (2, 10) and float(torch.cat(right).mean()) > 0.5
