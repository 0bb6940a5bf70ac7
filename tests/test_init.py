"""`import repl_fx` alone leads to every name and module, and imports none before it is asked for."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import repl_fx

# What a command that reads a model of plain layers has no use for: the libraries of extras, and of others.
HEAVY = {"torchvision", "transformers", "lightning", "pytorch_lightning", "onnx", "onnxscript", "onnxruntime", "altair"}
HEAVY |= {"timm", "scipy", "pandas", "IPython"}
# PyTorch's compiler, and what a trace may import when it is called.
COMPILER = {
    "torch._dynamo",
    "torch._inductor",
    "torch._functorch.aot_autograd",
    "torch.distributed.tensor",
    "torch.onnx",
}
# What `repl-fx inspect` imports.
INSPECT = (
    "tracing.parts.capture_parts",
    "costs.counted",
    "finding.repeats",
    "reporting.documents",
    "reporting.tables",
    "sources",
)
MODULES = sorted(module.name for module in pkgutil.iter_modules(repl_fx.__path__) if not module.name.startswith("_"))


def test_every_module_is_there_for_readers_of_types_too() -> None:
    stub = Path(repl_fx.__file__).with_suffix(".pyi").read_text()
    assert [name for name in MODULES if f"    {name} as {name},\n" not in stub] == []


@pytest.mark.slow
def test_modules_come_when_they_are_asked_for() -> None:
    code = (
        "import sys, repl_fx\n"
        "assert repl_fx.errors.BadInput is repl_fx.BadInput\n"
        "assert not {'torch', 'repl_fx.pipeline', 'repl_fx.training'} & sys.modules.keys()\n"
        f"print(*(getattr(repl_fx, name).__name__ for name in {MODULES}))\n"
        "from repl_fx import *\n"
        "print(transform.__module__, 'training' in globals(), 'errors' in dir(repl_fx))\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[:2] == [
        " ".join(f"repl_fx.{name}" for name in MODULES),
        "repl_fx.pipeline False False",
    ], done.stderr


@pytest.mark.slow
def test_importing_a_name_draws_no_random_number_of_the_script() -> None:
    code = (
        "import random, repl_fx\n"
        "before = random.getstate()\n"
        "repl_fx.capture, repl_fx.train\n"
        "print(random.getstate() == before)\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import repl_fx", {*HEAVY, "torch", "networkx", "rich", "typer"}),
        ("import repl_fx.pipeline, repl_fx.artifact", {*HEAVY, *COMPILER, "typer"}),
        (
            "".join(f"import repl_fx.{module}\n" for module in INSPECT),
            {*HEAVY, *COMPILER, "repl_fx.pipeline", "repl_fx.artifact", "repl_fx.benchmarking.model_variants"},
        ),
        ("from repl_fx.cli import main\nmain()", {*HEAVY, "torch", "networkx"}),
    ],
    ids=["import", "pipeline", "inspect", "help"],
)
def test_libraries_that_nobody_asked_for_stay_where_they_are(code: str, heavy: set[str]) -> None:
    assert _loaded(code, "--help") & heavy == set()


@pytest.mark.slow
def test_a_model_of_plain_layers_is_inspected_without_the_libraries_of_others() -> None:
    model = Path(__file__).parent.parent / "examples/mlp.py"
    heavy = {*HEAVY, "repl_fx.pipeline", "repl_fx.artifact"}
    assert _loaded("from repl_fx.cli import main\nmain()", "inspect", str(model)) & heavy == set()


def _loaded(code: str, *arguments: str) -> set[str]:
    """The modules that are loaded when some code has run."""
    last = "import atexit, sys\natexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
    command = [sys.executable, "-W", "ignore", "-c", last + code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stderr.split("\n")[-2].split())
