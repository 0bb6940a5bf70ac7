"""The registry of data sets: names, kinds and paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from repl_fx.errors import BadInput
from repl_fx.training.data.data_set import Data
from repl_fx.training.data.sets import default_root, known_data, load_data


def test_known_specifications() -> None:
    assert {"digits", "cifar10", "folder:PATH", "hf:NAME", "file.py:function"} <= set(known_data())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cifar", r"no data set 'cifar'; did you mean cifar10\?; known are digits, cifar10, svhn, .*file.py:function$"),
        ("npz", r"no data set 'npz'; did you mean npz:\?"),
        ("digits:8", "no data set 'digits:8'"),
        ("", "no data set ''; known are"),
        ("npz:", "'npz:' names nothing behind the colon; write npz:PATH"),
        ("hf:", "'hf:' names nothing behind the colon; write hf:NAME"),
    ],
)
def test_specifications_that_lead_nowhere(spec: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as refused:
        load_data(spec)
    assert "\n" not in str(refused.value)


def test_options_reach_the_request() -> None:
    with pytest.raises(BadInput, match="held_out is 2"):
        load_data("digits", held_out=2)


def test_a_size_that_nothing_would_follow_is_refused(tmp_path: Path) -> None:
    for spec in ("digits", "cifar10", f"coco:{tmp_path}", f"text:{tmp_path}", "data.py:sets"):
        with pytest.raises(BadInput, match=r"size is for folder:PATH, masks:PATH, hf:NAME; leave out --size$"):
            load_data(spec, size=64)


def test_named_sets_lie_below_the_default_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert default_root().is_relative_to(tmp_path)
    with pytest.raises(BadInput, match=f"svhn: no train_32x32.mat and 1 more in {default_root()}"):
        load_data("svhn")


def test_a_path_may_hold_colons(tmp_path: Path) -> None:
    path = tmp_path / "a:b.txt"
    path.write_bytes(b"x" * 100)
    data = load_data(f"text:{path}", context=4)
    assert isinstance(data, Data) and data.shape == (4,)
