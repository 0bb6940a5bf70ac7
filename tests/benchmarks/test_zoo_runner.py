"""The zoo benchmark itself: that its comparisons can fail, and that its report counts every model."""

from __future__ import annotations

import copy
import gc
import json
import os
import runpy
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import benchmarks.zoo_runner
import repl_fx
from benchmarks.zoo import choose, read_records
from benchmarks.zoo_models import case_called
from benchmarks.zoo_models.case import Case
from benchmarks.zoo_models.sample import sample
from benchmarks.zoo_models.weights import wake
from benchmarks.zoo_runner.alive import train
from benchmarks.zoo_runner.compressing import COMPRESSING, compress, random_batches
from benchmarks.zoo_runner.exactness import require_equal, require_equal_training, tensors
from benchmarks.zoo_runner.reading import READING, reading
from benchmarks.zoo_runner.report import write_reading, write_report, write_sizes
from benchmarks.zoo_runner.sizing import SIZING, TRAINED, sized, trained, wrong
from benchmarks.zoo_runner.stages import STAGES, Record, _Stop
from repl_fx.export.tensors import flatten_inputs
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.tracing.check import compare_modes
from tests.nets import TokenNet


class Net(nn.Module):
    """Dropout, a norm with statistics, and a switch for what is to differ."""

    def __init__(self, change: Callable[[Tensor, nn.Module], Tensor] = lambda x, net: x) -> None:
        super().__init__()
        self.fc, self.norm, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.drop(self.norm(self.fc(x))), self)


class OtherGradient(torch.autograd.Function):
    """Identity whose gradient is twice what it should be."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


def doubled(x: Tensor, net: nn.Module) -> Tensor:
    apply: Any = OtherGradient.apply
    changed: Tensor = apply(x)
    return changed


def moved(x: Tensor, net: nn.Module) -> Tensor:
    if net.training:
        with torch.no_grad():
            net.get_buffer("norm.num_batches_tracked").add_(1)
    return x


def later(x: Tensor, net: nn.Module) -> Tensor:
    """Another value in every step but the first, by a buffer that both start with alike."""
    return x + (net.get_buffer("norm.num_batches_tracked") > 1)


def nets(change: Callable[[Tensor, nn.Module], Tensor] | None) -> tuple[Net, Net]:
    torch.manual_seed(0)
    model = Net()
    other = copy.deepcopy(model)
    if change is not None:
        other.change = change
    return model, other


X = torch.linspace(-1, 1, 24).reshape(6, 4)


def test_equal_modules_pass_and_keep_their_buffers() -> None:
    model, other = nets(None)
    evaluation, training = compare_modes(model, other, ExampleInputs((X,)))
    require_equal(evaluation)
    assert require_equal_training(training, model) == dict(model.named_parameters()).keys()
    assert int(model.get_buffer("norm.num_batches_tracked")) == 0


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda x, net: x + 1e-6, "output 0 differs by up to"),
        (doubled, "training, step 2: the gradient of fc.weight differs by up to .*; and .* more"),
        (moved, "training, step 1: buffer norm.num_batches_tracked differs by up to 1; training, step 2"),
        (lambda x, net: x.detach() + net.norm.bias * 0 if net.training else x, "the gradient of fc.weight"),
        (later, "training, step 2: output 0 differs"),
    ],
)
def test_what_differs_in_training_is_named(change: Callable[[Tensor, nn.Module], Tensor], problem: str) -> None:
    model, other = nets(change)
    (check,) = compare_modes(model, other, ExampleInputs((X,)), (True,))
    with pytest.raises(AssertionError, match=problem):
        require_equal_training(check, model)


def test_what_differs_in_evaluation_is_named() -> None:
    model, other = nets(lambda x, net: x if net.training else x * 1.0001)
    evaluation, training = compare_modes(model, other, ExampleInputs((X,)))
    with pytest.raises(AssertionError, match="output 0 differs"):
        require_equal(evaluation)
    require_equal_training(training, model)


def test_what_is_zero_says_nothing() -> None:
    silent = nn.Linear(4, 4)
    nn.init.zeros_(silent.weight)
    nn.init.constant_(silent.bias, 0.5)
    # The loss is least at a half, so that its gradient is zero.
    (check,) = compare_modes(silent, silent, ExampleInputs((X,)), (True,))
    with pytest.raises(AssertionError, match="all gradients are zero"):
        require_equal_training(check, silent)
    nn.init.zeros_(silent.bias)
    (check,) = compare_modes(silent, silent, ExampleInputs((X,)), (False,))
    with pytest.raises(AssertionError, match="all outputs are zero"):
        require_equal(check)


class Rewritten(nn.Module):
    """A layer, and a surrogate of two weights behind it, whose second one starts at zero."""

    def __init__(self, forward: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        surrogate = nn.ParameterDict({"down": torch.randn(2, 4), "up": torch.zeros(4, 2)})
        self.surrogates = nn.ModuleDict({"blocks_1": surrogate})
        self.change = forward

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        surrogate = self.surrogates["blocks_1"]
        return x + self.change(x, surrogate["down"], surrogate["up"])  # type: ignore[index]


def infinite(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    return x @ down.t() @ up.t() / (up.sum() * 0)


def unheard(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    apply: Any = Unheard.apply
    doubled: Tensor = apply(x, down, up)
    return doubled


@pytest.mark.parametrize(
    ("forward", "problem"),
    [
        (lambda x, down, up: x @ down.t() @ up.t(), None),
        (lambda x, down, up: x @ down.t() @ up.detach().t(), "2 parameters of surrogates get a gradient of zeros"),
        (lambda x, down, up: (x @ down.t() * 0) @ up.t(), "2 parameters of surrogates get a gradient of zeros"),
        (lambda x, down, up: x @ down.t() @ up.t() * 0, "2 parameters of surrogates get a gradient of zeros"),
        (lambda x, down, up: x, "2 parameters of surrogates get no gradient"),
        (unheard, "1 surrogates change no output, e.g. surrogates.blocks_1"),
        (infinite, "24 elements of output 0 are not finite in step 1"),
    ],
)
def test_a_surrogate_has_to_take_part(forward: Any, problem: str | None) -> None:
    torch.manual_seed(0)
    model = Rewritten(forward)
    if problem is None:
        return train(model, (X,), {})
    with pytest.raises(AssertionError, match=problem):
        train(model, (X,), {})


def test_a_surrogate_of_a_block_that_the_source_does_not_train() -> None:
    model = Rewritten(lambda x, down, up: (100 * x @ down.t() @ up.t()).round())
    with pytest.raises(AssertionError, match="2 parameters of surrogates get a gradient of zeros"):
        train(model, (X,), {})
    train(model, (X,), {}, {"surrogates.blocks_1"})
    with pytest.raises(AssertionError, match="2 parameters of surrogates"):
        train(model, (X,), {}, {"surrogates.blocks_10", "surrogates.blocks"})


class Masked(nn.Module):
    """Puts minus infinity where a number of the input is below a bound."""

    def __init__(self, module: nn.Module, below: float, value: float = float("-inf")) -> None:
        super().__init__()
        self.module, self.below, self.value = module, below, value

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x).masked_fill(x < self.below, self.value)  # type: ignore[no-any-return]


def test_outputs_that_the_source_masks_have_no_part_in_the_loss() -> None:
    model = Rewritten(lambda x, down, up: x @ down.t() @ up.t())
    train(Masked(model, 0.0), (X,), {}, source=Masked(model.fc, 0.0))
    new = int(((X < 0.1) & (X >= 0.0)).sum())
    for module, source, count in (
        (Masked(model, 0.1), Masked(model.fc, 0.0), new),
        (Masked(model, 0.0), model.fc, 12),
        (Masked(model, 0.0), None, 12),
        (Masked(model, 0.0), Masked(model.fc, 0.0, float("nan")), 12),
        (Masked(model, 0.0), nn.Linear(4, 3), 12),
    ):
        with pytest.raises(AssertionError, match=f"^{count} elements of output 0 are not finite in step 1"):
            train(module, (X,), {}, source=source)


class Unheard(torch.autograd.Function):
    """Weights that get a gradient, and are not used."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(*weights)
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return (grad * 2, *(torch.ones_like(weight) for weight in ctx.saved_tensors))


def test_a_sample_is_the_same_for_everyone() -> None:
    sizes = {"big": 60, "middle": 30, "small": 3}
    cases = [Case(f"{lib}:{i}", f"kind{i % 5}", lambda: None) for lib, size in sizes.items() for i in range(size)]  # type: ignore[arg-type, return-value]
    picked = sample(cases, 24)
    names = [case.name for case in picked]
    assert len(names) == len(set(names)) == 24
    assert sample(list(reversed(cases)), 24) == list(reversed(picked))
    shares = Counter(name.partition(":")[0] for name in names)
    assert shares == {"big": 14, "middle": 7, "small": 3}
    for lib in ("big", "middle"):
        assert {case.family for case in picked if case.name.startswith(lib)} == {f"kind{i}" for i in range(5)}
    # A model more changes the choice by one at most, and a larger sample holds the smaller one.
    more = {case.name for case in sample([*cases, Case("big:new", "kind0", cases[0].build)], 24)}
    assert len(set(names) - more) <= 1
    assert sample(cases, 200) == cases and len(sample(cases, 0)) == 11


def test_tensors_are_found_inside_plain_objects() -> None:
    class Cache:
        def __init__(self) -> None:
            self.layers = [{"keys": X}, self]

    assert [t is X for t in tensors({"cache": Cache(), "n": 1})] == [True]


def test_wake_touches_only_weights_that_hide_something() -> None:
    torch.manual_seed(0)
    net = nn.ModuleDict({"head": nn.Linear(3, 3), "norm": nn.LayerNorm(3), "other": nn.Linear(3, 3)})
    for parameter in net["head"].parameters():
        nn.init.zeros_(parameter)
    scale = nn.Parameter(torch.full((3,), 1e-6))
    net.register_parameter("scale", scale)
    before = copy.deepcopy(net.state_dict())
    wake(net)
    after = net.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["scale", "head.weight"]
    assert scale.detach().min() >= 0.4


def test_models_are_run_that_a_known_report_does_not_have_in_all_stages(tmp_path: Path) -> None:
    case = Case("timm:a", "a", build=lambda: (Net(), (), {}))

    def chosen(**record: Any) -> bool:
        known = tmp_path / "zoo.json"
        known.write_text(json.dumps({"models": [asdict(Record("timm:a", "a", **record))]}))
        return bool(choose([case], (), (), read_records(tmp_path, known), STAGES, ""))

    assert choose([case], (), (), read_records(tmp_path), STAGES, "") == [case]
    assert not chosen(passed=list(STAGES))
    assert chosen(passed=[stage for stage in STAGES if stage != "placed"])
    # What has come to its end is run again where it is from an older commit, of which nothing is known.
    assert chosen(passed=list(STAGES[:4]), nothing_repeats=True)
    assert not chosen(passed=list(STAGES[:4]), nothing_repeats=True, commit="abc")
    assert not chosen(passed=list(STAGES[:4]), failed="replaced", commit="abc")


def test_the_report_counts_all_models(tmp_path: Path) -> None:
    whole = [{"path": "", "tracer": "torch.export", "obstacles": [], "switches": 0}]
    repeat = {"name": "blocks", "copies": 6, "similar": False, "shared": False, "parameters": 10, "children": []}
    done = Record("timm:a", "a", passed=list(STAGES), parameters=200, removed=50, repeats=[repeat], parts=whole)
    done.surrogates, done.replaced, done.in_place, done.commit = {"coarse": 2, "slim": 1}, 3, 2, "abc"
    flat = Record(
        "timm:b", "b", passed=list(STAGES[:4]), reason="its 9 layers are of 9 kinds", nothing_repeats=True, parts=whole
    )
    bad = Record("hf:c", "c", failed="captured", reason="cannot | be (at /home/me/lib/site-packages/timm/a.py, line 3)")
    write_report([asdict(r) for r in (done, flat, bad)], ["timm:a", "timm:b", "hf:c", "hf:d"], tmp_path)
    text = (tmp_path / "zoo.md").read_text()
    for line in (
        "| models | 2 | 2 | 4 |",
        "| captured | 2 | 0 | 2 |",
        "| no repeated blocks, the end | 1 | 0 | 1 |",
        "| verified | 1 | 0 | 1 |",
        "| failed at some stage | 0 | 1 | 1 |",
        "| not run | 0 | 1 | 1 |",
        "| tried in place | 1 | 0 | 1 |",
        "| of these with all replaced blocks in place | 0 | 0 | 0 |",
        "| of these with some in place, where the others stay | 1 | 0 | 1 |",
        "Models that were run, by the commit of repl-fx: 1 at abc.",
        "| `a` | a | 200 | verified | 6 | coarse 2, slim 1 | 50 (25.0 %) | 0 |  |",
        "| `c` | c | 0 | **failed: captured** |  |  |  | 0 | cannot \\| be (at timm/a.py, line 3) |",
    ):
        assert line in text.splitlines(), line
    assert "cannot" in (tmp_path / "zoo.json").read_text()


def _compressed(build: Callable[[], Any], place: Path) -> Record:
    place.mkdir()
    record = Record("timm:a", "a")
    with suppress(_Stop):
        compress(Case("timm:a", "a", build), record, place, COMPRESSING[-1], nullcontext())
    return Record.read(place)


@pytest.mark.slow
def test_a_model_is_scored_planned_and_fitted_with_random_data(tmp_path: Path) -> None:
    torch.manual_seed(0)
    record = _compressed(lambda: (TokenNet(depth=3), (torch.randn(2, 6, 16),), {}), tmp_path / "tokens")
    assert record.passed == list(COMPRESSING) and record.removed > 0.005 * record.parameters
    nothing = _compressed(lambda: (Net(), (torch.randn(2, 4),), {}), tmp_path / "net")
    assert nothing.nothing_repeats and nothing.failed is None and nothing.passed == []


@pytest.mark.slow
def test_a_part_of_a_compression_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise repl_fx.BadInput("nothing in the result was fitted")

    monkeypatch.setattr(repl_fx, "fit", refuse)
    record = _compressed(lambda: (TokenNet(depth=3), (torch.randn(2, 6, 16),), {}), tmp_path / "tokens")
    assert (record.failed, record.passed) == ("fitted", list(COMPRESSING[:3]))
    assert record.reason == "BadInput: nothing in the result was fitted"


def test_random_batches_have_the_inputs_by_name() -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return x

    x, mask = torch.zeros(2, 3), torch.ones(2, dtype=torch.int64)
    batches = random_batches(Named(), (x,), {"mask": mask})
    assert len(batches) == 4 and all(batch.keys() == {"x", "mask"} for batch in batches)
    assert all(torch.equal(batch["mask"], mask) and batch["x"].any() for batch in batches)
    assert not torch.equal(batches[0]["x"], batches[1]["x"])
    assert isinstance(random_batches(Named(), (x,), {})[0], tuple)


@pytest.mark.slow
def test_a_process_that_is_forked_sets_its_threads_before_a_backward_pass_does(monkeypatch: pytest.MonkeyPatch) -> None:
    after: list[Callable[[], None]] = []
    monkeypatch.setattr(os, "register_at_fork", lambda *, after_in_child: after.append(after_in_child))
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    # Neither the libraries nor the warm-up, which is seconds.
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delattr(repl_fx, "capture")
    monkeypatch.setattr(gc, "freeze", lambda: None)
    runpy.run_path(str(Path(benchmarks.zoo_runner.__file__).with_name("preload.py")))
    threads.clear()
    (begin,) = after
    begin()
    assert threads == [1]


class Short(nn.Module):
    """Three blocks for up to nine tokens, and nothing for more."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = TokenNet(depth=3)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > 9:
            return x
        y: Tensor = self.tokens(x)
        return y


def _sized(place: Path) -> Record:
    torch.manual_seed(0)
    record = Record("sized:own:short", "own", commit="abc")
    with suppress(_Stop):
        sized(
            Case("sized:own:short", "own", lambda: (Short(), (torch.randn(2, 6, 16),), {})),
            record,
            place,
            SIZING[-1],
            nullcontext(),
        )
    return Record.read(place)


@pytest.mark.slow
def test_a_model_runs_at_other_sizes_and_on_both_sides_of_its_limits(tmp_path: Path) -> None:
    record = _sized(tmp_path)
    assert (record.failed, record.reason, record.passed) == (None, "", list(SIZING))
    by = {why: [trial for trial in record.trials if trial["why"] == why] for why in ("within", "beyond", "edge")}
    assert {why: len(trials) for why, trials in by.items()} == {"within": 5, "beyond": 1, "edge": 1}
    assert by["beyond"][0]["sizes"] == "batch 2, length 10"
    assert by["beyond"][0]["source"] == "runs"
    assert by["beyond"][0]["forms"]["graph"].startswith("refused: ") and by["beyond"][0]["forms"]["in place"] == "right"
    assert {outcome for trial in by["within"] for outcome in trial["forms"].values()} == {"right"}
    assert all(TRAINED in trial["forms"] for trial in by["within"])
    (tmp_path / "zoo.json").write_text(json.dumps({"versions": {}, "processor": "one", "models": [], "not run": []}))
    write_sizes([asdict(record)], tmp_path)
    text = (tmp_path / "zoo.md").read_text()
    assert "- 1 right." in text and "- 2 of 2 dimensions are free: batch 1 of 1, length 1 of 1." in text
    assert "| 5 of 5 | 2 of 2 | x.shape[1] <= 9 | right |" in text


@pytest.mark.zoo
@pytest.mark.slow
def test_the_commands_that_read_data_run_on_a_model(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    name = "hf:bert"
    record = Record(name, "a", commit="abc")
    with suppress(_Stop):
        reading(case_called(name), record, tmp_path, READING[-1], nullcontext())
    assert (record.failed, record.reason, record.passed) == (None, "", list(READING))
    (tmp_path / "zoo.json").write_text(json.dumps({"versions": {}, "processor": "one", "models": [], "not run": []}))
    refused = Record("timm:b", "b", commit="abc", passed=["inspected"], failed="trained", reason="no loss")
    write_reading([asdict(record), asdict(refused)], 5, tmp_path)
    text = (tmp_path / "zoo.md").read_text()
    assert "| inspected | 1 | 1 | 2 |" in text and "| benched | 1 | 0 | 1 |" in text
    assert "5 in all" in text and "| `timm:b` | trained | no loss |" in text


def test_a_graph_is_compared_in_training_mode_too() -> None:
    net = Net()
    for change, words in ((moved, "wrong: training, step 1: "), (doubled, "wrong: training, step 2: ")):
        other = Net(change)
        other.load_state_dict(net.state_dict())
        given = flatten_inputs(net, ExampleInputs((torch.randn(3, 4),), {}))
        assert trained(net, net, given) == {TRAINED: "right"}
        assert trained(net, other, given)[TRAINED].startswith(words)
    # A batch norm learns nothing from one value.
    assert trained(net, net, flatten_inputs(net, ExampleInputs((torch.randn(1, 4),), {}))) == {}


def test_what_is_wrong_at_a_size_is_named() -> None:
    trial = {"sizes": "batch 1", "why": "within", "source": "runs", "forms": {"graph": "right", "file": "refused: no"}}
    assert wrong(trial) == ["batch 1, file: refused: no"]
    assert wrong({**trial, "why": "beyond"}) == wrong(trial, ["graph"]) == []
    assert wrong({**trial, "why": "beyond", "forms": {"graph": "answers"}}) == ["batch 1, graph: answers"]
