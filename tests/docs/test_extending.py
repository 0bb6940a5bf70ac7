"""The surrogate, the finder, the package and the pass of docs/extending.md work."""

from __future__ import annotations

import re
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import repl_fx
from repl_fx.cli import app
from repl_fx.passes.fold_surrogates import is_synthesis
from repl_fx.sources import registry as source_registry
from repl_fx.surrogates import make_surrogate
from repl_fx.surrogates.shared import surrogate as surrogate_registry
from tests.docs.pages import ROOT
from tests.nets import ConvNet, TokenNet, images, tokens

PAGE = "docs/extending.md"


def _code() -> dict[str, str]:
    """The blocks of the page by their titles; the last without one has the key ''."""
    blocks = re.findall(r"```(?:python|toml)(?: title=\"(.*?)\")?\n(.*?)```", (ROOT / PAGE).read_text(), re.DOTALL)
    return dict(blocks)


def test_the_surrogate_of_the_docs_works(monkeypatch: pytest.MonkeyPatch) -> None:
    code = _code()["repl_fx_shop/one_layer.py"]
    # dataclasses look their module up by name.
    module = types.ModuleType("docs_surrogates")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, PAGE, "exec"), vars(module))
    x = tokens()
    gm = repl_fx.transform(TokenNet(), (x,), surrogate="one-layer").graph_module.eval()
    assert sum(is_synthesis(gm, node) for node in gm.graph.nodes) == 2
    assert torch.equal(repl_fx.fold(gm)(x), gm(x))
    with pytest.raises(repl_fx.NothingToReplace, match="it has no square weight"):
        repl_fx.transform(ConvNet(), (images(),), surrogate="one-layer")


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package of docs/extending.md, installed; all of it is forgotten afterwards."""
    (tmp_path / "repl_fx_shop").mkdir()
    code = _code()
    for name in ("repl_fx_shop/models.py", "repl_fx_shop/one_layer.py", "repl_fx_shop/pairs.py"):
        (tmp_path / name).write_text(code[name])
    points = tomllib.loads(code["pyproject.toml"])["project"]["entry-points"]
    text = "".join(
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in offers.items())
        for group, offers in points.items()
    )
    installed = tmp_path / "repl_fx_shop-0.1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: repl-fx-shop\nVersion: 0.1\n")
    (installed / "entry_points.txt").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for registry in (surrogate_registry._REGISTRY, source_registry._REGISTRY):
        for key in ("one-layer", "shop"):
            monkeypatch.setitem(registry, key, None)
            monkeypatch.delitem(registry, key)
    for module in ("repl_fx_shop", "repl_fx_shop.models", "repl_fx_shop.one_layer", "repl_fx_shop.pairs"):
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.delitem(sys.modules, module)
    return tmp_path


@pytest.mark.slow
def test_the_package_of_the_docs_extends_the_command_line(shop: Path) -> None:
    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="repl-fx")

    done = run("transform", "shop:mixer", "-o", shop / "out", "--surrogate", "one-layer")
    assert done.exit_code == 0 and "one-layer, from blocks.0" in done.stdout, done.output
    assert run("export", shop / "out").exit_code == 0
    assert "one-layer" in repl_fx.known_surrogates()
    done = run("transform", "shop:mixer", "-o", shop / "pairs", "--finder", "pairs", "--surrogate", "identity")
    assert done.exit_code == 0 and "blocks.2-3  replaced" in done.stdout, done.output
    unknown = run("inspect", "shop:mixer", "--finder", "pears")
    assert unknown.exit_code == 2 and "unknown finder 'pears'; did you mean pairs?; known are pairs" in unknown.stderr
    # The plan says what the blocks are: the artifact needs no finder.
    (shop / "repl_fx_shop" / "pairs.py").unlink()
    assert run("inspect", shop / "pairs").exit_code == 0
    for spec, message in (
        ("shop:mixre", "shop: has no model 'mixre'; it has mixer"),
        ("shop:", "'shop:' names no model; write shop:NAME"),
        ("shpo:mixer", "no kind of model 'shpo'; did you mean shop?"),
    ):
        refused = run("inspect", spec)
        assert refused.exit_code == 2 and message in refused.stderr


def test_a_package_that_fails_is_named(shop: Path) -> None:
    (shop / "repl_fx_shop" / "one_layer.py").write_text("1 / 0\n")
    with pytest.raises(
        repl_fx.BadInput,
        match=r"repl-fx-shop offers 'one-layer' \(repl_fx.surrogates: repl_fx_shop.one_layer\), which fails",
    ):
        make_surrogate("one-layer")


def test_the_pass_of_the_docs_works() -> None:
    names: dict[str, Any] = {}
    exec(compile(_code()[""], PAGE, "exec"), names)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 4))
    x = torch.randn(2, 4)
    gm = repl_fx.capture(model, (x,)).train()
    assert names["without_dropout"](gm) is gm
    assert torch.equal(gm(x), model.eval()(x))
    assert not names["remove_dropout_"](gm).modified
