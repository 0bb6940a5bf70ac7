"""The judge: one network through every stage of repl-fx, each of them right, refused with a reason, wrong or crashed.

    capture     source and graph over consecutive steps in both modes: outputs, buffers, gradients, hooks, randomness;
                and under no_grad and inference_mode, another kernel of attention, and on inputs of other strides
    KEY         the network with this surrogate: what stays is the source's, it trains, every surrogate has an effect
    KEY/pruned  `identity` is the source with its blocks taken out by hand
    KEY/fold    the folded network computes the same
    KEY/pickle  so does what is pickled and unpickled; a plan made of an unpickled capture is the same plan
    KEY/load    so does what is saved and loaded into a fresh network
    KEY/export  so does the file in ONNX Runtime, on inputs of the judge's; the file passes repl-fx's own verification

The judge asks none of repl-fx's own checks whether something is right.
"""

from __future__ import annotations

import pickle
import random
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import repl_fx
from repl_fx._torch import pytree
from repl_fx.graph.axes import captured_axes
from repl_fx.pipeline import rewrite
from repl_fx.planning.options import Options
from repl_fx.rewriting.result import TransformResult
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.surrogates.shared.site import surrogate_path
from repl_fx.tracing.parts.capture_parts import CapturedParts
from tests.attack import networks
from tests.attack.files import FileDiffers, judge_file
from tests.attack.pruning import prune
from tests.attack.steps import (
    Inputs,
    Snapshot,
    Step,
    counted,
    differences,
    opened,
    prepared,
    run_step,
    run_steps,
    same,
)

SURROGATES = ("identity", "blend", "coarse", "narrow", "reuse", "slim", "bottleneck", "auto")
_OWN = ("coarse", "reuse", "slim", "bottleneck", "auto")
MODES = (True, True, True, False, False, True)
EVALUATION_FIRST = (False, False, True)
# Settings of torch that callers make.
SETTINGS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "another kernel of attention": lambda: sdpa_kernel(SDPBackend.MATH),
    "inputs of other strides": nullcontext,
}


def _turned(tensor: Tensor) -> Tensor:
    """The same values, the last dimension outermost in memory."""
    return tensor.movedim(-1, 0).contiguous().movedim(0, -1) if tensor.ndim > 1 else tensor


class Wrong(Exception):
    """Something that repl-fx gave out as right is not."""


@dataclass(frozen=True)
class Finding:
    """What became of one stage: `right`, `refused`, `wrong` or `crashed`, and why."""

    stage: str
    outcome: str
    detail: str = ""


@dataclass
class Verdict:
    """What became of a network.

    Attributes:
        seed: of the network.
        features: what is in it.
        findings: one for each stage.
        seconds: how much of a processor's time it took.
    """

    seed: int
    features: list[str]
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def outcome(self) -> str:
        """The worst of its stages; `refused` where no block was replaced."""
        outcomes = [finding.outcome for finding in self.findings]
        for worst in ("crashed", "wrong"):
            if worst in outcomes:
                return worst
        replaced = any(f.outcome == "right" and f.stage in SURROGATES for f in self.findings)
        return "right" if replaced else "refused"

    def __str__(self) -> str:
        lines = [f"{self.seed}: {self.outcome}", f"  {' '.join(self.features)}"]
        lines += [f"  {f.stage}: {f.outcome} {f.detail}" for f in self.findings]
        return "\n".join(lines)


def require(holds: bool, what: str) -> None:
    """Raise `Wrong` where something does not hold."""
    if not holds:
        raise Wrong(what)


def none_of(found: list[str], what: str) -> None:
    """Raise `Wrong` where something was found."""
    if found:
        raise Wrong(f"{what}: {'; '.join(found[:4])}{f'; and {len(found) - 4} more' if len(found) > 4 else ''}")


class Judge:
    """Judges one network.

    Args:
        seed: of the network.
        make: a factory of the network, for seeds of `tests.attack.networks` the one there.
        inputs: its inputs for a step and a size of the batch.
        features: what is in it, in words.
    """

    def __init__(
        self,
        seed: int,
        make: Callable[[], nn.Module] | None = None,
        inputs: Callable[[int, int | None], Inputs] | None = None,
        features: list[str] | None = None,
    ) -> None:
        self.rng = random.Random(f"judge/{seed}")
        self.make = make or (lambda: networks.make(seed))
        self.inputs = inputs or (lambda step, batch: networks.example_inputs(seed, step, batch))
        self.verdict = Verdict(seed, networks.describe(seed) if features is None else features)

    @contextmanager
    def stage(self, name: str, *, honest: tuple[type[Exception], ...]) -> Iterator[None]:
        """Record what becomes of a stage.

        Args:
            name: of the stage.
            honest: the errors that may be the truth there. The network runs on its inputs, an artifact that was just
                written is whole, and a plan that was just made fits.
        """
        try:
            yield
        except repl_fx.ReplFxError as problem:
            message = str(problem)
            line = bool(message.strip()) and "\n" not in message
            # The source runs on these inputs.
            false = isinstance(problem, repl_fx.BadInput) and "with the example inputs" in message
            outcome = "refused" if line and isinstance(problem, honest) and not false else "wrong"
            self.verdict.findings.append(Finding(name, outcome, f"{type(problem).__name__}: {message}"))
        except (Wrong, FileDiffers) as problem:
            self.verdict.findings.append(Finding(name, "wrong", str(problem)))
        except Exception as problem:
            where = traceback.extract_tb(problem.__traceback__)
            last = [f for f in where if "repl_fx" in f.filename or "/passes/" in f.filename][-1:]
            place = f" at {Path(last[0].filename).name}:{last[0].lineno}" if last else ""
            text = f"{type(problem).__name__}{place}: {problem}"
            self.verdict.findings.append(Finding(name, "crashed", text))
        else:
            self.verdict.findings.append(Finding(name, "right"))

    def right(self, name: str) -> bool:
        """Whether a stage was right."""
        return any(f.stage == name and f.outcome == "right" for f in self.verdict.findings)

    def run(self) -> Verdict:
        """Take the network through all stages."""
        begin = time.process_time()
        with torch.random.fork_rng(devices=[]):
            self._run()
        self.verdict.seconds = round(time.process_time() - begin, 2)
        return self.verdict

    def _run(self) -> None:
        self.source = self.make()
        self.untouched = Snapshot(self.source)
        args, kwargs = self.inputs(0, None)
        captured = None
        with self.stage("capture", honest=(repl_fx.CaptureError, repl_fx.BadInput)):
            with self.quiet("capture"):
                captured = repl_fx.capture_parts(self.source, args, kwargs)
            self.check_captured(captured.module)
        if captured is None or not self.right("capture"):
            return
        self.whole = captured.whole
        self.begin = Snapshot(captured.module)
        candidates = []
        for key in SURROGATES:
            settings = {"weights": "own"} if key in _OWN and self.rng.random() < 0.25 else {}
            every = self.rng.choice([2, 2, 2, 3])
            with self.stage(key, honest=(repl_fx.NothingToReplace,)):
                with self.quiet(f"transform by {key}"):
                    options = Options(every=every, surrogate=key, settings=settings)
                    free = _free_sizes(captured)
                    result = rewrite(captured, options)
                    require(free == _free_sizes(captured), "the rewrite fixed a size of the captured graph")
                start = Snapshot(result.module)
                self.judge_rewritten(key, result)
                candidates.append((key, result, start))
            self.begin.restore()
        if candidates:
            key, result, start = self.rng.choice(candidates)
            with self.stage(f"{key}/pickle", honest=()):
                start.restore()
                self.check_pickle(result)
            self.judge_kept(key, result, start)

    @contextmanager
    def quiet(self, what: str) -> Iterator[None]:
        """Hold what is done inside to leaving the source and the random generator as they are."""
        state = torch.get_rng_state()
        yield
        none_of(self.untouched.changes(), f"{what} changed the source")
        require(torch.equal(state, torch.get_rng_state()), f"{what} moved the random generator")

    def steps(self, number: int) -> Inputs:
        """Inputs of a step, of the network's own batch."""
        return self.inputs(number, None)

    def check_captured(self, module: nn.Module) -> None:
        """Compare a captured module with a fresh source; afterwards it is as before.

        Raises:
            Wrong: they differ.
        """
        before = Snapshot(module)
        for modes in (MODES, EVALUATION_FIRST):
            source = run_steps(self.make(), self.steps, modes)
            try:
                none_of(differences(source, run_steps(module, self.steps, modes)), "source and graph differ")
            finally:
                before.restore()
        self.reference = source
        self.check_settings(module)
        wider = self.inputs(50, self.batch() + 1)
        try:
            expected = run_step(self.make(), wider, False, 7)
        except Exception:
            return
        try:
            found = run_step(module, wider, False, 7)
        except repl_fx.BadInput:
            return
        finally:
            before.restore()
        none_of(differences([expected], [found]), "source and graph differ at another batch")

    def check_settings(self, module: nn.Module) -> None:
        """Compare a captured module with a fresh source under the settings of torch that a caller makes.

        Raises:
            Wrong: they differ, and the module does not refuse the setting.
        """
        before = Snapshot(module)
        for name, within in SETTINGS.items():
            source = self.make().eval()
            module.eval()
            found = []
            try:
                for one in (source, module):
                    (args, kwargs), _ = prepared(self.inputs(60, None))
                    if within is nullcontext:
                        laid = ExampleInputs(args, kwargs).map(_turned)
                        args, kwargs = laid.args, laid.kwargs
                    torch.manual_seed(7)
                    with within():
                        found.append(opened(one(*args, **kwargs)))
            except Exception as problem:
                # The source itself may not take the setting.
                require(not found or isinstance(problem, repl_fx.BadInput), f"the graph fails under {name}: {problem}")
                continue
            finally:
                before.restore()
            (ours, structure), (theirs, other) = found
            # What autocast computes is rounded to eight bits before it is an output of single precision.
            rounded = any("autocast" in feature for feature in self.verdict.features)
            near = 4 * torch.finfo(torch.bfloat16).eps if rounded else None
            alike = structure == other and all(_nearly(a, b, near) for a, b in zip(ours, theirs, strict=True))
            require(alike, f"source and graph differ under {name}")

    def batch(self) -> int:
        """The size of the batch of the example inputs."""
        args, kwargs = self.inputs(0, None)
        return next(
            (int(t.shape[0]) for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)), 2
        )

    def judge_rewritten(self, key: str, result: TransformResult) -> None:
        """Whether a rewritten network is what it should be; leaves it trained for a few steps."""
        module = result.module
        blocks = {block.name: block for repeat in result.repeats for block in _with_children(repeat)}
        replaced = [blocks[r.block] for r in result.plan.replacements]
        require(bool(replaced), "nothing was replaced, and nothing said")
        for refusal in result.plan.refusals:
            require(bool(refusal.reason.strip()) and "\n" not in refusal.reason, f"a refusal says {refusal.reason!r}")
        self.check_state(module, replaced)
        start = Snapshot(module)
        self.check_pruned(key, module, replaced)
        start.restore()
        self.check_training(module, result)
        self.check_effect(module, result)
        with self.stage(f"{key}/fold", honest=(repl_fx.NotFoldable,)):
            self.check_fold(module)

    def check_state(self, module: nn.Module, replaced: list[Any]) -> None:
        """What stays is the source's; what is new belongs to surrogates."""
        gone = {name for block in replaced for name in block.parameters}
        paths = [block.module_path for block in replaced if block.module_path]
        mine, theirs = self.source.state_dict(keep_vars=True), module.state_dict(keep_vars=True)
        names = [name for name, _ in self.source.named_parameters(remove_duplicate=False)]
        for name, tensor in mine.items():
            if name not in theirs:
                inside = name in gone or any(name.startswith(f"{path}.") for path in paths)
                require(inside or _emptied(name, names, gone), f"{name} is lost, which is in no replaced block")
            elif isinstance(tensor, Tensor):
                require(same(tensor.detach(), theirs[name].detach()), f"{name} has other values than the source's")
                require(tensor.requires_grad == theirs[name].requires_grad, f"{name} is frozen or thawed")
        for name in theirs:
            require(name in mine or "surrogates." in name, f"{name} is new and no surrogate's")

    def check_pruned(self, key: str, module: nn.Module, replaced: list[Any]) -> None:
        """`identity` equals the source without the blocks, where these are modules with nothing but branches."""
        if key != "identity":
            return
        pruned = prune(self.make(), [block.module_path for block in replaced])
        if pruned is None:
            return
        with self.stage("identity/pruned", honest=()):
            names = {*dict(pruned.named_parameters()), *dict(pruned.named_buffers())}
            expected = run_steps(pruned, self.steps, (True, True, False))
            found = run_steps(module, self.steps, (True, True, False))
            none_of(differences(expected, found, only=names, names=False), "identity is not the pruned network")

    def check_training(self, module: nn.Module, result: TransformResult) -> None:
        """Three steps: finite values, a gradient for every surrogate, and all hooks outside replaced blocks."""
        steps = run_steps(module, self.steps, (True, True, True))
        for number, step in enumerate(steps):
            for leaf in step.outputs:
                if isinstance(leaf, Tensor):
                    require(bool(leaf.isfinite().all()), f"an output is not finite on step {number}")
            for name, gradient in step.gradients.items():
                require(
                    gradient is None or bool(gradient.isfinite().all()),
                    f"the gradient of {name} is not finite on step {number}",
                )
        for block, names in self.surrogates(module, result).items():
            if names and self.reached(block, result):
                # A few hidden units may all be on the flat side of a ReLU at a few inputs.
                tried = chain(steps, (run_step(module, self.steps(number), True, number) for number in range(60, 90)))
                require(
                    any(_moves(step.gradients.get(n)) for step in tried for n in names),
                    f"no gradient reaches the surrogate of {block}",
                )
                never = [n for n in names if all(step.gradients.get(n) is None for step in steps)]
                if self.reached(block, result, wholly=True):
                    none_of(never, f"parameters of the surrogate of {block} get no gradient")
        self.check_hooks(steps, result)

    def check_hooks(self, steps: list[Step], result: TransformResult) -> None:
        """Counting hooks outside replaced blocks run as often as in the source."""
        blocks = {block.name: block for repeat in result.repeats for block in _with_children(repeat)}
        paths = [blocks[r.block].module_path for r in result.plan.replacements]
        if any(path is None for path in paths):
            return
        expected = counted(run_steps(self.make(), self.steps, (True, True, True)))
        found = counted(steps)
        for label, times in expected.items():
            kind, _, path = label.partition("@")
            if kind == "tensor" or any(path == p or path.startswith(f"{p}.") for p in paths):
                continue
            require(
                found[label] == times, f"the {kind} hook at {path or 'the model'} ran {found[label]} times, not {times}"
            )

    def surrogates(self, module: nn.Module, result: TransformResult) -> dict[str, list[str]]:
        """The parameters of each surrogate, by the name of its block."""
        parts = [part.path for part in result.parts]
        names = [name for name, p in module.named_parameters() if p.requires_grad]
        found = {}
        for replacement in result.plan.replacements:
            part = next((p for p in parts if p and replacement.block.startswith(f"{p}.")), "")
            inside = replacement.block[len(part) + 1 :] if part else replacement.block
            prefix = (f"{part}." if part else "") + surrogate_path(inside) + "."
            found[replacement.block] = [name for name in names if name.startswith(prefix)]
        return found

    def reached(self, block: str, result: TransformResult, *, wholly: bool = False) -> bool:
        """Whether the source's own parameters of a block get a gradient in the source: one of them, or all."""
        blocks = {b.name: b for repeat in result.repeats for b in _with_children(repeat)}
        names = blocks[block].parameters
        moved = [any(_moves(step.gradients.get(name)) for step in self.reference) for name in names]
        return all(moved) if wholly else any(moved)

    def check_effect(self, module: nn.Module, result: TransformResult) -> None:
        """Other values of a surrogate's parameters give other outputs."""
        named = dict(module.named_parameters())
        state = Snapshot(module)
        for block, names in self.surrogates(module, result).items():
            if not names or not self.reached(block, result):
                continue
            base = self._values(module)
            state.restore()
            effect = False
            # One change may fall on the flat side of a ReLU.
            for attempt in range(6):
                generator = torch.Generator().manual_seed(attempt)
                with torch.no_grad():
                    for name in names:
                        noise = torch.randn(named[name].shape, generator=generator)
                        named[name].add_(noise.to(named[name].dtype))
                values = self._values(module)
                state.restore()
                effect = effect or not all(same(a, b) for a, b in zip(base, values, strict=True))
                if effect:
                    break
            require(effect, f"the surrogate of {block} does nothing: other values of its parameters change no output")

    def _values(self, module: nn.Module) -> list[Any]:
        """The outputs in evaluation mode, and of all layers but surrogates: a change may round away behind them."""
        inside: list[Any] = []

        def keep(layer: nn.Module, args: Any, made: Any) -> None:
            inside.extend(leaf.clone() for leaf in pytree.tree_leaves(made) if isinstance(leaf, Tensor))

        named = dict(module.named_modules()).items()
        layers = [layer for name, layer in named if not layer._modules and "surrogates." not in name]
        hooks = [layer.register_forward_hook(keep) for layer in layers]
        outputs = run_step(module, self.steps(20), False, 3).outputs
        for hook in hooks:
            hook.remove()
        return [*outputs, *inside]

    def check_fold(self, module: nn.Module) -> None:
        """The folded network computes the same in evaluation, on consecutive steps."""
        before = Snapshot(module)
        rng = torch.get_rng_state()
        folded = repl_fx.fold(module)
        require(torch.equal(rng, torch.get_rng_state()), "fold moved the random generator")
        none_of([c for c in before.changes()], "fold changed what it was given")
        results = []
        for each in (module, folded):
            with torch.no_grad():
                results.append([run_step(each, self.steps(30 + i), False, 5) for i in range(2)])
            before.restore()
        none_of(differences(*results, only=()), "the folded network differs")
        none_of([type(m).__name__ for m in folded.modules() if isinstance(m, repl_fx.Synthesis)], "not folded")

    def check_pickle(self, result: TransformResult) -> None:
        """What comes out of a pickle is what went in, trains on as that does, and folds to the same."""
        module = result.module
        state = Snapshot(module)
        try:
            pickled = pickle.dumps(module)
        except RuntimeError:
            # torch pickles no parametrized module; one captured in parts is of the source's own modules.
            if isinstance(module, fx.GraphModule) or _is_pickled(self.make()):
                raise
            return
        loaded = pickle.loads(pickled)
        none_of(state.changes(), "pickling changed what it was given")
        require(loaded.training == module.training, "an unpickled network is in another mode")
        mine, theirs = module.state_dict(), loaded.state_dict()
        require(list(mine) == list(theirs), f"other state: {sorted(mine.keys() ^ theirs.keys())[:4]}")
        require(_shared(module) == _shared(loaded), "other tensors are one")
        # As torch has it, pickles of parameters are without what was registered on their gradients.
        for parameter, other in zip(module.parameters(), loaded.parameters(), strict=True):
            for hook in (parameter._backward_hooks or {}).values():
                other.register_hook(hook)
            for hook in (getattr(parameter, "_post_accumulate_grad_hooks", None) or {}).values():
                other.register_post_accumulate_grad_hook(hook)
        expected = run_steps(module, self.steps, MODES)
        folded = run_step(repl_fx.fold(module), self.steps(40), False, 9)
        state.restore()
        found = differences(expected, run_steps(loaded, self.steps, MODES))
        if found and not isinstance(module, fx.GraphModule):
            # Pickles of plain modules are torch's own: a buffer that is a view of a parameter gets memory of its own.
            source = self.make()
            copied = pickle.loads(pickle.dumps(source))
            if differences(*(run_steps(one, self.steps, MODES) for one in (source, copied))):
                return
        none_of(found, "the unpickled network differs")
        none_of(
            differences([folded], [run_step(repl_fx.fold(loaded), self.steps(40), False, 9)]),
            "the unpickled network folds to another",
        )
        for part in result.captured_parts.parts:
            graphs = part.graph_module, pickle.loads(pickle.dumps(part.graph_module))
            plans = [repl_fx.make_plan(gm, repl_fx.find_repeats(gm)) for gm in graphs]
            require(plans[0] == plans[1], "a plan made of the unpickled capture is another")

    def judge_kept(self, key: str, result: TransformResult, start: Snapshot) -> None:
        """Save, load, export and verify one of the rewritten networks, after a few steps of training."""
        module = result.module
        start.restore()
        run_steps(module, self.steps, (True, True))
        trained = {name: tensor.detach().clone() for name, tensor in _named(module).items()}
        # Python state of modules that stay eager is in no artifact.
        start.restore()
        with torch.no_grad():
            for name, tensor in _named(module).items():
                tensor.copy_(trained[name])
        with tempfile.TemporaryDirectory(prefix="attack-") as folder:
            place = Path(folder)
            with self.stage(f"{key}/load", honest=()):
                state = Snapshot(module)
                repl_fx.save(result, place / "artifact")
                none_of(state.changes(), "save changed what it was given")
                loaded = repl_fx.load(place / "artifact", self.make(), graph=True)
                require(not loaded.training, "a loaded network is in training mode")
                mine, theirs = module.state_dict(), loaded.state_dict()
                require(mine.keys() == theirs.keys(), f"other state: {sorted(mine.keys() ^ theirs.keys())[:4]}")
                # Buffers that are not saved are where the fresh network has them.
                unsaved = dict(loaded.named_buffers())
                with torch.no_grad():
                    for name, buffer in module.named_buffers():
                        if name not in mine and name in unsaved:
                            unsaved[name].copy_(buffer)
                none_of(
                    [n for n in mine if isinstance(mine[n], Tensor) and not same(mine[n], theirs[n])], "other values"
                )
                expected = run_steps(module, self.steps, (False, False, True))
                state.restore()
                none_of(
                    differences(expected, run_steps(loaded, self.steps, (False, False, True))),
                    "the loaded network differs",
                )
            with self.stage(f"{key}/export", honest=(repl_fx.ExportError, repl_fx.BadInput)):
                self.check_export(module, result, place)
        self.begin.restore()

    def check_export(self, module: nn.Module, result: TransformResult, place: Path) -> None:
        """The file equals the network; that of the first part where it was captured in parts."""
        if self.whole:
            judge_file(module, place / "model.onnx", (result.args, result.kwargs), self.inputs, self.batch())
        else:
            part = result.parts[0]
            given = (part.args, part.kwargs)
            judge_file(part.graph_module, place / "part.onnx", given, lambda step, batch: given, None)


def _free_sizes(captured: CapturedParts) -> list[str]:
    axes = (axis for part in captured.parts for axis in captured_axes(part.graph_module))
    return [f"{axis.input}.{axis.number}" for axis in axes if axis.symbol is not None]


def _is_pickled(module: nn.Module) -> bool:
    try:
        pickle.dumps(module)
    except Exception:
        return False
    return True


def _with_children(repeat: Any) -> list[Any]:
    return [*repeat.blocks, *(block for child in repeat.children for block in _with_children(child))]


def _named(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _shared(module: nn.Module) -> list[list[str]]:
    """Names of parameters and buffers that are one tensor."""
    names: dict[int, list[str]] = {}
    for found in (module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)):
        for name, tensor in found:
            names.setdefault(id(tensor), []).append(name)
    return list(names.values())


def _nearly(a: Any, b: Any, near: float | None = None) -> bool:
    """Whether two leaves are the same, but for the rounding of kernels that run without gradients alone."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor) and a.is_floating_point() and a.dtype == b.dtype):
        return same(a, b)
    near = near or 100 * torch.finfo(a.dtype).eps
    return a.shape == b.shape and torch.allclose(a, b, near, near, equal_nan=True)


def _emptied(name: str, parameters: list[str], gone: set[str]) -> bool:
    """Whether a module that holds this name has lost all its parameters to replaced blocks."""
    steps = name.split(".")
    for length in range(1, len(steps)):
        prefix = ".".join(steps[:length]) + "."
        inside = {p for p in parameters if p.startswith(prefix)}
        if inside and inside <= gone:
            return True
    return False


def _moves(gradient: Tensor | None) -> bool:
    return gradient is not None and bool((gradient != 0).any())


def judge(seed: int) -> Verdict:
    """Take the network of a seed through all stages."""
    return Judge(seed).run()


__all__ = ["SURROGATES", "Finding", "Judge", "Verdict", "judge"]
