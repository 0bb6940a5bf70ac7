"""Files that are no model, and inputs that are not those of the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor, fx, nn

from repl_fx.errors import BadInput, ExportError
from repl_fx.export import session, verify_onnx
from repl_fx.export.session import OnnxSession
from tests.export.subjects import X


def test_files_that_are_no_model(exported: tuple[fx.GraphModule, Path], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no ONNX file"):
        verify_onnx(exported[0], tmp_path / "nowhere.onnx", (X,))
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(ExportError, match=r"cannot load .*junk.onnx"):
        verify_onnx(exported[0], tmp_path / "junk.onnx", (X,))


def test_a_provider_that_is_not_there_is_refused(
    exported: tuple[fx.GraphModule, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert OnnxSession(exported[1], threads=1).settings()["provider"] == "CPUExecutionProvider"
    monkeypatch.setitem(session._PROVIDERS, "cuda", "NoExecutionProvider")
    with pytest.warns(UserWarning), pytest.raises(ExportError, match="has no NoExecutionProvider that works here"):
        OnnxSession(exported[1], "cuda")


def test_inputs_that_do_not_match_name_both(exported: tuple[fx.GraphModule, Path]) -> None:
    class Renamed(nn.Module):
        def forward(self, pixels: Tensor, mask: Tensor) -> Tensor:
            return pixels * mask

    with pytest.raises(BadInput, match="takes the inputs x, the module pixels, mask"):
        verify_onnx(Renamed(), exported[1], (X, X))
    with pytest.raises(BadInput, match="has 2 dimensions in"):
        verify_onnx(exported[0], exported[1], (X[None],))
    with pytest.raises(BadInput, match="batch 4 cannot be compared: dimension 1 of input 'x' is fixed to 16"):
        verify_onnx(exported[0], exported[1], (X[:, :8],))
