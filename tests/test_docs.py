"""The code in the documentation runs."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import repl_fx
from repl_fx.cli import app
from repl_fx.passes.fold_surrogates import is_synthesis
from repl_fx.sources import load_source, registry as source_registry
from repl_fx.surrogates import make_surrogate
from repl_fx.surrogates.shared import registry as surrogate_registry
from tests.nets import ConvNet, TokenNet, images, tokens

ROOT = Path(__file__).parents[1]


def _code(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def test_the_readmes_model_file_is_transformed(tmp_path: Path) -> None:
    file = next(code for code in _code("README.md") if code.startswith("# net.py"))
    (tmp_path / "net.py").write_text(file)
    source = load_source(str(tmp_path / "net.py"))
    result = repl_fx.transform(source.model, source.args)
    assert [r.surrogate for r in result.plan.replacements] == ["bottleneck"] * 3


def test_the_readmes_walk_from_the_command_line_to_python_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = {
        name: text for text in _code("README.md") for name in ("net.py", "train.py") if text.startswith(f"# {name}")
    }
    (tmp_path / "first").mkdir()
    monkeypatch.chdir(tmp_path / "first")

    def run(*arguments: str, fails: str = "") -> None:
        result = CliRunner().invoke(app, arguments, prog_name="repl-fx")
        assert (result.exit_code, fails in result.stderr) == (2 if fails else 0, True), result.output

    Path("net.py").write_text(code["net.py"])
    run("transform", "net.py", "-o", "out")
    for train in (code["train.py"], code["train.py"].replace('load("out")', 'load("out", model="net.py")')):
        before = load_file("out/model.safetensors")
        exec(compile(train, "train.py", "exec"), {})
        after = load_file("out/model.safetensors")
        assert before.keys() == after.keys() and not torch.equal(before["0.weight"], after["0.weight"])
        run("export", "out")
        run("verify", "out", "out/model.onnx", "--per-layer")
        if train == code["train.py"]:
            # All of it moves, the model file too.
            Path(tmp_path / "first").rename(tmp_path / "second")
            monkeypatch.chdir(tmp_path / "second")
            run("export", "out", fails="take it with --model net.py:model")
            run("export", "out", "--model", "net.py")


def test_the_readmes_trained_weights_go_into_both_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = {text.partition("\n")[0]: text for text in _code("README.md")}
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(code["# net.py"])
    save_file(load_source("net.py", seed=1).model.state_dict(), "trained.safetensors")
    arguments = ["transform", "net.py", "-o", "out", "--weights", "trained.safetensors"]
    assert "    repl-fx " + " ".join(arguments) in (ROOT / "README.md").read_text()
    result = CliRunner().invoke(app, arguments, prog_name="repl-fx")
    assert result.exit_code == 0, result.output
    example = code["# load_trained.py"]
    exec(compile(example, "README.md", "exec"), {})
    shown = re.sub(r": [^:;]*(?=;|$)", ": …", capsys.readouterr().out.strip())
    assert f"# {shown}\n" in example


def test_the_readmes_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = next(code for code in _code("README.md") if "repl_fx.save(net" in code and "result.model" in code)
    names: dict[str, Any] = {"model": ConvNet(), "images": images(), "make_model": ConvNet}
    exec(compile(code, "README.md", "exec"), names)
    assert names["check"] and (tmp_path / "net.onnx").exists() and (tmp_path / "out" / "manifest.json").exists()
    assert "blocks.1 -> slim" in capsys.readouterr().out


def test_the_surrogate_of_the_docs_works(monkeypatch: pytest.MonkeyPatch) -> None:
    code = next(code for code in _code("docs/extending.md") if "register_surrogate" in code)
    # dataclasses look their module up by name.
    module = types.ModuleType("docs_surrogates")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, "docs/extending.md", "exec"), vars(module))
    x = tokens()
    gm = repl_fx.transform(TokenNet(), (x,), surrogate="one-layer").graph_module.eval()
    assert sum(is_synthesis(gm, node) for node in gm.graph.nodes) == 2
    assert torch.equal(repl_fx.fold(gm)(x), gm(x))
    with pytest.raises(repl_fx.NothingToReplace, match="it has no square weight"):
        repl_fx.transform(ConvNet(), (images(),), surrogate="one-layer")


def test_the_picture_of_the_folders_is_that_of_the_imports() -> None:
    pytest.importorskip("grimp")
    spec = importlib.util.spec_from_file_location("draw_architecture", ROOT / "docs" / "draw_architecture.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = script.PAGE.read_text()
    assert script.drawn(page) == page


def test_every_folder_is_in_the_table_of_the_architecture() -> None:
    told = set(re.findall(r"^\| `(\w+)[/.]", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE))
    folders = {path.name for path in (ROOT / "repl_fx").iterdir() if (path / "__init__.py").exists()}
    assert told - {"pipeline"} == folders


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package of docs/extending.md, installed; all of it is forgotten afterwards."""
    (tmp_path / "repl_fx_shop").mkdir()
    for code in _code("docs/extending.md"):
        name = re.match(r"# (repl_fx_shop/\w+\.py)", code)
        if name:
            (tmp_path / name[1]).write_text(code)
    project = re.search(r"```toml\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL)
    assert project is not None
    points = tomllib.loads(project[1])["project"]["entry-points"]
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
    for module in ("repl_fx_shop", "repl_fx_shop.models", "repl_fx_shop.one_layer"):
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.delitem(sys.modules, module)
    return tmp_path


def test_the_package_of_the_docs_extends_the_command_line(shop: Path) -> None:
    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="repl-fx")

    done = run("transform", "shop:mixer", "-o", shop / "out", "--surrogate", "one-layer")
    assert done.exit_code == 0 and "one-layer, from blocks.0" in done.stdout, done.output
    assert run("export", shop / "out").exit_code == 0
    assert "one-layer" in repl_fx.known_surrogates()
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
    exec(compile(_code("docs/extending.md")[-1], "docs/extending.md", "exec"), names)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 4))
    x = torch.randn(2, 4)
    gm = repl_fx.capture(model, (x,)).train()
    assert names["without_dropout"](gm) is gm
    assert torch.equal(gm(x), model.eval()(x))
    assert not names["remove_dropout_"](gm).modified


def test_the_table_of_debug_variables_is_complete() -> None:
    read = set(re.findall(r"REPL_FX_[A-Z_]+", (ROOT / "repl_fx" / "config.py").read_text()))
    told = set(re.findall(r"`(REPL_FX_[A-Z_]+)`", (ROOT / "docs" / "debugging.md").read_text()))
    assert read == told


def test_every_command_of_the_readme_exists() -> None:
    commands = set(re.findall(r"^ +repl-fx +(\w+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    files = {path.stem for path in (ROOT / "repl_fx" / "cli").glob("*.py")}
    assert commands and commands <= files
