"""The benchmark of the compile time finds the functions it times."""

from __future__ import annotations

import pytest
from torch import nn

from benchmarks import compile_time
from tests.nets import TokenNet, tokens

# See `tests.captures`.
TRACED_ALONE = True


def test_every_part_of_a_transform_is_timed() -> None:
    model: nn.Module = TokenNet(depth=3)
    whole, watch, result = compile_time.rewrite(model, (tokens(),), {})
    timed = {row for row in watch.inclusive if row != compile_time.EXPORT}
    assert timed == set(compile_time.PARTS.values()) - {compile_time.EXPORT}
    assert watch.calls[compile_time.EXPORT] == 2
    assert abs(sum(watch.exclusive.values()) - whole) < 0.2 * whole
    assert len(result.plan.replacements) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_form_of_a_gpt_is_compiled() -> None:
    pytest.importorskip("transformers")
    found = compile_time.compiled_steps(6, backend=lambda gm, inputs: gm.forward)
    assert [one["form"] for one in found] == list(compile_time.FORMS)
    graphs = {one["form"]: one["graphs"] for one in found}
    assert graphs["captured, flat"] == graphs["rewritten, flat"] == 1
    # However many blocks there are: those with a surrogate behind them, the last, and the surrogates.
    assert graphs["captured, outlined"] == 1
    assert graphs["rewritten, outlined"] <= 3 and graphs["in place, by blocks"] <= 4


@pytest.mark.slow
def test_a_profile_accounts_for_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_time, "build", lambda name: (TokenNet(depth=3), (tokens(),)))
    found = compile_time.capture_profile("tokens", 1)
    rows = [found[row] for row in (*compile_time.PROFILE_ROWS, "rest")]
    assert sum(rows) == pytest.approx(found["capture"])
    assert found["traces"] >= 1 and all(found[row] > 0 for row in ("plain", "forward", "make_fx", "torch.export"))
    assert compile_time.profile_table([found]).count("\n") == 2
