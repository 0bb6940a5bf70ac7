"""What a function's code names, and whether it may write to what lies there."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from repl_fx.running.code_names import HANDED_ON, READ, WRITTEN, is_installed, names_in, use_of

TABLE: Any = [1.0, 2.0]


def reads(x: Any, i: int) -> Any:
    if i in TABLE and len(TABLE) > i:
        x = x * TABLE[i] + torch.from_numpy(np.asarray(TABLE))[i]
    return x + TABLE.index(1.0) + torch.tensor(TABLE)


def keeps_a_name(x: Any, i: int) -> Any:
    row = TABLE
    return x * row[i]


def hands_on(x: Any) -> Any:
    for value in TABLE:
        x = x * value
    return x


def hands_on_an_item(x: Any, i: int) -> Any:
    item = TABLE[i]
    item.append(1)
    return x


def appends(x: Any) -> Any:
    TABLE.append(1)
    return x


def assigns(x: Any) -> Any:
    TABLE[0] = 1
    return x


def adds(x: Any) -> Any:
    global TABLE
    TABLE += [1]
    return x


def deletes(x: Any) -> Any:
    del TABLE[0]
    return x


def passes_on(x: Any) -> Any:
    return appends(TABLE)


def under_another_name(x: Any) -> Any:
    log = TABLE
    log.append(1)
    return x


def returns(x: Any) -> Any:
    return TABLE


def by_a_constant_name(x: Any) -> Any:
    getattr(x, "TABLE").append(1)  # noqa: B009
    return x


def of_an_array(x: Any) -> Any:
    torch.from_numpy(TABLE).add_(1)
    return x


@pytest.mark.parametrize(
    ("function", "use"),
    [
        (reads, READ),
        (keeps_a_name, READ),
        (hands_on, HANDED_ON),
        (hands_on_an_item, HANDED_ON),
        *((f, WRITTEN) for f in (appends, assigns, adds, deletes, passes_on, under_another_name, returns)),
        (by_a_constant_name, WRITTEN),
        (of_an_array, WRITTEN),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_use_of_a_name(function: Callable[..., Any], use: int) -> None:
    assert use_of(function.__code__, "TABLE") == use


def test_code_without_a_source_may_write() -> None:
    space: dict[str, Any] = {}
    exec("def reads(x):\n    return x * TABLE[0]", space)
    assert names_in(space["reads"].__code__).globals == {"TABLE"}
    assert use_of(space["reads"].__code__, "TABLE") == WRITTEN


def test_globals_are_no_attributes() -> None:
    def names(x: Any) -> Any:
        from torch.nn import functional

        def inner() -> Any:
            return functional.relu(x.data)

        x.kept = TABLE
        return inner()

    found = names_in(names.__code__)
    assert found.globals == {"TABLE"} and found.attributes == {"kept", "data", "relu", "functional"}
    assert found.imports == {"torch.nn"} and found.stored == {"kept", "functional"}


def test_names_that_are_made_as_it_runs() -> None:
    def constant(x: Any) -> Any:
        return getattr(x.inner, "scale", 1)

    def computed(x: Any, name: str) -> Any:
        return getattr(x, name, "scale")

    def of_the_file(name: str) -> Any:
        return globals()[name]

    assert "scale" in names_in(constant.__code__).attributes
    assert not names_in(constant.__code__).any_attribute and names_in(computed.__code__).any_attribute
    assert names_in(of_the_file.__code__).any_global and not names_in(computed.__code__).any_global


@pytest.mark.parametrize(
    ("place", "installed"),
    [
        # Of an environment below this one, of `pip install --user`, of Debian.
        ("/opt/base/lib/python3.11/site-packages/net.py", True),
        ("/home/user/.local/lib/python3.11/site-packages/nets/net.py", True),
        ("/usr/lib/python3/dist-packages/net.py", True),
        ("/home/user/my-site-packages/net.py", False),
        ("/home/user/net.py", False),
        (None, True),
    ],
)
def test_code_of_any_folder_of_packages_is_installed(place: str | None, installed: bool) -> None:
    file = ModuleType("net")
    file.__file__ = place
    assert is_installed(file) == installed
