"""What shells complete, as they ask for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import repl_fx
from repl_fx.cli.completion import DATA, SURROGATES, TASKS, prepare_completion

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Run

    Ask = Callable[..., list[str]]


@pytest.fixture
def ask(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """The answers to bash, for words as bash breaks them, in a folder with a model, an artifact and more."""
    for file in ("net.py", "out/manifest.json", "nets/deep/model.py", "notes.txt", ".hidden.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> list[str]:
        monkeypatch.setenv("_REPL_FX_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", " ".join(("repl-fx", *words)))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        monkeypatch.setenv("_REPL_FX_BEFORE", "")
        done = run()
        assert done.exit_code == 0, done.output
        return done.stdout.split()

    return call


def test_the_names_are_those_of_the_registries() -> None:
    pytest.importorskip("pytorch_lightning")
    from repl_fx.training.data import known_data
    from repl_fx.training.data.data_set import TASKS as KNOWN_TASKS

    assert set(SURROGATES) == set(repl_fx.known_surrogates())
    assert [name.partition(":")[0] for name in DATA] == [name.partition(":")[0] for name in known_data()[:-1]]
    assert KNOWN_TASKS == TASKS


@pytest.mark.parametrize(
    ("words", "answers"),
    [
        (("tr",), ["transform", "train"]),
        (("inspect", ""), ["timm:", "torchvision:", "hf:", "net.py", "nets/", "out/", "out"]),
        (("transform", "n"), ["net.py", "nets/"]),
        (("transform", "nets"), ["nets/deep/model.py"]),
        (("transform", "."), [".hidden.py"]),
        (("export", ""), ["out", "nets/"]),
        (("heal", "o"), ["out"]),
        (("diff", "out", ""), ["out", "nets/"]),
        (("transform", "net.py", "--surrogate", "b"), ["blend", "bottleneck"]),
        (("transform", "net.py", "--surrogate", "=", "b"), ["blend", "bottleneck"]),
        (("train", "out", "--task", "se"), ["segmentation"]),
        (("train", "out", "--data", "=", "di"), ["digits"]),
        (("train", "out", "--data", "="), [*DATA, "net.py", "nets/", "out/"]),
        (("train", "out", "--data", "npz", ":", "no"), ["notes.txt"]),
        (("train", "out", "--data", "np"), ["npz:net.py", "npz:notes.txt", "npz:nets/", "npz:out/"]),
        (("transform", "no-such-folder/"), []),
        (("transform", "shop", ":", "a"), []),
        (("transform", "net.py", "--see"), ["--seed"]),
    ],
)
def test_answers(ask: Ask, words: tuple[str, ...], answers: list[str]) -> None:
    assert ask(*words) == answers


@pytest.mark.zoo
@pytest.mark.parametrize("kind", ["timm", "torchvision", "hf"])
def test_the_models_of_a_zoo(ask: Ask, kind: str) -> None:
    names = set(ask("inspect", kind, ":"))
    if kind == "timm":
        assert names == set(pytest.importorskip("timm").list_models())
    elif kind == "torchvision":
        assert names == set(pytest.importorskip("torchvision").models.list_models())
    else:
        known = set(pytest.importorskip("transformers").CONFIG_MAPPING)
        assert {"bert", "gpt2", "llama"} <= names <= known
    # The only kind that begins so is completed up to its names, so that no blank comes behind the colon.
    assert ask("inspect", kind[:2]) == sorted(f"{kind}:{name}" for name in names)


def test_other_shells_get_whole_words(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    monkeypatch.setenv("_REPL_FX_COMPLETE", "complete_fish")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "repl-fx inspect timm:vit_tiny_patch16_2")
    assert run().stdout.split() == ["timm:vit_tiny_patch16_224"]


def test_words_of_bash_are_joined() -> None:
    environment = {
        "_REPL_FX_COMPLETE": "complete_bash",
        "COMP_WORDS": "repl-fx heal my\\ out --x = a : b",
        "COMP_CWORD": "7",
    }
    assert prepare_completion(environment)
    assert environment["COMP_WORDS"] == "repl-fx heal my\\ out --x b" and environment["COMP_CWORD"] == "4"
    assert environment["_REPL_FX_BEFORE"] == "a:"
    assert not prepare_completion({})


def test_an_answer_needs_no_torch(tmp_path: Path) -> None:
    start = "import sys; sys.modules['torch'] = None; from repl_fx.cli import main; main()"
    words = {"_REPL_FX_COMPLETE": "complete_bash", "COMP_WORDS": "repl-fx inspect ", "COMP_CWORD": "2"}
    environment = {**os.environ, **words, "PYTHONPATH": str(Path(repl_fx.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", start], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["timm:", "torchvision:", "hf:"], "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell(run: Run, monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    monkeypatch.setattr("typer.completion._get_shell_name", lambda: shell)
    shown = run("--show-completion")
    assert shown.exit_code == 0 and "_REPL_FX_COMPLETE" in shown.stdout and shown.stderr == ""
