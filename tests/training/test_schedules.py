"""Runs in phases: blocks that are replaced on the way and restored, and runs that were killed anywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.errors import BadInput
from repl_fx.pipeline import unreplaced
from repl_fx.rewriting.in_place.surrogate_block import SurrogateBlock
from repl_fx.training import schedules
from repl_fx.training.phases import NOTE, phase_of
from repl_fx.training.run import CHECKPOINT, STATE, settings_of
from repl_fx.training.safe_checkpoints import Checkpoints, WholeCheckpoints, read_checkpoint
from repl_fx.training.schedules import neighbours_of, require_schedule, train_in_phases, treated
from repl_fx.training.train_config import TrainConfig
from tests.nets import TokenNet
from tests.training.runs import Net, pictures

PHASES = TrainConfig(
    epochs=4, batch_size=8, save_every=4, lr=0.02, device="cpu", replace_at=1, restore_at=3, augment=False
)
BLEND = TrainConfig(epochs=2, batch_size=8, lr=0.02, device="cpu", restore_at=1)
INPUTS = (torch.zeros(2, 1, 4, 4),)
PICTURES, TOKENS = torch.randn(2, 1, 4, 4), torch.randn(2, 6, 16)


def _result(seed: int = 0, surrogate: str = "blend", plan: repl_fx.Plan | None = None) -> repl_fx.TransformResult:
    torch.manual_seed(seed)
    return repl_fx.transform(Net(), INPUTS, surrogate=surrogate, plan=plan)


def _checkpoints(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """All checkpoints that are written, with the converted ones."""
    seen: list[dict[str, Any]] = []
    own = WholeCheckpoints.save_checkpoint

    def save(self: WholeCheckpoints, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        own(self, checkpoint, path, storage_options)
        seen.append(read_checkpoint(Path(path)))

    monkeypatch.setattr(WholeCheckpoints, "save_checkpoint", save)
    return seen


def _moments(checkpoint: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    (names,), (state,) = checkpoint[NOTE]["parameters"], checkpoint["optimizer_states"]
    return {names[number]: moments for number, moments in state["state"].items()}


def test_a_run_goes_through_its_phases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _checkpoints(monkeypatch)
    result = _result()
    made = train_in_phases(result, pictures(), PHASES.changed(epochs=5), tmp_path)
    assert (made.steps, made.resumed) == (30, None) and set(made.figures) == {"loss", "accuracy"}
    model = made.model
    assert type(model) is Net and not any(isinstance(module, SurrogateBlock) for module in model.modules())
    at = [(phase_of(saved), saved["global_step"]) for saved in seen]
    assert at == [
        *(("original", step) for step in (4, 6)),
        *(("rewritten", step) for step in (6, 10, 12, 16, 18)),
        *(("restored", step) for step in (18, 22, 24, 28, 30)),
    ]
    for before, after, new in ((seen[1], seen[2], ".surrogate."), (seen[6], seen[7], ".fc")):
        was, now = _moments(before), _moments(after)
        kept = was.keys() & {name for names in after[NOTE]["parameters"] for name in names}
        assert now.keys() == kept and "model.blocks.0.fc1.weight" in kept and "model.blocks.1.norm.weight" in kept
        for name in kept:
            assert all(torch.equal(value, now[name][key]) for key, value in was[name].items())
        begun = {name for names in after[NOTE]["parameters"] for name in names} - kept
        assert begun and all(new in name and name.startswith("model.blocks.1.") for name in begun)
        for part in ("loops", "callbacks", "epoch", "global_step"):
            assert str(before[part]) == str(after[part])
        assert before["lr_schedulers"][0]["last_epoch"] == after["lr_schedulers"][0]["last_epoch"]
        assert all(torch.equal(v, after["state_dict"][n]) for n, v in before["state_dict"].items() if n in kept)


def test_blends_are_restored_as_they_act(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    x = torch.randn(5, 1, 4, 4)
    own = schedules._next

    def following(before: Any, result: Any, checkpoint: Path, name: str) -> Any:
        made = own(before, result, checkpoint, name)
        seen.extend(phase.model.eval()(x).detach() for phase in (before, made[0]))
        return made

    monkeypatch.setattr(schedules, "_next", following)
    train_in_phases(_result(), pictures(), BLEND, tmp_path)
    torch.testing.assert_close(*seen, rtol=1e-5, atol=1e-6)


class _Killed(BaseException):
    """Ends a run as a kill does: nothing is written on the way."""


def _kill(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, *, before: bool = True) -> None:
    """End the run at a call of a function."""
    own: Callable[..., Any] = getattr(owner, name)
    calls = {"count": 0}

    def killing(*args: Any, **kwargs: Any) -> Any:
        calls["count"] += 1
        if calls["count"] == call and before:
            raise _Killed
        made = own(*args, **kwargs)
        if calls["count"] == call:
            raise _Killed
        return made

    monkeypatch.setattr(owner, name, killing)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[TrainConfig], tuple[dict[str, float], nn.Module]]:
    """Runs that nobody ended, by their settings."""
    known: dict[str, tuple[dict[str, float], nn.Module]] = {}

    def run(config: TrainConfig) -> tuple[dict[str, float], nn.Module]:
        if config.to_yaml() not in known:
            made = train_in_phases(_result(), pictures(), config, tmp_path_factory.mktemp("whole"))
            assert made.model is not None
            known[config.to_yaml()] = made.figures, made.model
        return known[config.to_yaml()]

    return run


AVERAGED = PHASES.changed(ema=0.9, accumulate=2, mixup=0.3, optimizer="sgd", neighbours="freeze", save_every=2)


@pytest.mark.parametrize(
    ("config", "owner", "name", "call", "before", "phase"),
    [
        (PHASES, Checkpoints, "on_train_batch_end", 5, False, "original"),
        (PHASES, schedules, "_next", 1, True, "original"),
        (PHASES, schedules, "_next", 1, False, "original"),
        # The converted checkpoint lies there, and no step has been taken since.
        (PHASES, Checkpoints, "on_train_start", 2, True, "rewritten"),
        (PHASES, Checkpoints, "on_train_batch_end", 16, False, "rewritten"),
        (AVERAGED, schedules, "_next", 2, False, "rewritten"),
        (AVERAGED, Checkpoints, "on_train_start", 3, True, "restored"),
        (AVERAGED, Checkpoints, "on_train_batch_end", 23, False, "restored"),
    ],
)
def test_a_run_that_was_killed_goes_on_in_its_phase_as_if_it_had_not_been(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: Callable[[TrainConfig], tuple[dict[str, float], nn.Module]],
    config: TrainConfig,
    owner: Any,
    name: str,
    call: int,
    before: bool,
    phase: str,
) -> None:
    figures, expected = whole(config)
    first = _result()
    with monkeypatch.context() as context:
        _kill(context, owner, name, call, before=before)
        with pytest.raises(_Killed):
            train_in_phases(first, pictures(), config, tmp_path)
    assert phase_of(read_checkpoint(tmp_path / STATE / CHECKPOINT)) == phase
    # Of another process: the same structure, and other weights.
    again = _result(seed=1, plan=first.plan)
    made = train_in_phases(again, pictures(), settings_of(tmp_path), tmp_path, resume=True)
    assert made.figures == figures and made.resumed is not None and made.model is not None
    state = made.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in expected.state_dict().items())


def test_a_run_that_is_at_its_end_gives_its_model_again(tmp_path: Path) -> None:
    result = _result()
    made = train_in_phases(result, pictures(), PHASES, tmp_path)
    restored = unreplaced(_result(seed=1, plan=result.plan), "so")
    again = train_in_phases(restored, pictures(), PHASES, tmp_path, resume=True)
    assert again.figures == made.figures and again.resumed == again.steps
    assert made.model is not None and again.model is not None
    assert all(torch.equal(tensor, again.model.state_dict()[name]) for name, tensor in made.model.state_dict().items())


def test_frozen_neighbours_stay_and_surrogates_do_not(tmp_path: Path) -> None:
    result = _result()
    before = {name: tensor.clone() for name, tensor in result.model.state_dict().items()}
    config = TrainConfig(epochs=1, batch_size=8, lr=0.02, device="cpu", neighbours="freeze", ema=0.5)
    model = train_in_phases(result, pictures(), config, tmp_path).model
    assert model is not None
    state = model.state_dict()
    same = {name for name in before if torch.equal(before[name], state[name])}
    assert same == {name for name in before if name.startswith(("blocks.0.", "blocks.2."))}
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_cannot_be_is_a_line(tmp_path: Path) -> None:
    result = _result()
    require_schedule(TrainConfig(), unreplaced(result, "so"))
    with pytest.raises(BadInput, match="are for a model with replaced blocks; here none is"):
        require_schedule(PHASES, unreplaced(result, "so"))
    torch.manual_seed(0)
    loop = nn.Sequential(nn.Linear(16, 16), _Loop())
    graph = repl_fx.transform(loop, (torch.zeros(2, 16),), surrogate="bottleneck")
    assert graph.in_place.model is None
    with pytest.raises(BadInput, match="restore_at needs the model in place, which is refused: "):
        require_schedule(PHASES, graph)
    with pytest.raises(BadInput, match=r"last\.ckpt is of another run than"):
        train_in_phases(result, pictures(), PHASES, tmp_path)
        train_in_phases(result, pictures(), TrainConfig(epochs=4, replace_at=1), tmp_path, resume=True)


class _Loop(nn.Module):
    """Blocks that are no modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Linear(16, 32) for _ in range(3))
        self.second = nn.ModuleList(nn.Linear(32, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for first, second in zip(self.first, self.second, strict=True):
            x = x + second(first(x).relu())
        return x


def _gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model.eval()(x).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _moved(model: nn.Module) -> None:
    """Away from surrogates that begin silent."""
    for name, parameter in model.named_parameters():
        if "surrogate" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)


def test_frozen_neighbours_have_no_gradient_and_surrogates_have() -> None:
    result = _result()
    names = neighbours_of(result)
    assert {name.split(".")[1] for name in names} == {"0", "2"} and "blocks.0.norm.bias" in names
    result.model.get_parameter("blocks.0.norm.bias").requires_grad_(False)
    with treated(result.model, result, "freeze"):
        found = _gradients(result.model, PICTURES)
    assert found.keys().isdisjoint(names) and any(".surrogate." in name for name in found) and "stem.weight" in found
    # What the user has frozen stays so, and all else trains again.
    trains = {name for name, parameter in result.model.named_parameters() if parameter.requires_grad}
    assert {name for name, _ in result.model.named_parameters()} - trains == {"blocks.0.norm.bias"}


@pytest.mark.parametrize("surrogate", ["blend", "bottleneck", "reuse"])
@pytest.mark.parametrize("graph", [False, True])
def test_detached_neighbours_have_their_own_gradients_alone(surrogate: str, graph: bool) -> None:
    torch.manual_seed(0)
    result = repl_fx.transform(TokenNet(depth=3), (TOKENS,), surrogate=surrogate)
    model = result.module if graph else result.model
    _moved(model)
    both = _gradients(model, TOKENS)
    with treated(model, result, "detach"):
        detached = _gradients(model, TOKENS)
    # The same network whose surrogates have weights that are constants: no gradient but the block's own.
    behind = {name for name in both if name.startswith("blocks.2.")}
    changed = {name for name in both if not torch.equal(both[name], detached[name])}
    assert changed and all(name.startswith(("blocks.0.", "blocks.2.")) for name in changed)
    settings = {"train_neighbours": False}
    torch.manual_seed(0)
    constant = repl_fx.transform(TokenNet(depth=3), (TOKENS,), surrogate=surrogate, settings=settings)
    other = constant.module if graph else constant.model
    other.load_state_dict(model.state_dict())
    expected = _gradients(other, TOKENS)
    assert behind and all(torch.equal(expected[name], detached[name]) for name in expected)
    assert all(torch.equal(both[name], again) for name, again in _gradients(model, TOKENS).items())


def test_neighbours_that_cannot_be_treated_are_a_line() -> None:
    bare = _result(surrogate="identity")
    reason = "detach is for surrogates made from neighbours' weights; here is none"
    with pytest.raises(BadInput, match=reason), treated(bare.model, bare, "detach"):
        pass
    alone = _result(surrogate="narrow")
    reason = "freeze is for surrogates between kept blocks; here is none"
    with pytest.raises(BadInput, match=reason), treated(alone.model, alone, "freeze"):
        pass
    for module in (bare.model.stem, bare.model.head):
        assert isinstance(module, nn.Module)
        module.requires_grad_(False)
    nothing = "neighbours=freeze leaves nothing to train"
    with pytest.raises(BadInput, match=nothing), treated(bare.model, bare, "freeze"):
        pass


@pytest.mark.parametrize("graph", [False, True])
def test_surrogates_learn_alone(graph: bool) -> None:
    result = _result()
    model = result.module if graph else result.model
    with treated(model, result, "train", "surrogates"):
        found = _gradients(model, PICTURES)
    own = {name for name, _ in result.captured_parts.source.named_parameters()}
    assert found and found.keys().isdisjoint(own) and all("surrogate" in name for name in found)
    assert all(parameter.requires_grad for parameter in model.parameters())
    nothing = _result(surrogate="identity")
    refused = pytest.raises(BadInput, match="learn=surrogates leaves nothing to train: no surrogate has parameters")
    with refused, treated(nothing.model, nothing, "train", "surrogates"):
        pass
