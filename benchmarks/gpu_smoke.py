"""The whole slice on a GPU: capture, rewrite, train, compile, checkpoint, fold, save, export, verify.

    python -m benchmarks.gpu_smoke                       on CUDA
    python -m benchmarks.gpu_smoke --device cpu          the same checks on the CPU, without those that need two devices
    python -m benchmarks.gpu_smoke --models gpt --checks compile fold -v

Each check takes one of the example models (`examples/resnet32.py`, `vit.py`, `gpt.py`) and prints one row: pass, fail
or skip, what was measured, and its wall-clock seconds with compilation and warm-up included (they say what takes long,
and are no benchmark). Float32 means float32: TF32 is off, cuDNN deterministic and not tuned by trial.

    capture, moved      captured on the CPU, then moved to the device: outputs equal to the source's there, bit for bit,
                        in evaluation mode, and in training mode under the same seed
    capture, there      captured on the device: likewise
    random state        a transform leaves the random state of the device as it was
    train float32       25 steps of AdamW on one batch: the mean loss of the last five is below 0.9 times that of the
                        first five, every loss is finite, and every parameter has a gradient
    train bfloat16      the same under `torch.autocast`
    compile             `torch.compile` in one graph: outputs, and the gradients of all parameters, in float64 as eager;
                        outputs in float32 as eager
    checkpoint          `torch.utils.checkpoint` around the module, in training mode under one seed: likewise
    fold                the folded graph computes the same
    save and load       the artifact, read again and moved to the device, computes the same, bit for bit
    export and verify   ONNX from the module on the device; ONNX Runtime on the CPU computes the same

"As" means a largest difference below a share of the largest value: 1e-5 for outputs and 1e-4 for gradients; compiled,
1e-4 for outputs in float32, and in float64 1e-10 for outputs and 1e-8 for gradients. Compiled gradients are not
compared in float32: the compiler reorders sums, and where a ReLU's input then changes sign the gradient jumps.
Gradients of ResNet-32 in float32 are 5e-3 off those in float64 without any compiler.

Exit status: 0 all passed, 1 a check failed, 2 the device is not there.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import repl_fx
from repl_fx.benchmarking.hardware import device_name
from repl_fx.sources import Source, load_source

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
MODELS = ("resnet32", "vit", "gpt")
BATCH, STEPS, ENDS, FALL = 16, 25, 5, 0.9
TOLERANCE = {"outputs": 1e-5, "gradients": 1e-4}
COMPILED_TOLERANCE = {"outputs": 1e-10, "gradients": 1e-8}
COMPILED_FLOAT32 = 1e-4


class Failed(Exception):
    """A check that did not hold; the message says what was measured."""


class Skipped(Exception):
    """A check that has no meaning here; the message says why."""


@dataclass(frozen=True)
class Row:
    """Outcome of one check of one model: `status` is `pass`, `fail` or `skip`; `seconds` is wall-clock time."""

    model: str
    check: str
    status: str
    detail: str
    seconds: float


class Subject:
    """One example model on one device.

    Args:
        name: a file of `examples/` without its ending.
        device: where everything runs.
    """

    def __init__(self, name: str, device: str | torch.device) -> None:
        self.name = name
        self.device = torch.device(device)

    def source(self, device: str | torch.device | None = None) -> Source:
        """The model with the same weights on any device; the one under test by default."""
        return load_source(str(EXAMPLES / f"{self.name}.py"), device=self.device if device is None else device)

    @cached_property
    def result(self) -> repl_fx.TransformResult:
        """The rewritten model, transformed on the device, with surrogates as after some training: they start silent."""
        source = self.source()
        made = repl_fx.transform(source.model, source.args, source.kwargs)
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in made.graph_module.named_parameters():
                if name.startswith("surrogates."):
                    parameter.add_(torch.randn(parameter.shape, generator=draw).to(parameter.device), alpha=0.1)
        return made

    def module(self, training: bool) -> nn.Module:
        """A copy of the rewritten model to train, in one mode."""
        return copy.deepcopy(self.result.graph_module).train(training)

    def batch(self) -> tuple[Tensor, Tensor]:
        """One batch that can be learnt by heart: inputs, and the class of each row or of each token."""
        draw = torch.Generator().manual_seed(0)
        if self.name == "gpt":
            # Counting from a random byte: what comes next follows from what is there.
            ids = (torch.randint(0, 256, (BATCH, 1), generator=draw) + torch.arange(33)) % 256
            return ids[:, :-1].to(self.device), ids[:, 1:].to(self.device)
        images = torch.randn(BATCH, 3, 32, 32, generator=draw)
        return images.to(self.device), torch.randint(0, 10, (BATCH,), generator=draw).to(self.device)


# --- checks: each returns what it measured, or raises Failed or Skipped ---------------------------------------------


def capture_then_move(subject: Subject) -> str:
    """Capture on the CPU, move the graph to the device."""
    if subject.device.type == "cpu":
        raise Skipped("needs a second device")
    there, here = subject.source("cpu"), subject.source()
    gm = repl_fx.capture(there.model, there.args, there.kwargs).to(subject.device)
    return _same_as_source(gm, here)


def capture_there(subject: Subject) -> str:
    """Capture on the device itself."""
    source = subject.source()
    return _same_as_source(repl_fx.capture(source.model, source.args, source.kwargs), source)


def keeps_random_state(subject: Subject) -> str:
    """Compare the generator of the device before and after a transform."""
    source = subject.source()
    before = _random_state(subject.device)
    repl_fx.transform(source.model, source.args, source.kwargs)
    if not torch.equal(before, _random_state(subject.device)):
        raise Failed(f"the transform changed the random state of {subject.device}")
    return "unchanged"


def train_float32(subject: Subject) -> str:
    """Train in float32."""
    return _train(subject, None)


def train_bfloat16(subject: Subject) -> str:
    """Train under autocast to bfloat16, with float32 weights."""
    return _train(subject, torch.bfloat16)


def compile_matches(subject: Subject) -> str:
    """Compile with the default backend, forward and backward."""
    # Compiled dropout draws other numbers than eager dropout, so only models without any are compared in training mode.
    training = subject.name == "resnet32"
    eager, compiled = subject.module(training).double(), subject.module(training).double()
    single = subject.module(training)
    inputs, _ = subject.batch()
    wide = inputs.double() if inputs.is_floating_point() else inputs
    torch.compiler.reset()
    try:
        ours = _forward_backward(compiled, torch.compile(compiled, fullgraph=True), wide)
        with torch.no_grad():
            gap = _gap(torch.compile(single, fullgraph=True)(inputs), subject.module(training)(inputs))
    finally:
        torch.compiler.reset()
    measured = _compare(ours, _forward_backward(eager, eager, wide), COMPILED_TOLERANCE)
    float32 = _within("outputs", gap, COMPILED_FLOAT32)
    return f"{'training' if training else 'evaluation'} mode, float64: {measured}; float32: {float32}"


def checkpoint_matches(subject: Subject) -> str:
    """Recompute activations in the backward pass."""
    plain, saved = subject.module(True), subject.module(True)
    inputs, _ = subject.batch()

    def recomputed(x: Tensor) -> Any:
        return checkpoint(saved, x, use_reentrant=False)

    return _compare(_forward_backward(saved, recomputed, inputs), _forward_backward(plain, plain, inputs), TOLERANCE)


def fold_matches(subject: Subject) -> str:
    """Fold the surrogates into constants."""
    gm = subject.result.graph_module
    folded = repl_fx.fold(gm)
    gap = _gap(_evaluate(folded, subject.result.args), _evaluate(gm, subject.result.args))
    return _within("outputs", gap, TOLERANCE["outputs"])


def save_and_load(subject: Subject) -> str:
    """Write an artifact, read it, move it to the device."""
    result = subject.result
    with tempfile.TemporaryDirectory() as folder:
        place = repl_fx.save(result, Path(folder) / "artifact", source=subject.source("cpu"))
        loaded = repl_fx.load(place).to(subject.device)
    ours, theirs = _evaluate(loaded, result.args), _evaluate(result.graph_module, result.args)
    if not torch.equal(ours, theirs):
        raise Failed(f"outputs differ by {_gap(ours, theirs):.1e} of the largest")
    return "equal, bit for bit"


def export_and_verify(subject: Subject) -> str:
    """Export from the device, verify on the CPU."""
    result = subject.result
    with tempfile.TemporaryDirectory() as folder:
        path = repl_fx.export_onnx(result.graph_module, Path(folder) / "model.onnx", result.args, result.kwargs)
        verification = repl_fx.verify_onnx(result.graph_module, path, result.args, result.kwargs)
    worst = max((row.max_abs for row in verification.rows), default=math.nan)
    if not verification:
        raise Failed(f"the file computes something else: largest difference {worst:.1e}")
    return f"{len(verification.rows)} comparisons, largest difference {worst:.1e}"


Check = Callable[[Subject], str]
CHECKS: dict[str, tuple[str, Check]] = {
    "move": ("capture, moved", capture_then_move),
    "capture": ("capture, there", capture_there),
    "random": ("random state", keeps_random_state),
    "float32": ("train float32", train_float32),
    "bfloat16": ("train bfloat16", train_bfloat16),
    "compile": ("compile", compile_matches),
    "checkpoint": ("checkpoint", checkpoint_matches),
    "fold": ("fold", fold_matches),
    "save": ("save and load", save_and_load),
    "export": ("export and verify", export_and_verify),
}


# --- helpers --------------------------------------------------------------------------------------------------------


def _same_as_source(gm: nn.Module, source: Source) -> str:
    strays = {name for name, t in gm.state_dict().items() if t.device != next(source.model.parameters()).device}
    if strays:
        raise Failed(f"{len(strays)} tensors are on another device, e.g. {min(strays)}")
    check = repl_fx.check_capture(source.model, gm, source.args, source.kwargs)
    if not check:
        differing = [mode for mode in ("evaluation", "training") if not getattr(check, mode)]
        raise Failed(f"outputs differ from the source's in {' and '.join(differing)} mode")
    return "equal in both modes, bit for bit"


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _train(subject: Subject, autocast: torch.dtype | None) -> str:
    torch.manual_seed(0)
    module = subject.module(True)
    inputs, classes = subject.batch()
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3)
    losses = []
    for _ in range(STEPS):
        with torch.autocast(subject.device.type, autocast or torch.bfloat16, enabled=autocast is not None):
            logits = module(inputs)
        loss = F.cross_entropy(logits.float().flatten(0, -2), classes.flatten())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    missing = [name for name, p in module.named_parameters() if p.grad is None]
    if missing:
        raise Failed(f"{len(missing)} parameters have no gradient, e.g. {missing[0]}")
    first, last = sum(losses[:ENDS]) / ENDS, sum(losses[-ENDS:]) / ENDS
    measured = f"loss {first:.3f} to {last:.3f}"
    if not all(map(math.isfinite, losses)) or last >= FALL * first:
        raise Failed(measured)
    return measured


def _forward_backward(module: nn.Module, run: Callable[[Tensor], Any], inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Outputs and the gradients of all parameters, under one seed."""
    torch.manual_seed(0)
    outputs = run(inputs)
    torch.autograd.backward(outputs.square().mean())
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()]
    return outputs.detach(), grads


def _compare(
    ours: tuple[Tensor, list[Tensor]], theirs: tuple[Tensor, list[Tensor]], tolerance: dict[str, float]
) -> str:
    if len(ours[1]) != len(theirs[1]):
        raise Failed(f"{len(ours[1])} gradients instead of {len(theirs[1])}")
    largest = max(float(grad.abs().max()) for grad in theirs[1])
    # Gradients that vanish but for rounding (of a bias before batch norm) are measured against the largest of all.
    gaps = [_gap(a, b, floor=1e-3 * largest) for a, b in zip(*(ours[1], theirs[1]), strict=True)]
    outputs = _within("outputs", _gap(ours[0], theirs[0]), tolerance["outputs"])
    return f"{outputs}; {_within('gradients', max(gaps), tolerance['gradients'])}"


def _within(what: str, gap: float, allowed: float) -> str:
    measured = f"{what} differ by {gap:.1e} of the largest"
    # Written so that NaN fails.
    if not gap <= allowed:
        raise Failed(f"{measured}, allowed {allowed:.0e}")
    return measured


def _gap(ours: Tensor, theirs: Tensor, floor: float = 0.0) -> float:
    """Largest difference as a share of the largest value of `theirs`."""
    if ours.shape != theirs.shape:
        return math.inf
    difference = float((ours.double() - theirs.double()).abs().max())
    scale = max(float(theirs.double().abs().max()), floor)
    return difference / scale if scale else difference


def _evaluate(module: nn.Module, args: tuple[Any, ...]) -> Tensor:
    with torch.no_grad():
        outputs: Tensor = copy.deepcopy(module).eval()(*args)
    return outputs


# --- running --------------------------------------------------------------------------------------------------------


def run_check(subject: Subject, key: str, *, verbose: bool = False) -> Row:
    """Run one check of `CHECKS`; an error of any kind is a failed check."""
    name, check = CHECKS[key]
    begin = time.perf_counter()
    try:
        # The global random state is the check's own to use, and the caller's again afterwards.
        with (
            torch.random.fork_rng(),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        ):
            status, detail = "pass", check(subject)
    except Skipped as reason:
        status, detail = "skip", str(reason)
    except Failed as reason:
        status, detail = "fail", str(reason)
    except Exception as problem:
        if verbose:
            traceback.print_exc()
        first = next(iter(str(problem).splitlines()), "")
        status, detail = "fail", f"{type(problem).__name__}: {first}"
    return Row(subject.name, name, status, detail, time.perf_counter() - begin)


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, write; returns the exit status."""
    parser = argparse.ArgumentParser(description="The whole slice of repl-fx on a GPU.")
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:1, cpu")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="which models; all by default")
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=list(CHECKS), help="which; all by default")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("-v", "--verbose", action="store_true", help="print tracebacks")
    options = parser.parse_args(argv)
    try:
        device = torch.device(options.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as problem:
        reason = str(problem).splitlines()[0]
        print(f"device {options.device} is not there ({reason}); --device cpu runs the same checks", file=sys.stderr)
        return 2
    console = Console()
    about = f"{device_name(device)}; torch {torch.__version__}, repl-fx {repl_fx.__version__}"
    console.print(about, highlight=False)
    rows: list[Row] = []
    for name in options.models:
        subject = Subject(name, device)
        for key in options.checks:
            rows.append(run_check(subject, key, verbose=options.verbose))
            print(f"{rows[-1].model}, {rows[-1].check}: {rows[-1].status}", file=sys.stderr)
    table = Table("model", "check", "", "measured")
    table.add_column("s", justify="right")
    colours = {"pass": "green", "fail": "red", "skip": "yellow"}
    for row in rows:
        status = f"[{colours[row.status]}]{row.status}[/]"
        table.add_row(row.model, row.check, status, row.detail, f"{row.seconds:.1f}")
    console.print(table)
    counts = {status: sum(row.status == status for row in rows) for status in colours}
    console.print(", ".join(f"{count} {status}" for status, count in counts.items()))
    if options.json:
        content = {"device": str(device), "environment": about, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    return 1 if counts["fail"] else 0


if __name__ == "__main__":
    sys.exit(main())
