"""Models of diffusers and torchaudio, which have their own ways; skipped where the extra `bench` is not installed."""

from __future__ import annotations

import importlib.util

import pytest

import repl_fx
from benchmarks.zoo_models import all_cases, diffusers_models, torchaudio_models
from benchmarks.zoo_models.case import Case

pytestmark = pytest.mark.zoo


def test_the_zoo_has_both_families() -> None:
    cases = [*diffusers_models.cases(), *torchaudio_models.cases()]
    names = [case.name for case in cases]
    assert len(names) == len(set(names))
    assert sum(name.startswith("diffusers:") for name in names) >= 12
    assert sum(name.startswith("torchaudio:") for name in names) >= 6
    if importlib.util.find_spec("timm") and importlib.util.find_spec("torchvision"):
        assert set(names) <= {case.name for case in all_cases()}


# A layout asked for in training alone; a squeeze of a dimension that is not 1; a config that cannot be filled again.
@pytest.mark.parametrize("name", ["AutoencoderKL", "DiTTransformer2DModel"])
@pytest.mark.filterwarnings("ignore")
def test_diffusers(name: str) -> None:
    pytest.importorskip("diffusers")
    _require_exact(next(case for case in diffusers_models.cases() if case.name == f"diffusers:{name}"))


@pytest.mark.filterwarnings("ignore")
def test_torchaudio() -> None:
    if importlib.util.find_spec("torchaudio") is None:
        pytest.skip("torchaudio is not installed")
    _require_exact(next(case for case in torchaudio_models.cases() if case.name == "torchaudio:ConvTasNet"))


def _require_exact(case: Case) -> None:
    model, args, kwargs = case.build()
    captured = repl_fx.capture(model, args, kwargs)
    check = repl_fx.check_capture(model, captured, args, kwargs)
    assert check, check.differences
